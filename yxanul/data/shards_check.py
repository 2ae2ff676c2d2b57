"""Whether files hold the bytes that a manifest says, without reading all of them at every start.

A file that was read and was right leaves a stamp in `read.json` beside it: its hash, size, inode and the times of its last
change. While it has that stamp it passes unread; copying, editing or putting back a file changes the stamp. What changes bytes
behind the file system's back, a disk that goes bad, does not: so what passed unread is read again behind the training.
"""

import contextlib
import hashlib
import json
import random
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from yxanul.data.prepare_journal import write_atomically

STAMPS = 'read.json'
# A file gets no stamp before its last change is this old: within a tick of the clock another would leave the same times.
_SETTLED_SECONDS = 2.0

File = tuple[Path, str]  # and its SHA-256
Stamp = list[Any]
T = TypeVar('T')


def sha256(path: Path) -> str:
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def check(folder: Path, files: Sequence[File]) -> list[File]:
  """Reads the files in `folder` that have not been found right before; returns those that were, and so passed unread.

  Raises:
    ValueError: a file holds something else.
  """
  known = _stamps(folder / STAMPS)
  unread = [(path, expected) for path, expected in files if known.get(path.name) == _stamp(path, expected)]
  if len(unread) == len(files):
    return unread
  rest = [file for file in files if file not in unread]
  with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter
    stamps = list(pool.map(lambda file: _read(*file), rest))
  new = {path.name: known[path.name] for path, _ in unread}
  new |= {path.name: stamp for (path, _), stamp in zip(rest, stamps, strict=True) if stamp}
  if new != known:
    with contextlib.suppress(OSError):  # where nothing can be written everything is read every time
      write_atomically(folder / STAMPS, json.dumps(new, indent=1) + '\n')
  return unread


def _stamps(path: Path) -> dict[str, Stamp]:
  try:
    stamps = json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError):
    return {}
  return stamps if isinstance(stamps, dict) else {}


def _stamp(path: Path, expected: str) -> Stamp:
  status = path.stat()
  return [expected, status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]


def _read(path: Path, expected: str) -> Stamp | None:
  """The stamp of a file that is right; None where it is too fresh for one."""
  stamp = _stamp(path, expected)  # before it is read: what is changed meanwhile is read again
  is_settled = time.time_ns() - max(stamp[-2:]) > 1e9 * _SETTLED_SECONDS
  if (found := sha256(path)) != expected:
    raise ValueError(f'{path}: SHA-256 {found}, the manifest says {expected}')
  return stamp if is_settled else None


class Recheck:
  """Reads files again that passed unread, as many as it can while others work with them."""

  def __init__(self, files: Sequence[File]):
    self._stamps = [(path, _stamp(path, expected)) for path, expected in files]
    random.Random().shuffle(self._stamps)  # sessions too short for all of them get to all in the end
    self._wrong = ''

  def behind(self, batches: Iterable[T]) -> Iterator[T]:
    """The batches, while a thread reads the files.

    Raises:
      ValueError: as `judge`.
    """
    threading.Thread(target=self._run, name='recheck', daemon=True).start()
    for batch in batches:
      self.judge()
      yield batch

  def judge(self) -> None:
    """Raises ValueError if a file that was read again holds something else; the next start reads all of them."""
    if self._wrong:
      raise ValueError(self._wrong)

  def _run(self) -> None:
    for path, stamp in self._stamps:
      try:
        found, now = sha256(path), _stamp(path, stamp[0])
      except OSError:  # whoever needs what cannot be read at present will say so
        continue
      if found != stamp[0]:
        why = 'it was right before and nobody changed it, a failing disk' if now == stamp else 'it was changed after the start'
        self._wrong = f'{path}: SHA-256 {found}, the manifest says {stamp[0]}; {why}; this session may have read it'
        with contextlib.suppress(OSError):
          (path.parent / STAMPS).unlink(missing_ok=True)
        return
