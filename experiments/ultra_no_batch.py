"""ultra with one saving off: the baseline's 12,288 tokens a step.

Command:  python -m yxanul.main --config=experiments/ultra_no_batch.py:source=PATH
Hardware: one Hopper GPU (H100, H200); gpu=rtx4090 sets the 24 GB table
Expected: gpu=h200: 1.820 bits per byte after 121 s on one H200 (records/2026-11-30_ablate); not yet run to its whole budget

The reference batch stays the mission's, so the learning rate falls with the square root of the batch.
Variants: `gpu`, `source`, `budget_tokens`, `batch`, as in ultra.
"""

from ml_collections import ConfigDict

from experiments import baseline_curriculum, ultra


def without(config: ConfigDict) -> ConfigDict:
  """Takes the saving off an experiment, in place."""
  for stage in config.curriculum.stages:
    stage.batch_size = baseline_curriculum.TOKENS_PER_STEP // stage.seq_len
  return config


def get_config(arg: str | None = None) -> ConfigDict:
  config = without(ultra.get_config(arg))
  config.name = 'ultra_no_batch'
  return config
