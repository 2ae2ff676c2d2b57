"""The page and the tables of an ablation: what each saving gave, the runs behind it, and their curves."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.table import Table

from yxanul.reporting import numbers, page, plots, tables
from yxanul.reporting.comparison import evaluations
from yxanul.reporting.run_files import RunFiles

Row = Mapping[str, Any]
Columns = Sequence[tuple[str, str, Callable[[Any], str]]]

_OVER = (('seconds_training', 'training time'), ('bytes', 'text'))


def _times(factor: Row | None) -> str:
  """2.03× (1.90 – 2.17): the factor and its interval, where it has one."""
  if factor is None:
    return '–'
  if factor['factor'] is None:
    return 'not reached'
  shown = f'{factor["factor"]:.2f}×'
  return shown if factor['low'] is None else f'{shown} ({factor["low"]:.2f} – {factor["high"]:.2f})'


def _of_it(name: str) -> Callable[[Row | None], str]:
  """One of the two that a factor is the product of; a product of factors has none."""
  return lambda factor: f'{factor[name]:.2f}×' if factor and name in factor else '–'


def _own(measured: Row | None) -> str:
  """How soon, and in which of the experiment's runs."""
  shown = _times(measured)
  return f'{shown} in {measured["own_seconds"]:g} s' if measured and measured['factor'] is not None else shown


def _part(value: float | None) -> str:
  return '–' if value is None else f'{value:.3g}'


def _bpb(value: float | None) -> str:
  return numbers.decimals(value, 4)


def _signed(value: float) -> str:
  return f'{value:+.4f}'


def _interval(ends: tuple[float | None, float | None]) -> str:
  return '–' if ends[0] is None else f'{ends[0]:.4f} – {ends[1]:.4f}'


def _per_second(value: float | None) -> str:
  return '–' if value is None else f'{numbers.byte_size(value)}/s'


FACTORS: Columns = (
  ('saving', 'saving', str),
  ('claimed', 'claimed', '{:g}×'.format),
  ('alone', 'alone', _times),
  ('alone', 'text/s', _of_it('rate_factor')),
  ('alone', 'use of it', _of_it('bytes_factor')),
  ('in_stack', 'in the stack', _times),
  ('in_stack', 'text/s', _of_it('rate_factor')),
  ('in_stack', 'use of it', _of_it('bytes_factor')),
  ('says', '', str),
)
RUNS: Columns = (
  ('name', 'run', str),
  ('n', 'seeds', str),
  ('tokens_per_second', 'tokens/s', numbers.count),
  ('bytes_per_second', 'text/s', _per_second),
  ('bytes_to_target', 'text to\ntarget', numbers.byte_size),
  ('seconds_to_target', 'time to\ntarget', numbers.duration),
  ('final_bpb', 'final\nbpb', _bpb),
  ('final_bpb_interval', '95 %', _interval),
  ('seconds_training', 'training\ntime', numbers.duration),
  ('seconds_warming', 'compiling', numbers.duration),
)
GOALS: Columns = (('against', 'against', str), ('measured', 'measured', _times), ('says', '', str))
VARIANTS: Columns = (
  ('name', 'variant', str),
  ('factor', 'times as fast', _times),
  ('final_difference', 'final bpb\nless its own', _signed),
)
TUNING: Columns = (
  ('name', 'strong baseline', str),
  ('rate', 'peak rate', '{:g}'.format),
  ('final_bpb', 'final\nbpb', _bpb),
  ('chosen', '', lambda chosen: 'chosen' if chosen else ''),
)
PARTS: Columns = (('claim', 'part', str), ('claimed', 'claimed', _part), ('found', 'found', _part), ('how', 'how', str))
TREND: Columns = (
  ('seconds', 'seconds of\nthe baselines', '{:g}'.format),
  ('baseline', 'as soon as the\nFP32 baseline', _own),
  ('strong', 'as soon as the better\nstrong baseline', _own),
)
_WORDS = {'says', 'how'}  # sentences
_NAMES = {'name', 'against'}  # of runs, which may be long
_LEFT = {'saving', 'claim', *_NAMES, *_WORDS}
_FOUND = {'factors': ('alone', 'in_stack'), 'goals': ('measured',), 'parts': ('found',), 'trend': ('baseline', 'strong')}
_FOUND |= {'variants': ('factor',), 'tuning': ('final_bpb',)}


def _says_something(result: Row, key: str) -> bool:
  """Whether any row of a table was measured; a few runs alone leave most of them open."""
  return key not in _FOUND or any(row[column] is not None for row in result[key] for column in _FOUND[key])


def command_line_tables(result: Row) -> list[Table]:
  """The same for a terminal; `result` as `study.ablation.result`, with 'parts' and 'tuning'."""
  budget = f'{result["seconds"]:g} s a run'
  return [
    tables._table(result[key], list(columns), title, left=_LEFT)
    for key, columns, title in (
      ('runs', RUNS, f'Runs, {budget}'),
      ('factors', FACTORS, f'What each saving gives, {budget}'),
      ('goals', GOALS, 'Goals'),
      ('variants', VARIANTS, 'Variants against the experiment'),
      ('parts', PARTS, 'Claims about parts'),
      ('trend', TREND, 'Over budgets'),
      ('tuning', TUNING, 'Rates of the strong baselines'),
    )
    if _says_something(result, key)
  ]


def _class(column: str) -> str:
  return 'words' if column in _WORDS else 'name' if column in _NAMES else ''


def write_page(result: Row, panels: Mapping[str, Mapping[str, RunFiles]], folder: Path) -> Path:
  """Writes FOLDER/index.html and every plot beside it as a PNG.

  Args:
    result: `study.ablation.result`, with 'parts' and 'tuning'.
    panels: title of a panel to its runs by name, at most `comparison.MOST_RUNS` each.

  Returns:
    The path of the page.
  """
  folder.mkdir(parents=True, exist_ok=True)
  drawn = [
    {'title': title, 'names': list(runs), 'plots': [_plot(title, over, x, runs, folder) for x, over in _OVER]}
    for title, runs in panels.items()
    if runs
  ]
  sections = (('What each saving gives', 'factors', FACTORS), ('Goals', 'goals', GOALS), ('The runs', 'runs', RUNS))
  sections += (('Variants against the experiment', 'variants', VARIANTS), ('Claims about parts', 'parts', PARTS))
  sections += (('Over budgets', 'trend', TREND), ('Rates of the strong baselines', 'tuning', TUNING))
  html = _TEMPLATE.render(
    css=Markup(page.CSS),
    seconds=f'{result["seconds"]:g}',
    notes=result['notes'],
    sections=[
      {
        'title': title,
        'headings': [(heading, _class(column)) for column, heading, _ in columns],
        'rows': [[(write(row[column]), _class(column)) for column, _, write in columns] for row in result[key]],
      }
      for title, key, columns in sections
      if _says_something(result, key)
    ],
    panels=drawn,
  )
  path = folder / 'index.html'
  fresh = path.with_suffix('.html.tmp')
  fresh.write_text(html, encoding='utf-8')
  os.replace(fresh, path)
  return path


def _plot(panel: str, over: str, x: str, runs: Mapping[str, RunFiles], folder: Path) -> Markup:
  title, picture = f'{panel}: held-out bits per byte over {over}', f'{panel} over {over}'
  draw = plots.curves([(name, evaluations(run), ()) for name, run in runs.items()], x, 'val_bpb', points=True)
  plots.save_png(draw, title, folder / f'{picture.lower().replace(" ", "_")}.png')
  return Markup(plots.svg(draw, title))


_TEMPLATE = page.template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Ablation, {{ seconds }} s a run · Yxanul</title>
<style>{{ css }}</style>
</head>
<body>
<main>
<header>
<p class="eyebrow">Yxanul · ablation</p>
<h1>{{ seconds }} seconds a run</h1>
{% for note in notes %}<p class="note">{{ note }}</p>
{% endfor %}
</header>
{% for section in sections %}
<section>
<h2>{{ section.title }}</h2>
<div class="wide"><table>
<thead><tr>{% for heading, kind in section.headings %}
<th scope="col"{% if kind %} class="{{ kind }}"{% endif %}>{{ heading }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in section.rows %}
<tr>{% for cell, kind in row %}<td{% if kind %} class="{{ kind }}"{% endif %}>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody>
</table></div>
</section>
{% endfor %}
{% for panel in panels %}
<section>
<h2>{{ panel.title }}</h2>
<ul class="key">
{% for name in panel.names %}<li><i style="background: var(--run-{{ loop.index }})"></i>{{ name }}</li>{% endfor %}
</ul>
<div class="plots">
{% for plot in panel.plots %}<figure>{{ plot }}</figure>
{% endfor %}
</div>
</section>
{% endfor %}
<footer>A factor is the ratio of two runs' training seconds to equal quality: until each came down to the worse of their two
final figures, of the same seed, each run annealed to its own end. A goal asks more: how much sooner than a baseline's own time
the experiment was where that one ended, in whichever of its runs was the first. Compiling is counted apart. The target is the
baseline's final figure. Curves are of the first seed. Every plot is also a PNG beside this page.</footer>
</main>
</body>
</html>
""")
