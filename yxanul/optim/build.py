"""From the specification to the optimizer of a run."""

import torch
from torch import Tensor

from yxanul.config.groups import optimizer_groups
from yxanul.config.model_spec import ModelSpec
from yxanul.config.spec import OptimizerSpec
from yxanul.optim.adamw import adamw
from yxanul.optim.inherit import inheriting
from yxanul.optim.muon import muon
from yxanul.optim.transform import Transform, chain, clip_by_global_norm, only


def build(
  spec: OptimizerSpec,
  model: ModelSpec,
  parts_V2: Tensor | None = None,
  device: torch.device | None = None,
  joining: bool = False,
) -> Transform:
  """Clipping, then each group's optimizer over its parameters, with the group's weight decay and rate.

  Args:
    parts_V2: of the tokenizer's entries, as `inheriting` has them; wanted where `spec.inheritance` is not 0.
    device: of the parameters, wanted there too.
    joining: blocks may join late.

  Raises:
    ValueError: the groups do not cover the parameters, or give Muon something that is no block matrix.
  """
  groups, matrices = optimizer_groups(spec, model), model.packed_rows()
  decay = {name: group.weight_decay for name, group in groups.items()}
  multiplier = {name: group.lr_multiplier for name, group in groups.items()}
  names = {kind: [name for name, group in groups.items() if group.optimizer == kind] for kind in ('adamw', 'muon')}
  transforms = [clip_by_global_norm()]
  if names['adamw']:
    rest = only(adamw(spec.beta1, spec.beta2, spec.eps, decay, multiplier, joining), names['adamw'])
    if spec.inheritance:
      assert parts_V2 is not None
      rest = inheriting(rest, 'embedding.table', parts_V2, spec.inheritance, device)
    transforms.append(rest)
  if names['muon']:
    transforms.append(only(muon(spec.muon, matrices, decay, multiplier), names['muon']))
  return chain(*transforms)
