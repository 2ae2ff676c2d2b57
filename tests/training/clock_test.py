"""What counts as training time."""

import json
import time

from tests import tiny
from yxanul import run
from yxanul.training.checkpoint import Checkpoints


def test_copying_the_state_for_a_checkpoint_is_no_training(tmp_path, monkeypatch):
  save, slept = Checkpoints.save, []

  def slowly(self, state, host):
    slept.append(2.0)
    time.sleep(2.0)
    save(self, state, host)

  monkeypatch.setattr(Checkpoints, 'save', slowly)
  assert run.run(tiny.spec(training__checkpoint_every_seconds=600.0), tmp_path / 'run') == 0
  lines = [json.loads(line) for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
  assert len(slept) == 2  # before the first step and behind the last
  # From the first line to the last the clock is right by itself: what is left is the time before the first.
  assert lines[0]['seconds_training'] < 2.0
  assert lines[0]['seconds'] > 2.0
