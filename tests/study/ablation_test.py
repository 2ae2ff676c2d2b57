"""The tables of an ablation on runs whose factors are known."""

import pytest

from tests.study.pairs_test import run
from yxanul.config import registry
from yxanul.study import ablation

TIMES = (1, 2, 4, 8, 16)
BPB = (4.0, 3.0, 2.5, 2.2, 2.0)


def at_speed(factor, **fields):
  """The same curve, `factor` times as fast."""
  return run([t / factor for t in TIMES], BPB, tokens_per_second=100 * factor, **fields)


def family(**factors):
  return {name: {0: at_speed(factor)} for name, factor in factors.items()}


WHOLE = family(
  baseline_gpt2=1.0,
  baseline_superbpe=1.6,
  baseline_fp8=1.5,
  baseline_curriculum=0.8,
  baseline_fused=1.2,
  baseline_batch=1.1,
  ultra=4.0,
  ultra_no_superbpe=2.0,
  ultra_no_fp8=3.0,
  ultra_no_curriculum=5.0,
  ultra_no_fused=2.5,
  ultra_no_batch=4.0,
  strong_gpt2=3.0,
  strong_ultra=2.0,
)


def test_the_family_is_the_issues_list():
  names = ablation.family(registry.experiments_folder() / 'ultra.py')
  savings = ('superbpe', 'fp8', 'curriculum', 'fused', 'batch')
  assert names[:4] == ['baseline_gpt2', 'ultra', 'strong_gpt2', 'strong_ultra']
  savings = [f'baseline_{s}' for s in savings] + [f'ultra_no_{s}' for s in savings]
  assert names[4:] == [*savings, 'part_rmsnorm_swiglu', 'part_gqa']
  # Another experiment has the baselines, and no runs with a saving off until somebody writes them.
  assert ablation.family(registry.experiments_folder() / 'ultra_muon.py')[:2] == ['baseline_gpt2', 'ultra_muon']


def test_factors_alone_and_in_the_stack_their_product_and_the_total():
  rows = {row['saving']: row for row in ablation.factor_rows(WHOLE, 'ultra')}
  alone = {name: row['alone']['factor'] for name, row in rows.items()}
  in_stack = {name: row['in_stack']['factor'] for name, row in rows.items()}
  assert alone == pytest.approx(
    dict(superbpe=1.6, fp8=1.5, curriculum=0.8, fused=1.2, batch=1.1)
    | {'product': 1.6 * 1.5 * 0.8 * 1.2 * 1.1, 'measured together': 4.0}
  )
  assert in_stack == pytest.approx(
    dict(superbpe=2.0, fp8=4 / 3, curriculum=0.8, fused=1.6, batch=1.0)
    | {'product': 2 * 4 / 3 * 0.8 * 1.6, 'measured together': 4.0}
  )
  assert {name: row['claimed'] for name, row in rows.items()} == dict(
    superbpe=1.6, fp8=2.0, curriculum=3.0, fused=1.2, batch=1.3
  ) | {'product': 15.0, 'measured together': 15.0}
  assert {name: row['says'] for name, row in rows.items() if row['says']} == {
    'superbpe': 'reaches the claim alone and in the stack',
    'fp8': 'helps alone and in the stack, by less than claimed',
    'curriculum': 'gives nothing',
    'fused': 'reaches the claim alone and in the stack',
    'batch': 'helps alone, by less than claimed',
    'measured together': 'falls short of the claim',
  }


def test_what_is_not_measured_is_not_guessed():
  some = {name: WHOLE[name] for name in ('baseline_gpt2', 'ultra', 'baseline_fp8')}
  rows = {row['saving']: row for row in ablation.factor_rows(some, 'ultra')}
  assert rows['superbpe'] == {'saving': 'superbpe', 'claimed': 1.6, 'alone': None, 'in_stack': None, 'says': 'not measured'}
  assert rows['product']['alone'] is None
  assert rows['fp8']['alone']['factor'] == pytest.approx(1.5)


def test_rows_reach_the_baselines_final_figure_or_say_nothing():
  worse = {'late': {0: run(TIMES, [y + 0.5 for y in BPB])}}
  rows = {row['name']: row for row in ablation.run_rows(WHOLE | worse)}
  assert rows['baseline_gpt2']['seconds_to_target'] == 16
  assert rows['ultra']['seconds_to_target'] == 4
  assert rows['ultra']['bytes_to_target'] == rows['baseline_gpt2']['bytes_to_target'] == 6400
  assert rows['ultra']['bytes_per_second'] == 1600
  assert rows['late']['seconds_to_target'] is rows['late']['bytes_to_target'] is None
  assert rows['ultra']['seconds_warming'] == 1.0


def test_goals_are_for_the_baseline_and_the_better_strong_one():
  better = run([t / 3 for t in TIMES], [y - 0.01 for y in BPB], tokens_per_second=300)
  rows = {row['against']: row for row in ablation.goal_rows(WHOLE | {'strong_gpt2': {0: better}}, 'ultra')}
  assert {name: row['goal'] for name, row in rows.items()} == {'baseline_gpt2': 15.0, 'strong_gpt2': 3.0, 'strong_ultra': None}
  assert rows['baseline_gpt2']['says'] == '4.00 times as fast to equal quality: the goal of 15 is missed'
  assert 'the goal of 3 is missed' in rows['strong_gpt2']['says']
  assert rows['strong_ultra']['says'] == '2.00 times as fast to equal quality'
  # A variant of a strong baseline, such as another rate, is one too: the best of them is the one to beat.
  tuned = {'strong_ultra-lr=2e-3': {0: run([t / 3 for t in TIMES], [y - 0.02 for y in BPB], tokens_per_second=300)}}
  assert ablation.best_strong(WHOLE | tuned) == 'strong_ultra-lr=2e-3'
  fast = {'ultra': {0: at_speed(20.0)}}
  assert ablation.goal_rows(WHOLE | fast, 'ultra')[0]['says'].endswith('the goal of 15 is met')


def test_seeds_are_paired_and_their_spread_is_told():
  runs = {
    'baseline_gpt2': {0: at_speed(1.0), 1: at_speed(2.0)},
    'ultra': {1: at_speed(4.0), 0: at_speed(8.0), 2: at_speed(9.0)},
  }
  found = ablation.factor(runs, 'baseline_gpt2', 'ultra')
  assert (found['factor'], found['n']) == (pytest.approx(4.0), 2)  # 8 and 2, whatever the third did
  assert found['low'] < 2 < 8 < found['high']


def test_the_trend_takes_the_experiments_longest_run_that_is_no_longer():
  by_budget = {
    16: WHOLE,
    64: {'baseline_gpt2': {0: run([4 * t for t in TIMES], [y - 0.1 for y in BPB])}},
    2: {'baseline_fp8': WHOLE['baseline_fp8']},
  }
  rows = ablation.trend_rows(by_budget, 'ultra')
  assert [(row['seconds'], row['own_seconds']) for row in rows] == [(16, 16), (64, 16)]
  assert rows[0]['baseline']['factor'] == pytest.approx(4.0)
  # The longer baseline ends at 1.9; ultra ends at 2.0 after 4 s, where the baseline is after half of its last stretch.
  assert rows[1]['baseline']['factor'] == pytest.approx(48 / 4)
  figures = ablation.result(by_budget, 'ultra', 16)['figures']
  assert figures['speedup_vs_fp32_baseline_64s'] == {'value': pytest.approx(12.0), 'unit': 'times'}
  assert figures['factor_fp8_alone']['value'] == pytest.approx(1.5)


def test_notes_warn_of_what_makes_a_table_worthless():
  def notes(**fields):
    runs = {'baseline_gpt2': {0: at_speed(1.0)}, 'ultra': {0: at_speed(1.0, **fields)}}
    return ' '.join(ablation.result({16: runs}, 'ultra', 16)['notes'])

  assert notes() == 'a factor of one seed has no interval'
  assert 'different machines: a card, another' in notes(hardware='another')
  assert 'steps were skipped in ultra' in notes(skipped_steps=3)
  other = at_speed(1.0)
  other.evaluations[-1]['val_bytes'] = 999
  runs = {'baseline_gpt2': {0: at_speed(1.0)}, 'ultra': {0: other}}
  assert 'not scored on the same text (999, 1,000 bytes)' in ablation.result({16: runs}, 'ultra', 16)['notes'][0]
  assert 'ultra 16.0 s' in ' '.join(ablation.result({20: runs}, 'ultra', 20)['notes'])
