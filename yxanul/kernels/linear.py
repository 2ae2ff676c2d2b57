"""The sublayers of a block between attention and the residual stream, so that the model does not know their format.

A sublayer does not add its result to the stream itself: it hands on `delta`, and the next norm adds it, because a fused
kernel can then write sum, normed sum and its cast in one pass.

Shapes: B rows, T length, D model width, O a linear's output width.
"""

import dataclasses

from torch import Tensor
from torch.nn import functional as F

from yxanul.config.model_spec import ModelSpec
from yxanul.kernels import attention, norm

Params = dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Linears:
  """Plain linears in the dtype of their input: FP32, or BF16 with the FP32 weights cast on the way."""

  model: ModelSpec

  def at(self, layer: int) -> 'Linears':
    """The sublayers of one layer; formats with state pick theirs."""
    return self

  def linear(self, x: Tensor, p: Params, name: str) -> Tensor:
    """x W^T + b of the linear `name` of `p`, a layer's parameters without the prefix `blocks.`; (..., O) in x's dtype."""
    bias = p.get(f'{name}.bias')
    return F.linear(x, p[f'{name}.weight'].to(x.dtype), None if bias is None else bias.to(x.dtype))

  def norm_linear(self, x_BTD: Tensor, delta_BTD: Tensor | None, p: Params) -> tuple[Tensor, Tensor]:
    """qkv of the normed stream, (B, T, d_qkv); and the stream with `delta` added, which is the stream from here on."""
    x_BTD = x_BTD if delta_BTD is None else x_BTD + delta_BTD
    return self.linear(normalize(x_BTD, p, 'attention_norm', self.model), p, 'qkv'), x_BTD

  def norm_qkv(
    self, x_BTD: Tensor, delta_BTD: Tensor | None, p: Params, rope_tables: tuple[Tensor, Tensor] | None, fused: bool
  ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `norm_linear`, with the projection split and rotated as `attention.split` does it: queries, keys, values, stream."""
    qkv_BTO, x_BTD = self.norm_linear(x_BTD, delta_BTD, p)
    return *attention.split(qkv_BTO, self.model, rope_tables, fused), x_BTD

  def norm_mlp(self, x_BTD: Tensor, delta_BTD: Tensor, p: Params) -> tuple[Tensor, Tensor]:
    """The MLP of the normed stream, (B, T, D), which is the stream's next delta; and the stream with `delta` added."""
    x_BTD = x_BTD + delta_BTD
    y_BTD = normalize(x_BTD, p, 'mlp_norm', self.model)
    if self.model.activation == 'swiglu':
      return self.linear(norm.swiglu(self.linear(y_BTD, p, 'gate_up')), p, 'down'), x_BTD
    return self.linear(norm.gelu(self.linear(y_BTD, p, 'up')), p, 'down'), x_BTD


def normalize(x_BTD: Tensor, p: Params, name: str, model: ModelSpec) -> Tensor:
  """The model's norm with the parameters `name.weight` (and `name.bias`), in x's dtype."""
  if model.norm == 'rmsnorm':
    return norm.rms_norm(x_BTD, p[f'{name}.weight'], model.norm_eps)
  return norm.layer_norm(x_BTD, p[f'{name}.weight'], p[f'{name}.bias'], model.norm_eps)
