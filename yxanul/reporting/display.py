"""What a run shows while it trains: live progress on a terminal, plain lines everywhere else."""

import collections
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from yxanul.reporting import numbers

_RATE_WINDOW = 20  # updates over which the remaining time is extrapolated


class Display:
  """Shows the lines of metrics.jsonl as they come; a context manager around the loop.

  On a terminal: a bar with stage, share done and time left, the current figures under it, and evaluations, stages and
  messages as lines that scroll away above. Elsewhere (a pipe, a file, a dumb terminal): one plain ASCII line each, through
  `log`.
  """

  def __init__(
    self,
    stage_rows: Sequence[Mapping[str, Any]],
    budget_tokens: int,
    price_per_hour: float | None = None,
    log: Callable[[str], None] | None = None,
    console: Console | None = None,
  ):
    """Takes the rows that `tables.stage_table` takes ('stage', 'seq_len', 'batch_size', 'lr' are read, and, where there
    are such, 'n_layers', and 'tokens' with 'flops_per_token'), in order.

    `price_per_hour` is in dollars, of the whole machine. `log` receives the plain lines (default: the console's file, flushed);
    it is not used on a terminal.
    """
    self.plan(stage_rows, budget_tokens)
    self._price_per_hour = price_per_hour
    self._outlook: Mapping[str, Any] = {}
    self._console = console or Console()
    self._log = log or self._print_line
    self._metrics: Mapping[str, Any] | None = None
    self._val_bpb: float | None = None
    self._stage: int | None = None
    self._pace: collections.deque[tuple[float, int]] = collections.deque(maxlen=_RATE_WINDOW)  # (seconds, tokens)
    self._live: Live | None = None
    if self._console.is_terminal and not self._console.is_dumb_terminal:
      self._live = Live(self._render(), console=self._console, auto_refresh=False)

  def plan(self, stage_rows: Sequence[Mapping[str, Any]], budget_tokens: int) -> None:
    """Takes other stages, when the run has changed its mind about them."""
    self._stages = {row['stage']: row for row in stage_rows}
    self._budget_tokens = budget_tokens

  def __enter__(self) -> 'Display':
    if self._live:
      self._live.start(refresh=True)
    return self

  def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
    if self._live:
      self._live.stop()

  @property
  def is_live(self) -> bool:
    """It draws on a terminal, which nothing else must write to."""
    return self._live is not None

  def update(self, metrics: Mapping[str, Any], outlook: Mapping[str, Any] | None = None) -> None:
    """One training line of metrics.jsonl, and what is known besides.

    `outlook`, each as far as it is known: 'evaluation_tokens' (consumed when the next evaluation comes), 'checkpoint_seconds'
    (until the next checkpoint), and what `training.gauge` reads of the GPU.
    """
    if metrics['stage'] != self._stage:
      self._stage = metrics['stage']
      self._pace.clear()  # another length, another speed
      self.message(self._stage_line())
    self._pace.append((metrics['seconds'], metrics['tokens']))
    self._metrics, self._outlook = metrics, outlook or {}
    if self._live:
      self._live.update(self._render(), refresh=True)
    else:
      self._log(self._plain_line(metrics))

  def evaluation(self, metrics: Mapping[str, Any]) -> None:
    """One evaluation line of metrics.jsonl."""
    self._val_bpb = metrics['val_bpb']
    if self._live:
      self._live.update(self._render(), refresh=True)
    self.message(
      f'held out: {metrics["val_bpb"]:.4f} bpb after {numbers.count(metrics["tokens"])} tokens '
      f'(stage {metrics["stage"]}, step {metrics["step"]:,}, {numbers.duration(metrics["seconds"])})'
    )

  def message(self, text: str) -> None:
    """A line that stays: above the bar on a terminal, in turn elsewhere."""
    if self._live:
      self._console.print(Text(text))
    else:
      self._log(text)

  def seconds_left(self) -> float | None:
    """Wall time to the end of the budget at the present pace, evaluations and checkpoints included; None before it is known.

    The pace of the current stage stands for all that follow, in FLOPs where the rows tell them, or else in tokens.
    """
    if self._metrics is None:
      return None
    return self._seconds_to(self._budget_tokens)

  def _seconds_to(self, tokens: int) -> float | None:
    """Until that many tokens are consumed, at the present pace."""
    left_tokens = self._left(tokens)
    (first_seconds, first_tokens), (last_seconds, last_tokens) = self._pace[0], self._pace[-1]
    if last_seconds > first_seconds and last_tokens > first_tokens:
      return left_tokens * (last_seconds - first_seconds) / (last_tokens - first_tokens)
    speed = self._metrics['tokens_per_second']
    return left_tokens / speed if speed else None

  def _left(self, tokens: int) -> float:
    """Tokens until then, those of a later stage counted as often as they are the work of one of the present stage."""
    now, present = self._metrics['tokens'], self._stages[self._stage].get('flops_per_token')
    if not present:
      return max(0, tokens - now)
    left = end = 0
    for row in self._stages.values():
      start, end = end, end + row['tokens']
      left += max(0, min(end, tokens) - max(start, now)) * row['flops_per_token'] / present
    return left

  def _print_line(self, text: str) -> None:
    print(text, file=self._console.file, flush=True)

  def _stage_line(self) -> str:
    row = self._stages[self._stage]
    grows = len({stage.get('n_layers') for stage in self._stages.values()}) > 1
    return (
      f'stage {self._stage} of {len(self._stages)}: length {row["seq_len"]:,}, batch {row["batch_size"]:,}, '
      + (f'{row["n_layers"]} blocks, ' if grows else '')
      + f'peak learning rate {numbers.rate(row["lr"])}'
    )

  def _share(self) -> float:
    return min(1.0, self._metrics['tokens'] / self._budget_tokens) if self._metrics else 0.0

  def _plain_line(self, m: Mapping[str, Any]) -> str:
    parts = [
      f'step {m["step"]}',
      f'stage {m["stage"]}/{len(self._stages)}',
      f'{numbers.count(m["tokens"])} tokens ({numbers.percent(self._share(), 0)})',
      *(f'{name} {value}' for name, value in (*self._figures(m), *self._machine(m))),
    ]
    left = self.seconds_left()
    if left is not None:
      parts.append(f'{numbers.duration(left)} left')
    return '  '.join(parts)

  def _figures(self, m: Mapping[str, Any]) -> list[tuple[str, str]]:
    figures = [('loss', f'{m["loss"]:.4f}'), ('bpb', f'{m["bpb_train"]:.4f}')]
    figures += [('tokens/s', numbers.count(m['tokens_per_second'])), ('text/s', numbers.byte_size(m['bytes_per_second']))]
    if m['mfu'] is not None:
      figures.append(('mfu', numbers.percent(m['mfu'])))
    figures += [('lr', numbers.rate(m['lr'])), ('gradient', f'{m["grad_norm"]:.3g}')]
    if m['skipped_steps']:
      figures.append(('skipped', numbers.count(m['skipped_steps'])))
    return figures

  def _machine(self, m: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The GPU, and the money so far."""
    figures, outlook = [], self._outlook
    if 'gpu_memory_bytes' in outlook:
      total = numbers.byte_size(outlook['gpu_memory_total_bytes'])
      figures.append(('memory', f'{numbers.byte_size(outlook["gpu_memory_bytes"])} of {total}'))
    if outlook.get('gpu_busy') is not None:
      figures.append(('GPU', numbers.percent(outlook['gpu_busy'], 0)))
    if self._price_per_hour is not None:
      dollars, left = self._price_per_hour * m['seconds'] / 3600, self.seconds_left()
      total = '' if left is None else f' of about {numbers.dollars(dollars + self._price_per_hour * left / 3600)}'
      figures.append(('spent', numbers.dollars(dollars) + total))
    return figures

  def _next(self) -> list[tuple[str, str]]:
    outlook, found = self._outlook, []
    if self._share() == 1:  # the last step: what stays on the screen promises nothing
      return found
    if 'evaluation_tokens' in outlook:
      found.append(('next evaluation in', numbers.duration(self._seconds_to(outlook['evaluation_tokens']))))
    if 'checkpoint_seconds' in outlook:
      found.append(('checkpoint in', numbers.duration(max(0.0, outlook['checkpoint_seconds']))))
    return found

  def _render(self) -> RenderableType:
    if self._metrics is None:
      return Text('starting ...', style='dim')
    m = self._metrics
    row = self._stages[m['stage']]
    head = Table.grid(padding=(0, 2, 0, 0), expand=True)
    for ratio in (None, 1, None, None):
      head.add_column(no_wrap=True, ratio=ratio)
    stage = Text.assemble((f'stage {m["stage"]}/{len(self._stages)}', 'bold'), (f'  length {row["seq_len"]:,}', 'dim'))
    left = Text.assemble((numbers.duration(self.seconds_left()), 'bold'), (' left', 'dim'))
    bar = ProgressBar(total=self._budget_tokens, completed=min(m['tokens'], self._budget_tokens))
    head.add_row(stage, bar, Text(numbers.percent(self._share(), 0)), left)
    figures = self._figures(m)
    if self._val_bpb is not None:
      figures.insert(2, ('held out', f'{self._val_bpb:.4f}'))
    rows = [figures, [*self._machine(m), *self._next()]]
    # Columns and not one line of text: rich would break a line between a name and its value.
    return Group(
      head,
      *(
        Columns([Text.assemble((f'{name} ', 'dim'), value) for name, value in row], padding=(0, 3, 0, 0)) for row in rows if row
      ),
    )
