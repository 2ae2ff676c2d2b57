"""How a wrong field is reported: one line that names the field, what it got and what it wants."""

import difflib
import re
from typing import Any

_SHOWN_CHARACTERS = 200  # of a wrong value


class FieldError(ValueError):
  """A field of the configuration has a value it cannot have."""

  def __init__(self, field: str, got: Any, wants: str):
    shown = repr(got)
    shown = shown if len(shown) <= _SHOWN_CHARACTERS else shown[:_SHOWN_CHARACTERS] + '...'
    super().__init__(f'config.{field}: got {shown}, wants {wants}')
    self.field = field


def require(condition: bool, field: str, got: Any, wants: str) -> None:
  if not condition:
    raise FieldError(field, got, wants)


def one_of(value: str, choices: tuple[str, ...], field: str) -> None:
  if value not in choices:
    near = difflib.get_close_matches(str(value), choices, n=1)
    hint = f' (did you mean {near[0]!r}?)' if near else ''
    raise FieldError(field, value, f'one of {", ".join(choices)}{hint}')


def unknown_field(field: str, known: list[str]) -> ValueError:
  """The error for a field that does not exist: names the nearest that does."""
  near = difflib.get_close_matches(re.split(r'[.]', field)[-1], known, n=1, cutoff=0.5)
  hint = f'did you mean {near[0]!r}?' if near else f'known here: {", ".join(known)}'
  return ValueError(f'config.{field}: no such field; {hint}')
