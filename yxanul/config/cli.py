"""Command lines: the `--config` flag with its overrides, and one line instead of a traceback for a user's mistake.

Every program is a function `main()` behind `run(main)`, which asks `spec()` for its experiment. Importing this module
defines `--config`; a program that takes it says so: `flags.adopt_module_key_flags(cli)`.
"""

import contextlib
import itertools
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags import config_path

from yxanul.config import convert, registry
from yxanul.config.checks import FieldError, unknown_field
from yxanul.config.spec import ExperimentSpec
from yxanul.config.status import EXIT_USAGE
from yxanul.config.variants import UnknownVariant

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'The experiment: experiments/NAME.py[:key=value,...]; any field as --config.a.b=value.', lock_config=True
)
_HELP = re.compile(r'(-h|-\?|--?help(short|full|xml)?)')
_PARSER_WANTS = {'could not convert': 'a number', 'invalid literal': 'a whole number'}
_WANTS = {int: 'a whole number', float: 'a number', bool: 'true or false', tuple: 'a tuple'}


def _overrides(argv: list[str]) -> Iterator[tuple[str, str]]:
  for argument in argv:
    if match := re.match(r'--(?:no)?config\.([^=]+)(?:=(.*))?$', argument, re.DOTALL):
      yield match.group(1), match.group(2)


def _check_field(config: ConfigDict, field: str) -> Any:
  """The value at 'a.b[0].c'; a ValueError names the nearest field where a part does not exist."""
  value: Any = config
  walked = ''
  for name, index in re.findall(r'([^.\[\]]+)|\[(\d+)\]', field):
    if index:
      if not isinstance(value, tuple | list) or int(index) >= len(value):
        size = f'an index below {len(value)}' if isinstance(value, tuple | list) else 'no index'
        raise FieldError(walked, f'[{index}]', size)
      value, walked = value[int(index)], f'{walked}[{index}]'
    else:
      dotted = f'{walked}.{name}' if walked else name
      if not isinstance(value, ConfigDict) or name not in value:
        raise unknown_field(dotted, list(value) if isinstance(value, ConfigDict) else [])
      value, walked = value[name], dotted
  return value


def _parse(argv: list[str]) -> list[str]:
  """absl's own parsing, with the mistakes people make told apart first."""
  before = argv[: argv.index('--')] if '--' in argv else argv
  if wish := next(filter(_HELP.fullmatch, before[1:]), None):
    with contextlib.suppress(SystemExit):  # absl would end with 1
      flags.FLAGS([argv[0], '--help' if wish == '-h' else wish])
    sys.stdout.flush()
    sys.exit(0)  # whatever else the line says
  for argument, following in itertools.pairwise(before[1:]):  # which absl would take for its value
    name = argument.removeprefix('--')
    if name != argument and name in flags.FLAGS and not flags.FLAGS[name].boolean and following.startswith('--'):
      raise ValueError(f'{argument}: has no value, wants {argument}=VALUE')
  experiment = next((b.partition('=')[2] or n for b, n in zip(before, [*before[1:], ''], strict=True) if _is_config(b)), None)
  takes_config = _CONFIG.name in [flag.name for flag in flags.FLAGS.get_key_flags_for_module(argv[0])]
  if not takes_config and (wrong := next((b for b in before[1:] if b.startswith('--config')), None)):
    raise ValueError(f'{wrong}: means nothing to this program; --help lists its flags')
  if experiment is not None:
    config = registry.load(experiment)
    for field, _ in _overrides(before):
      _check_field(config, field)
  elif field := next(_overrides(before), None):
    raise ValueError(f'--config.{field[0]}: overrides need the experiment, --config=experiments/NAME.py')
  try:
    rest = flags.FLAGS(argv)
  except flags.IllegalFlagValueError as error:
    for field, text in _overrides(before):
      if f'--config.{field}=' in str(error):
        kind = type(_check_field(config, field))
        raise FieldError(field, text, _WANTS.get(kind, f'a value of type {kind.__name__}')) from None
    if no_number := re.match(r'flag (--\w+)=(.*): (could not convert|invalid literal)', str(error)):  # Python's own words
      raise ValueError(f'{no_number[1]}: got {no_number[2]!r}, wants {_PARSER_WANTS[no_number[3]]}') from None
    raise
  _check_finite()
  if not flags.FLAGS['verbosity'].present:  # absl would take INFO, where libraries tell of their own affairs
    flags.FLAGS.verbosity = logging.WARNING
  return rest


def _check_finite() -> None:
  for name, value in flags.FLAGS.flag_values_dict().items():
    if isinstance(value, float) and not math.isfinite(value):
      raise ValueError(f'--{name}: got {value}, wants a finite number')


def _is_config(argument: str) -> bool:
  return re.match(r'--?config(=|$)', argument) is not None


def spec() -> tuple[ConfigDict, ExperimentSpec]:
  """The configuration that the flags name, and its validated spec."""
  if _CONFIG.value is None:
    raise ValueError('--config: missing, wants experiments/NAME.py (--list shows what there is)')
  return _CONFIG.value, convert.from_config(_CONFIG.value)


def experiment() -> Path:
  """The file that --config names."""
  spec()
  return registry.check_path(flags.FLAGS['config'].config_filename)


def variant(key: str) -> str | None:
  """What the command line says behind the experiment's colon for `key`, None where it says nothing."""
  _, _, arg = flags.FLAGS['config'].config_filename.partition(':')
  return dict(item.split('=', 1) for item in arg.split(',') if '=' in item).get(key)


def spec_of_variant(key: str, value: str) -> ExperimentSpec:
  """As `spec`, for the variant in which `key` is `value`; as it stands where the experiment has no such key."""
  spec()
  path, _, arg = flags.FLAGS['config'].config_filename.partition(':')
  others = [item for item in arg.split(',') if item and item.partition('=')[0] != key]
  try:
    config = registry.load(f'{path}:{",".join([*others, f"{key}={value}"])}')
  except UnknownVariant:
    return spec()[1]
  for field, override in flags.FLAGS['config'].override_values.items():
    config_path.set_value(field, config, override)
  return convert.from_config(config)


def spec_beside(experiment: str) -> ExperimentSpec:
  """Another experiment, 'PATH' or 'PATH:variant', under the same flags: the variant's keys that it knows, and every override.

  Overrides of the tokenizer are for the experiments that have the same one: the others keep their own.

  Raises:
    ValueError: the experiment does not exist or does not take an override; one line that names it.
  """
  spec()
  path, _, own = experiment.partition(':')
  _, _, arg = flags.FLAGS['config'].config_filename.partition(':')
  items = [item for item in arg.split(',') if item and _knows(path, item)]
  config = registry.load(f'{path}:{",".join([*items, *filter(None, own.split(","))])}')
  keeps_tokenizer = config.data.tokenizer != registry.load(flags.FLAGS['config'].config_filename).data.tokenizer
  for field, value in flags.FLAGS['config'].override_values.items():
    if keeps_tokenizer and field.startswith(('data.tokenizer', 'model.vocab_size')):
      continue
    try:
      _check_field(config, field)
    except ValueError as error:
      raise ValueError(f'{path}: does not take --config.{field}; {error}') from None
    config_path.set_value(field, config, value)
  return convert.from_config(config)


def _knows(path: str, item: str) -> bool:
  try:
    registry.load(f'{path}:{item}')
  except UnknownVariant:
    return False
  return True


def override(config: ConfigDict, assignments: Iterable[str]) -> None:
  """Sets fields as the command line does, each from a text 'a.b[0].c=value'.

  Raises:
    ValueError: a field does not exist, or the value is of another type.
  """
  for assignment in assignments:
    field, _, text = assignment.partition('=')
    kind = type(_check_field(config, field))
    try:
      value = {'true': True, 'false': False}[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
      raise FieldError(field, text, _WANTS.get(kind, f'a value of type {kind.__name__}')) from None
    config_path.set_value(field, config, value)


def _fail(error: BaseException) -> None:
  # Of torchrun's processes the first speaks for all; another says which it is, for what only it may have met.
  rank = os.environ.get('RANK', '0')
  who = '' if rank == '0' else f'rank {rank}: '
  says = f'{error.filename}: {error.strerror}' if isinstance(error, OSError) and error.filename else str(error)
  print(f'{who}error: {" ".join(says.split())}', file=sys.stderr)
  sys.exit(EXIT_USAGE)


def _nobody_reads() -> int:
  """Whoever read standard output has seen enough, as `head` does."""
  os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  return 0


def run(main: Callable[..., int | None], takes_arguments: bool = False) -> None:
  """Parses the flags, runs `main` and exits with what it returns.

  With `takes_arguments`, `main` receives the list of what stands among the flags; without, there may be nothing.

  A ValueError or OSError is a user's mistake or a fault of the machine: one line on stderr and exit status 2. With
  `--verbosity=1` the traceback comes too. Ctrl-C ends with 130, as shells have it.
  """

  def guarded(argv: list[str]) -> int | None:
    try:
      status = main(argv[1:]) if takes_arguments else main()
      sys.stdout.flush()
      return status
    except BrokenPipeError:
      return _nobody_reads()
    except (ValueError, OSError) as error:
      if logging.get_verbosity() >= logging.DEBUG:
        raise
      return _fail(error)

  def parse(argv: list[str]) -> list[str]:
    try:
      rest = _parse(argv)
      if len(rest) > 1 and not takes_arguments:
        raise ValueError(f'{rest[1]!r}: not a flag; flags are written --name=value')
      return rest
    except BrokenPipeError:
      sys.exit(_nobody_reads())
    except (ValueError, flags.Error, OSError) as error:
      return _fail(error)

  try:
    app.run(guarded, flags_parser=parse)
  except KeyboardInterrupt:
    print(file=sys.stderr)  # below the ^C
    sys.exit(128 + signal.SIGINT)
