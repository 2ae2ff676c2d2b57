"""The vocabulary loss, forward and backward: ours, torch.compile in chunks, Liger, cut-cross-entropy.

N tokens, R width in front of the head, V vocabulary. `cce` filters small gradients as it ships, `cce_exact` does not; neither
library gives the loss of single tokens. The floor is four products of 2 N V R operations: the logits, forward and once more
backward, and the two gradients.
"""

import functools

import torch
from torch import Tensor

from yxanul.config.model_spec import ModelSpec
from yxanul.kernels.bench.measure import Case, Step, Subject, Work
from yxanul.kernels.vocab_loss import vocab_loss


def cases(model: ModelSpec, n_tokens: int, device: torch.device) -> list[Case]:
  result = []
  for n, count in ((n_tokens // 4, 1), (n_tokens, None)):  # peers take a second each time, and more to compile
    floor = Work(flops=8 * n * model.vocab_size * model.head_width)
    result.append(Case(str(n), f'{n:,} tokens', _subjects(model, n, device)[:count], floor))
  return result


def _subjects(model: ModelSpec, n_tokens: int, device: torch.device) -> list[Subject]:
  on_gpu = device.type == 'cuda'
  functions = {'ours': functools.partial(_ours, 'triton' if on_gpu else 'chunked')}
  if on_gpu:
    exact = functools.partial(_cut_cross_entropy, None)
    filtered = functools.partial(_cut_cross_entropy, 'high')
    functions |= {'torch_compile': functools.partial(_ours, 'compiled'), 'liger': _liger, 'cce': filtered, 'cce_exact': exact}
  make = functools.partial(_step, model=model, n_tokens=n_tokens, device=device)
  # The libraries wait for the GPU now and then, which a graph forbids; they take long enough for launches not to matter.
  return [Subject(name, functools.partial(make, function), captures=name == 'ours') for name, function in functions.items()]


def _step(function, model: ModelSpec, n_tokens: int, device: torch.device) -> Step:
  dtype = torch.bfloat16 if device.type == 'cuda' else torch.float32
  x_NR = torch.randn(n_tokens, model.head_width, device=device).to(dtype).requires_grad_()
  table_VR = (0.02 * torch.randn(model.vocab_size, model.head_width, device=device)).requires_grad_()
  targets_N = torch.randint(model.vocab_size, (n_tokens,), device=device)
  return lambda: torch.autograd.grad(function(x_NR, table_VR, targets_N), (x_NR, table_VR))


def _ours(engine: str, x_NR: Tensor, table_VR: Tensor, targets_N: Tensor) -> Tensor:
  weights_N = torch.full(targets_N.shape, 1 / len(targets_N), device=x_NR.device)
  return vocab_loss(x_NR, table_VR, targets_N, weights_N, engine)[0]


def _liger(x_NR: Tensor, table_VR: Tensor, targets_N: Tensor) -> Tensor:
  from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

  return LigerFusedLinearCrossEntropyLoss()(table_VR.to(x_NR.dtype), x_NR, targets_N)


def _cut_cross_entropy(filter_eps: str | None, x_NR: Tensor, table_VR: Tensor, targets_N: Tensor) -> Tensor:
  from cut_cross_entropy import linear_cross_entropy

  return linear_cross_entropy(x_NR, table_VR.to(x_NR.dtype), targets_N, filter_eps=filter_eps)
