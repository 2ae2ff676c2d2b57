"""A lock between processes, on a file: it ends with its process, however that ends."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(path: Path, busy: str | None = None) -> Iterator[None]:
  """One process at a time; its folder is made if missing, the file goes at the end.

  Args:
    path: of the file.
    busy: what to say where another process has the lock; without, waits for it.

  Raises:
    ValueError: another process has the lock; says `busy`.
  """
  while True:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open('w')
    try:
      fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
    except BlockingIOError:
      file.close()
      raise ValueError(busy) from None
    if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
      break
    file.close()  # whoever had it has removed it since
  with file:
    try:
      yield
    finally:
      path.unlink(missing_ok=True)
