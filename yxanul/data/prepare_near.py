"""Drops the near duplicates among the selected documents. It costs about what tokenizing costs, and runs only when asked."""

import time
from pathlib import Path

import numpy as np

from yxanul.config.spec import DataSpec
from yxanul.data import prepare_workers, sources
from yxanul.data.deduplicate_near import PERMUTATIONS, NearDuplicates, signatures
from yxanul.data.prepare_journal import Journal
from yxanul.data.prepare_select import DECISIONS, NEAR_DUPLICATE, Progress, Selection
from yxanul.data.sources_document import START

COMMIT_SECONDS = 5.0


def _start() -> None:
  """Signatures need nothing that a process has to load first."""


def drop_near_duplicates(
  parts: list[sources.Source], spec: DataSpec, selection: Selection, folder: Path, progress: Progress
) -> None:
  """Changes the decisions on documents that are like an earlier one; goes on where an earlier call was killed.

  The first of several like each other is kept, whatever its split; so nothing held out is like anything trained on.
  Documents of a validation source are all kept.
  """
  journal = Journal(folder, 'near')
  state = journal.state or {'part': 0, 'cursor': START, 'read': 0, 'kept': 0, 'dropped': 0, 'seen_bytes': 0, 'bytes': [0, 0]}
  near = NearDuplicates()
  if state['kept']:
    for signature in np.fromfile(folder / 'signatures', np.uint32).reshape(-1, PERMUTATIONS):
      near.keep(signature)
  decisions = selection.decisions
  total = sum(selection.state['bytes'].values())
  committed = time.monotonic()
  todo = prepare_workers.batches(parts, spec, decisions, state)
  try:
    for batch, found in prepare_workers.work(todo, signatures, _start, (), total, spec.workers):
      kept, dropped = [], []
      for document, number, held_out, signature in zip(batch.documents, batch.numbers, batch.is_held_out, found, strict=True):
        size = len(document.text.encode())
        state['seen_bytes'] += size
        if not held_out and near.is_like_another(signature):
          dropped.append(number)
          state['bytes'][decisions[number]] += size
        else:
          near.keep(signature)
          kept.append(signature)
      journal.append('signatures', np.array(kept, np.uint32))
      journal.append('near', np.array(dropped, np.int64))
      state.update(part=batch.part, cursor=batch.cursor, read=batch.read)
      state['kept'] += len(kept)
      state['dropped'] += len(dropped)
      if time.monotonic() - committed >= COMMIT_SECONDS:
        journal.commit(state)
        committed = time.monotonic()
        progress('near duplicates', state['seen_bytes'], total)
    journal.commit(state)
  finally:
    journal.close()
  selection.drop(np.fromfile(folder / 'near', np.int64), NEAR_DUPLICATE, dict(zip(DECISIONS[:2], state['bytes'], strict=True)))
