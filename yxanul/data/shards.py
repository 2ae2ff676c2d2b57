"""Shards: token arrays on disk, memory-mapped, with where each document starts and how many bytes its text had.

A folder holds `manifest.json` and, for each shard N, four .npy arrays:
  N.tokens   uint16 or uint32: every document followed by the end-of-text token
  N.offsets  int64 (documents + 1): where each document starts, and the end
  N.bytes    int64 (documents): the UTF-8 bytes of its text
  N.sources  uint8 (documents): an index into the manifest's `sources`
"""

import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from yxanul.data.prepare_journal import Journal, write_atomically
from yxanul.data.shards_check import File, check, sha256

FORMAT = 'yxanul shards 1'
MANIFEST = 'manifest.json'
ARRAYS = ('tokens', 'offsets', 'bytes', 'sources')


def token_dtype(vocab_size: int) -> np.dtype:
  return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


class Shards:
  """The documents of one split, in their order. Arrays are read-only views of the files."""

  def __init__(self, folder: Path, manifest: dict[str, Any]):
    self.folder = folder
    self.manifest = manifest
    self.vocab_size: int = manifest['vocab_size']
    self.end_of_text_id: int = manifest['end_of_text_id']
    self.fingerprint: str = manifest['tokenizer']
    self.sources: tuple[str, ...] = tuple(manifest['sources'])
    self.unread: list[File] = []
    self.n_documents: int = manifest['documents']
    self.n_tokens: int = manifest['tokens']  # end-of-text tokens included
    self.n_bytes: int = manifest['bytes']

  def _arrays(self, kind: str) -> list[np.ndarray]:
    paths = [self.folder / f'{shard["name"]}.{kind}.npy' for shard in self.manifest['shards']]
    return [np.asarray(np.load(path, mmap_mode='r')) for path in paths]

  @cached_property
  def tokens(self) -> list[np.ndarray]:
    """Of each shard, its tokens (tokens,)."""
    return self._arrays('tokens')

  @cached_property
  def starts(self) -> np.ndarray:
    """Where each document starts in the tokens of its shard, int64 (n_documents,)."""
    return np.concatenate([offsets[:-1] for offsets in self._arrays('offsets')])

  @cached_property
  def lengths(self) -> np.ndarray:
    """Tokens of each document, its end-of-text token included, int64 (n_documents,)."""
    return np.concatenate([np.diff(offsets) for offsets in self._arrays('offsets')])

  @cached_property
  def byte_counts(self) -> np.ndarray:
    """UTF-8 bytes of each document's text, int64 (n_documents,)."""
    return np.concatenate(self._arrays('bytes'))

  @cached_property
  def source_ids(self) -> np.ndarray:
    """Of each document, an index into `sources`, uint8 (n_documents,)."""
    return np.concatenate(self._arrays('sources'))

  @cached_property
  def shard_numbers(self) -> np.ndarray:
    """The shard that each document is in, in as few bytes as hold it (n_documents,)."""
    counts = [shard['documents'] for shard in self.manifest['shards']]
    return np.repeat(np.arange(len(counts), dtype=np.min_scalar_type(len(counts))), counts)

  def document(self, number: int) -> np.ndarray:
    """The tokens of one document, without the end-of-text token."""
    start = self.starts[number]
    return self.tokens[self.shard_numbers[number]][start : start + self.lengths[number] - 1]


def open(folder: Path | str, tokenizer: Any = None, verify: bool = False) -> Shards:
  """The shards in `folder`.

  Args:
    folder: where `manifest.json` is.
    tokenizer: when given, the one that the shards have to be made with.
    verify: also compare the bytes with the manifest's hashes, but for files that were right before and have not changed since;
      these are then in `unread`.

  Raises:
    ValueError: there are none, they belong to another tokenizer, or a file is not what the manifest says.
  """
  folder = Path(folder)
  path = folder / MANIFEST
  try:
    manifest = json.loads(path.read_text(encoding='utf-8'))
  except FileNotFoundError:
    raise ValueError(f'{folder}: holds no shards ({MANIFEST} is missing)') from None
  except ValueError as error:
    raise ValueError(f'{path}: not a manifest ({error})') from None
  if not isinstance(manifest, dict) or manifest.get('format') != FORMAT:
    got = manifest.get('format') if isinstance(manifest, dict) else type(manifest).__name__
    raise ValueError(f'{path}: format {got!r}, wants {FORMAT!r}')
  if reason := _wrong(manifest):
    raise ValueError(f'{path}: {reason}')
  if tokenizer is not None:
    if manifest['tokenizer'] != tokenizer.fingerprint:
      made = f'tokenizer {manifest["tokenizer"][:12]} of {manifest["vocab_size"]} entries'
      raise ValueError(f'{folder}: made with {made}, got {tokenizer.fingerprint[:12]} of {tokenizer.vocab_size} entries')
    for name in ('vocab_size', 'end_of_text_id'):
      if manifest[name] != getattr(tokenizer, name):
        raise ValueError(f'{path}: {name} is {manifest[name]}, the tokenizer has {getattr(tokenizer, name)}')
  files = [
    (folder / f'{shard["name"]}.{kind}.npy', file) for shard in manifest['shards'] for kind, file in shard['files'].items()
  ]
  for file in files:
    _check_size(*file)
  shards = Shards(folder, manifest)
  if verify:
    shards.unread = check(folder, [(path, file['sha256']) for path, file in files])
    if shards.n_bytes != shards.byte_counts.sum() or shards.source_ids.max(initial=0) >= len(shards.sources):
      raise ValueError(f'{path}: its bytes or sources are not those of the shards')
  return shards


_KINDS = {'vocab_size': int, 'end_of_text_id': int, 'tokenizer': str, 'sources': list, 'shards': list}
_COUNTS = ('documents', 'tokens', 'bytes')


def _wrong(manifest: dict[str, Any]) -> str:
  """What does not hold together in a manifest, '' when all of it does."""
  for name, kind in {**_KINDS, **dict.fromkeys(_COUNTS, int)}.items():
    if type(manifest.get(name)) is not kind:
      return f'{name} is {manifest.get(name)!r:.40}, wants {kind.__name__}'
  if not all(isinstance(source, str) for source in manifest['sources']):
    return 'sources has something else than texts'
  for shard in manifest['shards']:
    if not (isinstance(shard, dict) and re.fullmatch(r'\d{5,}', str(shard.get('name')))):
      return 'shards has something else than numbered shards'
    if not all(type(shard.get(name)) is int and shard[name] >= 0 for name in _COUNTS):
      return f'shard {shard["name"]} lacks a count'
    files = shard.get('files')
    if not (isinstance(files, dict) and set(files) == set(ARRAYS)):
      return f'shard {shard["name"]} lacks a file'
    for kind, dtype in _dtypes(manifest['vocab_size']).items():
      length = _length(shard, kind)
      size = len(_header(dtype, length)) + length * dtype.itemsize
      if not (
        isinstance(files[kind], dict) and files[kind].get('bytes') == size and isinstance(files[kind].get('sha256'), str)
      ):
        return f'shard {shard["name"]}: its counts do not fit the size of {kind}'
  for name in _COUNTS:
    if manifest[name] != sum(shard[name] for shard in manifest['shards']):
      return f'{name} is not the sum over the shards'
  return ''


def _dtypes(vocab_size: int) -> dict[str, np.dtype]:
  return dict(zip(ARRAYS, (token_dtype(vocab_size), np.dtype(np.int64), np.dtype(np.int64), np.dtype(np.uint8)), strict=True))


def _length(shard: dict[str, Any], kind: str) -> int:
  """Of one of a shard's arrays."""
  return {'tokens': shard['tokens'], 'offsets': shard['documents'] + 1}.get(kind, shard['documents'])


def _check_size(path: Path, expected: dict[str, Any]) -> None:
  try:
    size = path.stat().st_size
  except OSError as error:
    raise ValueError(f'{path}: {error.strerror}, the manifest has it with {expected["bytes"]} bytes') from None
  if size != expected['bytes']:
    raise ValueError(f'{path}: {size} bytes, the manifest says {expected["bytes"]}')


def _header(dtype: np.dtype, length: int) -> bytes:
  """The start of an .npy file. NumPy pads it so that it keeps its size however long the array grows."""
  import io

  header = io.BytesIO()
  descr = np.lib.format.dtype_to_descr(dtype)
  np.lib.format.write_array_header_1_0(header, {'descr': descr, 'fortran_order': False, 'shape': (length,)})
  return header.getvalue()


class Writer:
  """Writes the shards of one split through a journal. A shard ends with the document that reaches `shard_tokens`.

  `state` is plain data: a Writer made with the state of a commit goes on where that commit was.
  """

  def __init__(self, journal: Journal, split: str, vocab_size: int, shard_tokens: int, state: dict | None = None):
    self.journal = journal
    self.split = split
    self.shard_tokens = shard_tokens
    self.dtypes = _dtypes(vocab_size)
    self.state = state or {'shards': [], 'open': None}

  def append(self, tokens: np.ndarray, lengths: np.ndarray, byte_counts: np.ndarray, source_ids: np.ndarray) -> None:
    """Adds documents: `tokens` one after another with their end-of-text tokens, `lengths` counting these."""
    while len(lengths):
      shard = self.state['open'] or self._start()
      reached = shard['tokens'] + np.cumsum(lengths)
      count = int(np.searchsorted(reached, self.shard_tokens)) + 1
      full = count <= len(lengths)
      count = min(count, len(lengths))
      size = int(reached[count - 1]) - shard['tokens']
      for kind, data in zip(ARRAYS, (tokens[:size], reached[:count], byte_counts[:count], source_ids[:count]), strict=True):
        self.journal.append(self._file(shard, kind), data.astype(self.dtypes[kind], copy=False))
      shard['documents'] += count
      shard['tokens'] += size
      shard['bytes'] += int(byte_counts[:count].sum())
      tokens, lengths, byte_counts, source_ids = tokens[size:], lengths[count:], byte_counts[count:], source_ids[count:]
      if full:
        self._end()

  def _file(self, shard: dict, kind: str) -> str:
    return f'{self.split}/{shard["name"]}.{kind}.npy'

  def _start(self) -> dict:
    shard = self.state['open'] = {'name': f'{len(self.state["shards"]):05d}', 'documents': 0, 'tokens': 0, 'bytes': 0}
    for kind in ARRAYS:
      self.journal.append(self._file(shard, kind), _header(self.dtypes[kind], 0))
    self.journal.append(self._file(shard, 'offsets'), np.zeros(1, np.int64))
    return shard

  def _end(self) -> None:
    shard = self.state['open']
    for kind in ARRAYS:
      self.journal.seal(self._file(shard, kind), _header(self.dtypes[kind], _length(shard, kind)))
    self.state['shards'].append(shard)
    self.state['open'] = None

  def finish(self, tokenizer: Any, sources: list[str], about: dict[str, Any]) -> None:
    """Ends the last shard and writes the manifest, which makes the shards complete. `about` goes into it."""
    if self.state['open']:
      self._end()
    folder = self.journal.folder / self.split
    for shard in self.state['shards']:
      paths = {kind: folder / f'{shard["name"]}.{kind}.npy' for kind in ARRAYS}
      shard['files'] = {kind: {'bytes': path.stat().st_size, 'sha256': sha256(path)} for kind, path in paths.items()}
    totals = {kind: sum(shard[kind] for shard in self.state['shards']) for kind in ('documents', 'tokens', 'bytes')}
    manifest = {
      'format': FORMAT,
      'split': self.split,
      'dtype': self.dtypes['tokens'].name,
      'vocab_size': tokenizer.vocab_size,
      'end_of_text_id': tokenizer.end_of_text_id,
      'tokenizer': tokenizer.fingerprint,
      'sources': sources,
      **totals,
      **about,
      'shards': self.state['shards'],
    }
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + '\n')
