"""A plan against a bench of the same experiment on the same card."""

from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]


# What is read of the JSON of tools.bench: by a check, and by a fit.
CHECKED = {'hardware': str, 'versions': dict, 'n': int, 'stages': list, 'schedule': dict | None}
FITTED = {'hardware': str, 'precision': str, 'stages': list}
_TIMED_ROW = {'ms', 'seq_len', 'tokens_per_step', 'pieces', 'attention', 'tokens_per_second', 'peak_bytes'}


def missing(bench: Any, fields: Mapping[str, Any]) -> str | None:
  """The first of `fields` that JSON lacks, or has in another form, so that it is no bench; None where it has them all."""
  for name, kind in fields.items():
    if not isinstance(bench, dict) or name not in bench or not isinstance(bench[name], kind):
      return name
  rows = bench['stages']
  if not all(isinstance(row, dict) and 'stage' in row for row in rows):
    return 'stages'
  return next((f'stages: {name}' for row in rows if 'ms' in row for name in sorted(_TIMED_ROW - row.keys())), None)


def compare(plan: Row, bench: Row) -> dict[str, Any]:
  """Errors of the plan, as shares of what was measured: 'stages', 'figures' in the form of a record.

  Args:
    plan: as `plan.make`.
    bench: as tools.bench writes it.

  Raises:
    ValueError: the bench timed no stage of the plan.
  """
  planned = {row['stage']: row for row in plan['stages']}
  stages = []
  for row in bench['stages']:
    mine = planned.get(row['stage'])
    shape = ('seq_len', 'tokens_per_step')
    if 'ms' not in row or mine is None or any(mine[key] != row[key] for key in shape):
      continue
    stages.append(
      {
        'stage': mine['stage'],
        'seq_len': row['seq_len'],
        'parts': mine['parts'],
        'measured_parts': row['pieces'],
        'tokens_per_second': mine['tokens_per_second'],
        'measured_tokens_per_second': row['tokens_per_second'],
        'speed_error': mine['tokens_per_second'] / row['tokens_per_second'] - 1,
        'memory_bytes': mine['memory_bytes'],
        'measured_memory_bytes': row['peak_bytes'],
        'memory_error': mine['memory_bytes'] / row['peak_bytes'] - 1 if row['peak_bytes'] else None,
      }
    )
  if not stages:
    raise ValueError('the bench timed no stage of this plan; wants the same experiment and variant')
  errors = {kind: [abs(row[f'{kind}_error']) for row in stages if row[f'{kind}_error'] is not None] for kind in _KINDS}
  figures = {f'{kind}_error_max': {'value': max(values), 'unit': 'share'} for kind, values in errors.items() if values}
  if bench['schedule'] and bench['schedule']['complete']:
    whole = plan['total']['tokens_per_second'] / bench['schedule']['tokens_per_second'] - 1
    figures['speed_error_schedule'] = {'value': abs(whole), 'unit': 'share'}
  return {'stages': stages, 'figures': figures}


_KINDS = ('memory', 'speed')
