"""The linears of a block as one callable, so that the model does not know in which format they run."""

import dataclasses

from torch import Tensor
from torch.nn import functional as F


@dataclasses.dataclass(frozen=True)
class Linears:
  """Plain linears in the dtype of their input: FP32, or BF16 with the FP32 weights cast on the way."""

  def __call__(self, x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, layer: int, role: int) -> Tensor:
    """x W^T + b.

    Args:
      x_NI: (..., I).
      weight_OI, bias_O: FP32.
      layer, role: which of the block's linears this is (`role` indexes LINEARS); formats with state use it.

    Returns:
      (..., O) in x's dtype.
    """
    bias = None if bias_O is None else bias_O.to(x_NI.dtype)
    return F.linear(x_NI, weight_OI.to(x_NI.dtype), bias)
