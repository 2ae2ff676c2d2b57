"""Linears in FP8 whose state is an explicit tree: per-tensor scaling, delayed or current (arXiv 2209.05433).

A linear multiplies three times a step: y = x W^T, dx = dy W and dW = dy^T x. Each of its three tensors (the roles input,
weight, gradient) is cast once: multiplied by a float32 scale, clamped, rounded to E4M3 (input, weight) or E5M2 (gradient).
Tensor cores multiply the FP8 values and sum in float32; the inverses of the scales undo them.

Where the scales come from:
- `delayed`, as Transformer Engine's DelayedScaling (HYBRID, 'max' over the history): every cast also writes max |x|, its amax;
  after the step `update` appends all amaxes to the history and sets every scale to largest / max(history) / 2^margin. A
  cast needs one pass over its tensor, and no scale depends on this step.
- `current`: the scale comes from the tensor's own amax, an extra pass over every tensor.
Not tried: a scale for every row or block, whose products are other kernels (MXFP8's are Blackwell's alone). Rejected: one scale
for the whole network, which underflows.

State is a dict: `scale` (L, 4, 3) float32, the factor before the cast; `amax_history` (H, L, 4, 3) float32, oldest first.
A step reads `scale` and raises a zeroed `amax` (L, 4, 3) in place, forward and backward; that buffer is donated to the step.
The first scales cannot be guessed: with scale 1 the gradient of a mean over 131,072 tokens is below E5M2's least value,
and every weight gradient is exactly zero. So before the first step one forward and backward on the first batch runs with
engine `calibrate` (no FP8 anywhere, so nothing underflows; amaxes are written all the same), and `update` makes scales of it.

Shapes: L layers, 4 linears (LINEARS), 3 roles (ROLES), H steps of history, N tokens, I and O a linear's widths. Engines need
N, I and O divisible by 16.
"""

import importlib

import torch
from torch import Tensor
from torch.nn import functional as F

from yxanul.config.model_spec import LINEARS, ModelSpec, PrecisionSpec
from yxanul.kernels.fp8_formats import BACKWARD, FORWARD, LARGEST, ROLE_LARGEST, ROLES, Matrix, scale_of

_FP8_ENGINES = {name: f'yxanul.kernels.fp8_{name}' for name in ('torch', 'reference')} | {'te': 'yxanul.kernels.fp8_mixed'}
_DTYPES = {'bf16': torch.bfloat16, 'fp32': torch.float32}

State = dict[str, Tensor]


def init(model: ModelSpec, precision: PrecisionSpec, device: torch.device | str = 'cpu') -> State:
  """Scales of 1 and an empty history. Calibrate before the first step."""
  shape = (model.n_layers, len(LINEARS), len(ROLES))
  return {
    'scale': torch.ones(shape, device=device),
    'amax_history': torch.zeros((precision.fp8_amax_history_steps, *shape), device=device),
  }


def update(state: State, amax_L43: Tensor, precision: PrecisionSpec, ok: Tensor) -> State:
  """The state after a step: amaxes join the history, scales follow its maximum. One update for all linears.

  A role whose maximum is 0 or not finite keeps its scale, as in Transformer Engine.

  Args:
    state: not changed.
    amax_L43: what the step wrote. With several processes, reduce it first (maximum).
    ok: 0-d bool; False returns the state as it was. FP8 saturates, so an infinite gradient can leave finite weight
      gradients: a step's `ok` should include `amax_L43.isfinite().all()`, or one infinity stays in the history for H steps.
  """
  history = torch.cat((state['amax_history'][1:], amax_L43[None]))
  # Filled on the device: a copy from the host could not be captured in a CUDA graph.
  largest_3 = torch.cat([amax_L43.new_full((1,), largest) for largest in ROLE_LARGEST])
  scale = scale_of(history.amax(0), largest_3, state['scale'], precision.fp8_margin)
  return {'scale': torch.where(ok, scale, state['scale']), 'amax_history': torch.where(ok, history, state['amax_history'])}


def linear(
  x_NI: Tensor,
  weight_OI: Tensor,
  bias_O: Tensor | None,
  scale_3: Tensor,
  amax_3: Tensor,
  engine: str,
  recipe: str = 'delayed',
) -> Tensor:
  """x W^T + b.

  Args:
    x_NI: (..., I), BF16 (`reference` takes FP32 too).
    weight_OI: FP32, or already BF16. Its gradient has its dtype.
    bias_O: its gradient is not quantized.
    scale_3: (3,) float32, this linear's scales; unused by `bf16`, `fp32` and `calibrate`.
    amax_3: (3,) float32, raised in place: input and weight in the forward pass, gradient in the backward pass. Untouched
      by `bf16` and `fp32`.
    engine: `te` (Transformer Engine), `torch` (torch._scaled_mm), `reference` (plain torch, any device), `calibrate` (x's
      dtype, amaxes only), `bf16`, `fp32`.
    recipe: `delayed` or `current`.

  Returns:
    (..., O) in x's dtype; in the engine's under `bf16` and `fp32`.
  """
  dtype = _DTYPES.get(engine, x_NI.dtype)
  bias_O = None if bias_O is None else bias_O.to(dtype)
  if engine in _DTYPES:
    return F.linear(x_NI.to(dtype), weight_OI.to(dtype), bias_O)
  if engine == 'calibrate':
    with torch.no_grad():
      _raise_amax(amax_3[0], x_NI)
      _raise_amax(amax_3[1], weight_OI)
    return _ObserveGradient.apply(F.linear(x_NI, weight_OI.to(dtype), bias_O), amax_3)
  y_NO = _Linear.apply(x_NI, weight_OI, scale_3, amax_3, load(engine), recipe, torch.is_grad_enabled())
  return y_NO if bias_O is None else y_NO + bias_O


def load(engine: str):
  """The module behind an FP8 engine: `cast` and `matmul`. Libraries are imported here, at the first use."""
  assert engine in _FP8_ENGINES, engine
  return importlib.import_module(_FP8_ENGINES[engine])


def cast(engine, x: Tensor, role: int, scale_3: Tensor, amax_3: Tensor, recipe: str, row: bool = True, column: bool = True):
  """Casts a contiguous matrix in a role through an engine's module; writes its amax. (matrix, transpose), where asked for."""
  dtype = BACKWARD if ROLES[role] == 'gradient' else FORWARD
  scale_1, amax_1 = scale_3[role : role + 1], amax_3[role : role + 1]
  if recipe == 'current':
    low, high = x.aminmax()
    own_1 = torch.maximum(-low, high).float().view(1)
    scale_1 = scale_of(own_1, LARGEST[dtype], torch.ones_like(own_1))
  return engine.cast(x, scale_1, amax_1, dtype, row, column)


class _Linear(torch.autograd.Function):
  """The three products. Saved for the backward pass are the transposes of x and W, in FP8."""

  @staticmethod
  def forward(ctx, x, weight_OI, scale_3, amax_3, engine, recipe, differentiable):
    x_NI = x.reshape(-1, x.shape[-1]).contiguous()
    needs_x, needs_weight = (differentiable and needed for needed in ctx.needs_input_grad[:2])
    x_row, x_column = cast(engine, x_NI, 0, scale_3, amax_3, recipe, column=needs_weight)
    w_row, w_column = cast(engine, weight_OI, 1, scale_3, amax_3, recipe, column=needs_x)
    saved = [m for m in (x_column, w_column) if m is not None]
    ctx.save_for_backward(*(tensor for m in saved for tensor in (m.data, m.scale_inv)))
    # Not among the saved tensors: the buffer is meant to change until the last backward has written to it.
    ctx.amax_3, ctx.scale_3 = amax_3, scale_3
    ctx.engine, ctx.recipe, ctx.weight_dtype, ctx.x_shape = engine, recipe, weight_OI.dtype, x.shape
    return engine.matmul(x_row, w_row, x.dtype, fast=True).view(*x.shape[:-1], -1)

  @staticmethod
  def backward(ctx, dy):
    dy_NO = dy.reshape(-1, dy.shape[-1]).contiguous()
    needs_x, needs_weight = ctx.needs_input_grad[:2]
    saved = iter(ctx.saved_tensors)
    x_column = Matrix(next(saved), next(saved), FORWARD) if needs_weight else None
    w_column = Matrix(next(saved), next(saved), FORWARD) if needs_x else None
    dy_row, dy_column = cast(ctx.engine, dy_NO, 2, ctx.scale_3, ctx.amax_3, ctx.recipe, needs_x, needs_weight)
    dx = dweight = None
    if needs_x:
      dx = ctx.engine.matmul(dy_row, w_column, dy.dtype, fast=False).view(ctx.x_shape)
    if needs_weight:
      dweight = ctx.engine.matmul(dy_column, x_column, ctx.weight_dtype, fast=False)
    return dx, dweight, None, None, None, None, None


class _ObserveGradient(torch.autograd.Function):
  @staticmethod
  def forward(ctx, y, amax_3):
    ctx.amax_3 = amax_3
    return y.view_as(y)

  @staticmethod
  def backward(ctx, dy):
    _raise_amax(ctx.amax_3[2], dy)
    return dy, None


def _raise_amax(amax: Tensor, x: Tensor) -> None:
  amax.copy_(torch.maximum(amax, x.abs().amax()))
