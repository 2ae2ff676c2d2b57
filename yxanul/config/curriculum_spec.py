"""The stages of the curriculum and the budget of tokens: rows, batches, rates and blocks of each. Imports no torch."""

import dataclasses

from yxanul.config.checks import one_of, require


@dataclasses.dataclass(frozen=True)
class StageSpec:
  """One stage of the length curriculum."""

  seq_len: int = 2048
  batch_size: int = 64  # rows of the global batch
  reference_batch_size: int = 64  # rows on a 24 GB card: the batch that lr_scale and step_share_start were written for
  lr_scale: float = 1.0
  grad_clip: float = 1.0
  step_share_start: float = 0.0  # share of the step budget, at the reference batch, at which the stage starts
  mask_documents: bool = False  # attention stays inside a document
  window: int = 0  # tokens that attention reaches back over, the query's own included; 0: the whole row
  n_layers: int = 0  # blocks that run, the model's first; the others join in a later stage; 0: all

  @property
  def context(self) -> int:
    """The most tokens that a query sees: what held-out text is scored with while the stage lasts."""
    return min(self.window, self.seq_len) or self.seq_len

  @property
  def masked(self) -> bool:
    """Whether attention is given a mask besides the causal one."""
    return self.mask_documents or self.window > 0

  @property
  def tokens_per_step(self) -> int:
    return self.seq_len * self.batch_size

  @property
  def reference_tokens_per_step(self) -> int:
    return self.seq_len * self.reference_batch_size


@dataclasses.dataclass(frozen=True)
class CurriculumSpec:
  """The stages and the budget. Progress is target tokens consumed over `budget_tokens`."""

  budget_tokens: int = 2_610_000_000
  batch_size: str = 'table'  # table: each stage's own; max: for each stage the largest that fits, in one part, into the memory
  stages: tuple[StageSpec, ...] = (StageSpec(),)

  def __post_init__(self):
    field = 'curriculum.stages'
    require(self.budget_tokens >= 1, 'curriculum.budget_tokens', self.budget_tokens, 'a positive number of tokens')
    one_of(self.batch_size, ('table', 'max'), 'curriculum.batch_size')
    require(len(self.stages) >= 1, field, self.stages, 'at least one stage')
    for i, stage in enumerate(self.stages):
      name = f'{field}[{i}]'
      for key in ('seq_len', 'batch_size', 'reference_batch_size'):
        require(getattr(stage, key) >= 1, f'{name}.{key}', getattr(stage, key), 'at least 1')
      require(stage.window >= 0, f'{name}.window', stage.window, 'a number of tokens, or 0 for the whole row')
      require(stage.n_layers >= 0, f'{name}.n_layers', stage.n_layers, 'a number of blocks, or 0 for all')
      for key in ('lr_scale', 'grad_clip'):
        require(getattr(stage, key) > 0, f'{name}.{key}', getattr(stage, key), 'a positive number')
    require(self.stages[0].step_share_start == 0, f'{field}[0].step_share_start', self.stages[0].step_share_start, 'exactly 0')
    for i, (a, b) in enumerate(zip(self.stages, self.stages[1:], strict=False), start=1):
      require(b.seq_len >= a.seq_len, f'{field}[{i}].seq_len', b.seq_len, f'at least the {a.seq_len} of the stage before')
      require(
        a.step_share_start < b.step_share_start < 1,
        f'{field}[{i}].step_share_start',
        b.step_share_start,
        f'between the {a.step_share_start} of the stage before and 1',
      )
