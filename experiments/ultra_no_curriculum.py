"""ultra with one saving off: rows of 2048 tokens from the first step to the last.

Command:  python -m yxanul.main --config=experiments/ultra_no_curriculum.py:source=PATH
Hardware: one Hopper GPU (H100, H200); gpu=rtx4090 sets the 24 GB table
Expected: gpu=h200,batch=0.125: 1.922 bits per byte after 123 s on one H200 (records/2026-11-30_ablate). Not yet run to its
          whole budget.

Variants: `gpu`, `source`, `budget_tokens`, `batch`, as in ultra.
"""

from ml_collections import ConfigDict

from experiments import ultra


def without(config: ConfigDict) -> ConfigDict:
  """Takes the saving off an experiment, in place."""
  last = config.curriculum.stages[-1]
  last.step_share_start = 0.0
  config.curriculum.stages = (last,)
  return config


def get_config(arg: str | None = None) -> ConfigDict:
  config = without(ultra.get_config(arg))
  config.name = 'ultra_no_curriculum'
  return config
