"""The learning rate over progress, by hand."""

import itertools

import pytest

from yxanul.config.spec import OptimizerSpec
from yxanul.optim.schedule import learning_rate, schedule


def test_cosine():
  spec = OptimizerSpec(warmup_share=0.01, final_lr_share=0.1)
  assert schedule(0.005, spec) == pytest.approx(0.5)
  assert schedule(0.01, spec) == pytest.approx(1.0)
  assert schedule(0.505, spec) == pytest.approx(0.55)
  assert schedule(1.0, spec) == pytest.approx(0.1)
  rates = [schedule(p / 1000, spec) for p in range(10, 1001)]
  assert rates == sorted(rates, reverse=True)
  assert learning_rate(1.0, 0.5, spec) == pytest.approx(6e-4 * 0.5 * 0.1)


def test_trapezoid():
  spec = OptimizerSpec(schedule='trapezoid', warmup_share=0.02, decay_share=0.4, final_lr_share=0.1)
  shares = {0.01: 0.5, 0.02: 1.0, 0.3: 1.0, 0.6: 1.0, 0.8: 0.55, 0.9: 0.325, 1.0: 0.1}
  assert {p: schedule(p, spec) for p in shares} == {p: pytest.approx(share) for p, share in shares.items()}
  rates = [schedule(p / 1000, spec) for p in range(20, 1001)]
  # No jump: between steps the rate falls by no more than the slope of the decay.
  assert max(a - b for a, b in itertools.pairwise(rates)) == pytest.approx(0.9 / 0.4 / 1000)


def test_constant():
  assert schedule(0.005, OptimizerSpec(schedule='constant', warmup_share=0.01)) == pytest.approx(0.5)
  assert schedule(0.9, OptimizerSpec(schedule='constant')) == 1.0
