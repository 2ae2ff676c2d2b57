"""The sublayers of a block in FP8: `kernels.linear.Linears` over one step's scales and amaxes."""

import dataclasses

from torch import Tensor

from yxanul.config.model_spec import LINEARS, PrecisionSpec
from yxanul.kernels import fp8, fp8_fused
from yxanul.kernels.linear import Linears, Params

_ROLE = {'qkv': 0, 'attention_out': 1, 'gate_up': 2, 'up': 2, 'down': 3}  # in LINEARS


@dataclasses.dataclass(frozen=True)
class Fp8Linears(Linears):
  """`engine` runs the linears in `precision.fp8_linears`, BF16 the others.

  `scale` and `amax` are (L, 4, 3) FP32 for the whole model, and (4, 3) in what `at` returns; amaxes are raised in place.
  """

  precision: PrecisionSpec
  engine: str
  scale: Tensor
  amax: Tensor

  def at(self, layer: int) -> 'Fp8Linears':
    return dataclasses.replace(self, scale=self.scale[layer], amax=self.amax[layer])

  def linear(self, x: Tensor, p: Params, name: str) -> Tensor:
    role = _ROLE[name]
    engine = self.engine if LINEARS[role] in self.precision.fp8_linears else 'bf16'
    scale_3, amax_3 = self.scale[role], self.amax[role]
    return fp8.linear(x, p[f'{name}.weight'], p.get(f'{name}.bias'), scale_3, amax_3, engine, self.precision.fp8_recipe)

  def norm_linear(self, x_BTD: Tensor, delta_BTD: Tensor | None, p: Params) -> tuple[Tensor, Tensor]:
    if not self._fuses('qkv'):
      return super().norm_linear(x_BTD, delta_BTD, p)
    return fp8_fused.norm_linear(*self._qkv(x_BTD, delta_BTD, p), self.precision.fp8_recipe)

  def norm_qkv(
    self, x_BTD: Tensor, delta_BTD: Tensor | None, p: Params, rope_tables: tuple[Tensor, Tensor] | None, fused: bool
  ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    precision, model = self.precision, self.model
    if not (fused and rope_tables and self._fuses('qkv') and fp8_fused.fuses(self.engine, precision.fp8_recipe)):
      return super().norm_qkv(x_BTD, delta_BTD, p, rope_tables, fused)
    rotation = fp8_fused.Rotation(*rope_tables, model.n_heads, model.n_kv_heads, model.head_dim)
    return fp8_fused.norm_qkv(*self._qkv(x_BTD, delta_BTD, p), rotation)

  def _qkv(self, x_BTD: Tensor, delta_BTD: Tensor | None, p: Params) -> tuple:
    """What the fused functions of the first sublayer take alike."""
    weights = p['attention_norm.weight'], p['qkv.weight']
    return x_BTD, delta_BTD, *weights, self.scale[0], self.amax[0], self.engine, self.model.norm_eps

  def norm_mlp(self, x_BTD: Tensor, delta_BTD: Tensor, p: Params) -> tuple[Tensor, Tensor]:
    if not self._fuses('up', 'down'):
      return super().norm_mlp(x_BTD, delta_BTD, p)
    return fp8_fused.norm_mlp(
      x_BTD,
      delta_BTD,
      p['mlp_norm.weight'],
      p['gate_up.weight'],
      p['down.weight'],
      self.scale[2:],
      self.amax[2:],
      self.engine,
      self.model.norm_eps,
      self.precision.fp8_recipe,
    )

  def _fuses(self, *linears: str) -> bool:
    """Whether the fused functions say the same: they know RMSNorm, SwiGLU and no bias."""
    model = self.model
    plain = model.norm == 'rmsnorm' and model.activation == 'swiglu' and not model.bias
    return plain and all(name in self.precision.fp8_linears for name in linears)
