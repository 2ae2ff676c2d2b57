"""Several runs on one page: their curves in one plot each, what they came to, and where their configurations differ."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from yxanul.config.convert import differences
from yxanul.reporting import comparison_page, numbers, page, plots
from yxanul.reporting.run_files import Line, RunFiles, read_run

MOST_RUNS = sum(role.startswith('run-') for role in page.LIGHT)
_SMOOTHED_SHARE = 0.02  # of a run's log lines, over which training figures are averaged
# Name of the picture, title, figure, over what.
_HELD_OUT = (
  ('held_out_bpb_over_tokens', 'Held-out bits per byte over tokens', 'val_bpb', 'tokens'),
  ('held_out_bpb_over_bytes', 'Held-out bits per byte over text', 'val_bpb', 'bytes'),
  ('held_out_bpb_over_seconds', 'Held-out bits per byte over training time', 'val_bpb', 'seconds_training'),
)
_TRAINING = (
  ('training_loss_over_tokens', 'Training loss over tokens', 'loss', 'tokens'),
  ('training_loss_over_seconds', 'Training loss over training time', 'loss', 'seconds_training'),
  ('training_bpb_over_bytes', 'Training bits per byte over text', 'bpb_train', 'bytes'),
  ('training_bpb_over_seconds', 'Training bits per byte over training time', 'bpb_train', 'seconds_training'),
)


def write_comparison(workdirs: Sequence[Path], folder: Path, note: str = '') -> Path:
  """Writes FOLDER/index.html and every plot beside it as a PNG; the first run is what the others are measured by.

  `note` stands at the top of the page.

  Returns:
    The path of the page.

  Raises:
    ValueError: there are too many runs, or one is not the workdir of a run; one line that names it.
  """
  if len(workdirs) > MOST_RUNS:
    raise ValueError(f'{len(workdirs)} runs: one page compares at most {MOST_RUNS}')
  runs = [read_run(workdir) for workdir in workdirs]
  names, rows = _names(workdirs), final_figures(runs)
  folder.mkdir(parents=True, exist_ok=True)
  html = comparison_page.TEMPLATE.render(
    css=Markup(page.CSS),
    names=names,
    note=note,
    figures=[(heading, [write(row[key]) for row in rows]) for key, heading, write in _FIGURES],
    target=numbers.decimals(target_bpb(runs), 3),
    same_text=same_text(runs),
    differing=[(field, [_value(v) for v in values]) for field, values in differing(runs)],
    held_out=_plots(runs, names, _HELD_OUT, folder),
    training=_plots(runs, names, _TRAINING, folder),
    lengths_differ=len({line['eval_seq_len'] for run in runs for line in run.evaluations}) > 1,
  )
  path = folder / 'index.html'
  fresh = path.with_suffix('.html.tmp')
  fresh.write_text(html, encoding='utf-8')
  os.replace(fresh, path)
  return path


def _names(workdirs: Sequence[Path]) -> list[str]:
  """The last parts of the paths, as many as tell them apart."""
  parts = [workdir.absolute().parts for workdir in workdirs]
  for n in range(1, max(map(len, parts)) + 1):
    names = ['/'.join(p[-n:]) for p in parts]
    if len(set(names)) == len(names):
      return names
  raise ValueError(f'{workdirs[0]}: named twice, a comparison wants different runs')


# --- figures ---------------------------------------------------------------------------------------------------------


def held_out_bpb(run: RunFiles) -> float | None:
  """Of the last evaluation."""
  return run.evaluations[-1]['val_bpb'] if run.evaluations else None


def same_text(runs: Sequence[RunFiles]) -> bool:
  """Whether all runs were scored on as many bytes of held-out text; bits per byte of different texts cannot be compared."""
  return len({run.evaluations[-1]['val_bytes'] for run in runs if run.evaluations}) <= 1


def target_bpb(runs: Sequence[RunFiles]) -> float | None:
  """The best figure that every run reached; None too where they were not scored on the same text."""
  if not same_text(runs):
    return None
  best = [min(_known(run.evaluations, 'val_bpb'), default=None) for run in runs]
  return None if None in best else max(best)


def reach(run: RunFiles, bpb: float | None, key: str) -> float | None:
  """How many 'tokens' or 'seconds_training' the run took to a held-out `bpb`, linearly between its evaluations."""
  before = None
  for line in run.evaluations:
    if line['val_bpb'] is None or bpb is None:
      continue
    if line['val_bpb'] <= bpb:
      if before is None or before['val_bpb'] == line['val_bpb']:
        return line[key]
      share = (before['val_bpb'] - bpb) / (before['val_bpb'] - line['val_bpb'])
      return before[key] + share * (line[key] - before[key])
    before = line
  return None


def final_figures(runs: Sequence[RunFiles]) -> list[dict[str, Any]]:
  """A row for each run, finished or not; ratios are against the first."""
  target, comparable = target_bpb(runs), same_text(runs)
  rows = []
  for run in runs:
    last = (
      run.training[-1] if run.training else dict.fromkeys(('tokens', 'bytes', 'seconds', 'seconds_training', 'skipped_steps'))
    )
    bpb, seconds = held_out_bpb(run), reach(run, target, 'seconds_training')
    rows.append(
      {
        'experiment': run.config['name'],
        'val_bpb': bpb,
        'val_bpb_difference': bpb - rows[0]['val_bpb']
        if comparable and rows and None not in (bpb, rows[0]['val_bpb'])
        else None,
        'target_tokens': reach(run, target, 'tokens'),
        'target_seconds': seconds,
        'speedup': rows[0]['target_seconds'] / seconds if rows and seconds and rows[0]['target_seconds'] else None,
        'parameters': run.result and run.result['parameters'],
        'tokens': last['tokens'],
        'bytes': last['bytes'],
        'seconds_training': last['seconds_training'],
        'seconds': run.result['seconds'] if run.result else last['seconds'],
        'tokens_per_second': last['tokens'] / last['seconds_training'] if last['seconds_training'] else None,
        'skipped_steps': last['skipped_steps'],
        'hardware': run.result and run.result['hardware'],
        'state': 'finished' if run.result else 'not finished',
      }
    )
  return rows


def _signed(value: float | None) -> str:
  return '–' if value is None else f'{value:+.4f}'


def _plain(value: Any) -> str:
  return '–' if value is None else str(value)


_FIGURES = (
  ('experiment', 'experiment', str),
  ('val_bpb', 'held-out bpb', lambda v: numbers.decimals(v, 4)),
  ('val_bpb_difference', 'against the first', _signed),
  ('target_tokens', 'tokens to target', numbers.count),
  ('target_seconds', 'training time to target', numbers.duration),
  ('speedup', 'times as fast', lambda v: numbers.decimals(v, 2)),
  ('parameters', 'parameters', numbers.count),
  ('tokens', 'tokens', numbers.count),
  ('bytes', 'text', numbers.byte_size),
  ('seconds_training', 'training time', numbers.duration),
  ('seconds', 'time in all', numbers.duration),
  ('tokens_per_second', 'tokens/s', numbers.count),
  ('skipped_steps', 'skipped steps', numbers.count),
  ('hardware', 'hardware', _plain),
  ('state', 'state', str),
)


def differing(runs: Sequence[RunFiles]) -> list[tuple[str, list[Any]]]:
  """Every field in which some run differs from the first, with the value in each run."""
  found: dict[str, list[Any]] = {}
  for i, run in enumerate(runs[1:], start=1):
    for field, first, value in differences(runs[0].config, run.config):
      found.setdefault(field, [first] * len(runs))[i] = value
  return list(found.items())


def _value(value: Any) -> str:
  """One cell; of a list of records, such as stages, only how many there are."""
  if isinstance(value, list) and value and isinstance(value[0], Mapping):
    return f'{len(value)} entries'
  return 'absent' if value is None else str(value)


# --- curves ----------------------------------------------------------------------------------------------------------


def _known(lines: Sequence[Line], key: str) -> list[float]:
  return [line[key] for line in lines if line[key] is not None]


def evaluations(run: RunFiles) -> list[Line]:
  """Evaluation lines with the bytes of text that were trained on by then, from the training lines around them."""
  if not run.training:
    return []
  tokens, sizes = ([0, *(line[key] for line in run.training)] for key in ('tokens', 'bytes'))
  return [line | {'bytes': float(np.interp(line['tokens'], tokens, sizes))} for line in run.evaluations]


def _smoothed(lines: Sequence[Line], key: str) -> list[Line]:
  """A running mean, each point over the lines around it; near an end over fewer, as many on either side."""
  values = np.array([np.nan if line[key] is None else line[key] for line in lines])
  reach = round(_SMOOTHED_SHARE * len(values) / 2)
  means = []
  for i in range(len(values)):
    side = min(reach, i, len(values) - 1 - i)
    around = values[i - side : i + side + 1]
    means.append(float(around.mean()) if np.isfinite(around).all() else None)
  return [line | {key: mean} for line, mean in zip(lines, means, strict=True)]


def _plots(runs: Sequence[RunFiles], names: Sequence[str], which, folder: Path) -> list[dict[str, Any]]:
  found = []
  for picture, title, y, x in which:
    if y == 'val_bpb':
      draw = plots.curves([(name, evaluations(run), ()) for name, run in zip(names, runs, strict=True)], x, y, points=True)
    else:
      draw = plots.curves(
        [(name, _smoothed(run.training, y), run.training) for name, run in zip(names, runs, strict=True)], x, y
      )
    plots.save_png(draw, title, folder / f'{picture}.png')
    found.append({'title': title, 'svg': Markup(plots.svg(draw, title)), 'picture': f'{picture}.png'})
  return found
