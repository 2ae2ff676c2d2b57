"""A dataset on the Hugging Face hub, streamed through `datasets` into local parquet files.

Only what passes the filters is kept. A stream that dies is opened again, with growing pauses, and continued behind the
last row it gave; a process that dies goes on behind the last file it finished. Everything after it reads the local files,
so the network is needed once, and the filters see each row once.
"""

import dataclasses
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from yxanul.config.spec import DataSpec
from yxanul.data import filters
from yxanul.data.prepare_journal import write_atomically
from yxanul.data.sources import Source
from yxanul.data.sources_document import START, Document, Problem, from_row, note, stop

PART_BYTES = 64 * 1024 * 1024
PART_SECONDS = 120.0
PAUSES_SECONDS = (1, 2, 4, 8, 16, 32, 64, 128)  # between attempts; a row that arrives starts them afresh
_LOOK_EVERY = 100  # rows, at the stream's own position
_sleep = time.sleep
_NAME = re.compile(r'(?P<name>[^:@#]+)(:(?P<config>[^@#]+))?(@(?P<revision>[^#]+))?(#(?P<split>.+))?')


@dataclasses.dataclass(frozen=True)
class Dataset:
  """OWNER/NAME[:CONFIG][@REVISION][#SPLIT]; `revision` is a commit once the hub has been asked."""

  name: str
  config: str | None
  revision: str | None
  split: str


def parse(source: str) -> Dataset:
  parts = _NAME.fullmatch(source).groupdict()
  return Dataset(parts['name'], parts['config'], parts['revision'], parts['split'] or 'train')


def commit_of(dataset: Dataset) -> str:
  """The commit that a revision names now: a stream continued tomorrow has to be of the same one."""
  import huggingface_hub

  return huggingface_hub.HfApi().dataset_info(dataset.name, revision=dataset.revision).sha


def open_stream(dataset: Dataset) -> Any:
  """An iterable of rows (dicts) with `state_dict` and `load_state_dict`."""
  import datasets

  return datasets.load_dataset(dataset.name, dataset.config, split=dataset.split, revision=dataset.revision, streaming=True)


def rows(open_: Callable[[], Any], state: dict | None, name: str) -> Iterator[tuple[dict, Any]]:
  """(row, stream) behind `state`, whatever the network does.

  Raises:
    ValueError: the first contact fails, or PAUSES_SECONDS are used up with no row in between.
  """
  attempt, behind, contact = 0, 0, state is not None
  while True:
    try:
      stream = open_()
      if state is not None:
        stream.load_state_dict(state)
      skip, contact = behind, True
      for row in stream:
        if skip:  # given before the stream died
          skip -= 1
          continue
        behind, attempt = behind + 1, 0
        if behind == _LOOK_EVERY:
          state, behind = stream.state_dict(), 0
        yield row, stream
      return
    except Exception as error:  # what a network can raise depends on three libraries
      if not contact:
        raise _refused(name, error) from error
      if attempt == len(PAUSES_SECONDS):
        total = sum(PAUSES_SECONDS)
        why = f'{name}: the stream broke off and {total} seconds of trying did not mend it ({_why(error)})'
        raise ValueError(f'{why}; the same command goes on from here') from error
      _sleep(PAUSES_SECONDS[attempt])
      attempt += 1


def _why(error: Exception) -> str:
  return f'{type(error).__name__}: {(str(error).strip().splitlines() or ["no reason given"])[0]}'


def _refused(name: str, error: Exception) -> ValueError:
  return ValueError(f'{name} does not exist here, and the hub did not give it ({_why(error)})')


class Fetched:
  """What has been fetched into a folder so far; made again there, it goes on."""

  def __init__(self, folder: Path, source: str, spec: DataSpec, is_held_out: bool):
    self.folder, self.source, self.spec, self.is_held_out = folder, source, spec, is_held_out
    self.name = f'config.data.{"validation_source" if is_held_out else "source"}: {source!r}'
    names = ('text_column', 'source_column', 'score_column', 'language_column', 'token_count_column')
    wanted = (*names, 'min_score', 'language', 'min_document_tokens')
    settings = {'source': source, 'is_held_out': is_held_out} | {name: getattr(spec, name) for name in wanted}
    path = folder / 'fetch.json'
    self.state = json.loads(path.read_text(encoding='utf-8')) if path.exists() else None
    if self.state is None or self.state['settings'] != settings:
      shutil.rmtree(folder, ignore_errors=True)
      self.state = {'settings': settings, 'commit': None, 'parts': 0, 'rows': 0, 'stream': None, 'done': False}
      self.state |= {'dropped': {}, 'problems': {'counts': {}, 'first': []}}
    self._documents: list[Document] = []
    self._bytes = 0
    self._begun = time.monotonic()

  def fetch(self, progress: Callable[[str, float, float | None], None]) -> Source:
    """Fetches what is missing, and returns the files.

    Raises:
      ValueError: the hub does not have the dataset, or does not answer any more; a row cannot be read and `on_error` is 'stop'.
    """
    state = self.state
    if not state['done']:
      dataset = self._pinned()
      for row, stream in rows(lambda: open_stream(dataset), state['stream'], self.name):
        self._take(row)
        state['rows'] += 1
        if state['rows'] % _LOOK_EVERY == 0:
          progress('fetch', state['rows'], None)
          if self._bytes >= PART_BYTES or time.monotonic() - self._begun >= PART_SECONDS:
            state['stream'] = stream.state_dict()
            self._save()
      state['done'] = True
      self._save()
    files = tuple(self.folder / f'{i:05d}.parquet' for i in range(state['parts']))
    return Source(self.source, files, (parse(self.source).name.split('/')[1],) * len(files))

  def _pinned(self) -> Dataset:
    dataset = parse(self.source)
    if self.state['commit'] is None:
      try:
        self.state['commit'] = commit_of(dataset)
      except Exception as error:
        raise _refused(self.name, error) from error
    return dataclasses.replace(dataset, revision=self.state['commit'])

  def _take(self, row: dict) -> None:
    where = f'{self.source}, row {self.state["rows"]}'
    try:
      document = from_row(row, self.spec, None, START)
      self._bytes += len(document.text.encode())
    except UnicodeEncodeError as error:
      return self._met(Problem('encoding', where, f'not valid Unicode ({error.reason})'))
    except ValueError as error:
      return self._met(Problem('row', where, str(error)))
    if reason := filters.rejects(document, self.spec, self.is_held_out):
      self.state['dropped'][reason] = self.state['dropped'].get(reason, 0) + 1
    else:
      self._documents.append(document)

  def _met(self, problem: Problem) -> None:
    if self.spec.on_error == 'stop':
      stop(problem)
    note(problem, self.state['problems'])

  def _save(self) -> None:
    """Writes the documents as the next part, then the state that counts it."""
    import pyarrow
    import pyarrow.parquet

    self.folder.mkdir(parents=True, exist_ok=True)
    if self._documents:
      spec = self.spec
      columns = {
        spec.text_column: ([d.text for d in self._documents], pyarrow.string()),
        spec.source_column: ([d.source for d in self._documents], pyarrow.string()),
        spec.score_column: ([d.score for d in self._documents], pyarrow.float64()),
        spec.language_column: ([d.language for d in self._documents], pyarrow.string()),
        spec.token_count_column: ([d.token_count for d in self._documents], pyarrow.int64()),
      }
      table = pyarrow.table({name: pyarrow.array(*column) for name, column in columns.items() if name})
      with (self.folder / f'{self.state["parts"]:05d}.parquet').open('wb') as file:
        pyarrow.parquet.write_table(table, file, compression='zstd', row_group_size=2000)
        file.flush()
        os.fsync(file.fileno())
      self.state['parts'] += 1
      self._documents.clear()
    self._bytes, self._begun = 0, time.monotonic()
    write_atomically(self.folder / 'fetch.json', json.dumps(self.state))
