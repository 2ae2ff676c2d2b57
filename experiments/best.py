"""The recipe that came out best on one H200 in short runs: ultra's model that grows in depth as in length, Muon, another start.

Command:  python -m yxanul.main --config=experiments/best.py:source=PATH
Hardware: one Hopper GPU (H100, H200); gpu=rtx4090 lets it fill 24 GB
Result:   1.164 bits per byte after 150 s of training (1.1631 to 1.1641, three seeds), by tools.ablate, on the text of
          records/2026-12-01_ablate-best. GPT-2 in FP32 comes to 1.654 in 450 s and to 1.391 in 1,201, `best` in 5.1 and 26 s:
          88 (three seeds) and 47 times as soon. GPT-2 in BF16, its rate the better of two, comes to 1.170 in 464 s, `best` in
          135: 3.4 times as soon, three seeds; at the best of three to 1.357 in 125 s, `best` in 35: 3.6 times.
          A run of 30 s ends at 1.303 (two seeds)

Model, tokenizer, FP8 and kernels are ultra's. What differs, and what it was worth after some 100 s, in bits per byte, each over
what stands above it, the first two figures with all blocks and rows from 256 (one seed each; that record and
records/2026-11-30_ablate, records/2026-11-29_recipe-search for what has no figure):
- Muon for the block matrices; AdamW for the rest, with a rate of its own for the table and for its projection;
- 32,768 tokens a step;
- a projection that starts at 1/sqrt(rank), so that what it projects keeps its size;
- a second moment of AdamW that remembers 100 steps instead of 20: 0.040 (a guess at why: records/2026-11-30_second-moment);
- entries of the table that learn with the two they were merged from (yxanul/optim/inherit.py), half the table's rate: 0.021;
- ten of the 28 blocks until the last stage, where the others join (yxanul/training/depth.py), and rows from 64 instead of 256,
  as many tokens of each length: 0.035;
- a twentieth of the tokens for that last stage, whose steps take 2.8 times as long: 0.009. The blocks that join then add
  nothing: ten alone (`layers=all --config.model.n_layers=10`) ended 0.005 lower;
- rows of Muon's direction brought to one size (NorMuon), Polar Express, and a rate that falls over the last 40 % instead of
  60 %: together 0.008 (records/2026-12-01_small-rates has them apart, in a copy with 1.2M parameters);
- token embeddings that enter the stream at a root mean square of 1.2 instead of 3 (`input_scale`): 0.006. Since then 0.6, by a
  copy with 1.2M parameters, where it is worth another 0.007;
- rows of 2,048 through ten blocks, too, and a fiftieth of the tokens, instead of a twentieth, for the others: 0.003, which one
  seed does not tell from chance.
It was chosen at 100 s; for longer than 150 s it has not been run as it is. After 450 s, with half of the tokens through all
blocks and a table that decays
(`lengths=64-128-256-512-1024-2048,layers=10-all-all-all,last_share=0,table_decay=0.05,input_scale=150`), it was at 1.143; with
all blocks throughout, in rows from 256 and before the last three items, at 1.142. The text, 475 MB, is in its fourth and third
pass then.

Variants: `gpu`, `source`, `budget_tokens` as in ultra; `lengths`, of the stages ('512-2048'); `layers`, blocks of the last
stages, the first number of all before them too ('7-14-all'); `last_share`, of the tokens, of the last stage; `step_tokens`, of
all or of each ('16384-32768'); `lr`, of the blocks, and `table_lr`, `projection_lr` times it; `input_scale`, `projection_std`;
`momentum`, `weight_decay`, `polynomial` (quintic, polar_express) and `rows` (brought to one size or not), of Muon; `beta2`, of
AdamW; `decay_share`, of the schedule; `inheritance` and `table_decay`, of the table.
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
    budget_tokens=122_900_000,
    step_tokens='32768',
    lengths='64-128-256-512-1024-2048-2048',
    layers='10-all',
    last_share=0.02,
    lr=2.4e-3,
    table_lr=1.25,
    projection_lr=0.66,
    input_scale=30.0,
    projection_std=0.088,
    momentum=0.9,
    rows=True,
    polynomial='polar_express',
    beta2=0.99,
    decay_share=0.4,
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
