"""The gradient of a packed, rotated projection, turned back and cast to FP8 in one pass, in Triton.

Shapes: B rows, T length, N = B*T tokens, H query heads, K key/value heads, C head width, O = (H + 2K) C.

Attention gives dq, dk and dv apart; the products of the projection want all three side by side, turned back, in FP8 as they
are and transposed. As two kernels (`attention_rope`, then a cast) that is 8 O bytes a token, in one it is 4 O. A program has
some tokens, keeps their angles, and goes through the heads; the casts are those of `fp8_casts`.
"""

import triton
import triton.language as tl
from torch import Tensor

from yxanul.kernels.fp8_casts import Output, largest, write
from yxanul.kernels.fp8_formats import BACKWARD, Matrix

TILE = (64, 4, 1)  # tokens of a program, warps, heads on their way at once


def turn_back_cast(
  dq_BTHC: Tensor, dk_BTKC: Tensor, dv_BTKC: Tensor, cos_TC2: Tensor, sin_TC2: Tensor, scale_1: Tensor, amax_1: Tensor
) -> tuple[Matrix, Matrix]:
  """As `fp8_reference.turn_back_cast`."""
  n_rows, length, n_heads, head_dim = dq_BTHC.shape
  n_kv_heads, n_tokens = dk_BTKC.shape[2], n_rows * length
  out = Output(n_tokens, (n_heads + 2 * n_kv_heads) * head_dim, BACKWARD, True, True, dq_BTHC.device)
  rows, warps, stages = TILE
  half, flags = head_dim // 2, {name: out.flags[name] for name in ('LARGEST', 'NATIVE')}
  _turn_back_cast_kernel[(triton.cdiv(n_tokens, rows),)](
    dq_BTHC.contiguous(), dk_BTKC.contiguous(), dv_BTKC.contiguous(), cos_TC2, sin_TC2, scale_1, amax_1, out.scale_inv, out.row,
    out.words, n_tokens, length,
    BM=rows, HEADS=n_heads, KV_HEADS=n_kv_heads, HALF=half, WIDTH=triton.next_power_of_2(half),
    STAGES=stages, num_warps=warps, **flags,
  )  # fmt: skip
  return out.matrices()


@triton.jit
def _turn_back_cast_kernel(
  dq_ptr, dk_ptr, dv_ptr, cos_ptr, sin_ptr, scale_ptr, amax_ptr, scale_inv_ptr, row_ptr, column_ptr, m, length,
  BM: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, WIDTH: tl.constexpr,
  LARGEST: tl.constexpr, NATIVE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
  if tl.program_id(0) == 0:
    tl.store(scale_inv_ptr, 1.0 / tl.load(scale_ptr))
  scale = tl.load(scale_ptr)
  fours = tl.program_id(0) * (BM // 4) + tl.arange(0, BM // 4)
  angles = (
    _angles(cos_ptr, sin_ptr, 4 * fours, length, HALF, WIDTH),
    _angles(cos_ptr, sin_ptr, 4 * fours + 1, length, HALF, WIDTH),
    _angles(cos_ptr, sin_ptr, 4 * fours + 2, length, HALF, WIDTH),
    _angles(cos_ptr, sin_ptr, 4 * fours + 3, length, HALF, WIDTH),
  )
  top = tl.zeros([BM // 4, WIDTH], tl.float32)
  WHOLE: tl.constexpr = (HEADS + 2 * KV_HEADS) * 2 * HALF
  top = _heads(
    dq_ptr, 0, HEADS, WHOLE, True, fours, angles, m, row_ptr, column_ptr, scale, top,
    HALF, WIDTH, LARGEST, NATIVE, STAGES,
  )  # fmt: skip
  top = _heads(
    dk_ptr, HEADS, KV_HEADS, WHOLE, True, fours, angles, m, row_ptr, column_ptr, scale, top,
    HALF, WIDTH, LARGEST, NATIVE, STAGES,
  )  # fmt: skip
  top = _heads(
    dv_ptr, HEADS + KV_HEADS, KV_HEADS, WHOLE, False, fours, angles, m, row_ptr, column_ptr, scale, top,
    HALF, WIDTH, LARGEST, NATIVE, STAGES,
  )  # fmt: skip
  tl.atomic_max(amax_ptr, tl.max(top))


@triton.jit
def _heads(
  ptr, FIRST: tl.constexpr, HEADS: tl.constexpr, WHOLE: tl.constexpr, TURNED: tl.constexpr, fours, angles, m, row_ptr,
  column_ptr, scale, top, HALF: tl.constexpr, WIDTH: tl.constexpr, LARGEST: tl.constexpr, NATIVE: tl.constexpr,
  STAGES: tl.constexpr,
):  # fmt: skip
  """The heads of one gradient, which are those from FIRST on of the whole."""
  for head in tl.range(HEADS, num_stages=STAGES):
    a_0, b_0 = _halves(ptr, 4 * fours, head, HEADS, m, angles[0], TURNED, HALF, WIDTH)
    a_1, b_1 = _halves(ptr, 4 * fours + 1, head, HEADS, m, angles[1], TURNED, HALF, WIDTH)
    a_2, b_2 = _halves(ptr, 4 * fours + 2, head, HEADS, m, angles[2], TURNED, HALF, WIDTH)
    a_3, b_3 = _halves(ptr, 4 * fours + 3, head, HEADS, m, angles[3], TURNED, HALF, WIDTH)
    top = tl.maximum(top, tl.maximum(largest(a_0, a_1, a_2, a_3), largest(b_0, b_1, b_2, b_3)))
    start = (FIRST + head) * 2 * HALF
    below = column_ptr + start.to(tl.int64) * (m // 4 if NATIVE else m)
    channels = tl.arange(0, WIDTH)  # of HALF: the rest of the tile lies outside
    row_ptrs = row_ptr + start
    write(a_0, a_1, a_2, a_3, fours, channels, m, HALF, WHOLE, row_ptrs, below, scale, True, True, LARGEST, NATIVE)
    below += HALF * (m // 4 if NATIVE else m)
    write(b_0, b_1, b_2, b_3, fours, channels, m, HALF, WHOLE, row_ptrs + HALF, below, scale, True, True, LARGEST, NATIVE)
  return top


@triton.jit
def _angles(cos_ptr, sin_ptr, rows, length, HALF: tl.constexpr, WIDTH: tl.constexpr):
  channels = tl.arange(0, WIDTH)
  places = (rows % length)[:, None] * HALF + channels[None, :]
  inside = (channels < HALF)[None, :]
  return tl.load(cos_ptr + places, inside, 0.0), tl.load(sin_ptr + places, inside, 0.0)


@triton.jit
def _halves(
  ptr, rows, head, HEADS: tl.constexpr, m, angle, TURNED: tl.constexpr, HALF: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
  """The two halves of a head's channels, turned back: pairs (i, i + C/2) lie in the same places."""
  channels = tl.arange(0, WIDTH)
  places = ptr + rows.to(tl.int64)[:, None] * (HEADS * 2 * HALF) + (head * 2 * HALF + channels)[None, :]
  inside = (rows < m)[:, None] & (channels < HALF)[None, :]
  first, second = tl.load(places, inside, 0.0).to(tl.float32), tl.load(places + HALF, inside, 0.0).to(tl.float32)
  if TURNED:
    return first * angle[0] + second * angle[1], second * angle[0] - first * angle[1]
  else:
    return first, second
