"""Tables of a plan, drawn from its rows as `tables` draws others: values come in raw and are written here."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table

from yxanul.reporting import numbers, tables

Row = Mapping[str, Any]

_MEMORY = {
  'parameters': 'model',
  'weight_copies': 'copies',
  'gradients': 'gradi-\nents',
  'optimizer': 'opti-\nmizer',
  'activations': 'activa-\ntions',
  'workspace': 'back-\nward',
  'vocab_loss': 'loss',
  'gather': 'gather',
}
_WRITE: dict[str, Callable[[float], str]] = {
  'tokens': numbers.count,
  'tokens/s': lambda value: f'{numbers.count(value)}/s',
  'parameters': '{:,.0f}'.format,
  'bytes': numbers.byte_size,
  'share': numbers.percent,
  'times': '{:.3g} times'.format,
  'ratio': '{:.1f}'.format,
  'hours': '{:.3g} h'.format,
  'dollars': '${:.2f}'.format,
}


def _hours(value: float | None) -> str:
  return '–' if value is None else f'{value:,.3g}'


def _dollars(value: float | None) -> str:
  return '–' if value is None else f'{value:,.2f}'


def _ms(value: float) -> str:
  return f'{value:,.0f}' if value >= 100 else f'{value:.3g}'


def _error(value: float | None) -> str:
  return '–' if value is None else f'{100 * value:+.1f} %'


def parameters_table(plan: Row) -> Table:
  """Parameters by part of the model."""
  whole = plan['total']['parameters']
  rows = [{'part': part, 'count': count, 'share': count / whole} for part, count in plan['parameters'].items()]
  columns = [('part', 'part', str), ('count', 'parameters', '{:,}'.format), ('share', 'share', numbers.percent)]
  return tables._table(rows, columns, 'Parameters by part', left={'part'}, total={'part': 'all', 'count': whole})


def stage_table(plan: Row) -> Table:
  """A line a stage: batch, the largest that would fit, what there is to compute, time; the run below."""
  columns = [
    ('stage', 'stage', str),
    ('seq_len', 'length', '{:,}'.format),
    ('batch_size', 'batch', '{:,}'.format),
    ('tokens_per_step', 'tokens\na step', numbers.count),
    ('parts', 'parts', '{:,}'.format),
    ('largest_batch', 'largest\nwhole', '{:,}'.format),
    ('steps', 'steps', '{:,}'.format),
    ('tokens', 'tokens', numbers.count),
    ('flops', 'FLOPs', '{:.1e}'.format),
    ('attention', 'atten-\ntion', str),
    ('seconds', 'takes', numbers.duration),
  ]
  total = {**plan['total'], 'stage': 'all'}
  columns = tables.with_blocks(columns, plan['stages'])
  return tables._table(plan['stages'], columns, f'Stages on {_card(plan)}', left=set(), total=total)


def memory_table(plan: Row) -> Table:
  """A line a stage: bytes on one card by part, their sum, and what is left of the limit."""
  rows = [{**stage, **stage['memory']} for stage in plan['stages']]
  parts = {part: heading for part, heading in _MEMORY.items() if any(row[part] for row in rows)}
  columns = [
    ('stage', 'stage', str),
    ('seq_len', 'length', '{:,}'.format),
    *((part, heading, numbers.byte_size) for part, heading in parts.items()),
    ('memory_bytes', 'all', numbers.byte_size),
    ('free_bytes', 'free', numbers.byte_size),
  ]
  return tables._table(rows, columns, f'Memory at its peak, of {numbers.byte_size(plan["memory_limit_bytes"])}', left=set())


def time_table(plan: Row) -> Table:
  """A line a stage: ms of a step by part, their sum, the speed that this is; the run's below."""
  parts = [part for part in plan['stages'][0]['ms_by_part'] if any(stage['ms_by_part'][part] for stage in plan['stages'])]
  rows = [{**stage, **stage['ms_by_part']} for stage in plan['stages']]
  columns = [
    ('stage', 'stage', str),
    *((part, 'element-\nwise' if part == 'elementwise' else part, _ms) for part in parts),
    ('ms', 'all', _ms),
    ('tokens_per_second', 'tokens\n/s', numbers.count),
    ('mfu', 'MFU', numbers.percent),
  ]
  total = {'stage': 'all', 'tokens_per_second': plan['total']['tokens_per_second'], 'mfu': plan['total']['mfu']}
  return tables._table(rows, columns, 'Speed, and ms of a step by part', left=set(), total=total)


def phase_table(plan: Row, claimed_tokens: Mapping[str, float] | None) -> Table:
  """The timeline by phase, with the mission's tokens beside where they are given."""
  rows = [
    {**row, 'rows': _range(row['lengths']), 'claimed': (claimed_tokens or {}).get(row['phase'])} for row in plan['phases']
  ]
  columns = [
    ('phase', 'phase', str),
    ('rows', 'length', str),
    ('steps', 'steps', '{:,}'.format),
    ('tokens', 'tokens', numbers.count),
    ('share', 'share', numbers.percent),
    ('seconds', 'takes', numbers.duration),
    ('end_seconds', 'over after', numbers.duration),
    *([('claimed', 'claimed\ntokens', numbers.count)] if claimed_tokens else []),
  ]
  return tables._table(rows, columns, 'Timeline', left={'phase'})


def provider_table(rows: Sequence[Row], claims: bool) -> Table:
  """Hours and dollars of this run at each price; with `claims` also three epochs, ours beside the mission's."""
  rows = [{**row, 'card': f'{row["devices"]}× {row["gpu"]}' if row['devices'] > 1 else row['gpu']} for row in rows]
  columns = [
    ('provider', 'provider', str),
    ('card', 'GPU', str),
    ('dollars_per_hour', '$/h', _dollars),
    ('tokens_per_second', 'tokens\n/s', numbers.count),
    ('hours', 'hours', _hours),
    ('dollars', '$', _dollars),
  ]
  if claims:
    columns += [
      ('hours_3_epochs', '3\nepochs\nhours', _hours),
      ('dollars_3_epochs', '3\nepochs\n$', _dollars),
      ('claimed_hours', 'claimed\nhours', _hours),
      ('claimed_dollars', 'claimed\n$', _dollars),
      ('claimed_tokens_per_second', 'that is\ntokens/s', numbers.count),
    ]
  return tables._table(rows, columns, 'What it costs', left={'provider', 'card'})


def claims_table(rows: Sequence[Row]) -> Table:
  """Claims beside what was computed, and whether they hold."""
  rows = [
    {
      **row,
      'claimed_text': _WRITE[row['unit']](row['claimed']),
      'computed_text': _WRITE[row['unit']](row['computed']),
      'verdict': 'yes' if row['holds'] else 'no',
    }
    for row in rows
  ]
  columns = [
    ('claim', 'claim', str),
    ('how', 'checked by', str),
    ('claimed_text', 'claimed', str),
    ('computed_text', 'comes to', str),
    ('verdict', 'holds', str),
  ]
  return tables._table(rows, columns, 'The claims', left={'claim', 'how', 'verdict'})


def check_table(check: Row) -> Table:
  """A plan against a bench, a line a stage."""
  columns = [
    ('stage', 'stage', str),
    ('seq_len', 'length', '{:,}'.format),
    ('parts', 'parts', str),
    ('measured_parts', 'parts\nrun', str),
    ('tokens_per_second', 'planned\ntokens/s', numbers.count),
    ('measured_tokens_per_second', 'measured\ntokens/s', numbers.count),
    ('speed_error', 'error', _error),
    ('memory_bytes', 'planned\nmemory', numbers.byte_size),
    ('measured_memory_bytes', 'measured\nmemory', numbers.byte_size),
    ('memory_error', 'error', _error),
  ]
  return tables._table(check['stages'], columns, 'The plan against the bench', left=set())


def _card(plan: Row) -> str:
  return f'{plan["devices"]}× {plan["gpu"]}' if plan['devices'] > 1 else plan['gpu']


def _range(lengths: Sequence[int]) -> str:
  low, high = lengths
  return f'{low:,}' if low == high else f'{low:,} – {high:,}'
