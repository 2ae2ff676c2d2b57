"""Casts to FP8 as Triton kernels, fused with what produces the tensor: RMSNorm, SwiGLU and its gradient.

Every kernel reads a tile once, computes in float32, and writes it rounded to FP8 as it is and transposed (tensor cores take
both operands with the summed axis last, so a backward pass needs the transpose); beside it the tile's max |y| raises the
tensor's amax. They are bound by memory: the floor is bytes read plus written over bandwidth, if there are few enough
instructions.

A program's rows come as four tiles, of the rows 4i, 4i + 1, 4i + 2 and 4i + 3, whose values lie in the same places. So the four
bytes that are neighbours in the transpose meet in one thread, which converts them in two instructions and packs them into one
word; words, not bytes, go through shared memory to be transposed.

Functions mirror `fp8_reference`. Shapes: M rows (tokens), K columns, F = 2K gate and up side by side. M is a multiple of 4.

Tried and rejected: one conversion for both copies and a transpose of bytes. It takes a store to shared memory for each byte,
and ptxas 12.8 (Triton 3.6) loses half of the values when one conversion feeds two stores (seen on an H200).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from yxanul.kernels.fp8_formats import BACKWARD, FORWARD, LARGEST, Matrix

# Rows and columns of a tile, the warps that work on it, registers at most. Of the norm, rows and columns read at a time.
CAST_TILE, SWIGLU_TILE, DSWIGLU_TILE = (128, 128, 8, None), (64, 128, 8, None), (64, 128, 8, None)
NORM_TILE = (32, 256, 8, 128)  # two programs to a multiprocessor: one loads while the other computes
BACKWARD_ROWS, BACKWARD_PROGRAMS = 8, 1056  # of norm_backward: rows at a time; programs, each with one partial sum of the gain

# What results are stored as. Triton's interpreter rounds to FP8 wrongly and knows no PTX: tests under it store float32 and
# round themselves.
STORAGE = {FORWARD: FORWARD, BACKWARD: BACKWARD}
# d = c b a e: four conversions to nearest even that saturate and pass NaN on, the first in the lowest byte.
_PACK_ASM = """{{ .reg .b16 low, high;
cvt.rn.satfinite.{0}x2.f32 low, $2, $1;
cvt.rn.satfinite.{0}x2.f32 high, $4, $3;
mov.b32 $0, {{low, high}}; }}"""
PACK_E4M3, PACK_E5M2 = tl.constexpr(_PACK_ASM.format('e4m3')), tl.constexpr(_PACK_ASM.format('e5m2'))
# 1 / (1 + 2^(-x log2 e)) without the care that tl.sigmoid takes of subnormal numbers: five instructions for fourteen.
SIGMOID = tl.constexpr("""{ .reg .f32 t;
mul.f32 t, $1, 0fBFB8AA3B;
ex2.approx.ftz.f32 t, t;
add.f32 t, t, 0f3F800000;
rcp.approx.ftz.f32 $0, t; }""")


class Output:
  """Memory for a cast matrix of M by K: itself, its transpose, the inverse of the scale."""

  def __init__(self, m: int, k: int, dtype: torch.dtype, row: bool, column: bool, device: torch.device):
    assert m % 4 == 0, m
    self.dtype = dtype
    self.row = torch.empty((m, k) if row else (0,), dtype=STORAGE[dtype], device=device)
    self.column = torch.empty((k, m) if column else (0,), dtype=STORAGE[dtype], device=device)
    self.scale_inv = torch.empty(1, device=device)
    native = STORAGE[dtype] is dtype
    self.words = self.column.view(torch.int32) if native else self.column
    self.flags = {'ROW': row, 'COLUMN': column, 'LARGEST': LARGEST[dtype], 'NATIVE': native}

  def matrices(self) -> tuple[Matrix | None, Matrix | None]:
    row = Matrix(self.row, self.scale_inv, self.dtype) if self.flags['ROW'] else None
    return row, Matrix(self.column, self.scale_inv, self.dtype) if self.flags['COLUMN'] else None


def cast(
  x_MK: Tensor, scale_1: Tensor, amax_1: Tensor, dtype: torch.dtype, row: bool, column: bool
) -> tuple[Matrix | None, Matrix | None]:
  """As `fp8_reference.cast`."""
  m, k = x_MK.shape
  out = Output(m, k, dtype, row, column, x_MK.device)
  return _launch(_cast_kernel, CAST_TILE, (x_MK,), scale_1, amax_1, out, m, k)


def _launch(kernel, tile: tuple, inputs: tuple[Tensor, ...], scale_1: Tensor, amax_1: Tensor, out: Output, m: int, k: int):
  rows, columns, warps, registers = tile
  kernel[(triton.cdiv(m, rows), triton.cdiv(k, columns))](
    *inputs, scale_1, amax_1, out.scale_inv, out.row, out.words, m, k,
    BM=rows, BK=columns, num_warps=warps, maxnreg=registers, **out.flags,
  )  # fmt: skip
  return out.matrices()


def norm_cast(
  x_MK: Tensor, delta_MK: Tensor | None, gain_K: Tensor, eps: float, scale_1: Tensor, amax_1: Tensor, column: bool
) -> tuple[Matrix, Matrix | None, Tensor, Tensor]:
  """As `fp8_reference.norm_cast`."""
  m, k = x_MK.shape
  out = Output(m, k, FORWARD, True, column, x_MK.device)
  rstd_M = torch.empty(m, device=x_MK.device)
  sum_MK = x_MK if delta_MK is None else torch.empty_like(x_MK)
  rows, columns, warps, registers = NORM_TILE
  _norm_cast_kernel[(triton.cdiv(m, rows),)](
    x_MK, delta_MK, sum_MK, gain_K, rstd_M, scale_1, amax_1, out.scale_inv, out.row, out.words, m, k, eps,
    ADD=delta_MK is not None, BM=rows, BK=columns, CHUNKS=triton.cdiv(k, columns),
    num_warps=warps, maxnreg=registers, **out.flags,
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
  out = Output(m, k, FORWARD, True, column, h_MF.device)
  return _launch(_swiglu_cast_kernel, SWIGLU_TILE, (h_MF,), scale_1, amax_1, out, m, k)


def dswiglu_cast(
  dy_MK: Tensor, h_MF: Tensor, scale_1: Tensor, amax_1: Tensor, row: bool, column: bool
) -> tuple[Matrix | None, Matrix | None]:
  """As `fp8_reference.dswiglu_cast`."""
  m, k = dy_MK.shape
  out = Output(m, 2 * k, BACKWARD, row, column, h_MF.device)
  return _launch(_dswiglu_cast_kernel, DSWIGLU_TILE, (dy_MK, h_MF), scale_1, amax_1, out, m, k)


@triton.jit
def _tile(BM: tl.constexpr, BK: tl.constexpr, scale_ptr, scale_inv_ptr):
  """Which fours of rows this program has, and its columns; the first program writes the inverse of the scale."""
  if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
    tl.store(scale_inv_ptr, 1.0 / tl.load(scale_ptr))
  return tl.program_id(0) * (BM // 4) + tl.arange(0, BM // 4), tl.program_id(1) * BK + tl.arange(0, BK)


@triton.jit
def _read(ptr, rows, columns, m, k, stride):
  inside = (rows < m)[:, None] & (columns < k)[None, :]
  return tl.load(ptr + rows.to(tl.int64)[:, None] * stride + columns[None, :], inside, 0.0).to(tl.float32)


@triton.jit
def largest(y_0, y_1, y_2, y_3):
  """max |y| of four tiles, place by place."""
  return tl.maximum(tl.maximum(tl.abs(y_0), tl.abs(y_1)), tl.maximum(tl.abs(y_2), tl.abs(y_3)))


@triton.jit
def write(
  y_0, y_1, y_2, y_3, fours, columns, m, k, stride, row_ptr, column_ptr, scale,
  ROW: tl.constexpr, COLUMN: tl.constexpr, LARGEST: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
  """Casts the rows of some fours of a (m, k) result and writes them both ways, rows `stride` apart. Outside it y is zero."""
  first = 4 * fours
  y_0, y_1, y_2, y_3 = y_0 * scale, y_1 * scale, y_2 * scale, y_3 * scale
  inside = (fours < m // 4)[:, None] & (columns < k)[None, :]
  if ROW:
    places = row_ptr + first.to(tl.int64)[:, None] * stride + columns[None, :]
    _store(places, y_0, inside, LARGEST, NATIVE)
    _store(places + stride, y_1, inside, LARGEST, NATIVE)
    _store(places + 2 * stride, y_2, inside, LARGEST, NATIVE)
    _store(places + 3 * stride, y_3, inside, LARGEST, NATIVE)
  if COLUMN:
    if NATIVE:
      PACK: tl.constexpr = PACK_E4M3 if LARGEST == 448.0 else PACK_E5M2
      words = tl.inline_asm_elementwise(PACK, '=r,f,f,f,f', [y_0, y_1, y_2, y_3], tl.int32, is_pure=True, pack=1)
      places = column_ptr + columns.to(tl.int64)[:, None] * (m // 4) + fours[None, :]
      tl.store(places, tl.trans(words), tl.trans(inside))
    else:
      places = column_ptr + columns.to(tl.int64)[None, :] * m + first[:, None]
      _store(places, y_0, inside, LARGEST, NATIVE)
      _store(places + 1, y_1, inside, LARGEST, NATIVE)
      _store(places + 2, y_2, inside, LARGEST, NATIVE)
      _store(places + 3, y_3, inside, LARGEST, NATIVE)


@triton.jit
def _store(places, y, inside, LARGEST: tl.constexpr, NATIVE: tl.constexpr):
  if not NATIVE:  # the hardware's conversion saturates, and passes NaN on
    y = tl.clamp(y, -LARGEST, LARGEST, propagate_nan=tl.PropagateNan.ALL)
  tl.store(places, y.to(places.dtype.element_ty), inside)


@triton.jit
def _cast_kernel(
  x_ptr, scale_ptr, amax_ptr, scale_inv_ptr, row_ptr, column_ptr, m, k,
  BM: tl.constexpr, BK: tl.constexpr, ROW: tl.constexpr, COLUMN: tl.constexpr, LARGEST: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
  fours, columns = _tile(BM, BK, scale_ptr, scale_inv_ptr)
  first = 4 * fours
  x_0, x_1 = _read(x_ptr, first, columns, m, k, k), _read(x_ptr, first + 1, columns, m, k, k)
  x_2, x_3 = _read(x_ptr, first + 2, columns, m, k, k), _read(x_ptr, first + 3, columns, m, k, k)
  tl.atomic_max(amax_ptr, tl.max(largest(x_0, x_1, x_2, x_3)))
  scale = tl.load(scale_ptr)
  write(x_0, x_1, x_2, x_3, fours, columns, m, k, k, row_ptr, column_ptr, scale, ROW, COLUMN, LARGEST, NATIVE)


@triton.jit
def _sigmoid(x, NATIVE: tl.constexpr):
  if NATIVE:
    return tl.inline_asm_elementwise(SIGMOID, '=f,f', [x], tl.float32, is_pure=True, pack=1)
  else:
    return tl.sigmoid(x)


@triton.jit
def _swiglu(h_ptr, rows, columns, m, k, NATIVE: tl.constexpr):
  gate = _read(h_ptr, rows, columns, m, k, 2 * k)
  up = _read(h_ptr + k, rows, columns, m, k, 2 * k)
  return gate * _sigmoid(gate, NATIVE) * up


@triton.jit
def _swiglu_cast_kernel(
  h_ptr, scale_ptr, amax_ptr, scale_inv_ptr, row_ptr, column_ptr, m, k,
  BM: tl.constexpr, BK: tl.constexpr, ROW: tl.constexpr, COLUMN: tl.constexpr, LARGEST: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
  fours, columns = _tile(BM, BK, scale_ptr, scale_inv_ptr)
  first = 4 * fours
  y_0, y_1 = _swiglu(h_ptr, first, columns, m, k, NATIVE), _swiglu(h_ptr, first + 1, columns, m, k, NATIVE)
  y_2, y_3 = _swiglu(h_ptr, first + 2, columns, m, k, NATIVE), _swiglu(h_ptr, first + 3, columns, m, k, NATIVE)
  tl.atomic_max(amax_ptr, tl.max(largest(y_0, y_1, y_2, y_3)))
  scale = tl.load(scale_ptr)
  write(y_0, y_1, y_2, y_3, fours, columns, m, k, k, row_ptr, column_ptr, scale, ROW, COLUMN, LARGEST, NATIVE)


@triton.jit
def _dswiglu(dy_ptr, h_ptr, rows, columns, m, k, NATIVE: tl.constexpr):
  dy = _read(dy_ptr, rows, columns, m, k, k)
  gate = _read(h_ptr, rows, columns, m, k, 2 * k)
  up = _read(h_ptr + k, rows, columns, m, k, 2 * k)
  sigmoid = _sigmoid(gate, NATIVE)
  shared = dy * sigmoid
  return shared * up * (1 + gate * (1 - sigmoid)), shared * gate


@triton.jit
def _dswiglu_cast_kernel(
  dy_ptr, h_ptr, scale_ptr, amax_ptr, scale_inv_ptr, row_ptr, column_ptr, m, k,
  BM: tl.constexpr, BK: tl.constexpr, ROW: tl.constexpr, COLUMN: tl.constexpr, LARGEST: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
  fours, columns = _tile(BM, BK, scale_ptr, scale_inv_ptr)
  first = 4 * fours
  g_0, u_0 = _dswiglu(dy_ptr, h_ptr, first, columns, m, k, NATIVE)
  g_1, u_1 = _dswiglu(dy_ptr, h_ptr, first + 1, columns, m, k, NATIVE)
  g_2, u_2 = _dswiglu(dy_ptr, h_ptr, first + 2, columns, m, k, NATIVE)
  g_3, u_3 = _dswiglu(dy_ptr, h_ptr, first + 3, columns, m, k, NATIVE)
  tl.atomic_max(amax_ptr, tl.max(tl.maximum(largest(g_0, g_1, g_2, g_3), largest(u_0, u_1, u_2, u_3))))
  scale = tl.load(scale_ptr)
  write(g_0, g_1, g_2, g_3, fours, columns, m, k, 2 * k, row_ptr, column_ptr, scale, ROW, COLUMN, LARGEST, NATIVE)
  below = column_ptr + k.to(tl.int64) * (m // 4 if NATIVE else m)
  write(u_0, u_1, u_2, u_3, fours, columns, m, k, 2 * k, row_ptr + k, below, scale, ROW, COLUMN, LARGEST, NATIVE)


@triton.jit
def _norm_cast_kernel(
  x_ptr, delta_ptr, sum_ptr, gain_ptr, rstd_ptr, scale_ptr, amax_ptr, scale_inv_ptr, row_ptr, column_ptr, m, k, eps,
  ADD: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, CHUNKS: tl.constexpr, ROW: tl.constexpr, COLUMN: tl.constexpr,
  LARGEST: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
  """The stream's rows stay in registers, as they were rounded, between the sum of their squares and the cast."""
  fours, start = _tile(BM, BK, scale_ptr, scale_inv_ptr)
  kept = ()
  for i in tl.static_range(4 * CHUNKS):  # all loads before the first store, which they might not pass
    rows, columns = 4 * fours + i // CHUNKS, i % CHUNKS * BK + start
    x = _read(x_ptr, rows, columns, m, k, k)
    if ADD:
      x += _read(delta_ptr, rows, columns, m, k, k)
    kept = kept + (x.to(sum_ptr.dtype.element_ty),)  # noqa: RUF005
  rstds = ()
  for j in tl.static_range(4):
    rows = 4 * fours + j
    square = tl.zeros([BM // 4], tl.float32)
    for c in tl.static_range(CHUNKS):
      x = kept[CHUNKS * j + c]
      if ADD:
        columns = c * BK + start
        inside = (rows < m)[:, None] & (columns < k)[None, :]
        tl.store(sum_ptr + rows.to(tl.int64)[:, None] * k + columns[None, :], x, inside)
      square += tl.sum(x.to(tl.float32) * x.to(tl.float32), 1)
    rstd = tl.rsqrt(square / k + eps)
    tl.store(rstd_ptr + rows, rstd, rows < m)
    rstds = rstds + (rstd,)  # noqa: RUF005
  scale = tl.load(scale_ptr)
  top = tl.zeros([BM // 4, BK], tl.float32)
  for c in tl.static_range(CHUNKS):
    columns = c * BK + start
    gain = tl.load(gain_ptr + columns, columns < k, 0.0).to(tl.float32)[None, :]
    y_0 = kept[c].to(tl.float32) * rstds[0][:, None] * gain
    y_1 = kept[CHUNKS + c].to(tl.float32) * rstds[1][:, None] * gain
    y_2 = kept[2 * CHUNKS + c].to(tl.float32) * rstds[2][:, None] * gain
    y_3 = kept[3 * CHUNKS + c].to(tl.float32) * rstds[3][:, None] * gain
    top = tl.maximum(top, largest(y_0, y_1, y_2, y_3))
    write(y_0, y_1, y_2, y_3, fours, columns, m, k, k, row_ptr, column_ptr, scale, ROW, COLUMN, LARGEST, NATIVE)
  tl.atomic_max(amax_ptr, tl.max(top))


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
