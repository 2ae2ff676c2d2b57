"""Which optimizer group a parameter belongs to."""

import re
from collections.abc import Iterable

from yxanul.config.spec import GroupSpec


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
