"""Which documents of the sources go where: filter, exact duplicates, split. One decision, a byte, for each document read.

It runs before anything slow, so that an empty corpus or an unreadable file is met in seconds, not after hours of
tokenizing; reading the text again later costs a few per cent of the time that tokenizing takes.
"""

import functools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from yxanul.config.spec import DataSpec
from yxanul.data import filters, sources
from yxanul.data.deduplicate import DIGEST_BYTES, DigestSet, digest, unit_interval
from yxanul.data.prepare_journal import Journal
from yxanul.data.sources_document import START, Document, Report, note, stop

Progress = Callable[[str, float, float | None], None]  # phase, done, of how much (None: not known)
DECISIONS = (
  'train',
  'validation',
  filters.EMPTY,
  filters.SCORE,
  filters.LANGUAGE,
  filters.SHORT,
  'duplicate',
  'near duplicate',
)
TRAIN, VALIDATION, NEAR_DUPLICATE = (DECISIONS.index(name) for name in ('train', 'validation', 'near duplicate'))
COMMIT_SECONDS = 5.0
_LOOK_EVERY = 256  # documents, at the clock


def silent(phase: str, done: float, total: float | None) -> None:
  """Shows no progress."""


class Selection:
  """The decisions, and what they add up to. `state['counts']` has the documents of each decision."""

  def __init__(self, folder: Path, dropped: dict[str, int], problems: dict):
    self.journal = Journal(folder, 'select')
    self.state = self.journal.state or {
      'part': 0,
      'cursor': START,
      'read': 0,
      'counts': dict.fromkeys(DECISIONS, 0) | dropped,
      'bytes': {'train': 0, 'validation': 0},
      'problems': problems,
      'done': False,
    }

  @functools.cached_property
  def decisions(self) -> np.ndarray:
    """uint8 (documents read,): indices into DECISIONS, once all are taken."""
    return np.fromfile(self.journal.folder / 'decisions', np.uint8) if self.state['read'] else np.zeros(0, np.uint8)

  def drop(self, numbers: np.ndarray, decision: int, dropped_bytes: dict[str, int]) -> None:
    """Changes the decisions on selected documents, in memory only."""
    for split, n in zip(DECISIONS, np.bincount(self.decisions[numbers], minlength=len(DECISIONS)).tolist(), strict=True):
      self.state['counts'][split] -= n
    for split, size in dropped_bytes.items():
      self.state['bytes'][split] -= size
    self.state['counts'][DECISIONS[decision]] += len(numbers)
    self.decisions[numbers] = decision

  def digests(self) -> bytes:
    """The digests of all documents that were no duplicates, one after another."""
    return (self.journal.folder / 'digests').read_bytes() if self.state['read'] else b''


def read(
  parts: list[sources.Source], spec: DataSpec, part: int = 0, cursor: tuple = START, report: Report = stop
) -> Iterator[tuple[int, Document]]:
  """(part, document) of the sources one after another; the last part is `data.source`, one before it is held out."""
  for number in range(part, len(parts)):
    for document in sources.documents(parts[number], spec, tuple(cursor) if number == part else START, report):
      yield number, document


def select(
  parts: list[sources.Source], spec: DataSpec, folder: Path, dropped: dict[str, int], problems: dict, progress: Progress
) -> Selection:
  """Decides on every document of `parts`; goes on where an earlier call in the same folder was killed.

  `dropped` and `problems` are what fetching from the hub has met already.

  A document of `data.validation_source` is held out as it is: only emptiness and an exact copy drop it. Since it is read
  first, a copy of it in `data.source` is a duplicate, and never trained on.

  Raises:
    ValueError: something cannot be read and `on_error` is 'stop'.
  """
  selection = Selection(folder, dropped, problems)
  state = selection.state
  if not state['done']:
    try:
      _decide(selection, parts, spec, progress)
    finally:
      selection.journal.close()
  return selection


def _decide(selection: Selection, parts: list[sources.Source], spec: DataSpec, progress: Progress) -> None:
  state = selection.state
  seen = DigestSet()
  stored = selection.digests()
  for at in range(0, len(stored), DIGEST_BYTES):
    seen.add(stored[at : at + DIGEST_BYTES])
  del stored
  decisions, digests = bytearray(), bytearray()
  counts = Counter(state['counts'])
  committed = time.monotonic()

  def flush(part: int, cursor: tuple) -> None:
    selection.journal.append('decisions', decisions)
    selection.journal.append('digests', digests)
    state.update(part=part, cursor=cursor, read=state['read'] + len(decisions), counts=dict(counts))
    decisions.clear()
    digests.clear()
    selection.journal.commit(state)

  is_split = len(parts) == 1
  report = stop if spec.on_error == 'stop' else functools.partial(note, problems=state['problems'])
  for part, document in read(parts, spec, state['part'], state['cursor'], report):
    is_held_out = part < len(parts) - 1
    decision = filters.rejects(document, spec, is_held_out)
    if decision is None:
      text_bytes = document.text.encode()
      key = digest(text_bytes)
      if seen.add(key):
        digests += key
        decision = 'validation' if is_held_out or (is_split and _splits_off(document, key, spec)) else 'train'
        state['bytes'][decision] += len(text_bytes)
      else:
        decision = 'duplicate'
    decisions.append(DECISIONS.index(decision))
    counts[decision] += 1
    if len(decisions) % _LOOK_EVERY == 0 and time.monotonic() - committed >= COMMIT_SECONDS:
      flush(part, document.after)
      committed = time.monotonic()
      progress('select', sum(state['bytes'].values()), None)
  state['done'] = True
  flush(len(parts), START)


def _splits_off(document: Document, key: bytes, spec: DataSpec) -> bool:
  """Whether the document is held out from a source that is split: its own word, or its digest's."""
  return unit_interval(key) < spec.validation_fraction if document.held_out is None else document.held_out


def check_not_empty(selection: Selection, spec: DataSpec) -> None:
  """
  Raises:
    ValueError: nothing is left to train or to evaluate on; the line says what became of the documents.
  """
  state = selection.state
  dropped = ', '.join(f'{state["counts"][name]} {name}' for name in DECISIONS if state['counts'][name])
  read = f'{sum(state["counts"].values())} documents read' + (f' ({dropped})' if dropped else '')
  if problems := sum(state['problems']['counts'].values()):
    read += f', {problems} problems, the first {state["problems"]["first"][0]}'
  if not state['counts']['train']:
    raise ValueError(f'config.data.source: {spec.source!r} leaves no document to train on: {read}')
  if not state['counts']['validation']:
    wants = 'raise config.data.validation_fraction or name a config.data.validation_source'
    raise ValueError(
      f'config.data.validation_fraction: {spec.validation_fraction} of {spec.source!r} holds out no document: {read}; {wants}'
    )
