"""A run's moving parts put together for one process: state, text, steps, and the choices made at warm-up."""

import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from yxanul.config.spec import ExperimentSpec
from yxanul.data.batches import Loader
from yxanul.data.prepare import Prepared
from yxanul.data.stream import ORDER, Stream
from yxanul.data.tokenizer import Tokenizer
from yxanul.kernels import attention, attention_choice, fp8
from yxanul.kernels.capabilities import Capabilities, Engines, choose_engines
from yxanul.optim.build import build
from yxanul.planning import memory
from yxanul.training.curriculum import Curriculum, Stage, largest_batches, smaller_batch
from yxanul.training.distributed import ALONE, Processes, Reduction
from yxanul.training.graphs import StepCache
from yxanul.training.sharding import sharding_for
from yxanul.training.state import TrainState, init_state
from yxanul.training.step import Text, calibrate, is_fp8, make_train_step


def set_up_torch(spec: ExperimentSpec, capabilities: Capabilities) -> torch.device:
  """Caches, threads, determinism, TF32 and the memory limit; these are process-wide. Returns the device."""
  # Where compiled kernels outlive a reboot, and so a run that starts again need not compile them again.
  cache = Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser() / 'yxanul'
  os.environ.setdefault('TORCHINDUCTOR_CACHE_DIR', str(cache / 'inductor'))
  os.environ.setdefault('TRITON_CACHE_DIR', str(cache / 'triton'))
  if spec.training.threads:
    torch.set_num_threads(spec.training.threads)
  if spec.training.deterministic:
    os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
  if capabilities.device == 'cuda' or spec.training.execution == 'compile':
    torch.use_deterministic_algorithms(spec.training.deterministic)
  else:  # the same, but that Inductor is not told: its import takes seconds, and on a CPU nothing else is compiled
    torch.set_deterministic_debug_mode('error' if spec.training.deterministic else 'default')
  torch.backends.cuda.matmul.fp32_precision = 'tf32' if spec.precision.tf32 else 'ieee'
  if capabilities.device == 'cuda' and spec.training.gpu_memory_gb:
    torch.cuda.set_per_process_memory_fraction(min(1.0, spec.training.gpu_memory_gb * 1e9 / capabilities.memory_bytes))
  return torch.device(capabilities.device)


def usable_bytes(spec: ExperimentSpec, capabilities: Capabilities, processes: Processes = ALONE) -> int:
  """Memory that a process's plan may fill: a share of the device's, or of what the configuration allows."""
  own = capabilities.memory_bytes // (processes.here if capabilities.device == 'cpu' else 1)
  return int(memory.USABLE_SHARE * min(spec.training.gpu_memory_gb * 1e9 or math.inf, own))


def _planned(spec: ExperimentSpec, engines: Engines) -> ExperimentSpec:
  """What the memory is planned for: FP8 that runs in BF16, on a card without it, keeps BF16's activations."""
  if engines.linear != 'bf16' or spec.precision.matmul == 'bf16':
    return spec
  return dataclasses.replace(spec, precision=dataclasses.replace(spec.precision, matmul='bf16'))


def curriculum_for(spec: ExperimentSpec, capabilities: Capabilities, processes: Processes = ALONE) -> Curriculum:
  """The stage table on this device: under `curriculum.batch_size = 'max'` its batches are what should fit into the memory.

  Raises:
    ValueError: as `Curriculum`, or nothing fits, or the batches cannot be shared out among the processes.
  """
  processes.check(spec)
  if spec.curriculum.batch_size == 'table':
    return Curriculum(spec)
  planned = _planned(spec, choose_engines(capabilities, spec.precision, spec.model.head_width))
  batches = largest_batches(planned, usable_bytes(spec, capabilities, processes), processes.world)
  return Curriculum(spec, processes.from_first(batches))


def _elsewhere(what: str, before: str, now: str) -> str:
  return f'{what} ran through {before} before the checkpoint and run{"" if what == "linears" else "s"} through {now} here'


def _left_out(stage: Stage, engine: str, difference: float) -> str:
  rows = f'in rows of {stage.spec.seq_len}'
  return f'attention {rows}: {engine} is left out, as it is off by {difference:.2g} here; please report it'


def _parts(tokenizer: Tokenizer, vocab_size: int) -> Tensor:
  """What each row of the table is merged from, (V, 2) int64; the table may have rows that no entry has."""
  parts_V2 = torch.from_numpy(tokenizer.parts)
  return pad(parts_V2, (0, 0, 0, vocab_size - len(parts_V2)), value=-1)


class Trainer:
  """`state` and what moves it. Nothing here reads a clock or writes a file.

  Under `curriculum.batch_size = 'max'` a checkpoint's choices and the warm-up may change `curriculum`.

  Raises:
    ValueError: a stage does not fit into the memory; the tokenizer or the groups do not fit the model.
  """

  def __init__(
    self,
    spec: ExperimentSpec,
    curriculum: Curriculum,
    capabilities: Capabilities,
    engines: Engines,
    device: torch.device,
    prepared: Prepared,
    processes: Processes = ALONE,
  ):
    self.spec, self.curriculum, self.device = spec, curriculum, device
    self.engines, self.processes = engines, processes
    self.reduction = Reduction(processes.world, device) if processes.world > 1 else None
    self.text = Text(prepared.tokenizer.end_of_text_id, torch.from_numpy(prepared.tokenizer.token_bytes).to(device))
    parts_V2 = _parts(prepared.tokenizer, spec.model.vocab_size) if spec.optimizer.inheritance else None
    self.optimizer = build(spec.optimizer, spec.model, parts_V2, device, spec.grows)
    fp8_state = fp8.init(spec.model, spec.precision, device) if is_fp8(engines) else {}
    self._sharding = sharding_for(spec, processes)
    self.state = init_state(spec, self.optimizer, fp8_state, device, self._sharding.own, parts_V2)
    self._shards = prepared.train
    self._stream: Stream | None = None
    self._memory_bytes = usable_bytes(spec, capabilities, processes)
    self._pieces = self._planned_pieces()
    self._attention = [self._untried_attention(stage) for stage in curriculum.stages]
    self._capabilities = capabilities
    self._measures_attention = capabilities.has('triton') and spec.precision.attention_engine == 'auto'
    self._keeps_attention = False
    self._may_shrink = spec.curriculum.batch_size == 'max'
    self.step: StepCache | None = None

  def _planned_pieces(self) -> list[int]:
    world, stages = self.processes.world, self.curriculum.stages
    return [
      self.processes.largest(memory.pieces(_planned(self.spec, self.engines), s.spec, self._memory_bytes, world))
      for s in stages
    ]

  def choices(self) -> dict[str, Any]:
    """What was chosen for this device; it belongs in the checkpoint, or a resumed run would not be the same."""
    engines = {name: value for name, value in dataclasses.asdict(self.engines).items() if name != 'notes'}
    return {
      'engines': engines,
      'batches': self.curriculum.batches,
      'order': ORDER,
      'pieces': self._pieces,
      'attention': self._attention,
      'processes': self.processes.world,
    }

  def choose(self, choices: dict[str, Any]) -> list[str]:
    """Takes the choices of a checkpoint instead; returns a line where this machine cannot keep one."""
    self.curriculum = Curriculum(self.spec, choices['batches'])
    notes = [*self._choose_engines(choices['engines']), *self._choose_attention(choices['attention'])]
    if choices.get('order') != ORDER:
      notes.append(
        'the text is dealt out in another order than when this run began: of its epoch some comes twice, some not at all'
      )
    # Other processes have other shares of the rows: the parts that those go through in are this run's own again.
    self._pieces = choices['pieces'] if choices['processes'] == self.processes.world else self._planned_pieces()
    self._keeps_attention, self._may_shrink = True, False
    return notes

  def _choose_engines(self, before: dict[str, str]) -> Iterator[str]:
    wish = {'attention_engine': before['attention'], 'vocab_loss_engine': before['vocab_loss']}
    if before['linear'] in ('te', 'torch'):
      wish['fp8_engine'] = before['linear']
    wish = dataclasses.replace(self.spec.precision, **wish)
    possible = dataclasses.asdict(choose_engines(self._capabilities, wish, self.spec.model.head_width))
    ours, now = self.engines, dataclasses.replace(self.engines, **before)
    if not is_fp8(now):
      possible['linear'] = now.linear  # these run anywhere, if not everywhere fast
    for name, what in (('linear', 'linears'), ('attention', ''), ('vocab_loss', 'the vocabulary loss')):
      if possible[name] != before[name]:
        now = dataclasses.replace(now, **{name: getattr(ours, name)})
        if what:
          yield _elsewhere(what, before[name], getattr(ours, name))
    self.engines = now

  def _choose_attention(self, before: list[str]) -> Iterator[str]:
    """Of each stage; what this device does not take at all is this run's own again."""
    self._attention, changed = list(before), {}
    for stage, engine in zip(self.curriculum.stages, before, strict=True):
      if engine not in self._possible_attention(stage):
        now = self._attention[stage.index] = self._untried_attention(stage)
        if not stage.spec.masked:  # which ran through sdpa whatever an older checkpoint says
          changed.setdefault((engine, now), []).append(str(stage.number))
    for (engine, now), stages in changed.items():
      yield _elsewhere(f'attention of stage{"s" * (len(stages) > 1)} {", ".join(stages)}', engine, now)

  def _untried_attention(self, stage: Stage) -> str:
    return 'sdpa' if stage.spec.masked else attention.runs(self.engines.attention, stage.spec.seq_len)

  def _possible_attention(self, stage: Stage) -> list[str]:
    if self.device.type == 'cpu' or self.engines.linear == 'fp32' or stage.spec.masked:
      return ['sdpa']
    return attention_choice.candidates(self.spec.model, stage.spec.seq_len, self._capabilities, self.device)

  def warm(self, position: int, calibrate_first: bool, tell: Callable[[str], None]) -> None:
    """Makes the steps of the stages from `position` on: each runs once, and is made smaller where memory does not suffice.

    Calibrates the FP8 scales of a new run first.

    Raises:
      ValueError: a stage cannot be made small enough.
    """
    left = [stage for stage in self.curriculum.stages if stage.end_tokens > position]
    for stage in left:
      parts, world = self._pieces[stage.index], self.processes.world
      if parts > 1:
        tell(memory.split_line(_planned(self.spec, self.engines), stage.spec, parts, self._memory_bytes, world))
    if calibrate_first and is_fp8(self.engines):
      started = time.perf_counter()
      self._calibrate()
      tell(f'FP8 scales calibrated in {time.perf_counter() - started:.1f} s')
    if self._measures_attention and self.engines.linear != 'fp32':
      started = time.perf_counter()
      self._attention = self.processes.from_first(self._attention)  # machines may differ in what they can keep
      choose = self._checked_attention if self._keeps_attention else self._fastest_attention
      chosen: dict[tuple[int, str], str] = {}  # stages of one length need no trials of their own
      for stage in left if self._keeps_attention else self.curriculum.stages:
        if not stage.spec.masked:
          kind = stage.spec.seq_len, self._attention[stage.index]
          if kind not in chosen:
            chosen[kind] = self.processes.from_first(choose(stage, tell))
          self._attention[stage.index] = chosen[kind]
      if chosen:
        tell(f'attention tried in {time.perf_counter() - started:.1f} s')

    def make(stage: Stage, compiled: bool, reduction: Reduction | None):
      engines = dataclasses.replace(self.engines, attention=self._attention[stage.index])
      now = self.curriculum.stages[stage.index].spec
      pieces = self._pieces[stage.index]
      return make_train_step(self.spec, now, self.optimizer, engines, self.text, pieces, compiled, reduction, self._sharding)

    self.step = StepCache(make, self.spec.training.execution, self.device, self.processes, self.reduction)
    self.step.warm(left, self.state, self._first_tokens, tell, lambda stage: self._make_smaller(stage, tell))

  def _calibrate(self) -> None:
    first = self.curriculum.stages[0]
    rows = first.spec.batch_size // self.processes.world
    # Calibration runs without FP8 and unfused, which keeps some three times as much, and through all blocks: the parts that the
    # first stage goes through in are a quarter as large, and smaller by the blocks that join later.
    more = math.ceil(self.spec.model.n_layers / self.spec.model_of(first.spec).n_layers)
    parts = [n for n in range(min(4 * more * self._pieces[0], rows), rows + 1) if rows % n == 0]

    def run(reduction: Reduction | None) -> TrainState:
      arguments = (self.state, self._first_tokens(first), first.spec, self.spec, self.engines, self.text)
      return calibrate(*arguments, parts[0], reduction)

    def smaller() -> None:
      parts.pop(0)
      if not parts:
        raise ValueError(f'out of memory while calibrating FP8 over single rows of {first.spec.seq_len} tokens')

    self.state = self.processes.fitting(run, self.reduction, smaller)

  def _make_smaller(self, stage: Stage, tell: Callable[[str], None]) -> None:
    """After a stage ran out of memory: a smaller batch where the run may still choose it, or else twice the parts."""
    now, world = self.curriculum.stages[stage.index].spec, self.processes.world
    what = f'stage {stage.number} (length {now.seq_len}): out of memory'
    if self._may_shrink and (rows := smaller_batch(self.spec, now, world)):
      batches = self.curriculum.batches
      batches[stage.index] = rows
      self.curriculum = Curriculum(self.spec, batches)
      tell(f'{what} with {now.batch_size} rows; {rows} from now on')
      return
    rows, parts = now.batch_size // world, self._pieces[stage.index]
    multiple = 16 if self.spec.precision.matmul == 'fp8' else 1
    possible = [n for n in range(2 * parts, rows + 1) if rows % n == 0 and rows * now.seq_len // n % multiple == 0]
    if not possible:
      raise ValueError(
        f'{what} with {rows // parts} rows at a time, and they cannot be split further; wants a smaller model, or '
        f'--config.training.recompute=blocks'
      )
    self._pieces[stage.index] = possible[0]
    whole = f'--config.curriculum.stages[{stage.index}].batch_size={rows // possible[0] * world}'
    them = 'them' if parts == 1 else f'the {rows}'
    tell(f'{what} with {rows // parts} rows at once; splitting {them} into {possible[0]} parts; to avoid splitting: {whole}')

  def _fastest_attention(self, stage: Stage, tell: Callable[[str], None]) -> str:
    taken, off = self._tried_attention(stage, self._possible_attention(stage))
    times = ', '.join(f'{engine} {ms:.2f} ms' for engine, ms in taken.items())
    tell(f'attention over 131,072 tokens in rows of {stage.spec.seq_len}: {times or "nothing ran"}')
    for engine, difference in off.items():
      tell(_left_out(stage, engine, difference))
    # Where nothing could be tried it is what was chosen without trying, unless that is known to be wrong.
    untried = self._attention[stage.index]
    return next(iter(taken), 'sdpa' if untried in off else untried)

  def _checked_attention(self, stage: Stage, tell: Callable[[str], None]) -> str:
    """The checkpoint's choice, which was tried on the device of that time, where it is right on this one."""
    engine = self._attention[stage.index]
    if engine == 'sdpa':
      return engine
    taken, off = self._tried_attention(stage, ['sdpa', engine])
    if engine in taken:
      return engine
    does_not_run = f'attention in rows of {stage.spec.seq_len}: {engine} does not run here; sdpa instead'
    tell(_left_out(stage, engine, off[engine]) if engine in off else does_not_run)
    return 'sdpa'

  def _tried_attention(self, stage: Stage, engines: list[str]) -> attention_choice.Trials:
    own = attention_choice.attempt(self.spec.model, stage.spec.seq_len, engines, self.device)
    # A card may have a fault of its own, whose process has nobody who reads its lines: what is wrong anywhere is left out.
    return attention_choice.agreed([attention_choice.Trials(*trials) for trials in self.processes.from_each(own)])

  def _first_tokens(self, stage: Stage) -> torch.Tensor:
    """This process's rows of a stage's first batch."""
    now = self.curriculum.stages[stage.index]
    rows, length = now.spec.batch_size // self.processes.world, now.spec.seq_len
    tokens = self.stream().read(now.start_tokens + self.processes.rank * rows * length, rows, length)
    return torch.from_numpy(tokens).to(self.device)

  def stream(self) -> Stream:
    """The text in the order of the curriculum as it is now: a checkpoint's batches, or smaller ones, begin stages elsewhere."""
    if self._stream is None or self._stream.rows != tuple(self.curriculum.rows):
      self._stream = Stream(self._shards, self.spec.seed, self.curriculum.rows)
    return self._stream

  def batches(self, position: int) -> Iterator[torch.Tensor]:
    """This process's tokens of every step from `position` on; pinned on the host where the device is a GPU, read ahead."""
    plan = ((stage.spec.batch_size, stage.spec.seq_len) for stage in self._stages_from(position))
    with Loader(self.stream(), position, plan, self.device, self.processes.rank, self.processes.world) as loader:
      for tokens, _ in loader:
        yield tokens if self.step.captured else tokens.to(self.device, non_blocking=True)

  def _stages_from(self, position: int) -> Iterator[Stage]:
    """The stage of every step that is left."""
    while position < self.curriculum.total_tokens:
      stage = self.curriculum.lookup(position)
      yield stage
      position += stage.spec.tokens_per_step
