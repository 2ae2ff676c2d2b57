"""What preparing data and training a tokenizer show: one bar a phase, plain lines where there is no terminal."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_LINE_EVERY_SECONDS = 10.0


class Phases:
  """A progress callback, `phases(phase, done, total)`, and the context manager that its bars need.

  `total` is None where nobody knows it yet; then `done` stands alone.
  """

  def __init__(self, console: Console | None = None):
    self._console = console or Console()
    columns = (TextColumn('{task.description:>12}'), BarColumn(), TextColumn('{task.fields[amount]}'))
    self._bars = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self._console)
    self._tasks: dict[str, TaskID] = {}
    self._begun: dict[str, tuple[float, float]] = {}  # phase: when it was first heard of, and how far it was then
    self._printed = -_LINE_EVERY_SECONDS

  def __enter__(self) -> 'Phases':
    if self._console.is_terminal:
      self._bars.start()
    return self

  def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
    if self._console.is_terminal:
      self._bars.stop()

  def __call__(self, phase: str, done: float, total: float | None) -> None:
    amount = f'{done:,.0f}' if total is None else f'{done:,.0f} / {total:,.0f}'
    if self._console.is_terminal:
      if phase not in self._tasks:
        self._tasks[phase] = self._bars.add_task(phase, total=total, amount=amount)
      self._bars.update(self._tasks[phase], completed=done, total=total, amount=amount)
      return
    now = time.monotonic()
    begun, at = self._begun.setdefault(phase, (now, done))
    if now - self._printed >= _LINE_EVERY_SECONDS:
      self._printed = now
      left = f', {(now - begun) * (total - done) / (done - at):,.0f} s left' if total and done > at else ''
      self._console.print(f'{phase}: {amount}{left}', highlight=False)
