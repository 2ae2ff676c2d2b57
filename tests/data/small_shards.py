"""Shards of documents of random tokens, and the ways in which a stream may deal them out."""

import numpy as np
import pytest

from yxanul.data import shards
from yxanul.data.prepare_journal import Journal
from yxanul.data.stream import Stream

END = 7


def make_shards(folder, lengths, shard_tokens=10**9, seed=0, vocab_size=1000) -> shards.Shards:
  """Shards of documents of random tokens (never END), `lengths` without their end-of-text tokens."""

  class Tokenizer:
    end_of_text_id, fingerprint = END, 'test'

  Tokenizer.vocab_size = vocab_size
  rng = np.random.default_rng(seed)
  lengths = np.asarray(lengths, np.int64) + 1
  tokens = rng.integers(END + 1, vocab_size, lengths.sum())
  tokens[np.cumsum(lengths) - 1] = END
  writer = shards.Writer(journal := Journal(folder, 'journal'), 'train', vocab_size, shard_tokens)
  writer.append(tokens, lengths, lengths * 3, (np.arange(len(lengths)) % 2).astype(np.uint8))
  writer.finish(Tokenizer, ['even', 'odd'], {})
  journal.close()
  return shards.open(folder / 'train')


def epoch_by_hand(data: shards.Shards, documents) -> list[int]:
  return [int(t) for i in documents for t in (*data.document(i), END)]


CASES = {
  'one shard': (50, 30, 10**9),
  'many shards': (50, 30, 40),
  'long documents': (12, 1500, 10**9),
  'both': (12, 1500, 2000),
}

ONE = ((0, 32),)
STAGES = ((0, 4), (160, 6), (350, 8), (640, 16))  # starts that are no multiples of rows, and blocks of 48 tokens
ORDERS = pytest.mark.parametrize(
  'rows', [ONE, STAGES, ((0, 1),), ((0, 8), (40, 10**9))], ids=['one', 'stages', 'tokens', 'epoch']
)


def make_stream(data, rows=STAGES, seed=0):
  return Stream(data, seed, rows)


def targets(stream, position, n_tokens):
  return stream.read(position, 1, n_tokens)[0, 1:]
