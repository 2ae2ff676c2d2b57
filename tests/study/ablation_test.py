"""The tables of an ablation on runs whose factors are known."""

import pytest

from tests.study.pairs_test import run
from yxanul.config import registry
from yxanul.study import ablation, ablation_run

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
    'superbpe': 'reaches the claim, alone and in the stack',
    'fp8': 'helps, by less than claimed, alone and in the stack',
    'curriculum': 'gives nothing, alone and in the stack',
    'fused': 'reaches the claim, alone and in the stack',
    'batch': 'helps, by less than claimed alone; gives nothing in the stack',
    'measured together': 'helps, by less than claimed',
  }


def test_a_factor_is_text_a_second_times_what_is_made_of_it():
  """Four times the text a second, of which it needs twice as much: twice as fast."""
  wasteful = {'ultra': {0: run([t / 2 for t in TIMES], BPB, tokens_per_second=400)}}
  found = ablation.factor(WHOLE | wasteful, 'baseline_gpt2', 'ultra')
  assert (found['factor'], found['rate_factor'], found['bytes_factor']) == pytest.approx((2.0, 4.0, 0.5))
  # Read on to its end at another speed, it is no other factor: what counts is up to equal quality.
  faster_later = run([*(t / 2 for t in TIMES), 9], [*BPB, 1.9], tokens_per_second=400, bytes=8 * 400 * 9)
  assert ablation.factor(WHOLE | {'ultra': {0: faster_later}}, 'baseline_gpt2', 'ultra')['rate_factor'] == pytest.approx(4.0)


def seeds(*factors, name='ultra'):
  return {name: {seed: at_speed(factor) for seed, factor in enumerate(factors)}}


def test_what_the_interval_does_not_decide_is_not_decided():
  """Two seeds at 10 and 30 times are 17 in the middle, and anything between 0.02 and 18,000."""
  base = seeds(1.0, 1.0, 1.0, name='baseline_gpt2')

  def says(*factors):
    runs = base | seeds(*factors)
    total = {row['saving']: row for row in ablation.factor_rows(runs, 'ultra')}['measured together']['says']
    return total, ablation.goal_rows({16: runs}, 16, 'ultra')[0]['says'].partition('; ')[2]

  assert says(10.0, 30.0) == (
    'may reach the claim: the interval includes it',
    'the goal of 15 is open: the interval includes it',
  )
  assert says(20.0, 20.1, 20.2) == ('reaches the claim', 'the goal of 15 is met')
  assert says(5.0, 5.1, 5.2) == ('helps, by less than claimed', 'the goal of 15 is missed')
  assert says(1.1, 0.9, 1.0) == ('may help, by less than claimed', 'the goal of 15 is missed')
  assert says(20.0) == ('reaches the claim', 'the goal of 15 is met (one seed)')


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
  runs = WHOLE | {'strong_gpt2': {0: better}}
  rows = {row['against']: row for row in ablation.goal_rows({16: runs}, 16, 'ultra')}
  assert {name: row['goal'] for name, row in rows.items()} == {'baseline_gpt2': 15.0, 'strong_gpt2': 3.0, 'strong_ultra': None}
  assert rows['baseline_gpt2']['says'] == (
    '4.00 times as soon where that one ends after 16 s, in its run of 16 s; the goal of 15 is missed (one seed)'
  )
  # The better one ends where ultra never was, however close: that is no factor.
  assert rows['strong_gpt2']['says'] == (
    'not reached: its end after 16 s is 0.0100 bits per byte above, where that one is 1.30 times as late, on its way; '
    'the goal of 3 is missed'
  )
  assert rows['strong_gpt2']['measured']['factor'] is None
  assert rows['strong_ultra']['says'] == '2.00 times as soon where that one ends after 16 s, in its run of 16 s'
  much_better = {'strong_gpt2': {0: run([t / 12 for t in TIMES], [y - 0.01 for y in BPB], tokens_per_second=300)}}
  says = ablation.goal_rows({16: WHOLE | much_better}, 16, 'ultra')[1]['says']
  assert ', where that one is 3.08 times as soon, on its way; ' in says, says
  # A variant of a strong baseline, such as another rate, is one too: the best of them is the one to beat.
  tuned = {'strong_ultra-lr=2e-3': {0: run([t / 3 for t in TIMES], [y - 0.02 for y in BPB], tokens_per_second=300)}}
  assert ablation.best_strong(WHOLE | tuned) == 'strong_ultra-lr=2e-3'


def test_seeds_are_paired_and_their_spread_is_told():
  runs = {
    'baseline_gpt2': {0: at_speed(1.0), 1: at_speed(2.0)},
    'ultra': {1: at_speed(4.0), 0: at_speed(8.0), 2: at_speed(9.0)},
  }
  found = ablation.factor(runs, 'baseline_gpt2', 'ultra')
  assert (found['factor'], found['n']) == (pytest.approx(4.0), 2)  # 8 and 2, whatever the third did
  assert found['low'] < 2 < 8 < found['high']


def test_of_the_experiments_runs_the_one_that_comes_there_first_counts():
  """Each was annealed to its own end: the short one is there after 2 s, the long one passes it after 4, one never comes."""
  short, long = run([0.5, 1, 2], [3.0, 2.5, 1.99]), run([1, 4, 8], [3.0, 2.0, 1.8])
  poor = run([0.25, 0.5], [4.0, 2.2])
  by_budget = {
    16: {'baseline_gpt2': {0: at_speed(1.0)}, 'ultra': {0: long}},
    2: {'ultra': {0: short}},
    0.5: {'ultra': {0: poor}},
  }
  found = ablation.headline(by_budget, 16, 'baseline_gpt2', 'ultra')
  assert found['own_seconds'] == 2
  assert found['factor'] == pytest.approx(16 / (1 + 0.5 / 0.51))
  # What more seeds have is believed before what one has.
  by_budget[16] = {'baseline_gpt2': {0: at_speed(1.0), 1: at_speed(1.0)}, 'ultra': {0: long, 1: long}}
  found = ablation.headline(by_budget, 16, 'baseline_gpt2', 'ultra')
  assert (found['own_seconds'], found['n'], found['factor']) == (16, 2, pytest.approx(4.0))
  # One of two seeds that came there is not "there", and no reason to believe another budget's only seed.
  late = run([1, 4, 8], [3.0, 2.1, 2.03])
  by_budget[16]['ultra'] = {0: long, 1: late}
  found = ablation.headline(by_budget, 16, 'baseline_gpt2', 'ultra')
  assert (found['factor'], found['own_seconds'], found['n'], found['short']) == (None, 16, 2, pytest.approx(0.03))
  says = ablation.goal_rows(by_budget, 16, 'ultra')[0]['says']
  assert says == (
    'not reached: its end after 16 s is 0.0300 bits per byte above (the farthest of 2 seeds); the goal of 15 is missed'
  )
  del by_budget[16]['ultra'], by_budget[2]
  found = ablation.headline(by_budget, 16, 'baseline_gpt2', 'ultra')
  assert (found['factor'], found['own_seconds'], found['short']) == (None, 0.5, pytest.approx(0.2))
  assert ablation.headline(by_budget, 0.5, 'baseline_gpt2', 'ultra') is None


def test_the_trend_is_over_the_baselines_budgets():
  by_budget = {
    16: WHOLE,
    64: {'baseline_gpt2': {0: run([4 * t for t in TIMES], [y - 0.1 for y in BPB])}},
    32: {'baseline_gpt2': {0: run([2 * t for t in TIMES], BPB)}},
    2: {'strong_gpt2-lr=0.001': WHOLE['baseline_fp8']},  # a trial of its rate
  }
  rows = ablation.trend_rows(by_budget, 'ultra')
  assert [row['seconds'] for row in rows] == [16, 32, 64]
  assert [row['baseline']['factor'] for row in rows] == [pytest.approx(4.0), pytest.approx(8.0), None]
  figures = ablation.result(by_budget, 'ultra', 16)['figures']
  assert figures['speedup_vs_fp32_baseline_32s'] == {'value': pytest.approx(8.0), 'unit': 'times'}
  assert 'speedup_vs_fp32_baseline_64s' not in figures
  assert figures['factor_fp8_alone']['value'] == pytest.approx(1.5)
  assert figures['final_bpb_ultra'] == {'value': 2.0, 'unit': 'bits per byte'}


def test_variants_are_measured_against_the_experiment():
  better = run([t / 8 for t in TIMES], [y - 0.05 for y in BPB], tokens_per_second=800)
  rows = ablation.variant_rows(WHOLE | {'ultra_curriculum-shape=late': {0: better}}, 'ultra')
  assert [row['name'] for row in rows] == ['ultra_curriculum-shape=late']
  assert rows[0]['final_difference'] == pytest.approx(-0.05)
  assert rows[0]['factor']['factor'] > 2


def test_rates_by_rule_of_thumb_and_rates_at_an_end_are_told():
  (note,) = ablation.tuning_notes([], WHOLE)
  assert note == 'the learning rate of strong_gpt2 and strong_ultra is a rule of thumb: --rates tunes it'
  tuned = {'ultra': WHOLE['ultra'], 'strong_gpt2-lr=0.002': {0: run(TIMES, BPB, peak_lr=2e-3)}}
  rows = ablation.rate_rows('strong_gpt2', {5e-4: 2.2, 1e-3: 2.1, 2e-3: 2.0})
  (note,) = ablation.tuning_notes(rows, tuned)
  assert note == 'strong_gpt2 did best at 0.002, an end of the rates that were tried: another may be better'
  # A rate that led nowhere was tried.
  for bpb in (2.1, None):
    assert ablation.tuning_notes(ablation.rate_rows('strong_gpt2', {1e-3: 2.1, 2e-3: 2.0, 4e-3: bpb}), tuned) == []
  nothing_yet = ablation.rate_rows('strong_gpt2', dict.fromkeys((1e-3, 2e-3)))
  assert 'is a rule of thumb' in ablation.tuning_notes(nothing_yet, tuned)[0]


def test_rates_that_were_tried_as_variants_are_rates_that_were_tried():
  """So that a baseline at one rate of somebody's choice does not pass for a tuned one."""

  def at_rate(rate, above, seeds=(0, 1), **fields):
    speed = 100.0 + 1000 * rate  # each was timed by itself, so the tokens of its budget are others
    return {
      f'strong_gpt2-lr={rate:g}': {
        s: run(TIMES, [y + above + s for y in BPB], speed, seed=s, peak_lr=rate, **fields) for s in seeds
      }
    }

  one = at_rate(1e-3, 0.1)
  assert ablation.tuning_notes([], one) == ['the learning rate of strong_gpt2 is a rule of thumb: --rates tunes it']
  two = one | at_rate(2e-3, 0.0)
  assert 'strong_gpt2 did best at 0.002, an end' in ablation.tuning_notes([], two)[0]
  assert ablation.tuning_notes([], two | at_rate(4e-3, 0.2)) == []
  assert ablation.tuning_notes([], two | at_rate(4e-3, 0.2, seeds=(1,))) == []
  # Rates that were tuned in shorter runs, and one beyond their end in a whole one.
  tuning = ablation.rate_rows('strong_gpt2', {5e-4: 2.2, 1e-3: 2.1, 2e-3: 2.0})
  assert 'an end' in ablation.tuning_notes(tuning, two)[0]
  assert ablation.tuning_notes(tuning, two | at_rate(4e-3, 0.2)) == []
  assert 'strong_gpt2 did best at 0.004, an end' in ablation.tuning_notes(tuning, two | at_rate(4e-3, -0.2))[0]
  # What differs in more than the rate says nothing of the rate.
  assert 'an end' in ablation.tuning_notes([], two | at_rate(4e-3, 0.2, name='another batch'))[0]


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
  uneven = {'baseline_gpt2': {0: at_speed(1.0), 1: at_speed(1.0)}, 'ultra': {i: at_speed(1.0) for i in range(3)}}
  assert ablation.result({16: uneven}, 'ultra', 16)['notes'] == []
  assert 'ultra 16.0 s' in ' '.join(ablation.result({20: runs}, 'ultra', 20)['notes'])


def test_variants_of_an_experiment_share_a_plot_and_every_run_is_in_one():
  curricula = [f'ultra_curriculum-shape={shape}' for shape in ('from32', 'late', 'ten', 'timeline', 'window', 'x', 'y')]
  more = [*curricula, 'part_gqa', 'part_rmsnorm_swiglu', 'ultra_head-projection_std=0.1', 'strong_gpt2-lr=0.1']
  runs = WHOLE | {name: {0: at_speed(2.5)} for name in more}
  panels = {title: list(its) for title, its in ablation_run._panels(list(runs), runs, 'ultra').items()}
  shared = ['baseline_gpt2', 'ultra']
  assert panels['ultra_curriculum'] == [*shared, *curricula[:6]]
  assert panels['ultra_curriculum, 2'] == [*shared, curricula[6]]
  assert panels['strong_gpt2'] == [*shared, 'strong_gpt2', 'strong_gpt2-lr=0.1']
  assert panels['Others'] == [*shared, 'strong_ultra', 'part_gqa', 'part_rmsnorm_swiglu', 'ultra_head-projection_std=0.1']
  assert panels['The stack'][-1] == 'strong_gpt2'  # the better of the strong ones
  assert {name for its in panels.values() for name in its} == set(runs)
  assert all(len(its) <= 8 for its in panels.values())
