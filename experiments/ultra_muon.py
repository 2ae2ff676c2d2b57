"""ultra with Muon for the block matrices, AdamW for the rest.

Command:  python -m yxanul.tools.compare experiments/ultra.py experiments/ultra_muon.py --seconds=120
          --set=data.source=PATH
Hardware: one Hopper GPU (H100, H200); gpu=rtx4090 sets the 24 GB table
Expected: not yet run; records/ holds what was measured.

The update has AdamW's root mean square (Moonlight, arXiv 2502.16982), so ultra's rate and weight decay stand to begin with.
Variants: `lr` multiplies the block matrices' rate; `polynomial` (quintic, polar_express); `rows=true` brings its rows
to one size (NorMuon); `schedule` (cosine, trapezoid); `gpu`, `source`, `budget_tokens`, `batch` as in ultra.
"""

from ml_collections import ConfigDict

from experiments import ultra
from yxanul.config.variants import parse_variant


def get_config(arg: str | None = None) -> ConfigDict:
  variant = parse_variant(
    arg,
    gpu='rtx4090',
    source='',
    budget_tokens=2_610_000_000,
    batch=1.0,
    lr=1.0,
    polynomial='quintic',
    rows=False,
    schedule='cosine',
  )
  own = {key: variant.pop(key) for key in ('lr', 'polynomial', 'rows', 'schedule')}
  config = ultra.get_config(','.join(f'{key}={value}' for key, value in variant.items()))
  config.name = 'ultra_muon'
  blocks = config.optimizer.groups[0]  # the one with the weight decay: the block matrices
  blocks.optimizer, blocks.lr_multiplier = 'muon', own['lr']
  config.optimizer.muon.polynomial = own['polynomial']
  config.optimizer.muon.row_normalization = own['rows']
  config.optimizer.schedule = own['schedule']
  return config
