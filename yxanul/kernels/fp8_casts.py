"""Casts to FP8 as Triton kernels, fused with what produces the tensor: RMSNorm, SwiGLU and its gradient.

Every kernel reads a tile once, computes in float32, and writes it rounded to FP8 as it is and transposed (tensor cores take
both operands with the summed axis last, so a backward pass needs the transpose); beside it the tile's max |y| raises the
tensor's amax. They are bound by memory: the floor is bytes read plus written over bandwidth.

Functions mirror `fp8_reference`. Shapes: M rows (tokens), K columns, F = 2K gate and up side by side.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from yxanul.kernels.fp8_formats import BACKWARD, FORWARD, LARGEST, Matrix

# Rows and columns of a tile, and the warps that work on it.
CAST_TILE, SWIGLU_TILE, DSWIGLU_TILE, NORM_TILE = (128, 128, 8), (64, 128, 8), (64, 128, 8), (64, 128, 8)
BACKWARD_ROWS, BACKWARD_PROGRAMS = 8, 1056  # of norm_backward: rows at a time; programs, each with one partial sum of the gain

# What results are stored as. Triton's interpreter rounds to FP8 wrongly: tests under it store float32 and round themselves.
STORAGE = {FORWARD: FORWARD, BACKWARD: BACKWARD}


class _Output:
  """Memory for a cast matrix of M by K: itself, its transpose, the inverse of the scale."""

  def __init__(self, m: int, k: int, dtype: torch.dtype, row: bool, column: bool, device: torch.device):
    self.dtype = dtype
    self.row = torch.empty((m, k) if row else (0,), dtype=STORAGE[dtype], device=device)
    self.column = torch.empty((k, m) if column else (0,), dtype=STORAGE[dtype], device=device)
    self.scale_inv = torch.empty(1, device=device)
    self.flags = {'ROW': row, 'COLUMN': column, 'LARGEST': LARGEST[dtype]}

  def matrices(self) -> tuple[Matrix | None, Matrix | None]:
    row = Matrix(self.row, self.scale_inv, self.dtype) if self.flags['ROW'] else None
    return row, Matrix(self.column, self.scale_inv, self.dtype) if self.flags['COLUMN'] else None


def cast(
  x_MK: Tensor, scale_1: Tensor, amax_1: Tensor, dtype: torch.dtype, row: bool, column: bool
) -> tuple[Matrix | None, Matrix | None]:
  """As `fp8_reference.cast`."""
  m, k = x_MK.shape
  out = _Output(m, k, dtype, row, column, x_MK.device)
  rows, columns, warps = CAST_TILE
  _cast_kernel[(triton.cdiv(m, rows), triton.cdiv(k, columns))](
    x_MK, scale_1, amax_1, out.scale_inv, out.row, out.column, m, k, BM=rows, BK=columns, num_warps=warps, **out.flags
  )
  return out.matrices()


def norm_cast(
  x_MK: Tensor, delta_MK: Tensor | None, gain_K: Tensor, eps: float, scale_1: Tensor, amax_1: Tensor, column: bool
) -> tuple[Matrix, Matrix | None, Tensor, Tensor]:
  """As `fp8_reference.norm_cast`."""
  m, k = x_MK.shape
  out = _Output(m, k, FORWARD, True, column, x_MK.device)
  rstd_M = torch.empty(m, device=x_MK.device)
  sum_MK = x_MK if delta_MK is None else torch.empty_like(x_MK)
  rows, columns, warps = NORM_TILE
  _norm_cast_kernel[(triton.cdiv(m, rows),)](
    x_MK, delta_MK, sum_MK, gain_K, rstd_M, scale_1, amax_1, out.scale_inv, out.row, out.column, m, k, eps,
    ADD=delta_MK is not None, BM=rows, BK=columns, num_warps=warps, **out.flags,
  )  # fmt: skip
  return *out.matrices(), rstd_M, sum_MK


def norm_backward(dy_MK: Tensor, x_MK: Tensor, rstd_M: Tensor, gain_K: Tensor, residual_MK: Tensor) -> tuple[Tensor, Tensor]:
  """As `fp8_reference.norm_backward`."""
  m, k = x_MK.shape
  dx_MK = torch.empty_like(x_MK)
  programs = min(BACKWARD_PROGRAMS, triton.cdiv(m, BACKWARD_ROWS))
  partial_PK = torch.empty((programs, k), device=x_MK.device)
  _norm_backward_kernel[(programs,)](
    dy_MK, x_MK, rstd_M, gain_K, residual_MK, dx_MK, partial_PK, m, k,
    BM=BACKWARD_ROWS, BK=triton.next_power_of_2(k), num_warps=4,
  )  # fmt: skip
  return dx_MK, partial_PK.sum(0).to(gain_K.dtype)


def swiglu_cast(h_MF: Tensor, scale_1: Tensor, amax_1: Tensor, column: bool) -> tuple[Matrix, Matrix | None]:
  """As `fp8_reference.swiglu_cast`."""
  m, k = h_MF.shape[0], h_MF.shape[1] // 2
  out = _Output(m, k, FORWARD, True, column, h_MF.device)
  rows, columns, warps = SWIGLU_TILE
  _swiglu_cast_kernel[(triton.cdiv(m, rows), triton.cdiv(k, columns))](
    h_MF, scale_1, amax_1, out.scale_inv, out.row, out.column, m, k, BM=rows, BK=columns, num_warps=warps, **out.flags
  )
  return out.matrices()


def dswiglu_cast(
  dy_MK: Tensor, h_MF: Tensor, scale_1: Tensor, amax_1: Tensor, row: bool, column: bool
) -> tuple[Matrix | None, Matrix | None]:
  """As `fp8_reference.dswiglu_cast`."""
  m, k = dy_MK.shape
  out = _Output(m, 2 * k, BACKWARD, row, column, h_MF.device)
  rows, columns, warps = DSWIGLU_TILE
  _dswiglu_cast_kernel[(triton.cdiv(m, rows), triton.cdiv(k, columns))](
    dy_MK, h_MF, scale_1, amax_1, out.scale_inv, out.row, out.column, m, k, BM=rows, BK=columns, num_warps=warps, **out.flags
  )
  return out.matrices()


@triton.jit
def _write(
  y, rows, columns, m, k, stride, row_ptr, column_ptr, scale_ptr, amax_ptr,
  ROW: tl.constexpr, COLUMN: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
  """Casts a tile of a (m, k) result and writes it both ways, rows `stride` apart. Outside the result y is zero."""
  tl.atomic_max(amax_ptr, tl.max(tl.abs(y)))
  inside = (rows < m)[:, None] & (columns < k)[None, :]
  if ROW:
    row = _saturate(y * tl.load(scale_ptr), LARGEST)
    tl.store(row_ptr + rows.to(tl.int64)[:, None] * stride + columns[None, :], row.to(row_ptr.dtype.element_ty), inside)
  if COLUMN:
    # Casts anew, by a scale that the compiler cannot know to be the same: ptxas 12.8 (Triton 3.6) loses half of the values
    # when one conversion to FP8 feeds both stores. Seen on an H200; the tests compare both results bit for bit.
    column = _saturate(y * tl.load(scale_ptr, volatile=True), LARGEST)
    places = column_ptr + columns.to(tl.int64)[:, None] * m + rows[None, :]
    tl.store(places, tl.trans(column.to(column_ptr.dtype.element_ty)), tl.trans(inside))


@triton.jit
def _saturate(y, LARGEST: tl.constexpr):
  # Explicit, and passing NaN on: a conversion alone does not saturate everywhere, and a NaN must not become a number.
  return tl.clamp(y, -LARGEST, LARGEST, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _tile(BM: tl.constexpr, BK: tl.constexpr, scale_ptr, scale_inv_ptr):
  """This program's rows and columns; the first program writes the inverse of the scale."""
  if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
    tl.store(scale_inv_ptr, 1.0 / tl.load(scale_ptr))
  return tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1) * BK + tl.arange(0, BK)


@triton.jit
def _read(ptr, rows, columns, m, k, stride):
  inside = (rows < m)[:, None] & (columns < k)[None, :]
  return tl.load(ptr + rows.to(tl.int64)[:, None] * stride + columns[None, :], inside, 0.0).to(tl.float32)


@triton.jit
def _cast_kernel(
  x_ptr, scale_ptr, amax_ptr, scale_inv_ptr, row_ptr, column_ptr, m, k,
  BM: tl.constexpr, BK: tl.constexpr, ROW: tl.constexpr, COLUMN: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
  rows, columns = _tile(BM, BK, scale_ptr, scale_inv_ptr)
  x = _read(x_ptr, rows, columns, m, k, k)
  _write(x, rows, columns, m, k, k, row_ptr, column_ptr, scale_ptr, amax_ptr, ROW, COLUMN, LARGEST)


@triton.jit
def _swiglu_cast_kernel(
  h_ptr, scale_ptr, amax_ptr, scale_inv_ptr, row_ptr, column_ptr, m, k,
  BM: tl.constexpr, BK: tl.constexpr, ROW: tl.constexpr, COLUMN: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
  rows, columns = _tile(BM, BK, scale_ptr, scale_inv_ptr)
  gate = _read(h_ptr, rows, columns, m, k, 2 * k)
  up = _read(h_ptr + k, rows, columns, m, k, 2 * k)
  y = gate * tl.sigmoid(gate) * up
  _write(y, rows, columns, m, k, k, row_ptr, column_ptr, scale_ptr, amax_ptr, ROW, COLUMN, LARGEST)


@triton.jit
def _dswiglu_cast_kernel(
  dy_ptr, h_ptr, scale_ptr, amax_ptr, scale_inv_ptr, row_ptr, column_ptr, m, k,
  BM: tl.constexpr, BK: tl.constexpr, ROW: tl.constexpr, COLUMN: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
  rows, columns = _tile(BM, BK, scale_ptr, scale_inv_ptr)
  dy = _read(dy_ptr, rows, columns, m, k, k)
  gate = _read(h_ptr, rows, columns, m, k, 2 * k)
  up = _read(h_ptr + k, rows, columns, m, k, 2 * k)
  sigmoid = tl.sigmoid(gate)
  dgate = dy * up * sigmoid * (1 + gate * (1 - sigmoid))
  dup = dy * gate * sigmoid
  _write(dgate, rows, columns, m, k, 2 * k, row_ptr, column_ptr, scale_ptr, amax_ptr, ROW, COLUMN, LARGEST)
  second = column_ptr + m.to(tl.int64) * k
  _write(dup, rows, columns, m, k, 2 * k, row_ptr + k, second, scale_ptr, amax_ptr, ROW, COLUMN, LARGEST)


@triton.jit
def _norm_cast_kernel(
  x_ptr, delta_ptr, sum_ptr, gain_ptr, rstd_ptr, scale_ptr, amax_ptr, scale_inv_ptr, row_ptr, column_ptr, m, k, eps,
  ADD: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, ROW: tl.constexpr, COLUMN: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
  rows, first = _tile(BM, BK, scale_ptr, scale_inv_ptr)
  square = tl.zeros([BM], tl.float32)
  for start in range(0, k, BK):
    columns = start + first
    x = _read(x_ptr, rows, columns, m, k, k)
    if ADD:
      x += _read(delta_ptr, rows, columns, m, k, k)
      x = x.to(sum_ptr.dtype.element_ty)
      inside = (rows < m)[:, None] & (columns < k)[None, :]
      tl.store(sum_ptr + rows.to(tl.int64)[:, None] * k + columns[None, :], x, inside)
      x = x.to(tl.float32)
    square += tl.sum(x * x, 1)
  rstd = tl.rsqrt(square / k + eps)
  tl.store(rstd_ptr + rows, rstd, rows < m)
  if ADD:
    tl.debug_barrier()  # what other threads of this program wrote is read back below, from the cache
  for start in range(0, k, BK):
    columns = start + first
    x = _read(sum_ptr, rows, columns, m, k, k)
    gain = tl.load(gain_ptr + columns, columns < k, 0.0).to(tl.float32)
    y = x * rstd[:, None] * gain[None, :]
    _write(y, rows, columns, m, k, k, row_ptr, column_ptr, scale_ptr, amax_ptr, ROW, COLUMN, LARGEST)


@triton.jit
def _norm_backward_kernel(
  dy_ptr, x_ptr, rstd_ptr, gain_ptr, residual_ptr, dx_ptr, partial_ptr, m, k, BM: tl.constexpr, BK: tl.constexpr
):
  columns = tl.arange(0, BK)
  gain = tl.load(gain_ptr + columns, columns < k, 0.0).to(tl.float32)
  total = tl.zeros([BK], tl.float32)
  for start in range(tl.program_id(0) * BM, m, tl.num_programs(0) * BM):
    rows = start + tl.arange(0, BM)
    dy = _read(dy_ptr, rows, columns, m, k, k)
    rstd = tl.load(rstd_ptr + rows, rows < m, 0.0)
    normed = _read(x_ptr, rows, columns, m, k, k) * rstd[:, None]
    scaled = dy * gain[None, :]
    dx = rstd[:, None] * (scaled - normed * (tl.sum(scaled * normed, 1) / k)[:, None])
    dx += _read(residual_ptr, rows, columns, m, k, k)
    inside = (rows < m)[:, None] & (columns < k)[None, :]
    tl.store(dx_ptr + rows.to(tl.int64)[:, None] * k + columns[None, :], dx.to(dx_ptr.dtype.element_ty), inside)
    total += tl.sum(dy * normed, 0)
  tl.store(partial_ptr + tl.program_id(0) * k + columns, total, columns < k)
