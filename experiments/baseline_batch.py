"""The GPT-2 baseline with one saving on: the largest batch that the card holds.

Command:  python -m yxanul.main --config=experiments/baseline_batch.py:source=PATH
Hardware: one GPU; `gpu` names its memory class
Expected: gpu=h200: 2.313 bits per byte after 121 s on one H200 (records/2026-11-30_ablate); not yet run to its whole budget

In FP32 a 24 GB card holds little more than the baseline's 12 rows: the saving needs memory that the other savings free.
Variants: `gpu`, `source`, `budget_tokens`.
"""

from ml_collections import ConfigDict

from experiments import baseline_gpt2
from yxanul.config.variants import choose, parse_variant

# Rows of 1024 tokens that FP32 activations (about 1.25 MB a token) leave room for; an estimate, not a measurement.
ROWS = {'rtx4090': 16, 'a100-40': 28, 'a100-80': 56, 'h100': 56, 'h200': 104}


def get_config(arg: str | None = None) -> ConfigDict:
  variant = parse_variant(arg, gpu='rtx4090', source='', budget_tokens=2_610_000_000)
  config = baseline_gpt2.get_config()
  config.name = 'baseline_batch'
  config.data.source = variant['source']
  config.curriculum.budget_tokens = variant['budget_tokens']
  config.curriculum.stages[0].batch_size = choose(variant['gpu'], ROWS, 'gpu')
  return config
