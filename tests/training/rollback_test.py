"""What a rollback is said to have undone."""

import dataclasses
from types import SimpleNamespace

import torch

from tests import tiny
from yxanul.training.curriculum import Curriculum
from yxanul.training.loop import Progress, _Loop
from yxanul.training.state import TrainState


def test_tokens_that_were_undone_before_are_not_undone_again():
  """Checkpoints of steps 1 and 2: at step 10 back to 2; at 14, with nothing saved since, to 1; at 21 to one saved at 20."""
  zero = torch.zeros(())
  state = TrainState(zero, {}, (), {}, {}, zero, zero)
  kept, events = [Progress(step=1, tokens=100), Progress(step=2, tokens=200)], []

  def restore(state, before):
    found = next(progress for progress in reversed(kept) if before is None or progress.step < before)
    return {'progress': dataclasses.asdict(found)}, []

  loop = _Loop(
    SimpleNamespace(
      spec=tiny.spec(),
      curriculum=Curriculum(tiny.spec()),
      checkpoints=SimpleNamespace(restore=restore),
      log=SimpleNamespace(write=events.append),
      display=SimpleNamespace(message=lambda _: None),
      device=torch.device('cpu'),
    ),
    Progress(step=10, tokens=1000),
  )
  loop._rollback(state)
  loop.progress.step, loop.progress.tokens = 14, 1400
  loop._rollback(state)
  assert [event['tokens_rolled_back'] for event in events] == [800, 500]
  assert loop.progress.tokens_rolled_back == 1400 - 100
  loop.progress.step, loop.progress.tokens = 20, 2000
  kept.append(dataclasses.replace(loop.progress))
  loop.rolled_back_to = None
  loop.progress.step, loop.progress.tokens = 21, 2100
  loop._rollback(state)
  assert (events[-1]['to_step'], events[-1]['tokens_rolled_back']) == (20, 100)
  assert loop.progress.tokens_rolled_back == 1400
