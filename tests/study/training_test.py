"""The runs of a study: text before time, seconds to tokens, and what is kept of them."""

import dataclasses
import json

import pytest

from tests import tiny
from yxanul.config.convert import to_dict
from yxanul.study import members, speeds, texts, training, tuning
from yxanul.study.members import Member


class Here:
  """Stands for `Apart`: writes the records of a speed or a text instead of measuring them, and runs nothing."""

  def __init__(self, texts=None, status=0):
    self.timed, self.begun, self.texts, self.status = [], [], texts or {}, status

  def check(self):
    pass

  def call(self, function, spec, path):
    if function is speeds.measure_speed:
      self.timed.append(path.stem)
      record = {'tokens_per_second': 250.0, 'hardware': 'x', 'decided_by': speeds.deciding(spec)}
      path.write_text(json.dumps(record))
    elif function is texts.measure_text:
      if (size := self.texts.get(path.stem, (1000, 100))) is None:
        return 1
      path.write_text(json.dumps(dict(zip(('train', 'validation'), size, strict=True))))
    else:
      self.begun.append((path, spec))
      (path / 'checkpoints' / '7').mkdir(parents=True)
      (path / 'config.json').write_text(json.dumps(to_dict(spec)))
      (path / 'metrics.jsonl').write_text(json.dumps({'val_bpb': self.final_bpb(spec), 'step': 1, 'tokens': 1}) + '\n')
      if not self.status:
        (path / 'result.json').write_text('{}')
        (path / 'report.html').touch()
      return self.status
    return 0

  def final_bpb(self, spec):
    return 1.0


def member(name, **fields):
  return Member(name, tiny.spec(data__directory=f'data/{name}', **fields))


# --- text ---------------------------------------------------------------------------------------------------------------


def test_other_text_is_refused_before_anything_is_timed(tmp_path):
  here = Here({'b': (1000, 99), 'c': None})
  ready, failures = texts.prepare([member(name) for name in 'abcd'], tmp_path, here, print)
  assert [m.name for m in ready] == ['a', 'd']
  assert failures[0].startswith('b: its text is not that of a (1,000 bytes of train against 1,000, 99 bytes of validation')
  assert failures[1].startswith('c: its text could not be prepared')
  assert not here.timed


def test_a_tokenizers_text_is_prepared_once_and_for_real(tmp_path):
  directory = tmp_path / 'shards'
  spec = tiny.spec(data__directory=str(directory))
  said = []
  from yxanul.study.apart import Apart

  ready, failures = texts.prepare([Member('a', spec), Member('b', spec)], tmp_path, Apart(), said.append)
  assert ([m.name for m in ready], failures) == (['a', 'b'], [])
  assert len(said) == 1
  sizes = json.loads((tmp_path / 'texts' / 'shards.json').read_text())
  assert sizes['train'] > sizes['validation'] > 0


# --- speed --------------------------------------------------------------------------------------------------------------


def test_a_speed_is_shared_by_all_that_differ_in_nothing_that_takes_time(tmp_path):
  here = Here()
  assert speeds.speed(member('tiny'), tmp_path, here, print) == 250.0
  same = {
    'seed': 3,
    'curriculum__budget_tokens': 99_000,
    'optimizer__peak_lr': 1e-5,
    'model__init_std': 0.5,
    'curriculum__stages[3]__lr_scale': 0.1,
    'evaluation__max_bytes': 7,
    'training__checkpoint_every_seconds': 5.0,
  }
  assert speeds.speed(member('rate', **same), tmp_path, here, print) == 250.0
  assert here.timed == ['tiny']


@pytest.mark.parametrize(
  'other',
  [
    {'model__n_layers': 3},
    {'curriculum__stages[3]__batch_size': 48},
    {'optimizer__z_loss': 1e-4},
    {'optimizer__groups[0]__optimizer': 'muon'},
    {'optimizer__inheritance': 0.7},
    {'training__execution': 'compile'},
    {'precision__matmul': 'bf16'},
  ],
  ids=lambda fields: next(iter(fields)),
)
def test_what_takes_time_is_timed(other, tmp_path):
  here = Here()
  for name, fields in (('tiny', {}), ('other', other)):
    speeds.speed(member(name, **fields), tmp_path, here, print)
  assert here.timed == ['tiny', 'other']


def test_what_cannot_be_timed_is_named(tmp_path):
  class Failing(Here):
    def call(self, *_):
      return 1

  with pytest.raises(ValueError, match='late: could not be timed'):
    speeds.speed(member('late'), tmp_path, Failing(), print)


# --- runs ---------------------------------------------------------------------------------------------------------------


def test_seconds_become_tokens_and_what_is_finished_keeps_no_checkpoints(tmp_path):
  here, said = Here(), []
  assert list(training.train([member('tiny')], [0], 100, tmp_path, here, said.append)) == [None]
  ((folder, spec),) = here.begun
  assert folder == tmp_path / '100s' / 'tiny' / 'seed0'
  assert spec.curriculum.budget_tokens == 25_000
  assert 'steps, fewer than 300: a smaller batch learns more, in' in said[-1]
  left = ['config.json', 'metrics.jsonl', 'report.html', 'result.json']
  assert sorted(path.name for path in folder.iterdir()) == left
  # A request to stop may come behind the result: what it left undone is done by the next call.
  (folder / 'checkpoints' / '7').mkdir(parents=True)
  assert list(training.train([member('tiny')], [0], 100, tmp_path, here, said.append)) == []
  assert said[-1] == 'tiny, seed 0: finished before'
  assert sorted(path.name for path in folder.iterdir()) == left


def test_what_could_not_be_written_is_told_and_keeps_its_checkpoints(tmp_path):
  (failure,) = training.train([member('tiny')], [0], 100, tmp_path, Here(status=74), print)
  assert failure == 'tiny, seed 0: ended with status 74; the same command tries again'
  assert (tmp_path / '100s' / 'tiny' / 'seed0' / 'checkpoints' / '7').is_dir()


def test_a_run_whose_loss_is_no_number_is_told_every_time_and_compared_with_nothing(tmp_path):
  class Lost(Here):
    def final_bpb(self, spec):
      return None if spec.optimizer.peak_lr > 0.1 else 1.0

  here = Lost()
  everybody = [member('sound'), member('lost', optimizer__peak_lr=0.5)]
  lost = 'lost, seed 0: its loss is no number in the end, so it is left out'
  for trained in ([None], []):
    assert list(training.train(everybody, [0], 100, tmp_path, here, print)) == [*trained, lost]
  assert len(here.begun) == 2
  assert members.finished(tmp_path, 100).keys() == {'sound'}


def test_a_damaged_configuration_is_named_and_the_others_go_on(tmp_path):
  here = Here()
  list(training.train([member('a')], [0], 100, tmp_path, here, print))
  path = tmp_path / '100s' / 'a' / 'seed0' / 'config.json'
  path.write_text('{')
  failure, none = training.train([member('a'), member('b')], [0], 100, tmp_path, here, print)
  assert failure.startswith(f'a: {path}: not the configuration of a run')
  assert none is None


def test_another_cards_speed_is_not_taken(tmp_path, monkeypatch):
  here = Here()
  for name in ('x', 'x', 'another card'):
    monkeypatch.setattr(speeds, 'driver', lambda name=name: {'name': name})
    speeds.speed(member('tiny'), tmp_path, here, print)
  assert here.timed == ['tiny', 'tiny']


def test_a_budget_once_begun_is_kept_by_the_run_and_by_other_seeds(tmp_path):
  """Although the speed would be another today, or the file of it is gone."""
  here = Here()
  list(training.train([member('tiny')], [0], 100, tmp_path, here, print))
  path = tmp_path / 'speeds' / 'tiny.json'
  path.write_text(path.read_text().replace('250.0', '500.0'))
  moved = Member('tiny', dataclasses.replace(member('tiny').spec, data=dataclasses.replace(tiny.spec().data, directory='new')))
  list(training.train([moved], [0, 1], 100, tmp_path, here, print))
  assert [spec.curriculum.budget_tokens for _, spec in here.begun] == [25_000, 25_000]
  # Another budget of seconds is another number of tokens.
  list(training.train([moved], [0], 200, tmp_path, here, print))
  assert here.begun[-1][1].curriculum.budget_tokens == 100_000


def test_a_budget_too_small_for_a_stage_is_told_and_the_others_go_on(tmp_path):
  here = Here()
  small, fits = member('small', **{'curriculum__stages[3]__batch_size': 4096}), member('fits')
  failure, none = training.train([small, fits], [0], 100, tmp_path, here, print)
  assert failure.startswith('small: config.curriculum.budget_tokens: got 25000, wants enough for a step in every stage')
  assert none is None
  assert [folder.parent.name for folder, _ in here.begun] == ['fits']


# --- rates --------------------------------------------------------------------------------------------------------------


def test_strong_baselines_run_at_the_rate_that_did_best(tmp_path):
  class Trained(Here):
    def final_bpb(self, spec):
      """Best at 2e-3 for one, ever better with the rate for the other."""
      rate = spec.optimizer.peak_lr
      return abs(rate - 2e-3) if spec.model.n_layers == 2 else -rate

  everybody = [member('baseline_gpt2'), member('strong_gpt2'), member('strong_ultra', model__n_layers=3)]
  rates, here = [1e-3, 2e-3, 4e-3], Trained()
  assert list(tuning.trials(everybody, rates, 100, tmp_path, here, print)) == [None] * 6
  assert here.timed == ['strong_gpt2-lr=0.001', 'strong_ultra-lr=0.001']  # and no other rate
  rows = tuning.rows(everybody, rates, 100, tmp_path)
  assert [(row['name'], row['rate']) for row in rows if row['chosen']] == [('strong_gpt2', 2e-3), ('strong_ultra', 4e-3)]
  assert [row['name'] for row in rows if row['at_the_end']] == ['strong_ultra']
  tuned = tuning.tuned(everybody, rows)
  assert [m.name for m in tuned] == ['baseline_gpt2', 'strong_gpt2:lr=0.002', 'strong_ultra:lr=0.004']
  assert tuned[1].spec.optimizer.peak_lr == 2e-3


def test_rates_that_were_not_tried_choose_nothing(tmp_path):
  rows = tuning.rows([member('strong_gpt2')], [1e-3], 100, tmp_path)
  assert rows == [{'name': 'strong_gpt2', 'rate': 1e-3, 'final_bpb': None, 'chosen': False, 'at_the_end': False}]
  assert members.budgets(tmp_path) == []


def test_a_speed_from_before_stages_could_run_a_part_of_the_blocks_counts():
  decides = speeds.deciding(tiny.spec())
  assert all('n_layers' not in stage for stage in decides['stages'])
  grows = speeds.deciding(tiny.spec(**{'curriculum__stages[0]__n_layers': 1}))
  assert grows['stages'][0]['n_layers'] == 1
  assert grows['stages'][1:] == decides['stages'][1:]
