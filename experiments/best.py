"""The recipe that came out best on one H200 in short runs: ultra's model that grows in depth as in length, Muon, another start.

Command:  python -m yxanul.main --config=experiments/best.py:source=PATH,budget_tokens=24.9e6
Hardware: one Hopper GPU (H100, H200); gpu=rtx4090 lets it fill 24 GB
Result:   bits per byte after 31, 102 and 214 s of training (24.9M, 82.4M and 173.1M tokens; one seed each): 1.330, 1.214,
          1.168. GPT-2 in FP32 comes to 1.657 in 450 s and to 1.391 in 1,201, `best` of 30 s in 5.2 and 19.2: 86.0 and 62.4
          times as soon. GPT-2 in BF16, at the best of three rates, comes to 1.357 in 125 s, `best` of 30 s in 23, 5.5 times as
          soon; at the better of two to 1.170 in 464 s, `best` of 210 s in 205, 2.3 times (records/2026-11-30_ablate)

Model, tokenizer, FP8 and kernels are ultra's. What differs was chosen after 22 runs of 6M and 8M tokens
(records/2026-11-29_recipe-search), most with one thing changed:
- Muon for the block matrices; AdamW for the rest, with a rate of its own for the table and for its projection;
- a projection that starts at 1/sqrt(rank), so that what it projects keeps its size, and an input scale by which token
  embeddings enter the stream at a root mean square of 3;
- 32,768 tokens a step;
- rows that grow;
- a constant rate, then a linear decay to zero over the last 60 %.
All of it was chosen when batches were stretches of text (records/2026-11-29_data-order) and for half a minute. What was asked
since, for 30 and 100 s or longer (records/2026-11-30_ablate):
- ten of the 28 blocks until the last stage, where the others join (yxanul/training/depth.py), and rows from 64 instead of
  256, as many tokens of each length: 0.102 lower after 30 s, 0.035 after 100. Seven blocks or 14 are nearly as good (seven
  perhaps better after 30 s), growing twice is worse, the later the better;
- a twentieth of the tokens for that last stage, whose steps take 2.8 times as long: another 0.027 lower after 30 s, of which
  a faster kernel for the table (yxanul/kernels/bag_sums.py) has some, and 0.009 after 100. The blocks that join then add
  nothing: ten alone (`layers=all --config.model.n_layers=10`) end 0.005 lower after 100 s. Whether more of them, earlier
  (`last_share=0.5`), pay in a run of hours was not asked;
- blocks at 1.4 times their rate, the rest as it is: 0.001 lower after 100 s, which is nothing;
and before that, with all blocks and rows of 256, 512, 1024 and 2048 (`lengths=256-512-1024-2048,last_share=0,layers=all`):
- entries of the table that learn with the two they were merged from (yxanul/optim/inherit.py), the table at half the rate that
  it had: 0.077 lower after 30 s, 0.021 after 100, 0.006 after 450, of which the last may be chance. After 30 s a share of 0.9
  is as good, half and twice that rate are 0.012 and 0.017 worse;
- a second moment of AdamW that remembers 100 steps instead of 20: 0.040 lower; a guess at why in
  records/2026-11-30_second-moment;
- 16,384 tokens a step at 1.7e-3, before there was inheritance: 0.073 higher with the shorter memory, 0.012 with one of 1,000
  steps; blocks and norms at half the rate: 0.014 higher;
- GPT-2's tokens instead of SuperBPE's (`best_no_superbpe`), neither with inheritance: 0.055 lower after 30 s, 0.014 after 100.
  With it SuperBPE ends 0.022 and 0.007 lower than GPT-2's tokens without.
One seed each.

Variants: `gpu`, `source`, `budget_tokens` as in ultra; `lengths`, of the stages ('512-2048'); `layers`, blocks of the last
stages, the first number of all before them too ('7-14-all'); `last_share`, of the tokens, of the last stage; `step_tokens`, of
all or of each ('16384-32768'); `lr`, of the blocks, and `table_lr`, `projection_lr` times it; `input_scale`, `projection_std`;
`momentum`, `weight_decay` and `polynomial` (quintic, polar_express), of Muon, whose rows `rows=true` brings to one size
(NorMuon); `beta2`, of AdamW; `decay_share`, of the schedule; `inheritance` and `table_decay`, of the table.
"""

from ml_collections import ConfigDict

from experiments import ultra
from yxanul.config.variants import parse_variant, whole_numbers


def stages(lengths_text: str, tokens_text: str, blocks: list[int], last_share: float) -> tuple[ConfigDict, ...]:
  """Stages of these lengths ('512-2048') with equal shares of the tokens, and steps of so many tokens, one number or one each.

  `blocks` run in the last stages, its first number in all stages before them too. The last of several has `last_share` of the
  tokens, where that is not 0. Where steps grow, the rate does not.
  """
  lengths = whole_numbers(lengths_text, 'lengths', 'lengths of rows, such as 512-2048')
  wants = f'tokens of a step, such as 32768, or one for each of {len(lengths)} stages, in whole rows'
  tokens = whole_numbers(tokens_text, 'step_tokens', wants)
  if len(tokens) == 1:
    tokens *= len(lengths)
  if len(tokens) != len(lengths) or any(n % length for n, length in zip(tokens, lengths, strict=True)):
    raise ValueError(f"variant 'step_tokens' of the experiment: got {tokens_text!r}, wants {wants}")
  if len(blocks) > len(lengths) + 1:
    wants = f'at most {len(lengths) + 1} for {len(lengths)} stages'
    raise ValueError(f"variant 'layers' of the experiment: got {len(blocks)} numbers of blocks, wants {wants}")
  if not 0 <= last_share < 1:
    wants = 'a share of the tokens, at least 0 and less than 1; 0: as much as the other stages'
    raise ValueError(f"variant 'last_share' of the experiment: got {last_share:g}, wants {wants}")
  # Where a stage starts is told in steps of the reference batches: of equal tokens, so that shares are of tokens.
  if last_share and len(lengths) > 1:
    starts = [i * ((1 - last_share) / (len(lengths) - 1)) for i in range(len(lengths))]
  else:
    starts = [i / len(lengths) for i in range(len(lengths))]
  table = [ultra.stage(length, tokens[0] // length, 1.0, 1.0, start) for length, start in zip(lengths, starts, strict=True)]
  blocks = (blocks[:1] * len(lengths) + blocks[1:])[-len(lengths) :]
  for stage, n, n_layers in zip(table, tokens, blocks, strict=True):
    stage.batch_size, stage.n_layers = n // stage.seq_len, n_layers
  return tuple(table)


def layers(text: str, n_layers: int) -> list[int]:
  """The numbers of '10-all'; 0 for all of the model's `n_layers`."""
  numbers = whole_numbers(text, 'layers', "numbers of blocks, or 'all', such as 10-all", all=n_layers)
  return [0 if n == n_layers else n for n in numbers]


def get_config(arg: str | None = None) -> ConfigDict:
  variant = parse_variant(
    arg,
    gpu='h200',
    source='',
    budget_tokens=60_000_000,
    step_tokens='32768',
    lengths='64-128-256-512-1024-2048',
    layers='10-all',
    last_share=0.05,
    lr=2.4e-3,
    table_lr=1.25,
    projection_lr=0.66,
    input_scale=150.0,
    projection_std=0.088,
    momentum=0.9,
    rows=False,
    polynomial='quintic',
    beta2=0.99,
    decay_share=0.6,
    inheritance=0.7,
    weight_decay=0.1,
    table_decay=0.0,
  )
  config = ultra.get_config(','.join(f'{key}={variant[key]}' for key in ('gpu', 'source', 'budget_tokens')))
  config.name = 'best'
  config.model.input_scale = variant['input_scale']
  config.model.projection_std = variant['projection_std']
  config.curriculum.stages = stages(
    variant['lengths'], variant['step_tokens'], layers(variant['layers'], config.model.n_layers), variant['last_share']
  )

  optimizer = config.optimizer
  optimizer.peak_lr = variant['lr']
  optimizer.batch_lr_scaling = 'none'
  optimizer.beta2 = variant['beta2']
  optimizer.inheritance = variant['inheritance']
  optimizer.schedule, optimizer.warmup_share, optimizer.final_lr_share = 'trapezoid', 0.02, 0.0
  optimizer.decay_share = variant['decay_share']
  blocks, rest = optimizer.groups
  blocks.optimizer, blocks.weight_decay = 'muon', variant['weight_decay']
  optimizer.muon.momentum, optimizer.muon.row_normalization = variant['momentum'], variant['rows']
  optimizer.muon.polynomial = variant['polynomial']
  head = []
  for name in ('table', 'projection'):
    group = rest.copy_and_resolve_references()
    group.pattern, group.lr_multiplier = rf'embedding\.{name}', variant[f'{name}_lr']
    head.append(group)
  head[0].weight_decay = variant['table_decay']
  optimizer.groups = (blocks, *head, rest)
  return config
