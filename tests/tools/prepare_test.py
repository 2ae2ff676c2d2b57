"""The command that prepares text: a folder of parquet becomes shards; mistakes are one line, exit status 2, nothing written."""

import functools
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from tests import tiny
from yxanul.data import python_docs, shards, tokenizer

SMALL = (
  '--config.data.validation_fraction=0.1',
  '--config.data.tokenizer.transition_size=500',
  '--config.data.tokenizer.vocab_size=600',
  '--config.model.vocab_size=601',
)


run = functools.partial(tiny.tool, 'prepare', '--config=experiments/quickstart.py')


@pytest.fixture(scope='module')
def corpus(tmp_path_factory) -> Path:
  folder = tmp_path_factory.mktemp('corpus')
  paragraphs = list(dict.fromkeys(p for _, text, _ in python_docs.read() for p in python_docs.paragraphs(text)))
  for name, part in (('a', paragraphs[::2]), ('b', paragraphs[1::2] + paragraphs[:10])):
    table = pyarrow.table({'text': part, 'source': [f'books {name}'] * len(part)})
    pyarrow.parquet.write_table(table, folder / f'{name}.parquet')
  return folder


def test_a_folder_of_parquet_becomes_shards(corpus, tmp_path):
  arguments = (f'--config.data.source={corpus}', f'--workdir={tmp_path}', *SMALL)
  first = run(*arguments)
  assert first.returncode == 0, first.stderr
  for word in ('train', 'validation', 'books a', 'books b', 'dropped: 10 duplicate'):
    assert word in first.stdout
  train = shards.open(tmp_path / 'data' / 'train', tokenizer.load(tmp_path / 'data' / 'tokenizer'), verify=True)
  assert train.vocab_size == 601
  manifest = (tmp_path / 'data' / 'train' / shards.MANIFEST).read_text()
  second = run(*arguments)
  assert second.returncode == 0, second.stderr
  assert first.stdout.endswith(second.stdout)  # before it, progress
  assert (tmp_path / 'data' / 'train' / shards.MANIFEST).read_text() == manifest
  other = run(*arguments, '--config.data.validation_fraction=0.2')
  assert other.returncode == 2
  assert 'prepared with other settings (data.validation_fraction: 0.1 -> 0.2)' in other.stderr
  assert (tmp_path / 'data' / 'train' / shards.MANIFEST).read_text() == manifest


def test_what_was_skipped_is_shown(tmp_path):
  lines = [json.dumps({'text': f'text number {i}'}) for i in range(100)]
  (tmp_path / 'a.jsonl').write_text('\n'.join([*lines, '{"text"', *lines[:5], 'broken']))
  out = run(
    f'--config.data.source={tmp_path}',
    f'--config.data.directory={tmp_path / "out"}',
    '--config.data.on_error=skip',
    *SMALL,
    '--config.data.tokenizer.transition_size=256',
    '--config.data.tokenizer.vocab_size=256',
    '--config.model.vocab_size=257',
  )
  assert out.returncode == 0, out.stderr
  assert 'dropped: 5 duplicate' in out.stdout
  assert f'skipped: 2 line, such as {tmp_path}/a.jsonl, line 101: not JSON' in out.stdout


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (('--config.data.source=/no/such/file',), "error: config.data.source: '/no/such/file' does not exist"),
    (('--config.data.min_score=9', '--config.data.score_column=number'), 'leaves no document to train on: 100 documents read'),
    (('--config.data.text_column=body',), "a.jsonl, line 1: no column 'body' (data.text_column); it has 'text', 'number'"),
    (('--config.data.tokenizer.path=/no/such',), 'error: tokenizer /no/such'),
    ((), 'got 500, wants at most the 344 entries'),
  ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(tmp_path, arguments, message):
  lines = [json.dumps({'text': f'text number {i}', 'number': i / 100}) for i in range(100)]
  (tmp_path / 'a.jsonl').write_text('\n'.join(lines))
  small = [argument for argument in SMALL if argument.split('=')[0] not in {a.split('=')[0] for a in arguments}]
  out = run(f'--config.data.source={tmp_path}', f'--workdir={tmp_path / "work"}', *small, *arguments)
  assert out.returncode == 2
  assert message in out.stderr
  assert len(out.stderr.strip().splitlines()) == 1
  assert [p.name for p in tmp_path.iterdir()] == ['a.jsonl']


def test_where_to_is_asked_for():
  out = run()
  assert out.returncode == 2
  assert out.stderr.startswith('error: config.data.directory: missing, wants the folder')
