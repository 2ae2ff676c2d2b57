"""ultra with another start and other rates for its tied, factorized head; unvaried it is ultra.

Command:  python -m yxanul.tools.ablate --config=experiments/ultra.py:gpu=h200,batch=0.125,source=PATH --seconds=120
          --only=ultra,ultra_head:projection_std=0.088 --workdir=runs/ablate
Hardware: one Hopper GPU (H100, H200); gpu=rtx4090 sets the 24 GB table
Result:   gpu=h200,batch=0.125, two minutes, one seed each: a projection that starts at 1/sqrt(rank), as in the command, 1.742
          bits per byte where ultra has 1.874; with input_scale=30 besides 1.774, and with that and
          shape=timeline,lr_scale=false 1.733 (records/2026-11-30_ablate). Others, one at a time, in a copy with 1.2M
          parameters only (records/2026-12-01_small-head)

By the mission's rule tokens enter the residual stream at a root mean square of 0.0045, and the projection is used twice.
Variants: `table_std`, `projection_std` (initialization), `input_scale` (of the embeddings, not of the head), `table_lr`,
`projection_lr` (times the rate), `z_loss`; `shape` and `lr_scale`, of the curriculum, as in ultra_curriculum; `gpu`, `source`,
`budget_tokens`, `batch` as in ultra.
"""

from ml_collections import ConfigDict

from experiments import ultra_curriculum
from yxanul.config.variants import parse_variant


def get_config(arg: str | None = None) -> ConfigDict:
  variant = parse_variant(
    arg,
    gpu='rtx4090',
    source='',
    budget_tokens=2_610_000_000,
    batch=1.0,
    table_std=0.02,
    projection_std=0.02,
    input_scale=1.0,
    table_lr=1.0,
    projection_lr=1.0,
    z_loss=0.0,
    shape='ten',
    lr_scale=True,
  )
  model = {key: variant.pop(key) for key in ('table_std', 'projection_std', 'input_scale')}
  rates = {key: variant.pop(f'{key}_lr') for key in ('table', 'projection')}
  z_loss = variant.pop('z_loss')
  config = ultra_curriculum.get_config(','.join(f'{key}={value}' for key, value in variant.items()))
  config.name = 'ultra_head'
  config.model.update(model)
  config.optimizer.z_loss = z_loss
  *blocks, rest = config.optimizer.groups
  own = []
  for name, rate in rates.items():
    group = rest.copy_and_resolve_references()
    group.pattern, group.lr_multiplier = rf'embedding\.{name}', rate
    own.append(group)
  config.optimizer.groups = (*blocks, *own, rest)
  return config
