"""From a source to tokens on disk: filter, deduplicate, split, train the tokenizer if there is none, tokenize.

A directory holds one prepared corpus: `tokenizer/`, the shards in `train/` and `validation/`, and `prepare.json` with the
settings and what it took. It may be killed at any moment: the same call goes on and ends with the same bytes.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from yxanul.config.convert import differing_fields, listed, to_dict
from yxanul.config.spec import DataSpec
from yxanul.data import prepare_encode, prepare_near, prepare_select, shards, sources, sources_hub, superbpe
from yxanul.data import tokenizer as tokenizers
from yxanul.data.lock import locked
from yxanul.data.prepare_journal import write_atomically
from yxanul.data.prepare_select import TRAIN, Progress, Selection, silent
from yxanul.data.sources_document import Document
from yxanul.data.tokenizer import Tokenizer

_FREE_SETTINGS = ('directory', 'workers', 'on_error')  # may differ between two calls that prepare the same thing
_OWN = ('work', 'train', 'validation')  # folders; and tokenizer/, unless somebody else put it there
_ANEW = 'remove it and what stands beside it, and prepare again'
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclasses.dataclass(frozen=True)
class Prepared:
  """A corpus that is ready to be trained on."""

  tokenizer: Tokenizer
  train: shards.Shards
  validation: shards.Shards
  report: dict[str, Any]  # what preparing it took: seconds by phase


def prepare(spec: DataSpec, directory: Path | str, progress: Progress = silent) -> Prepared:
  """Prepares what `spec` describes in `directory`, or returns at once what is there already.

  Args:
    spec: source, filters, split, tokenizer.
    directory: made if missing. Other processes that prepare in it wait for this one.
    progress: called with (phase, done, of how much or None).

  Raises:
    ValueError: in one line: the source is missing, empty or unreadable; the directory holds something prepared with other
      settings (the differing fields are named), cannot be written, or its disk is full.
  """
  directory = Path(directory)
  saved = _saved(spec, directory)
  if saved and saved['done']:
    return _open(directory, saved)
  parts_of(spec)  # what is missing is met before anything is written
  named = _named_tokenizer(spec)
  made = [path for path in (directory, *directory.parents) if not path.exists()]
  try:
    with locked(directory / 'lock'):
      return _prepare(spec, directory, named, progress)
  except OSError as error:
    if error.errno in _NO_SPACE:
      raise ValueError(f'{directory}: no space left ({error.strerror}); make room and run it again, it goes on') from error
    if error.filename and Path(error.filename).is_relative_to(directory):
      raise ValueError(f'{error.filename}: cannot be written ({error.strerror})') from error
    raise
  finally:
    with contextlib.suppress(OSError):  # what is not empty stays
      for path in made:
        path.rmdir()


def is_prepared(spec: DataSpec, directory: Path | str) -> bool:
  """Whether `prepare` would find everything there.

  Raises:
    ValueError: the directory holds something prepared with other settings.
  """
  saved = _saved(spec, Path(directory))
  return saved is not None and saved['done']


def _settings(spec: DataSpec) -> dict[str, Any]:
  settings = {name: value for name, value in to_dict(spec).items() if name not in _FREE_SETTINGS}
  return json.loads(json.dumps(settings))


def _saved(spec: DataSpec, directory: Path) -> dict[str, Any] | None:
  """What `prepare.json` holds, None where there is none.

  Raises:
    ValueError: it was written for other settings, or cannot be read.
  """
  path = directory / 'prepare.json'
  if not path.exists():
    return None
  try:
    saved = json.loads(path.read_text(encoding='utf-8'))
  except ValueError as error:
    raise ValueError(f'{path}: not readable as JSON ({error}); {_ANEW}') from None
  if not _is_saved(saved):
    raise ValueError(f'{path}: not what prepare writes; {_ANEW}')
  if differing := differing_fields(saved['settings'], _settings(spec)):
    raise ValueError(f'{directory}: prepared with other settings ({listed(differing, "data.")})')
  return saved


def _is_saved(saved: Any) -> bool:
  kinds = {'settings': dict, 'listing': list, 'done': bool, 'seconds': dict, 'own': list}
  # What is called its own may be deleted, so it has to be known.
  return (
    isinstance(saved, dict)
    and all(isinstance(saved.get(name), kind) for name, kind in kinds.items())
    and all(name in (*_OWN, 'tokenizer') for name in saved['own'])
    and all(isinstance(seconds, int | float) for seconds in saved['seconds'].values())
  )


def _open(directory: Path, saved: dict[str, Any], tokenizer: Tokenizer | None = None) -> Prepared:
  tokenizer = tokenizer or tokenizers.load(directory / 'tokenizer')
  train, validation = (shards.open(directory / split, tokenizer, verify=True) for split in prepare_encode.SPLITS)
  return Prepared(tokenizer, train, validation, {'seconds': saved['seconds']})


def _prepare(spec: DataSpec, directory: Path, named: Tokenizer | None, progress: Progress) -> Prepared:
  saved, tokenizer = _saved(spec, directory), None
  if not saved or not saved['done']:
    parts = parts_of(spec)
    listing = [part.listing() for part in parts]
    if saved and saved['listing'] != listing:
      raise ValueError(f'{directory}: {spec.source!r} changed since this was begun; prepare it in another directory')
    saved = saved or _begin(directory, _settings(spec), listing)
    try:
      tokenizer = _work(spec, directory, parts, named, saved, progress)
    except ValueError:
      # Settings or source have to change, and then nothing of this is of use but what came from the hub.
      _discard(directory, saved)
      raise
    saved['done'] = True
    write_atomically(directory / 'prepare.json', json.dumps(saved, indent=1))
  for name in ('work', 'fetched'):
    shutil.rmtree(directory / name, ignore_errors=True)
  (directory / 'encode.json').unlink(missing_ok=True)
  return _open(directory, saved, tokenizer)


def _begin(directory: Path, settings: dict, listing: list) -> dict[str, Any]:
  if there := [name for name in _OWN if (directory / name).exists()]:
    raise ValueError(f'{directory}: holds something else ({there[0]}), wants a directory of its own')
  own = [*_OWN, *(() if (directory / 'tokenizer').exists() else ('tokenizer',))]
  saved = {'settings': settings, 'listing': listing, 'done': False, 'seconds': {}, 'own': own}
  write_atomically(directory / 'prepare.json', json.dumps(saved))
  return saved


def _discard(directory: Path, saved: dict[str, Any]) -> None:
  for name in saved['own']:
    shutil.rmtree(directory / name, ignore_errors=True)
  for name in ('encode.json', 'prepare.json'):
    (directory / name).unlink(missing_ok=True)


def parts_of(spec: DataSpec) -> list[sources.Source]:
  """The sources in the order they are read: text that is held out as it is comes first."""
  named = {'data.validation_source': spec.validation_source} if spec.validation_source else {}
  named |= {'data.source': spec.source}
  return [sources.Source(name) if sources.is_hub_name(name) else sources.find(name, field) for field, name in named.items()]


def _fetch(spec: DataSpec, directory: Path, parts: list[sources.Source], progress: Progress) -> tuple[list, dict, dict]:
  """The sources with what is on the hub made local; documents dropped and problems met on the way."""
  dropped, problems = {}, {'counts': {}, 'first': []}
  local = []
  for i, part in enumerate(parts):
    if sources.is_hub_name(part.name):
      fetched = sources_hub.Fetched(directory / 'fetched' / str(i), part.name, spec, is_held_out=i < len(parts) - 1)
      part = fetched.fetch(progress)
      dropped = Counter(dropped) + Counter(fetched.state['dropped'])
      problems['counts'] = Counter(problems['counts']) + Counter(fetched.state['problems']['counts'])
      problems['first'] += fetched.state['problems']['first']
    local.append(part)
  return local, dict(dropped), problems | {'counts': dict(problems['counts'])}


def choose(
  parts: list[sources.Source],
  spec: DataSpec,
  directory: Path,
  progress: Progress,
  timed: Callable[[str], contextlib.AbstractContextManager] = lambda phase: contextlib.nullcontext(),
) -> tuple[list[sources.Source], Selection]:
  """Makes local what is on the hub, and decides on every document: the sources as they are now, and the decisions.

  Raises:
    ValueError: nothing can be read, or nothing is left to train or to evaluate on.
  """
  with timed('fetch'):
    parts, dropped, problems = _fetch(spec, directory, parts, progress)
  with timed('select'):
    selection = prepare_select.select(parts, spec, directory / 'work', dropped, problems, progress)
  if spec.near_duplicates:
    with timed('near duplicates'):
      prepare_near.drop_near_duplicates(parts, spec, selection, directory / 'work', progress)
  prepare_select.check_not_empty(selection, spec)
  return parts, selection


def _work(
  spec: DataSpec,
  directory: Path,
  parts: list[sources.Source],
  named: Tokenizer | None,
  saved: dict[str, Any],
  progress: Progress,
) -> Tokenizer:
  """Every phase in turn; returns the tokenizer. Phases that a killed call has finished return at once."""

  @contextlib.contextmanager
  def timed(phase: str) -> Iterator[None]:
    begin = time.monotonic()
    yield
    seconds = saved['seconds'].get(phase, 0.0) + time.monotonic() - begin
    saved['seconds'][phase] = round(seconds, 3)
    write_atomically(directory / 'prepare.json', json.dumps(saved))

  parts, selection = choose(parts, spec, directory, progress, timed)
  folder = directory / 'tokenizer'
  with timed('tokenizer'):
    if named:
      named.save(folder)
    source = hashlib.sha256(json.dumps([saved['settings'], saved['listing']]).encode()).hexdigest()
    tokenizer = named or _trained_tokenizer(spec, folder, parts, selection, source, progress)
  about = {'settings': saved['settings'], 'selection': dict(selection.state['counts']), 'problems': selection.state['problems']}
  with timed('tokenize'):
    prepare_encode.write_shards(parts, spec, selection, tokenizer, folder, directory, about, progress)
  return tokenizer


def _named_tokenizer(spec: DataSpec) -> Tokenizer | None:
  """The tokenizer that the settings name, None where they want one trained.

  Raises:
    ValueError: it cannot be loaded, or has more entries than the settings say.
  """
  if not spec.tokenizer.path:
    return None
  tokenizer = tokenizers.load(spec.tokenizer.path, spec.tokenizer.special_tokens)
  if tokenizer.vocab_size > spec.tokenizer.total_size:
    has = f'{tokenizer.vocab_size} entries in {spec.tokenizer.path!r}'
    raise ValueError(f'config.data.tokenizer.vocab_size: {has}, but the configuration has {spec.tokenizer.total_size} in all')
  return tokenizer


def _trained_tokenizer(
  spec: DataSpec, folder: Path, parts: list[sources.Source], selection: Selection, source: str, progress: Progress
) -> Tokenizer:
  """A tokenizer trained on the train split, kept in `folder`."""

  def texts() -> Iterator[str]:
    return (document.text for document in documents(parts, spec, selection, TRAIN))

  return superbpe.train(texts, spec.tokenizer, folder, progress, source)


def documents(parts: list[sources.Source], spec: DataSpec, selection: Selection, wanted: int) -> Iterator[Document]:
  """The documents of one decision (TRAIN, VALIDATION), in the order of the sources."""
  read = prepare_select.read(parts, spec, report=lambda _: None)  # problems stopped, or were counted, while selecting
  for (_, document), decision in zip(read, selection.decisions, strict=True):
    if decision == wanted:
      yield document
