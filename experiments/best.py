"""The recipe that came out best on one H200 in short runs: ultra's model, Muon, another start for the head, rows that grow.

Command:  python -m yxanul.main --config=experiments/best.py:source=PATH,budget_tokens=11.2e6
Hardware: one Hopper GPU (H100, H200); gpu=rtx4090 lets it fill 24 GB
Result:   bits per byte after 30, 103 and 460 s of training (11.2M, 37.3M and 167.8M tokens, one seed): 1.539, 1.278, 1.148.
          GPT-2 in FP32 comes to 1.657 in 450 s, `best` in 17: 26.3 times as soon. GPT-2 in BF16 comes to 1.357 in 125 s,
          `best` in 65; to 1.178 in 470 s, `best` in 337 (records/2026-11-30_ablate)

Model, tokenizer, FP8 and kernels are ultra's. What differs was chosen after 22 runs of 6M and 8M tokens
(records/2026-11-29_recipe-search), most with one thing changed:
- Muon for the block matrices; AdamW for the rest, with a rate of its own for the table and for its projection;
- a projection that starts at 1/sqrt(rank), so that what it projects keeps its size, and an input scale by which token
  embeddings enter the stream at a root mean square of 3;
- 32,768 tokens a step;
- rows of 256, 512, 1024 and 2048 tokens, as many tokens of each;
- a constant rate, then a linear decay to zero over the last 60 %.
All of it was chosen when batches were stretches of text (records/2026-11-29_data-order) and for half a minute. Asked again
since, for 100 s (records/2026-11-30_ablate):
- a second moment of AdamW that remembers 100 steps: 0.040 lower than with 20, as most of 200,005 entries are in few of them;
- 16,384 tokens a step: 0.012 higher, 0.073 with the shorter memory; half the rate of the blocks: 0.014 higher;
- GPT-2's tokens instead of SuperBPE's (`best_no_superbpe`): 0.014 lower, 0.055 after 30 s. It keeps SuperBPE because the
  model that it trains is ultra's; for so short a run without that wish, take the other.

Variants: `gpu`, `source`, `budget_tokens` as in ultra; `lengths`, of the stages ('512-2048'); `step_tokens`, of all or of
each ('16384-32768'); `lr`, of the blocks, and `table_lr`, `projection_lr` times it; `input_scale`, `projection_std`;
`momentum` and `weight_decay`, of Muon; `beta2`, of AdamW.
"""

from ml_collections import ConfigDict

from experiments import ultra
from yxanul.config.variants import parse_variant


def numbers(text: str, key: str, wants: str) -> list[int]:
  """The positive whole numbers of '512-2048'."""
  if not all(number.isdecimal() and int(number) for number in text.split('-')):
    raise ValueError(f'variant {key!r} of the experiment: got {text!r}, wants {wants}')
  return [int(number) for number in text.split('-')]


def stages(lengths: str, step_tokens: str) -> tuple[ConfigDict, ...]:
  """Stages of these lengths ('512-2048'), with equal shares of the tokens; `step_tokens` is one number for all, or one each."""
  rows = numbers(lengths, 'lengths', 'lengths of rows, such as 512-2048')
  wants = f'tokens of a step, such as 32768, or one for each of {len(rows)} stages'
  tokens = numbers(step_tokens, 'step_tokens', wants)
  if len(tokens) not in (1, len(rows)):
    raise ValueError(f"variant 'step_tokens' of the experiment: got {step_tokens!r}, wants {wants}")
  table = tuple(ultra.stage(row, tokens[0] // row, 1.0, 1.0, i / len(rows)) for i, row in enumerate(rows))
  for stage, n in zip(table, tokens * (len(rows) // len(tokens)), strict=True):
    stage.batch_size = n // stage.seq_len
  return table


def get_config(arg: str | None = None) -> ConfigDict:
  variant = parse_variant(
    arg,
    gpu='h200',
    source='',
    budget_tokens=60_000_000,
    step_tokens='32768',
    lengths='256-512-1024-2048',
    lr=2.4e-3,
    table_lr=2.5,
    projection_lr=0.66,
    input_scale=150.0,
    projection_std=0.088,
    momentum=0.9,
    beta2=0.99,
    weight_decay=0.1,
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
  blocks.optimizer, blocks.weight_decay, optimizer.muon.momentum = 'muon', variant['weight_decay'], variant['momentum']
  head = []
  for name in ('table', 'projection'):
    group = rest.copy_and_resolve_references()
    group.pattern, group.lr_multiplier = rf'embedding\.{name}', variant[f'{name}_lr']
    head.append(group)
  optimizer.groups = (blocks, *head, rest)
  return config
