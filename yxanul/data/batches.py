"""Batches of any shape for training, read ahead from a `Stream`, and those of held-out text.

Shape legend: B rows, T tokens of a row.
"""

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch

from yxanul.data.stream import Stream

_AHEAD = 3  # batches that wait for the step


class Loader:
  """Reads the batches of a plan in a thread of its own, ahead of the step that consumes them.

  Iterating yields `(tokens, position_after)`: tokens int32 (rows, seq_len + 1) as `Stream.read` has them, on the host, pinned
  when `device` is a GPU, and the position at which the next batch starts, the same number on every rank. Use it as a context
  manager, or call `close`.

  Args:
    stream: where the tokens come from.
    position: of the first target.
    plan: (rows of the global batch, seq_len) of each step; its end ends the loader.
    device: where the tokens will go.
    rank, world: this process takes rows [rank * B / world, (rank + 1) * B / world) of each batch.
  """

  def __init__(
    self,
    stream: Stream,
    position: int,
    plan: Iterable[tuple[int, int]],
    device: torch.device | str = 'cpu',
    rank: int = 0,
    world: int = 1,
  ):
    self._pin = torch.device(device).type == 'cuda'
    self._queue: queue.Queue = queue.Queue(_AHEAD)
    self._closed = threading.Event()
    self._thread = threading.Thread(target=self._run, args=(stream, position, plan, rank, world), name='loader', daemon=True)
    self._thread.start()

  def _run(self, stream: Stream, position: int, plan: Iterable[tuple[int, int]], rank: int, world: int) -> None:
    try:
      for batch_size, seq_len in plan:
        if batch_size % world:
          raise ValueError(f'batch_size={batch_size}: wants a multiple of the {world} processes')
        rows = batch_size // world
        tokens = torch.from_numpy(stream.read(position + rank * rows * seq_len, rows, seq_len))
        position += batch_size * seq_len
        if not self._put((tokens.pin_memory() if self._pin else tokens, position)):
          return
      self._put(None)
    except BaseException as error:
      self._put(error)

  def _put(self, item) -> bool:
    while not self._closed.is_set():
      try:
        self._queue.put(item, timeout=0.1)
        return True
      except queue.Full:
        continue
    return False

  def __iter__(self) -> Iterator[tuple[torch.Tensor, int]]:
    while (item := self._queue.get()) is not None:
      if isinstance(item, BaseException):
        self.close()
        raise item
      yield item
    self.close()

  def close(self) -> None:
    """Stops the thread. Batches that were read ahead are dropped; the position of the last one yielded stays true."""
    self._closed.set()
    self._thread.join()

  def __enter__(self) -> 'Loader':
    return self

  def __exit__(self, *_) -> None:
    self.close()


def document_boundaries(inputs: torch.Tensor, seq_len: int, end_of_text_id: int, capacity: int) -> torch.Tensor:
  """Where attention may not look back, in the form that variable-length attention takes (`cu_seqlens`).

  A segment starts at every row and at every end-of-text token, which is the first token's context. Only fixed shapes and
  no sync, on any device, so it may be part of a captured graph.

  Args:
    inputs: (B * T,) the inputs of a batch, row by row.
    seq_len: T.
    end_of_text_id: the token between documents.
    capacity: most segments there can be: B + stream.most_documents(B * T).

  Returns:
    int32 (capacity + 1,): the start of each segment, then B * T to the end.
  """
  total = inputs.numel()
  places = torch.arange(total, device=inputs.device, dtype=torch.int32)
  is_start = (inputs == end_of_text_id) | (places % seq_len == 0)
  number = torch.where(is_start, torch.cumsum(is_start, 0) - 1, capacity).clamp_(max=capacity)
  boundaries = torch.full((capacity + 1,), total, dtype=torch.int32, device=inputs.device)
  # Every place that starts nothing writes the total into the last slot, which is what it holds.
  return boundaries.scatter_(0, number, torch.where(is_start, places, total))


class Documents(Protocol):
  """Tokenized documents as `Shards` has them, on disk or not; there it says what each field is."""

  end_of_text_id: int
  sources: tuple[str, ...]
  tokens: list[np.ndarray]
  lengths: np.ndarray
  byte_counts: np.ndarray
  source_ids: np.ndarray


class EvaluationBatch(NamedTuple):
  """`batch_size` rows of held-out text."""

  inputs: torch.Tensor  # int32 (B, T): the token before each target
  targets: torch.Tensor  # int32 (B, T)
  mask: torch.Tensor  # bool (B, T): the targets that count: no end-of-text token, no padding, nothing counted before
  sources: torch.Tensor  # uint8 (B, T): index of the target's source, 0 where it does not count


class Evaluation:
  """Documents in their order, whole, as many as fit in `max_tokens` and `max_bytes` and at least one, as batches.

  Bits per byte: the losses (in bits) of the targets that `mask` has, over `n_bytes`. A document's first token is scored
  from the end-of-text token before it; the end-of-text token's own loss is left out.
  """

  def __init__(
    self,
    documents: Documents,
    seq_len: int,
    batch_size: int,
    max_tokens: int,
    stride: int | None = None,
    max_bytes: int | None = None,
  ):
    self.documents = documents
    self.seq_len = seq_len
    self.batch_size = batch_size
    self.stride = stride or seq_len
    ends_D = np.cumsum(documents.lengths)
    fitting = np.searchsorted(ends_D, max_tokens, side='right')
    if max_bytes is not None:
      fitting = min(fitting, np.searchsorted(np.cumsum(documents.byte_counts), max_bytes, side='right'))
    self.n_documents = max(1, int(fitting))
    self.n_tokens = int(ends_D[self.n_documents - 1])
    bytes_D = documents.byte_counts[: self.n_documents]
    self.n_bytes = int(bytes_D.sum())
    by_source = np.bincount(documents.source_ids[: self.n_documents], bytes_D, len(documents.sources))
    self.bytes_by_source = {name: int(size) for name, size in zip(documents.sources, by_source, strict=True) if size}

  @property
  def _n_rows(self) -> int:
    return 1 + max(0, -(-(self.n_tokens - self.seq_len) // self.stride))

  def __len__(self) -> int:
    return -(-self._n_rows // self.batch_size)

  def __iter__(self) -> Iterator[EvaluationBatch]:
    end, n = self.documents.end_of_text_id, self.n_documents
    stream = np.concatenate([np.array([end]), *self._tokens()]).astype(np.int32)
    sources = np.repeat(self.documents.source_ids[:n], self.documents.lengths[:n])
    for first in range(0, self._n_rows, self.batch_size):
      rows_B1 = np.arange(first, first + self.batch_size)[:, None]
      at_BT = rows_B1 * self.stride + np.arange(self.seq_len)
      inside_BT = (at_BT < self.n_tokens) & (rows_B1 < self._n_rows)
      at_BT = np.where(inside_BT, at_BT, 0)
      targets = np.where(inside_BT, stream[at_BT + 1], end).astype(np.int32)
      # Each row but the first begins with text that the one before it has scored.
      fresh_BT = (rows_B1 == 0) | (np.arange(self.seq_len) >= self.seq_len - self.stride)
      mask = fresh_BT & (targets != end)
      yield EvaluationBatch(
        torch.from_numpy(np.where(inside_BT, stream[at_BT], end).astype(np.int32)),
        torch.from_numpy(targets),
        torch.from_numpy(mask),
        torch.from_numpy(sources[at_BT] * mask),
      )

  def _tokens(self) -> Iterator[np.ndarray]:
    left = self.n_tokens
    for tokens in self.documents.tokens:
      yield tokens[: max(left, 0)]
      left -= len(tokens)


def evaluation_batches(
  documents: Documents,
  seq_len: int,
  batch_size: int,
  max_tokens: int,
  stride: int | None = None,
  max_bytes: int | None = None,
) -> Evaluation:
  """The text to score: iterate it for batches; it knows the exact bytes that they cover.

  Args:
    documents: shards, or anything that has their arrays.
    stride: tokens between the starts of two rows, at most `seq_len` (which is the default: rows side by side). A smaller
      one gives every target but the first row's a context of at least `seq_len - stride` tokens, and counts it once.
    max_bytes: of the documents' text: a limit that leaves the same documents whatever the tokenizer.
  """
  assert stride is None or 1 <= stride <= seq_len
  return Evaluation(documents, seq_len, batch_size, max_tokens, stride, max_bytes)
