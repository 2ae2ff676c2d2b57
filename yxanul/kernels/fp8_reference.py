"""Engine `reference`: the FP8 recipe in plain torch, on any device, bit-true in its rounding.

M rows, K the axis a product sums over, N columns of the result, F = 2K gate and up side by side. Products of FP8 values
are taken and summed in float32, which the tensor cores of the other engines approximate (fewer bits of the partial sums).
"""

import torch
from torch import Tensor
from torch.nn.functional import silu

from yxanul.kernels.attention import rope
from yxanul.kernels.fp8_formats import BACKWARD, FORWARD, LARGEST, Matrix


def cast(
  x_MK: Tensor, scale_1: Tensor, amax_1: Tensor, dtype: torch.dtype, row: bool, column: bool
) -> tuple[Matrix | None, Matrix | None]:
  """Casts to FP8 and raises `amax_1` (in place) to max |x|. Returns the matrix and its transpose, where asked for."""
  x_MK = x_MK.float()
  amax_1.copy_(torch.maximum(amax_1, x_MK.abs().amax()))
  data_MK = (x_MK * scale_1).clamp(-LARGEST[dtype], LARGEST[dtype]).to(dtype)
  scale_inv = scale_1.reciprocal()
  return (
    Matrix(data_MK, scale_inv, dtype) if row else None,
    Matrix(data_MK.t().contiguous(), scale_inv, dtype) if column else None,
  )


def matmul(a_MK: Matrix, b_NK: Matrix, out_dtype: torch.dtype, fast: bool) -> Tensor:
  """a @ b.T as `out_dtype` (M, N). `fast` belongs to the other engines: sums here are float32 either way."""
  product_MN = a_MK.data.float() @ b_NK.data.float().t()
  return (product_MN * (a_MK.scale_inv * b_NK.scale_inv)).to(out_dtype)


def norm_cast(
  x_MK: Tensor, delta_MK: Tensor | None, gain_K: Tensor, eps: float, scale_1: Tensor, amax_1: Tensor, column: bool
) -> tuple[Matrix, Matrix | None, Tensor, Tensor]:
  """Adds (where there is a delta), RMSNorm, and cast to E4M3.

  Returns:
    The matrix, its transpose where asked for, 1/RMS of every row (M,) float32, and x + delta (M, K) in x's dtype.
  """
  sum_MK = x_MK if delta_MK is None else x_MK + delta_MK
  x32_MK = sum_MK.float()
  rstd_M = torch.rsqrt(x32_MK.square().mean(-1) + eps)
  return *cast(x32_MK * rstd_M[:, None] * gain_K.float(), scale_1, amax_1, FORWARD, True, column), rstd_M, sum_MK


def norm_backward(dy_MK: Tensor, x_MK: Tensor, rstd_M: Tensor, gain_K: Tensor, residual_MK: Tensor) -> tuple[Tensor, Tensor]:
  """Gradients of RMSNorm: of x, plus what reached x past the norm; of the gain."""
  dy, normed = dy_MK.float(), x_MK.float() * rstd_M[:, None]
  scaled = dy * gain_K.float()
  dx = rstd_M[:, None] * (scaled - normed * (scaled * normed).mean(-1, keepdim=True)) + residual_MK.float()
  return dx.to(x_MK.dtype), (dy * normed).sum(0).to(gain_K.dtype)


def swiglu_cast(h_MF: Tensor, scale_1: Tensor, amax_1: Tensor, column: bool) -> tuple[Matrix, Matrix | None]:
  """silu(first half) * second half, cast to E4M3."""
  gate, up = h_MF.float().chunk(2, -1)
  return cast(silu(gate) * up, scale_1, amax_1, FORWARD, True, column)


def dswiglu_cast(
  dy_MK: Tensor, h_MF: Tensor, scale_1: Tensor, amax_1: Tensor, row: bool, column: bool
) -> tuple[Matrix | None, Matrix | None]:
  """The gradient of SwiGLU's input, cast to E5M2."""
  dy, (gate, up) = dy_MK.float(), h_MF.float().chunk(2, -1)
  sigmoid = gate.sigmoid()
  dgate = dy * up * sigmoid * (1 + gate * (1 - sigmoid))
  return cast(torch.cat((dgate, dy * gate * sigmoid), -1), scale_1, amax_1, BACKWARD, row, column)


def split(
  qkv_BTO: Tensor, cos_TC2: Tensor, sin_TC2: Tensor, n_heads: int, n_kv_heads: int, head_dim: int
) -> tuple[Tensor, Tensor, Tensor]:
  """Rotated queries and keys, and values, of a packed projection; each (B, T, heads, C)."""
  parts = qkv_BTO.split([heads * head_dim for heads in (n_heads, n_kv_heads, n_kv_heads)], -1)
  q, k, v = (part.unflatten(-1, (-1, head_dim)) for part in parts)
  return rope(q, cos_TC2, sin_TC2), rope(k, cos_TC2, sin_TC2), v.contiguous()


def turn_back_cast(
  dq_BTHC: Tensor, dk_BTKC: Tensor, dv_BTKC: Tensor, cos_TC2: Tensor, sin_TC2: Tensor, scale_1: Tensor, amax_1: Tensor
) -> tuple[Matrix, Matrix]:
  """The gradient of a packed projection (B T, O) from those of rotated queries, rotated keys and values, cast to E5M2."""
  cos, sin = (table[: dq_BTHC.shape[1]] for table in (cos_TC2, sin_TC2))
  turned = rope(dq_BTHC.float(), cos, -sin), rope(dk_BTKC.float(), cos, -sin), dv_BTKC.float()
  dqkv_NO = torch.cat([part.flatten(2) for part in turned], -1).flatten(0, 1)
  return cast(dqkv_NO, scale_1, amax_1, BACKWARD, True, True)
