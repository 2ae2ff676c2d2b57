"""ConfigDict to validated spec and back, and the fields in which two configurations differ."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, get_args, get_origin, get_type_hints

from ml_collections import ConfigDict

from yxanul.config.checks import FieldError, unknown_field
from yxanul.config.spec import ExperimentSpec


def to_dict(spec: Any) -> Any:
  """A spec as plain dicts, tuples and scalars."""
  if dataclasses.is_dataclass(spec):
    return {f.name: to_dict(getattr(spec, f.name)) for f in dataclasses.fields(spec)}
  if isinstance(spec, tuple):
    return tuple(to_dict(item) for item in spec)
  return spec


def to_config(spec: Any) -> ConfigDict:
  """A spec as a ConfigDict whose fields may be overridden, tuples of specs as tuples of ConfigDicts."""

  def convert(value: Any) -> Any:
    if isinstance(value, dict):
      return ConfigDict({k: convert(v) for k, v in value.items()})
    if isinstance(value, tuple):
      return tuple(convert(v) for v in value)
    return value

  return convert(to_dict(spec))


def default_config() -> ConfigDict:
  """The ConfigDict that every experiment starts from: every field, at its default."""
  return to_config(ExperimentSpec(name='default'))


def _build(kind: Any, value: Any, field: str) -> Any:
  if dataclasses.is_dataclass(kind):
    if not isinstance(value, Mapping | ConfigDict):
      raise FieldError(field, value, f'the fields of {kind.__name__}')
    hints = get_type_hints(kind)
    known = [f.name for f in dataclasses.fields(kind)]
    for name in value:
      if name not in known:
        raise unknown_field(f'{field}.{name}' if field else name, known)
    for name in known:
      if name not in value:
        raise FieldError(f'{field}.{name}' if field else name, None, 'a value: the field is missing')
    prefix = f'{field}.' if field else ''
    return kind(**{name: _build(hints[name], value[name], prefix + name) for name in known})
  if get_origin(kind) is tuple:
    if not isinstance(value, tuple | list):
      raise FieldError(field, value, 'a tuple')
    item = get_args(kind)[0]
    return tuple(_build(item, v, f'{field}[{i}]') for i, v in enumerate(value))
  if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
    if not math.isfinite(value):
      raise FieldError(field, value, 'a finite number')
    return float(value)
  if type(value) is not kind:
    raise FieldError(field, value, {int: 'a whole number', str: 'a text', bool: 'true or false', float: 'a number'}[kind])
  return value


def from_config(config: Any) -> ExperimentSpec:
  """Validates a ConfigDict (or nested dict) and returns the frozen spec.

  Raises:
    ValueError: one line naming the first field that is unknown, missing, of the wrong type or out of range.
  """
  spec = _build(ExperimentSpec, config, '')
  spec.ends_whole()
  return spec


def from_saved(config: Any) -> ExperimentSpec:
  """The spec of a config.json, where fields that are newer than the file take their defaults.

  Raises:
    ValueError: as `from_config`, but for missing fields.
  """
  return from_config(completed(config))


def completed(config: Any) -> Any:
  """What a config.json holds, with the defaults of fields that are newer than the file; nothing is validated."""
  return _completed(ExperimentSpec, config)


def _completed(kind: Any, value: Any) -> Any:
  if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
    hints = get_type_hints(kind)
    defaults = {
      f.name: to_dict(f.default if f.default is not dataclasses.MISSING else f.default_factory())
      for f in dataclasses.fields(kind)
    }
    return defaults | {name: _completed(hints.get(name), item) for name, item in value.items()}
  if get_origin(kind) is tuple and isinstance(value, tuple | list):
    return [_completed(get_args(kind)[0], item) for item in value]
  return value


def is_saved(config: Any) -> bool:
  """Whether JSON that was read is the configuration of a run, of whatever version; other programs write a config.json too."""
  return isinstance(config, Mapping) and all(isinstance(config.get(name), Mapping) for name in ('data', 'model', 'curriculum'))


def differences(a: Any, b: Any, field: str = '') -> list[tuple[str, Any, Any]]:
  """The fields in which two nested dicts differ, with both values; None stands where one has no such field."""
  if isinstance(a, Mapping) and isinstance(b, Mapping):
    names = [*a, *(name for name in b if name not in a)]
    return [
      found for name in names for found in differences(a.get(name), b.get(name), f'{field}.{name}' if field else str(name))
    ]
  if isinstance(a, tuple | list) and isinstance(b, tuple | list) and len(a) == len(b):
    return [found for i, (x, y) in enumerate(zip(a, b, strict=True)) for found in differences(x, y, f'{field}[{i}]')]
  return [] if a == b else [(field, a, b)]


# How a run is looked after; the rest decides what it computes. A divided optimizer's state is planned for with the same batches
# (`curriculum.largest_batches`), and the parts that rows go through in are the checkpoint's; Muon's bits may differ in the last
# place (`training.sharding`).
_FREE = ('checkpoint_every_seconds', 'checkpoints_kept', 'checkpoint_keep_every_seconds', 'checkpoint_command')
_FREE += ('preemption_file', 'stop_within_seconds', 'loggers', 'shard_optimizer')


def deciding(config: Any) -> Any:
  """A configuration as nested dicts without the fields that may change between two sessions of one run."""
  if not isinstance(config, Mapping):
    return config
  free = {'training': _FREE, 'data': ('workers',)}

  def kept(part: Any, names: tuple[str, ...]) -> Any:
    return {name: value for name, value in part.items() if name not in names} if isinstance(part, Mapping) else part

  return {part: kept(value, free.get(part, ())) for part, value in config.items()}


def deciding_differences(before: Any, now: Any) -> list[str]:
  """As `differing_fields`, of two configurations of a run, without what may differ between two sessions of it.

  A field that is newer than the file that a configuration was read from has its default.
  """
  return differing_fields(*(deciding(_completed(ExperimentSpec, config)) for config in (before, now)))


def differing_fields(a: Any, b: Any) -> list[str]:
  """Names of the fields, with both values, in which two nested dicts differ: 'model.d_model: 768 -> 512'."""
  return [f'{field}: {x!r} -> {y!r}' for field, x, y in differences(a, b)]


def listed(differing: list[str], prefix: str = 'config.') -> str:
  """Differing fields in one line that can be read."""
  more = f'; and {len(differing) - 8} more' if len(differing) > 8 else ''
  return '; '.join(f'{prefix}{line:.120}' for line in differing[:8]) + more
