"""The two FP8 formats of the recipe, the matrix that engines exchange, and the scale of a tensor.

E4M3 (`torch.float8_e4m3fn`, largest 448, no infinity) holds inputs and weights, E5M2 (`torch.float8_e5m2`, largest
57344) holds gradients: Transformer Engine's HYBRID (arXiv 2209.05433). A tensor is multiplied by its scale, clamped to the
format's range and rounded to nearest even; a product is undone by the inverses of its two scales.
"""

from typing import NamedTuple

import torch

FORWARD, BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2
LARGEST = {FORWARD: 448.0, BACKWARD: 57344.0}
ROLES = ('input', 'weight', 'gradient')  # the last axis of scale and amax
ROLE_LARGEST = (LARGEST[FORWARD], LARGEST[FORWARD], LARGEST[BACKWARD])


class Matrix(NamedTuple):
  """An FP8 matrix whose last axis is the one a product sums over."""

  data: torch.Tensor  # (rows, inner), contiguous, of `dtype` or as uint8
  scale_inv: torch.Tensor  # (1,) float32: value = data * scale_inv
  dtype: torch.dtype


def scale_of(amax: torch.Tensor, largest: float | torch.Tensor, old: torch.Tensor, margin: int = 0) -> torch.Tensor:
  """The scale that brings `amax` to the format's largest value, as Transformer Engine's delayed scaling computes it.

  `old` where amax is 0 or not finite; the largest float32 where the quotient overflows. All float32, one shape.
  """
  scale = (largest / amax) / 2**margin
  scale = torch.where((amax > 0) & torch.isfinite(amax), scale, old)
  return torch.where(torch.isinf(scale), torch.finfo(torch.float32).max, scale)
