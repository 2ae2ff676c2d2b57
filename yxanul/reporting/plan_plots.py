"""A plan as one picture: where the time of a token goes at each length, and what fills the card."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from yxanul.reporting import plots
from yxanul.reporting.page import LIGHT

Row = Mapping[str, Any]

# The same colour for what costs time and memory both.
_COLOURS = {
  'linears': 1, 'casts': 2, 'attention': 3, 'loss': 4, 'optimizer': 5, 'elementwise': 6, 'gaps': 7, 'exchange': 8,
  'parameters': 1, 'weight_copies': 2, 'activations': 3, 'vocab_loss': 4, 'workspace': 6, 'gradients': 7, 'gather': 8,
}  # fmt: skip
_NAMES = {'parameters': 'model', 'weight_copies': 'copies', 'vocab_loss': 'loss', 'workspace': 'backward'}  # as in the tables


def save(plan: Row, path: Path) -> None:
  """Writes the picture; the ending of `path` says as what (png, svg, pdf)."""
  stages = plan['stages']
  times = {
    part: [1e6 * stage['ms_by_part'][part] / stage['tokens_per_step'] for stage in stages] for part in stages[0]['ms_by_part']
  }
  memory = {part: [stage['memory'][part] / 1e9 for stage in stages] for part in stages[0]['memory']}
  with mpl.rc_context(plots._style(LIGHT)):
    figure = Figure(figsize=(10.5, 4.2), layout='constrained')
    left, right = figure.subplots(1, 2)
    lengths = [stage['seq_len'] for stage in stages]
    _stack(left, lengths, times)
    left.set_title(f'{plan["experiment"]} on {plan["gpu"]}: nanoseconds a token', loc='left', fontsize=11, fontweight='bold')
    _stack(right, lengths, memory)
    right.set_title('memory at its peak, GB', loc='left', fontsize=11, fontweight='bold')
    limit = plan['memory_limit_bytes'] / 1e9
    right.axhline(limit, color=LIGHT['ink'], linewidth=1, linestyle=(0, (4, 3)))
    right.annotate(
      f'limit {limit:.3g}',
      (0.0, limit),
      xycoords=('axes fraction', 'data'),
      xytext=(2, 3),
      textcoords='offset points',
      fontsize=9,
    )
    figure.savefig(path, dpi=160, facecolor=LIGHT['surface'])


def _stack(axes: Axes, lengths: Sequence[int], parts: Mapping[str, Sequence[float]]) -> None:
  below = [0.0] * len(lengths)
  drawn = {part: values for part, values in parts.items() if any(values)}
  for part, values in drawn.items():
    axes.bar(
      range(len(lengths)), values, bottom=below, width=0.74, color=LIGHT[f'run-{_COLOURS[part]}'], label=_NAMES.get(part, part)
    )
    below = [a + b for a, b in zip(below, values, strict=True)]
  axes.set_xticks(range(len(lengths)), [str(n) for n in lengths])
  axes.tick_params(axis='x', length=0, labelsize=7.5)  # so that 1536 and 2048 stand apart
  axes.set_xlabel('length of the stage’s rows')
  axes.margins(y=0.12)
  handles, names = axes.get_legend_handles_labels()
  axes.legend(handles[::-1], names[::-1], frameon=False, fontsize=9, loc='upper left', bbox_to_anchor=(1.0, 1.0))
