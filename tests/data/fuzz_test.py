"""Damaged tokenizers, shards, manifests and texts: what was there, or one line that says what is wrong. Never a pickle."""

import json
import random
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import mutations
from tests.mutations import one_line
from yxanul.config.spec import DataSpec
from yxanul.data import prepare, shards, sources, tokenizer

RANDOM = st.randoms(use_true_random=False)
TEXT = 'By the way, 1234567 x² of the\n\n  end.\x00日本\ufffd'
DOCUMENTS = [f'Document {i} — “naïve” 日本.\nSecond line of it.' for i in range(40)]


@pytest.fixture(scope='module')
def prepared(tmp_path_factory, tokenizer_path):
  """A prepared folder, its spec, and the documents in it."""
  from yxanul.config.spec import TokenizerSpec

  folder = tmp_path_factory.mktemp('prepared')
  (folder / 'text.jsonl').write_text(''.join(json.dumps({'text': text}) + '\n' for text in DOCUMENTS))
  special = ('<|pad|>', '<|endoftext|>')
  own = TokenizerSpec(path=str(tokenizer_path), vocab_size=600, transition_size=600, special_tokens=special)
  spec = DataSpec(source=str(folder / 'text.jsonl'), tokenizer=own, validation_fraction=0.3, shard_tokens=200)
  made = prepare.prepare(spec, folder / 'data')
  return folder / 'data', spec, [contents(made.train), contents(made.validation)]


def contents(part: shards.Shards) -> list:
  """All that a run takes from shards."""
  totals = (part.n_documents, part.n_tokens, part.n_bytes, part.end_of_text_id, part.vocab_size)
  arrays = (part.starts, part.lengths, part.byte_counts, part.source_ids, part.shard_numbers, np.concatenate(part.tokens))
  return [totals, *(array.tolist() for array in arrays)]


def damage(rng: random.Random, path) -> None:
  data = path.read_bytes()
  if path.suffix == '.json' and rng.random() < 0.7:
    path.write_text(json.dumps(mutations.json_of(rng, json.loads(data))))
  else:
    path.write_bytes(mutations.bytes_of(rng, data))


@settings(max_examples=250, deadline=None)
@given(rng=RANDOM)
def test_a_damaged_corpus_is_named_or_whole(prepared, tmp_path_factory, rng):
  original, spec, wanted = prepared
  folder = tmp_path_factory.mktemp('damaged') / 'data'
  shutil.copytree(original, folder)
  outside = folder.parent / 'outside'
  outside.mkdir()
  victim = rng.choice(sorted(path for path in folder.rglob('*') if path.is_file()))
  damage(rng, victim)
  found = one_line(lambda: prepare.prepare(spec, folder))
  if found is not None:
    assert [contents(found.train), contents(found.validation)] == wanted, victim
    assert found.tokenizer.decode(found.tokenizer.encode_batch([TEXT])[0]) == TEXT, victim
  assert outside.exists()
  shutil.rmtree(folder.parent)


@pytest.mark.parametrize('files', [('tokenizer.json', 'tokenizer_config.json'), ('vocab.json', 'merges.txt')], ids='+'.join)
@settings(max_examples=150, deadline=None)
@given(rng=RANDOM)
def test_a_damaged_tokenizer_is_named_or_works(tokenizer_path, tmp_path_factory, files, rng):
  folder = tmp_path_factory.mktemp('damaged')
  shutil.copytree(tokenizer_path, folder, dirs_exist_ok=True)
  if 'merges.txt' in files:
    model = json.loads((folder / 'tokenizer.json').read_text())['model']
    (folder / 'vocab.json').write_text(json.dumps(model['vocab']))
    (folder / 'merges.txt').write_text('#version: 0.2\n' + ''.join(f'{a} {b}\n' for a, b in model['merges']))
    (folder / 'tokenizer.json').unlink()
    (folder / 'tokenizer_config.json').unlink()
  damage(rng, folder / rng.choice(files))
  found = one_line(lambda: tokenizer.load(folder))
  if found is not None:
    ids = found.encode_batch([TEXT])[0]
    assert found.decode(ids) == TEXT
    assert 0 <= ids.min() <= ids.max() < found.vocab_size
    assert found.token_bytes[ids].sum() == len(TEXT.encode())
  shutil.rmtree(folder)


LINES = ''.join(json.dumps({'text': text, 'score': i / 2}) + '\n' for i, text in enumerate(DOCUMENTS)).encode()


@pytest.mark.parametrize('name', ['a.jsonl', 'a.txt'])
@settings(max_examples=200, deadline=None)
@given(rng=RANDOM)
def test_damaged_text_is_named_or_read(tmp_path_factory, name, rng):
  path = tmp_path_factory.mktemp('damaged') / name
  path.write_bytes(mutations.bytes_of(rng, LINES))
  found = sources.find(str(path))
  one_line(lambda: list(sources.documents(found, DataSpec())))
  # Skipping takes what is left: the lines that nothing has touched.
  problems = []
  texts = [document.text for document in sources.documents(found, DataSpec(), report=problems.append)]
  assert all(text.encode().decode() == text for text in texts)
  if name == 'a.jsonl':
    whole = [json.loads(line)['text'] for line in set(path.read_bytes().split(b'\n')) & set(LINES.split(b'\n')) if line]
    assert set(whole) <= set(texts)
  else:
    assert ''.join(texts).encode() == path.read_bytes() or problems
