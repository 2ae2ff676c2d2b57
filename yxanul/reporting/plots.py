"""Plots as inline SVG that follow the page: text stays text, and every colour is a CSS variable, so light and dark both fit.

matplotlib writes fixed colours. Each role is drawn in a colour of its own that appears nowhere else and is then replaced,
in the SVG text, by `var(--role)`.
"""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from yxanul.reporting import numbers

Rows = Sequence[Mapping[str, Any]]

# Role of a colour on the page: the colour that stands for it while matplotlib draws.
_STANDINS = {
  name: f'#{0xA1B200 + i:06x}' for i, name in enumerate(('ink', 'muted', 'line', 'band', 'train', 'held', 'bar', 'mark'))
}
_SIZE_INCHES = (5.0, 3.0)  # times 72: the units of the viewBox, in which text is 9 or 10 high
_STYLE = {
  'svg.fonttype': 'none',
  'font.size': 10,
  'axes.edgecolor': _STANDINS['line'],
  'axes.labelcolor': _STANDINS['muted'],
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.spines.left': False,
  'axes.grid': True,
  'axes.grid.axis': 'y',
  'axes.axisbelow': True,
  'grid.color': _STANDINS['line'],
  'grid.linewidth': 0.7,
  'text.color': _STANDINS['ink'],
  'xtick.color': _STANDINS['line'],
  'xtick.labelcolor': _STANDINS['muted'],
  'ytick.color': _STANDINS['line'],
  'ytick.labelcolor': _STANDINS['muted'],
  'ytick.major.size': 0,
  'xtick.major.size': 3,
  'lines.solid_capstyle': 'round',
  'lines.solid_joinstyle': 'round',
}


def _svg(draw: Callable[[Axes], None], description: str) -> str:
  """One plot as an <svg> element that scales with its container and is described for screen readers."""
  with mpl.rc_context({**_STYLE, 'svg.hashsalt': description}):
    figure = Figure(figsize=_SIZE_INCHES, layout='constrained')
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02)
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    draw(axes)
    buffer = io.StringIO()
    figure.savefig(buffer, format='svg', metadata=dict.fromkeys(('Creator', 'Date', 'Format', 'Type')))
  svg = buffer.getvalue()
  svg = svg[svg.index('<svg') :]
  view_box = re.search(r'viewBox="[^"]*"', svg).group()
  body = svg[svg.index('>') + 1 :]
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


def _x_axis(axes: Axes, x: str, end: float) -> None:
  axes.set_xlim(0, end or 1)
  if x == 'tokens':
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: numbers.count(v)))
    axes.set_xlabel('tokens')
  else:
    units = ((86400, 'days'), (3600, 'hours'), (60, 'minutes'), (1, 'seconds'))
    size, unit = next((size, unit) for size, unit in units if end >= 3 * size or size == 1)
    axes.xaxis.set_major_locator(_UnitLocator(size))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f'{v / size:g}'))
    axes.set_xlabel(f'{unit} on the clock')


def _mark_stages(axes: Axes, stages: Rows, x: str, end: float) -> None:
  """Every other stage on a tinted band, its row length above it where there is room."""
  starts = [stage[f'start_{x}'] for stage in stages] + [end]
  for stage, start, stop in zip(stages, starts, starts[1:], strict=False):
    if stage['stage'] % 2 == 0:
      axes.axvspan(start, stop, color=_STANDINS['band'], linewidth=0)
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
        color=_STANDINS['muted'],
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

  def draw(axes: Axes) -> None:
    xs, ys = _points(lines, x, y)
    axes.plot(xs, ys, color=_STANDINS['train'], linewidth=1.4)
    if len(xs) == 1:
      axes.plot(xs, ys, 'o', color=_STANDINS['train'], markersize=4)
    end = xs[-1] if xs else 0
    if held_out and held_out[0]:
      xs_held, ys_held = _points(held_out[0], x, held_out[1])
      axes.plot(xs_held, ys_held, '-o', color=_STANDINS['held'], linewidth=1, markersize=3.6)
      end = max(end, xs_held[-1])
    if log:
      axes.set_yscale('log')
      axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
      axes.yaxis.set_minor_locator(NullLocator())
    for name, value in (marks or {}).items():
      below = value < min(ys, default=value)  # its name must not cross the curve
      axes.axhline(value, color=_STANDINS['mark'], linewidth=1, linestyle=(0, (4, 3)))
      axes.annotate(
        name,
        (0.995, value),
        xycoords=('axes fraction', 'data'),
        xytext=(0, -3 if below else 2),
        textcoords='offset points',
        ha='right',
        va='top' if below else 'bottom',
        fontsize=9,
        color=_STANDINS['mark'],
      )
    axes.margins(y=0.09)
    if from_zero:
      axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: write(v)))
    _x_axis(axes, x, end)
    _mark_stages(axes, stages, x, end)

  return _svg(draw, description)


def stage_bars(stages: Rows, y: str, description: str, write: Callable[[float], str]) -> str:
  """A bar for each stage's figure `y`, its value on top as `write` has it (short: bars are narrow)."""

  def draw(axes: Axes) -> None:
    values = [_finite(stage[y]) for stage in stages]
    bars = axes.bar(range(len(values)), values, width=0.74, color=_STANDINS['bar'])
    axes.bar_label(bars, ['' if math.isnan(v) else write(v) for v in values], padding=2, fontsize=9, color=_STANDINS['ink'])
    axes.set_xticks(range(len(values)), [f'{stage["seq_len"]}' for stage in stages])
    axes.tick_params(axis='x', length=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: write(v)))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.margins(y=0.12)
    axes.set_xlabel('length of the stage’s rows')

  return _svg(draw, description)
