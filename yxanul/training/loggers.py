"""TensorBoard and Weights & Biases beside `metrics.jsonl`: every line of it, also to those that `training.loggers` names.

Lines keep their names under `training/` or `held_out/`, over the step. A resumed run shows no step twice.
"""

import contextlib
import importlib.util
import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from yxanul.config.checks import FieldError
from yxanul.config.convert import to_dict
from yxanul.config.spec import ExperimentSpec
from yxanul.training.metrics import MetricsLog, line_kind


def require_loggers(names: tuple[str, ...]) -> None:
  """Raises ValueError, in one line that says what to type, when a logger cannot be used here."""
  for name in names:
    if importlib.util.find_spec(name) is None:
      raise FieldError('training.loggers', name, f"its package, which is not installed: pip install -e '.[{name}]'")
  if 'wandb' in names:
    import wandb

    if wandb.setup().settings.mode == 'online' and not wandb.login(prompt=False):
      raise FieldError('training.loggers', 'wandb', 'an account: wandb login, or WANDB_MODE=offline to keep it on this disk')


class Logs:
  """`metrics.jsonl` and what is beside it, behind one `write`."""

  def __init__(self, spec: ExperimentSpec, workdir: Path, after_step: int, tell: Callable[[str], None] = print):
    """Opens them all to go on after `after_step` (0: from the start)."""
    require_loggers(spec.training.loggers)
    lines = MetricsLog(workdir / 'metrics.jsonl', after_step, tell)
    self._writers = [lines]
    if 'tensorboard' in spec.training.loggers:
      self._writers.append(_TensorBoard(spec, workdir, after_step))
    if 'wandb' in spec.training.loggers:
      self._writers.append(_Wandb(spec, workdir, lines.written_before))

  def write(self, record: dict[str, Any]) -> None:
    for writer in self._writers:
      writer.write(record)

  def close(self) -> None:
    with contextlib.ExitStack() as stack:  # one that fails must not keep the others from closing
      for writer in self._writers:
        stack.callback(writer.close)


class NoLogs:
  """Of a process that leaves it to the first one to write."""

  def write(self, record: dict[str, Any]) -> None:
    pass

  def close(self) -> None:
    pass


def _named(record: dict[str, Any]) -> dict[str, float]:
  """The figures of a line under their full names; what is null is left out."""
  kind = line_kind(record)
  return {f'{kind}/{key}': value for key, value in record.items() if key != 'step' and isinstance(value, int | float)}


class _TensorBoard:
  """Event files in WORKDIR/tensorboard. `purge_step` makes readers drop what an earlier session wrote beyond the checkpoint."""

  def __init__(self, spec: ExperimentSpec, workdir: Path, after_step: int):
    from torch.utils.tensorboard import SummaryWriter

    self._events = SummaryWriter(workdir / 'tensorboard', purge_step=after_step + 1 if after_step else None)
    if not after_step:
      self._events.add_text('config', f'```\n{json.dumps(to_dict(spec), indent=1)}\n```', 0)

  def write(self, record: dict[str, Any]) -> None:
    for name, value in _named(record).items():
      self._events.add_scalar(name, value, record['step'])
    self._events.flush()  # a kill loses what a checkpoint later than it would not bring back

  def close(self) -> None:
    self._events.close()


class _Wandb:
  """One W&B run for a workdir, however often it is resumed, kept in WORKDIR/wandb.

  What W&B has been given cannot be taken back, so lines that an earlier session had written are not sent again. W&B writes
  late: of the lines just before a kill a few may be missing from it.
  """

  def __init__(self, spec: ExperimentSpec, workdir: Path, written_before: frozenset[tuple[int, str]]):
    import wandb

    identity = workdir / 'wandb' / 'run_id'
    if not identity.exists():
      identity.parent.mkdir(exist_ok=True)
      identity.write_text(uuid.uuid4().hex[:12])
    try:
      self._run = wandb.init(
        project='yxanul',
        name=workdir.name,
        id=identity.read_text(),
        resume='allow',
        dir=workdir,
        config=to_dict(spec),
        settings=wandb.Settings(silent=True, console='off'),  # the terminal is the display's
      )
    except wandb.Error as error:
      raise ValueError(f'wandb did not start: {error}') from None
    self._run.define_metric('*', step_metric='step')
    self._written_before = written_before

  def write(self, record: dict[str, Any]) -> None:
    if (record['step'], line_kind(record)) not in self._written_before:
      self._run.log({'step': record['step'], **_named(record)})

  def close(self) -> None:
    self._run.finish()
