"""ultra with fewer rows a step at the start: batch-size warm-up, as stages of the table.

Command:  python -m yxanul.tools.compare experiments/ultra.py experiments/ultra_batch_warmup.py --seconds=120
          --set=data.source=PATH
Hardware: one Hopper GPU (H100, H200); gpu=rtx4090 sets the 24 GB table
Expected: not yet run; records/ holds what was measured.

Up to `until` of the step budget (counted in steps of the reference batch, as the curriculum counts) every stage takes a
`divisor`-th of its rows, at the rate that the batch scaling gives them; the stage in which that ends is split in two, so each
part has its own static graph. The tokens of every length stay the same.
Variants: `until`, `divisor`; `gpu`, `source`, `budget_tokens`, `batch` as in ultra.
"""

from ml_collections import ConfigDict

from experiments import ultra
from yxanul.config.variants import parse_variant


def warmed_up(stages: tuple[ConfigDict, ...], until: float, divisor: int) -> tuple[ConfigDict, ...]:
  """The stages with a `divisor`-th of the rows up to `until`; the one in which it ends becomes two."""
  result, ends = [], [*(stage.step_share_start for stage in stages[1:]), 1.0]
  for stage, end in zip(stages, ends, strict=True):
    if stage.step_share_start < until:
      small = stage.copy_and_resolve_references()
      small.batch_size = stage.batch_size // divisor
      result.append(small)
      if until >= end:
        continue
      stage.step_share_start = until
    result.append(stage)
  return tuple(result)


def get_config(arg: str | None = None) -> ConfigDict:
  variant = parse_variant(arg, gpu='rtx4090', source='', budget_tokens=2_610_000_000, batch=1.0, until=0.15, divisor=4)
  until, divisor = variant.pop('until'), variant.pop('divisor')
  config = ultra.get_config(','.join(f'{key}={value}' for key, value in variant.items()))
  config.name = 'ultra_batch_warmup'
  config.curriculum.stages = warmed_up(config.curriculum.stages, until, divisor)
  return config
