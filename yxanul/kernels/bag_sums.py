"""Sums of weighted rows, bag by bag: torch's `embedding_bag` where there is no Triton, a kernel of our own on a GPU.

Bags are uneven: most have one to four rows, some hundreds. `embedding_bag` reads a bag row by row, each read waiting for the
one before, and a program for each bag is little better, as it waits for the bag's beginning, then its rows' numbers, then the
rows. The kernel has four bags in one program. Two products, with the matrix of a drawn vocabulary that has as many entries as
ultra's, 1.55M, and with its transpose, take 0.30 ms together on an H200, with `embedding_bag` 1.23, with cuSPARSE 0.46; the
bytes are 0.10 (records/2026-12-01_kernel-inheritance). Both kernels add a bag up in one fixed order, which cuSPARSE does not
promise.

Shapes: U rows of H columns, B bags, E rows in all bags together.
"""

import functools
import importlib
import importlib.util

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


@torch.library.custom_op('yxanul::bag_sums', mutates_args=())
def bag_sums(x_UH: Tensor, rows_E: Tensor, starts_B: Tensor, weights_E: Tensor) -> Tensor:
  """(B, H) FP32: of every bag the sum of weight times row.

  Args:
    x_UH: FP32, contiguous.
    rows_E: int32 or int64: which rows, bag after bag.
    starts_B: the same: where each bag begins in `rows_E`, ascending; none is empty.
    weights_E: FP32.
  """
  if x_UH.is_cuda and (kernel := _triton()):
    return kernel.bag_sums(x_UH, rows_E, starts_B, weights_E)
  return bag_sums_by_torch(x_UH, rows_E, starts_B, weights_E)


@bag_sums.register_fake
def _(x_UH: Tensor, rows_E: Tensor, starts_B: Tensor, weights_E: Tensor) -> Tensor:
  return x_UH.new_empty((len(starts_B), x_UH.shape[1]))


def bag_sums_by_torch(x_UH: Tensor, rows_E: Tensor, starts_B: Tensor, weights_E: Tensor) -> Tensor:
  """As `bag_sums`, by torch's own kernel on every device."""
  return embedding_bag(rows_E, x_UH, starts_B, mode='sum', per_sample_weights=weights_E)


@functools.cache
def _triton():
  return importlib.import_module('yxanul.kernels.bag_sums_triton') if importlib.util.find_spec('triton') else None
