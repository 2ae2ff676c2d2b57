"""One cursor over one endless stream: every token a target once an epoch, whatever the shapes; bits per byte's bookkeeping."""

import itertools
import types

import numpy as np
import pytest
import torch

from tests import tiny
from yxanul.config import registry
from yxanul.config.convert import from_config
from yxanul.data import batches, shards
from yxanul.data.prepare_journal import Journal
from yxanul.training.curriculum import Curriculum

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


ONE = ((0, 32),)
STAGES = ((0, 4), (160, 6), (350, 8), (640, 16))  # starts that are no multiples of rows, and blocks of 48 tokens
ORDERS = pytest.mark.parametrize(
  'rows', [ONE, STAGES, ((0, 1),), ((0, 8), (40, 10**9))], ids=['one', 'stages', 'tokens', 'epoch']
)


def make_stream(data, rows=STAGES, seed=0):
  return batches.Stream(data, seed, rows)


def targets(stream, position, n_tokens):
  return stream.read(position, 1, n_tokens)[0, 1:]


def by_hand(data, stream, number) -> list[tuple[int, int]]:
  """The targets of an epoch, each with the token before it in its text."""
  n, size, epoch = data.n_tokens, stream.block_tokens, stream._epoch(number)
  text = epoch_by_hand(data, epoch.documents_D)
  pairs = list(zip(text, [END, *text[:-1]], strict=True))
  order = list(range(n))
  for (start, length), (end, _) in itertools.pairwise([*stream.rows, (10**9, 0)]):
    # From the stage's start on, or where the grid that starts there comes into this epoch.
    first = (start if start >= number * n else start + -(-(number * n - start) // size) * size) - number * n
    n_blocks = max(0, (min(end - number * n, n) - first) // size)
    if n_blocks:
      [dealt] = [dealt for dealt in epoch.dealt if dealt.first == first]
      assert (dealt.last, len(dealt.blocks)) == (first + n_blocks * size, n_blocks)
      unit = length if size % length == 0 else size
      rows = np.stack([np.arange(start, start + size) for start in dealt.blocks]).reshape(n_blocks, -1, unit)
      order[first : dealt.last] = rows.swapaxes(0, 1).flatten().tolist()
  return [pairs[i] for i in order]


@ORDERS
def test_an_epoch_is_the_documents_in_an_order_of_its_own_dealt_out_by_rows(data, rows):
  """By hand: the blocks that the epoch drew, and of each stage's blocks the first rows, then the second, and so on."""
  stream, n = make_stream(data, rows, 3), data.n_tokens
  orders = []
  for number in range(3):
    epoch = stream._epoch(number)
    assert sorted(epoch.documents_D.tolist()) == list(range(data.n_documents))
    places = [place for d in epoch.dealt for place in range(d.first, d.last, stream.block_tokens)]
    assert sorted(block for d in epoch.dealt for block in d.blocks.tolist()) == places  # whole blocks change places
    expected = by_hand(data, stream, number)
    assert sorted(t for t, _ in expected) == sorted(epoch_by_hand(data, range(data.n_documents)))
    got = targets(stream, number * n, n)
    assert got.tolist() == [t for t, _ in expected]
    orders.append(got.tolist())
  assert orders[0] != orders[1] != orders[2]
  assert targets(make_stream(data, rows, 4), 0, n).tolist() != orders[0]


def test_the_order_of_an_epoch_is_pinned():
  """A resume under another version of NumPy has to see the same order."""

  class Sixteen:
    n_documents, n_tokens, lengths = 16, 16, np.ones(16, np.int64)

  epoch = make_stream(Sixteen, ((0, 2),), 5)._epoch(2)
  assert epoch.documents_D.tolist()[:6] == [4, 7, 9, 6, 0, 8]
  assert epoch.dealt[0].blocks.tolist()[:6] == [8, 0, 6, 14, 10, 12]


@ORDERS
def test_any_read_is_a_window_of_the_stream_with_the_token_before_each_row(data, rows):
  stream, n = make_stream(data, rows), data.n_tokens
  pairs = [pair for number in range(4) for pair in by_hand(data, stream, number)]
  rng = np.random.default_rng(0)
  for _ in range(200):
    position, n_rows, length = int(rng.integers(0, 2 * n)), int(rng.integers(1, 9)), int(rng.integers(1, n // 4))
    got = (
      make_stream(data, rows).read(position, n_rows, length) if rng.random() < 0.1 else stream.read(position, n_rows, length)
    )
    assert (got.dtype, got.shape) == (np.int32, (n_rows, length + 1))
    window = pairs[position : position + n_rows * length]
    assert got[:, 1:].flatten().tolist() == [target for target, _ in window]
    assert got[:, 0].tolist() == [before for _, before in window[::length]]


@pytest.mark.parametrize(
  'experiment', ['ultra.py:gpu=h200', 'ultra.py:gpu=rtx4090', 'ultra_batch_warmup.py:gpu=h200', 'best.py', 'baseline_gpt2.py']
)
def test_a_row_is_a_stretch_of_text_with_the_token_before_it(experiment):
  """All rows of all stages over three epochs, but those where a stage or an epoch ends. Tokens count up within documents."""
  lengths = np.random.default_rng(0).integers(2, 3000, 6000)
  tokens = np.arange(1, 1 + lengths.sum(), dtype=np.uint32)
  tokens[np.cumsum(lengths) - 1] = END = 0
  data = types.SimpleNamespace(
    n_documents=len(lengths), lengths=lengths, n_tokens=len(tokens), starts=np.cumsum(lengths) - lengths, tokens=[tokens]
  )
  data.end_of_text_id = END
  config = registry.load(str(tiny.REPOSITORY / 'experiments' / experiment))
  config.data.source, config.curriculum.budget_tokens = 'x', int(2.5 * len(tokens))
  curriculum = Curriculum(from_config(config))
  stream = batches.Stream(data, 0, curriculum.rows)
  torn = read = 0
  for stage in curriculum.stages:
    n_rows, length = stage.n_steps * stage.spec.batch_size, stage.spec.seq_len
    for first in range(0, n_rows, stage.spec.batch_size):
      rows = stream.read(stage.start_tokens + first * length, stage.spec.batch_size, length).astype(np.int64)
      goes_on = (rows[:, 1:] == rows[:, :-1] + 1) | (rows[:, 1:] == END) | (rows[:, :-1] == END)
      torn, read = torn + np.count_nonzero(~goes_on.all(1)) * length, read + rows[:, 1:].size
  most = (3 + len(curriculum.stages)) * 2 * stream.block_tokens  # at either end of every stage and epoch
  assert read == curriculum.total_tokens
  assert torn <= most, (torn, read)


def test_a_batch_is_of_many_documents_though_they_are_long(tmp_path):
  data = make_shards(tmp_path, [1000] * 64)
  documents = {tuple(data.document(i)[k : k + 8]): i for i in range(64) for k in range(0, 993)}
  for stages in ([(0, 32)], [(0, 8), (40 * 32, 32)]):
    rows = batches.Stream(data, 0, stages).read(0, 32, stages[0][1])[:, 1:]
    touched = {documents.get(tuple(row[:8])) for row in rows} - {None}
    assert len(touched) >= 20, stages  # one stretch would be of two


@pytest.mark.parametrize(
  ('lengths', 'tokens'),
  [([8, 16, 32, 64, 128, 256, 512, 768, 1536, 2048], 6144), ([1024], 1024), ([512, 1000], 1000)],
)
def test_a_block_is_whole_rows_of_every_length_unless_it_were_of_too_many(lengths, tokens):
  assert batches.block_tokens(lengths) == tokens


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
  assert found == targets(make_stream(data, rows), 0, position).tolist()
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


def test_no_window_touches_more_documents_than_most_documents(data):
  stream = make_stream(data)
  for size in (1, 10, 100, data.n_tokens, 3 * data.n_tokens):
    most = max(np.count_nonzero(stream.read(p, 1, size)[:, :-1] == END) for p in range(0, 2 * data.n_tokens, 37))
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
