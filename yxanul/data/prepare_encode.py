"""Selected documents to shards: batches of text go to worker processes, tokens come back in the order they were read."""

import contextlib
import itertools
import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from yxanul.config.spec import DataSpec
from yxanul.data import prepare_select, shards, sources
from yxanul.data.prepare_journal import Journal
from yxanul.data.prepare_select import TRAIN, VALIDATION, Progress, Selection
from yxanul.data.sources_document import START, Problem

COMMIT_SECONDS = 5.0
BATCH_BYTES = 1024 * 1024
BATCH_DOCUMENTS = 4096
IN_PROCESS_BYTES = 8 * 1024 * 1024  # below it, starting workers takes longer than the work
MAX_SOURCES = 256
OTHER_SOURCES = 'other'
SPLITS = ('train', 'validation')


class Encoded(NamedTuple):
  """Documents one after another, each followed by the end-of-text token, which `lengths` counts."""

  tokens: np.ndarray
  lengths: np.ndarray
  byte_counts: np.ndarray


class Batch(NamedTuple):
  """Documents to encode, and where reading and deciding stood behind them."""

  texts: list[str]
  is_validation: np.ndarray
  is_counted: np.ndarray  # min_document_tokens has yet to judge it
  sources: list[str]
  part: int
  cursor: tuple
  read: int


def encode(tokenizer: Any, texts: list[str]) -> Encoded:
  encoded = tokenizer.encode_batch(texts)
  lengths = np.fromiter((len(ids) + 1 for ids in encoded), np.int64, len(texts))
  tokens = np.full(lengths.sum(), tokenizer.end_of_text_id, shards.token_dtype(tokenizer.vocab_size))
  for ids, end in zip(encoded, np.cumsum(lengths), strict=True):
    tokens[end - len(ids) - 1 : end - 1] = ids
  byte_counts = np.fromiter((len(text.encode()) for text in texts), np.int64, len(texts))
  return Encoded(tokens, lengths, byte_counts)


def _start_worker(folder: str) -> None:
  os.environ['TOKENIZERS_PARALLELISM'] = 'false'  # one process a core is what keeps the cores busy
  from yxanul.data import tokenizer

  global _tokenizer
  _tokenizer = tokenizer.load(folder)
  parent = multiprocessing.parent_process()

  def leave_with_parent() -> None:
    # A worker whose parent was killed would wait for work for ever: it holds both ends of the queue itself.
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)

  threading.Thread(target=leave_with_parent, daemon=True).start()


def _encode_in_worker(texts: list[str]) -> Encoded:
  return encode(_tokenizer, texts)


def _batches(parts: list[sources.Source], spec: DataSpec, decisions: np.ndarray, state: dict) -> Iterator[Batch]:
  """The documents to keep behind `state`, in batches of about BATCH_BYTES, and a last one that may be empty."""

  def ignore(_: Problem) -> None:
    """Selecting has counted it."""

  read, begun = state['read'], (state['part'], state['cursor'])
  part, cursor = begun
  texts, size, held_out, counted, names = [], 0, [], [], []
  for part, document in prepare_select.read(parts, spec, *begun, ignore):
    if read == len(decisions):
      break
    decision, cursor = decisions[read], document.after
    read += 1
    if decision in (TRAIN, VALIDATION):
      texts.append(document.text)
      size += len(document.text)
      held_out.append(decision == VALIDATION)
      counted.append(document.token_count is None and part == len(parts) - 1)
      names.append(document.source)
    if size >= BATCH_BYTES or len(texts) >= BATCH_DOCUMENTS:
      yield Batch(texts, np.array(held_out), np.array(counted), names, part, cursor, read)
      texts, size, held_out, counted, names = [], 0, [], [], []
  else:
    if read == len(decisions):
      yield Batch(texts, np.array(held_out, bool), np.array(counted, bool), names, part, cursor, read)
      return
  raise ValueError(f'{spec.source}: not the {len(decisions)} documents that were there a moment ago; did the files change?')


def _in_order(batches: Iterator[Batch], submit: Callable, ahead: int) -> Iterator[tuple[Batch, Encoded]]:
  """Results in the order of the batches, at most `ahead` of them under way."""
  waiting = deque((batch, submit(batch.texts)) for batch in itertools.islice(batches, ahead))
  while waiting:
    batch, result = waiting.popleft()
    yield batch, result()
    waiting.extend((batch, submit(batch.texts)) for batch in itertools.islice(batches, 1))


def write_shards(
  parts: list[sources.Source],
  spec: DataSpec,
  selection: Selection,
  tokenizer: Any,
  tokenizer_folder: Path,
  directory: Path,
  about: dict[str, Any],
  progress: Progress,
) -> None:
  """Writes `directory/train` and `directory/validation`; goes on where an earlier call was killed.

  Raises:
    ValueError: the source changed meanwhile; no document is as long as `min_document_tokens`.
  """
  journal = Journal(directory, 'encode')
  state = journal.state or {'part': 0, 'cursor': START, 'read': 0, 'sources': [], 'short': 0, 'writers': {}}
  writers = {
    split: shards.Writer(journal, split, tokenizer.vocab_size, spec.shard_tokens, state['writers'].get(split))
    for split in SPLITS
  }
  total = sum(selection.state['bytes'].values())
  workers = spec.workers or len(os.sched_getaffinity(0))
  batches = _batches(parts, spec, selection.decisions, state)
  done = 0
  committed = time.monotonic()
  with contextlib.ExitStack() as stack:
    stack.callback(journal.close)
    if total < IN_PROCESS_BYTES:
      results = _in_order(batches, lambda texts: lambda: encode(tokenizer, texts), 1)
    else:
      context = multiprocessing.get_context('spawn')
      pool = ProcessPoolExecutor(workers, context, _start_worker, (str(tokenizer_folder),))
      stack.callback(pool.shutdown, wait=True, cancel_futures=True)
      results = _in_order(batches, lambda texts: pool.submit(_encode_in_worker, texts).result, 2 * workers + 2)
    for batch, encoded in results:
      _append(writers, state, batch, encoded, spec)
      done += int(encoded.byte_counts.sum())
      if time.monotonic() - committed >= COMMIT_SECONDS:
        journal.commit({**state, 'writers': {split: writer.state for split, writer in writers.items()}})
        committed = time.monotonic()
        progress('tokenize', done, total)
    journal.commit({**state, 'writers': {split: writer.state for split, writer in writers.items()}})
    about['selection']['short'] += state['short']
    for split in SPLITS:
      if not writers[split].state['shards'] and not writers[split].state['open']:
        wants = f'none of its documents has min_document_tokens={spec.min_document_tokens}'
        raise ValueError(f'config.data.min_document_tokens: {spec.source!r} leaves nothing in {split}: {wants}')
    for split in SPLITS:
      writers[split].finish(tokenizer, state['sources'], about)


def _append(writers: dict[str, shards.Writer], state: dict, batch: Batch, encoded: Encoded, spec: DataSpec) -> None:
  """Adds a batch to the shards, and moves `state` behind it."""
  is_short = batch.is_counted & (encoded.lengths - 1 < spec.min_document_tokens)
  source_ids = np.array([_source_id(name, state['sources']) for name in batch.sources], np.uint8)
  for split, chosen in zip(SPLITS, (~batch.is_validation & ~is_short, batch.is_validation & ~is_short), strict=True):
    if chosen.any():
      tokens = encoded.tokens if chosen.all() else encoded.tokens[np.repeat(chosen, encoded.lengths)]
      writers[split].append(tokens, encoded.lengths[chosen], encoded.byte_counts[chosen], source_ids[chosen])
  state.update(part=batch.part, cursor=batch.cursor, read=batch.read, short=state['short'] + int(is_short.sum()))


def _source_id(name: str, known: list[str]) -> int:
  """The number of a source, in order of appearance; all beyond the first 255 share the last."""
  if name not in known:
    if len(known) >= MAX_SOURCES - 1:
      name = OTHER_SOURCES
    if name not in known:
      known.append(name)
  return known.index(name)
