"""Frozen, validated specifications: everything that decides a run.

An experiment file returns an `ml_collections.ConfigDict`; `convert.from_config` turns it into an `ExperimentSpec`, or
raises a `ValueError` whose one line names the field, what it got and what it wants. The dataclasses here, in `model_spec`
and in `curriculum_spec` are the single list of fields: `convert.default_config` writes the `ConfigDict` that every
experiment starts from, so a field exists in every experiment or in none. Nothing in `yxanul.config` imports torch: listing
experiments has to be instant.

Sizes carry their unit in the name (`_tokens`, `_steps`, `_bytes`, `_seconds`); `seq_len` counts tokens of a row and
`batch_size` counts rows of the *global* batch, whatever the number of processes.
"""

import dataclasses
import re
import shlex

from yxanul.config.checks import FieldError, one_of, require
from yxanul.config.curriculum_spec import CurriculumSpec, StageSpec
from yxanul.config.model_spec import ModelSpec, PrecisionSpec

# --- data ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class TokenizerSpec:
  """A tokenizer to load, or one to train (SuperBPE, arXiv 2503.13423; plain BPE with transition_size = vocab_size)."""

  path: str = ''  # tokenizer.json, a folder with it or with vocab.json + merges.txt, or a hub name; '': train one
  vocab_size: int = 200_000  # entries without the special tokens
  transition_size: int = 80_000  # entries learned inside words, before merges may span words
  special_tokens: tuple[str, ...] = ('<|reserved_0|>', '<|reserved_1|>', '<|reserved_2|>', '<|reserved_3|>', '<|endoftext|>')
  max_superword_words: int = 4
  sample_bytes: int = 2_000_000_000  # of text, at most, drawn evenly from all documents; takes 2 bytes of memory a byte

  def __post_init__(self):
    require(self.vocab_size >= 256, 'data.tokenizer.vocab_size', self.vocab_size, 'at least the 256 bytes')
    require(
      256 <= self.transition_size <= self.vocab_size,
      'data.tokenizer.transition_size',
      self.transition_size,
      f'between 256 and vocab_size={self.vocab_size}',
    )
    require(len(self.special_tokens) >= 1, 'data.tokenizer.special_tokens', self.special_tokens, 'the end-of-text token, last')
    require(
      len(set(self.special_tokens)) == len(self.special_tokens),
      'data.tokenizer.special_tokens',
      self.special_tokens,
      'distinct tokens',
    )
    require(self.max_superword_words >= 1, 'data.tokenizer.max_superword_words', self.max_superword_words, 'at least 1')
    require(self.sample_bytes >= 1, 'data.tokenizer.sample_bytes', self.sample_bytes, 'a positive number of bytes')

  @property
  def total_size(self) -> int:
    return self.vocab_size + len(self.special_tokens)


@dataclasses.dataclass(frozen=True)
class DataSpec:
  """Where text comes from and how it becomes shards of tokens."""

  source: str = ''  # a path or glob (parquet, JSONL, text; .gz .zst .xz), a hub name, or 'python-docs'
  validation_source: str = ''  # the same, held out as it is; '': split from `source` by a stable hash of the document
  validation_fraction: float = 0.005  # of the documents; python-docs holds out its own tenth, by topic
  directory: str = ''  # where tokenizer and shards are kept, shared by runs; '': WORKDIR/data
  text_column: str = 'text'
  source_column: str = 'source'  # names the origin of a document, when the column exists
  score_column: str = 'score'
  min_score: float = 0.0  # keep documents whose score is at least this, when the column exists
  language_column: str = 'language'
  language: str = ''  # keep this language only, when the column exists; '': all
  token_count_column: str = 'token_count'  # judges min_document_tokens when the column exists; our own tokens when not
  min_document_tokens: int = 0
  near_duplicates: bool = False  # also drop near duplicates (MinHash)
  on_error: str = 'stop'  # stop | skip: a broken line, row group or encoding
  shard_tokens: int = 100_000_000
  workers: int = 0  # 0: as many as cores
  tokenizer: TokenizerSpec = dataclasses.field(default_factory=TokenizerSpec)

  def __post_init__(self):
    require(
      0 < self.validation_fraction < 1,
      'data.validation_fraction',
      self.validation_fraction,
      'a number between 0 and 1, both excluded',
    )
    require(self.min_document_tokens >= 0, 'data.min_document_tokens', self.min_document_tokens, 'at least 0')
    require(self.shard_tokens >= 1, 'data.shard_tokens', self.shard_tokens, 'at least 1')
    require(self.workers >= 0, 'data.workers', self.workers, 'at least 0')
    one_of(self.on_error, ('stop', 'skip'), 'data.on_error')


# --- optimizer -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class GroupSpec:
  """Parameters whose name matches `pattern` (first match wins; every parameter must match one)."""

  pattern: str = '.*'
  optimizer: str = 'adamw'  # adamw | muon (block matrices only)
  weight_decay: float = 0.0
  lr_multiplier: float = 1.0

  def __post_init__(self):
    try:
      re.compile(self.pattern)
    except re.error as error:
      raise FieldError('optimizer.groups.pattern', self.pattern, f'a regular expression ({error})') from None
    one_of(self.optimizer, ('adamw', 'muon'), 'optimizer.groups.optimizer')
    require(self.weight_decay >= 0, 'optimizer.groups.weight_decay', self.weight_decay, 'at least 0')
    require(self.lr_multiplier >= 0, 'optimizer.groups.lr_multiplier', self.lr_multiplier, 'at least 0')


@dataclasses.dataclass(frozen=True)
class MuonSpec:
  """What the groups with optimizer 'muon' share; see yxanul/optim/muon.py for the sources."""

  momentum: float = 0.95
  nesterov: bool = True
  polynomial: str = 'quintic'  # of Newton-Schulz: quintic (one for all steps) | polar_express (one for each of five)
  newton_schulz_steps: int = 5
  update_scale: str = 'rms'  # rms: 0.2 sqrt(max(out, in)), so that an AdamW rate carries over | spectral: sqrt(max(1, out/in))
  row_normalization: bool = False  # NorMuon: rows of the direction are brought to one size
  row_beta: float = 0.95  # decay of the rows' second moment

  def __post_init__(self):
    for name in ('momentum', 'row_beta'):
      require(0 <= getattr(self, name) < 1, f'optimizer.muon.{name}', getattr(self, name), 'at least 0 and less than 1')
    one_of(self.polynomial, ('quintic', 'polar_express'), 'optimizer.muon.polynomial')
    one_of(self.update_scale, ('rms', 'spectral'), 'optimizer.muon.update_scale')
    steps, fixed = self.newton_schulz_steps, self.polynomial == 'polar_express'
    wants = '5, as polar_express has polynomials for' if fixed else 'at least 1'
    require(steps == 5 if fixed else steps >= 1, 'optimizer.muon.newton_schulz_steps', steps, wants)


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
  """AdamW (arXiv 1711.05101), and Muon where a group asks for it, under a warm-up and a decay over tokens."""

  peak_lr: float = 6e-4
  schedule: str = 'cosine'  # cosine | trapezoid (warm-up, constant, linear decay: arXiv 2405.18392) | constant
  warmup_share: float = 0.01  # of the token budget
  decay_share: float = 0.2  # of the token budget, at its end: how long a trapezoid decays
  final_lr_share: float = 0.1  # of the peak, at the end
  z_loss: float = 0.0  # times the mean squared log-partition, added to the loss (arXiv 2204.02311); 0: none
  batch_lr_scaling: str = 'sqrt'  # sqrt: times sqrt(batch_size / reference_batch_size); none
  beta1: float = 0.9
  beta2: float = 0.95
  eps: float = 1e-8
  inheritance: float = 0.0  # how much of the parts' rows of the token table an entry has, see optim/inherit.py; 0: nothing
  groups: tuple[GroupSpec, ...] = (
    GroupSpec(pattern=r'blocks\.(qkv|attention_out|gate_up|up|down)\.weight', weight_decay=0.1),
    GroupSpec(pattern=r'.*', weight_decay=0.0),
  )
  muon: MuonSpec = dataclasses.field(default_factory=MuonSpec)

  def __post_init__(self):
    require(self.peak_lr > 0, 'optimizer.peak_lr', self.peak_lr, 'a positive number')
    for name in ('warmup_share', 'decay_share', 'final_lr_share'):
      require(0 <= getattr(self, name) <= 1, f'optimizer.{name}', getattr(self, name), 'a share between 0 and 1')
    if self.schedule == 'trapezoid':
      left = 1 - self.warmup_share
      require(0 < self.decay_share <= left, 'optimizer.decay_share', self.decay_share, f'more than 0, and at most {left:g}')
    require(self.z_loss >= 0, 'optimizer.z_loss', self.z_loss, 'at least 0')
    for name in ('beta1', 'beta2'):
      require(0 <= getattr(self, name) < 1, f'optimizer.{name}', getattr(self, name), 'at least 0 and less than 1')
    require(self.eps > 0, 'optimizer.eps', self.eps, 'a positive number')
    require(0 <= self.inheritance < 1, 'optimizer.inheritance', self.inheritance, 'at least 0 and less than 1')
    one_of(self.schedule, ('cosine', 'trapezoid', 'constant'), 'optimizer.schedule')
    one_of(self.batch_lr_scaling, ('sqrt', 'none'), 'optimizer.batch_lr_scaling')
    require(len(self.groups) >= 1, 'optimizer.groups', self.groups, 'at least one group')


# --- the run ---------------------------------------------------------------------------------------------------------


def _is_words(command: str) -> bool:
  try:
    shlex.split(command)
  except ValueError:
    return False
  return True


@dataclasses.dataclass(frozen=True)
class TrainingSpec:
  """How the one loop runs."""

  execution: str = 'graph'  # graph (fused, captured; eager where there is no GPU) | compile | eager
  deterministic: bool = False
  threads: int = 0  # CPU threads for torch; 0: as torch chooses
  log_every_steps: int = 10
  checkpoint_every_seconds: float = 600.0
  checkpoints_kept: int = 2  # the newest; the disk needs room for one more
  checkpoint_keep_every_seconds: float = 0.0  # besides them, keep one in every such time for good; 0: none
  checkpoint_command: str = ''  # a program started with the path of each checkpoint behind it, to copy it elsewhere
  preemption_file: str = ''  # its appearance means the same as SIGTERM: the machine is about to be taken away
  stop_within_seconds: float = 10.0  # from a request to stop to the end, whether or not something could be saved
  recompute: str = 'none'  # none | blocks: keep only each block's input for the backward pass, and run the block again there
  shard_optimizer: bool = False  # divide the optimizer's state over the processes of a run (ZeRO stage 1)
  loggers: tuple[str, ...] = ()  # tensorboard, wandb: beside metrics.jsonl
  gpu_memory_gb: float = 0.0  # let the process use at most this much of the card; 0: all of it
  spike_deviations: float = 10.0  # skip a step whose loss is this many deviations above its running mean; 0: never
  rollback_after_skips: int = 10  # in a row: back to the last checkpoint's weights, and past the text that did it

  def __post_init__(self):
    one_of(self.execution, ('graph', 'compile', 'eager'), 'training.execution')
    for i, logger in enumerate(self.loggers):
      one_of(logger, ('tensorboard', 'wandb'), f'training.loggers[{i}]')
    one_of(self.recompute, ('none', 'blocks'), 'training.recompute')
    require(self.log_every_steps >= 1, 'training.log_every_steps', self.log_every_steps, 'at least 1')
    require(
      self.checkpoint_every_seconds >= 0,
      'training.checkpoint_every_seconds',
      self.checkpoint_every_seconds,
      'at least 0 seconds',
    )
    require(self.checkpoints_kept >= 2, 'training.checkpoints_kept', self.checkpoints_kept, 'at least 2')
    require(
      self.checkpoint_keep_every_seconds >= 0,
      'training.checkpoint_keep_every_seconds',
      self.checkpoint_keep_every_seconds,
      'at least 0 seconds',
    )
    require(self.stop_within_seconds >= 1, 'training.stop_within_seconds', self.stop_within_seconds, 'at least 1 second')
    require(_is_words(self.checkpoint_command), 'training.checkpoint_command', self.checkpoint_command, 'closed quotes')
    require(self.threads >= 0, 'training.threads', self.threads, 'at least 0')
    require(self.gpu_memory_gb >= 0, 'training.gpu_memory_gb', self.gpu_memory_gb, 'at least 0')
    require(
      self.spike_deviations == 0 or self.spike_deviations >= 1,
      'training.spike_deviations',
      self.spike_deviations,
      'at least 1 standard deviation, or 0 to take every finite loss',
    )
    require(self.rollback_after_skips >= 1, 'training.rollback_after_skips', self.rollback_after_skips, 'at least 1 step')


@dataclasses.dataclass(frozen=True)
class EvaluationSpec:
  """Held-out text, scored in bits per byte."""

  seq_len: int = 2048
  batch_size: int = 16
  every_share: float = 0.05  # of the token budget, besides the end of each stage
  first_share: float = 0.0  # before the first of those: here, at twice this share, four times, ...; 0: no
  max_tokens: int = 10_000_000  # of the held-out text, from its start
  max_bytes: int = 0  # of its text besides: the same documents whatever the tokenizer; 0: no such limit
  xz_mark: bool = False  # also tell what `xz -9e` needs for the held-out text (small corpora only: it holds both texts)

  def __post_init__(self):
    for name in ('seq_len', 'batch_size', 'max_tokens'):
      require(getattr(self, name) >= 1, f'evaluation.{name}', getattr(self, name), 'at least 1')
    require(self.max_bytes >= 0, 'evaluation.max_bytes', self.max_bytes, 'a positive number of bytes, or 0 for no limit')
    require(1e-4 <= self.every_share <= 1, 'evaluation.every_share', self.every_share, 'a share between 0.0001 and 1')
    require(0 <= self.first_share <= 1, 'evaluation.first_share', self.first_share, 'a share between 0 and 1')

  def shares(self) -> list[float]:
    """Of the token budget: where held-out text is scored besides the ends of stages, ascending."""
    early = [self.first_share * 2**i for i in range(64)] if self.first_share else []
    regular = [i * self.every_share for i in range(1, int(1 / self.every_share) + 1)]
    return [share for share in early if share < self.every_share] + regular


@dataclasses.dataclass(frozen=True)
class SampleSpec:
  """Text written at the end of a run."""

  prompts: tuple[str, ...] = ('The history of', 'In mathematics, ', 'Once upon a time')
  tokens: int = 128
  temperature: float = 0.8
  top_k: int = 50

  def __post_init__(self):
    require(self.tokens >= 1, 'sample.tokens', self.tokens, 'at least 1')
    require(self.temperature >= 0, 'sample.temperature', self.temperature, 'at least 0 (0: the likeliest token)')
    require(self.top_k >= 0, 'sample.top_k', self.top_k, 'at least 0 (0: all tokens)')


@dataclasses.dataclass(frozen=True)
class ExperimentSpec:
  """One experiment, whole."""

  name: str = ''
  note: str = ''  # printed at the start of a run and into its report, such as "this is a toy"
  seed: int = 0
  model: ModelSpec = dataclasses.field(default_factory=ModelSpec)
  precision: PrecisionSpec = dataclasses.field(default_factory=PrecisionSpec)
  data: DataSpec = dataclasses.field(default_factory=DataSpec)
  curriculum: CurriculumSpec = dataclasses.field(default_factory=CurriculumSpec)
  optimizer: OptimizerSpec = dataclasses.field(default_factory=OptimizerSpec)
  training: TrainingSpec = dataclasses.field(default_factory=TrainingSpec)
  evaluation: EvaluationSpec = dataclasses.field(default_factory=EvaluationSpec)
  sample: SampleSpec = dataclasses.field(default_factory=SampleSpec)

  def __post_init__(self):
    model, tokenizer = self.model, self.data.tokenizer
    require(self.name != '', 'name', self.name, 'the name of the experiment')
    require(0 <= self.seed < 2**31, 'seed', self.seed, 'between 0 and 2**31 - 1')
    require(
      model.vocab_size == tokenizer.total_size,
      'model.vocab_size',
      model.vocab_size,
      f'{tokenizer.total_size}, the tokenizer with its {len(tokenizer.special_tokens)} special tokens',
    )
    longest = max(self.curriculum.stages[-1].seq_len, self.evaluation.seq_len)
    require(
      longest <= model.max_positions, 'model.max_positions', model.max_positions, f'at least the longest row, {longest} tokens'
    )
    self._validate_depth()
    if self.precision.matmul == 'fp8':
      self._validate_fp8()
    if self.optimizer.inheritance:
      wants = f'0 where rows of the token table have no halves ({model.head_width})'
      require(model.head_width % 2 == 0, 'optimizer.inheritance', self.optimizer.inheritance, wants)

  @property
  def undivided(self) -> frozenset[str]:
    """Parameters that every process updates whole, also under `training.shard_optimizer`: what moves one row moves others."""
    return frozenset(['embedding.table'] if self.optimizer.inheritance else [])

  def model_of(self, stage: StageSpec) -> ModelSpec:
    """The model with the blocks that run in this stage."""
    return dataclasses.replace(self.model, n_layers=stage.n_layers) if stage.n_layers else self.model

  @property
  def grows(self) -> bool:
    """Whether some blocks join in a later stage."""
    return any(self.model_of(stage) != self.model for stage in self.curriculum.stages)

  def ends_whole(self) -> None:
    """That all blocks run in the last stage: asked of an experiment, not of a few of its stages.

    Raises:
      ValueError: they do not.
    """
    last = len(self.curriculum.stages) - 1
    n, wants = self.model_of(self.curriculum.stages[last]).n_layers, f'{self.model.n_layers}: all blocks run in the last stage'
    require(n == self.model.n_layers, f'curriculum.stages[{last}].n_layers', n, wants)

  def _validate_depth(self):
    least, before = 1, ''
    for i, stage in enumerate(self.curriculum.stages):
      n = self.model_of(stage).n_layers
      wants = f'at least {least}{before} and at most the {self.model.n_layers} of the model'
      require(least <= n <= self.model.n_layers, f'curriculum.stages[{i}].n_layers', n, wants)
      least, before = n, ', as many as the stage before,'
    if self.grows:
      wants = 'False where blocks join in later stages (curriculum.stages[].n_layers)'
      require(not self.training.shard_optimizer, 'training.shard_optimizer', True, wants)

  def _validate_fp8(self):
    for i, stage in enumerate(self.curriculum.stages):
      require(
        stage.tokens_per_step % 16 == 0,
        f'curriculum.stages[{i}].batch_size',
        stage.batch_size,
        f'a batch whose tokens a step ({stage.tokens_per_step}) divide by 16, as FP8 needs',
      )
    dimensions = {'d_model': self.model.d_model, 'd_hidden': self.model.d_hidden, 'head_dim': self.model.d_query}
    dimensions['n_kv_heads'] = self.model.d_qkv
    for name, width in dimensions.items():
      require(
        width % 16 == 0,
        f'model.{name}',
        getattr(self.model, name),
        f'a linear width divisible by 16 for FP8 (it gives {width}), or precision.matmul=bf16',
      )
