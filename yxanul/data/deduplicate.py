"""Exact duplicates: a set of 128-bit digests in at most 46 bytes a document.

A Python set of the same digests takes about 100 bytes each. This one is 256 open-addressing tables, chosen by a byte of
the digest and doubled one at a time, so that growing never holds two copies of the whole. Two different documents share a
128-bit BLAKE2b digest with probability 1e-21 among 10**9 of them.
"""

import hashlib

DIGEST_BYTES = 16
_TABLES = 256
_SLOTS = 16  # of a new table
_FILL = 0.7  # a table doubles beyond it, to 0.35: 16 bytes / 0.35 = 46 bytes a document at most
_FREE = bytes(DIGEST_BYTES)


def digest(text_bytes: bytes) -> bytes:
  """The 16 bytes that stand for a document, in deduplication and in the split."""
  return hashlib.blake2b(text_bytes, digest_size=DIGEST_BYTES).digest()


def unit_interval(digest_: bytes) -> float:
  """A number in [0, 1) that belongs to the document for good: below the validation fraction, it is held out."""
  return (int.from_bytes(digest_[:8], 'big') >> 11) / 2**53


class DigestSet:
  """A set of digests that can only grow."""

  def __init__(self):
    self._tables = [bytearray(_SLOTS * DIGEST_BYTES) for _ in range(_TABLES)]
    self._counts = [0] * _TABLES

  def __len__(self) -> int:
    return sum(self._counts)

  def add(self, digest_: bytes) -> bool:
    """Adds a digest; False when it was there already."""
    if digest_ == _FREE:  # marks a free slot; no text is known to hash to it
      digest_ = _FREE[:-1] + b'\1'
    number = digest_[15]
    table = self._tables[number]
    at = self._find(table, digest_)
    if table[at : at + DIGEST_BYTES] != _FREE:
      return False
    table[at : at + DIGEST_BYTES] = digest_
    self._counts[number] += 1
    if self._counts[number] * DIGEST_BYTES > _FILL * len(table):
      self._tables[number] = self._doubled(table)
    return True

  @staticmethod
  def _find(table: bytearray, digest_: bytes) -> int:
    """Where the digest stands in the table, or the free slot where it belongs."""
    slots = len(table) // DIGEST_BYTES
    slot = int.from_bytes(digest_[8:15], 'little') & (slots - 1)
    while (found := table[slot * DIGEST_BYTES : (slot + 1) * DIGEST_BYTES]) != digest_ and found != _FREE:
      slot = (slot + 1) & (slots - 1)
    return slot * DIGEST_BYTES

  @classmethod
  def _doubled(cls, table: bytearray) -> bytearray:
    larger = bytearray(2 * len(table))
    for start in range(0, len(table), DIGEST_BYTES):
      entry = bytes(table[start : start + DIGEST_BYTES])
      if entry != _FREE:
        at = cls._find(larger, entry)
        larger[at : at + DIGEST_BYTES] = entry
    return larger
