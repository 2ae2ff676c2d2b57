"""best with one saving off: the baseline's 12,288 tokens a step.

Command:  python -m yxanul.main --config=experiments/best_no_batch.py:source=PATH
Hardware: one Hopper GPU (H100, H200); gpu=rtx4090 lets it fill 24 GB
Expected: not yet run.

The learning rate falls with the square root of the batch, as in ultra_no_batch: to 1.47e-3.
Variants: best's; `step_tokens` is the step that the rate was chosen for.
"""

from ml_collections import ConfigDict

from experiments import best, ultra_no_batch


def get_config(arg: str | None = None) -> ConfigDict:
  config = ultra_no_batch.without(best.get_config(arg))
  config.name = 'best_no_batch'
  config.optimizer.batch_lr_scaling = 'sqrt'
  return config
