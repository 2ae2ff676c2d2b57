"""ultra under another length curriculum: constant, later, by the token timeline, by window; with and without rate scales.

Command:  python -m yxanul.tools.ablate --config=experiments/ultra.py:gpu=h200,batch=0.125,source=PATH --seconds=120
          --only=ultra,ultra_curriculum:shape=timeline --workdir=runs/ablate
Hardware: one Hopper GPU (H100, H200); gpu=rtx4090 sets the 24 GB table
Result:   gpu=h200,batch=0.125, two minutes, one seed each, bits per byte, as it is and at the full rate: `timeline` 1.793 and
          1.814, `late` 1.843 and 1.851, `ten` 1.874 and 1.852, `from32` 1.882 and 1.875, `window` 2.063 and 2.048;
          `constant`, as ultra_no_curriculum, 1.922 (records/2026-11-30_ablate). At equal text, in a copy with
          1.2M parameters: records/2026-12-01_small-curricula

Variants: `shape`:
- `ten`: the mission's ten stages, as in ultra;
- `constant`: rows of 2048 from the first step to the last;
- `from32`: ultra's without lengths 8 and 16, whose steps go to 32;
- `late`: four stages, the shortest 256; what it is where no shape is asked for;
- `timeline`: ultra's ten, with the tokens of the mission's phases, evenly within a phase;
- `window`: rows of 2048 throughout, in which attention reaches back over ultra's lengths, for ultra's shares of the tokens;
`lr_scale=false` runs every stage at the full rate; `gpu`, `source`, `budget_tokens`, `batch` as in ultra.
"""

import math

from ml_collections import ConfigDict

from experiments import ultra
from yxanul.config.variants import choose, parse_variant

# Lengths of a phase, and its tokens in millions.
PHASES = (((8, 16), 200), ((32, 64), 400), ((128, 256), 800), ((512, 768, 1536, 2048), 1200))


def _start_by_tokens(stages: tuple[ConfigDict, ...], tokens: list[float]) -> tuple[ConfigDict, ...]:
  """Sets the shares of the step budget at which the stages have these tokens."""
  steps = [n / (stage.seq_len * stage.reference_batch_size) for n, stage in zip(tokens, stages, strict=True)]
  for i, stage in enumerate(stages):  # sum() rounds in another way from Python 3.12 on, and a configuration is compared exactly
    stage.step_share_start = math.fsum(steps[:i]) / math.fsum(steps)
  return stages


def _tokens(stages: tuple[ConfigDict, ...]) -> list[float]:
  """What each stage has of the tokens, up to a factor."""
  ends = [*(stage.step_share_start for stage in stages[1:]), 1.0]
  return [(end - s.step_share_start) * s.seq_len * s.reference_batch_size for end, s in zip(ends, stages, strict=True)]


def constant(ten: tuple[ConfigDict, ...]) -> tuple[ConfigDict, ...]:
  last = ten[-1]
  last.step_share_start = 0.0
  return (last,)


def from32(ten: tuple[ConfigDict, ...]) -> tuple[ConfigDict, ...]:
  stages = tuple(stage for stage in ten if stage.seq_len >= 32)
  stages[0].step_share_start = 0.0
  return stages


def late(ten: tuple[ConfigDict, ...]) -> tuple[ConfigDict, ...]:
  multiple = ten[-1].batch_size / ten[-1].reference_batch_size
  stages = (
    #           length  batch lr   clip  starts at
    ultra.stage(256, 512, 0.85, 1.0, 0.0),
    ultra.stage(512, 256, 0.95, 1.0, 0.15),
    ultra.stage(1024, 128, 1.00, 1.0, 0.35),
    ultra.stage(2048, 64, 1.00, 1.0, 0.60),
  )
  for stage in stages:
    stage.batch_size = int(stage.batch_size * multiple)
  return stages


def timeline(ten: tuple[ConfigDict, ...]) -> tuple[ConfigDict, ...]:
  return _start_by_tokens(ten, [tokens / len(lengths) for lengths, tokens in PHASES for _ in lengths])


def window(ten: tuple[ConfigDict, ...]) -> tuple[ConfigDict, ...]:
  tokens, last = _tokens(ten), ten[-1]
  for stage in ten:
    if stage is not last:
      stage.window, stage.seq_len = stage.seq_len, last.seq_len
      stage.batch_size, stage.reference_batch_size = last.batch_size, last.reference_batch_size
  return _start_by_tokens(ten, tokens)


SHAPES = {
  'ten': lambda ten: ten,
  'constant': constant,
  'from32': from32,
  'late': late,
  'timeline': timeline,
  'window': window,
}


def get_config(arg: str | None = None) -> ConfigDict:
  variant = parse_variant(arg, gpu='rtx4090', source='', budget_tokens=2_610_000_000, batch=1.0, shape='late', lr_scale=True)
  shape, lr_scale = choose(variant.pop('shape'), SHAPES, 'shape'), variant.pop('lr_scale')
  config = ultra.get_config(','.join(f'{key}={value}' for key, value in variant.items()))
  config.name = 'ultra_curriculum'
  config.curriculum.stages = shape(config.curriculum.stages)
  if not lr_scale:
    for stage in config.curriculum.stages:
      stage.lr_scale = 1.0
  return config
