"""What a training step takes and gives back, whole."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from yxanul.config.spec import ExperimentSpec
from yxanul.model import transformer
from yxanul.optim import inherit
from yxanul.optim.transform import Transform, Tree
from yxanul.training import spikes


class TrainState(NamedTuple):
  """The explicit tree of a run. Leaves are tensors on the run's device."""

  step: Tensor  # 0-d int64: steps taken, skipped ones included
  params: transformer.Params
  opt_state: Any
  fp8_state: dict[str, Tensor]  # empty where no linear runs in FP8
  loss_state: dict[str, Tensor]  # running statistics of the loss, see training.spikes
  rng: Tensor  # (2,) int64: the seed, and 0: training draws nothing, so it stays as it is
  data_state: Tensor  # 0-d int64: target tokens consumed, which is the loader's whole position


def init_state(
  spec: ExperimentSpec,
  optimizer: Transform,
  fp8_state: dict[str, Tensor],
  device: torch.device,
  own: Callable[[Tree], Tree] = lambda params: params,
  parts_V2: Tensor | None = None,
) -> TrainState:
  """The state before the first step. Parameters are drawn on the CPU, so that every device starts from the same.

  Args:
    own: of the parameters what the optimizer is to have state of, see training.sharding.
    parts_V2: of the tokenizer's entries, as `optim.inherit` has them; wanted where `optimizer.inheritance` is not 0.
  """
  params = transformer.init(spec.model, torch.Generator().manual_seed(spec.seed))
  if spec.optimizer.inheritance:
    assert parts_V2 is not None
    params['embedding.table'] = inherit.start(params['embedding.table'], parts_V2, spec.optimizer.inheritance)
  params = {name: p.to(device) for name, p in params.items()}
  return TrainState(
    step=torch.zeros((), dtype=torch.int64, device=device),
    params=params,
    opt_state=optimizer.init(own(params)),
    fp8_state=fp8_state,
    loss_state=spikes.init(device),
    rng=torch.tensor([spec.seed, 0], dtype=torch.int64, device=device),
    data_state=torch.zeros((), dtype=torch.int64, device=device),
  )


def generator(rng: Tensor) -> torch.Generator:
  """The random stream that `rng` stands for, the same whenever it is asked for; the samples at the end are drawn from it."""
  seed, number = rng.tolist()
  return torch.Generator().manual_seed((seed << 24) + number + 1)


def flatten(tree: Any, prefix: str = '') -> dict[str, Tensor]:
  """Leaves by path, 'opt_state/1/first/final_norm.weight': NamedTuples by field, tuples by index, dicts by key."""
  if isinstance(tree, Tensor):
    return {prefix: tree}
  if isinstance(tree, dict):
    items = tree.items()
  elif hasattr(tree, '_fields'):
    items = zip(tree._fields, tree, strict=True)
  else:
    items = ((str(i), item) for i, item in enumerate(tree))
  return {k: v for key, item in items for k, v in flatten(item, f'{prefix}/{key}' if prefix else key).items()}
