"""Append-only files and a state that only ever change together, whenever the process is killed."""

import json
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np


def write_atomically(path: Path, text: str) -> None:
  """Puts `text` at `path`: after a kill or a power cut the file is the old one or the new one, whole."""
  temporary = path.with_name(path.name + '.tmp')
  with temporary.open('w', encoding='utf-8') as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, path)
  folder = os.open(path.parent, os.O_RDONLY)
  try:
    os.fsync(folder)
  finally:
    os.close(folder)


class Journal:
  """Files in `folder` that grow by `append`; `commit` makes their lengths and a state durable in `folder/NAME.json`.

  A new Journal in the same place starts from the last commit: what was appended after it is cut off. `state` is what
  the last commit was given, None in a new place.
  """

  def __init__(self, folder: Path, name: str):
    folder.mkdir(parents=True, exist_ok=True)
    self.folder = folder
    self._path = folder / f'{name}.json'
    saved = json.loads(self._path.read_text()) if self._path.exists() else {'state': None, 'lengths': {}}
    self.state: Any = saved['state']
    self._lengths: dict[str, int] = saved['lengths']
    self._open: dict[str, BinaryIO] = {}
    for name, length in self._lengths.items():
      if (folder / name).stat().st_size > length:
        os.truncate(folder / name, length)

  def append(self, name: str, data: bytes | bytearray | np.ndarray) -> None:
    """Adds to the end of `folder/name`; a file that no commit knows starts empty."""
    file = self._file(name)
    file.seek(0, os.SEEK_END)
    _write(file, data)
    self._lengths[name] = file.tell()

  def seal(self, name: str, header: bytes) -> None:
    """Writes `header` over the start of `folder/name`, which is complete with it."""
    with self._file(name) as file:
      file.seek(0)
      _write(file, header)
      os.fsync(file.fileno())
    del self._open[name]

  def _file(self, name: str) -> BinaryIO:
    if name not in self._open:
      path = self.folder / name
      path.parent.mkdir(parents=True, exist_ok=True)
      # Unbuffered: a full disk must be met here, not again when the file is closed.
      self._open[name] = path.open('r+b' if name in self._lengths else 'w+b', buffering=0)
    return self._open[name]

  def commit(self, state: Any) -> None:
    for file in self._open.values():
      os.fsync(file.fileno())
    self.state = state
    write_atomically(self._path, json.dumps({'state': state, 'lengths': self._lengths}))

  def close(self) -> None:
    """Closes the files; what was not committed is as if it had never been written."""
    for file in self._open.values():
      file.close()
    self._open.clear()


def _write(file: BinaryIO, data: bytes | bytearray | np.ndarray) -> None:
  rest = memoryview(np.ascontiguousarray(data) if isinstance(data, np.ndarray) else data).cast('B')
  while rest:
    rest = rest[file.write(rest) :]
