"""The flag `--json`, the same in every tool that has it: what the tool found goes into this file, too, or to standard output.

Importing this module defines the flag. A tool lists it among its own with `flags.adopt_module_key_flags(json_flag)` and does
its work inside `output()`.
"""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from absl import flags

_JSON = flags.DEFINE_string(
  'json', None, 'Also write everything to this file as JSON; -: to standard output, and all else to standard error.'
)


@contextlib.contextmanager
def output() -> Iterator[Callable[[Any], None]]:
  """Yields what takes a result to where --json says; called again with a newer result, that one counts.

  A file is written at each call, standard output behind the block. With `--json=-` all that the block prints, processes that
  it starts included, goes to standard error.

  Raises:
    ValueError: nothing can be written there.
  """
  path = _JSON.value
  if path is None:
    yield lambda result: None
    return
  if path != '-':
    _check(path)
  text = ''

  def write(result: Any) -> None:
    nonlocal text
    text = json.dumps(result, indent=1, default=str) + '\n'
    if path != '-':
      Path(path).write_text(text, encoding='utf-8')

  with _on_standard_error() if path == '-' else contextlib.nullcontext():
    yield write
  if path == '-':
    print(text, end='')


def _check(path: str) -> None:
  """What can be said before the work is done."""
  target = Path(path).absolute()
  if not path or target.is_dir():
    raise ValueError(f'--json: got {path!r}, wants a file, or - for standard output')
  if not target.parent.is_dir():
    raise ValueError(f'--json={path}: the folder does not exist')
  if not os.access(target if target.exists() else target.parent, os.W_OK):
    raise ValueError(f'--json={path}: cannot be written')


@contextlib.contextmanager
def _on_standard_error() -> Iterator[None]:
  """Descriptor 1 is 2 inside the block: Python's own redirection would miss what other processes print."""
  sys.stdout.flush()
  kept = os.dup(1)
  os.dup2(2, 1)
  try:
    yield
  finally:
    try:
      sys.stdout.flush()
    finally:  # standard error may be closed by now
      os.dup2(kept, 1)
      os.close(kept)
