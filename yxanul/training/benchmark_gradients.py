"""How near each format's gradients are to FP32's, and the FP8 engine's to the reference engine's at equal scales.

All gradients are of one batch at one state: at initialization (scales calibrated), and after some steps of training in the
experiment's own format. Per parameter:

- cosine with the gradient that linears, attention and residual stream in FP32 give, for the FP8 engine and for BF16. A
  cosine, because roundings add noise that is nearly orthogonal to the gradient: a relative error r leaves a cosine of about
  1 - r^2 / 2;
- relative difference of the FP8 engine and `reference`, |a - b| / |b|, at the same scales. Roundings are chaotic: inputs of a
  cast that differ by e (in BF16, by the order of a sum) come out apart by about sqrt(0.8 e step), so this grows with the
  number of casts between the loss and a parameter, whatever the engine.

The worst parameter is named, and beside it the worst layer of a stacked one.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from yxanul.config.spec import ExperimentSpec
from yxanul.data.prepare import Prepared
from yxanul.kernels.capabilities import Capabilities, Engines, choose_engines
from yxanul.optim.schedule import learning_rate
from yxanul.training import depth
from yxanul.training.benchmark import narrowed
from yxanul.training.curriculum import Curriculum, Stage
from yxanul.training.step import differentiate, fp8_numerics, is_fp8, plain_numerics
from yxanul.training.trainer import Trainer, set_up_torch

Row = dict[str, Any]
Gradients = dict[str, Tensor]
_PIECE_TOKENS = 8192  # at a time: FP32 and the reference engine keep several times what a fused FP8 step keeps


def measure(
  spec: ExperimentSpec, stage: int, steps: int, prepared: Prepared, capabilities: Capabilities, tell: Callable[[str], None]
) -> Row:
  """Compares gradients over one batch of a stage (number from 1), at initialization and after `steps` steps of that stage.

  Raises:
    ValueError: the experiment's linears do not run in FP8 here; or as `Trainer`.
  """
  spec = narrowed(spec, [stage])
  budget = (1 + steps) * spec.curriculum.stages[0].tokens_per_step
  spec = dataclasses.replace(spec, curriculum=dataclasses.replace(spec.curriculum, budget_tokens=budget))
  engines = choose_engines(capabilities, spec.precision, spec.model.head_width)
  if not is_fp8(engines):
    raise ValueError(f'--what=gradients: linears run in {engines.linear} here, wants FP8 ({"; ".join(engines.notes)})')
  device, curriculum = set_up_torch(spec, capabilities), Curriculum(spec)
  trainer = Trainer(spec, curriculum, capabilities, engines, device, prepared)
  trainer.warm(0, calibrate_first=True, tell=tell)
  (only,) = curriculum.stages
  batches = trainer.batches(0)
  batch = next(batches).to(device, copy=True)  # no step trains on it
  moments = [{'steps': 0, **compare(trainer, only, batch)}]
  state = trainer.state
  for taken, tokens in enumerate(batches, start=1):
    rate = learning_rate(taken / steps, only.lr_factor, spec.optimizer)
    state, metrics = trainer.step(only, state, tokens, rate, only.spec.grad_clip)
  trainer.state = state
  moments.append({'steps': steps, 'loss': metrics.loss.item(), **compare(trainer, only, batch)})
  return {'seq_len': only.spec.seq_len, 'tokens': only.spec.tokens_per_step, 'engine': engines.linear, 'moments': moments}


def compare(trainer: Trainer, stage: Stage, tokens: Tensor) -> Row:
  """The comparison at the trainer's state: 'parameters' by name, and the worst of each figure with its name."""
  spec, n_layers = trainer.spec, trainer.spec.model_of(stage.spec).n_layers
  params = depth.first(trainer.state.params, n_layers)
  engines = dataclasses.replace(trainer.engines, attention=trainer.choices()['attention'][stage.index])
  rows = stage.spec.batch_size
  pieces = next(
    n for n in range(1, rows + 1) if rows % n == 0 and (n == rows or rows // n * stage.spec.seq_len <= _PIECE_TOKENS)
  )

  def gradients(engines: Engines) -> Gradients:
    compiled = engines.linear != 'fp32' and trainer.device.type == 'cuda'  # the path that trains
    numerics = plain_numerics(spec, engines, compiled)
    if is_fp8(engines):
      scale = trainer.state.fp8_state['scale']
      numerics = fp8_numerics(spec, engines, engines.linear, scale, torch.zeros_like(scale), compiled)
    return differentiate(params, tokens, stage.spec, spec, numerics, engines, trainer.text, pieces)[2]

  exact = gradients(Engines('fp32', 'sdpa', 'chunked'))
  in_bf16 = gradients(dataclasses.replace(engines, linear='bf16'))
  in_fp8 = gradients(engines)
  reference = gradients(dataclasses.replace(engines, linear='reference'))
  parameters = {
    name: {
      'cosine_fp8': cosine(in_fp8[name], exact[name]),
      'cosine_bf16': cosine(in_bf16[name], exact[name]),
      'difference_reference': difference(in_fp8[name], reference[name]),
    }
    for name in params
  }
  worst = {
    'cosine_fp8': min(parameters, key=lambda name: parameters[name]['cosine_fp8']),
    'cosine_bf16': min(parameters, key=lambda name: parameters[name]['cosine_bf16']),
    'difference_reference': max(parameters, key=lambda name: parameters[name]['difference_reference']),
  }
  layers = {
    f'{name}[{i}]': cosine(in_fp8[name][i], exact[name][i])
    for name in params
    if name.startswith('blocks.')
    for i in range(n_layers)
  }
  layer = min(layers, key=layers.get)
  zero = [name for name, gradient in in_fp8.items() if not gradient.any()]
  return {'parameters': parameters, 'worst': worst, 'worst_layer': {'name': layer, 'cosine_fp8': layers[layer]}, 'zero': zero}


def cosine(a: Tensor, b: Tensor) -> float:
  """Of the angle between two tensors, summed in FP64."""
  a, b = a.double().flatten(), b.double().flatten()
  return (a @ b / (a.norm() * b.norm())).item()


def difference(a: Tensor, b: Tensor) -> float:
  """|a - b| / |b|, summed in FP64."""
  return ((a.double() - b.double()).norm() / b.double().norm()).item()


def figures(result: Row) -> Row:
  """What `measure` found, in the form of a record."""
  found = {}
  for name, key, of in (
    ('gradient_cosine_min', 'cosine_fp8', min),
    ('gradient_cosine_bf16_min', 'cosine_bf16', min),
    ('gradient_difference_reference_max', 'difference_reference', max),
  ):
    value = of(moment['parameters'][moment['worst'][key]][key] for moment in result['moments'])
    found[name] = {'value': value, 'unit': 'cosine' if of is min else 'share'}
  return found
