"""The FP8 recipe through Transformer Engine's functional layer (2.20), over scales and amaxes that are ours.

M rows, K the axis a product sums over, N columns of the result, F = 2K gate and up side by side. Hopper's FP8 tensor cores
take both operands with the summed axis last, so a cast writes the matrix and its transpose in one pass and all three
products of a linear are the same 'TN' product. Nothing here keeps state or waits for the GPU: a step may be captured in a
CUDA graph.
"""

import torch
import transformer_engine.pytorch as te
import transformer_engine_torch as tex
from torch import Tensor
from transformer_engine.pytorch.constants import TE_DType
from transformer_engine.pytorch.cpp_extensions import general_gemm
from transformer_engine.pytorch.tensor.storage.float8_tensor_storage import Float8TensorStorage

from yxanul.kernels.fp8_formats import BACKWARD, FORWARD, Matrix


def quantizer(scale_1: Tensor, amax_1: Tensor, dtype: torch.dtype, row: bool, column: bool) -> te.Float8Quantizer:
  """A quantizer over our own tensors: kernels that take it read `scale_1` and raise `amax_1` in place."""
  out = te.Float8Quantizer(scale_1, amax_1, TE_DType[dtype], rowwise=row, columnwise=column)
  out.internal = True
  return out


def matrices(x: Float8TensorStorage, dtype: torch.dtype, column: bool) -> tuple[Matrix | None, Matrix | None]:
  """What a quantizing kernel returned, as the matrix and its transpose."""
  row = None if x._data is None else Matrix(x._data, x._scale_inv, dtype)
  if not column:
    return row, None
  # Data-centre Blackwell multiplies any layout, so Transformer Engine writes no transpose there.
  data_KM = tex.fp8_transpose(x._data, TE_DType[dtype], out=None) if x._transpose is None else x._transpose
  return row, Matrix(data_KM, x._scale_inv, dtype)


def cast(
  x_MK: Tensor, scale_1: Tensor, amax_1: Tensor, dtype: torch.dtype, row: bool, column: bool
) -> tuple[Matrix | None, Matrix | None]:
  """Casts to FP8 and raises `amax_1` (in place) to max |x|. Returns the matrix and its transpose, where asked for."""
  return matrices(tex.quantize(x_MK, quantizer(scale_1, amax_1, dtype, row, column)), dtype, column)


def matmul(a_MK: Matrix, b_NK: Matrix, out_dtype: torch.dtype, fast: bool) -> Tensor:
  """a @ b.T as `out_dtype` (M, N); `fast` lets the tensor cores keep partial sums in fewer bits."""
  a, b = _storage(a_MK), _storage(b_NK)
  # Column-major BLAS: its first operand, transposed, is our second.
  return general_gemm(b, a, out_dtype=out_dtype, layout='TN', use_split_accumulator=not fast)[0]


def _storage(m: Matrix) -> Float8TensorStorage:
  data, dtype = m.data.view(torch.uint8), TE_DType[m.dtype]
  return Float8TensorStorage(data=data, fp8_scale_inv=m.scale_inv, fp8_dtype=dtype, fake_dtype=torch.bfloat16)


def norm_cast(
  x_MK: Tensor, delta_MK: Tensor | None, gain_K: Tensor, eps: float, scale_1: Tensor, amax_1: Tensor, column: bool
) -> tuple[Matrix, Matrix | None, Tensor, Tensor]:
  """As `fp8_reference.norm_cast`, with the gain rounded to x's dtype."""
  sum_MK = x_MK if delta_MK is None else x_MK + delta_MK
  target = quantizer(scale_1, amax_1, FORWARD, True, column)
  y, _, rstd_M = tex.rmsnorm_fwd(sum_MK, gain_K.to(x_MK.dtype), eps, None, target, TE_DType[x_MK.dtype], 0, False)
  return *matrices(y, FORWARD, column), rstd_M, sum_MK


def norm_backward(dy_MK: Tensor, x_MK: Tensor, rstd_M: Tensor, gain_K: Tensor, residual_MK: Tensor) -> tuple[Tensor, Tensor]:
  """Gradients of RMSNorm: of x, plus what reached x past the norm; of the gain."""
  dx_MK, dgain_K = tex.rmsnorm_bwd_add(dy_MK, x_MK, residual_MK, rstd_M, gain_K.to(x_MK.dtype), 0, False)
  return dx_MK, dgain_K.to(gain_K.dtype)


def swiglu_cast(h_MF: Tensor, scale_1: Tensor, amax_1: Tensor, column: bool) -> tuple[Matrix, Matrix | None]:
  """silu(first half) * second half, cast to E4M3."""
  return matrices(tex.swiglu(h_MF, quantizer(scale_1, amax_1, FORWARD, True, column)), FORWARD, column)


def dswiglu_cast(
  dy_MK: Tensor, h_MF: Tensor, scale_1: Tensor, amax_1: Tensor, row: bool, column: bool
) -> tuple[Matrix | None, Matrix | None]:
  """The gradient of SwiGLU's input, cast to E5M2."""
  return matrices(tex.dswiglu(dy_MK, h_MF, quantizer(scale_1, amax_1, BACKWARD, row, column)), BACKWARD, column)
