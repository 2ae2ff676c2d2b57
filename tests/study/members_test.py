"""Members of a study: one text for all, and seconds turned into tokens."""

import dataclasses
import json

import pytest

from tests import tiny
from yxanul.config import registry
from yxanul.config.convert import from_config, to_dict
from yxanul.study import members
from yxanul.study.members import Member


def spec(name):
  return from_config(registry.load(str(registry.experiments_folder() / f'{name}.py')))


def test_all_train_on_the_firsts_text_with_tokenizers_of_their_own(tmp_path):
  first = spec('ultra')
  first = dataclasses.replace(first, data=dataclasses.replace(first.data, source='texts/*.parquet', min_score=2.0))
  ultra, baseline = members.on_one_text([Member('ultra', first), Member('baseline_gpt2', spec('baseline_gpt2'))], tmp_path)
  assert (baseline.spec.data.source, baseline.spec.data.min_score) == ('texts/*.parquet', 2.0)
  assert baseline.spec.data.tokenizer == spec('baseline_gpt2').data.tokenizer
  assert ultra.spec.data.directory == str(tmp_path / 'trained-200000-80000')
  assert baseline.spec.data.directory == str(tmp_path / 'gpt2-50256-50256')
  # 10M tokens of one tokenizer are other text than 10M of another: the limit is in bytes, and one for all.
  assert {m.spec.evaluation.max_bytes for m in (ultra, baseline)} == {40_000_000}
  assert all(m.spec.evaluation.max_tokens > 10**15 for m in (ultra, baseline))
  assert baseline.spec.model == spec('baseline_gpt2').model


class Timing:
  """Stands for `Apart`: writes the record of a speed instead of measuring it."""

  def __init__(self, validation_bytes=100):
    self.timed, self.bytes = [], validation_bytes

  def call(self, function, its_spec, path):
    assert function is members.measure_speed
    self.timed.append(path.stem)
    text_bytes = {'train': 1000, 'validation': self.bytes}
    record = {'tokens_per_second': 250.0, 'hardware': 'x', 'text_bytes': text_bytes, 'config': members._timed(its_spec)}
    path.write_text(json.dumps(record))
    return 0


def test_a_speed_is_measured_once_whatever_the_seed_and_the_budget(tmp_path):
  timing, member = Timing(), Member('tiny', tiny.spec())
  assert members.speed(member, tmp_path, timing, print) == 250.0
  later = Member('tiny', tiny.spec(seed=3, curriculum__budget_tokens=99_000))
  assert members.speed(later, tmp_path, timing, print) == 250.0
  assert timing.timed == ['tiny']
  other = Member('tiny', tiny.spec(model__n_layers=3))
  members.speed(other, tmp_path, timing, print)
  assert timing.timed == ['tiny', 'tiny']


def test_other_text_is_refused_before_anything_is_trained(tmp_path):
  members.speed(Member('a', tiny.spec()), tmp_path, Timing(), print)
  with pytest.raises(
    ValueError, match=r'b: its text is not that of a \(.*99 bytes of validation against 100\).*min_document_to'
  ):
    members.speed(Member('b', tiny.spec()), tmp_path, Timing(99), print)


def test_what_cannot_be_timed_is_named(tmp_path):
  class Failing(Timing):
    def call(self, *_):
      return 1

  with pytest.raises(ValueError, match='late: could not be timed'):
    members.speed(Member('late', tiny.spec()), tmp_path, Failing(), print)


def test_folders_are_found_again_by_budget_name_and_seed(tmp_path):
  member = Member('ultra_curriculum:shape=late,lr_scale=false', tiny.spec())
  assert member.folder == 'ultra_curriculum-shape=late-lr_scale=false'
  for seconds in (120.0, 2.5, 0.0):
    folder = members.run_folder(tmp_path, seconds, member, 1)
    folder.mkdir(parents=True)
    (folder / 'config.json').write_text(json.dumps(to_dict(member.spec)))
    (folder / 'result.json').write_text('{}')
  assert members.budgets(tmp_path) == [2.5, 120.0]
  found = members.finished(tmp_path, 120.0)
  assert {name: list(seeds) for name, seeds in found.items()} == {member.folder: [1]}
