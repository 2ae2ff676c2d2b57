"""The second stage of SuperBPE (arXiv 2503.13423): merges that may span words, under limits no stock trainer can state.

Byte-pair encoding by the book: merge the adjacent pair with the highest count, everywhere, from left to right; repeat.
Counts include overlapping neighbours ('aaa' holds 'aa' twice). Ties go to the smaller left id, then the smaller right
id: the rule of the stock trainer, so both stages have one rule. A pair that the limits forbid is never merged.

How it stays fast and small, with no approximation:

- A floor. Only pairs that occur at least `floor` times are followed; the others cannot be next while one of these is
  left. When none is left, the text is closed up, the floor is lowered to an eighth and the pairs are counted again. A
  merged pair never occurs more often than any pair of neighbours inside it, so nothing that matters is missed.
- Before pairs are counted exactly, one hashed counter for each (a sketch that can only overestimate) excludes nearly all
  that cannot reach the floor: memory follows the number of frequent pairs, not the number of different ones.
- The text is one array of token ids that is merged in place, at 4 bytes a token. A token that covers n >= 2 places keeps
  -1-n in its second and in its last place, so both neighbours are found without links. -1 parts sequences (documents,
  groups of digits). A second array, 4 bytes a token too, holds the number of the followed pair that starts at a place.
- Each followed pair has the list of its places, 8 bytes each. Places where the pair no longer is are skipped, which the
  second array tells. A merge makes pairs of its own new token only: they are counted in two arrays as long as the vocabulary.
- Counts only fall once a pair is known, so a heap whose entries are corrected when they come up gives the highest.
"""

import heapq
import itertools
from collections.abc import Callable, Sequence

import numba
import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_EMPTY = np.int64(-1)
_jit = numba.njit(cache=True)


def is_allowed(token: bytes, max_words: int) -> bool:
  """Whether stage 2 may make this token: at most `max_words` words, and no ':' followed by a space.

  A word is a run of characters that are not white space, as `str.split` sees them; a cut-off part counts as a word.
  """
  return b': ' not in token and len(token.decode('utf-8', 'replace').split()) <= max_words


# --- finding neighbours ----------------------------------------------------------------------------------------------


@_jit
def _after(tokens, i):
  """Place of the token (or part mark) after the one at i."""
  v = tokens[i + 1]
  return i + 1 if v >= -1 else i - 1 - v


@_jit
def _before(tokens, i):
  """Place of the token (or part mark) before the one at i."""
  v = tokens[i - 1]
  return i - 1 if v >= -1 else i + 1 + v


# --- counting all pairs ----------------------------------------------------------------------------------------------


@_jit
def _hash(key, mask):
  h = np.uint64(key) * _GOLDEN
  return np.int64((h ^ (h >> np.uint64(32))) & np.uint64(mask))


@_jit
def _sketch(tokens, counters):
  """Counts every pair of a closed-up text into its hashed counter."""
  mask = counters.size - 1
  for i in range(tokens.size - 1):
    a, b = tokens[i], tokens[i + 1]
    if a >= 0 and b >= 0:
      counters[_hash((np.int64(a) << 32) | b, mask)] += 1


@_jit
def _slot(keys, key):
  """Place of `key` in the open-addressing table, or the empty place where it belongs."""
  mask = keys.size - 1
  at = _hash(key, mask)
  while keys[at] != key and keys[at] != _EMPTY:
    at = (at + 1) & mask
  return at


@_jit
def _tally(tokens, counters, floor, keys, counts, start, used):
  """Counts exactly the pairs that the sketch lets through, until the table is half full. Returns (place, used)."""
  mask = counters.size - 1
  for i in range(start, tokens.size - 1):
    a, b = tokens[i], tokens[i + 1]
    if a >= 0 and b >= 0:
      key = (np.int64(a) << 32) | b
      if counters[_hash(key, mask)] >= floor:
        at = _slot(keys, key)
        if keys[at] == _EMPTY:
          if 2 * used >= keys.size:
            return i, used
          keys[at] = key
          used += 1
        counts[at] += 1
  return tokens.size, used


@_jit
def _rehash(keys, counts, new_keys, new_counts):
  for at in range(keys.size):
    if keys[at] != _EMPTY:
      to = _slot(new_keys, keys[at])
      new_keys[to] = keys[at]
      new_counts[to] = counts[at]


@_jit
def _index(tokens, counters, floor, keys, pair_of_slot, pairs, cursor, places):
  """Writes the number of the pair that starts at each place, and lists the places of each pair, in order."""
  mask = counters.size - 1
  for i in range(tokens.size - 1):
    a, b = tokens[i], tokens[i + 1]
    p = -1
    if a >= 0 and b >= 0:
      key = (np.int64(a) << 32) | b
      if counters[_hash(key, mask)] >= floor:
        p = pair_of_slot[_slot(keys, key)]
    pairs[i] = p
    if p >= 0:
      places[cursor[p]] = i
      cursor[p] += 1
  pairs[tokens.size - 1] = -1


# --- one merge -------------------------------------------------------------------------------------------------------


@_jit
def _replace(tokens, pairs, counts, places, p, z):
  """Replaces pair p by token z wherever it still is; keeps those places at the front of `places`, returns how many."""
  n = 0
  for k in range(places.size):
    i = places[k]
    if pairs[i] != p:
      continue
    h = _before(tokens, i)
    j = _after(tokens, i)
    end = _after(tokens, j)
    for at in (h, j):  # the pairs that overlap this one are no more
      if pairs[at] >= 0:
        counts[pairs[at]] -= 1
        pairs[at] = -1
    pairs[i] = -1
    tokens[i] = z
    tokens[i + 1] = i - end - 1
    tokens[end - 1] = i - end - 1
    places[n] = i
    n += 1
  return n


@_jit
def _neighbours(tokens, places, z, counts, seen):
  """Counts what stands before z (row 0) and after it (row 1). A z before a z is counted once, as what stands after.

  `counts` (2, V) is zero on entry. Lists the different neighbours in `seen` (2, V); returns how many of each.
  """
  n = np.zeros(2, np.int64)
  for k in range(places.size):
    for side in range(2):
      at = _after(tokens, places[k]) if side else _before(tokens, places[k])
      t = tokens[at]
      if t >= 0 and (side or t != z):
        if counts[side, t] == 0:
          seen[side, n[side]] = t
          n[side] += 1
        counts[side, t] += 1
  return n


@_jit
def _follow(tokens, pairs, places, z, number, cursor, out):
  """Lists the places of the new pairs whose `number` (2, V) is not -1, and writes the numbers at these places.

  `cursor` (2, V): where in `out` the list of each pair begins.
  """
  for k in range(places.size):
    for side in range(2):
      at = _after(tokens, places[k]) if side else _before(tokens, places[k])
      t = tokens[at]
      if t >= 0 and (side or t != z) and number[side, t] >= 0:
        start = places[k] if side else at
        pairs[start] = number[side, t]
        out[cursor[side, t]] = start
        cursor[side, t] += 1


@_jit
def _close_up(tokens):
  """Moves what is left together, drops sequences of one token; returns the new length (it ends with a part mark)."""
  n = 0
  begin = 0  # of the sequence being written
  i = 0
  while i < tokens.size:
    v = tokens[i]
    i = _after(tokens, i) if v >= 0 else i + 1
    if v >= 0:
      tokens[n] = v
      n += 1
    elif n - begin >= 2 or n == 0:
      tokens[n] = -1
      n += 1
      begin = n
    else:
      n = begin
  return n


# --- the learner -----------------------------------------------------------------------------------------------------


def _power_of_two(n: int) -> int:
  return 1 << max(n - 1, 1).bit_length()


def _count_pairs(tokens: np.ndarray, floor: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Exact counts of all pairs that occur at least `floor` times, and of a few others: (sketch, keys, counts)."""
  counters = np.zeros(min(max(_power_of_two(tokens.size), 1 << 10), 1 << 26), np.int32)
  _sketch(tokens, counters)
  keys, counts = np.full(1 << 12, _EMPTY), np.zeros(1 << 12, np.int32)
  place, used = _tally(tokens, counters, floor, keys, counts, 0, 0)
  while place < tokens.size:
    bigger_keys, bigger_counts = np.full(4 * keys.size, _EMPTY), np.zeros(4 * keys.size, np.int32)
    _rehash(keys, counts, bigger_keys, bigger_counts)
    keys, counts = bigger_keys, bigger_counts
    place, used = _tally(tokens, counters, floor, keys, counts, place, used)
  return counters, keys, counts


def _round(
  tokens: np.ndarray,
  floor: int,
  entries: list[bytes],
  wanted: int,
  max_words: int,
  merges: list[tuple[int, int]],
  progress: Callable[[int, int], None],
) -> None:
  """Merges until `wanted` merges are known or no allowed pair occurs `floor` times."""
  counters, keys, slot_counts = _count_pairs(tokens, floor)
  pair_of_slot = np.full(keys.size, -1, np.int32)
  heap, sizes = [], []
  for slot in np.flatnonzero(slot_counts >= floor).tolist():
    a, b = int(keys[slot]) >> 32, int(keys[slot]) & 0xFFFFFFFF
    if is_allowed(entries[a] + entries[b], max_words):
      pair_of_slot[slot] = len(sizes)
      heap.append((-int(slot_counts[slot]), a, b, len(sizes)))
      sizes.append(int(slot_counts[slot]))
  heapq.heapify(heap)
  starts = np.concatenate([[0], np.cumsum(np.array(sizes, np.int64))])
  pairs, listed = np.empty(tokens.size, np.int32), np.empty(starts[-1], np.int64)
  _index(tokens, counters, floor, keys, pair_of_slot, pairs, starts.copy(), listed)
  del counters, keys, slot_counts, pair_of_slot
  places: list[np.ndarray | None] = [listed[begin:end] for begin, end in itertools.pairwise(starts.tolist())]
  counts = np.array(sizes, np.int32)

  vocabulary = len(entries) + wanted - len(merges)
  number, cursor = np.full((2, vocabulary), -1, np.int32), np.zeros((2, vocabulary), np.int64)
  near, seen = np.zeros((2, vocabulary), np.int32), np.empty((2, vocabulary), np.int32)
  while heap and len(merges) < wanted:
    count, a, b, p = heapq.heappop(heap)
    if counts[p] != -count:
      if counts[p] >= floor:
        heapq.heappush(heap, (-int(counts[p]), a, b, p))
      else:
        places[p] = None
      continue
    z = len(entries)
    entries.append(entries[a] + entries[b])
    merges.append((a, b))
    at = places[p]
    places[p] = None
    at = at[: _replace(tokens, pairs, counts, at, p, z)]
    found, new, total = _neighbours(tokens, at, z, near, seen), [], 0
    for side in range(2):
      these = seen[side, : found[side]]
      for t in these[near[side, these] >= floor].tolist():
        left, right = (z, t) if side else (t, z)
        if is_allowed(entries[left] + entries[right], max_words):
          size = int(near[side, t])
          number[side, t], cursor[side, t] = len(places) + len(new), total
          new.append((left, right, total, total + size))
          total += size
      near[side, these] = 0
    if new:
      if len(places) + len(new) > counts.size:
        counts = np.concatenate([counts, np.zeros(counts.size + len(new), np.int32)])
      listed = np.empty(total, np.int64)
      _follow(tokens, pairs, at, z, number, cursor, listed)
      for left, right, begin, end in new:
        counts[len(places)] = end - begin
        heapq.heappush(heap, (begin - end, left, right, len(places)))
        places.append(listed[begin:end])
      for side in range(2):
        number[side, seen[side, : found[side]]] = -1
    progress(len(merges), wanted)


def learn(
  tokens: np.ndarray,
  entries: Sequence[bytes],
  n_merges: int,
  max_words: int,
  progress: Callable[[int, int], None] = lambda done, total: None,
  first_floor: int = 0,
) -> list[tuple[int, int]]:
  """Learns up to `n_merges` merges; merge k makes the entry `len(entries) + k`.

  Args:
    tokens: int32 (N,), ids of `entries`; -1 parts sequences and must be its first and last value. Overwritten.
    entries: the bytes of each id.
    n_merges: how many to learn; fewer come back when no allowed pair is left.
    max_words: most words in an entry made here.
    progress: called after each merge with (merges learned, n_merges).
    first_floor: where the floor starts, 0: chosen by the length of the text. It changes time and memory, not the merges.

  Returns:
    The merges as (left id, right id), in order.
  """
  assert tokens.dtype == np.int32
  assert tokens[0] == tokens[-1] == -1
  entries, merges = list(entries), []
  floor = first_floor or max(tokens.size >> 14, 1)
  while len(merges) < n_merges:
    tokens = tokens[: _close_up(tokens)]
    _round(tokens, floor, entries, n_merges, max_words, merges, progress)
    if floor == 1:
      break
    floor = max(floor >> 3, 1)
  return merges
