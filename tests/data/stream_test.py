"""One endless stream: every token a target once an epoch, rows from all over the text, each a stretch of it."""

import itertools
import types

import numpy as np
import pytest

from tests import tiny
from tests.data.small_shards import END, ORDERS, epoch_by_hand, make_shards, make_stream, targets
from yxanul.config import registry
from yxanul.config.convert import from_config
from yxanul.data.stream import Stream, block_tokens
from yxanul.training.curriculum import Curriculum


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
  text = Stream(data, 0, curriculum.rows)
  torn = read = 0
  for stage in curriculum.stages:
    n_rows, length = stage.n_steps * stage.spec.batch_size, stage.spec.seq_len
    for first in range(0, n_rows, stage.spec.batch_size):
      rows = text.read(stage.start_tokens + first * length, stage.spec.batch_size, length).astype(np.int64)
      goes_on = (rows[:, 1:] == rows[:, :-1] + 1) | (rows[:, 1:] == END) | (rows[:, :-1] == END)
      torn, read = torn + np.count_nonzero(~goes_on.all(1)) * length, read + rows[:, 1:].size
  most = (3 + len(curriculum.stages)) * 2 * text.block_tokens  # at either end of every stage and epoch
  assert read == curriculum.total_tokens
  assert torn <= most, (torn, read)


def test_a_batch_is_of_many_documents_though_they_are_long(tmp_path):
  data = make_shards(tmp_path, [1000] * 64)
  documents = {tuple(data.document(i)[k : k + 8]): i for i in range(64) for k in range(0, 993)}
  for stages in ([(0, 32)], [(0, 8), (40 * 32, 32)]):
    rows = Stream(data, 0, stages).read(0, 32, stages[0][1])[:, 1:]
    touched = {documents.get(tuple(row[:8])) for row in rows} - {None}
    assert len(touched) >= 20, stages  # one stretch would be of two


@pytest.mark.parametrize(
  ('lengths', 'tokens'),
  [([8, 16, 32, 64, 128, 256, 512, 768, 1536, 2048], 6144), ([1024], 1024), ([512, 1000], 1000)],
)
def test_a_block_is_whole_rows_of_every_length_unless_it_were_of_too_many(lengths, tokens):
  assert block_tokens(lengths) == tokens


def test_no_window_touches_more_documents_than_most_documents(data):
  stream = make_stream(data)
  for size in (1, 10, 100, data.n_tokens, 3 * data.n_tokens):
    most = max(np.count_nonzero(stream.read(p, 1, size)[:, :-1] == END) for p in range(0, 2 * data.n_tokens, 37))
    assert most <= stream.most_documents(size)
