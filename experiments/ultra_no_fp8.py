"""ultra with one saving off: BF16 block linears.

Command:  python -m yxanul.main --config=experiments/ultra_no_fp8.py:source=PATH
Hardware: one Hopper GPU (H100, H200); gpu=rtx4090 sets the 24 GB table
Expected: not yet run to its end; records/ holds what was measured.

Variants: `gpu`, `source`, `budget_tokens`, `batch`, as in ultra.
"""

from ml_collections import ConfigDict

from experiments import ultra


def without(config: ConfigDict) -> ConfigDict:
  """Takes the saving off an experiment, in place."""
  config.precision.matmul = 'bf16'
  return config


def get_config(arg: str | None = None) -> ConfigDict:
  config = without(ultra.get_config(arg))
  config.name = 'ultra_no_fp8'
  return config
