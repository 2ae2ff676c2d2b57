"""Plans: sums, limits, cards without FP8, phases, claims, and a plan against a bench."""

import dataclasses

import pytest

from tests.planning.speed_test import H200, ULTRA, experiment
from yxanul.planning import check, claims, flops, gpus, plan
from yxanul.training.curriculum import Curriculum


def stages_of(spec, card=None, devices=1):
  return [(stage.spec, stage.n_steps) for stage in Curriculum(spec).stages]


@pytest.fixture(scope='module')
def ultra():
  return plan.make(ULTRA, stages_of(ULTRA), H200)


def test_the_whole_is_the_sum_of_the_stages(ultra):
  total, stages = ultra['total'], ultra['stages']
  assert total['tokens'] == Curriculum(ULTRA).total_tokens == sum(row['steps'] * row['tokens_per_step'] for row in stages)
  assert total['seconds'] == pytest.approx(sum(row['steps'] * row['ms'] / 1e3 for row in stages))
  assert total['tokens_per_second'] * total['seconds'] == pytest.approx(total['tokens'])
  assert sum(ultra['parameters'].values()) == total['parameters'] == 196_398_464
  assert total['mfu'] == pytest.approx(total['flops'] / total['seconds'] / 1979e12)
  assert ultra['notes'] == []


def test_a_stage_of_some_blocks_computes_as_much_as_the_model_of_those():
  best = experiment('best.py:layers=7-all')
  made = plan.make(best, stages_of(best), H200)
  assert [row['n_layers'] for row in made['stages']] == [7] * (len(best.curriculum.stages) - 1) + [28]
  for row, n_layers in ((made['stages'][0], 7), (made['stages'][-1], 28)):
    small = dataclasses.replace(best.model, n_layers=n_layers)
    assert row['flops'] == flops.flops_per_token(small, row['seq_len']) * row['tokens']
    assert row['mfu'] == pytest.approx(row['flops'] / row['seconds'] / H200.peak_flops('fp8'))


def test_memory_is_the_sum_of_its_parts_and_leaves_room(ultra):
  for row in ultra['stages']:
    assert sum(row['memory'].values()) == row['memory_bytes'] == ultra['memory_limit_bytes'] - row['free_bytes']
    assert row['memory_bytes'] < 0.85 * 141e9
    assert row['batch_size'] / row['parts'] <= row['largest_batch'] < row['batch_size']


def test_phases_cover_the_run_in_order(ultra):
  names = [row['phase'] for row in ultra['phases']]
  assert names == ['Warmup', 'Foundation', 'Building', 'Mastery']
  assert [row['lengths'] for row in ultra['phases']] == [[8, 16], [32, 64], [128, 256], [512, 2048]]
  assert sum(row['tokens'] for row in ultra['phases']) == ultra['total']['tokens']
  assert sum(row['share'] for row in ultra['phases']) == pytest.approx(1)
  assert ultra['phases'][-1]['end_seconds'] == pytest.approx(ultra['total']['seconds'])


def test_a_card_without_fp8_runs_bf16_and_the_plan_says_so():
  spec = experiment('ultra.py:gpu=a100-40')
  made = plan.make(spec, stages_of(spec), gpus.gpu('a100-40'))
  assert made['linears'] == 'bf16'
  assert made['stages'][0]['ms_by_part']['casts'] == 0
  assert any('no FP8 tensor cores' in note for note in made['notes'])
  assert any('extrapolated' in note for note in made['notes'])


def test_a_stage_that_does_not_fit_is_a_line_and_an_offer_without_hours():
  big = dataclasses.replace(ULTRA.model, n_layers=28 * 64)
  spec = dataclasses.replace(ULTRA, model=big)
  with pytest.raises(ValueError, match=r'stage 1 \(length 8\): its smallest part needs about'):
    plan.make(spec, stages_of(spec), H200)
  row = plan.provider_row(spec, stages_of, gpus.OFFERS[0])
  assert (row['hours'], row['dollars'], row['tokens_per_second']) == (None, None, None)


def test_an_offer_costs_its_hours_and_three_epochs_three_times_as_many():
  offer = gpus.Offer('here', 'h100', 1, 2.0, 9.0, 54.0)
  (row,) = claims.implied([plan.provider_row(ULTRA, stages_of, offer)])
  assert row['dollars'] == pytest.approx(2.0 * row['hours'])
  assert row['hours_3_epochs'] == pytest.approx(3 * row['hours'], rel=0.01)
  assert row['claimed_tokens_per_second'] == pytest.approx(7.83e9 / 9 / 3600)


def test_the_arithmetic_of_the_claims(ultra):
  rates = {'bf16': ultra['total']['tokens_per_second'] / 1.3, 'h100': 350e3}
  rows = {row['claim']: row for row in claims.checks(ULTRA, ultra, rates)}
  fp8 = rows['FP8: 2.0 times the throughput']
  assert (fp8['claimed'], fp8['computed'], fp8['holds']) == (2.0, pytest.approx(1.3), False)
  assert rows['H100: at least 250,000 tokens/s']['holds']
  needs = {limit: next(r for claim, r in rows.items() if f'fits in {limit} GB (most' in claim) for limit in (24, 80, 141)}
  assert not any(row['holds'] for row in needs.values())
  assert 2 * needs[24]['computed'] > needs[80]['computed'] > 1.9 * needs[24]['computed']
  wrong = rows['RTX 4090: 3 epochs at 60k tokens/s in 6 h']
  assert (wrong['computed'], wrong['claimed'], wrong['holds']) == (1.296e9, 7.83e9, False)
  assert not rows['batch 8,192 at length 8 fits in 24 GB']['holds']
  assert not rows['Warmup (8 to 16)']['holds']
  for claim in (
    '196,398,464 parameters',
    'SuperBPE takes 37.5 % fewer tokens',
    'the five savings make 15 times',
    'Lambda: $54',
  ):
    assert rows[claim]['holds'], claim


def test_a_bench_beside_the_plan(ultra):
  rows = [
    {
      'stage': row['stage'],
      'seq_len': row['seq_len'],
      'tokens_per_step': row['tokens_per_step'],
      'pieces': row['parts'],
      'ms': 1.0,
    }
    | {'tokens_per_second': row['tokens_per_second'] / 1.05, 'peak_bytes': int(row['memory_bytes'] / 0.96)}
    for row in ultra['stages']
  ]
  rows[3]['tokens_per_second'] = ultra['stages'][3]['tokens_per_second'] / 0.92
  rows.append({'stage': 11, 'token_share': 0.1, 'error': 'out of memory'})
  whole = {'complete': True, 'tokens_per_second': ultra['total']['tokens_per_second'] / 1.04}
  result = check.compare(ultra, {'experiment': 'ultra', 'stages': rows, 'schedule': whole})
  figures = {name: figure['value'] for name, figure in result['figures'].items()}
  assert figures == pytest.approx({'speed_error_max': 0.08, 'memory_error_max': 0.04, 'speed_error_schedule': 0.04}, abs=1e-6)
  assert [row['stage'] for row in result['stages']] == list(range(1, 11))
  with pytest.raises(ValueError, match='the bench timed no stage of this plan'):
    check.compare(
      ultra, {'experiment': 'other', 'stages': [{'stage': 1, 'seq_len': 8, 'ms': 1.0, 'tokens_per_step': 7}], 'schedule': None}
    )


def test_an_offer_fills_its_own_card_whatever_limit_was_set_for_another():
  offer = gpus.Offer('here', 'h200', 1, 2.0)
  small = dataclasses.replace(ULTRA, training=dataclasses.replace(ULTRA.training, gpu_memory_gb=20.9))
  hours = [plan.provider_row(spec, stages_of, offer)['hours'] for spec in (ULTRA, small)]
  assert hours[0] == hours[1]
  assert hours[0] < plan.make(small, stages_of(small), H200)['total']['seconds'] / 3600
