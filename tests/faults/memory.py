"""An attempt: a stage runs out of memory."""

import random
import shutil
import signal
from collections.abc import Callable

from tests import tiny
from tests.faults.world import FIELDS, Event, World, run, send_signal


def limit_memory(most: int, patch: Callable = setattr) -> None:
  """Steps and calibration run out of memory, as CUDA does, over more than `most` tokens at a time."""
  import torch

  from yxanul.training import trainer

  make_train_step, calibrated = trainer.make_train_step, trainer.calibrate

  def limited(run, tokens, pieces):
    if tokens[:, 1:].numel() // pieces > most:
      raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 1.00 GiB')
    return run()

  def make(spec, stage, optimizer, engines, text, pieces=1, compiled=False, reduction=None, *sharding):
    step = make_train_step(spec, stage, optimizer, engines, text, pieces, compiled, reduction, *sharding)
    return lambda state, tokens, *rates: limited(lambda: step(state, tokens, *rates), tokens, pieces)

  def calibrate(state, tokens, stage, spec, engines, text, pieces, reduction):
    return limited(lambda: calibrated(state, tokens, stage, spec, engines, text, pieces, reduction), tokens, pieces)

  patch(trainer, 'make_train_step', make)
  patch(trainer, 'calibrate', calibrate)


def out_of_memory(rng: random.Random, world: World) -> None:
  stages = tiny.spec(**FIELDS).curriculum.stages
  most = rng.randint(max(stage.seq_len for stage in stages), max(stage.tokens_per_step for stage in stages) - 1)
  limited = Event('making the steps', 1, limit_memory, (most,))
  parts, workdir = world.new(), world.new()
  status, output, _ = run(parts, limited, **world.data)
  assert status == 0, output
  assert output.count('at once; splitting them into') == sum(stage.tokens_per_step > most for stage in stages), output
  # The same gradients but for the order of their sums.
  assert tiny.apart(parts, world.whole, 1e-5, grad_norm=1e-4) == []
  assert not tiny.same_arrays(parts, world.whole)
  # All the memory is there when the run goes on, and the parts are those of before.
  status, output, _ = run(workdir, limited, Event('training', rng.randint(1, 45), send_signal, (signal.SIGTERM,)), **world.data)
  assert status == 75, output
  output = world.goes_on(workdir, like=parts, **world.data)
  assert 'out of memory' not in output, output
  shutil.rmtree(parts)
