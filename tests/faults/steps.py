"""Attempts: steps that go wrong."""

import json
import random
import shutil
from collections.abc import Callable

from tests.faults.world import Event, World, run


def _bad_steps(first: int, factor: float, lasting: bool) -> None:
  """From the `first` step on (or in it alone), a parameter is multiplied by `factor`."""
  from yxanul.training.graphs import StepCache

  function, calls = StepCache.__call__, 0

  def step(self, stage, state, *args):
    nonlocal calls
    calls += 1
    weight = state.params['final_norm.weight']
    if calls != first:
      return function(self, stage, state, *args)
    if lasting:
      weight.mul_(factor)
      return function(self, stage, state, *args)
    before = weight.clone()
    weight.mul_(factor)
    result = function(self, stage, state, *args)
    result[0].params['final_norm.weight'].copy_(before)
    return result

  StepCache.__call__ = step


def _bad_from(first: int) -> None:
  from yxanul.training.graphs import StepCache

  function, calls = StepCache.__call__, 0

  def step(self, stage, state, *args):
    nonlocal calls
    calls += 1
    if calls >= first:
      state.params['final_norm.weight'].fill_(float('nan'))
    return function(self, stage, state, *args)

  StepCache.__call__ = step


def every_step_bad(rng: random.Random, world: World) -> None:
  """No rollback helps, back to the first checkpoint: the run gives up, and what it saved is good."""
  workdir = world.new()
  event = Event('making the steps', 1, _bad_from, (rng.randint(2, 30),))
  status, output, _ = run(workdir, event, **world.data)
  assert status == 2, output
  assert 'steps in a row were skipped, and there is no earlier checkpoint to go back to' in output
  assert 'Traceback' not in output
  world.goes_on(workdir, **world.data)


def bad_step(factor: float, lasting: bool, settle: int = 50) -> Callable:
  def attempt(rng: random.Random, world: World) -> None:
    workdir = world.new()
    stage_start = 15  # of the longest stages: a spike needs steps to be told from
    at = rng.randint(stage_start, 44)
    event = Event('making the steps', 1, _bad_steps, (at, factor, lasting))
    patches = (('yxanul.training.spikes', '_SETTLE_STEPS', settle),)
    status, output, _ = run(workdir, event, patches=patches, **world.data)
    assert status == 0, output
    result = json.loads((workdir / 'result.json').read_text())
    reference = json.loads((world.whole / 'result.json').read_text())
    # A step is judged while the next one is under way.
    assert result['skipped_steps'] in ((3, 4) if lasting else (1,)), output
    assert result['spike_steps'] == (0 if settle == 50 else result['skipped_steps']), output
    assert result['rollbacks'] == int(lasting), output
    assert (result['tokens_rolled_back'] > 0) is lasting
    assert abs(result['val_bpb'] - reference['val_bpb']) < 0.5
    assert result['tokens'] == reference['tokens']
    assert f'step {at} is skipped' in output
    assert ('back to the weights of step' in output) is lasting
    shutil.rmtree(workdir)

  return attempt
