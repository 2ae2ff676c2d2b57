"""ultra with one saving off: BF16 block linears.

Command:  python -m yxanul.main --config=experiments/ultra_no_fp8.py:source=PATH
Hardware: one Hopper GPU (H100, H200); gpu=rtx4090 sets the 24 GB table
Expected: gpu=h200,batch=0.125: 1.908 bits per byte after 122 s on one H200 (records/2026-11-30_ablate). Not yet run to its
          whole budget.

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
