"""The length curriculum as one table over tokens, and the lookup of a stage by tokens consumed.

One rule for every experiment: the mission states when a stage starts as a share of the *step* budget, at the batch of a
24 GB card. Those shares become token shares once, here, from the reference batch: stage i spans
`(share[i+1] - share[i]) * reference_tokens_per_step[i]` parts of the budget. So the text that a stage sees depends neither
on the batch that a larger card runs nor on the number of processes; only the number of steps does.
"""

import bisect
import dataclasses
import math
from collections.abc import Sequence

from yxanul.config.curriculum_spec import CurriculumSpec, StageSpec
from yxanul.config.spec import ExperimentSpec, OptimizerSpec
from yxanul.planning import memory

_LEAST_STEPS = 8  # of a stage, however large its batch could be


@dataclasses.dataclass(frozen=True)
class Stage:
  """One row of the table. Steps and tokens are whole-run figures."""

  index: int  # from 0
  spec: StageSpec
  start_tokens: int  # consumed when the stage's first step begins
  end_tokens: int  # consumed when its last step is done
  start_step: int
  n_steps: int
  lr_factor: float  # lr_scale times the batch scaling: what multiplies the schedule

  @property
  def number(self) -> int:
    """As people count: from 1."""
    return self.index + 1


def token_shares(spec: CurriculumSpec) -> list[float]:
  """The share of the token budget of every stage; they sum to 1."""
  starts = [stage.step_share_start for stage in spec.stages] + [1.0]
  parts = [(b - a) * s.reference_tokens_per_step for a, b, s in zip(starts, starts[1:], spec.stages, strict=False)]
  total = math.fsum(parts)  # sum() rounds in another way from Python 3.12 on, and a run may go on under another version
  return [part / total for part in parts]


def lr_factor(stage: StageSpec, spec: OptimizerSpec) -> float:
  """`lr_scale`, times sqrt(batch / reference batch) unless the configuration turns that off."""
  scaling = math.sqrt(stage.batch_size / stage.reference_batch_size) if spec.batch_lr_scaling == 'sqrt' else 1.0
  return stage.lr_scale * scaling


def largest_batches(spec: ExperimentSpec, memory_bytes: int, devices: int = 1) -> list[int]:
  """The rows of every stage under `curriculum.batch_size = 'max'`: as many as fit whole into each device, by the estimate.

  At most a 16th is given up to make the number divisible, and a stage keeps at least 8 steps. They are those of a whole
  optimizer's state: `training.shard_optimizer` does not decide what a run computes.

  Raises:
    ValueError: not even the smallest batch of a stage fits.
  """
  spec = dataclasses.replace(spec, training=dataclasses.replace(spec.training, shard_optimizer=False))
  batches = []
  for stage, share in zip(spec.curriculum.stages, token_shares(spec.curriculum), strict=True):
    smallest = _rows_multiple(spec, stage)
    most = int(share * spec.curriculum.budget_tokens / _LEAST_STEPS / stage.seq_len / devices)
    rows = min(memory.largest_batch(spec, stage, memory_bytes, devices), max(most, smallest))
    if rows < smallest:
      least = dataclasses.replace(stage, batch_size=devices * smallest)
      raise ValueError(memory.too_little(spec, least, memory.step_bytes(spec, least, 1, devices), memory_bytes))
    batches.append(devices * (rows - rows % _unit(rows, smallest)))
  return batches


def smaller_batch(spec: ExperimentSpec, stage: StageSpec, devices: int = 1) -> int:
  """The next batch below the stage's, some 16th smaller; 0 where there is none."""
  rows = stage.batch_size // devices
  return devices * (rows - _unit(rows, _rows_multiple(spec, stage)))


def _rows_multiple(spec: ExperimentSpec, stage: StageSpec) -> int:
  return 16 // math.gcd(16, stage.seq_len) if spec.precision.matmul == 'fp8' else 1


def _unit(rows: int, multiple: int) -> int:
  return max(multiple, 2 ** (rows.bit_length() - 5) if rows >= 32 else 1)


class Curriculum:
  """The stage table of one run. A stage runs whole steps until its share of the tokens is consumed or passed.

  Args:
    batches: rows of every stage, in place of the configuration's.

  Raises:
    ValueError: the budget is too small for a stage to have a step.
  """

  def __init__(self, spec: ExperimentSpec, batches: Sequence[int] | None = None):
    specs = spec.curriculum.stages
    if batches is not None:
      specs = [dataclasses.replace(stage, batch_size=rows) for stage, rows in zip(specs, batches, strict=True)]
    stages, consumed, step, planned = [], 0, 0, 0.0
    for index, (stage, share) in enumerate(zip(specs, token_shares(spec.curriculum), strict=True)):
      planned += share * spec.curriculum.budget_tokens
      # The millionth keeps a boundary that floating point put a hair past a whole step from costing one more.
      n_steps = math.ceil((planned - consumed) / stage.tokens_per_step - 1e-6)
      if n_steps < 1:
        raise ValueError(
          f'config.curriculum.budget_tokens: got {spec.curriculum.budget_tokens}, wants enough for a step in every stage: '
          f'stage {index + 1} (length {stage.seq_len}, {stage.tokens_per_step} tokens a step) has none'
        )
      end = consumed + n_steps * stage.tokens_per_step
      stages.append(Stage(index, stage, consumed, end, step, n_steps, lr_factor(stage, spec.optimizer)))
      consumed, step = end, step + n_steps
    self.stages = tuple(stages)
    self._ends = [stage.end_tokens for stage in stages]

  @property
  def batches(self) -> list[int]:
    """Rows of every stage."""
    return [stage.spec.batch_size for stage in self.stages]

  @property
  def rows(self) -> list[tuple[int, int]]:
    """The target token at which every stage starts, and the tokens of its rows, as `data.stream.Stream` takes them."""
    return [(stage.start_tokens, stage.spec.seq_len) for stage in self.stages]

  @property
  def total_tokens(self) -> int:
    return self._ends[-1]

  @property
  def total_steps(self) -> int:
    return self.stages[-1].start_step + self.stages[-1].n_steps

  def lookup(self, tokens: int) -> Stage:
    """The stage of the step that begins when `tokens` target tokens are consumed (O(log stages)).

    Raises:
      ValueError: the run is over by then, or `tokens` is negative.
    """
    if not 0 <= tokens < self.total_tokens:
      raise ValueError(f'tokens: got {tokens}, wants at least 0 and less than the {self.total_tokens} of the run')
    return self.stages[bisect.bisect_right(self._ends, tokens)]
