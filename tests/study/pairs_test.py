"""Paired comparisons and their intervals, on runs whose curves are known."""

import dataclasses
import math

import pytest

from yxanul.reporting.run_files import RunFiles
from yxanul.study import pairs


def run(seconds, bpb, tokens_per_second=100.0, name='x', seed=0, peak_lr=1e-3, **result) -> RunFiles:
  """A finished run with these evaluations; four bytes a token."""
  evaluations = [
    {'val_bpb': y, 'seconds_training': t, 'tokens': t * tokens_per_second, 'val_bytes': 1000, 'eval_seq_len': 8}
    for t, y in zip(seconds, bpb, strict=True)
  ]
  tokens = seconds[-1] * tokens_per_second
  training = [{'tokens': n, 'bytes': 4 * n} for n in (tokens / 2, tokens)]
  totals = {'tokens': tokens, 'bytes': 4 * tokens, 'seconds_training': float(seconds[-1]), 'seconds_warming': 1.0}
  result = {**totals, 'skipped_steps': 0, 'hardware': 'a card', 'versions': {}, **result}
  config = {'name': name, 'seed': seed, 'optimizer': {'peak_lr': peak_lr}, 'curriculum': {'budget_tokens': tokens}}
  return RunFiles(None, config, training, evaluations, [], result, None)


SLOW = run([10, 20, 40], [3.0, 2.0, 1.5])
FAST = run([10, 20], [2.0, 1.25], tokens_per_second=300.0)


def test_equal_time_is_the_shorter_runs_end_and_equal_quality_the_worse_runs():
  pair = pairs.compare(SLOW, FAST)
  assert (pair['at_seconds'], pair['bpb_a'], pair['bpb_b']) == (20, 2.0, 1.25)
  assert pair['difference'] == -0.75
  # The slow run ends at 1.5, which the fast one passes two thirds of the way from 2.0 to 1.25.
  assert pair['target_bpb'] == 1.5
  assert pair['seconds_a'] == 40
  assert pair['seconds_b'] == pytest.approx(10 + 10 * 2 / 3)
  assert pair['speedup'] == pytest.approx(40 / (10 + 10 * 2 / 3))
  assert pair['bytes_ratio'] == pytest.approx(40 * 400 / ((10 + 10 * 2 / 3) * 1200))


def test_swapping_the_runs_turns_the_comparison_round():
  there, back = pairs.compare(SLOW, FAST), pairs.compare(FAST, SLOW)
  assert back['difference'] == -there['difference']
  assert back['speedup'] == pytest.approx(1 / there['speedup'])


def test_a_run_against_itself_is_nothing():
  pair = pairs.compare(SLOW, SLOW)
  assert (pair['difference'], pair['speedup'], pair['bytes_ratio']) == (0.0, 1.0, 1.0)


def test_intervals_are_students():
  # t(0.975, 2) = 4.3027: three values are worth little.
  found = pairs.interval([1.0, 2.0, 3.0])
  half = 4.302653 / math.sqrt(3)
  assert (found.mean, found.low, found.high) == (2.0, pytest.approx(2 - half), pytest.approx(2 + half))
  assert pairs.interval([1.0]) == pairs.Interval(1.0, None, None, 1)
  ratios = pairs.geometric([0.5, 2.0])
  assert ratios.mean == pytest.approx(1.0)
  assert ratios.low == pytest.approx(1 / ratios.high)


def test_an_interval_holds_the_truth_as_often_as_it_says():
  """5,000 samples of four normal values: 95 % of the intervals, within five standard errors of that share."""
  import numpy as np

  values = np.random.default_rng(0).normal(0.3, 2.0, (5000, 4))
  held = np.mean([not pairs.interval(row).excludes(0.3) for row in values])
  assert held == pytest.approx(0.95, abs=5 * math.sqrt(0.95 * 0.05 / 5000))


def test_ends_are_compared_where_both_had_as_much_text():
  slow_but_better = run([10, 40, 80], [3.0, 2.2, 1.2], tokens_per_second=150.0)
  pair = pairs.compare(FAST, slow_but_better)
  assert not pair['equal_text']
  pair = pairs.compare(run([10, 20], [2.0, 1.25], tokens_per_second=601.0), slow_but_better)
  assert pair['equal_text']
  assert (pair['final_a'], pair['final_b'], pair['final_difference']) == (1.25, 1.2, pytest.approx(-0.05))
  assert pair['difference'] > 1  # when the fast one ended, the slow one was not annealed


def test_notes_are_of_what_ran():
  assert pairs.notes({'a': {0: SLOW}, 'b': {0: FAST}}) == []
  other = run([10, 20], [2.0, 1.25], hardware='another', skipped_steps=2)
  assert pairs.notes({'a': {0: SLOW}, 'b': {0: other}}) == [
    'the runs are of different machines: a card, another',
    'steps were skipped in b',
  ]


def test_times_of_different_machines_are_not_compared():
  from yxanul.study.comparison_run import compared

  other = run([10, 20], [2.0, 1.25], hardware='another')
  with pytest.raises(ValueError, match='a, b: ran on a card and another, wants one machine, or equal text'):
    compared('a', 'b', {0: SLOW}, {0: other})
  same_text = run([10, 20], [2.0, 1.25], tokens_per_second=200.0, hardware='another')
  found = compared('a', 'b', {0: SLOW, 1: SLOW}, {0: same_text, 1: same_text})
  assert found['where'] == 'at their ends, after equal text'
  assert found['difference']['mean'] == pytest.approx(-0.25)
  assert 'b is better by 0.2500 bits per byte at their ends' in found['verdict']
  assert 'times as fast' not in found['verdict']
  assert found['speedup'] is None
  assert found['figures'].keys() == {'bpb_difference'}
  assert {pair['speedup'] for pair in found['pairs']} == {None}
  assert found['notes'] == ['the runs are of different machines: a card, another']


@pytest.mark.parametrize(
  ('differences', 'speedups', 'says'),
  [
    ([-0.1], [2.0], 'no verdict: one pair of runs has no interval'),
    ([-0.1, 0.08, -0.02], [1.1, 0.9, 1.0], 'no verdict: the difference at equal time, -0.23'),
    ([-0.1, -0.11, -0.09], [2.0, 2.1, 1.9], r'new is better by 0.1000 bits per byte at equal time'),
    ([0.1, 0.11, 0.09], [0.5, 0.51, 0.49], 'old is better by 0.1000 bits per byte'),
    ([-0.1, -0.11, -0.09], [1.0, 1.4, 0.9], 'includes 1'),
  ],
)
def test_a_verdict_only_when_the_interval_allows_one(differences, speedups, says):
  line = pairs.verdict('old', 'new', pairs.interval(differences), pairs.geometric(speedups))
  assert says in line
  assert ('better' in line) is ('no verdict' not in line)


def test_bpb_between_evaluations_is_linear_and_holds_after_the_last():
  assert [pairs.bpb_at(SLOW, t) for t in (10, 15, 30, 99)] == [3.0, 2.5, 1.75, 1.5]


def test_runs_that_never_crossed_still_have_a_target_both_reached():
  rising = dataclasses.replace(
    SLOW, evaluations=[*SLOW.evaluations, {**SLOW.evaluations[-1], 'seconds_training': 50, 'val_bpb': 1.6}]
  )
  pair = pairs.compare(rising, FAST)
  assert pair['target_bpb'] == 1.6
  assert pair['seconds_a'] == pytest.approx(36)
