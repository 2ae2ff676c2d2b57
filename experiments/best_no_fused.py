"""best with one saving off: the same maths run eagerly, operation by operation.

Command:  python -m yxanul.main --config=experiments/best_no_fused.py:source=PATH
Hardware: one Hopper GPU (H100, H200); gpu=rtx4090 lets it fill 24 GB
Expected: not yet run.

Variants: best's.
"""

from ml_collections import ConfigDict

from experiments import best, ultra_no_fused


def get_config(arg: str | None = None) -> ConfigDict:
  config = ultra_no_fused.without(best.get_config(arg))
  config.name = 'best_no_fused'
  return config
