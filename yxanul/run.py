"""One run from its configuration to its report: data if it is missing, training, evaluation, sample, report."""

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from yxanul.config.convert import to_dict
from yxanul.config.spec import ExperimentSpec, MuonSpec
from yxanul.config.status import EXIT_AGAIN, EXIT_UNSAVED
from yxanul.data import prepare as preparation
from yxanul.data.prepare_journal import write_atomically
from yxanul.data.shards_check import Recheck
from yxanul.inference.compression import xz_marks
from yxanul.inference.model import Model
from yxanul.inference.sample import write_samples
from yxanul.kernels.capabilities import Capabilities, Engines, choose_engines, detect
from yxanul.planning.flops import peak_flops
from yxanul.reporting import tables
from yxanul.reporting.display import Display
from yxanul.reporting.report import write_report
from yxanul.training.checkpoint import Checkpoints
from yxanul.training.checkpoint_shared import SharedCheckpoints
from yxanul.training.curriculum import Curriculum
from yxanul.training.distributed import Processes, join
from yxanul.training.loggers import Logs, NoLogs, require_loggers
from yxanul.training.loop import Progress, Run, train
from yxanul.training.metrics import ppl_gpt2_equivalent
from yxanul.training.overview import parameter_rows, stage_rows
from yxanul.training.sharding import sharding_for
from yxanul.training.state import TrainState, generator
from yxanul.training.step import matmul_format
from yxanul.training.stop import Stopped, StopRequest, stop_request
from yxanul.training.trainer import Trainer, curriculum_for, set_up_torch
from yxanul.training.validation import Validation
from yxanul.training.workdir import alone, begun, check_workdir


def run(spec: ExperimentSpec, workdir: Path, price_per_hour: float | None = None) -> int:
  """Trains `spec` in `workdir`, or goes on with what is there; returns the exit status.

  Under torchrun several processes do it together, and the first of them alone writes and shows anything.

  Raises:
    ValueError: in one line: the workdir holds another experiment or cannot be written, the data is missing, no checkpoint
      is sound.
  """
  with join() as processes:
    return _run(spec, workdir, price_per_hour, processes)


@dataclasses.dataclass(frozen=True)
class _Session:
  """What stands from the first line of a run to its last."""

  spec: ExperimentSpec
  workdir: Path
  processes: Processes
  capabilities: Capabilities
  engines: Engines
  device: torch.device
  display: Display
  stop: StopRequest
  started: float
  unwritten: list[str]  # results that the disk did not take

  @contextlib.contextmanager
  def writing(self, path: Path) -> Iterator[None]:
    """A result that cannot be written costs that result, not the run."""
    try:
      yield
    except OSError as error:
      self.unwritten.append(path.name)
      self.display.message(f'cannot write {path}: {error.strerror}; the same command writes it when it can')


def _run(spec: ExperimentSpec, workdir: Path, price_per_hour: float | None, processes: Processes) -> int:
  started = time.perf_counter()
  check_workdir(spec, workdir)
  require_loggers(spec.training.loggers)
  capabilities = detect()
  curriculum = curriculum_for(spec, capabilities, processes)
  engines = choose_engines(capabilities, spec.precision, spec.model.head_width)
  device = set_up_torch(spec, capabilities)
  training = spec.training
  with (
    alone(workdir) if processes.first else contextlib.nullcontext(),
    stop_request(training.stop_within_seconds, training.preemption_file) as stop,
    _display(spec, curriculum, price_per_hour, processes) as display,
  ):
    if display.is_live or not processes.first:
      stop.tell = display.message
    session = _Session(spec, workdir, processes, capabilities, engines, device, display, stop, started, [])
    try:
      with begun(spec, workdir) if processes.first else contextlib.nullcontext():
        prepared = _prepare(session)
    except Stopped:
      display.message(f'{stop.name}: stopped while preparing the text; the same command goes on from here')
      return EXIT_AGAIN
    for line in (*filter(None, (spec.note,)), *engines.notes):
      display.message(line)
    own = _checkpoints(spec, workdir, display) if processes.first else None
    checkpoints = SharedCheckpoints(processes, own, sharding_for(spec, processes))
    stop.standing = checkpoints.standing
    try:
      result = _train(session, curriculum, prepared, checkpoints)
      for line in _closing_lines(spec, result, workdir) if result else ():
        display.message(line)
    except Stopped as stopped:
      display.message(f'{stop.name}: stopped, {stopped}; the same command goes on from here')
      return EXIT_AGAIN
    finally:
      stop.doing = 'copying the last checkpoint'
      checkpoints.close()
  return EXIT_UNSAVED if session.unwritten or checkpoints.failed else 0


def _display(spec: ExperimentSpec, curriculum: Curriculum, price_per_hour: float | None, processes: Processes) -> Display:
  rows = stage_rows(spec, curriculum)
  if processes.first:
    return Display(rows, curriculum.total_tokens, price_per_hour)
  return Display(rows, curriculum.total_tokens, log=lambda _: None, console=Console(quiet=True, force_terminal=False))


def _checkpoints(spec: ExperimentSpec, workdir: Path, display: Display) -> Checkpoints:
  training = spec.training
  return Checkpoints(
    workdir / 'checkpoints',
    training.checkpoints_kept,
    keep_every_seconds=training.checkpoint_keep_every_seconds,
    config=to_dict(spec),
    command=training.checkpoint_command,
    tell=display.message,
  )


def dry_run(spec: ExperimentSpec) -> None:
  """Shows what `run` would do: parameters, stages, learning rates, memory. Trains nothing, writes nothing."""
  limit_bytes = int(1e9 * spec.training.gpu_memory_gb)
  curriculum = curriculum_for(spec, Capabilities('cuda', memory_bytes=limit_bytes) if limit_bytes else detect())
  optimizer = spec.optimizer
  tables.print_table(tables.parameter_table(parameter_rows(spec)))
  tables.print_table(tables.stage_table(stage_rows(spec, curriculum)))
  lines = (
    f'{curriculum.total_steps:,} steps over {curriculum.total_tokens:,} tokens (budget {spec.curriculum.budget_tokens:,})',
    f'AdamW: betas {optimizer.beta1:g} and {optimizer.beta2:g}, eps {optimizer.eps:g}',
    *([_muon_line(optimizer.muon)] if any(group.optimizer == 'muon' for group in optimizer.groups) else []),
    *([f'token table: entries inherit {optimizer.inheritance:g} of their parts'] if optimizer.inheritance else []),
    f'rate: the lr of each stage (peak {optimizer.peak_lr:g} x lr scale x batch scaling "{optimizer.batch_lr_scaling}"), '
    f'{optimizer.schedule} to {optimizer.final_lr_share:.0%} after a warm-up over {optimizer.warmup_share:.0%} of the tokens',
  )
  for line in (*([spec.note] if spec.note else []), *lines):
    print(line)


def _muon_line(muon: MuonSpec) -> str:
  steps = f'{muon.newton_schulz_steps} steps of {muon.polynomial}, scale "{muon.update_scale}"'
  return (
    f'Muon: momentum {muon.momentum:g}{" (Nesterov)" * muon.nesterov}, {steps}{", rows normalized" * muon.row_normalization}'
  )


def _train(
  session: _Session, curriculum: Curriculum, prepared: preparation.Prepared, checkpoints: SharedCheckpoints
) -> dict[str, Any] | None:
  """The run from its steps to its results; None in all processes but the first."""
  trainer, progress, resumed_from = _ready(session, curriculum, prepared, checkpoints)
  recheck = Recheck([*prepared.train.unread, *prepared.validation.unread] if session.processes.first else [])
  state = _run_loop(session, trainer, progress, prepared, checkpoints, recheck)
  recheck.judge()
  return _finish(session, trainer, state, progress, prepared, resumed_from) if session.processes.first else None


def _ready(
  session: _Session, curriculum: Curriculum, prepared: preparation.Prepared, checkpoints: SharedCheckpoints
) -> tuple[Trainer, Progress, int | None]:
  """Steps that are warm and a state to go on from, with the step of the checkpoint that it came from."""
  spec, display = session.spec, session.display

  def tell(line: str) -> None:
    session.stop.check()
    display.message(line)

  session.stop.check('making the steps')
  trainer = Trainer(spec, curriculum, session.capabilities, session.engines, session.device, prepared, session.processes)
  restored = checkpoints.restore(trainer.state)
  progress = Progress()
  if restored:
    host, notes = restored
    progress = Progress(**host['progress'])
    notes += trainer.choose(host['choices'])
    for line in [*notes, f'going on from the checkpoint of step {progress.step}']:
      display.message(line)
  warming = time.perf_counter()
  trainer.warm(progress.tokens, calibrate_first=not restored, tell=tell)
  progress.seconds_warming += time.perf_counter() - warming
  display.plan(stage_rows(spec, trainer.curriculum), trainer.curriculum.total_tokens)
  # What passed before the clock of the loop starts belongs to the run's wall clock.
  progress.seconds += time.perf_counter() - session.started
  return trainer, progress, progress.step if restored else None


def _run_loop(
  session: _Session,
  trainer: Trainer,
  progress: Progress,
  prepared: preparation.Prepared,
  checkpoints: SharedCheckpoints,
  recheck: Recheck,
) -> TrainState:
  spec, processes, workdir = session.spec, session.processes, session.workdir
  log = Logs(spec, workdir, progress.step, session.display.message) if processes.first else NoLogs()
  peak = peak_flops(session.capabilities.name, matmul_format(trainer.engines, spec.precision))
  held_out = (prepared.validation, trainer.engines, trainer.text, session.device, session.stop, processes)
  run = Run(
    spec=spec,
    curriculum=trainer.curriculum,
    step=trainer.step,
    batches=lambda position: recheck.behind(trainer.batches(position)),
    evaluate=Validation(spec, *held_out),
    checkpoints=checkpoints,
    log=log,
    display=session.display,
    stop=session.stop,
    device=session.device,
    host={'choices': trainer.choices()},
    peak_flops=peak and processes.world * peak,
    processes=processes,
    reduction=trainer.reduction,
  )
  try:
    return train(run, trainer.state, progress)
  finally:
    with session.writing(workdir / 'metrics.jsonl'):
      log.close()


def _finish(
  session: _Session,
  trainer: Trainer,
  state: TrainState,
  progress: Progress,
  prepared: preparation.Prepared,
  resumed_from: int | None,
) -> dict[str, Any]:
  """Result, samples and report, each as far as it is not there from a session that was over then."""
  stop, (samples, path, report) = session.stop, (session.workdir / n for n in ('samples.txt', 'result.json', 'report.html'))
  result = _read_result(path) if progress.step == resumed_from else None
  if result is None:
    stop.check('writing the results')
    result = _result(session, trainer, progress, prepared, resumed_from)
    with session.writing(path):
      write_atomically(path, _json(result))
    with session.writing(samples):
      samples.unlink(missing_ok=True)  # those of an earlier result
  if not samples.exists():  # after the result, which nothing that happens while sampling may cost
    stop.check('sampling')
    with session.writing(samples):
      model = Model(session.spec, state.params, prepared.tokenizer, trainer.engines)
      write_samples(samples, model, generator(state.rng))
  stop.check('writing the report')
  with session.writing(report):
    write_report(session.workdir)
  stop.check()
  return result


def _read_result(path: Path) -> dict[str, Any] | None:
  """None where there is none that could be read: it is made again."""
  try:
    result = json.loads(path.read_text(encoding='utf-8'))
  except (FileNotFoundError, ValueError):
    return None
  return result if isinstance(result, dict) and 'val_bpb' in result else None


def _prepare(session: _Session) -> preparation.Prepared:
  told: dict[str, float] = {}
  stop, message = session.stop, session.display.message

  def tell(phase: str, done: float, total: float | None) -> None:
    stop.check()
    now = time.perf_counter()
    if now - told.get(phase, -10.0) >= 10.0:
      told[phase] = now
      message(f'{phase}: {done / total:.0%}' if total else f'{phase}: {done / 1e6:,.1f} MB')

  stop.doing = 'preparing the text'
  data = session.spec.data
  return preparation.prepare(data, Path(data.directory) if data.directory else session.workdir / 'data', tell)


def _result(
  session: _Session, trainer: Trainer, progress: Progress, prepared: preparation.Prepared, resumed_from: int | None
) -> dict[str, Any]:
  choices, capabilities = trainer.choices(), session.capabilities
  result = {
    'experiment': session.spec.name,
    'val_bpb': progress.val_bpb,
    'ppl_gpt2_equivalent': ppl_gpt2_equivalent(progress.val_bpb),
    'val_bytes': progress.val_bytes or int(prepared.validation.byte_counts.sum()),  # a checkpoint from before it was counted
    'parameters': sum(p.numel() for p in trainer.state.params.values()),
    'tokens': progress.tokens,
    'bytes': progress.bytes,
    'seconds': progress.seconds,
    'seconds_training': progress.seconds_training,
    'seconds_warming': progress.seconds_warming,
    'tokens_per_second': progress.tokens / progress.seconds_training,
    'skipped_steps': progress.skipped_steps,
    'spike_steps': progress.spike_steps,
    'rollbacks': progress.rollbacks,
    'tokens_rolled_back': progress.tokens_rolled_back,
    'stages': len(trainer.curriculum.stages),
    'batch_sizes': choices['batches'],
    'processes': choices['processes'],
    'engines': choices['engines'],
    'attention': choices['attention'],  # of each stage, where it was chosen by a measurement
    'resumed_from': resumed_from,
    'versions': {'torch': torch.__version__, **dict(capabilities.versions)},
    'hardware': capabilities.name,
  }
  if session.spec.evaluation.xz_mark:
    result |= xz_marks(prepared)
  return result


def _closing_lines(spec: ExperimentSpec, result: dict[str, Any], workdir: Path) -> Iterator[str]:
  yield (
    f'held out: {result["val_bpb"]:.4f} bits per byte, as a GPT-2 perplexity of {result["ppl_gpt2_equivalent"]:.1f}; '
    f'{result["tokens"]:,} tokens in {result["seconds_training"]:.0f} s of training, {result["seconds"]:.0f} s in all'
  )
  if spec.evaluation.xz_mark:
    yield (
      f'xz -9e on the same text: {result["xz_bpb"]:.4f} bits per byte on its own, '
      f'{result["xz_given_training_bpb"]:.4f} given the training text'
    )
  yield f'report: {workdir / "report.html"}'


def _json(value: Any) -> str:
  return json.dumps(value, indent=1) + '\n'
