"""Causal grouped-query attention for short rows, in Triton: from the packed projection to that projection's gradient.

Shapes: N tokens (rows of T, one after another), T length, H query heads, K key/value heads, G = H/K heads of a group, C head
width, O = (H + 2K) C width of the packed projection (queries, keys, values), C2 = C/2.

A library kernel gives every sequence and head a tile of 64 or 128 rows; at length 8 nine tenths of it are empty. Here a
program takes one key/value head of a tile of tokens, several whole sequences of it, under a mask that is block-diagonal and
causal, and loops over the G query heads that share it: keys and values are read once, dk and dv are summed in registers. RoPE
(arXiv 2104.09864) happens on the way in and is undone on the way out, so up to length 64 nothing moves but qkv, out, dout and
dqkv, once each; no rearrange, cat or contiguous copy stands around. The two channels of a pair, i and i + C/2, are loaded as
two half tiles, so that they meet in one thread; S is the sum of two products.

Up to length 128 a tile holds whole sequences, so the backward pass recomputes P = softmax(S) in the tile; and as
delta = rowsum(dout * out) equals rowsum(P * dP), it has no use for out either. With dP = dout V^T,

  dS = P * (dP - delta),  dV = P^T dout,  dQ = dS K,  dK = dS^T Q.

Beyond 128 the sums dk and dv do not fit beside S and dP, and two kernels share the backward pass. The kernel of rows takes a
block of queries against all their keys: log-sums, deltas, dQ, and a copy of the turned queries. The kernel of columns takes a
block of keys and computes S^T and dP^T, whose registers are as they stand the left operands of dV and dK, while queries and
dout stream past. At every length nothing but qkv is saved for the backward pass. There are no atomics: the same inputs give
the same bits. Products take BF16 and sum in FP32; gradients are turned back before they are rounded.

What binds (H200, 131,072 tokens, 12/2 heads of 64; experiments/records/2026-11-29_kernel-attention-short): memory up to 64,
where forward and backward reach 86, 85, 72 and 65 % of the copy bandwidth's floor at 8, 16, 32 and 64; registers at 128 and
256, which leave a multiprocessor one or two blocks, each waiting for its own products. A fourth stage gains nothing.

Tried and rejected, backward pass in ms. At length 8 tiles of 32 or 64 tokens instead of 16: 0.24 and 0.33 against 0.20; two
warps to a tile of 16: 0.32; registers limited to 168 for half as many blocks again: 0.26, for the spills. Pairs side by side
in one tile, so that products are not halved: 0.23, and no gain in longer tiles. At 128 the two kernels of 256: 0.69 against
0.65. At 256 S instead of S^T in the kernel of columns, with P and dS transposed through shared memory and q turned again: 0.79
against 0.51; 128 keys to a block: 0.81. The kernel of rows in two passes over blocks of keys, or with half of dP computed
twice, to save registers: 0.82 and 0.74 against 0.69. Not tried: warps that load, multiply and exponentiate in turns, which
plain Triton does not offer on Hopper.
"""

import math

import torch
import triton
from torch import Tensor

from yxanul.kernels import attention_short_kernels as kernels

# By the longest row they serve: tokens of a tile, rows of a block of it, warps, pipeline stages, registers at most.
FORWARD_TILES = {
  16: (16, 16, 1, 4, None),
  32: (32, 32, 1, 3, None),
  64: (64, 64, 4, 4, None),
  128: (128, 64, 4, 3, 128),
  256: (256, 64, 4, 3, None),
}
BACKWARD_TILES = {
  16: (16, 16, 1, 3, None),
  32: (32, 32, 2, 3, None),
  64: (64, 64, 4, 3, None),
  128: (128, 128, 8, 3, None),
}
ROWS_TILES = {256: (256, 128, 8, 2, None)}
COLUMNS_TILES = {256: (256, 64, 4, 2, 168)}


def supports(seq_len: int, head_dim: int, compute_capability: tuple[int, int]) -> bool:
  """Whether `attention_short` takes rows of this length and heads of this width on such a GPU (BF16 only).

  Lengths need not divide a tile; the rows of a tile that no whole sequence fills stay idle. Beyond 64 the tiles need Hopper's
  shared memory. Ampere and Ada compile within their limits, but nothing was measured there.
  """
  longest = {8: 64, 9: 256}.get(compute_capability[0], 0)
  return 1 <= seq_len <= longest and head_dim in (32, 64)


def attention_short(
  qkv_NO: Tensor,
  seq_len: int,
  n_heads: int,
  n_kv_heads: int,
  head_dim: int,
  cos_TC2: Tensor | None = None,
  sin_TC2: Tensor | None = None,
) -> Tensor:
  """Attention of every sequence of `seq_len` tokens, scaled by 1/sqrt(C) (arXiv 2305.13245), with RoPE inside.

  Differentiable in qkv; runs in a CUDA graph, without a host sync.

  Args:
    qkv_NO: BF16 (FP32 under Triton's interpreter, which cannot multiply BF16), queries, keys and values side by side as the
      packed projection gives them; N a multiple of seq_len.
    cos_TC2, sin_TC2: FP32, at least seq_len rows, from `attention.rope_tables`; both None without RoPE.

  Returns:
    (N, H C), qkv's dtype, as the output projection takes it.
  """
  assert qkv_NO.dtype == torch.bfloat16 or not qkv_NO.is_cuda, qkv_NO.dtype
  assert n_heads % n_kv_heads == 0, (n_heads, n_kv_heads)
  assert qkv_NO.shape[1] == (n_heads + 2 * n_kv_heads) * head_dim, (qkv_NO.shape, n_heads, n_kv_heads, head_dim)
  assert len(qkv_NO) % seq_len == 0, (qkv_NO.shape, seq_len)
  assert cos_TC2 is None or (len(cos_TC2) >= seq_len and cos_TC2.shape[1] == head_dim // 2), (cos_TC2.shape, seq_len)
  return _Attention.apply(qkv_NO.contiguous(), seq_len, n_heads, n_kv_heads, head_dim, cos_TC2, sin_TC2)


class _Attention(torch.autograd.Function):
  @staticmethod
  def forward(ctx, qkv_NO, seq_len, n_heads, n_kv_heads, head_dim, cos_TC2, sin_TC2):
    ctx.save_for_backward(qkv_NO, cos_TC2, sin_TC2)
    ctx.shape = seq_len, n_heads, n_kv_heads, head_dim
    return forward(qkv_NO, cos_TC2, sin_TC2, *ctx.shape)

  @staticmethod
  def backward(ctx, dout_ND):
    qkv_NO, cos_TC2, sin_TC2 = ctx.saved_tensors
    return backward(qkv_NO, dout_ND.contiguous(), cos_TC2, sin_TC2, *ctx.shape), None, None, None, None, None, None


def forward(
  qkv_NO: Tensor, cos_TC2: Tensor | None, sin_TC2: Tensor | None, seq_len: int, n_heads: int, n_kv_heads: int, head_dim: int
) -> Tensor:
  """The output, (N, H C)."""
  out_ND = qkv_NO.new_empty(len(qkv_NO), n_heads * head_dim)
  pointers = (qkv_NO, out_ND, cos_TC2, sin_TC2, len(qkv_NO))
  _launch(kernels.attention_forward, _fitting(FORWARD_TILES, seq_len), pointers, seq_len, n_heads, n_kv_heads, head_dim)
  return out_ND


def backward(
  qkv_NO: Tensor, dout_ND: Tensor, cos_TC2: Tensor | None, sin_TC2: Tensor | None,
  seq_len: int, n_heads: int, n_kv_heads: int, head_dim: int,
) -> Tensor:  # fmt: skip
  """The gradient of the packed projection, (N, O)."""
  shape = seq_len, n_heads, n_kv_heads, head_dim
  dqkv_NO = torch.empty_like(qkv_NO)
  tables = (cos_TC2, sin_TC2, len(qkv_NO))
  if seq_len <= max(BACKWARD_TILES):
    _launch(kernels.attention_backward, _fitting(BACKWARD_TILES, seq_len), (qkv_NO, dout_ND, dqkv_NO, *tables), *shape)
    return dqkv_NO
  q_ND = torch.empty_like(dout_ND) if cos_TC2 is not None else qkv_NO
  stats_HN2 = qkv_NO.new_empty(n_heads, len(qkv_NO), 2, dtype=torch.float32)  # log2 of the softmax's sum, delta
  pointers = (qkv_NO, dout_ND, dqkv_NO, q_ND, stats_HN2, *tables)
  _launch(kernels.attention_backward_rows, _fitting(ROWS_TILES, seq_len), pointers, *shape)
  _launch(kernels.attention_backward_columns, _fitting(COLUMNS_TILES, seq_len), pointers, *shape)
  return dqkv_NO


def _fitting(tiles: dict, seq_len: int) -> tuple:
  return tiles[min(longest for longest in tiles if longest >= seq_len)]


def _launch(kernel, tile: tuple, pointers: tuple, seq_len: int, n_heads: int, n_kv_heads: int, head_dim: int) -> None:
  pack, block, warps, stages, registers = tile
  *_, cos_TC2, _, n_tokens = pointers
  n_rows = pack // seq_len * seq_len
  kernel[(triton.cdiv(n_tokens, n_rows) * (pack // block), n_kv_heads)](
    *pointers, seq_len, pack, block, n_heads // n_kv_heads, n_kv_heads, head_dim // 2, 1 / math.sqrt(head_dim),
    cos_TC2 is not None, n_rows == pack and n_tokens % pack == 0,
    num_warps=warps, num_stages=stages, maxnreg=registers,
  )  # fmt: skip
