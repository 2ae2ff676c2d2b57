"""The order in which tokens are trained on: one endless stream of targets, whose only state is a position.

The stream is epoch after epoch, an epoch all documents in an order of its own (seeded by seed and epoch), every one followed by
the end-of-text token. The part of an epoch that a stage reads is cut into blocks of some of its rows; the whole blocks of the
epoch change places (seeded, too), and each stage's rows are dealt out from those at its places: the first row of every block,
then the second of every block, and so on. A batch of B rows of T tokens at position p has the targets [p, p + B * T), row by
row, and before each row the token that stands before it in its text, as the input of its first target. The stream does not
depend on how it is read: each token is a target exactly once an epoch, whatever the shapes of the batches, and the next batch
starts at p + B * T.

Rows stay stretches of text but where a stage or an epoch ends (or a block, for lengths that have no small common multiple).
What all this is for is that a batch is not one. Half of a corpus is in long documents, and one stretch is about few things at
a time: GPT-2 124M, 12 rows of 1,024 tokens a step, ended 0.14 bits per byte lower when its rows came from all over
(experiments/records/2026-11-29_data-order).

Shape legend: B rows, T tokens of a row, D documents, S stretches of one epoch's documents, P parts of documents.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from yxanul.data.shards import Shards

ORDER = 2  # of the stream: another number where the same seed gives another order; 1 read documents one after another
_EPOCHS_KEPT = 2  # a batch may reach from one into the next
_LONG_TOKENS = 256  # on average: from here on, copying documents one by one is faster than gathering tokens
_MOST_ROWS = 16  # in a block, of the longest


class _Dealt(NamedTuple):
  """What of a stage is whole blocks of one epoch. Places are tokens from the start of the epoch."""

  first: int
  last: int
  row_tokens: int
  blocks: np.ndarray  # where the block in each place comes from


class _Epoch(NamedTuple):
  """The order of one epoch."""

  documents_D: np.ndarray  # the document in each place
  ends_D: np.ndarray  # where each place ends, in tokens from the start of the epoch
  dealt: tuple[_Dealt, ...]  # what is in none of them stays where it is


def block_tokens(lengths: Sequence[int]) -> int:
  """The tokens of a block, which is whole rows of every length; or the longest row, where it would be more than 16 of those."""
  multiple, longest = math.lcm(*lengths), max(lengths)
  return multiple if multiple <= _MOST_ROWS * longest else longest


class Stream:
  """The tokens of `shards` as one endless, seeded stream. Reading has no side effect but a cache.

  Args:
    rows: (position, tokens of a row from there on) of every stage, ascending from position 0.
  """

  def __init__(self, shards: Shards, seed: int, rows: Sequence[tuple[int, int]]):
    assert shards.n_tokens > 0
    assert rows[0][0] == 0
    self.shards = shards
    self.seed = seed
    self.rows = tuple(rows)
    self.block_tokens = block_tokens([row_tokens for _, row_tokens in rows])
    self.tokens_per_epoch = shards.n_tokens
    self._epochs: dict[int, _Epoch] = {}

  def _epoch(self, number: int) -> _Epoch:
    if number not in self._epochs:
      draws = np.random.PCG64(np.random.SeedSequence([self.seed, number]))
      # Raw 64-bit draws and a stable sort: NumPy promises both for good, but not that `permutation` stays as it is.
      documents_D = np.argsort(draws.random_raw(self.shards.n_documents), kind='stable')
      places = list(self._places(number))
      blocks = np.concatenate([np.arange(first, last, self.block_tokens) for first, last, _ in places] or [np.empty(0, int)])
      blocks = blocks[np.argsort(draws.random_raw(len(blocks)), kind='stable')]
      cuts = np.cumsum([(last - first) // self.block_tokens for first, last, _ in places])[:-1]
      dealt = tuple(_Dealt(*place, its) for place, its in zip(places, np.split(blocks, cuts), strict=False))
      self._epochs[number] = _Epoch(documents_D, np.cumsum(self.shards.lengths[documents_D]), dealt)
      if len(self._epochs) > _EPOCHS_KEPT:
        del self._epochs[next(iter(self._epochs))]
    return self._epochs[number]

  def _places(self, number: int) -> Iterator[tuple[int, int, int]]:
    """Of every stage, what is whole blocks of this epoch: from, to, tokens of a row."""
    size, begins = self.block_tokens, number * self.tokens_per_epoch
    for i, (start, row_tokens) in enumerate(self.rows):
      # From the stage's start on, in later epochs too, for that is where its batches begin.
      first = max(start - begins, (start - begins) % size)
      end = min([self.tokens_per_epoch, *(after - begins for after, _ in self.rows[i + 1 : i + 2])])
      n_blocks = (end - first) // size
      if n_blocks > 0:
        yield first, first + size * n_blocks, row_tokens if size % row_tokens == 0 else size

  def read(self, position: int, n_rows: int, row_tokens: int) -> np.ndarray:
    """`n_rows` rows from `position` on, each with the token before it: int32 (B, T + 1)."""
    out = np.empty((n_rows, row_tokens + 1), np.int32)
    done, n_tokens = 0, n_rows * row_tokens
    while done < n_tokens:
      epoch, offset = divmod(position + done, self.tokens_per_epoch)
      size = min(n_tokens - done, self.tokens_per_epoch - offset)
      self._read_epoch(epoch, offset, size, done, out)
      done += size
    return out

  def _read_epoch(self, number: int, offset: int, n_tokens: int, done: int, out: np.ndarray) -> None:
    """Fills the places of `n_tokens` targets in `out`, after `done` of them, with those from `offset` of one epoch."""
    documents_D, ends_D, _ = epoch = self._epoch(number)
    flat, row_tokens = out.reshape(-1), out.shape[1] - 1
    from_S, to_S, target_S = self._stretches(epoch, offset, n_tokens, done, row_tokens)
    row_S, within_S = np.divmod(target_S, row_tokens)
    begins_row_S = within_S == 0
    begin_S = row_S * (row_tokens + 1) + within_S + 1 - begins_row_S
    from_S = from_S - begins_row_S
    flat[begin_S[from_S < 0]] = self.shards.end_of_text_id  # before an epoch's first token
    first_S = np.searchsorted(ends_D, np.maximum(from_S, 0), side='right')
    parts_S = np.ones_like(first_S)
    crosses = to_S > ends_D[first_S]  # short rows seldom do
    parts_S[crosses] += np.searchsorted(ends_D, to_S[crosses], side='left') - first_S[crosses]
    # Everything below is about the parts of documents that the stretches are made of, in order.
    nth_P = np.arange(parts_S.sum()) - np.repeat(np.cumsum(parts_S) - parts_S, parts_S)
    place_P = np.repeat(first_S, parts_S) + nth_P
    documents = documents_D[place_P]
    document_from_P = ends_D[place_P] - self.shards.lengths[documents]
    stretch_from_P = np.repeat(from_S, parts_S)
    from_P = np.maximum(document_from_P, stretch_from_P)
    begins = np.repeat(begin_S, parts_S) + from_P - stretch_from_P
    ends = begins + np.minimum(ends_D[place_P], np.repeat(to_S, parts_S)) - from_P
    starts = self.shards.starts[documents] + from_P - document_from_P
    if len(self.shards.tokens) == 1:
      _gather(self.shards.tokens[0], starts, begins, ends, flat)
      return
    shard_numbers = self.shards.shard_numbers[documents]
    order = np.argsort(shard_numbers, kind='stable')
    for chosen in np.split(order, np.flatnonzero(np.diff(shard_numbers[order])) + 1):
      _gather(self.shards.tokens[shard_numbers[chosen[0]]], starts[chosen], begins[chosen], ends[chosen], flat)

  def _stretches(
    self, epoch: _Epoch, offset: int, n_tokens: int, done: int, row_tokens: int
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where `n_tokens` targets of the epoch from `offset` come from, cut at every row that is read, (S,) each.

    Returns:
      [from, to) in the epoch's documents as they are ordered, and which target of the batch comes first, after `done`.
    """
    end = offset + n_tokens
    cuts = [np.array([offset, end]), _multiples(row_tokens, offset - done, offset, end)]
    for first, last, length, _ in epoch.dealt:
      cuts.append(_multiples(length, first, max(offset, first), min(end, last + 1)))
    bounds = np.sort(np.concatenate(cuts), kind='stable')  # faster than np.unique
    lengths = np.diff(bounds)
    at, lengths = bounds[:-1][lengths > 0], lengths[lengths > 0]
    target_S, from_S = at - offset + done, at.copy()
    for first, last, length, blocks in epoch.dealt:
      low, high = np.searchsorted(at, (first, last))
      row, within = np.divmod(at[low:high] - first, length)
      turn, block = np.divmod(row, len(blocks))
      from_S[low:high] = blocks[block] + turn * length + within
    return from_S, from_S + lengths, target_S

  def most_documents(self, n_tokens: int) -> int:
    """A bound on the documents that any `n_tokens` tokens of the stream can touch: the shortest ones side by side, and another
    at every cut between rows."""
    shortest = np.sort(self.shards.lengths)
    passes = 1 + -(-n_tokens // self.tokens_per_epoch)  # of the epoch that the window can lie over
    cuts = n_tokens // min(row_tokens for _, row_tokens in self.rows) + 2 * passes
    return 2 + cuts + passes * int(np.searchsorted(np.cumsum(shortest) * passes, n_tokens, side='right') + 1)


def _multiples(size: int, origin: int, first: int, end: int) -> np.ndarray:
  """origin plus every multiple of size in [first, end)."""
  return np.arange(origin + -(-(first - origin) // size) * size, end, size)


def _gather(tokens: np.ndarray, starts: np.ndarray, begins: np.ndarray, ends: np.ndarray, out: np.ndarray) -> None:
  """out[begins[i]:ends[i]] = tokens[starts[i]:...] for every i; by slices where they are long, at once where not."""
  sizes = ends - begins
  firsts = np.cumsum(sizes) - sizes
  total = int(firsts[-1] + sizes[-1])
  if total > _LONG_TOKENS * len(sizes):
    for start, begin, end in zip(starts.tolist(), begins.tolist(), ends.tolist(), strict=True):
      out[begin:end] = tokens[start : start + end - begin]
    return
  steps = np.arange(total)
  gathered = tokens[np.repeat(starts - firsts, sizes) + steps]
  if total == ends[-1] - begins[0]:  # one shard: what is gathered is in its place
    out[begins[0] : ends[-1]] = gathered
  else:
    out[np.repeat(begins - firsts, sizes) + steps] = gathered
