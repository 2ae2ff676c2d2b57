"""Engine `torch`: per-tensor FP8 through `torch._scaled_mm` (Ada, and Hopper or Blackwell without Transformer Engine).

Casts are the Triton kernels of `fp8_casts`, or the reference's plain torch where there is no GPU or no Triton. M rows, K the
axis a product sums over, N columns of the result.
"""

import importlib.util

import torch

from yxanul.kernels.fp8_formats import Matrix

if torch.cuda.is_available() and importlib.util.find_spec('triton'):
  from yxanul.kernels.attention_rope import split
  from yxanul.kernels.fp8_casts import cast, dswiglu_cast, norm_backward, norm_cast, swiglu_cast
  from yxanul.kernels.fp8_rope import turn_back_cast
else:
  from yxanul.kernels.fp8_reference import cast, dswiglu_cast, norm_backward, norm_cast, split, swiglu_cast, turn_back_cast

__all__ = ['cast', 'dswiglu_cast', 'matmul', 'norm_backward', 'norm_cast', 'split', 'swiglu_cast', 'turn_back_cast']


def matmul(a_MK: Matrix, b_NK: Matrix, out_dtype: torch.dtype, fast: bool) -> torch.Tensor:
  """a @ b.T as `out_dtype` (M, N); `fast` lets the tensor cores keep partial sums in fewer bits."""
  # A float32 result costs three times a bfloat16 one (cuBLASLt has no split-K for it), so float32 is a cast of bfloat16.
  out_MN = torch._scaled_mm(
    a_MK.data,
    b_NK.data.t(),
    scale_a=a_MK.scale_inv.view(()),
    scale_b=b_NK.scale_inv.view(()),
    out_dtype=torch.bfloat16,
    use_fast_accum=fast,
  )
  return out_MN.to(out_dtype)
