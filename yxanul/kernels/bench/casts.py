"""The casts of one layer each, and a layer's four linears with all their casts and norms, forward and backward.

M tokens, D model width, F hidden width. `ours` is the engine that a run takes, made of the faster of `te`, Transformer Engine's
functional layer, and `triton`, our own kernels. `te_modules_fp8` and `te_modules_bf16` are Transformer Engine's modules
(LayerNormLinear, Linear, LayerNormMLP), `torch_compile_bf16` is what a run without FP8 takes. A cast's floor is its bytes:
every tensor read once, every FP8 copy written once. The layer's is that of its casts and norms, and twelve products at the FP8
rate.
"""

import functools
import importlib
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from yxanul.config.model_spec import ModelSpec
from yxanul.kernels import fp8, fp8_fused, norm
from yxanul.kernels.bench.measure import Case, Step, Subject, Work
from yxanul.kernels.fp8_formats import BACKWARD

EPS = 1e-5


def cases(model: ModelSpec, n_tokens: int, device: torch.device) -> list[Case]:
  on_gpu = device.type == 'cuda'
  d, f, o = model.d_model, model.d_hidden, model.d_qkv
  make = functools.partial
  own = _engines(device)
  pieces: dict[str, tuple[str, Callable, int]] = {  # and the bytes of a token, BF16 in, both FP8 copies out
    'norm': ('add + norm + cast', make(_norm, d), 8 * d),
    'norm_backward': ('norm backward + add', make(_norm_backward, d), 8 * d),
    'swiglu': ('swiglu + cast', make(_swiglu, f), 6 * f),
    'dswiglu': ('dswiglu + cast', make(_dswiglu, f), 10 * f),
    f'gradient_{d}': (f'gradient cast, {d} wide', make(_gradient, d), 4 * d),
    f'gradient_{o}': (f'gradient cast, {o} wide', make(_gradient, o), 4 * o),
  }
  result = []
  for key, (shape, piece, token_bytes) in pieces.items():
    subjects = [Subject(name, make(piece, engine, n_tokens, device)) for name, engine in own.items()]
    result.append(Case(key, shape, subjects, Work(bytes=token_bytes * n_tokens)))
  products = 6 * n_tokens * d * (o + model.d_query + 3 * f)
  # Two norms each way, SwiGLU each way, attention's output cast, gradients of qkv, attention's output and the MLP's.
  casts = n_tokens * (4 * 8 * d + 16 * f + 3 * 4 * d + 4 * o)
  layers = {'ours': make(_layer, 'te' if on_gpu else 'reference')}
  if on_gpu:
    layers |= {
      'torch_compile_bf16': _compiled_layer,
      'te_modules_fp8': make(_modules, True),
      'te_modules_bf16': make(_modules, False),
    }
  subjects = [Subject(name, make(layer, model, n_tokens, device)) for name, layer in layers.items()]
  result.append(Case('layer', "one layer's linears", subjects, Work(bytes=casts, fp8_flops=products)))
  return result


def _engines(device: torch.device) -> dict[str, str]:
  """Modules of `kernels`."""
  return {'ours': 'fp8_mixed', 'te': 'fp8_te', 'triton': 'fp8_casts'} if device.type == 'cuda' else {'ours': 'fp8_reference'}


def _load(engine: str):
  return importlib.import_module(f'yxanul.kernels.{engine}')


def _draw(device: torch.device, *shape: int) -> Tensor:
  return torch.randn(*shape, device=device, dtype=torch.bfloat16)


def _state(device: torch.device, n: int = 1, *lead: int) -> tuple[Tensor, Tensor]:
  return torch.full((*lead, n), 20.0, device=device), torch.zeros(*lead, n, device=device)


def _norm(d: int, engine: str, m: int, device: torch.device) -> Step:
  module, (scale, amax) = _load(engine), _state(device)
  x, delta, gain = _draw(device, m, d), _draw(device, m, d), torch.ones(d, device=device)
  return lambda: module.norm_cast(x, delta, gain, EPS, scale, amax, True)


def _norm_backward(d: int, engine: str, m: int, device: torch.device) -> Step:
  module = _load(engine)
  dy, x, residual = (_draw(device, m, d) for _ in range(3))
  rstd, gain = torch.ones(m, device=device), torch.ones(d, device=device)
  return lambda: module.norm_backward(dy, x, rstd, gain, residual)


def _swiglu(f: int, engine: str, m: int, device: torch.device) -> Step:
  module, (scale, amax) = _load(engine), _state(device)
  h = _draw(device, m, 2 * f)
  return lambda: module.swiglu_cast(h, scale, amax, True)


def _dswiglu(f: int, engine: str, m: int, device: torch.device) -> Step:
  module, (scale, amax) = _load(engine), _state(device)
  dy, h = _draw(device, m, f), _draw(device, m, 2 * f)
  return lambda: module.dswiglu_cast(dy, h, scale, amax, True, True)


def _gradient(width: int, engine: str, m: int, device: torch.device) -> Step:
  module, (scale, amax) = _load(engine), _state(device)
  dy = _draw(device, m, width)
  return lambda: module.cast(dy, scale, amax, BACKWARD, True, True)


class _Layer(NamedTuple):
  """What a layer without its attention works on."""

  p: dict[str, Tensor]
  x: Tensor
  delta: Tensor
  dy: Tensor

  @property
  def inputs(self) -> tuple[Tensor, ...]:
    return self.x, self.delta, *self.p.values()


def _draw_layer(model: ModelSpec, m: int, device: torch.device) -> _Layer:
  d, query = model.d_model, model.d_query
  shapes = {'qkv': (model.d_qkv, d), 'out': (d, query), 'up': (2 * model.d_hidden, d), 'down': (d, model.d_hidden)}
  p = {name: (0.02 * torch.randn(*shape, device=device)).requires_grad_() for name, shape in shapes.items()}
  p |= {name: torch.ones(d, device=device, requires_grad=True) for name in ('gain1', 'gain2')}
  return _Layer(p, _draw(device, m, d).requires_grad_(), _draw(device, m, d).requires_grad_(), _draw(device, m, d))


def _layer(engine: str, model: ModelSpec, m: int, device: torch.device) -> Step:
  """As `model.transformer.block`, with the queries for attention's output."""
  layer, (scale, amax) = _draw_layer(model, m, device), _state(device, 3, 4)
  p = layer.p

  def step():
    qkv, stream = fp8_fused.norm_linear(layer.x, layer.delta, p['gain1'], p['qkv'], scale[0], amax[0], engine, EPS)
    out = fp8.linear(_Queries.apply(qkv, model.d_query), p['out'], None, scale[1], amax[1], engine)
    y, stream = fp8_fused.norm_mlp(stream, out, p['gain2'], p['up'], p['down'], scale[2:], amax[2:], engine, EPS)
    return torch.autograd.grad((y, stream), layer.inputs, (layer.dy, layer.dy))

  return step


def _compiled_layer(model: ModelSpec, m: int, device: torch.device) -> Step:
  """The same in BF16 by torch.compile, as a run without FP8 has it."""
  layer = _draw_layer(model, m, device)
  p = layer.p

  def linear(x: Tensor, name: str) -> Tensor:
    return torch.nn.functional.linear(x, p[name].to(x.dtype))

  @functools.partial(torch.compile, dynamic=False)
  def before(x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    x = x + delta
    return linear(norm.rms_norm(x, p['gain1'], EPS), 'qkv'), x

  @functools.partial(torch.compile, dynamic=False)
  def after(mixed: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x + linear(mixed, 'out')
    return linear(norm.swiglu(linear(norm.rms_norm(x, p['gain2'], EPS), 'up')), 'down'), x

  def step():
    qkv, stream = before(layer.x, layer.delta)
    y_and_stream = after(_Queries.apply(qkv, model.d_query), stream)
    return torch.autograd.grad(y_and_stream, layer.inputs, (layer.dy, layer.dy))

  return step


class _Queries(torch.autograd.Function):
  """Stands for attention and costs nothing: hands on a tensor of the right size, and a gradient of the right size back."""

  @staticmethod
  def forward(ctx, qkv_MO, width):
    ctx.save_for_backward(qkv_MO)
    return torch.as_strided(qkv_MO, (len(qkv_MO), width), (width, 1)).detach()

  @staticmethod
  def backward(ctx, dmixed):
    return ctx.saved_tensors[0], None


def _modules(with_fp8: bool, model: ModelSpec, m: int, device: torch.device) -> Step:
  import transformer_engine.pytorch as te
  from transformer_engine.common.recipe import DelayedScaling, Format

  common = {'bias': False, 'params_dtype': torch.bfloat16, 'device': device}
  norm = {'normalization': 'RMSNorm', 'eps': EPS}
  qkv = te.LayerNormLinear(model.d_model, model.d_qkv, **common, **norm)
  out = te.Linear(model.d_query, model.d_model, **common)
  mlp = te.LayerNormMLP(model.d_model, model.d_hidden, activation='swiglu', **common, **norm)
  inputs = [p for module in (qkv, out, mlp) for p in module.parameters()]
  x, dy = _draw(device, m, model.d_model).requires_grad_(), _draw(device, m, model.d_model)
  recipe = DelayedScaling(fp8_format=Format.HYBRID, amax_history_len=1024, amax_compute_algo='max')

  def step():
    with te.fp8_autocast(enabled=with_fp8, fp8_recipe=recipe):
      h = x + out(_Queries.apply(qkv(x), model.d_query))
      return torch.autograd.grad(h + mlp(h), (x, *inputs), dy)

  return step


def fused_adam() -> type[torch.optim.Optimizer]:
  """Transformer Engine's, which only this place may import."""
  from transformer_engine.pytorch.optimizers import FusedAdam

  return FusedAdam
