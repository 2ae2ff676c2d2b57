"""The GPT-2 baseline with one saving on: the ten-stage length curriculum.

Command:  python -m yxanul.main --config=experiments/baseline_curriculum.py:source=PATH
Hardware: one GPU with 16 GB
Expected: 1.955 bits per byte after 120 s on one H200 (records/2026-11-30_ablate); not yet run to its whole budget

Every stage takes the baseline's 12,288 tokens a step, so that the batch is not a second change; learned positions go to 2048.
Variants: `source`, `budget_tokens`.
"""

from ml_collections import ConfigDict

from experiments import baseline_gpt2, ultra

TOKENS_PER_STEP = 12 * 1024


def get_config(arg: str | None = None) -> ConfigDict:
  config = baseline_gpt2.get_config(arg)
  config.name = 'baseline_curriculum'
  config.model.max_positions = 2048
  config.curriculum.stages = ultra.stages(batch_multiple=1)
  for stage in config.curriculum.stages:
    stage.batch_size = stage.reference_batch_size = TOKENS_PER_STEP // stage.seq_len
  return config
