"""From files to shards: what is kept, what is held out, what is refused, and what a manifest says."""

import dataclasses
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from yxanul.config.spec import DataSpec, TokenizerSpec
from yxanul.data import prepare, prepare_encode, prepare_workers, python_docs, shards
from yxanul.data.deduplicate import digest, unit_interval
from yxanul.data.shards_check import STAMPS


def write_jsonl(path: Path, texts, **columns) -> Path:
  rows = [{'text': text, **{name: values[i] for name, values in columns.items()}} for i, text in enumerate(texts)]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def texts_of(prepared, split: str) -> list[str]:
  data = getattr(prepared, split)
  return [prepared.tokenizer.decode(data.document(i)) for i in range(data.n_documents)]


def files_of(folder: Path) -> dict[str, bytes]:
  splits = (folder / split for split in ('train', 'validation'))
  return {str(p.relative_to(folder)): p.read_bytes() for split in splits for p in sorted(split.iterdir()) if p.name != STAMPS}


def test_documents_go_through_whole_and_in_order(tmp_path, prose, make_spec):
  prepared = prepare.prepare(make_spec(write_jsonl(tmp_path / 'a.jsonl', prose[:300])), tmp_path / 'out')
  fraction = 0.1
  held_out = [text for text in prose[:300] if unit_interval(digest(text.encode())) < fraction]
  assert 10 < len(held_out) < 60
  assert texts_of(prepared, 'validation') == held_out
  assert texts_of(prepared, 'train') == [text for text in prose[:300] if text not in held_out]


def test_the_split_of_a_document_never_changes(tmp_path, prose, make_spec):
  few = prepare.prepare(make_spec(write_jsonl(tmp_path / 'few.jsonl', prose[:200])), tmp_path / 'few')
  more = prepare.prepare(make_spec(write_jsonl(tmp_path / 'more.jsonl', prose[350:50:-1])), tmp_path / 'more')
  common = set(prose[51:200])
  assert set(texts_of(few, 'validation')) & common == set(texts_of(more, 'validation')) & common != set()


def test_filters_and_duplicates(tmp_path, prose, make_spec):
  texts = [*prose[:100], '', ' \n', *prose[:40], *prose[100:200]]
  score = [3.5] * 100 + [5.0] * 42 + [3.49 if i % 2 else None for i in range(100)]
  language = ['en'] * 190 + ['de'] * 52
  source = write_jsonl(tmp_path / 'a.jsonl', texts, score=score, language=language)
  prepared = prepare.prepare(make_spec(source, min_score=3.5, language='en'), tmp_path / 'out')
  counts = prepared.train.manifest['selection']
  assert (counts['empty'], counts['duplicate'], counts['score'], counts['language']) == (2, 40, 50, 26)
  kept = texts_of(prepared, 'train') + texts_of(prepared, 'validation')
  assert sorted(kept) == sorted([*prose[:100], *prose[100:148:2]])


@pytest.mark.parametrize('column', [True, False])
def test_minimum_tokens_by_column_or_by_our_own_count(tmp_path, prose, make_spec, tokenizer, column):
  own = [len(ids) for ids in tokenizer.encode_batch(prose[:300])]
  counts = {'token_count': [100 * (i % 2) for i in range(300)]} if column else {}
  source = write_jsonl(tmp_path / 'a.jsonl', prose[:300], **counts)
  prepared = prepare.prepare(make_spec(source, min_document_tokens=50), tmp_path / 'out')
  expected = prose[1:300:2] if column else [text for text, n in zip(prose, own, strict=False) if n >= 50]
  assert sorted(texts_of(prepared, 'train') + texts_of(prepared, 'validation')) == sorted(expected)
  selection = prepared.train.manifest['selection']
  assert selection['short'] == 300 - len(expected)
  assert (selection['train'], selection['validation']) == (prepared.train.n_documents, prepared.validation.n_documents)


def test_a_validation_source_is_held_out_as_it_is_and_never_trained_on(tmp_path, prose, make_spec):
  train = write_jsonl(tmp_path / 'train.jsonl', prose[:100], score=[1.0] * 50 + [4.0] * 50)
  held_out = write_jsonl(tmp_path / 'held.jsonl', prose[90:110], score=[1.0] * 20)
  prepared = prepare.prepare(make_spec(train, validation_source=str(held_out), min_score=2.0), tmp_path / 'out')
  assert texts_of(prepared, 'validation') == prose[90:110]
  assert texts_of(prepared, 'train') == prose[50:90]


def test_python_docs_holds_out_topics_whose_paragraphs_are_not_trained_on(tmp_path, make_spec):
  prepared = prepare.prepare(make_spec('python-docs'), tmp_path / 'out')
  topics = python_docs.read()
  held_out = [text for name, text, _ in topics if int(hashlib.sha256(name.encode()).hexdigest(), 16) % 10 == 0]
  assert texts_of(prepared, 'validation') == held_out
  assert texts_of(prepared, 'train') == [text for _, text, is_held_out in topics if not is_held_out]
  by_split = {
    split: {' '.join(p.split()) for text in texts_of(prepared, split) for p in text.split('\n\n')}
    for split in ('train', 'validation')
  }
  assert len(by_split['validation']) > 100
  assert not by_split['train'] & by_split['validation']


def test_a_validation_source_leaves_all_topics_of_python_docs_to_training(tmp_path, prose, make_spec):
  held_out = write_jsonl(tmp_path / 'held.jsonl', ['Nothing that Python says.'])
  prepared = prepare.prepare(make_spec('python-docs', validation_source=str(held_out)), tmp_path / 'out')
  assert texts_of(prepared, 'train') == [text for _, text, _ in python_docs.read()]
  other = prepare.prepare(make_spec(held_out, validation_source='python-docs'), tmp_path / 'other')
  assert texts_of(other, 'validation') == texts_of(prepared, 'train')


def test_shards_split_at_shard_tokens(tmp_path, prose, make_spec):
  source = write_jsonl(tmp_path / 'a.jsonl', prose[:300], source=['x', 'y', 'z'] * 100)
  one = prepare.prepare(make_spec(source), tmp_path / 'one')
  many = prepare.prepare(make_spec(source, shard_tokens=1000), tmp_path / 'many')
  assert len(one.train.tokens) == 1
  assert len(many.train.tokens) > 5
  assert all(shard['tokens'] >= 1000 for shard in many.train.manifest['shards'][:-1])
  np.testing.assert_array_equal(np.concatenate(many.train.tokens), one.train.tokens[0])
  for name in ('lengths', 'byte_counts', 'source_ids'):
    np.testing.assert_array_equal(getattr(many.train, name), getattr(one.train, name))
  shards.open(tmp_path / 'many' / 'train', many.tokenizer, verify=True)


def test_worker_processes_write_the_same_bytes(tmp_path, prose, make_spec, monkeypatch):
  source = write_jsonl(tmp_path / 'a.jsonl', prose)
  prepare.prepare(make_spec(source), tmp_path / 'here')
  monkeypatch.setattr(prepare_workers, 'IN_PROCESS_BYTES', 0)
  monkeypatch.setattr(prepare_workers, 'BATCH_BYTES', 10_000)
  prepare.prepare(make_spec(source, workers=2), tmp_path / 'workers')
  assert files_of(tmp_path / 'here') == files_of(tmp_path / 'workers')


def test_the_same_settings_return_at_once_others_are_refused(tmp_path, prose, make_spec, monkeypatch):
  spec = make_spec(write_jsonl(tmp_path / 'a.jsonl', prose[:100]))
  first = prepare.prepare(spec, tmp_path / 'out')
  Path(spec.source).unlink()
  again = prepare.prepare(dataclasses.replace(spec, workers=7), tmp_path / 'out')
  assert again.train.manifest == first.train.manifest
  other = dataclasses.replace(spec, validation_fraction=0.2, tokenizer=dataclasses.replace(spec.tokenizer, vocab_size=601))
  with pytest.raises(ValueError, match=r'other settings \(data.validation_fraction: 0.1 -> 0.2; data.tokenizer.vocab_size'):
    prepare.prepare(other, tmp_path / 'out')


def test_trains_a_tokenizer_on_the_train_split_only(tmp_path, prose):
  texts = [f'{text} zebra{i}' if unit_interval(digest(text.encode())) < 0.1 else text for i, text in enumerate(prose[:400])]
  held = [text for text in texts if unit_interval(digest(text.encode())) < 0.1]
  spec = DataSpec(
    source=str(write_jsonl(tmp_path / 'a.jsonl', texts)),
    validation_fraction=0.1,
    tokenizer=TokenizerSpec(vocab_size=400, transition_size=350),
  )
  prepared = prepare.prepare(spec, tmp_path / 'out')
  assert texts_of(prepared, 'validation') == held
  assert prepared.tokenizer.vocab_size == 405
  assert prepare.prepare(spec, tmp_path / 'out').tokenizer.fingerprint == prepared.tokenizer.fingerprint


# Any text that UTF-8 can hold: surrogates cannot be written.
UNICODE = st.lists(st.text(st.characters(exclude_categories=('Cs',)), min_size=1), min_size=1, max_size=8)


@given(texts=UNICODE)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_byte_counts_are_those_of_the_text(tmp_path_factory, make_spec, texts):
  texts = [*dict.fromkeys(texts), '<|endoftext|> is no end', 'a\u0301\r\n\x00']
  folder = tmp_path_factory.mktemp('bytes')
  held_out = write_jsonl(folder / 'held.jsonl', ['held out'])
  spec = make_spec(write_jsonl(folder / 'a.jsonl', texts), validation_source=str(held_out))
  prepared = prepare.prepare(spec, folder / 'out')
  data = prepared.train
  kept = [text for text in dict.fromkeys(texts) if not text.isspace() and text != 'held out']
  assert data.byte_counts.tolist() == [len(text.encode()) for text in kept]
  for i in range(data.n_documents):
    ids = data.document(i)
    assert prepared.tokenizer.end_of_text_id not in ids
    assert prepared.tokenizer.token_bytes[ids].sum() == data.byte_counts[i]


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'min_score': 9.0}, r"config.data.source: '.*' leaves no document to train on: 50 documents read \(50 score\)"),
    ({'validation_fraction': 1e-9}, r"config.data.validation_fraction: 1e-09 of '.*' holds out no document: 50 documents"),
    ({'min_document_tokens': 9999}, r"config.data.min_document_tokens: '.*' leaves nothing in train: none .*=9999"),
    ({'source': '/no/such/file'}, "config.data.source: '/no/such/file' does not exist"),
    ({'validation_source': '/no/such/file'}, "config.data.validation_source: '/no/such/file' does not exist"),
    ({'tokenizer': TokenizerSpec(path='/no/such', vocab_size=600, transition_size=600)}, '/no/such'),
    ({'tokenizer': TokenizerSpec(vocab_size=99999, transition_size=600)}, 'config.data.tokenizer.vocab_size: got 99999'),
    ({'text_column': 'body'}, r"a.jsonl, line 1: no column 'body' \(data.text_column\); it has 'text', 'score'"),
  ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(tmp_path, prose, make_spec, fields, message):
  source = write_jsonl(tmp_path / 'a.jsonl', prose[:50], score=[1.0] * 50)
  spec = make_spec(**({'source': source} | fields))
  with pytest.raises(ValueError, match=message) as error:
    prepare.prepare(spec, tmp_path / 'runs' / 'out')
  assert '\n' not in str(error.value)
  assert sorted(p.name for p in tmp_path.iterdir()) == ['a.jsonl']


def test_the_entries_of_a_tokenizer_have_to_fit(tmp_path, prose, make_spec):
  spec = make_spec(write_jsonl(tmp_path / 'a.jsonl', prose[:50]))
  small = dataclasses.replace(spec.tokenizer, vocab_size=599, transition_size=500)
  with pytest.raises(ValueError, match=r"tokenizer.vocab_size: 602 entries in '.*', but the configuration has 601 in all"):
    prepare.prepare(dataclasses.replace(spec, tokenizer=small), tmp_path / 'out')


def test_a_directory_with_something_else_in_it_is_left_alone(tmp_path, prose, make_spec):
  (tmp_path / 'mine' / 'train').mkdir(parents=True)
  source = write_jsonl(tmp_path / 'mine' / 'train' / 'a.jsonl', prose[:50])
  with pytest.raises(ValueError, match=r'mine: holds something else \(train\), wants a directory of its own'):
    prepare.prepare(make_spec(source), tmp_path / 'mine')
  assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob('*') if p.is_file()] == ['mine/train/a.jsonl']


def test_a_source_that_changes_before_a_killed_prepare_goes_on_is_refused(tmp_path, prose, make_spec, monkeypatch):
  spec = make_spec(write_jsonl(tmp_path / 'a.jsonl', prose[:50]))
  with monkeypatch.context() as patch:
    patch.setattr(prepare_encode, 'write_shards', lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
      prepare.prepare(spec, tmp_path / 'out')
  write_jsonl(tmp_path / 'a.jsonl', prose[:60])
  with pytest.raises(ValueError, match=r"a.jsonl' changed since this was begun; prepare it in another directory"):
    prepare.prepare(spec, tmp_path / 'out')
  write_jsonl(tmp_path / 'a.jsonl', prose[:50])
  assert prepare.prepare(spec, tmp_path / 'out').train.n_documents > 0


def test_two_processes_at_once_prepare_once(tmp_path, prose, make_spec):
  """As the ranks of one job do."""
  spec = make_spec(write_jsonl(tmp_path / 'a.jsonl', prose))
  with ThreadPoolExecutor(4) as pool:
    found = list(pool.map(lambda _: prepare.prepare(spec, tmp_path / 'out').train.manifest, range(4)))
  assert found == [found[0]] * 4
  assert sorted(p.name for p in (tmp_path / 'out').iterdir()) == ['prepare.json', 'tokenizer', 'train', 'validation']


def test_problems_are_counted_and_named_in_the_manifest(tmp_path, prose, make_spec):
  source = write_jsonl(tmp_path / 'a.jsonl', prose[:100])
  source.write_text(source.read_text() + '{"broken\n' * 1500)
  prepared = prepare.prepare(make_spec(source, on_error='skip'), tmp_path / 'out')
  problems = prepared.train.manifest['problems']
  assert problems['counts'] == {'line': 1500}
  assert len(problems['first']) == 1000
  assert problems['first'][0].startswith(f'{source}, line 101: not JSON (')
  with pytest.raises(ValueError, match=f'^{source}, line 101: not JSON'):
    prepare.prepare(make_spec(source), tmp_path / 'other')
