"""Bits per byte of any text by the rule of a run, and lm-eval over local tasks."""

import dataclasses
import json
import math

import pytest

from yxanul.data import shards
from yxanul.data.sources_document import START, Document
from yxanul.inference.evaluate import evaluate, read_source, tokenize
from yxanul.inference.likelihood import Likelihood
from yxanul.inference.load import load
from yxanul.inference.model import data_directory


@pytest.fixture(scope='module')
def model(trained_run):
  return load(trained_run)


def test_the_held_out_text_gives_the_runs_own_figure(trained_run, model):
  result = json.loads((trained_run / 'result.json').read_text())
  held_out = shards.open(data_directory(model.experiment, trained_run) / 'validation', model.tokenizer)
  rule = model.experiment.evaluation
  rows = evaluate(model, held_out, rule.seq_len, max_tokens=rule.max_tokens)
  assert [row['source'] for row in rows] == ['python-docs', 'all']
  assert rows[-1]['val_bpb'] == pytest.approx(result['val_bpb'], rel=1e-9)
  assert rows[-1]['ppl_gpt2_equivalent'] == pytest.approx(result['ppl_gpt2_equivalent'], rel=1e-6)


def test_sources_are_told_apart_and_context_helps(model, tmp_path):
  for name, text in (('plain', 'The value of the object is the name of the class. '), ('odd', 'Zq9 éé xx 77 kk ~~ ')):
    (tmp_path / name).mkdir()
    (tmp_path / name / 'a.jsonl').write_text(''.join(json.dumps({'text': text * n}) + '\n' for n in (1, 3, 5)))
  documents = tokenize(read_source(str(tmp_path), model.experiment.data), model.tokenizer, 10**6)
  rows = {row['source']: row for row in evaluate(model, documents, 64)}
  assert list(rows) == ['odd', 'plain', 'all']
  assert rows['plain']['bytes'] == 9 * len('The value of the object is the name of the class. ')
  assert rows['odd']['bytes'] == 9 * len('Zq9 éé xx 77 kk ~~ '.encode())
  assert rows['odd']['val_bpb'] > rows['plain']['val_bpb']
  assert rows['all']['nats'] == pytest.approx(rows['odd']['nats'] + rows['plain']['nats'])
  assert rows['all']['tokens'] == sum(len(ids) for ids in [*documents.tokens]) - 6
  # Every length and stride scores the same tokens.
  overlapping = {row['source']: row for row in evaluate(model, documents, 64, stride=8)}
  assert {k: (r['tokens'], r['bytes']) for k, r in overlapping.items()} == {
    k: (r['tokens'], r['bytes']) for k, r in rows.items()
  }
  assert overlapping['all']['val_bpb'] != rows['all']['val_bpb']
  # One row that holds everything is what a stride of one token comes to, while the text fits.
  short = tokenize([Document('The value of the object', 'x', START)], model.tokenizer, 100)
  (whole, _), (stepped, _) = evaluate(model, short, 64), evaluate(model, short, 64, stride=1)
  assert whole['nats'] == pytest.approx(stepped['nats'], rel=1e-5)


def test_rows_of_any_length_need_no_attention_of_training(model):
  documents = tokenize([Document('The value of the object', 'x', START)], model.tokenizer, 100)
  other = dataclasses.replace(model, engines=dataclasses.replace(model.engines, attention='chosen for training'))
  assert evaluate(other, documents, 7) == evaluate(model, documents, 7)


def test_rolling_is_the_same_rule_a_text_at_a_time(model):
  texts = ['The value of the object is a name.', 'x', 'It is an error. ' * 60]
  rolling = Likelihood(model).rolling(texts)
  for text, logp in zip(texts[:2], rolling, strict=False):
    (row, _) = evaluate(model, tokenize([Document(text, 'x', START)], model.tokenizer, 10**6), model.window)
    assert logp == pytest.approx(-row['nats'], rel=1e-5)
  # The long one is read in rows that overlap: about as good as rows of the evaluation that do.
  long = tokenize([Document(texts[2], 'x', START)], model.tokenizer, 10**6)
  assert long.lengths[0] > 2 * model.window
  (row, _) = evaluate(model, long, model.window, stride=model.window // 2)
  assert rolling[2] == pytest.approx(-row['nats'], rel=0.02)


def test_mistakes_are_named(model, tmp_path):
  documents = tokenize([Document('text', 'x', START)], model.tokenizer, 10)
  for arguments, message in (((0,), '--seq_len: got 0'), ((193,), '1 to 192'), ((64, 65), '--stride: got 65')):
    with pytest.raises(ValueError, match=message):
      evaluate(model, documents, *arguments)
  with pytest.raises(ValueError, match=r"--source: '.*missing' does not exist"):
    list(read_source(str(tmp_path / 'missing'), model.experiment.data))
  with pytest.raises(ValueError, match='no text to evaluate'):
    tokenize([Document('', 'x', START)], model.tokenizer, 10)


def test_the_hub_is_read_as_a_stream(model, monkeypatch):
  from yxanul.data import sources_hub

  asked = []
  monkeypatch.setattr(
    sources_hub, 'open_stream', lambda dataset: asked.append(dataset) or iter({'text': f'text {i}'} for i in range(10**9))
  )
  monkeypatch.setattr(sources_hub, '_LOOK_EVERY', 10**9)
  documents = tokenize(read_source('owner/name:en', model.experiment.data), model.tokenizer, 300)
  assert asked[0].name == 'owner/name'
  assert documents.sources == ('owner/name',)
  assert len(documents.lengths) < 1000


def tasks(tmp_path) -> list[dict]:
  """Three tasks of lm-eval's own kinds, over a local file."""
  rows = [
    {'question': 'The value of th', 'choices': ['e object', 'q zzqx'], 'answer': 0},
    {'question': 'It is an err', 'choices': ['~~~~', 'or'], 'answer': 1},
  ]
  path = tmp_path / 'questions.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  common = {
    'dataset_path': 'json',
    'dataset_kwargs': {'data_files': {'test': str(path)}},
    'test_split': 'test',
    'doc_to_text': '{{question}}',
    'target_delimiter': '',
  }
  return [
    common | {'task': 'choose', 'output_type': 'multiple_choice', 'doc_to_choice': '{{choices}}', 'doc_to_target': 'answer'},
    common
    | {'task': 'roll', 'output_type': 'loglikelihood_rolling', 'doc_to_text': '', 'doc_to_target': '{{question}}'}
    | {'metric_list': [{'metric': 'bits_per_byte'}]},
    common
    | {'task': 'write', 'output_type': 'generate_until', 'doc_to_target': '{{choices[answer]}}'}
    | {'generation_kwargs': {'until': ['\n'], 'max_gen_toks': 5}, 'metric_list': [{'metric': 'exact_match'}]},
  ]


def test_lm_eval_runs_its_tasks(model, tmp_path, monkeypatch):
  pytest.importorskip('lm_eval', reason="needs the extra `eval`: pip install '.[eval]'")
  from yxanul.inference.harness import Harness, run_tasks

  monkeypatch.setenv('HF_HUB_OFFLINE', '1')
  figures, table, n_long = run_tasks(model, tasks(tmp_path), None, None)
  assert n_long == 0
  assert json.loads(json.dumps(figures)) == figures  # as --json writes them
  assert figures['choose']['acc,none'] == 1.0
  questions = ['The value of th', 'It is an err']
  nats = -sum(Likelihood(model).rolling(questions))
  n_bytes = sum(len(q.encode()) for q in questions)
  assert figures['roll']['bits_per_byte,none'] == pytest.approx(nats / math.log(2) / n_bytes, rel=1e-6)
  assert 'write' in table

  class Request:
    def __init__(self, *arguments):
      self.args = arguments

  with pytest.raises(ValueError, match="--tasks: got 'no_such_task'"):
    run_tasks(model, ['no_such_task'], None, None)
  harness = Harness(model)
  pairs = [('The value of th', 'e object'), ('The value of th', 'at'), ('', 'The')]
  assert harness.loglikelihood([Request(*pair) for pair in pairs]) == Likelihood(model).continuations(pairs)
  (text,) = harness.generate_until([Request('The value of th', {'until': ['e'], 'max_gen_toks': 20})])
  assert 'e' not in text
