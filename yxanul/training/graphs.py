"""A step for each stage, made once: eager, compiled, or captured as one CUDA graph.

Execution is the experiment's choice:
- `eager` runs the step as it is written;
- `compile` fuses chains of elementwise operations by torch.compile;
- `graph` does both and captures the whole step (forward, backward, clipping, optimizer, FP8 update, metrics) as one CUDA graph
  a stage, so that no kernel waits for the host. Without a GPU it is `eager`.

A graph reads and writes fixed memory: the state's own tensors, and buffers for tokens and rates. All graphs share one
memory pool; that is sound because they never overlap and nothing but the metrics, which are copied out in stream order,
leaves a replay. Warming runs each step once outside a graph (kernels compile, are tuned and find their workspaces, and a
step that does not fit into the memory is made again, smaller), captures it, and puts the state back as it was.
"""

import functools
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from yxanul.training.curriculum import Stage
from yxanul.training.distributed import ALONE, Processes, Reduction, is_out_of_memory
from yxanul.training.state import TrainState, flatten
from yxanul.training.step import StepMetrics, TrainStep

Make = Callable[[Stage, bool, Reduction | None], TrainStep]  # (stage, compiled, reduction)


def _refuse(stage: Stage) -> None:
  raise ValueError(f'stage {stage.number} (length {stage.spec.seq_len}): out of memory')


class StepCache:
  """`cache(stage, state, tokens, lr, max_norm)` runs that stage's step, made on its first use or by `warm`."""

  def __init__(
    self,
    make: Make,
    execution: str,
    device: torch.device,
    processes: Processes = ALONE,
    reduction: Reduction | None = None,
  ):
    self._make, self._device = make, device
    self._processes, self._reduction = processes, reduction
    self._compiled = execution == 'compile' or (execution == 'graph' and device.type == 'cuda')
    self._captures = execution == 'graph' and device.type == 'cuda'
    self._steps: dict[int, TrainStep | _Captured] = {}
    if self._compiled:
      # Ten stages compile the same functions for ten shapes; torch stops at eight and would go on eagerly without a word.
      torch._dynamo.config.recompile_limit = 256
      torch._dynamo.config.fail_on_recompile_limit_hit = True

  def __len__(self) -> int:
    return len(self._steps)

  @property
  def captured(self) -> int:
    """How many stages run as one graph."""
    return sum(isinstance(step, _Captured) for step in self._steps.values())

  def peak_bytes(self, stage: Stage) -> int | None:
    """The most that was allocated while the stage's step ran outside its graph, all else included; None without a graph."""
    step = self._steps.get(stage.index)
    return step.peak_bytes if isinstance(step, _Captured) else None

  def warm(
    self,
    stages: Sequence[Stage],
    state: TrainState,
    tokens: Callable[[Stage], Tensor],
    tell: Callable[[str], None],
    smaller: Callable[[Stage], None] = _refuse,
  ) -> None:
    """Runs the step of every stage once, and captures it under `graph` on a GPU; the state is the same afterwards.

    Args:
      stages: those that the run will still see.
      state: the run's own: the graphs work on its tensors.
      tokens: text of the shape of a stage's batch, on the device.
      tell: takes a line about each stage.
      smaller: makes the next try of a stage need less memory, when it ran out; or raises.
    """
    before = {path: leaf.to('cpu', copy=True) for path, leaf in flatten(state).items()}
    started = time.perf_counter()
    for stage in stages:
      self._steps[stage.index] = self._first_run(stage, state, tokens, smaller)
    if self._captures:
      tell(f'{len(stages)} stages compiled and tuned in {time.perf_counter() - started:.1f} s')
      started = time.perf_counter()
      while (failed := self._capture(stages)) is not None:
        smaller(failed)
        self._steps[failed.index] = self._first_run(failed, state, tokens, smaller)
      tell(f'{len(stages)} stages captured in {time.perf_counter() - started:.1f} s')
    for path, leaf in flatten(state).items():
      leaf.copy_(before[path])
    if self._device.type == 'cuda':
      torch.cuda.synchronize(self._device)

  def _first_run(
    self, stage: Stage, state: TrainState, tokens: Callable[[Stage], Tensor], smaller: Callable[[Stage], None]
  ) -> 'TrainStep | _Captured':
    def run(reduction: Reduction | None) -> TrainStep | _Captured:
      step = self._make(stage, self._compiled, reduction)
      if self._captures:
        return _Captured(step, state, tokens(stage))
      step(state, tokens(stage), *torch.zeros(2, device=self._device).unbind())
      return step

    return self._processes.fitting(run, self._reduction, lambda: smaller(stage))

  def _capture(self, stages: Sequence[Stage]) -> Stage | None:
    """Captures all stages anew; the stage at which some process ran out of memory, None when all are captured."""
    self._release()
    pool = torch.cuda.graph_pool_handle()
    # The largest first: the others then find their memory in the pool.
    for stage in sorted(stages, key=lambda s: -s.spec.tokens_per_step):
      fits = True
      try:
        self._steps[stage.index].capture(pool)
      except RuntimeError as error:
        if not is_out_of_memory(error):
          raise
        fits = False
      if self._processes.any(not fits):
        self._release()
        return stage
    return None

  def _release(self) -> None:
    """Gives the memory of all graphs back: their pool is closed to whatever runs outside them."""
    for step in self._steps.values():
      step.release()
    torch.cuda.empty_cache()

  def __call__(
    self, stage: Stage, state: TrainState, tokens: Tensor, learning_rate: float, max_norm: float
  ) -> tuple[TrainState, StepMetrics]:
    if stage.index not in self._steps:
      assert not self._captures, f'stage {stage.number} was not warmed'
      self._steps[stage.index] = self._make(stage, self._compiled, self._reduction)
    step = self._steps[stage.index]
    if isinstance(step, _Captured):
      return step(state, tokens, learning_rate, max_norm)
    # Filled by a kernel: torch.tensor would copy from the host, and wait until the stream has come there.
    rates = (torch.full((), value, dtype=torch.float32, device=self._device) for value in (learning_rate, max_norm))
    return step(state, tokens, *rates)


@functools.cache
def _warm_up_stream(device: torch.device) -> torch.cuda.Stream:
  """One for all stages: cuBLAS keeps a workspace, 70 MB on an H200, for every stream that it has met."""
  return torch.cuda.Stream(device)


class _Captured:
  """One stage's step over the tensors of `state`: run once when it is made, then captured as a CUDA graph."""

  def __init__(self, step: TrainStep, state: TrainState, tokens: Tensor) -> None:
    self._step, self._state, self._tokens = step, state, tokens.clone()
    self._rates = torch.zeros(2, dtype=torch.float32, device=tokens.device)
    self._rates_host = torch.zeros(2, dtype=torch.float32, pin_memory=True)
    self._read = torch.cuda.Event()
    torch.cuda.reset_peak_memory_stats()
    side = _warm_up_stream(tokens.device)
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
      self._run()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    self.peak_bytes = torch.cuda.max_memory_allocated()

  def _run(self) -> StepMetrics:
    after, metrics = self._step(self._state, self._tokens, *self._rates.unbind())
    new = flatten(after)
    for path, leaf in flatten(self._state).items():
      if new[path] is not leaf:
        leaf.copy_(new[path])
    return metrics

  def release(self) -> None:
    """Forgets the graph, and gives its memory back."""
    self._graph = self._metrics = None

  def capture(self, pool) -> None:
    self._graph = torch.cuda.CUDAGraph()
    # Not 'global', which forbids other threads what capturing forbids: NCCL's watchdog asks events how they are all the time.
    with torch.cuda.graph(self._graph, pool=pool, capture_error_mode='thread_local'):
      self._metrics = self._run()

  def __call__(
    self, state: TrainState, tokens: Tensor, learning_rate: float, max_norm: float
  ) -> tuple[TrainState, StepMetrics]:
    assert state is self._state, 'a captured step works on the state that it was captured with'
    self._tokens.copy_(tokens, non_blocking=True)
    self._read.synchronize()  # the copy of the step before, long done: the pinned buffer may be written again
    self._rates_host[0], self._rates_host[1] = learning_rate, max_norm
    self._rates.copy_(self._rates_host, non_blocking=True)
    self._read.record()
    self._graph.replay()
    return self._state, self._metrics
