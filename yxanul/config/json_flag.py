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
    ValueError: --json is no path, or of a folder that does not exist.
  """
  path = _JSON.value
  if path is not None and path != '-':
    if not path:
      raise ValueError("--json: got '', wants a file, or - for standard output")
    if not Path(path).absolute().parent.is_dir():
      raise ValueError(f'--json={path}: the folder does not exist')
  text = ''

  def write(result: Any) -> None:
    nonlocal text
    text = json.dumps(result, indent=1) + '\n'
    if path and path != '-':
      Path(path).write_text(text, encoding='utf-8')

  with _on_standard_error() if path == '-' else contextlib.nullcontext():
    yield write
  if path == '-':
    print(text, end='')


@contextlib.contextmanager
def _on_standard_error() -> Iterator[None]:
  """Descriptor 1 is 2 inside the block: Python's own redirection would miss what other processes print."""
  sys.stdout.flush()
  kept = os.dup(1)
  os.dup2(2, 1)
  try:
    yield
  finally:
    sys.stdout.flush()
    os.dup2(kept, 1)
    os.close(kept)
