"""Engine `reference`: the FP8 recipe in plain torch, on any device, bit-true in its rounding.

M rows, K the axis a product sums over, N columns of the result. Products of FP8 values are taken and summed in float32,
which is what the tensor cores of the other engines approximate (they keep fewer bits of the partial sums).
"""

import torch

from yxanul.kernels.fp8_formats import LARGEST, Matrix


def cast(
  x_MK: torch.Tensor, scale_1: torch.Tensor, amax_1: torch.Tensor, dtype: torch.dtype, row: bool, column: bool
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


def matmul(a_MK: Matrix, b_NK: Matrix, out_dtype: torch.dtype, fast: bool) -> torch.Tensor:
  """a @ b.T as `out_dtype` (M, N). `fast` belongs to the other engines: sums here are float32 either way."""
  product_MN = a_MK.data.float() @ b_NK.data.float().t()
  return (product_MN * (a_MK.scale_inv * b_NK.scale_inv)).to(out_dtype)
