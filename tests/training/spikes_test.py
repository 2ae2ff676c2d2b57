"""Loss spikes: told from noise and from a falling loss, in each stage anew; a step with one changes nothing."""

import math

import pytest
import torch

from tests.training.step_test import ENGINES, clone, make, rates
from yxanul.training import spikes
from yxanul.training.state import flatten

CPU = torch.device('cpu')


def run(losses, seq_len=8, deviations=6.0, state=None):
  """Which of the losses are spikes, and the statistics after those that are not."""
  state, found = state or spikes.init(CPU), []
  for i, loss in enumerate(losses):
    spike, after = spikes.judge(state, torch.tensor(loss), seq_len, deviations)
    if spike:
      found.append(i)
    else:
      state = after
  return found, state


def falling(n, noise, seed=0):
  """A loss that falls from 9 to 3 as losses do, with Gaussian noise."""
  draws = torch.randn(n, generator=torch.Generator().manual_seed(seed)) * noise
  return [3.0 + 6.0 * math.exp(-i / 60) + d for i, d in enumerate(draws.tolist())]


@pytest.mark.parametrize('noise', [0.0, 0.01, 0.3])
def test_noise_and_a_falling_loss_are_no_spikes(noise):
  assert run(falling(600, noise))[0] == []


@pytest.mark.parametrize('seed', range(5))
def test_a_spike_is_told_at_any_step_once_settled(seed):
  losses = falling(400, 0.05, seed)
  at = torch.randint(60, 400, (3,), generator=torch.Generator().manual_seed(seed)).tolist()
  for i in at:
    losses[i] += 4.0
  assert run(losses)[0] == sorted(set(at))


def test_mean_and_deviation_are_the_plain_ones_at_first():
  losses = falling(15, 0.2)
  state = run(losses)[1]
  x = torch.tensor(losses, dtype=torch.float64)
  assert state['count'] == 15
  assert state['mean'].item() == pytest.approx(x.mean().item(), rel=1e-5)
  assert state['variance'].item() == pytest.approx((x.diff().square().mean() / 2).item(), rel=1e-4)


def test_the_deviation_of_noise_is_its_own_whatever_the_trend():
  flat = (3.0 + 0.05 * torch.randn(500, generator=torch.Generator().manual_seed(1))).tolist()
  for losses in (flat, [x + 6.0 - i / 100 for i, x in enumerate(flat)]):
    assert run(losses)[1]['variance'].sqrt().item() == pytest.approx(0.05, rel=0.2)


def test_another_stage_starts_afresh():
  _, state = run([2.0] * 100, seq_len=8)
  assert run([9.0], seq_len=8, state=state)[0] == [0]
  found, state = run([3.5] * 60, seq_len=16, state=state)
  assert found == []
  assert state['mean'] == 3.5
  assert run([6.0], seq_len=16, state=state)[0] == [0]


@pytest.mark.parametrize('kind', [8.5, 8 + 18 / 28])  # the second is no FP32 number
def test_more_blocks_start_afresh(kind):
  _, state = run([2.0] * 100, seq_len=kind)
  assert state['count'] == 100
  assert run([3.5] * 60, seq_len=8, state=state)[0] == []
  assert run([3.5], seq_len=kind, state=state)[0] == [0]


def test_a_loss_that_doubles_is_a_spike_from_the_first_step_of_a_stage():
  _, state = run([2.0] * 100, seq_len=8)
  assert run([3.9, 4.1, 2.2, 70.0], seq_len=16, state=state)[0] == [1, 3]


def test_it_can_be_turned_off():
  assert run([*[2.0] * 100, 1e6], deviations=0.0)[0] == []


@ENGINES
def test_a_step_with_a_spike_changes_nothing_but_the_counters(engines):
  _, stage, state, step, tokens = make(engines)
  state.loss_state['count'].fill_(100.0)
  state.loss_state['mean'].fill_(2.0)  # a fresh model's loss is 6.2
  state.loss_state['variance'].fill_(0.01)
  state.loss_state['seq_len'].fill_(float(stage.seq_len))
  before = flatten(clone(state))
  after, m = step(state, tokens, *rates())
  assert (m.skipped, m.spike) == (1, 1)
  assert math.isfinite(m.loss)
  for path, leaf in flatten(after).items():
    moved = {'step': 1, 'data_state': tokens[:, 1:].numel()}.get(path, 0)
    assert torch.equal(leaf, before[path] + moved), path
  after.loss_state['mean'].fill_(6.0)
  after, m = step(after, tokens, *rates())
  assert (m.skipped, m.spike) == (0, 0)
  assert after.loss_state['count'] == 101
