"""Where text comes from: local files, folders and globs, a dataset on the hub, or the prose every CPython carries.

  PATH or GLOB     .parquet, .jsonl and .txt, the last two also as .gz, .zst or .xz; a folder means all of these in it
  OWNER/NAME       a dataset on the Hugging Face hub, with :CONFIG, @REVISION and #SPLIT where wanted
  python-docs      `pydoc_data.topics`

Files are read in the order of their paths, so the order of documents is the same whenever it is read.
"""

import dataclasses
import glob
import re
from collections.abc import Iterator
from pathlib import Path

from yxanul.config.spec import DataSpec
from yxanul.data import python_docs, sources_files
from yxanul.data.sources_document import START, Cursor, Document, Report, stop

PYTHON_DOCS = 'python-docs'
_HUB_NAME = re.compile(r'[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:[\w.-]+)?(@[\w./-]+)?(#[\w.-]+)?')


@dataclasses.dataclass(frozen=True)
class Source:
  """Text that is ready to be read: `files` in their order, or the built-in corpus."""

  name: str
  files: tuple[Path, ...] = ()
  origins: tuple[str, ...] = ()  # of each file: the source of its documents when no column names it

  def listing(self) -> list[list]:
    """Names and sizes: what has to stay the same while a prepare that was killed goes on."""
    return [[str(path), path.stat().st_size if path.exists() else None] for path in self.files]


def is_hub_name(source: str) -> bool:
  """Whether `source` names a dataset on the hub; what exists here, or looks like a data file, is a path."""
  plain = not Path(source).exists() and sources_files.kind_of(Path(source)) is None
  return plain and _HUB_NAME.fullmatch(source) is not None


def find(source: str, field: str = 'data.source') -> Source:
  """The local files that `source` names, or the built-in corpus.

  Raises:
    ValueError: nothing is named, nothing is there, or nothing there is of a kind that can be read.
  """
  if not source:
    raise ValueError(f"config.{field}: missing, wants a path, a glob, a hub name (OWNER/NAME) or '{PYTHON_DOCS}'")
  if source == PYTHON_DOCS:
    return Source(PYTHON_DOCS)
  path = Path(source).expanduser()
  if path.is_dir():
    found = sorted(
      p for p in path.rglob('*') if not p.is_dir() and not any(x.startswith('.') for x in p.relative_to(path).parts)
    )
  elif path.exists():
    found = [path]
  elif glob.has_magic(source):
    found = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if not p.is_dir())
  else:
    raise ValueError(f"config.{field}: {source!r} does not exist (nor is it a hub name, OWNER/NAME, or '{PYTHON_DOCS}')")
  files = tuple(p for p in found if sources_files.kind_of(p) is not None)
  if not files:
    kinds = ', '.join((*sources_files.PARQUET, *sources_files.JSON_LINES, *sources_files.TEXT))
    raise ValueError(f'config.{field}: {source!r} holds no file to read, wants one of {kinds} (.gz, .zst, .xz)')
  return Source(source, files, tuple(p.name.split('.')[0] if p == path else p.absolute().parent.name for p in files))


def documents(source: Source, spec: DataSpec, start: Cursor = START, report: Report = stop) -> Iterator[Document]:
  """The documents of a source in their order, from the cursor `start` on.

  Raises:
    ValueError: from `report`, when something cannot be read and the configuration says to stop.
  """
  if source.name == PYTHON_DOCS:
    for i, (_, text, held_out) in enumerate(python_docs.read(), start=1):
      if i > start[0]:
        yield Document(text, PYTHON_DOCS, (i, 0, 0), held_out=held_out)
    return
  for i in range(start[0], len(source.files)):
    at = start if i == start[0] else (i, 0, 0)
    yield from sources_files.read(source.files[i], i, at, spec, source.origins[i], report)
