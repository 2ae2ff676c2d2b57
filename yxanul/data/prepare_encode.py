"""Selected documents to shards: batches of text go to worker processes, tokens come back in the order they were read."""

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from yxanul.config.spec import DataSpec
from yxanul.data import prepare_workers, shards, sources
from yxanul.data import tokenizer as tokenizers
from yxanul.data.prepare_journal import Journal
from yxanul.data.prepare_select import VALIDATION, Progress, Selection
from yxanul.data.prepare_workers import Batch
from yxanul.data.sources_document import START

COMMIT_SECONDS = 5.0
MAX_SOURCES = 256
OTHER_SOURCES = 'other'
SPLITS = ('train', 'validation')

_tokenizer: tokenizers.Tokenizer  # of this process


class Encoded(NamedTuple):
  """Documents one after another, each followed by the end-of-text token, which `lengths` counts."""

  tokens: np.ndarray
  lengths: np.ndarray
  byte_counts: np.ndarray


def encode(tokenizer: Any, texts: list[str]) -> Encoded:
  encoded = tokenizer.encode_batch(texts)
  lengths = np.fromiter((len(ids) + 1 for ids in encoded), np.int64, len(texts))
  tokens = np.full(lengths.sum(), tokenizer.end_of_text_id, shards.token_dtype(tokenizer.vocab_size))
  for ids, end in zip(encoded, np.cumsum(lengths), strict=True):
    tokens[end - len(ids) - 1 : end - 1] = ids
  byte_counts = np.fromiter((len(text.encode()) for text in texts), np.int64, len(texts))
  return Encoded(tokens, lengths, byte_counts)


def _start(folder: str) -> None:
  global _tokenizer
  _tokenizer = tokenizers.load(folder)


def _encode(texts: list[str]) -> Encoded:
  return encode(_tokenizer, texts)


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
  state = journal.state or {'part': 0, 'cursor': START, 'read': 0, 'sources': [], 'short': {}, 'bytes': 0, 'writers': {}}
  writers = {
    split: shards.Writer(journal, split, tokenizer.vocab_size, spec.shard_tokens, state['writers'].get(split))
    for split in SPLITS
  }
  total = sum(selection.state['bytes'].values())
  decisions = selection.decisions
  todo = prepare_workers.batches(parts, spec, decisions, state)
  committed = time.monotonic()

  def commit() -> None:
    journal.commit({**state, 'writers': {split: writer.state for split, writer in writers.items()}})

  try:
    for batch, encoded in prepare_workers.work(todo, _encode, _start, (str(tokenizer_folder),), total, spec.workers):
      _append(writers, state, batch, encoded, decisions, spec)
      if time.monotonic() - committed >= COMMIT_SECONDS:
        commit()
        committed = time.monotonic()
        progress('tokenize', state['bytes'], total)
    commit()
    for split, n in state['short'].items():
      about['selection'][split] -= n
      about['selection']['short'] += n
    for split in SPLITS:
      if not writers[split].state['shards'] and not writers[split].state['open']:
        wants = f'none of its documents has min_document_tokens={spec.min_document_tokens}'
        raise ValueError(f'config.data.min_document_tokens: {spec.source!r} leaves nothing in {split}: {wants}')
    for split in SPLITS:
      writers[split].finish(tokenizer, state['sources'], about)
  finally:
    journal.close()


def _append(
  writers: dict[str, shards.Writer], state: dict, batch: Batch, encoded: Encoded, decisions: np.ndarray, spec: DataSpec
) -> None:
  """Adds a batch to the shards, and moves `state` behind it."""
  is_validation = decisions[batch.numbers] == VALIDATION
  is_counted = np.array([document.token_count is None for document in batch.documents], bool) & ~batch.is_held_out
  is_short = is_counted & (encoded.lengths - 1 < spec.min_document_tokens)
  source_ids = np.array([_source_id(document.source, state['sources']) for document in batch.documents], np.uint8)
  for split, of_split in zip(SPLITS, (~is_validation, is_validation), strict=True):
    state['short'][split] = state['short'].get(split, 0) + int((of_split & is_short).sum())
    chosen = of_split & ~is_short
    if chosen.any():
      tokens = encoded.tokens if chosen.all() else encoded.tokens[np.repeat(chosen, encoded.lengths)]
      writers[split].append(tokens, encoded.lengths[chosen], encoded.byte_counts[chosen], source_ids[chosen])
  state.update(part=batch.part, cursor=batch.cursor, read=batch.read)
  state['bytes'] += int(encoded.byte_counts.sum())


def _source_id(name: str, known: list[str]) -> int:
  """The number of a source, in order of appearance; all beyond the first 255 share the last."""
  if name not in known:
    if len(known) >= MAX_SOURCES - 1:
      name = OTHER_SOURCES
    if name not in known:
      known.append(name)
  return known.index(name)
