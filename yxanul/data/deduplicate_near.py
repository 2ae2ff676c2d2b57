"""Near duplicates: documents that share most of their five-word runs with an earlier one (MinHash and LSH, by datasketch).

A signature of 128 minima estimates the Jaccard similarity of two documents' shingles with a standard error of at most
0.045. LSH finds the candidates, and the signatures themselves decide, so that a document is dropped only for a real
likeness. Broder, "On the resemblance and containment of documents", 1997.
"""

import re
import zlib
from collections.abc import Iterable

import numpy as np

PERMUTATIONS = 128
SIMILARITY = 0.8  # from here on, two documents are near duplicates
SHINGLE_WORDS = 5
_SEED = 1
_SCHEME = 'affine32'  # how datasketch permutes; named, so that another default does not change what is dropped
_WORD = re.compile(r'\w+')


def shingles(text: str) -> set[bytes]:
  """The runs of SHINGLE_WORDS words, whatever their case and punctuation; a shorter text is one run."""
  words = _WORD.findall(text.lower())
  return {' '.join(words[i : i + SHINGLE_WORDS]).encode() for i in range(max(1, len(words) - SHINGLE_WORDS + 1))}


def signatures(texts: Iterable[str]) -> np.ndarray:
  """uint32 (texts, PERMUTATIONS)."""
  import datasketch

  empty = datasketch.MinHash(PERMUTATIONS, _SEED, hashfunc=zlib.crc32, scheme=_SCHEME)
  found = []
  for text in texts:
    signature = empty.copy()
    signature.update_batch(sorted(shingles(text)))
    found.append(signature.hashvalues.astype(np.uint32))
  return np.array(found, np.uint32).reshape(-1, PERMUTATIONS)


class NearDuplicates:
  """The signatures of the documents that were kept, and which of them a new one is like."""

  def __init__(self):
    import datasketch

    self._datasketch = datasketch
    self._index = datasketch.MinHashLSH(SIMILARITY, PERMUTATIONS)
    self._kept: list[np.ndarray] = []

  def is_like_another(self, signature: np.ndarray) -> bool:
    found = self._index.query(self._hashed(signature))
    return any(np.mean(self._kept[i] == signature) >= SIMILARITY for i in found)

  def keep(self, signature: np.ndarray) -> None:
    self._index.insert(len(self._kept), self._hashed(signature), check_duplication=False)
    self._kept.append(signature)

  def _hashed(self, signature: np.ndarray):
    return self._datasketch.LeanMinHash(seed=_SEED, hashvalues=signature, scheme=_SCHEME)
