"""The recipe that came out best on one H200 in short runs: ultra's model, Muon, another start for the head, rows that grow.

Command:  python -m yxanul.main --config=experiments/best.py:source=PATH,budget_tokens=11.2e6
Hardware: one Hopper GPU (H100, H200); gpu=rtx4090 lets it fill 24 GB
Result:   1.559 bits per byte after 30 s of training and 11.2M tokens, 1.318 after 103 s and 37.3M (one seed). GPT-2 in FP32
          comes to 1.657 in 450 s, `best` in 18: 25.1 times as soon; in BF16 it passes 1.318 after 177 s, on its
          way down (records/2026-11-30_ablate-best)

Model, tokenizer, FP8 and kernels are ultra's. What differs was chosen after 22 runs of 6M and 8M tokens
(records/2026-11-29_recipe-search), most with one thing changed:
- Muon for the block matrices; AdamW for the rest, with a rate of its own for the table and for its projection;
- a projection that starts at 1/sqrt(rank), so that what it projects keeps its size, and an input scale by which token
  embeddings enter the stream at a root mean square of 3;
- 32,768 tokens a step: 16,384, at 1.7e-3, ended 0.07 higher after 100 s and 14 % fewer tokens (one run,
  records/2026-11-30_ablate-best);
- rows of 256, 512, 1024 and 2048 tokens, as many tokens of each;
- a constant rate, then a linear decay to zero over the last 60 %.
All of it was chosen when batches were stretches of text (records/2026-11-29_data-order) and for half a minute; the steps alone
were asked again. `beta2=0.99` is worth 0.04 to a copy of this model with 1.2M parameters, and half the tokens a step lose
nothing with it there (records/2026-11-30_second-moment); neither has run on a card.

Variants: `gpu`, `source`, `budget_tokens` as in ultra; `step_tokens`; `lengths`, of the stages ('512-2048'); `lr`, of the
blocks, and `table_lr`, `projection_lr` times it; `input_scale`, `projection_std`; `momentum`, of Muon; `beta2`, of AdamW.
"""

from ml_collections import ConfigDict

from experiments import ultra
from yxanul.config.variants import parse_variant


def stages(text: str, step_tokens: int) -> tuple[ConfigDict, ...]:
  """Stages of these lengths ('512-2048'), with equal shares of the tokens, all of `step_tokens` a step."""
  if not all(length.isdecimal() and int(length) for length in text.split('-')):
    raise ValueError(f"variant 'lengths' of the experiment: got {text!r}, wants lengths of rows, such as 512-2048")
  lengths = [int(length) for length in text.split('-')]
  return tuple(ultra.stage(length, step_tokens // length, 1.0, 1.0, i / len(lengths)) for i, length in enumerate(lengths))


def get_config(arg: str | None = None) -> ConfigDict:
  variant = parse_variant(
    arg,
    gpu='h200',
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
    beta2=0.95,
  )
  config = ultra.get_config(','.join(f'{key}={variant[key]}' for key in ('gpu', 'source', 'budget_tokens')))
  config.name = 'best'
  config.model.input_scale = variant['input_scale']
  config.model.projection_std = variant['projection_std']
  config.curriculum.stages = stages(variant['lengths'], variant['step_tokens'])

  optimizer = config.optimizer
  optimizer.peak_lr = variant['lr']
  optimizer.batch_lr_scaling = 'none'
  optimizer.beta2 = variant['beta2']
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
