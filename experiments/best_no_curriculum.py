"""best with one saving off: rows of 2048 tokens and all blocks from the first step to the last.

Command:  python -m yxanul.main --config=experiments/best_no_curriculum.py:source=PATH,budget_tokens=47e6
Hardware: one Hopper GPU (H100, H200); gpu=rtx4090 lets it fill 24 GB
Expected: not yet run.

Variants: best's.
"""

from ml_collections import ConfigDict

from experiments import best, ultra_no_curriculum


def get_config(arg: str | None = None) -> ConfigDict:
  config = ultra_no_curriculum.without(best.get_config(arg))
  config.name = 'best_no_curriculum'
  return config
