"""Batches of any shape read ahead, and bits per byte's bookkeeping."""

import itertools

import numpy as np
import pytest
import torch

from tests.data import small_shards
from tests.data.small_shards import END, ORDERS, epoch_by_hand, make_stream
from yxanul.data import batches


@ORDERS
def test_each_token_is_a_target_once_an_epoch_across_shapes_resumes_and_processes(data, rows):
  """Batches of changing shape, read by changing numbers of processes, with a new stream (a resume) for every batch."""
  rng = np.random.default_rng(2)
  found, position = [], 0
  while position < data.n_tokens:
    world = int(rng.choice([1, 2, 4]))
    n_rows, seq_len = world * int(rng.integers(1, 4)), int(rng.integers(1, data.n_tokens // 40))
    after = set()
    for rank in range(world):
      with batches.Loader(make_stream(data, rows), position, [(n_rows, seq_len)], rank=rank, world=world) as loader:
        [(tokens, position_after)] = loader
      assert tokens.dtype == torch.int32
      found += tokens[:, 1:].flatten().tolist()
      after.add(position_after)
    [position] = after
  assert found == small_shards.targets(make_stream(data, rows), 0, position).tolist()
  assert sorted(found[: data.n_tokens]) == sorted(epoch_by_hand(data, range(data.n_documents)))


def test_loader_goes_on_from_a_position(data):
  plan = [(4, 8), (2, 16), (8, 32), (1, 7), (4, 8)]
  with batches.Loader(make_stream(data), 5, plan) as loader:
    whole = list(loader)
  assert len(whole) == len(plan)
  with batches.Loader(make_stream(data), whole[1][1], plan[2:]) as loader:
    for (tokens, position), (expected, expected_position) in zip(loader, whole[2:], strict=True):
      assert torch.equal(tokens, expected)
      assert position == expected_position


def test_loader_stops_while_it_is_ahead(data):
  loader = batches.Loader(make_stream(data), 0, itertools.repeat((4, 8)))
  next(iter(loader))
  loader.close()
  assert not loader._thread.is_alive()


def test_loader_hands_on_what_went_wrong(data):
  with (
    batches.Loader(make_stream(data), 0, [(4, 8), (3, 8)], world=2) as loader,
    pytest.raises(ValueError, match='batch_size=3: wants a multiple of the 2 processes'),
  ):
    list(loader)


def test_document_boundaries_are_row_starts_and_end_of_text(data):
  stream = make_stream(data)
  rows, seq_len = 6, 50
  inputs = torch.from_numpy(stream.read(13, rows, seq_len)[:, :-1].flatten())
  capacity = rows + stream.most_documents(rows * seq_len)
  boundaries = batches.document_boundaries(inputs, seq_len, END, capacity)
  starts = sorted({*range(0, rows * seq_len, seq_len), *np.flatnonzero(inputs == END).tolist()})
  assert boundaries.dtype == torch.int32
  assert boundaries.tolist() == starts + [rows * seq_len] * (capacity + 1 - len(starts))


@pytest.mark.parametrize('max_tokens', [1, 200, 10**9])
@pytest.mark.parametrize('stride', [None, 16, 5, 1])
def test_evaluation_scores_every_token_of_whole_documents_once(data, max_tokens, stride):
  evaluation = batches.evaluation_batches(data, seq_len=16, batch_size=3, max_tokens=max_tokens, stride=stride)
  found = list(evaluation)
  assert len(found) == len(evaluation)
  assert all(b.inputs.shape == b.targets.shape == b.mask.shape == b.sources.shape == (3, 16) for b in found)
  documents = range(evaluation.n_documents)
  assert evaluation.n_documents == data.n_documents or evaluation.n_tokens + data.lengths[evaluation.n_documents] > max_tokens
  assert evaluation.n_tokens <= max_tokens or evaluation.n_documents == 1
  assert [int(t) for b in found for t in b.targets[b.mask]] == [int(t) for i in documents for t in data.document(i)]
  assert evaluation.n_bytes == sum(int(data.byte_counts[i]) for i in documents)
  assert sum(evaluation.bytes_by_source.values()) == evaluation.n_bytes
  sources = [data.sources[int(s)] for b in found for s in b.sources[b.mask]]
  assert sources == [('even', 'odd')[i % 2] for i in documents for _ in data.document(i)]


def test_evaluation_limited_in_bytes_does_not_depend_on_tokens(data):
  limit = int(data.byte_counts[:4].sum()) + 1
  evaluation = batches.evaluation_batches(data, seq_len=16, batch_size=3, max_tokens=10**9, max_bytes=limit)
  assert (evaluation.n_documents, evaluation.n_bytes) == (4, limit - 1)
  assert batches.evaluation_batches(data, 16, 3, max_tokens=1, max_bytes=limit).n_documents == 1


@pytest.mark.parametrize('stride', [16, 5])
def test_evaluation_rows_are_stretches_of_the_stream(data, stride):
  evaluation = batches.evaluation_batches(data, seq_len=16, batch_size=3, max_tokens=200, stride=stride)
  stream = [END, *(int(t) for i in range(evaluation.n_documents) for t in (*data.document(i), END))]
  rows = [(i, t, m) for b in evaluation for i, t, m in zip(b.inputs.tolist(), b.targets.tolist(), b.mask, strict=True)]
  for number, (inputs, targets, mask) in enumerate(rows):
    begin = number * stride
    if begin + 16 - stride >= len(stream) - 1:  # the rows before have it all
      assert not mask.any()
      continue
    whole = stream[begin : begin + 17]
    assert inputs[: len(whole) - 1] == whole[:-1]
    assert targets[: len(whole) - 1] == whole[1:]
    assert not mask[len(whole) - 1 :].any()
    assert number == 0 or not mask[: 16 - stride].any()
