"""The table of paired runs."""

import statistics
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from yxanul.reporting import numbers, tables


def _bpb(value: float | None) -> str:
  return numbers.decimals(value, 4)


def _signed(value: float | None) -> str:
  return '–' if value is None else f'{value:+.4f}'


def _times(value: float | None) -> str:
  return '–' if value is None else f'{value:.2f}×'


def pair_table(result: Mapping[str, Any]) -> Table:
  """A line a seed, then the means; `result` as `study.comparison_run.compared` gives it."""
  a, b = result['a'], result['b']
  columns = [
    ('seed', 'seed', str),
    ('final_difference', 'final\ndifference', _signed),
    ('at_seconds', 'equal\ntime', numbers.duration),
    ('bpb_a', f'bpb\n{a}', _bpb),
    ('bpb_b', f'bpb\n{b}', _bpb),
    ('difference', 'difference', _signed),
    ('target_bpb', 'equal\nbpb', _bpb),
    ('seconds_a', f'time\n{a}', numbers.duration),
    ('seconds_b', f'time\n{b}', numbers.duration),
    ('speedup', 'times\nas fast', _times),
    ('bytes_ratio', 'times\nless\ntext', _times),
  ]
  speedup = result['speedup'] and result['speedup']['mean']
  total = {'seed': 'mean', 'speedup': speedup, 'bytes_ratio': result['bytes_ratio']['mean']}
  for key in ('final_difference', 'difference'):
    total[key] = statistics.fmean(pair[key] for pair in result['pairs'])
  return tables._table(result['pairs'], columns, f'{b} against {a}', left={'seed'}, total=total)
