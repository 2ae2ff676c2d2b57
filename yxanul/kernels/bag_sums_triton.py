"""`bag_sums` in Triton: a program a bag, which it reads a few rows at a time."""

import triton
import triton.language as tl
from torch import Tensor

_ROWS = 8  # that are read at a time


def bag_sums(x_UH: Tensor, rows_E: Tensor, starts_B: Tensor, weights_E: Tensor) -> Tensor:
  """As `kernels.bag_sums.bag_sums`."""
  sums_BH = x_UH.new_empty((len(starts_B), x_UH.shape[1]))
  width = x_UH.shape[1]
  _bag[(len(starts_B),)](
    x_UH, rows_E, starts_B, weights_E, sums_BH, len(rows_E), width, triton.next_power_of_2(width), _ROWS, num_warps=1
  )
  return sums_BH


@triton.jit
def _bag(x, rows, starts, weights, sums, n_rows, width, WIDTH: tl.constexpr, ROWS: tl.constexpr):
  bag = tl.program_id(0).to(tl.int64)
  start = tl.load(starts + bag)
  is_last = bag == tl.num_programs(0) - 1
  end = tl.load(starts + bag + 1, mask=~is_last, other=n_rows)
  columns = tl.arange(0, WIDTH)
  total = tl.zeros((WIDTH,), tl.float32)
  for first in range(start, end, ROWS):
    at = first + tl.arange(0, ROWS)
    row = tl.load(rows + at, mask=at < end, other=0)
    weight = tl.load(weights + at, mask=at < end, other=0.0)
    values = tl.load(x + row[:, None] * width + columns, mask=(at < end)[:, None] & (columns < width), other=0.0)
    total += tl.sum(weight[:, None] * values, 0)
  tl.store(sums + bag * width + columns, total, mask=columns < width)
