"""Tables for the command line, drawn by rich from plain rows (dicts of plain values).

Every function returns a `rich.table.Table`; `print_table` shows one. Values come in raw (counts, bytes, shares) and are
written for people here, so that a caller never formats.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from yxanul.reporting import numbers

Row = Mapping[str, Any]
_Column = tuple[str, str, Callable[[Any], str]]  # key in the row, heading, how its value is written

_WRAPS = ('summary', 'hardware', 'claim', 'how', 'why', 'text', 'says')  # columns of prose; all others stand on one line


def _plain(value: Any) -> str:
  return '–' if value is None else str(value)


def _shape(value: Iterable[int]) -> str:
  return ' × '.join(str(n) for n in value)


def _table(rows: Iterable[Row], columns: list[_Column], title: str, left: set[str], total: Row | None = None) -> Table:
  table = Table(title=title or None, title_justify='left', title_style='bold', box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
  table.show_edge = False
  for key, heading, _ in columns:
    prose = key in _WRAPS
    table.add_column(heading, justify='left' if key in left else 'right', no_wrap=not prose, min_width=16 if prose else None)
  for row in rows:
    table.add_row(*(Text(write(row[key])) for key, _, write in columns))
  if total is not None:
    table.add_section()
    table.add_row(*(Text(write(total[key]) if key in total else '') for key, _, write in columns), style='bold')
  return table


def registry_table(rows: Iterable[Row]) -> Table:
  """The experiments: 'name', 'summary' (one line), 'parameters', 'tokens', 'hardware'."""
  columns: list[_Column] = [
    ('name', 'experiment', _plain),
    ('parameters', 'parameters', numbers.count),
    ('tokens', 'tokens', numbers.count),
    ('hardware', 'hardware', _plain),
    ('summary', 'what it is', _plain),
  ]
  return _table(rows, columns, '', left={'name', 'hardware', 'summary'})


def parameter_table(rows: list[Row]) -> Table:
  """The parameters: 'name', 'shape', 'parameters', 'weight_decay', 'lr_multiplier', 'optimizer'; a line with the sum."""
  total = sum(row['parameters'] for row in rows)
  columns: list[_Column] = [
    ('name', 'parameter', _plain),
    ('shape', 'shape', _shape),
    ('parameters', 'count', '{:,}'.format),
    ('optimizer', 'optimizer', _plain),
    ('weight_decay', 'weight\ndecay', '{:g}'.format),
    ('lr_multiplier', 'lr ×', '{:g}'.format),
  ]
  return _table(rows, columns, 'Parameters', left={'name', 'optimizer'}, total={'name': 'all', 'parameters': total})


def stage_table(rows: list[Row]) -> Table:
  """The curriculum: 'stage', 'seq_len', 'n_layers' (shown where it grows), 'batch_size', 'tokens_per_step', 'steps',
  'tokens', 'lr_scale', 'lr', 'grad_clip', 'share_start' (of the token budget), 'parts' (that the rows go through in, for the
  memory), 'memory_bytes' (an estimate, on one device); a line with the sums."""
  columns: list[_Column] = [
    ('stage', 'stage', _plain),
    ('seq_len', 'length', '{:,}'.format),
    ('batch_size', 'batch', '{:,}'.format),
    ('tokens_per_step', 'tokens\n/step', '{:,}'.format),
    ('steps', 'steps', '{:,}'.format),
    ('tokens', 'tokens', numbers.count),
    ('share_start', 'starts\nat', numbers.percent),
    ('lr_scale', 'lr\nscale', '{:g}'.format),
    ('lr', 'peak\nlr', numbers.rate),
    ('grad_clip', 'clip', '{:g}'.format),
    ('parts', 'rows\nin', '{:,}'.format),
    ('memory_bytes', 'memory\n(est.)', numbers.byte_size),
  ]
  total = {'stage': 'all', 'steps': sum(row['steps'] for row in rows), 'tokens': sum(row['tokens'] for row in rows)}
  return _table(rows, with_blocks(columns, rows), 'Curriculum', left=set(), total=total)


def with_blocks(columns: Sequence[_Column], rows: Sequence[Row]) -> list[_Column]:
  """The columns of a table of stages, with the blocks that run ('n_layers') behind the length where their number changes."""
  at = [key for key, *_ in columns].index('seq_len') + 1
  grows = len({row['n_layers'] for row in rows}) > 1
  return [*columns[:at], *([('n_layers', 'blocks', '{:,}'.format)] if grows else []), *columns[at:]]


def corpus_table(rows: list[Row]) -> Table:
  """Prepared text: 'split', 'source', 'documents', 'tokens', 'bytes', 'bytes_per_token'."""
  columns: list[_Column] = [
    ('split', 'split', _plain),
    ('source', 'source', _plain),
    ('documents', 'documents', '{:,}'.format),
    ('tokens', 'tokens', numbers.count),
    ('bytes', 'text', numbers.byte_size),
    ('bytes_per_token', 'bytes\n/token', '{:.3f}'.format),
  ]
  return _table(rows, columns, 'Prepared text', left={'split', 'source'})


def evaluation_table(rows: list[Row]) -> Table:
  """Scored text: 'source', 'documents', 'tokens', 'bytes', 'bytes_per_token', 'val_bpb', 'ppl_gpt2_equivalent'."""
  columns: list[_Column] = [
    ('source', 'source', _plain),
    ('documents', 'documents', '{:,}'.format),
    ('tokens', 'tokens', numbers.count),
    ('bytes', 'text', numbers.byte_size),
    ('bytes_per_token', 'bytes\n/token', '{:.3f}'.format),
    ('val_bpb', 'bits\n/byte', '{:.4f}'.format),
    ('ppl_gpt2_equivalent', 'perplexity of\na GPT-2 token', '{:,.2f}'.format),
  ]
  return _table(rows, columns, 'Bits per byte', left={'source'})


def _like(table: Table, **fields: Any) -> Table:
  other = copy.copy(table)
  for name, value in fields.items():
    setattr(other, name, value)
  return other


def _with_columns(table: Table, chosen: list[int], **fields: Any) -> Table:
  return _like(table, columns=[dataclasses.replace(table.columns[at], _index=i) for i, at in enumerate(chosen)], **fields)


def _split(table: Table, fits: Callable[[Table], bool]) -> list[Table]:
  """A table that is too wide as several below one another, each with the columns that say what a row is of."""
  n = len(table.columns)
  n_keys = next((i for i in range(1, n) if table.columns[i].justify != 'left'), n)  # the first, and those aligned to the left
  keys = list(range(n_keys))
  parts = [keys]
  for i in range(n_keys, n):
    if len(parts[-1]) > n_keys and not fits(_with_columns(table, [*parts[-1], i])):
      parts.append(keys)
    parts[-1] = [*parts[-1], i]
  more = {'title': table.title and 'continued'}
  return [_with_columns(table, part, **(more if at else {})) for at, part in enumerate(parts)]


class _Console(Console):
  def on_broken_pipe(self) -> None:
    raise  # the BrokenPipeError, where rich would end the program with 1: a reader that has seen enough is no failure


def print_table(table: Table, console: Console | None = None) -> None:
  """Prints a table with no figure cut.

  On a terminal that is too narrow for it its columns move closer, then prose wraps, then it goes on below itself, with the
  first columns again. Where output is no terminal one line holds a row, however long. An empty line sets off what follows.
  """
  console = console or _Console()

  def width(some: Table) -> Measurement:
    return Measurement.get(console, console.options.update(max_width=10_000), some)

  def fits(some: Table) -> bool:
    return width(some).maximum <= console.width

  parts = [table]
  if console.is_terminal and not fits(table):
    table = _like(table, padding=0)
    proseless = all(column.no_wrap for column in table.columns)
    parts = _split(table, fits) if proseless else [table]
  for part in parts:
    limits = width(part)
    wraps = console.is_terminal and not all(column.no_wrap for column in part.columns)
    columns = max(console.width, limits.minimum + len(part.columns)) if wraps else limits.maximum
    shown = _Console(file=console.file, force_terminal=console.is_terminal, width=columns)
    shown.print(part)
  shown.print()
