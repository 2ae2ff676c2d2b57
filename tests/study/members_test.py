"""Members of a study: one text for all, and where their runs lie."""

import dataclasses
import json

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
  assert {m.spec.evaluation.max_bytes for m in (ultra, baseline)} == {1_000_000}
  assert all(m.spec.evaluation.max_tokens > 10**15 for m in (ultra, baseline))
  assert baseline.spec.model == spec('baseline_gpt2').model
  # So are documents of 1,000 tokens: what counts them chooses other text.
  assert first.data.min_document_tokens == 1000
  assert {m.spec.data.min_document_tokens for m in (ultra, baseline)} == {0}
  assert ultra.spec.evaluation.shares()[:4] == [0.01, 0.02, 0.04, 0.05]


def test_a_later_call_with_another_tokenizer_has_the_same_text(tmp_path):
  one, other = (
    members.on_one_text([Member('ultra', spec('ultra')), Member(name, spec(name))], tmp_path)
    for name in ('ultra_muon', 'baseline_gpt2')
  )
  assert one[0].spec == other[0].spec
  assert one[1].spec.data == one[0].spec.data


def test_asked_for_held_out_text_is_kept(tmp_path):
  first = spec('ultra')
  evaluation = dataclasses.replace(first.evaluation, max_bytes=9000, first_share=0.03)
  (ultra,) = members.on_one_text([Member('ultra', dataclasses.replace(first, evaluation=evaluation))], tmp_path)
  assert (ultra.spec.evaluation.max_bytes, ultra.spec.evaluation.first_share) == (9000, 0.03)


def test_the_baselines_tokenizer_may_lie_in_a_folder(tmp_path):
  everybody = [Member(name, spec(name)) for name in ('ultra', 'baseline_gpt2', 'ultra_no_superbpe')]
  ultra, *others = members.on_one_text(everybody, tmp_path, 'somewhere/gpt2')
  assert ultra.spec.data.tokenizer == spec('ultra').data.tokenizer
  for member in others:
    assert member.spec.data.tokenizer.path == 'somewhere/gpt2'
    assert member.spec.data.directory == str(tmp_path / 'gpt2-50256-50256')


def test_folders_are_found_again_by_budget_name_and_seed(tmp_path):
  member = Member('ultra_curriculum:shape=late,lr_scale=false', tiny.spec())
  assert member.folder == 'ultra_curriculum-shape=late-lr_scale=false'
  for seconds in (120.0, 2.5, 100 / 3, 0.0):
    folder = members.run_folder(tmp_path, seconds, member, 1)
    folder.mkdir(parents=True)
    (folder / 'config.json').write_text(json.dumps(to_dict(member.spec)))
    (folder / 'result.json').write_text('{}')
    (folder / 'metrics.jsonl').write_text('{"val_bpb": 1.0}\n')
  assert members.budgets(tmp_path) == [2.5, 100 / 3, 120.0]
  found = members.finished(tmp_path, 120.0)
  assert {name: list(seeds) for name, seeds in found.items()} == {member.folder: [1]}


def test_tokenizers_of_one_name_have_folders_of_their_own(tmp_path):
  for name in 'ab':
    (tmp_path / name / 'tokenizer').mkdir(parents=True)

  def with_path(name):
    its = spec('ultra')
    tokenizer = dataclasses.replace(its.data.tokenizer, path=str(tmp_path / name / 'tokenizer'))
    return Member(name, dataclasses.replace(its, data=dataclasses.replace(its.data, tokenizer=tokenizer)))

  a, b = members.on_one_text([with_path('a'), with_path('b')], tmp_path)
  assert a.spec.data.directory != b.spec.data.directory
  assert {m.spec.data.min_document_tokens for m in (a, b)} == {0}
