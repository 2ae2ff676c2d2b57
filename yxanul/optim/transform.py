"""The optimizer contract: a pair (init, update) over trees, and how pairs are chained (after optax).

A tree is a flat dict, name to tensor. `update` takes gradients and gives what is to be added to the parameters; gradients
and state are donated: their memory may be reused for the result, so the caller must not read them again.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

Tree = dict[str, Tensor]
State = Any


class Hyper(NamedTuple):
  """What changes from step to step, as 0-d FP32 tensors, so that no value is compiled into a step."""

  learning_rate: Tensor
  max_norm: Tensor  # gradients of a larger global norm are scaled down to it
  norm: Tensor  # the global norm of this step's gradients
  ok: Tensor  # 1 to take the step; 0 to leave parameters and state as they are


class Transform(NamedTuple):
  """`init(params) -> state` and `update(gradients, state, params, hyper) -> (updates, state)`."""

  init: Callable[[Tree], State]
  update: Callable[[Tree, State, Tree, Hyper], tuple[Tree, State]]


def chain(*transforms: Transform) -> Transform:
  """Applies transforms one after another; the state is the tuple of theirs."""

  def init(params: Tree) -> State:
    return tuple(t.init(params) for t in transforms)

  def update(gradients: Tree, state: State, params: Tree, hyper: Hyper) -> tuple[Tree, State]:
    states = []
    for transform, part in zip(transforms, state, strict=True):
      gradients, part = transform.update(gradients, part, params, hyper)
      states.append(part)
    return gradients, tuple(states)

  return Transform(init, update)


def only(transform: Transform, names: Iterable[str]) -> Transform:
  """`transform` over these parameters alone; the gradients of the others pass through as they are."""
  names = tuple(names)

  def init(params: Tree) -> State:
    return transform.init({name: params[name] for name in names})

  def update(gradients: Tree, state: State, params: Tree, hyper: Hyper) -> tuple[Tree, State]:
    updates, state = transform.update({name: gradients[name] for name in names}, state, params, hyper)
    return {**gradients, **updates}, state

  return Transform(init, update)


def global_norm(tree: Tree) -> Tensor:
  """The L2 norm over all tensors together, 0-d."""
  return torch.nn.utils.get_total_norm(tree.values())


def clip_by_global_norm() -> Transform:
  """Scales gradients to norm at most `hyper.max_norm` (arXiv 1211.5063); zeroes them on a step that is not ok."""

  def update(gradients: Tree, state: State, params: Tree, hyper: Hyper) -> tuple[Tree, State]:
    scale = torch.clamp(hyper.max_norm / hyper.norm, max=1.0)
    # Not a product with `ok`: a NaN times zero is a NaN.
    return {name: torch.where(hyper.ok > 0, g * scale, 0.0) for name, g in gradients.items()}, state

  return Transform(lambda params: (), update)


def apply_updates(params: Tree, updates: Tree) -> Tree:
  """Adds the updates to the parameters, in place, and returns them."""
  for name, update in updates.items():
    params[name].add_(update)
  return params
