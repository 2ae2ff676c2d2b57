"""The recipe that wins on one H200: ultra's model, Muon, a head that learns from the first step, rows that grow late.

Command:  python -m yxanul.main --config=experiments/best.py:source=PATH
Hardware: one Hopper GPU (H100, H200)
Expected: not yet run; records/ holds what was measured.

The model, tokenizer, FP8 and fused kernels are ultra's. What differs was settled by measurement (LOG.md):
- Muon for the block matrices, at rates of thousandths; AdamW for the rest, table and projection at rates of their own;
- tokens enter the residual stream at a root mean square near 1, and the projection starts as an orthogonal one would;
- steps of `step_tokens`, small ones first where the budget is small; rows of 256 to 2048 tokens in stages of even shares;
- a constant rate, then a linear decay to zero.

Variants: `source`, `budget_tokens`; `step_tokens`; `lengths`, the stages ('512-2048'); `lr`, and `table_lr`, `projection_lr`
times it; `input_scale`, `projection_std`.
"""

from ml_collections import ConfigDict

from experiments import ultra
from yxanul.config.variants import parse_variant


def stages(lengths: list[int], step_tokens: int) -> tuple[ConfigDict, ...]:
  """Stages of equal shares of the tokens, all of `step_tokens` a step."""
  table = [ultra.stage(length, step_tokens // length, 1.0, 1.0, i / len(lengths)) for i, length in enumerate(lengths)]
  return tuple(table)


def get_config(arg: str | None = None) -> ConfigDict:
  variant = parse_variant(
    arg,
    source='',
    budget_tokens=60_000_000,
    step_tokens=32_768,
    lengths='256-512-1024-2048',
    lr=2.4e-3,
    table_lr=2.5,
    projection_lr=0.66,
    input_scale=150.0,
    projection_std=0.088,
    momentum=0.9,
  )
  config = ultra.get_config(f'gpu=h200,source={variant["source"]},budget_tokens={variant["budget_tokens"]}')
  config.name = 'best'
  config.model.input_scale = variant['input_scale']
  config.model.projection_std = variant['projection_std']
  config.curriculum.stages = stages([int(length) for length in variant['lengths'].split('-')], variant['step_tokens'])

  optimizer = config.optimizer
  optimizer.peak_lr = variant['lr']
  optimizer.batch_lr_scaling = 'none'
  optimizer.schedule, optimizer.warmup_share, optimizer.decay_share, optimizer.final_lr_share = 'trapezoid', 0.02, 0.6, 0.0
  blocks, rest = optimizer.groups
  blocks.optimizer, optimizer.muon.momentum = 'muon', variant['momentum']
  head = []
  for name in ('table', 'projection'):
    group = rest.copy_and_resolve_references()
    group.pattern, group.lr_multiplier = rf'embedding\.{name}', variant[f'{name}_lr']
    head.append(group)
  optimizer.groups = (blocks, *head, rest)
  return config
