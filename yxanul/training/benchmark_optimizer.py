"""Norm, clip and update of every parameter: the step's own optimizer, and the fused AdamW of torch and Transformer Engine.

The floor is bytes in FP32: the gradients once for their norm; then gradients, parameters and both moments in, parameters and
moments out. 32 bytes a parameter. `ours_muon` is the step with Muon for the block matrices: 24 bytes of each of their
parameters, and the products of Newton-Schulz, which the floor does not count.
"""

import dataclasses
import functools

import torch
from torch import Tensor

from yxanul.config.model_spec import ModelSpec
from yxanul.config.spec import OptimizerSpec
from yxanul.kernels.bench.measure import Case, Step, Subject, Work
from yxanul.optim.build import build
from yxanul.optim.transform import Hyper, Transform, Tree, apply_updates, global_norm

_BETAS, _EPS, _DECAY, _RATE, _MAX_NORM = (0.9, 0.95), 1e-8, 0.1, 1e-4, 1.0


def cases(model: ModelSpec, n_tokens: int, device: torch.device) -> list[Case]:
  """The number of tokens does not matter to an optimizer."""
  make = functools.partial
  adamw = OptimizerSpec(beta1=_BETAS[0], beta2=_BETAS[1], eps=_EPS)
  blocks, *rest = adamw.groups
  muon = dataclasses.replace(adamw, groups=(dataclasses.replace(blocks, optimizer='muon'), *rest))
  subjects = [Subject('ours', make(_ours, model, device, adamw))]
  if device.type == 'cuda':
    subjects += [
      Subject('ours_muon', make(_ours, model, device, muon)),
      Subject('torch_fused', make(_torch, model, device, {'fused': True})),
      Subject('torch_foreach', make(_torch, model, device, {'foreach': True})),
      Subject('te_fused', make(_transformer_engine, model, device)),
    ]
  n = model.parameter_count()
  return [Case(str(n), f'{n:,} parameters', subjects, Work(bytes=32 * n))]


def _draw(model: ModelSpec, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
  shapes = model.parameter_shapes()
  params, gradients = ({name: torch.randn(shape, device=device) for name, shape in shapes.items()} for _ in range(2))
  return params, gradients


def _ours(model: ModelSpec, device: torch.device, spec: OptimizerSpec) -> Step:
  return updating(build(spec, model), *_draw(model, device), device)


def updating(optimizer: Transform, params: Tree, gradients: Tree, device: torch.device) -> Step:
  """The global norm and an update of all parameters, compiled on a GPU as in a step."""
  update = torch.compile(optimizer.update, dynamic=False) if device.type == 'cuda' else optimizer.update
  state = optimizer.init(params)
  rate, max_norm, ok = (torch.tensor(value, device=device) for value in (_RATE, _MAX_NORM, 1.0))

  @torch.no_grad()
  def step():
    hyper = Hyper(rate, max_norm, global_norm(gradients), ok)
    apply_updates(params, update(gradients, state, params, hyper)[0])

  return step


def _torch(model: ModelSpec, device: torch.device, kind: dict[str, bool]) -> Step:
  parameters = _parameters(model, device)
  rate = torch.tensor(_RATE, device=device)
  return _clipped(parameters, torch.optim.AdamW(parameters, rate, _BETAS, _EPS, weight_decay=_DECAY, capturable=True, **kind))


def _transformer_engine(model: ModelSpec, device: torch.device) -> Step:
  from yxanul.kernels.bench import casts

  parameters = _parameters(model, device)
  return _clipped(parameters, casts.fused_adam()(parameters, _RATE, _BETAS, _EPS, _DECAY, capturable=True))


def _parameters(model: ModelSpec, device: torch.device) -> list[torch.nn.Parameter]:
  params, gradients = _draw(model, device)
  parameters = [torch.nn.Parameter(p) for p in params.values()]
  for parameter, gradient in zip(parameters, gradients.values(), strict=True):
    parameter.grad = gradient
  return parameters


def _clipped(parameters: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> Step:
  def step():
    torch.nn.utils.clip_grad_norm_(parameters, _MAX_NORM, foreach=True)
    optimizer.step()

  return step
