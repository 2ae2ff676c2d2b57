"""Experiments that vary ultra: what each changes, and that it changes nothing else."""

import json

import pytest

from yxanul.config import registry
from yxanul.config.convert import differing_fields, from_config, to_dict
from yxanul.training.curriculum import Curriculum, token_shares


def spec(name):
  experiment, _, variant = name.partition(':')
  return from_config(registry.load(f'{registry.experiments_folder() / experiment}.py:{variant}'))


def stages(variant):
  return spec(f'ultra_curriculum:{variant}').curriculum.stages


FOUR = 'lengths=256-512-1024-2048'


@pytest.mark.parametrize(
  ('name', 'against', 'fields'),
  [
    ('ultra_curriculum:shape=ten', 'ultra', ()),
    ('ultra_curriculum:shape=constant', 'ultra_no_curriculum', ()),
    ('ultra_curriculum:shape=late,gpu=h200', 'ultra:gpu=h200', ('curriculum.stages',)),
    ('ultra_batch_warmup', 'ultra', ('curriculum.stages',)),
    ('ultra_head', 'ultra', ('optimizer.groups', 'model.table_std', 'model.projection_std')),
    ('ultra_head:input_scale=16,z_loss=1e-4', 'ultra_head', ('model.input_scale', 'optimizer.z_loss')),
    (
      'ultra_head:shape=timeline,lr_scale=false',
      'ultra_curriculum:shape=timeline,lr_scale=false',
      ('optimizer.groups', 'model.table_std', 'model.projection_std'),
    ),
    ('ultra_muon', 'ultra', ('optimizer.groups[0].optimizer',)),
    (
      'best:budget_tokens=2.61e9',
      'ultra:gpu=h200',
      ('curriculum.stages', 'optimizer', 'model.input_scale', 'model.projection_std'),
    ),
    ('strong_ultra', 'ultra_no_curriculum', ('precision.matmul', 'optimizer.warmup_share', 'curriculum.stages')),
    ('strong_gpt2:lr=6e-4', 'baseline_gpt2', ('precision.matmul', 'training.execution', 'curriculum.stages')),
    ('strong_gpt2', 'strong_gpt2:lr=6e-4', ('optimizer.peak_lr',)),
    ('best:beta2=0.95', 'best', ('optimizer.beta2',)),
    (
      'best:rows=false,polynomial=quintic,decay_share=0.6,input_scale=150',
      'best',
      ('model.input_scale', 'optimizer.decay_share', 'optimizer.muon'),
    ),
    ('best:inheritance=0', 'best', ('optimizer.inheritance',)),
    ('best:weight_decay=0.3', 'best', ('optimizer.groups[0].weight_decay',)),
    ('best:table_decay=0.3', 'best', ('optimizer.groups[1].weight_decay',)),
    ('strong_gpt2:beta2=0.99', 'strong_gpt2', ('optimizer.beta2',)),
    ('strong_ultra:beta2=0.99', 'strong_ultra', ('optimizer.beta2',)),
    ('best_no_superbpe', 'best', ('data.tokenizer', 'model.vocab_size')),
    ('best_no_fp8', 'best', ('precision.matmul',)),
    ('best_no_curriculum', 'best', ('curriculum.stages',)),
    ('best_no_fused', 'best', ('training.execution',)),
    ('best_no_batch', 'best', ('curriculum.stages', 'optimizer.batch_lr_scaling')),
    ('part_rmsnorm_swiglu', 'baseline_gpt2', ('model.norm', 'model.activation', 'model.d_hidden')),
    ('part_gqa', 'baseline_gpt2', ('model.n_kv_heads',)),
  ],
)
def test_what_an_experiment_changes(name, against, fields):
  lines = [line for line in differing_fields(to_dict(spec(against)), to_dict(spec(name))) if not line.startswith('name:')]
  assert all(line.startswith(fields) for line in lines), lines
  assert all(any(line.startswith(field) for line in lines) for field in fields)


def test_the_timeline_has_the_missions_tokens():
  shares = token_shares(spec('ultra_curriculum:shape=timeline').curriculum)
  phases = [sum(shares[:2]), sum(shares[2:4]), sum(shares[4:6]), sum(shares[6:])]
  assert phases == pytest.approx([200 / 2600, 400 / 2600, 800 / 2600, 1200 / 2600])


def test_windows_are_ultras_lengths_for_ultras_tokens():
  by_window, ten = spec('ultra_curriculum:shape=window').curriculum, spec('ultra').curriculum
  assert [s.context for s in by_window.stages] == [s.seq_len for s in ten.stages]
  assert {(s.seq_len, s.batch_size) for s in by_window.stages} == {(2048, 64)}
  assert token_shares(by_window) == pytest.approx(token_shares(ten))


@pytest.mark.parametrize('variant', ['shape=timeline,lr_scale=false', 'shape=window'])
def test_starts_are_to_the_last_bit_those_of_another_python(variant):
  """A run of Python 3.12, whose `sum` rounds in another way, goes on under any other."""
  runs = registry.experiments_folder() / 'records' / '2026-11-30_ablate' / '120s'
  recorded = json.loads((runs / f'ultra_curriculum-{variant.replace(",", "-")}' / 'seed0' / 'config.json').read_text())
  starts = [stage['step_share_start'] for stage in recorded['curriculum']['stages']]
  assert [stage.step_share_start for stage in stages(variant)] == starts


@pytest.mark.parametrize('shape', ['ten', 'constant', 'from32', 'late', 'timeline', 'window'])
def test_every_shape_runs_without_rate_scales(shape):
  with_scale, without = stages(f'shape={shape}'), stages(f'shape={shape},lr_scale=false')
  assert {s.lr_scale for s in without} == {1.0}
  assert [(s.seq_len, s.step_share_start) for s in with_scale] == [(s.seq_len, s.step_share_start) for s in without]


def test_batch_warm_up_splits_one_stage_and_keeps_the_tokens():
  plain, warmed = spec('ultra').curriculum, spec('ultra_batch_warmup:until=0.15,divisor=4').curriculum
  assert [s.batch_size for s in warmed.stages[:6]] == [2048, 2048, 1024, 512, 256, 1024]
  assert [s.seq_len for s in warmed.stages[:6]] == [8, 16, 32, 64, 128, 128]
  assert warmed.stages[6:] == plain.stages[5:]
  by_length = {}
  for stage, share in zip(warmed.stages, token_shares(warmed), strict=True):
    by_length[stage.seq_len] = by_length.get(stage.seq_len, 0) + share
  assert list(by_length.values()) == pytest.approx(token_shares(plain))


def test_swiglu_weighs_what_gelu_did():
  counts = [spec(name).model.parameter_count() for name in ('baseline_gpt2', 'part_rmsnorm_swiglu')]
  assert counts[1] == pytest.approx(counts[0], rel=1e-4)


def test_best_has_as_many_tokens_of_every_length_where_its_last_is_as_the_others():
  curriculum = spec('best:lengths=256-512-2048,last_share=0').curriculum
  assert [(s.seq_len, s.tokens_per_step) for s in curriculum.stages] == [(256, 32_768), (512, 32_768), (2048, 32_768)]
  assert token_shares(curriculum) == pytest.approx([1 / 3] * 3)
  for wrong in ('512-x', '0-512', ''):
    with pytest.raises(ValueError, match=f"'lengths' of the experiment: got '{wrong}', wants lengths of rows"):
      spec(f'best:lengths={wrong}')


def test_the_steps_of_best_grow_and_its_lengths_keep_their_tokens():
  curriculum = spec(f'best:{FOUR},last_share=0,step_tokens=16384-32768-32768-65536').curriculum
  assert [s.tokens_per_step for s in curriculum.stages] == [16_384, 32_768, 32_768, 65_536]
  assert token_shares(curriculum) == pytest.approx([1 / 4] * 4)
  for wrong in ('', '0', '32768-', '16384-32768', '2049', 'many'):
    wants = 'wants tokens of a step, such as 32768, or one for each of 4 stages, in whole rows'
    with pytest.raises(ValueError, match=f"'step_tokens' of the experiment: got '{wrong}', {wants}"):
      spec(f'best:{FOUR},step_tokens={wrong}')


def test_the_last_stage_of_best_takes_the_share_of_the_tokens_that_it_is_given():
  assert token_shares(spec('best').curriculum) == pytest.approx([0.98 / 6] * 6 + [0.02])
  assert token_shares(spec(f'best:{FOUR},last_share=0.1').curriculum) == pytest.approx([0.3, 0.3, 0.3, 0.1])
  assert token_shares(spec('best:lengths=2048,layers=all').curriculum) == [1.0]
  for wrong in ('1', '-0.1'):
    with pytest.raises(
      ValueError, match=f"'last_share' of the experiment: got {wrong}, wants a share of the tokens, at least 0"
    ):
      spec(f'best:last_share={wrong}')


@pytest.mark.parametrize(
  ('text', 'blocks'),
  [
    ('10-all', [10, 10, 10, 28]),
    ('7-14-28', [7, 7, 14, 28]),
    ('4-7-14-all', [4, 7, 14, 28]),
    ('2-4-7-14-all', [4, 7, 14, 28]),
    ('all', [28] * 4),
  ],
)
def test_the_blocks_of_best_are_told_from_its_last_stage(text, blocks):
  best = spec(f'best:{FOUR},layers={text}')
  assert [best.model_of(stage).n_layers for stage in best.curriculum.stages] == blocks
  assert best.model.n_layers == 28


@pytest.mark.parametrize('wrong', ['', '0-all', 'ten', '10-'])
def test_wrong_numbers_of_blocks_are_told(wrong):
  wants = "wants numbers of blocks, or 'all', such as 10-all"
  with pytest.raises(ValueError, match=f"'layers' of the experiment: got '{wrong}', {wants}"):
    spec(f'best:layers={wrong}')


def test_a_smaller_step_of_best_has_a_lower_rate():
  (stage, *_) = Curriculum(spec('best_no_batch')).stages
  assert stage.spec.tokens_per_step == 12_288
  assert stage.lr_factor == pytest.approx((12_288 / 32_768) ** 0.5)
  assert Curriculum(spec(f'best:{FOUR},step_tokens=16384-32768-32768-65536')).stages[0].lr_factor == 1.0
