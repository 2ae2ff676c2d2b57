"""Tables of the benchmark, drawn from its rows as `tables` draws others: values come in raw and are written here."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from yxanul.reporting import numbers, tables

Row = Mapping[str, Any]


def _per_second(value: float | None) -> str:
  return '–' if value is None else f'{numbers.byte_size(value)}/s'


def _ms(value: float | None) -> str:
  """Three digits where there are so many; nothing stands for nothing."""
  if not value:
    return '–' if value is None else ''
  return f'{value:,.0f}' if value >= 1000 else f'{value:.3g}'


def _spread(value: tuple[float, float] | None) -> str:
  return '' if value is None else f'{_ms(value[0])} – {_ms(value[1])}'


def _times(value: float | None) -> str:
  return '–' if value is None else f'{value:.2f}×'


def stage_table(result: Row) -> Table:
  """A line a stage, then the schedule's; `result` as `training.benchmark.measure` gives it. Stages that failed are left out."""
  rows = [
    {**row, 'spread': (row['ms_p10'], row['ms_p90']), 'gpu_busy': row.get('profile', {}).get('gpu_busy')}
    for row in result['stages']
    if 'ms' in row
  ]
  columns = [
    ('stage', 'stage', str),
    ('seq_len', 'length', '{:,}'.format),
    ('batch_size', 'batch', '{:,}'.format),
    ('pieces', 'parts', str),
    ('attention', 'attention', str),
    ('token_share', 'share', numbers.percent),
    ('n', 'n', str),
    ('ms', 'ms\n/step', _ms),
    ('spread', '10th – 90th\npercentile', _spread),
    ('tokens_per_second', 'tokens\n/s', numbers.count),
    ('bytes_per_second', 'text', _per_second),
    ('mfu', 'MFU', numbers.percent),
    ('gpu_busy', 'kernels\ncover', numbers.percent),
    ('peak_bytes', 'peak\nmemory', numbers.byte_size),
  ]
  title = f'{result["experiment"]}, {result["precision"]} linears, execution {result["execution"]}'
  schedule = result['schedule']
  total = schedule and {**schedule, 'stage': 'all' if schedule['complete'] else 'these', 'peak_bytes': result['peak_bytes']}
  return tables._table(rows, tables.with_blocks(columns, rows), title, left=set(), total=total)


def parts_table(result: Row) -> Table | None:
  """Ms a step by part, a line a stage; None where nothing was profiled."""
  profiles = [{**row, **row['profile']} for row in result['stages'] if 'parts_ms' in row.get('profile', {})]
  if not profiles:
    return None
  parts = list(profiles[0]['parts_ms'])
  columns = [
    ('stage', 'stage', str),
    ('seq_len', 'length', '{:,}'.format),
    *((part, part, _ms) for part in parts),
    ('idle_ms', 'idle', _ms),
    ('wall_ms', 'wall', _ms),
  ]
  rows = [{**row, **row['parts_ms']} for row in profiles]
  return tables._table(rows, columns, f'{result["experiment"]}: ms a step by part, under the profiler', left=set())


def against_table(ratios: Row, names: tuple[str, str]) -> Table:
  """Tokens/s of two runs side by side, as `training.benchmark.ratios` gives them; a line for the schedule."""
  columns = [
    ('stage', 'stage', str),
    ('seq_len', 'length', '{:,}'.format),
    ('tokens_per_second', f'{names[0]}\ntokens/s', numbers.count),
    ('against_tokens_per_second', f'{names[1]}\ntokens/s', numbers.count),
    ('ratio', 'ratio', _times),
  ]
  total = {'stage': 'all' if ratios['complete'] else 'these', 'ratio': ratios['schedule']}
  return tables._table(ratios['stages'], columns, f'{names[0]} against {names[1]}', left=set(), total=total)


def peers_table(rows: list[Row]) -> Table:
  """GPT-2 in each of its formats; rows as `training.benchmark_peers.measure_peer` gives them. Failed ones are left out."""
  columns = [
    ('peer', 'GPT-2 124M', str),
    ('seq_len', 'length', '{:,}'.format),
    ('batch_size', 'batch', str),
    ('pieces', 'parts', str),
    ('n', 'n', str),
    ('ms', 'ms\n/step', _ms),
    ('spread', '10th – 90th\npercentile', _spread),
    ('tokens_per_second', 'tokens\n/s', numbers.count),
    ('mfu', 'MFU', numbers.percent),
    ('peak_bytes', 'peak\nmemory', numbers.byte_size),
  ]
  rows = [{**row, 'spread': (row['ms_p10'], row['ms_p90'])} for row in rows if 'ms' in row]
  return tables._table(rows, columns, 'Peers', left={'peer'})


def gradients_table(result: Row) -> Table:
  """Every parameter's gradient against FP32's and the reference engine's, from `training.benchmark_gradients.measure`."""
  rows = [
    {
      'steps': moment['steps'],
      'parameter': name,
      **values,
      'worst': ', '.join(k for k, v in moment['worst'].items() if v == name),
    }
    for moment in result['moments']
    for name, values in moment['parameters'].items()
  ]
  columns = [
    ('steps', 'after\nsteps', str),
    ('parameter', 'parameter', str),
    ('cosine_fp8', 'FP8: cosine\nwith FP32', '{:.4f}'.format),
    ('cosine_bf16', 'BF16: cosine\nwith FP32', '{:.5f}'.format),
    ('difference_reference', 'FP8: difference\nfrom reference', '{:.4f}'.format),
    ('worst', 'the worst in', str),
  ]
  return tables._table(rows, columns, f'Gradients, engine {result["engine"]}', left={'parameter', 'worst'})


def loader_table(rows: list[Row]) -> Table:
  """The loader alone: 'stage', 'seq_len', 'batch_size', 'tokens_per_second'."""
  columns = [
    ('stage', 'stage', str),
    ('seq_len', 'length', '{:,}'.format),
    ('batch_size', 'batch', '{:,}'.format),
    ('tokens_per_second', 'tokens\n/s', numbers.count),
  ]
  return tables._table(rows, columns, 'Loader', left=set())


def kernel_table(name: str, result: Row) -> Table:
  """A line a shape: ours, the floor and its share of ours, every peer and how many times ours it takes."""
  peers = list(dict.fromkeys(peer for row in result['rows'] for peer in row['subjects'] if peer != 'ours'))
  rows = []
  for row in result['rows']:
    times = {subject: value.get('ms') for subject, value in row['subjects'].items()}
    ours = row['subjects']['ours']
    line = {'shape': row['shape'], 'ours': times['ours'], 'floor': row['floor_ms'], 'extra': ours.get('extra_bytes')}
    line |= {'spread': (ours['ms_p10'], ours['ms_p90']) if 'ms' in ours else None, 'n': ours.get('n')}
    line['share'] = row['floor_ms'] / times['ours'] if times['ours'] else None
    rows.append(line | {peer: (times.get(peer), times['ours']) for peer in peers})
  columns = [
    ('shape', name, str),
    ('ours', 'ours\nms', _ms),
    ('spread', '10th – 90th\npercentile', _spread),
    ('n', 'n', tables._plain),
    ('extra', 'extra\nmemory', numbers.byte_size),
    ('floor', 'floor\nms', _ms),
    ('share', 'floor\n/ ours', numbers.percent),
    *((peer, peer.replace('_', '\n'), _against_ours) for peer in peers),
  ]
  return tables._table(rows, columns, f'{name}, {result["tokens"]:,} tokens, forward and backward', left={'shape'})


def _against_ours(value: tuple[float | None, float | None]) -> str:
  theirs, ours = value
  return '–' if theirs is None else f'{_ms(theirs)}{f" ({theirs / ours:.2f}×)" if ours else ""}'


def kernel_notes(result: Row, hardware: str) -> list[str]:
  """The rates behind the floors, what each floor counts, and why a subject has no time."""
  rates = result['rates']
  floors = ', '.join(dict.fromkeys(row['floor'] for row in result['rows']))
  tera = {name: f'{rates[f"{name}flops_per_second"] / 1e12:.3g}' for name in ('', 'fp8_')}
  lines = [
    f'{hardware}: copies at {_per_second(rates["bytes_per_second"])}, products at {tera[""]} TFLOP/s in BF16, '
    f'{tera["fp8_"]} in FP8; floors count {floors}'
  ]
  failed = {}
  for row in result['rows']:
    for name, times in row['subjects'].items():
      if 'error' in times:
        failed.setdefault(f'{name}: {times["error"]}', []).append(row['shape'])
  return lines + [f'{line} ({", ".join(shapes)})' for line, shapes in failed.items()]
