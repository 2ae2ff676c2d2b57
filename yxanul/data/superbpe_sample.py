"""A sample of bounded size, drawn evenly from all documents in one pass, kept in one file on disk.

The documents with the smallest hashes are kept, as many as fit: each has the same chance wherever it stands, the choice
depends on neither order nor sharding, and 16 bytes of memory for each kept document are all it takes. The last one is cut
where the budget ends, so that even one document larger than the budget leaves a sample.
"""

import hashlib
import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

_SLACK = 1.5  # the file is cleaned when it holds this many times the budget


def _hash(text: bytes) -> int:
  return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), 'little')


def _chosen(hashes: np.ndarray, sizes: np.ndarray, budget: int) -> np.ndarray:
  """int64 (D,): bytes of each document that the budget takes, in the order of their hashes."""
  order = np.argsort(hashes, kind='stable')
  end = np.minimum(np.cumsum(sizes[order]), budget)
  taken = np.empty(len(sizes), np.int64)
  taken[order] = np.diff(end, prepend=0)
  return taken


class Sample:
  """Documents on disk: their text one after the other, and where each ends."""

  def __init__(self, folder: Path):
    self._text = folder / 'sample.utf8'
    self._sizes = np.load(folder / 'sample.npy')
    counts = json.loads((folder / 'sample.json').read_text())
    self.corpus_documents, self.corpus_bytes = counts['documents'], counts['bytes']
    self.n_bytes = int(self._sizes.sum())

  def __len__(self) -> int:
    return len(self._sizes)

  def batches(self, n_bytes: int = 4_000_000) -> Iterator[list[str]]:
    """The documents, in lists of about `n_bytes` of text."""
    with self._text.open('rb') as file:
      batch, held = [], 0
      for size in self._sizes.tolist():
        batch.append(file.read(size).decode())
        held += size
        if held >= n_bytes:
          yield batch
          batch, held = [], 0
      if batch:
        yield batch


def is_drawn(folder: Path) -> bool:
  return (folder / 'sample.json').exists()


def remove(folder: Path) -> None:
  for name in ('sample.json', 'sample.npy', 'sample.utf8'):
    (folder / name).unlink(missing_ok=True)


def draw(texts: Iterable[str], budget: int, folder: Path, progress: Callable[[int], None]) -> Sample:
  """Writes the sample of `texts`, of at most `budget` bytes, into `folder`. `progress` gets the bytes read so far.

  Raises:
    ValueError: there is no text.
  """
  remove(folder)
  sizes, hashes = array('q'), array('Q')
  documents = read = held = 0
  limit, clean_at = 1 << 64, _SLACK * budget
  with (folder / 'sample.utf8').open('w+b') as file:
    for text in texts:
      data = text.encode()
      documents += 1
      read += len(data)
      progress(read)
      code = _hash(data)
      if not data or code > limit:
        continue
      file.write(data)
      sizes.append(len(data))
      hashes.append(code)
      held += len(data)
      if held > clean_at:
        sizes, hashes = _keep(file, sizes, hashes, budget, cut=False)
        held, limit = sum(sizes), max(hashes)
        clean_at = max(_SLACK * budget, 2 * held)
    sizes, hashes = _keep(file, sizes, hashes, budget, cut=True)
    file.flush()
    os.fsync(file.fileno())
  if not sizes:
    raise ValueError('the text to train a tokenizer on is empty')
  np.save(folder / 'sample.npy', np.array(sizes, np.int64))
  (folder / 'sample.json').write_text(json.dumps({'documents': documents, 'bytes': read}))
  return Sample(folder)


def _keep(file: BinaryIO, sizes: array, hashes: array, budget: int, cut: bool) -> tuple[array, array]:
  """Moves the chosen documents to the front of the file and cuts it there. Returns their sizes and hashes."""
  taken = _chosen(np.array(hashes, np.uint64), np.array(sizes, np.int64), budget)
  kept_sizes, kept_hashes = array('q'), array('Q')
  source = target = 0
  for size, code, take in zip(sizes, hashes, taken.tolist(), strict=True):
    if take:
      file.seek(source)
      data = file.read(size)
      if cut and take < size:
        data = data[:take].decode(errors='ignore').encode()  # not in the middle of a character
      if data:
        file.seek(target)
        file.write(data)
        kept_sizes.append(len(data))
        kept_hashes.append(code)
      target += len(data)
    source += size
  file.truncate(target)
  file.seek(target)
  return kept_sizes, kept_hashes
