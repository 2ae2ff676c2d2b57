"""How fast an experiment trains, stage by stage, on this device.

A stage's steps run as a run's do: batches from the loader's thread, the stage's own step (one CUDA graph under `graph`), its
metrics read one step late. On a GPU the clock is CUDA events recorded between the steps, so that a step's time holds whatever
gap stands before the next one; without a GPU it is the host's perf_counter, and kernel figures are left out.

- tokens/s: tokens a step over the median step time. bytes/s: that, times the bytes of text in a target (the sum of the
  tokenizer's token_bytes over the timed batches, over their tokens).
- Model-FLOPs utilization: tokens/s x (6 x matmul_parameters + 6 x n_layers x d_query x seq_len) / peak, the peak being the
  dense one of the format that the block linears really run in (planning.flops).
- The whole schedule: stage i has the share s_i of the tokens, so tokens/s = 1 / sum(s_i / rate_i). Bytes/s, utilization and
  the share of time under kernels are weighted the same way, by time.
- Kernels: torch.profiler over steady steps, by part and as a share of the wall clock; see `benchmark_kernels`.
"""

import contextlib
import dataclasses
import gc
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from yxanul.config.model_spec import ModelSpec
from yxanul.config.spec import ExperimentSpec
from yxanul.data.batches import Loader
from yxanul.data.prepare import Prepared
from yxanul.data.stream import Stream
from yxanul.kernels.capabilities import Capabilities, Engines, choose_engines
from yxanul.optim.schedule import learning_rate
from yxanul.planning import flops
from yxanul.training import benchmark_kernels
from yxanul.training.curriculum import Curriculum, Stage, token_shares
from yxanul.training.distributed import ALONE, PeerLost, Processes
from yxanul.training.graphs import StepCache
from yxanul.training.metrics import MetricsQueue
from yxanul.training.state import TrainState
from yxanul.training.step import matmul_format
from yxanul.training.trainer import Trainer, curriculum_for, set_up_torch

Row = dict[str, Any]
Tell = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Effort:
  """How long to measure."""

  steps: int = 20  # timed, of every stage
  warmup_steps: int = 3  # before them
  profile_steps: int = 50  # under the profiler, after them; 0: none


@dataclasses.dataclass
class Subject:
  """What is measured: a step for each stage, over one state and one stream of text."""

  spec: ExperimentSpec
  curriculum: Curriculum
  engines: Engines
  device: torch.device
  peak_flops: float | None
  stream: Stream
  pieces: list[int]  # of each stage, as is the next
  attention: list[str]
  step: StepCache
  state: TrainState
  warm_seconds: float = 0.0
  peak_bytes: int | None = None  # the most that was allocated so far, warming included; None without a GPU
  reserved_bytes: int | None = None
  processes: Processes = ALONE

  @property
  def on_gpu(self) -> bool:
    return self.device.type == 'cuda'

  def batches(self, stage: Stage) -> Iterator[torch.Tensor]:
    shape = itertools.repeat((stage.spec.batch_size, stage.spec.seq_len))
    with Loader(self.stream, stage.start_tokens, shape, self.device, self.processes.rank, self.processes.world) as loader:
      for tokens, _ in loader:
        yield tokens if self.step.captured else tokens.to(self.device, non_blocking=True)

  def run(self, stage: Stage, batches: Iterator[torch.Tensor], n_steps: int) -> tuple[list[float], list[list[float]]]:
    """Takes steps as the loop does: ms of each, and its metrics."""
    # The rate of a run's first step: the weights stay sound however few stages are run, in whatever order.
    progress = min(1.0, stage.spec.tokens_per_step / self.spec.curriculum.budget_tokens)
    rate = learning_rate(progress, stage.lr_factor, self.spec.optimizer)
    queue, values, marks = MetricsQueue(self.device), [], []
    for tokens in itertools.islice(batches, n_steps):
      marks.append(self._mark())
      self.state, metrics = self.step(stage, self.state, tokens, rate, stage.spec.grad_clip)
      queue.put(metrics, None)
      while len(queue) > 1:
        values.append(queue.get()[0])
    marks.append(self._mark())
    values.append(queue.get()[0])
    self.synchronize()
    return [a.elapsed_time(b) if self.on_gpu else 1e3 * (b - a) for a, b in itertools.pairwise(marks)], values

  def _mark(self) -> Any:
    if not self.on_gpu:
      return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event

  def note_memory(self) -> int | None:
    """The most bytes allocated since this was last asked; keeps the most of all."""
    if not self.on_gpu:
      return None
    peak, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    self.peak_bytes, self.reserved_bytes = max(self.peak_bytes or 0, peak), max(self.reserved_bytes or 0, reserved)
    torch.cuda.reset_peak_memory_stats()
    return peak

  def synchronize(self) -> None:
    if self.on_gpu:
      torch.cuda.synchronize(self.device)


def measure(
  spec: ExperimentSpec,
  stages: Sequence[int],
  prepared: Prepared,
  capabilities: Capabilities,
  effort: Effort,
  tell: Tell,
  save: Callable[[Row], None] = lambda _: None,
  processes: Processes = ALONE,
) -> Row:
  """The figures of the stages (numbers from 1, ascending) of `spec`: 'stages', 'schedule' and how they were come by.

  Args:
    tell: takes a line about each stage.
    save: takes the result as far as it is, after each stage.
    processes: that take the steps together; rates are those of all, memory is that of one.

  Raises:
    ValueError: as `Trainer`.
  """
  shares = token_shares(spec.curriculum)
  subject = _subject(spec, stages, prepared, capabilities, tell, processes)
  rows = []
  result = {
    'experiment': spec.name,
    'precision': matmul_format(subject.engines, spec.precision),
    'engines': {name: value for name, value in dataclasses.asdict(subject.engines).items() if name != 'notes'},
    'notes': subject.engines.notes,
    'execution': spec.training.execution,
    'graphs': subject.step.captured,
    'processes': processes.world,
    'warm_seconds': subject.warm_seconds,
    'peak_flops': subject.peak_flops,
    'peak_bytes': None,
    'reserved_bytes': None,
    'schedule': None,
    'stages': rows,
  }

  def keep() -> None:
    result['schedule'] = schedule(rows, spec.model, subject.peak_flops, n_stages=len(shares))
    result.update(peak_bytes=subject.peak_bytes, reserved_bytes=subject.reserved_bytes)
    save(result)

  for number, stage in zip(stages, subject.curriculum.stages, strict=True):
    row = {'stage': number, 'token_share': shares[number - 1]}
    row |= attempt(f'stage {number}', lambda stage=stage: measure_stage(subject, stage, effort), tell)
    rows.append(row)
    if 'ms' in row:
      line = f'{row["ms"]:.2f} ms a step ({row["ms_p10"]:.2f} to {row["ms_p90"]:.2f}), {row["tokens_per_second"]:,.0f} tokens/s'
      tell(f'stage {number}, length {stage.spec.seq_len}: {line}')
    keep()
  # Only when every stage is timed: what a profiler leaves behind must not slow the timings.
  timed = [(row, stage) for row, stage in zip(rows, subject.curriculum.stages, strict=True) if 'ms' in row]
  if effort.profile_steps and timed:
    for row, stage in timed:
      row['profile'] = attempt('profiler', lambda stage=stage: profile_stage(subject, stage, effort.profile_steps), tell)
      keep()
    # Did it leave anything? What is measured next in this process (another format, peers) would be slower by this factor.
    again = dataclasses.replace(effort, steps=5, warmup_steps=1)
    after = attempt('after the profiler', lambda: measure_stage(subject, stage, again), tell)
    result['slower_after_profiler'] = after['ms'] / row['ms'] if 'ms' in after else None
    save(result)
  return result


def narrowed(spec: ExperimentSpec, stages: Sequence[int]) -> ExperimentSpec:
  """The experiment with these stages alone."""
  kept = [spec.curriculum.stages[number - 1] for number in stages]
  kept[0] = dataclasses.replace(kept[0], step_share_start=0.0)
  return dataclasses.replace(spec, curriculum=dataclasses.replace(spec.curriculum, stages=tuple(kept)))


def _subject(
  spec: ExperimentSpec,
  stages: Sequence[int],
  prepared: Prepared,
  capabilities: Capabilities,
  tell: Tell,
  processes: Processes,
) -> Subject:
  spec = narrowed(spec, stages)
  engines = choose_engines(capabilities, spec.precision, spec.model.head_width)
  for note in engines.notes:
    tell(note)
  device, curriculum = set_up_torch(spec, capabilities), curriculum_for(spec, capabilities, processes)
  release(device)
  trainer = Trainer(spec, curriculum, capabilities, engines, device, prepared, processes)
  begin = time.perf_counter()
  trainer.warm(0, calibrate_first=True, tell=tell)
  seconds, choices = time.perf_counter() - begin, trainer.choices()
  peak = flops.peak_flops(capabilities.name, matmul_format(engines, spec.precision))
  subject = Subject(
    spec=spec,
    curriculum=trainer.curriculum,
    engines=engines,
    device=device,
    peak_flops=peak and processes.world * peak,
    stream=trainer.stream(),
    pieces=choices['pieces'],
    attention=choices['attention'],
    step=trainer.step,
    state=trainer.state,
    warm_seconds=seconds,
    processes=processes,
  )
  subject.note_memory()
  subject.peak_bytes = (
    max((trainer.step.peak_bytes(stage) or 0 for stage in trainer.curriculum.stages), default=0) or subject.peak_bytes
  )
  return subject


def release(device: torch.device) -> None:
  """Gives back the memory of what was measured before, and counts the peak anew."""
  gc.collect()
  if device.type == 'cuda':
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def measure_stage(subject: Subject, stage: Stage, effort: Effort) -> Row:
  """Times one stage; times in ms a step."""
  subject.note_memory()
  with contextlib.closing(subject.batches(stage)) as batches:
    times, values = (part[effort.warmup_steps :] for part in subject.run(stage, batches, effort.warmup_steps + effort.steps))
  low, median, high = np.percentile(times, (10, 50, 90)).tolist()
  tokens, model = stage.spec.tokens_per_step, subject.spec.model_of(stage.spec)
  rate, bytes_per_token = 1e3 * tokens / median, sum(v[2] for v in values) / (tokens * len(values))
  peak_bytes = subject.note_memory()
  return {
    'seq_len': stage.spec.seq_len,
    'n_layers': model.n_layers,
    'batch_size': stage.spec.batch_size,
    'tokens_per_step': tokens,
    'pieces': subject.pieces[stage.index],
    'attention': subject.attention[stage.index],
    'n': len(times),
    'ms': median,
    'ms_p10': low,
    'ms_p90': high,
    'ms_mean': sum(times) / len(times),
    'tokens_per_second': rate,
    'bytes_per_token': bytes_per_token,
    'bytes_per_second': rate * bytes_per_token,
    'mfu': flops.mfu(model, stage.spec.seq_len, rate, subject.peak_flops),
    # A graph's replay allocates nothing: what its stage needs showed when the step ran before its capture.
    'peak_bytes': subject.step.peak_bytes(stage) if subject.step.captured else peak_bytes,
    'loss': sum(v[0] for v in values) / len(values),
    'losses': [v[0] for v in values],
    'skipped_steps': int(sum(v[4] for v in values)),
  }


def profile_stage(subject: Subject, stage: Stage, n_steps: int) -> Row:
  """The kernels of `n_steps` steady steps, by part; 'host_ms' is the same time by the host's clock."""
  activity = torch.profiler.ProfilerActivity.CUDA if subject.on_gpu else torch.profiler.ProfilerActivity.CPU
  profiler = torch.profiler.profile(activities=[activity])
  with contextlib.closing(subject.batches(stage)) as batches:
    profiler.prepare_trace()
    subject.run(stage, batches, 1)
    profiler.start_trace()
    try:
      begin = time.perf_counter()
      subject.run(stage, batches, n_steps)
      took = time.perf_counter() - begin
    finally:
      profiler.stop_trace()
  records = benchmark_kernels.recorded(profiler, subject.on_gpu)
  return benchmark_kernels.summarize(records, n_steps, subject.on_gpu) | {'host_ms': 1e3 * took / n_steps}


def schedule(rows: Sequence[Row], model: ModelSpec, peak: float | None, n_stages: int) -> Row | None:
  """The whole schedule from the stages that were timed, weighted by their shares of the tokens; None where none was."""
  timed = [row for row in rows if 'ms' in row]
  if not timed:
    return None
  share = sum(row['token_share'] for row in timed)

  def seconds(row: Row, ms: str = 'ms') -> float:  # of every token of the schedule, what this stage takes
    return row['token_share'] / share * row[ms] / 1e3 / row['tokens_per_step']

  def operations(row: Row) -> float:
    run = dataclasses.replace(model, n_layers=row['n_layers'])
    return row['token_share'] / share * flops.flops_per_token(run, row['seq_len'])

  whole = sum(map(seconds, timed))
  busy = [row.get('profile', {}).get('gpu_busy') for row in timed]
  return {
    'stages': [row['stage'] for row in timed],
    'complete': len(timed) == n_stages,
    'token_share': share,
    'tokens_per_second': 1 / whole,
    'tokens_per_second_p10': 1 / sum(seconds(row, 'ms_p90') for row in timed),
    'tokens_per_second_p90': 1 / sum(seconds(row, 'ms_p10') for row in timed),
    'bytes_per_second': sum(row['token_share'] / share * row['bytes_per_token'] for row in timed) / whole,
    'mfu': sum(map(operations, timed)) / whole / peak if peak else None,
    'gpu_busy': None if None in busy else sum(seconds(r) * b for r, b in zip(timed, busy, strict=True)) / whole,
  }


def ratios(ours: Row, theirs: Row) -> Row:
  """How many times as fast `ours` is, by stage and over the schedule; both as `measure` gives them, of the same stages."""
  pairs = [(a, b) for a, b in zip(ours['stages'], theirs['stages'], strict=True) if 'ms' in a and 'ms' in b]
  rates = [
    {
      'stage': a['stage'],
      'seq_len': a['seq_len'],
      'tokens_per_second': a['tokens_per_second'],
      'against_tokens_per_second': b['tokens_per_second'],
      'ratio': a['tokens_per_second'] / b['tokens_per_second'],
    }
    for a, b in pairs
  ]
  complete = len(pairs) == len(ours['stages'])
  whole = [result['schedule']['tokens_per_second'] for result in (ours, theirs)] if complete else None
  return {'stages': rates, 'schedule': whole and whole[0] / whole[1], 'complete': complete and ours['schedule']['complete']}


def figures(result: Row) -> dict[str, Row]:
  """What `measure` found, in the form of a record: value, unit and spread (of a rate: its 10th to 90th percentile)."""

  def figure(value: float, unit: str, spread: float | None = None) -> Row:
    return {'value': value, 'unit': unit} | ({} if spread is None else {'spread': spread})

  whole, found = result['schedule'], {}
  if whole is None:
    return found
  if whole['complete']:
    spread = whole['tokens_per_second_p90'] - whole['tokens_per_second_p10']
    found['tokens_per_second'] = figure(whole['tokens_per_second'], 'tokens/s', spread)
    found['bytes_per_second'] = figure(whole['bytes_per_second'], 'bytes/s')
    shares = {name: whole[name] for name in ('mfu', 'gpu_busy')}
    found |= {name: figure(value, 'share') for name, value in shares.items() if value is not None}
  for row in result['stages']:
    if 'ms' in row:
      spread = 1e3 * row['tokens_per_step'] * (1 / row['ms_p10'] - 1 / row['ms_p90'])
      found[f'tokens_per_second_{row["seq_len"]}'] = figure(row['tokens_per_second'], 'tokens/s', spread)
  if result['peak_bytes']:
    found |= {f'{kind}_gb': figure(result[f'{kind}_bytes'] / 1e9, 'GB') for kind in ('peak', 'reserved')}
  return found


def attempt(what: str, do: Callable[[], Row], tell: Tell) -> Row:
  """What `do` returns; where it fails, {'error': its line}, so that one part that fails does not lose the others."""
  try:
    return do()
  except PeerLost:  # whatever came next would wait for it again
    raise
  except Exception as error:
    line = f'{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else "no message"}'
  tell(f'{what}: failed, {line}')
  return {'error': line}
