"""Normalization over the last dimension, and the activations of the MLP.

Shapes: B batch, T length, D model width, F hidden width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def rms_norm(x_BTD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
  """x / sqrt(mean(x^2) + eps) * weight (arXiv 1910.07467); statistics in FP32, result in x's dtype."""
  x32_BTD = x_BTD.float()
  scale_BT1 = torch.rsqrt(x32_BTD.square().mean(-1, keepdim=True) + eps)
  return (x32_BTD * scale_BT1 * weight_D).to(x_BTD.dtype)


def layer_norm(x_BTD: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float) -> Tensor:
  """(x - mean) / sqrt(var + eps) * weight + bias (arXiv 1607.06450); statistics in FP32, result in x's dtype."""
  return F.layer_norm(x_BTD.float(), weight_D.shape, weight_D, bias_D, eps).to(x_BTD.dtype)


def swiglu(gate_up_BTH: Tensor) -> Tensor:
  """silu(gate) * up (arXiv 2002.05202). The gate is the first half of the last dimension (..., 2F); returns (..., F)."""
  gate_BTF, up_BTF = gate_up_BTH.chunk(2, -1)
  return F.silu(gate_BTF) * up_BTF


def gelu(x_BTF: Tensor) -> Tensor:
  """GELU in the tanh form that GPT-2 has (arXiv 1606.08415)."""
  return F.gelu(x_BTF, approximate='tanh')
