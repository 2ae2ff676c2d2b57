"""Attempts: requests to stop, and kills."""

import contextlib
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests import forked, tiny
from tests.faults.world import MOMENTS, Event, World, give_notice, hang, run, send_signal, send_twice


def stop_at(moment: str) -> Callable:
  def attempt(rng: random.Random, world: World) -> None:
    number = rng.choice([signal.SIGTERM, signal.SIGINT])
    event = Event(moment, rng.randint(1, MOMENTS[moment][1]), send_signal, (number,))
    fields = {} if moment == 'preparing the text' else world.data
    if moment == 'compressing with xz':
      fields = fields | {'evaluation__xz_mark': True}
    workdir = world.new()
    status, output, _ = run(workdir, event, **fields)
    assert status == 75, output
    assert f'{number.name}: stopped' in output
    assert 'Traceback' not in output
    world.goes_on(workdir, **fields)

  return attempt


def hangs(rng: random.Random, world: World) -> None:
  """What is under way when the request comes does not end in time."""
  moment = rng.choice(['making the steps', 'training', 'evaluating', 'writing a checkpoint', 'sampling'])
  event = Event(moment, rng.randint(1, MOMENTS[moment][1]), hang, (signal.SIGTERM,))
  workdir = world.new()
  status, output, seconds = run(workdir, event, training__stop_within_seconds=1.0, **world.data)
  assert status == 75, output
  assert seconds < 30
  assert 'did not end within 1 s; ' in output
  assert ('the checkpoint of step' in output) or ('no checkpoint was saved yet' in output)
  world.goes_on(workdir, **world.data)


def second_signal(rng: random.Random, world: World) -> None:
  number = rng.choice([signal.SIGTERM, signal.SIGINT])
  workdir = world.new()
  event = Event('training', rng.randint(1, 45), send_twice, (number,))
  status, output, seconds = run(workdir, event, **world.data)
  assert status == 128 + number, output
  assert seconds < 30
  world.goes_on(workdir, **world.data)


def preemption_file(rng: random.Random, world: World) -> None:
  notice = world.new()
  notice.write_text('an old one')
  workdir = world.new()
  event = Event('training', rng.randint(1, 40), give_notice, (str(notice),))
  status, output, _ = run(workdir, event, training__preemption_file=str(notice), **world.data)
  assert status == 75, output
  assert f'notice in {notice}: stopped, everything is saved' in output
  world.goes_on(workdir, training__preemption_file=str(notice), **world.data)


def stop_while_importing(rng: random.Random, world: World) -> None:
  process = tiny.start_afresh('main', f'--workdir={world.new()}', *tiny.flags())
  handled = Path(f'/proc/{process.pid}/status')
  while f'{1 << (signal.SIGTERM - 1):x}' not in _caught(handled):
    assert process.poll() is None
    time.sleep(0.001)
  time.sleep(rng.random() * 0.5)
  process.send_signal(rng.choice([signal.SIGTERM, signal.SIGINT]))
  status, output, errors = tiny.finish(process)
  assert status == 75, errors
  assert 'stopped before anything was begun' in errors
  assert 'Traceback' not in errors + output


def _caught(status: Path) -> str:
  """The bit of SIGTERM, as hex, when the process has a handler for it."""
  mask = int(next(line.split()[1] for line in status.read_text().splitlines() if line.startswith('SigCgt')), 16)
  return f'{mask & 1 << (signal.SIGTERM - 1):x}'


def kill_run(rng: random.Random, world: World) -> None:
  workdir = world.new()
  for _ in range(2):
    moment = rng.choice(['making the steps', 'training', 'evaluating', 'copying the state', 'writing a checkpoint', 'sampling'])
    status, output, _ = run(
      workdir, Event(moment, rng.randint(1, MOMENTS[moment][1]), send_signal, (signal.SIGKILL,)), **world.data
    )
    assert status in (0, -signal.SIGKILL), output
  world.goes_on(workdir, **world.data)


def state(step: int, size: int = 60_000):
  """A state that its step decides."""
  import torch

  from yxanul.training.state import TrainState

  weight = torch.randn(size, generator=torch.Generator().manual_seed(step))
  return TrainState(
    step=torch.tensor(step),
    params={f'p{i}': weight + i for i in range(4)},
    opt_state=({'first': weight.square(), 'half': weight.bfloat16()},),
    fp8_state={'scale': weight[:100]},
    loss_state={'mean': weight[0]},
    rng=torch.tensor([0, step]),
    data_state=torch.tensor(step * 1000),
  )


def same(a, b) -> bool:
  import torch

  from yxanul.training.state import flatten

  a, b = flatten(a), flatten(b)
  return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def _saver(folder: Path, say) -> None:
  """Restores, says what it found, and saves on and on, saying each step that is on disk."""
  from yxanul.training.checkpoint import Checkpoints

  checkpoints, found = Checkpoints(folder, 2), state(0)
  restored = checkpoints.restore(found)
  step = int(found.step)
  sound = restored is None or (restored[1] == [] and restored[0]['progress'] == {'step': step} and same(found, state(step)))
  say.send((sound, step))
  while True:
    step += 1
    checkpoints.save(state(step), {'progress': {'step': step}})
    checkpoints.wait()
    say.send(step)


def kill_saves(rng: random.Random, world: World) -> None:
  """One kill in a folder of checkpoints that earlier kills have left; then the next process looks at it."""
  folder = world.folder / 'killed-saves'
  last = world.__dict__.setdefault('last_saved', 0)
  ours, theirs = forked.context().Pipe(duplex=False)
  process = forked.context().Process(target=_saver, args=(folder, theirs))
  process.start()
  theirs.close()
  try:
    sound, step = ours.recv()
    assert sound, f'the checkpoint of step {step} is not what was saved'
    assert step >= last, f'step {last} was on disk, and {step} came back'
    last = ours.recv()
    time.sleep(rng.random() * 0.2)
  finally:
    process.kill()
  with contextlib.suppress(EOFError):
    while True:
      last = ours.recv()
  process.join()
  world.last_saved = last
  world.__dict__.setdefault('cut_saves', []).append(any(folder.glob('*.orbax-checkpoint-tmp')))
