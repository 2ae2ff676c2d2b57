"""RoPE between the packed projection and a library's attention, in Triton: one pass each way.

Shapes: B rows, T length, N = B*T tokens, H query heads, K key/value heads, C head width, O = (H + 2K) C width of the packed
projection (queries, keys, values), C2 = C/2.

Library kernels take rotated q, k and v apart, and give dq, dk, dv apart. Forward, a program reads some tokens of the packed
projection and writes the three; backward it reads the three gradients, turns them back, and writes the packed gradient: 4 O
bytes a token each way in BF16 (v is copied, so that nothing keeps the projection alive), with the angles read once for all
heads of a token. torch.compile moves 3.5 O each way to rotate q and k in kernels of their own, and autograd another 4 O to put
the three gradients side by side. The two channels of a pair, i and i + C/2, are loaded as two half tiles, so that they meet in
one thread.

Rejected: turning the projection in place, which saves the bytes of v forward, but overwrites what a caller may still hold.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, WARPS = 32, 4  # tokens of a program


def rotated(
  qkv_BTO: Tensor, cos_TC2: Tensor, sin_TC2: Tensor, n_heads: int, n_kv_heads: int, head_dim: int
) -> tuple[Tensor, Tensor, Tensor]:
  """Rotated queries and keys, and values, of a packed projection (arXiv 2104.09864). Differentiable in qkv.

  Args:
    qkv_BTO: any float dtype; computed in FP32, rounded once.
    cos_TC2, sin_TC2: FP32, at least T rows, from `attention.rope_tables`.

  Returns:
    q_BTHC, k_BTKC, v_BTKC, contiguous, in qkv's dtype.
  """
  assert qkv_BTO.shape[2] == (n_heads + 2 * n_kv_heads) * head_dim, (qkv_BTO.shape, n_heads, n_kv_heads, head_dim)
  assert len(cos_TC2) >= qkv_BTO.shape[1], (cos_TC2.shape, qkv_BTO.shape)
  assert cos_TC2.shape[1] == head_dim // 2, (cos_TC2.shape, head_dim)
  return _Rotated.apply(qkv_BTO, cos_TC2, sin_TC2, n_heads, n_kv_heads, head_dim)


def split(
  qkv_BTO: Tensor, cos_TC2: Tensor, sin_TC2: Tensor, n_heads: int, n_kv_heads: int, head_dim: int
) -> tuple[Tensor, Tensor, Tensor]:
  """`rotated` for those who take the gradients themselves."""
  parts = tuple(qkv_BTO.new_empty(*qkv_BTO.shape[:2], heads, head_dim) for heads in (n_heads, n_kv_heads, n_kv_heads))
  _launch(qkv_BTO.contiguous(), parts, cos_TC2, sin_TC2, back=False)
  return parts


class _Rotated(torch.autograd.Function):
  @staticmethod
  def forward(ctx, qkv_BTO, cos_TC2, sin_TC2, n_heads, n_kv_heads, head_dim):
    ctx.save_for_backward(cos_TC2, sin_TC2)
    return split(qkv_BTO, cos_TC2, sin_TC2, n_heads, n_kv_heads, head_dim)

  @staticmethod
  def backward(ctx, dq_BTHC, dk_BTKC, dv_BTKC):
    cos_TC2, sin_TC2 = ctx.saved_tensors
    n_rows, length, n_heads, head_dim = dq_BTHC.shape
    dqkv_BTO = dq_BTHC.new_empty(n_rows, length, (n_heads + 2 * dk_BTKC.shape[2]) * head_dim)
    _launch(dqkv_BTO, [d.contiguous() for d in (dq_BTHC, dk_BTKC, dv_BTKC)], cos_TC2, sin_TC2, back=True)
    return dqkv_BTO, None, None, None, None, None


def _launch(packed_BTO: Tensor, parts: Sequence[Tensor], cos_TC2: Tensor, sin_TC2: Tensor, back: bool) -> None:
  n_rows, length, n_heads, head_dim = parts[0].shape
  n_tokens = n_rows * length
  _rotate_kernel[(triton.cdiv(n_tokens, BLOCK),)](
    packed_BTO, *parts, cos_TC2, sin_TC2, n_tokens, length,
    BLOCK, n_heads, parts[1].shape[2], head_dim // 2, triton.next_power_of_2(head_dim // 2), back, num_warps=WARPS,
  )  # fmt: skip


@triton.jit
def _rotate_kernel(
  packed_ptr, q_ptr, k_ptr, v_ptr, cos_ptr, sin_ptr, n_tokens, length,
  BLOCK: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, WIDTH: tl.constexpr,
  BACK: tl.constexpr,
):  # fmt: skip
  """From the packed projection to q, k and v, or BACK."""
  rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
  channels = tl.arange(0, WIDTH)
  inside = (rows < n_tokens)[:, None] & (channels < HALF)[None, :]
  angles = (rows % length)[:, None] * HALF + channels[None, :]
  cos, sin = tl.load(cos_ptr + angles, inside, 0.0), tl.load(sin_ptr + angles, inside, 0.0)
  if BACK:
    sin = -sin
  for head in tl.static_range(HEADS + 2 * KV_HEADS):
    whole = _places(rows, channels, head, HEADS + 2 * KV_HEADS, HALF)
    if head < HEADS:
      _move(packed_ptr + whole, q_ptr + _places(rows, channels, head, HEADS, HALF), inside, cos, sin, HALF, BACK, True)
    elif head < HEADS + KV_HEADS:
      own = _places(rows, channels, head - HEADS, KV_HEADS, HALF)
      _move(packed_ptr + whole, k_ptr + own, inside, cos, sin, HALF, BACK, True)
    else:
      own = _places(rows, channels, head - HEADS - KV_HEADS, KV_HEADS, HALF)
      _move(packed_ptr + whole, v_ptr + own, inside, cos, sin, HALF, BACK, False)


@triton.jit
def _places(rows, channels, head: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr):
  return rows.to(tl.int64)[:, None] * (HEADS * 2 * HALF) + (head * 2 * HALF + channels)[None, :]


@triton.jit
def _move(packed, own, inside, cos, sin, HALF: tl.constexpr, BACK: tl.constexpr, TURNED: tl.constexpr):
  """One head's two halves, from `packed` to `own`, or BACK."""
  source, target = (own, packed) if BACK else (packed, own)
  x_1, x_2 = tl.load(source, inside, 0.0), tl.load(source + HALF, inside, 0.0)
  if TURNED:
    first, second = x_1.to(tl.float32), x_2.to(tl.float32)
    x_1, x_2 = (first * cos - second * sin).to(x_1.dtype), (second * cos + first * sin).to(x_1.dtype)
  tl.store(target, x_1, inside)
  tl.store(target + HALF, x_2, inside)
