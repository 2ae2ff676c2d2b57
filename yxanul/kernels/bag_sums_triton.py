"""`bag_sums` in Triton: a program a few bags, of each of which it reads a few rows at a time."""

import triton
import triton.language as tl
from torch import Tensor

_BAGS = 4  # of a program, where rows are narrow
_ROWS = 4  # of a bag that are read at a time
_COLUMNS = 256  # of a program's bags together: its registers hold them, times the rows


def bag_sums(x_UH: Tensor, rows_E: Tensor, starts_B: Tensor, weights_E: Tensor) -> Tensor:
  """As `kernels.bag_sums.bag_sums`."""
  n_bags, width = len(starts_B), x_UH.shape[1]
  sums_BH = x_UH.new_empty((n_bags, width))
  padded = triton.next_power_of_2(width)
  bags = max(1, min(_BAGS, _COLUMNS // padded))
  sizes = n_bags, len(rows_E), width, padded
  _bags[(triton.cdiv(n_bags, bags),)](x_UH, rows_E, starts_B, weights_E, sums_BH, *sizes, bags, _ROWS, num_warps=1)
  return sums_BH


@triton.jit
def _bags(x, rows, starts, weights, sums, n_bags, n_rows, width, WIDTH: tl.constexpr, BAGS: tl.constexpr, ROWS: tl.constexpr):
  bag = tl.program_id(0) * BAGS + tl.arange(0, BAGS)
  start = tl.load(starts + bag, mask=bag < n_bags, other=n_rows)
  end = tl.load(starts + bag + 1, mask=bag + 1 < n_bags, other=n_rows)
  columns = tl.arange(0, WIDTH)
  total = tl.zeros((BAGS, WIDTH), tl.float32)
  for first in range(0, tl.max(end - start, 0), ROWS):
    at = start[:, None] + first + tl.arange(0, ROWS)[None, :]
    is_in = at < end[:, None]
    row = tl.load(rows + at, mask=is_in, other=0).to(tl.int64)
    weight = tl.load(weights + at, mask=is_in, other=0.0)
    mask = is_in[:, :, None] & (columns < width)[None, None, :]
    values = tl.load(x + row[:, :, None] * width + columns[None, None, :], mask=mask, other=0.0)
    total += tl.sum(weight[:, :, None] * values, 1)
  mask = (bag < n_bags)[:, None] & (columns < width)[None, :]
  tl.store(sums + bag[:, None].to(tl.int64) * width + columns[None, :], total, mask=mask)
