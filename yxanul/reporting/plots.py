"""Plots as inline SVG that follow the page: text stays text, and every colour is a CSS variable, so light and dark both fit.

matplotlib writes fixed colours. Each role is drawn in a colour of its own that appears nowhere else and is then replaced,
in the SVG text, by `var(--role)`.
"""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from yxanul.reporting import numbers
from yxanul.reporting.page import LIGHT

Rows = Sequence[Mapping[str, Any]]
Colours = Mapping[str, str]  # by role
Draw = Callable[[Axes, Colours], None]

# Role of a colour on the page: the colour that stands for it while matplotlib draws.
_STANDINS = {role: f'#{0xA1B200 + i:06x}' for i, role in enumerate(LIGHT)}
_SIZE_INCHES = (5.0, 3.0)  # times 72: the units of the viewBox, in which text is 9 or 10 high


def _style(colours: Colours) -> dict[str, Any]:
  return {
    'svg.fonttype': 'none',
    'font.size': 10,
    'axes.edgecolor': colours['line'],
    'axes.labelcolor': colours['muted'],
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.spines.left': False,
    'axes.grid': True,
    'axes.grid.axis': 'y',
    'axes.axisbelow': True,
    'grid.color': colours['line'],
    'grid.linewidth': 0.7,
    'text.color': colours['ink'],
    'xtick.color': colours['line'],
    'xtick.labelcolor': colours['muted'],
    'ytick.color': colours['line'],
    'ytick.labelcolor': colours['muted'],
    'ytick.major.size': 0,
    'xtick.major.size': 3,
    'lines.solid_capstyle': 'round',
    'lines.solid_joinstyle': 'round',
  }


def _figure(draw: Draw, colours: Colours) -> Figure:
  figure = Figure(figsize=_SIZE_INCHES, layout='constrained')
  figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02)
  figure.patch.set_visible(False)
  axes = figure.add_subplot()
  axes.patch.set_visible(False)
  draw(axes, colours)
  return figure


def save_png(draw: Draw, title: str, path: Path) -> None:
  """The same plot as a picture of its own, by day, with its title and the names of its lines."""

  def titled(axes: Axes, colours: Colours) -> None:
    draw(axes, colours)
    axes.set_title(title, loc='left', fontsize=11, fontweight='bold', pad=12)
    if axes.get_legend_handles_labels()[0]:
      # Beside the lines, not across them; the picture grows by what the names take.
      legend = axes.legend(frameon=False, fontsize=9, loc='upper left', bbox_to_anchor=(1.0, 1.0))
      wide = legend.get_window_extent().width / axes.figure.dpi
      axes.figure.set_size_inches(_SIZE_INCHES[0] + wide, _SIZE_INCHES[1])

  with mpl.rc_context(_style(LIGHT)):
    figure = _figure(titled, LIGHT)
    figure.savefig(path, format='png', dpi=200, facecolor=LIGHT['surface'], pad_inches=0.15, bbox_inches='tight')


def svg(draw: Draw, description: str) -> str:
  """One plot as an <svg> element that scales with its container and is described for screen readers."""
  with mpl.rc_context({**_style(_STANDINS), 'svg.hashsalt': description}):
    buffer = io.StringIO()
    metadata = dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))
    # Not savefig, which draws twice where there is a layout to find.
    FigureCanvasSVG(_figure(draw, _STANDINS)).print_svg(buffer, metadata=metadata)
  drawn = buffer.getvalue()
  drawn = drawn[drawn.index('<svg') :]
  view_box = re.search(r'viewBox="[^"]*"', drawn).group()
  body = drawn[drawn.index('>') + 1 :]
  # Groups are named figure_1, axes_1, ... in every plot; names must be unique in a page. Clip paths and glyphs are
  # named by a hash salted above, and are the only names that are referred to.
  body = re.sub(r' id="[a-zA-Z0-9.]+_[0-9_]+"', '', body)
  body = body.replace('xlink:href', 'href')
  for role, standin in _STANDINS.items():
    body = body.replace(standin, f'var(--{role})')
  label = description.replace('&', '&amp;').replace('"', '&quot;').replace('<', '&lt;')
  return f'<svg {view_box} role="img" aria-label="{label}">{body}'


def _finite(value: float | None) -> float:
  return math.nan if value is None or not math.isfinite(value) else value


def _points(lines: Rows, x: str, y: str) -> tuple[list[float], list[float]]:
  return [line[x] for line in lines], [_finite(line[y]) for line in lines]


class _UnitLocator(MaxNLocator):
  """Ticks that are round in a unit other than the data's."""

  def __init__(self, size: float):
    super().__init__(5)
    self._size = size

  def tick_values(self, vmin: float, vmax: float) -> Any:
    return super().tick_values(vmin / self._size, vmax / self._size) * self._size


_CLOCKS = {'seconds': 'on the clock', 'seconds_training': 'of training'}


def _x_axis(axes: Axes, x: str, end: float) -> None:
  axes.set_xlim(0, end or 1)
  if x in _CLOCKS:
    units = ((86400, 'days'), (3600, 'hours'), (60, 'minutes'), (1, 'seconds'))
    size, unit = next((size, unit) for size, unit in units if end >= 3 * size or size == 1)
    label = f'{unit} {_CLOCKS[x]}'
  elif x == 'bytes':
    unit, size = numbers.byte_unit(end)
    label = f'{unit} of text'
  else:
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: numbers.count(v)))
    axes.set_xlabel(x)
    return
  axes.xaxis.set_major_locator(_UnitLocator(size))
  axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f'{v / size:g}'))
  axes.set_xlabel(label)


def _mark_stages(axes: Axes, colours: Colours, stages: Rows, x: str, end: float) -> None:
  """Every other stage on a tinted band, its row length above it where there is room."""
  starts = [stage[f'start_{x}'] for stage in stages] + [end]
  for stage, start, stop in zip(stages, starts, starts[1:], strict=False):
    if stage['stage'] % 2 == 0:
      axes.axvspan(start, stop, color=colours['band'], linewidth=0)
    if stop - start > 0.025 * len(str(stage['seq_len'])) * end:
      axes.annotate(
        str(stage['seq_len']),
        ((start + stop) / 2, 1.0),
        xycoords=('data', 'axes fraction'),
        xytext=(0, 2),
        textcoords='offset points',
        ha='center',
        va='bottom',
        fontsize=9,
        color=colours['muted'],
      )


_NAME_SIZE_POINTS = (5.2, 13.0)  # width of a letter at size 9, and a line with the gap to its mark
_AXES_SIZE_POINTS = (320.0, 165.0)  # about what axis labels leave of the figure


def _draw_marks(axes: Axes, colours: Colours, marks: Mapping[str, float]) -> None:
  """Named horizontal lines over the curves that are drawn already; a name stands where nothing crosses it, if there is room."""
  (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
  curves = [np.asarray(line.get_xydata(), dtype=float) for line in axes.get_lines()]
  height = _NAME_SIZE_POINTS[1] / _AXES_SIZE_POINTS[1] * (top - bottom)
  for value in marks.values():
    axes.axhline(value, color=colours['mark'], linewidth=1, linestyle=(0, (4, 3)))

  def free(x: float, width: float, low: float) -> bool:
    if any(low < other < low + height for other in marks.values()):
      return False
    for curve in curves:
      inside = curve[(curve[:, 0] >= x - width) & (curve[:, 0] <= x), 1]
      between = np.interp(np.linspace(x - width, x, 25), curve[:, 0], curve[:, 1], left=np.nan, right=np.nan)
      if any(((ys > low) & (ys < low + height)).any() for ys in (inside, between)):
        return False
    return True

  for name, value in marks.items():
    width = _NAME_SIZE_POINTS[0] * len(name) / _AXES_SIZE_POINTS[0] * (right - left)
    edges = np.linspace(right - 0.005 * (right - left), left + width, 20)
    places = [(x, above) for x in edges for above in (True, False)]
    x, above = next((p for p in places if free(p[0], width, value if p[1] else value - height)), places[0])
    axes.annotate(
      name,
      (x, value),
      xytext=(0, 2 if above else -3),
      textcoords='offset points',
      ha='right',
      va='bottom' if above else 'top',
      fontsize=9,
      color=colours['mark'],
    )


def curve(
  lines: Rows,
  stages: Rows,
  x: str,
  y: str,
  description: str,
  *,
  held_out: tuple[Rows, str] | None = None,
  marks: Mapping[str, float] | None = None,
  log: bool = False,
  from_zero: bool = False,
  write: Callable[[float], str] = '{:g}'.format,
) -> str:
  """A figure of the training lines over 'tokens' or 'seconds', stages marked.

  Args:
    held_out: evaluation lines and their key, drawn as points on top.
    marks: named horizontal lines.
    log: a logarithmic axis.
    from_zero: the axis starts at zero.
    write: how a tick of the y axis is written.
  """

  def draw(axes: Axes, colours: Colours) -> None:
    xs, ys = _points(lines, x, y)
    axes.plot(xs, ys, color=colours['train'], linewidth=1.4)
    if len(xs) == 1:
      axes.plot(xs, ys, 'o', color=colours['train'], markersize=4)
    end = xs[-1] if xs else 0
    if held_out and held_out[0]:
      xs_held, ys_held = _points(held_out[0], x, held_out[1])
      axes.plot(xs_held, ys_held, '-o', color=colours['held'], linewidth=1, markersize=3.6)
      end = max(end, xs_held[-1])
    if log:
      axes.set_yscale('log')
      axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
      axes.yaxis.set_minor_locator(NullLocator())
    axes.update_datalim([(0, value) for value in (marks or {}).values()])
    axes.margins(y=0.09)
    axes.autoscale_view()
    if from_zero:
      axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: write(v)))
    _x_axis(axes, x, end)
    _mark_stages(axes, colours, stages, x, end)
    _draw_marks(axes, colours, marks or {})

  return svg(draw, description)


def stage_bars(stages: Rows, y: str, description: str, write: Callable[[float], str]) -> str:
  """A bar for each stage's figure `y`, its value on top as `write` has it (short: bars are narrow)."""

  def draw(axes: Axes, colours: Colours) -> None:
    values = [_finite(stage[y]) for stage in stages]
    bars = axes.bar(range(len(values)), values, width=0.74, color=colours['bar'])
    axes.bar_label(bars, ['' if math.isnan(v) else write(v) for v in values], padding=2, fontsize=9, color=colours['ink'])
    axes.set_xticks(range(len(values)), [f'{stage["seq_len"]}' for stage in stages])
    axes.tick_params(axis='x', length=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: write(v)))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.margins(y=0.12)
    axes.set_xlabel('length of the stage’s rows')

  return svg(draw, description)


def curves(runs: Sequence[tuple[str, Rows, Rows]], x: str, y: str, *, points: bool = False) -> Draw:
  """One figure of several runs in one plot, over 'tokens', 'bytes', 'seconds' or 'seconds_training'.

  What lies above everything after the first twentieth is cut off: the fall from a blank model would leave no room for the rest.

  Args:
    runs: of each run its name, its lines, and lines to draw palely behind them (such as before smoothing).
    points: mark every line with a point.
  """

  def draw(axes: Axes, colours: Colours) -> None:
    end = max((lines[-1][x] for _, lines, _ in runs if lines), default=0)
    late = []
    for i, (name, lines, behind) in enumerate(runs, start=1):
      colour = colours[f'run-{i}']
      axes.plot(*_points(behind, x, y), color=colour, linewidth=0.7, alpha=0.3)
      axes.plot(*_points(lines, x, y), '-o' if points else '-', color=colour, linewidth=1.4, markersize=3.2, label=name)
      late += [_finite(line[y]) for line in (*lines, *behind) if line[x] >= end / 20]
    late = [value for value in late if not math.isnan(value)]
    if late:
      room = 0.06 * (max(late) - min(late)) or 0.1
      axes.set_ylim(min(late) - room, max(late) + room)
    _x_axis(axes, x, 1.01 * end)  # the last point whole

  return draw
