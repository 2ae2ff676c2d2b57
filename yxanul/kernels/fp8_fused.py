"""Norm, cast and linear as one function; norm, cast, up, SwiGLU, cast and down as another.

At d_model 768 the casts around FP8 products cost about as much as the products (measured on an H200), unless what
produces a tensor also casts it: then the normed input and the SwiGLU output are never written in BF16, nor are the two
halves of SwiGLU's gradient. Both functions also take over the residual connections: forward they add what the sublayer before
returned (`delta`) to the stream, inside the norm, and hand the sum on; backward they add the gradient that reaches the stream
past the norm, inside the norm's own.

Shapes: N tokens, D model width, O output width, F hidden width, U = 2F gate and up side by side.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from yxanul.kernels import fp8, norm
from yxanul.kernels.fp8_formats import FORWARD, Matrix

_UNFUSED = ('calibrate', 'bf16', 'fp32')


class Rotation(NamedTuple):
  """How a packed projection is split and rotated; the tables are `attention.rope_tables`."""

  cos_TC2: Tensor
  sin_TC2: Tensor
  n_heads: int
  n_kv_heads: int
  head_dim: int


def fuses(engine: str, recipe: str) -> bool:
  """Whether norms and activations are fused with casts; current scaling must see a whole tensor before it can cast it."""
  return engine not in _UNFUSED and recipe == 'delayed'


def norm_linear(
  x_ND: Tensor,
  delta_ND: Tensor | None,
  gain_D: Tensor,
  weight_OD: Tensor,
  scale_3: Tensor,
  amax_3: Tensor,
  engine: str,
  eps: float,
  recipe: str = 'delayed',
) -> tuple[Tensor, Tensor]:
  """RMSNorm(x + delta) W^T, and x + delta. Arguments as in `fp8.linear`, without bias.

  Args:
    x_ND: the residual stream, (..., D).
    delta_ND: what the sublayer before adds to it; None in front of the first.

  Returns:
    (..., O) in x's dtype; the residual stream, to be used from here on.
  """
  if not fuses(engine, recipe):
    x_ND = x_ND if delta_ND is None else x_ND + delta_ND
    return fp8.linear(norm.rms_norm(x_ND, gain_D, eps), weight_OD, None, scale_3, amax_3, engine, recipe), x_ND
  training = torch.is_grad_enabled()
  return _NormLinear.apply(x_ND, delta_ND, gain_D, weight_OD, scale_3, amax_3, fp8.load(engine), eps, training, None)


def norm_qkv(
  x_BTD: Tensor,
  delta_BTD: Tensor | None,
  gain_D: Tensor,
  weight_OD: Tensor,
  scale_3: Tensor,
  amax_3: Tensor,
  engine: str,
  eps: float,
  rotation: Rotation,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
  """`norm_linear` of an engine that fuses, its result split and rotated: q_BTHC, k_BTKC, v_BTKC and x + delta.

  Backward the three gradients are turned back and cast in one pass, so that the projection's own is never written.
  """
  training = torch.is_grad_enabled()
  return _NormLinear.apply(x_BTD, delta_BTD, gain_D, weight_OD, scale_3, amax_3, fp8.load(engine), eps, training, rotation)


def norm_mlp(
  x_ND: Tensor,
  delta_ND: Tensor | None,
  gain_D: Tensor,
  up_weight_UD: Tensor,
  down_weight_DF: Tensor,
  scale_23: Tensor,
  amax_23: Tensor,
  engine: str,
  eps: float,
  recipe: str = 'delayed',
) -> tuple[Tensor, Tensor]:
  """SwiGLU(RMSNorm(x + delta) W_up^T) W_down^T, and x + delta. Arguments as in `norm_linear`.

  Args:
    scale_23, amax_23: those of `up`, then of `down`.

  Returns:
    (..., D) in x's dtype, which is the stream's next delta; the residual stream, to be used from here on.
  """
  if not fuses(engine, recipe):
    x_ND = x_ND if delta_ND is None else x_ND + delta_ND
    h_NU = fp8.linear(norm.rms_norm(x_ND, gain_D, eps), up_weight_UD, None, scale_23[0], amax_23[0], engine, recipe)
    return fp8.linear(norm.swiglu(h_NU), down_weight_DF, None, scale_23[1], amax_23[1], engine, recipe), x_ND
  engine = fp8.load(engine)
  weights = (up_weight_UD, down_weight_DF)
  return _NormMlp.apply(x_ND, delta_ND, gain_D, *weights, scale_23, amax_23, engine, eps, torch.is_grad_enabled())


def _flat(x: Tensor | None) -> Tensor | None:
  return None if x is None else x.reshape(-1, x.shape[-1]).contiguous()


class _NormLinear(torch.autograd.Function):
  @staticmethod
  def forward(ctx, x, delta, gain_D, weight_OD, scale_3, amax_3, engine, eps, training, rotation):
    ctx.has_delta = delta is not None
    n_row, n_column, rstd_N, x_ND = engine.norm_cast(_flat(x), _flat(delta), gain_D, eps, scale_3[0:1], amax_3[0:1], training)
    w_row, w_column = fp8.cast(engine, weight_OD, 1, scale_3, amax_3, 'delayed', column=training)
    if training:
      ctx.save_for_backward(x_ND, gain_D, rstd_N, n_column.data, n_column.scale_inv, w_column.data, w_column.scale_inv)
    ctx.scale_3, ctx.amax_3, ctx.engine, ctx.weight_dtype, ctx.rotation = scale_3, amax_3, engine, weight_OD.dtype, rotation
    y = engine.matmul(n_row, w_row, x.dtype, fast=True).view(*x.shape[:-1], -1)
    return *((y,) if rotation is None else engine.split(y, *rotation)), x_ND.view(x.shape)

  @staticmethod
  def backward(ctx, *gradients):
    *dy, dx_residual = gradients
    x_ND, gain_D, rstd_N, *columns = ctx.saved_tensors
    n_column, w_column = Matrix(*columns[:2], FORWARD), Matrix(*columns[2:], FORWARD)
    if ctx.rotation is None:
      dy_row, dy_column = fp8.cast(ctx.engine, _flat(dy[0]), 2, ctx.scale_3, ctx.amax_3, 'delayed')
    else:
      tables = ctx.rotation.cos_TC2, ctx.rotation.sin_TC2
      dy_row, dy_column = ctx.engine.turn_back_cast(*dy, *tables, ctx.scale_3[2:3], ctx.amax_3[2:3])
    dn_ND = ctx.engine.matmul(dy_row, w_column, dx_residual.dtype, fast=False)
    dweight = ctx.engine.matmul(dy_column, n_column, ctx.weight_dtype, fast=False)
    dx_ND, dgain = ctx.engine.norm_backward(dn_ND, x_ND, rstd_N, gain_D, _flat(dx_residual))
    dx = dx_ND.view(dx_residual.shape)
    return dx, dx if ctx.has_delta else None, dgain, dweight, None, None, None, None, None, None


class _NormMlp(torch.autograd.Function):
  @staticmethod
  def forward(ctx, x, delta, gain_D, up_UD, down_DF, scale_23, amax_23, engine, eps, training):
    ctx.has_delta = delta is not None
    n_row, n_column, rstd_N, x_ND = engine.norm_cast(
      _flat(x), _flat(delta), gain_D, eps, scale_23[0, 0:1], amax_23[0, 0:1], training
    )
    up_row, up_column = fp8.cast(engine, up_UD, 1, scale_23[0], amax_23[0], 'delayed', column=training)
    h_NU = engine.matmul(n_row, up_row, x.dtype, fast=True)
    a_row, a_column = engine.swiglu_cast(h_NU, scale_23[1, 0:1], amax_23[1, 0:1], training)
    down_row, down_column = fp8.cast(engine, down_DF, 1, scale_23[1], amax_23[1], 'delayed', column=training)
    if training:
      columns = [t for m in (n_column, up_column, a_column, down_column) for t in (m.data, m.scale_inv)]
      ctx.save_for_backward(x_ND, gain_D, rstd_N, h_NU, *columns)
    ctx.scale_23, ctx.amax_23, ctx.engine, ctx.weight_dtype = scale_23, amax_23, engine, up_UD.dtype
    return engine.matmul(a_row, down_row, x.dtype, fast=True).view(x.shape), x_ND.view(x.shape)

  @staticmethod
  def backward(ctx, dy, dx_residual):
    x_ND, gain_D, rstd_N, h_NU, *columns = ctx.saved_tensors
    n_column, up_column, a_column, down_column = (Matrix(*columns[i : i + 2], FORWARD) for i in range(0, 8, 2))
    engine, scale_23, amax_23 = ctx.engine, ctx.scale_23, ctx.amax_23
    dy_row, dy_column = fp8.cast(engine, _flat(dy), 2, scale_23[1], amax_23[1], 'delayed')
    da_NF = engine.matmul(dy_row, down_column, dy.dtype, fast=False)
    d_down = engine.matmul(dy_column, a_column, ctx.weight_dtype, fast=False)
    dh_row, dh_column = engine.dswiglu_cast(da_NF, h_NU, scale_23[0, 2:3], amax_23[0, 2:3], True, True)
    dn_ND = engine.matmul(dh_row, up_column, dy.dtype, fast=False)
    d_up = engine.matmul(dh_column, n_column, ctx.weight_dtype, fast=False)
    dx_ND, dgain = engine.norm_backward(dn_ND, x_ND, rstd_N, gain_D, _flat(dx_residual))
    dx = dx_ND.view(dx_residual.shape)
    return dx, dx if ctx.has_delta else None, dgain, d_up, d_down, None, None, None, None, None
