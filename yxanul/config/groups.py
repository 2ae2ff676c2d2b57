"""Which optimizer group a parameter belongs to."""

import re
from collections.abc import Iterable

from yxanul.config.model_spec import ModelSpec
from yxanul.config.spec import GroupSpec, OptimizerSpec


def optimizer_groups(spec: OptimizerSpec, model: ModelSpec) -> dict[str, GroupSpec]:
  """The group of every parameter of the model.

  Raises:
    ValueError: as `assign_groups`, or Muon is given something that is no block matrix.
  """
  groups, matrices = assign_groups(model.parameter_shapes(), spec.groups), model.packed_rows()
  for name, group in groups.items():
    if group.optimizer == 'muon' and name not in matrices:
      raise ValueError(
        f'config.optimizer.groups: pattern {group.pattern!r} gives muon {name!r}, wants block matrices only: '
        f'{", ".join(matrices)}'
      )
  return groups


def assign_groups(names: Iterable[str], groups: tuple[GroupSpec, ...]) -> dict[str, GroupSpec]:
  """The group of every parameter: the first whose pattern matches the whole name.

  Raises:
    ValueError: a parameter matches no pattern, or a pattern matches no parameter first.
  """
  assigned = {}
  for name in names:
    group = next((g for g in groups if re.fullmatch(g.pattern, name)), None)
    if group is None:
      patterns = ', '.join(repr(g.pattern) for g in groups)
      raise ValueError(
        f'config.optimizer.groups: parameter {name!r} matches none of {patterns}, wants a group for every parameter'
      )
    assigned[name] = group
  for group in groups:
    if group not in assigned.values():
      raise ValueError(
        f'config.optimizer.groups: pattern {group.pattern!r} is the first match of no parameter, wants at least one'
      )
  return assigned
