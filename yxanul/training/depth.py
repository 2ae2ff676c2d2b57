"""Stages that run the first blocks of the model alone; the others join later, as they were drawn.

A model that is young learns as much from a token with few blocks as with many, and a step of few is short (Gong et al. 2019,
http://proceedings.mlr.press/v97/gong19a.html; with a constant rate and Muon, Bu 2025, arXiv 2511.04981). A block that joins has
residual outputs scaled by 1/sqrt(2 L), so where the stream is large it changes next to nothing at first; its momentum is zero,
and AdamW counts its steps from there. Until then it has no gradient, no update and no weight decay.

Block parameters, their gradients and what the optimizer keeps of them are stacked by layer, so the first n are a view of them.
"""

from typing import Any

from torch import Tensor


def first(tree: Any, n_layers: int) -> Any:
  """`tree` with views of the first `n_layers` of whatever stands under the name of a block parameter."""
  return _map(lambda x: x[:n_layers], tree)


def restore(tree: Any, whole: Any) -> Any:
  """`tree`, which was made from `first` of `whole`, with the whole again of what was a view of it."""
  return _map(lambda _, x: x, tree, whole)


def _map(function, tree: Any, *others: Any, block: bool = False) -> Any:
  if isinstance(tree, Tensor):
    return function(tree, *others) if block else tree
  if isinstance(tree, dict):
    return {k: _map(function, v, *(x[k] for x in others), block=block or k.startswith('blocks.')) for k, v in tree.items()}
  return tuple(_map(function, *parts, block=block) for parts in zip(tree, *others, strict=True))
