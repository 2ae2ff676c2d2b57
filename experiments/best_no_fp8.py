"""best with one saving off: BF16 block linears.

Command:  python -m yxanul.main --config=experiments/best_no_fp8.py:source=PATH
Hardware: one Hopper GPU (H100, H200); gpu=rtx4090 lets it fill 24 GB
Expected: not yet run.

Variants: best's.
"""

from ml_collections import ConfigDict

from experiments import best, ultra_no_fp8


def get_config(arg: str | None = None) -> ConfigDict:
  config = ultra_no_fp8.without(best.get_config(arg))
  config.name = 'best_no_fp8'
  return config
