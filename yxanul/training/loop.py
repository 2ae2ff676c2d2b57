"""The one training loop: every side effect of a run that is not a file of its data happens here.

The step itself is pure and knows no clock, no file and no signal. The loop feeds it, reads its metrics one step late, and
at the boundaries (evaluation, checkpoint, request to stop) lets the device finish first.

Several processes come to the same boundaries: what follows from the metrics and the tokens is the same on all; one that has
a reason of its own, a signal or the first one's clock, asks through the step, and all read that with the step's metrics.
"""

import bisect
import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch

from yxanul.config.spec import ExperimentSpec
from yxanul.optim.schedule import learning_rate
from yxanul.planning.flops import flops_per_token
from yxanul.training import depth
from yxanul.training.checkpoint import Checkpoints
from yxanul.training.checkpoint_shared import SharedCheckpoints
from yxanul.training.curriculum import Curriculum, Stage
from yxanul.training.distributed import ALONE, Processes, Reduction
from yxanul.training.gauge import GpuGauge
from yxanul.training.loggers import Logs
from yxanul.training.metrics import MetricsQueue, bits_per_byte
from yxanul.training.state import TrainState
from yxanul.training.stop import Stopped, StopRequest

_RETRY_SECONDS = 60.0  # after a checkpoint could not be saved


@dataclasses.dataclass
class Progress:
  """What the loop counts on the host; it travels in every checkpoint, so that a resumed run logs what it would have logged."""

  step: int = 0
  tokens: int = 0
  bytes: int = 0
  skipped_steps: int = 0
  spike_steps: int = 0  # of them, for a spike of the loss
  skipped_in_row: int = 0  # up to now
  rollbacks: int = 0
  tokens_rolled_back: int = 0  # consumed by steps that a rollback undid
  seconds: float = 0.0  # wall clock from the start of preparing to now, over all sessions up to what they saved
  seconds_training: float = 0.0  # of it, training steps
  seconds_warming: float = 0.0  # of it, compiling, tuning and capturing before the first step of each session
  evaluated_step: int = -1
  val_bpb: float | None = None
  val_bytes: int = 0  # that were scored
  interval: list[list[float]] = dataclasses.field(default_factory=list)  # metrics since the last log line
  interval_tokens: int = 0
  interval_start_seconds: float = 0.0  # of training, at the last log line


class Clocks:
  """Adds the passing time to a `Progress`; the training clock can be held."""

  def __init__(self, progress: Progress):
    self._progress = progress
    self._last = time.perf_counter()
    self.training = False

  def tick(self) -> None:
    now = time.perf_counter()
    self._progress.seconds += now - self._last
    if self.training:
      self._progress.seconds_training += now - self._last
    self._last = now

  def start_training(self) -> None:
    """What passed until now was something else."""
    self.tick()
    self.training = True


class _Step(NamedTuple):
  """What the host knows of a step whose metrics are still on the device."""

  number: int
  stage: Stage
  tokens: int
  learning_rate: float
  seconds: float
  seconds_training: float


@dataclasses.dataclass
class Run:
  """Everything the loop works with; `yxanul.run` puts it together."""

  spec: ExperimentSpec
  curriculum: Curriculum
  step: Callable[..., tuple[TrainState, Any]]  # (stage, state, tokens, lr, max_norm), see training.graphs
  batches: Callable[[int], Iterable[torch.Tensor]]  # from a position in target tokens to the rows of every step after it
  evaluate: Callable[..., dict[str, Any] | None]  # (params, fp8_state, seq_len) to the fields of an evaluation line
  checkpoints: Checkpoints | SharedCheckpoints
  log: Logs
  display: Any
  stop: StopRequest
  device: torch.device
  host: dict[str, Any]  # kept in every checkpoint beside the progress
  peak_flops: float | None = None
  processes: Processes = ALONE
  reduction: Reduction | None = None  # that the steps were made with


def train(run: Run, state: TrainState, progress: Progress) -> TrainState:
  """Trains from `progress` to the end of the curriculum.

  Raises:
    Stopped: on request, with what stands on disk in words.
  """
  return _Loop(run, progress).train(state)


class _Loop:
  def __init__(self, run: Run, progress: Progress):
    self.run = run
    self.progress = progress
    self.clocks = Clocks(progress)
    self.queue = MetricsQueue(run.device)
    self.gauge = GpuGauge(run.device)
    self.marks = [round(share * run.spec.curriculum.budget_tokens) for share in run.spec.evaluation.shares()]
    self.attempted_at = time.perf_counter()  # to save
    self.rolled_back_to: int | None = None  # the step of the checkpoint, until another is made
    self.is_untried = False  # no step was taken since a rollback
    self.asks = self.asked = False  # this process for a boundary; any process, as all have read

  def train(self, state: TrainState) -> TrainState:
    run, progress = self.run, self.progress
    if progress.step:
      self._boundary(state)  # a run that was stopped inside an evaluation owes it
    else:
      self.save(state)  # a rollback has somewhere to go, and a disk that takes no checkpoint is told at once
    budget, total = run.spec.curriculum.budget_tokens, run.curriculum.total_tokens
    if progress.tokens < total:
      run.stop.doing = 'training'
      self.clocks.start_training()
      for tokens in run.batches(progress.tokens):
        stage = run.curriculum.lookup(progress.tokens)
        after = progress.tokens + stage.spec.tokens_per_step
        rate = learning_rate(min(1.0, after / budget), stage.lr_factor, run.spec.optimizer)
        state, metrics = run.step(stage, state, tokens, rate, stage.spec.grad_clip)
        progress.step, progress.tokens = progress.step + 1, after
        self.clocks.tick()
        # The times of a step are those at which it was handed over, however late its metrics are read.
        self.queue.put(metrics, _Step(progress.step, stage, after, rate, progress.seconds, progress.seconds_training))
        while len(self.queue) > 1:
          self._absorb()
        if self._boundary_asked() or self._evaluation_due() or self._rollback_due():
          self._boundary(state)
        if after >= total:
          break
      self._drain()
    return state

  def _boundary_asked(self) -> bool:
    """Whether one is due for a reason that only one process may know."""
    asks = bool(self.run.stop) or (self.run.processes.first and self._save_due())
    if self.run.reduction is None:
      return asks
    if asks and not self.asks:
      self.asks = True
      self.run.reduction.ask(True)
    return self.asked

  def _stopping(self) -> bool:
    """Whether any process was asked to stop. The host waits for the others."""
    if not self.run.processes.any(bool(self.run.stop)):
      return False
    self.run.stop.follow()
    return True

  def _absorb(self) -> None:
    """Takes in the oldest step whose metrics are still out, and writes its log line when one is due."""
    values, step = self.queue.get()
    progress = self.progress
    progress.interval.append(values)
    progress.interval_tokens += step.stage.spec.tokens_per_step
    progress.bytes += int(values[2])
    skipped, spike, asks = (int(value) for value in values[4:7])
    self.asked = self.asked or asks > 0
    progress.skipped_steps += skipped
    progress.spike_steps += spike
    progress.skipped_in_row = progress.skipped_in_row + 1 if skipped else 0
    self.is_untried = self.is_untried and bool(skipped)
    if skipped:
      why = 'is a spike' if spike else 'or its gradient is not finite'
      self.run.display.message(f'step {step.number} is skipped: its loss {values[0]:.4f} {why}')
    ends_stage = step.number == step.stage.start_step + step.stage.n_steps
    if step.number % self.run.spec.training.log_every_steps == 0 or ends_stage:
      self._log(step)

  def _log(self, step: _Step) -> None:
    progress, interval, stage = self.progress, self.progress.interval, step.stage
    seconds = step.seconds_training - progress.interval_start_seconds
    per_second = progress.interval_tokens / seconds
    nats, n_bytes = sum(v[1] for v in interval), sum(v[2] for v in interval)
    flops = flops_per_token(self.run.spec.model_of(stage.spec), stage.spec.seq_len)
    record = {
      'step': step.number,
      'stage': stage.number,
      'seq_len': stage.spec.seq_len,
      'tokens': step.tokens,
      'bytes': progress.bytes,
      'loss': sum(v[0] for v in interval) / len(interval),
      'bpb_train': bits_per_byte(nats, n_bytes),
      'lr': step.learning_rate,
      'grad_norm': interval[-1][3],
      'tokens_per_second': per_second,
      'bytes_per_second': n_bytes / seconds,
      'mfu': per_second * flops / self.run.peak_flops if self.run.peak_flops else None,
      'seconds': step.seconds,
      'seconds_training': step.seconds_training,
      'skipped_steps': progress.skipped_steps,
      'spike_steps': progress.spike_steps,
    }
    progress.interval, progress.interval_tokens, progress.interval_start_seconds = [], 0, step.seconds_training
    self.run.log.write(record)
    self.run.display.update(record, self._outlook())

  def _outlook(self) -> dict[str, Any]:
    """What comes next, and what the GPU is doing."""
    run, tokens = self.run, self.progress.tokens
    stage_end = next((stage.end_tokens for stage in run.curriculum.stages if stage.end_tokens > tokens), tokens)
    mark = next((mark for mark in self.marks if mark > tokens), stage_end)
    return {
      'evaluation_tokens': min(stage_end, mark),
      'checkpoint_seconds': self._save_every() - (time.perf_counter() - self.attempted_at),
      **self.gauge(),
    }

  def _drain(self) -> None:
    while len(self.queue):
      self._absorb()
    if self.run.device.type == 'cuda':
      torch.cuda.synchronize(self.run.device)
    self.clocks.tick()
    self.clocks.training = False

  def _boundary(self, state: TrainState) -> None:
    """Lets the device finish, then rolls back, evaluates, saves and stops, each if it is due."""
    run = self.run
    self._drain()
    if self.asks:
      run.reduction.ask(False)
    self.asks = self.asked = False
    if self._rollback_due() or self._ends_broken(state):
      self._rollback(state)
    if self._evaluation_due() and not self._stopping():
      run.stop.doing = 'evaluating'
      self._evaluate(state)
    stopping = self._stopping()
    if run.processes.from_first(self._save_due()) or (stopping and self._is_good()):
      self.save(state)
    if stopping:
      run.stop.doing = 'saving'
      run.checkpoints.wait()
      saved = self.progress.step in run.checkpoints.steps()
      raise Stopped('everything is saved' if saved else run.checkpoints.standing())
    run.stop.doing = 'training'
    self.clocks.start_training()

  def _rollback_due(self) -> bool:
    return self.progress.skipped_in_row >= self.run.spec.training.rollback_after_skips

  def _ends_broken(self, state: TrainState) -> bool:
    """The run is over in the middle of skipped steps, for parameters that are no numbers."""
    over = self.progress.tokens >= self.run.curriculum.total_tokens
    return over and self.progress.skipped_in_row > 0 and not all(p.isfinite().all() for p in state.params.values())

  def _is_good(self) -> bool:
    """What is saved now may be gone back to: its last step was taken."""
    return not self.progress.skipped_in_row and not self.is_untried

  def _rollback(self, state: TrainState) -> None:
    """Takes back the last checkpoint's weights, and goes on from the text that comes next.

    Step, position and learning rate stay where they are: what was read since that checkpoint, and did the harm or stood
    beside it, is not read again. When as many steps in a row are skipped again before there is a new checkpoint, the next
    rollback goes to the one before.
    """
    run, progress = self.run, self.progress
    step, position = state.step.clone(), state.data_state.clone()
    restored = run.checkpoints.restore(state, before=self.rolled_back_to)
    if restored is None:
      raise ValueError(
        f'step {progress.step}: {progress.skipped_in_row} steps in a row were skipped, and there is no earlier checkpoint to '
        'go back to; a lower config.optimizer.peak_lr may help'
      )
    then, notes = Progress(**restored[0]['progress']), restored[1]
    state.step.copy_(step)
    state.data_state.copy_(position)
    for leaf in state.loss_state.values():
      leaf.zero_()  # what a loss is like has to be learned anew, or a lasting change would be skipped for ever
    self.rolled_back_to = then.step
    # Of what was consumed since, a rollback in between has undone its own part already.
    undone = (progress.tokens - progress.tokens_rolled_back) - (then.tokens - then.tokens_rolled_back)
    progress.rollbacks += 1
    progress.tokens_rolled_back += undone
    for line in notes:
      run.display.message(line)
    run.display.message(
      f'step {progress.step}: {progress.skipped_in_row} steps in a row were skipped; back to the weights of step '
      f'{then.step}, and past the {undone:,} tokens since'
    )
    run.log.write(
      {
        'step': progress.step,
        'stage': run.curriculum.lookup(progress.tokens - 1).number,
        'tokens': progress.tokens,
        'event': 'rollback',
        'to_step': then.step,
        'tokens_rolled_back': undone,
      }
    )
    progress.skipped_in_row, self.is_untried = 0, True

  def _evaluation_due(self) -> bool:
    """After the last step of a stage, and whenever another of the marks is passed."""
    progress = self.progress
    if progress.evaluated_step == progress.step or progress.step == 0:
      return False
    stage = self.run.curriculum.lookup(progress.tokens - 1)
    before = progress.tokens - stage.spec.tokens_per_step
    crossed = bisect.bisect(self.marks, progress.tokens) > bisect.bisect(self.marks, before)
    return crossed or progress.step == stage.start_step + stage.n_steps

  def _evaluate(self, state: TrainState) -> None:
    progress = self.progress
    stage = self.run.curriculum.lookup(progress.tokens - 1)
    last = progress.tokens >= self.run.curriculum.total_tokens
    longest = self.run.spec.evaluation.seq_len
    params = depth.first(state.params, self.run.spec.model_of(stage.spec).n_layers)
    result = self.run.evaluate(params, state.fp8_state, longest if last else min(stage.spec.context, longest))
    if result is None:  # a request to stop came in between: the resumed run evaluates
      return
    self.clocks.tick()
    progress.evaluated_step, progress.val_bpb, progress.val_bytes = progress.step, result['val_bpb'], result['val_bytes']
    record = {
      'step': progress.step,
      'stage': stage.number,
      'seq_len': stage.spec.seq_len,
      'tokens': progress.tokens,
      **result,
      'seconds': progress.seconds,
      'seconds_training': progress.seconds_training,
    }
    self.run.log.write(record)
    self.run.display.evaluation(record)

  def _save_due(self) -> bool:
    """From time to time, and at the end; not while steps are being skipped, so that every checkpoint is a good one."""
    if self.progress.tokens >= self.run.curriculum.total_tokens:
      return True
    return time.perf_counter() - self.attempted_at >= self._save_every() and self._is_good()

  def _save_every(self) -> float:
    every = self.run.spec.training.checkpoint_every_seconds
    return min(every, _RETRY_SECONDS) if self.run.checkpoints.failed else every

  def save(self, state: TrainState) -> None:
    self.clocks.tick()
    self.run.checkpoints.save(state, {**self.run.host, 'progress': dataclasses.asdict(self.progress)})
    self.attempted_at = time.perf_counter()
    self.rolled_back_to = None
