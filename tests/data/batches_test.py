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


BLOCK = 32


def make_stream(data, seed=0, block_tokens=BLOCK):
  return batches.Stream(data, seed, [(0, block_tokens)])


@pytest.mark.parametrize('block_tokens', [1, BLOCK, 10**9])
def test_an_epoch_is_the_documents_in_an_order_of_its_own_in_shuffled_blocks(data, block_tokens):
  stream = make_stream(data, 3, block_tokens)
  n = data.n_tokens
  orders, moved = [], []
  for number in range(3):
    got = stream.read(number * n, n)[1:].tolist()
    epoch = stream._epoch(number)
    before, blocks, documents = epoch.before, epoch.blocks.tolist(), epoch.documents_D.tolist()
    assert sorted(documents) == list(range(data.n_documents))
    assert sorted(blocks) == list(range(len(blocks)))
    # Blocks begin at multiples of the position; what is left at both ends stays where it is.
    assert (number * n + before) % block_tokens == 0
    whole = epoch_by_hand(data, documents)
    assert len(whole) - before - len(blocks) * block_tokens < block_tokens or before > len(whole)
    parts = [whole[before + i * block_tokens :][:block_tokens] for i in blocks]
    by_hand = [*whole[:before], *(t for part in parts for t in part), *whole[before + len(blocks) * block_tokens :]]
    assert got == by_hand
    orders.append(documents)
    moved.append(got != whole)
  assert orders[0] != orders[1] != orders[2]
  assert any(moved) == (block_tokens < n)
  assert make_stream(data, 4, block_tokens).read(0, n).tolist() != stream.read(0, n).tolist()


STAGES = [(0, 4), (160, 6), (350, 8), (640, 16)]  # blocks of 48 tokens


def test_the_rows_of_a_stage_are_dealt_out_from_its_blocks(data):
  """By hand, over two epochs: of each stage's whole blocks the first rows, then the second, and so on."""
  stream, n, size = batches.Stream(data, 2, STAGES), data.n_tokens, 48
  assert stream.block_tokens == size
  in_blocks = batches.Stream(data, 2, [(0, size)])
  expected = np.concatenate([in_blocks.read(number * n, n)[1:] for number in (0, 1)])
  for (start, length), (end, _) in itertools.pairwise([*STAGES, (2 * n, 0)]):
    for number in (0, 1):
      first = -(-max(start, number * n) // size) * size
      last = min(end, (number + 1) * n) // size * size
      if first < last:
        rows = expected[first:last].reshape(-1, size // length, length)
        expected[first:last] = rows.swapaxes(0, 1).reshape(-1)
  np.testing.assert_array_equal(stream.read(0, 2 * n)[1:], expected)
  assert sorted(expected[:n].tolist()) == sorted(epoch_by_hand(data, range(data.n_documents)))


def test_a_row_is_a_stretch_of_text(data):
  """In every epoch and stage, but where one epoch or stage ends and another begins."""
  stream, n = batches.Stream(data, 1, STAGES), data.n_tokens
  texts = [''.join(map(chr, epoch_by_hand(data, stream._epoch(number).documents_D))) for number in range(4)]
  for (start, length), (end, _) in itertools.pairwise([*STAGES, (4 * n, 0)]):
    for position in range(-(-start // 48) * 48, end - length, length):
      epoch = position // n
      if (position + length - 1) // n == epoch:
        assert ''.join(map(chr, stream.read(position, length)[1:])) in texts[epoch]


def test_a_batch_is_of_many_documents_though_they_are_long(tmp_path):
  data = make_shards(tmp_path, [1000] * 64)
  documents = {tuple(data.document(i)[k : k + 8]): i for i in range(64) for k in range(0, 993)}
  for stages in ([(0, 32)], [(0, 8), (40 * 32, 32)]):
    rows = batches.Stream(data, 0, stages).read(0, 32 * stages[0][1])[1:].reshape(32, -1)
    touched = {documents.get(tuple(row[:8])) for row in rows} - {None}
    assert len(touched) >= 20, stages  # one stretch would be of two


@pytest.mark.parametrize(
  ('lengths', 'tokens'),
  [([8, 16, 32, 64, 128, 256, 512, 768, 1536, 2048], 6144), ([1024], 1024), ([512, 1000], 1000)],
)
def test_a_block_is_whole_rows_of_every_length_unless_it_were_of_too_many(lengths, tokens):
  assert batches.block_tokens(lengths) == tokens


def test_the_order_of_an_epoch_is_pinned():
  """A resume under another version of NumPy has to see the same order."""

  class Sixteen:
    n_documents, n_tokens, lengths = 16, 16, np.ones(16, np.int64)

  epoch = make_stream(Sixteen, 5, 2)._epoch(2)
  assert epoch.documents_D.tolist()[:6] == [4, 7, 9, 6, 0, 8]
  assert epoch.blocks.tolist()[:6] == [4, 0, 3, 7, 5, 6]


def test_any_read_is_a_window_of_the_stream(data):
  stream = make_stream(data)
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
      with batches.Loader(make_stream(data), position, [(rows, seq_len)], rank=rank, world=world) as loader:
        [(tokens, position_after)] = loader
      assert tokens.dtype == torch.int32
      inputs += tokens[:-1].tolist()
      targets += tokens[1:].tolist()
      after.add(position_after)
    [position] = after
  stream = make_stream(data).read(0, position)
  assert targets == stream[1:].tolist()
  assert inputs == stream[:-1].tolist()


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
  inputs = torch.from_numpy(stream.read(13, rows * seq_len)[:-1])
  capacity = rows + stream.most_documents(rows * seq_len)
  boundaries = batches.document_boundaries(inputs, seq_len, END, capacity)
  starts = sorted({*range(0, rows * seq_len, seq_len), *np.flatnonzero(inputs == END).tolist()})
  assert boundaries.dtype == torch.int32
  assert boundaries.tolist() == starts + [rows * seq_len] * (capacity + 1 - len(starts))


def test_no_window_touches_more_documents_than_most_documents(data):
  stream = make_stream(data)
  for size in (1, 10, 100, data.n_tokens, 3 * data.n_tokens):
    most = max(np.count_nonzero(stream.read(p, size)[:-1] == END) for p in range(0, 2 * data.n_tokens, 37))
    assert most <= stream.most_documents(size)


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
