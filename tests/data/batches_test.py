"""One cursor over one endless stream: every token a target once an epoch, whatever the shapes; bits per byte's bookkeeping."""

import itertools

import numpy as np
import pytest
import torch

from yxanul.data import batches, shards
from yxanul.data.prepare_journal import Journal

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


@pytest.fixture(scope='module', params=CASES.values(), ids=CASES.keys())
def data(request, tmp_path_factory):
  documents, longest, shard_tokens = request.param
  lengths = np.random.default_rng(1).integers(1, longest, documents)
  return make_shards(tmp_path_factory.mktemp('shards'), lengths, shard_tokens)


def test_the_stream_is_the_documents_in_an_order_of_each_epoch(data):
  stream = batches.Stream(data, seed=3)
  n = data.n_tokens
  first, second = stream.read(0, n), stream.read(n, n)
  assert first[0] == END
  assert second[0] == END
  order = [stream._epoch(e).documents_D.tolist() for e in (0, 1)]
  assert order[0] != order[1]
  for documents, got in zip(order, (first, second), strict=True):
    assert sorted(documents) == list(range(data.n_documents))
    assert got[1:].tolist() == epoch_by_hand(data, documents)
  assert batches.Stream(data, seed=4).read(0, n).tolist() != first.tolist()


def test_the_order_of_an_epoch_is_pinned():
  """A resume under another version of NumPy has to see the same order."""

  class Sixteen:
    n_documents, n_tokens, lengths = 16, 16, np.ones(16, np.int64)

  order = batches.Stream(Sixteen, seed=5)._epoch(2).documents_D
  assert order.tolist()[:6] == [4, 7, 9, 6, 0, 8]


def test_any_read_is_a_window_of_the_stream(data):
  stream = batches.Stream(data, seed=0)
  whole = np.concatenate(
    [stream.read(0, data.n_tokens), *(stream.read(e * data.n_tokens, data.n_tokens)[1:] for e in (1, 2, 3))]
  )
  rng = np.random.default_rng(0)
  for _ in range(200):
    position, size = int(rng.integers(0, 2 * data.n_tokens)), int(rng.integers(1, 2 * data.n_tokens))
    got = stream.read(position, size)
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, whole[position : position + size + 1])


def test_each_token_is_a_target_once_an_epoch_across_shapes_resumes_and_processes(data):
  """Batches of changing shape, read by changing numbers of processes, with a new stream (a resume) for every batch."""
  rng = np.random.default_rng(2)
  targets, inputs, position = [], [], 0
  while position < data.n_tokens:
    world = int(rng.choice([1, 2, 4]))
    rows, seq_len = world * int(rng.integers(1, 4)), int(rng.integers(1, data.n_tokens // 40))
    after = set()
    for rank in range(world):
      with batches.Loader(batches.Stream(data, 0), position, [(rows, seq_len)], rank=rank, world=world) as loader:
        [(tokens, position_after)] = loader
      assert tokens.dtype == torch.int32
      inputs += tokens[:-1].tolist()
      targets += tokens[1:].tolist()
      after.add(position_after)
    [position] = after
  stream = batches.Stream(data, 0).read(0, position)
  assert targets == stream[1:].tolist()
  assert inputs == stream[:-1].tolist()


def test_loader_goes_on_from_a_position(data):
  plan = [(4, 8), (2, 16), (8, 32), (1, 7), (4, 8)]
  with batches.Loader(batches.Stream(data, 0), 5, plan) as loader:
    whole = list(loader)
  assert len(whole) == len(plan)
  with batches.Loader(batches.Stream(data, 0), whole[1][1], plan[2:]) as loader:
    for (tokens, position), (expected, expected_position) in zip(loader, whole[2:], strict=True):
      assert torch.equal(tokens, expected)
      assert position == expected_position


def test_loader_stops_while_it_is_ahead(data):
  loader = batches.Loader(batches.Stream(data, 0), 0, itertools.repeat((4, 8)))
  next(iter(loader))
  loader.close()
  assert not loader._thread.is_alive()


def test_loader_hands_on_what_went_wrong(data):
  with (
    batches.Loader(batches.Stream(data, 0), 0, [(4, 8), (3, 8)], world=2) as loader,
    pytest.raises(ValueError, match='batch_size=3: wants a multiple of the 2 processes'),
  ):
    list(loader)


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
