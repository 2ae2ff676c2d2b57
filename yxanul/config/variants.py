"""Typed variants of an experiment: what stands behind the colon in `--config=experiments/ultra.py:gpu=h100`."""

import difflib
import math
from typing import Any


class UnknownVariant(ValueError):
  """The experiment has no such key."""


def parse_variant(arg: str | None, **defaults: Any) -> dict[str, Any]:
  """Reads 'key=value,key=value' into the types of the defaults.

  Args:
    arg: the text behind the colon, or None.
    **defaults: every key that the experiment knows, with its default (str, int, float or bool).

  Raises:
    ValueError: a key is unknown, has no value or a value of another type.
  """
  values = dict(defaults)
  for item in filter(None, (arg or '').split(',')):
    key, separator, text = item.partition('=')
    if key not in defaults:
      near = difflib.get_close_matches(key, defaults, n=1)
      hint = f'did you mean {near[0]!r}?' if near else f'known: {", ".join(defaults) or "none"}'
      raise UnknownVariant(f'variant {key!r} of the experiment: no such key; {hint}')
    kind = type(defaults[key])
    wants = {str: 'a text', int: 'a whole number', float: 'a number', bool: 'true or false'}[kind]
    try:
      if not separator:
        raise ValueError
      values[key] = {'true': True, 'false': False}[text.lower()] if kind is bool else _number(text, kind)
    except (ValueError, KeyError, OverflowError):
      raise ValueError(f'variant {key!r} of the experiment: got {text!r}, wants {wants}') from None
  return values


def _number(text: str, kind: type) -> Any:
  # 2.6e9 reads better than 2600000000 where a budget is meant, so whole numbers may be written either way.
  if kind is int:
    number = float(text)
    if number != int(number):
      raise ValueError
    return int(number)
  value = kind(text)
  if kind is float and not math.isfinite(value):
    raise ValueError
  return value


def whole_numbers(text: str, key: str, wants: str, **words: int) -> list[int]:
  """The positive whole numbers of '512-2048', `words` among them, or a ValueError that says what `key` wants."""
  try:
    numbers = [words[part] if part in words else _number(part, int) for part in text.split('-')]
  except (ValueError, OverflowError):
    numbers = []
  if not numbers or min(numbers) < 1:
    raise ValueError(f'variant {key!r} of the experiment: got {text!r}, wants {wants}')
  return numbers


def choose(value: str, table: dict[str, Any], key: str) -> Any:
  """`table[value]`, or a ValueError that lists what `key` may be."""
  if value not in table:
    raise ValueError(f'variant {key!r} of the experiment: got {value!r}, wants one of {", ".join(table)}')
  return table[value]
