"""The measurements measure what they say; how fast it is, no test can promise."""

import json

import pytest

from tests.data.small_shards import make_shards
from yxanul.data import prepare_bench
from yxanul.data.batches_bench import loader_benchmark
from yxanul.data.stream import Stream


def test_the_loader_is_timed_for_each_shape(tmp_path):
  shapes = [(0, 64, 8), (1600, 16, 32)]
  rows = loader_benchmark(Stream(make_shards(tmp_path, [30] * 100), 0, [(0, 8), (1600, 32)]), shapes, seconds=0.05)
  assert [(row['batch_size'], row['seq_len']) for row in rows] == [(64, 8), (16, 32)]
  assert all(row['tokens_per_second'] > 10_000 for row in rows)


def test_preparing_and_encoding_count_the_same_text(tmp_path, prose, make_spec):
  source = tmp_path / 'a.jsonl'
  source.write_text(''.join(json.dumps({'text': text}) + '\n' for text in prose))
  size = sum(len(text.encode()) for text in prose)
  for figures in (prepare_bench.raw_encode_rate(make_spec(source)), prepare_bench.prepare_rate(make_spec(source))):
    assert figures['bytes'] == size
    assert figures['bytes_per_second'] == pytest.approx(size / figures['seconds'])
    assert figures['cpu_seconds'] > 0
