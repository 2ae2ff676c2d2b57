"""Tables of what a machine has and of what was found wrong with it."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from yxanul.reporting import tables

Row = Mapping[str, Any]


def machine_table(rows: Sequence[Row]) -> Table:
  """'what', 'found'."""
  return tables._table(rows, [('what', 'this machine', str), ('found', '', str)], '', left={'what', 'found'})


def engine_table(rows: Sequence[Row]) -> Table:
  """'part', 'engine', 'why': what each part of a step will be run by."""
  columns = [('part', 'part of the step', str), ('engine', 'runs by', str), ('why', '', str)]
  return tables._table(rows, columns, '', left={'part', 'engine', 'why'})


def finding_table(rows: Sequence[Row]) -> Table:
  """'level', 'text'."""
  return tables._table(rows, [('level', '', str), ('text', 'pre-flight', str)], '', left={'level', 'text'})
