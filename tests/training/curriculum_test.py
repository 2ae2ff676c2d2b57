"""The curriculum as a table over tokens."""

import dataclasses
import itertools
from fractions import Fraction

import pytest

from yxanul.config import registry
from yxanul.config.convert import from_config
from yxanul.config.curriculum_spec import StageSpec
from yxanul.training.curriculum import Curriculum, token_shares


def ultra(variant=''):
  return from_config(registry.load(f'{registry.experiments_folder() / "ultra.py"}{variant}'))


def test_step_shares_become_token_shares():
  """Against the mission's table by hand: share of the steps x tokens a step, over their sum."""
  shares = token_shares(ultra().curriculum)
  steps = [0.01, 0.015, 0.025, 0.05, 0.075, 0.1, 0.125, 0.15, 0.15, 0.3]
  tokens = [65536, 131072, 131072, 131072, 131072, 131072, 131072, 196608, 196608, 131072]
  parts = [s * t for s, t in zip(steps, tokens, strict=True)]
  assert shares == pytest.approx([p / sum(parts) for p in parts])
  assert sum(shares) == pytest.approx(1.0)


def test_shares_do_not_hang_on_how_a_python_sums():
  """To the last bit those of an exact sum, from which that of these three, as floats, differs before Python 3.12."""
  spec = ultra().curriculum
  stages = [(8, 0.0), (16, 0.3), (32, 0.78)]
  spec = dataclasses.replace(spec, stages=tuple(StageSpec(length, step_share_start=start) for length, start in stages))
  parts = [0.3 * 8 * 64, (0.78 - 0.3) * 16 * 64, (1 - 0.78) * 32 * 64]
  exact = float(sum(map(Fraction, parts)))
  assert token_shares(spec) == [part / exact for part in parts]


@pytest.mark.parametrize('variant', ['', ':gpu=h100', ':gpu=h200'])
def test_the_table_is_whole(variant):
  spec = ultra(variant)
  stages = Curriculum(spec).stages
  assert [s.spec.seq_len for s in stages] == [8, 16, 32, 64, 128, 256, 512, 768, 1536, 2048]
  assert stages[0].start_tokens == 0
  for a, b in itertools.pairwise(stages):
    assert (b.start_tokens, b.start_step) == (a.end_tokens, a.start_step + a.n_steps)
  for stage, share in zip(stages, token_shares(spec.curriculum), strict=True):
    assert stage.end_tokens - stage.start_tokens == stage.n_steps * stage.spec.tokens_per_step
    # Whole steps: a stage is off its share by less than a step of it and of the one before.
    off = abs((stage.end_tokens - stage.start_tokens) - share * spec.curriculum.budget_tokens)
    assert off < stage.spec.tokens_per_step + stages[max(0, stage.index - 1)].spec.tokens_per_step


def test_a_larger_batch_changes_steps_and_rate_but_not_the_text_of_a_stage():
  small, large = Curriculum(ultra()).stages, Curriculum(ultra(':gpu=h200')).stages
  for a, b in zip(small, large, strict=True):
    assert b.spec.batch_size == 4 * a.spec.batch_size
    assert b.lr_factor == pytest.approx(2 * a.lr_factor)
    assert abs(a.start_tokens - b.start_tokens) < 1_000_000
  assert [s.lr_factor for s in small] == pytest.approx([0.3, 0.4, 0.5, 0.6, 0.75, 0.85, 0.95, 1, 1, 1])


def test_lookup_agrees_with_walking_the_table():
  curriculum = Curriculum(ultra())
  for stage in curriculum.stages:
    assert curriculum.lookup(stage.start_tokens) is stage
    assert curriculum.lookup(stage.end_tokens - 1) is stage
  for tokens in (-1, curriculum.total_tokens):
    with pytest.raises(ValueError, match=f'tokens: got {tokens}'):
      curriculum.lookup(tokens)


def test_a_budget_without_a_step_for_a_stage_is_refused():
  with pytest.raises(ValueError, match=r'budget_tokens: got 1000000, wants enough for a step in every stage: stage 2'):
    Curriculum(ultra(':budget_tokens=1e6'))
