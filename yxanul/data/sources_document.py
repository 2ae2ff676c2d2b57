"""A document, a problem met while reading, and how a row of columns becomes a document."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from yxanul.config.spec import DataSpec

Cursor = tuple[int, int, int]  # file, byte offset in it once decompressed, rows (or lines, or pieces) read of it
START: Cursor = (0, 0, 0)
NAMED_PROBLEMS = 1000  # beyond them problems are only counted


class Document(NamedTuple):
  """One text. `after` is the cursor at which reading goes on behind it."""

  text: str
  source: str
  after: Cursor
  score: float | None = None
  language: str | None = None
  token_count: int | None = None
  held_out: bool | None = None  # None: decided by the hash of the text


@dataclasses.dataclass(frozen=True)
class Problem:
  """Something that could not be read: where, and why. `kind` is what the manifest counts by."""

  kind: str  # file | row_group | line | row | encoding | stream
  where: str
  why: str

  def __str__(self) -> str:
    return f'{self.where}: {self.why}'


Report = Callable[[Problem], None]


def stop(problem: Problem) -> None:
  """The report of `on_error='stop'`.

  Raises:
    ValueError: always, in one line.
  """
  raise ValueError(str(problem))


def note(problem: Problem, problems: dict[str, Any]) -> None:
  """Adds to `problems`, {'counts': {kind: n}, 'first': [lines]}: the report of `on_error='skip'`, for the manifest."""
  problems['counts'][problem.kind] = problems['counts'].get(problem.kind, 0) + 1
  if len(problems['first']) < NAMED_PROBLEMS:
    problems['first'].append(str(problem))


def wanted_columns(spec: DataSpec) -> tuple[str, ...]:
  names = (spec.text_column, spec.source_column, spec.score_column, spec.language_column, spec.token_count_column)
  return tuple(dict.fromkeys(name for name in names if name))


def from_row(row: Mapping[str, Any], spec: DataSpec, source: str, after: Cursor) -> Document:
  """The document that a row of columns holds.

  Raises:
    ValueError: the text column is missing, or a column is of another type.
  """
  if spec.text_column not in row:
    raise ValueError(f'no column {spec.text_column!r} (data.text_column); it has {", ".join(map(repr, row)) or "none"}')
  text = row[spec.text_column]
  if text is None:
    text = ''
  if not isinstance(text, str):
    raise ValueError(f'column {spec.text_column!r} holds {type(text).__name__}, wants text')
  score, count = row.get(spec.score_column), row.get(spec.token_count_column)
  for name, value in ((spec.score_column, score), (spec.token_count_column, count)):
    if value is not None and not isinstance(value, int | float):
      raise ValueError(f'column {name!r} holds {value!r}, wants a number')
  origin = row.get(spec.source_column)
  language = row.get(spec.language_column)
  return Document(
    text,
    source if origin is None else str(origin),
    after,
    score,
    None if language is None else str(language),
    count,
  )
