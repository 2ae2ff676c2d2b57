"""Faults, each with an attempt that survives it or fails: what the tests try a few times and the record many times.

    python -m tests.faults [--most_runs=10] [--output=experiments/records/DATE_faults]

An attempt takes a random source and a `World`, and raises when anything was lost. Runs and saves are real ones, in processes
of their own that are forked from one with everything imported; signals are real signals, disks are real file systems.
"""

import argparse
import contextlib
import ctypes
import dataclasses
import errno
import importlib
import json
import multiprocessing
import os
import platform
import random
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests import tiny

FIELDS = {
  'curriculum__budget_tokens': 20_000,
  'evaluation__max_tokens': 1000,
  'evaluation__xz_mark': False,
  'sample__tokens': 2,
  'training__checkpoint_every_seconds': 0.2,
  'training__rollback_after_skips': 3,
}

# --- a run in a process of its own, in which something happens at a moment ------------------------------------------------

MOMENTS = {  # (what is about to be called, how often it is called at least)
  'preparing the text': ('yxanul.data.superbpe:train', 1),
  'making the steps': ('yxanul.training.trainer:Trainer.warm', 1),
  'training': ('yxanul.training.graphs:StepCache.__call__', 45),
  'evaluating': ('yxanul.training.validation:make_eval_step', 9),
  'copying the state': ('yxanul.training.checkpoint:to_numpy', 60),
  'writing a checkpoint': ('yxanul.training.checkpoint:Checkpoints._write', 2),
  'sampling': ('yxanul.run:write_samples', 1),
  'compressing with xz': ('yxanul.run:xz_marks', 1),
  'reporting': ('yxanul.run:write_report', 1),
}


def _signal(number: int) -> None:
  os.kill(os.getpid(), number)
  time.sleep(0.05)  # it is heard by another thread


def _hang(number: int) -> None:
  _signal(number)
  time.sleep(60)


def _twice(number: int) -> None:
  _signal(number)
  time.sleep(0.2)
  _hang(number)


def _notice(path: str) -> None:
  Path(path).write_text('going away in 30 s')
  time.sleep(0.7)


def _poison(_, state) -> None:
  state.params['final_norm.weight'].fill_(float('nan'))


def _remount(folder: str, options: str) -> None:
  while True:
    try:
      return _mount('', folder, '', options)
    except OSError as error:
      if error.errno != errno.EBUSY:  # a save has files open
        raise
    time.sleep(0.005)


def _fill(folder: str) -> None:
  with contextlib.suppress(OSError), Path(folder, 'ballast').open('wb', buffering=0) as file:
    while True:
      file.write(bytes(1 << 12))


def _free(folder: str) -> None:
  Path(folder, 'ballast').unlink()


@dataclasses.dataclass(frozen=True)
class Event:
  """`act(*arguments)` when what belongs to the moment is called for the `call`th time."""

  moment: str
  call: int
  act: Callable
  arguments: tuple = ()


def _arrange(event: Event) -> None:
  module, _, path = MOMENTS[event.moment][0].partition(':')
  owner, (*classes, name) = importlib.import_module(module), path.split('.')
  for part in classes:
    owner = getattr(owner, part)
  function, calls = getattr(owner, name), 0

  def wrapped(*args, **kwargs):
    nonlocal calls
    calls += 1
    if calls == event.call:
      event.act(*event.arguments)
    return function(*args, **kwargs)

  setattr(owner, name, wrapped)


def _child(workdir: Path, fields: dict, events: tuple[Event, ...], patches: tuple[tuple[str, str, object], ...]) -> None:
  output = os.open(workdir.with_suffix('.out'), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
  os.dup2(output, 1)
  os.dup2(output, 2)
  from yxanul.run import run

  for module, name, value in patches:
    setattr(importlib.import_module(module), name, value)
  for event in events:
    _arrange(event)
  try:
    status = run(tiny.spec(**{**FIELDS, **fields}), workdir)
  except ValueError as error:
    print('error:', error)
    status = 2
  os._exit(status)


def _context():
  context = multiprocessing.get_context('forkserver')
  context.set_forkserver_preload(['yxanul.run', 'tests.faults'])
  return context


def run(workdir: Path, *events: Event, patches: tuple = (), **fields) -> tuple[int, str, float]:
  """A run in `workdir`: its exit status, what it said, and its seconds."""
  started = time.monotonic()
  process = _context().Process(target=_child, args=(workdir, fields, events, patches))
  process.start()
  process.join()
  return process.exitcode, workdir.with_suffix('.out').read_text(), time.monotonic() - started


class World:
  """A folder to work in, and an undisturbed run to compare with."""

  def __init__(self, folder: Path):
    self.folder = folder
    self.whole = folder / 'whole'
    status, output, _ = run(self.whole)
    assert status == 0, output
    self.data = {'data__directory': str(self.whole / 'data')}
    self._made = 0

  def new(self) -> Path:
    self._made += 1
    return self.folder / f'try{self._made}'

  def goes_on(self, workdir: Path, **fields) -> str:
    """The same command again comes to the same end, bit for bit; returns what it said."""
    status, output, _ = run(workdir, **fields)
    assert status == 0, output
    assert tiny.same_arrays(workdir, self.whole)
    assert tiny.metrics(workdir) == tiny.metrics(self.whole)
    shutil.rmtree(workdir)
    return output


# --- requests to stop -----------------------------------------------------------------------------------------------------


def stop_at(moment: str) -> Callable:
  def attempt(rng: random.Random, world: World) -> None:
    number = rng.choice([signal.SIGTERM, signal.SIGINT])
    event = Event(moment, rng.randint(1, MOMENTS[moment][1]), _signal, (number,))
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
  event = Event(moment, rng.randint(1, MOMENTS[moment][1]), _hang, (signal.SIGTERM,))
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
  event = Event('training', rng.randint(1, 45), _twice, (number,))
  status, output, seconds = run(workdir, event, **world.data)
  assert status == 128 + number, output
  assert seconds < 30
  world.goes_on(workdir, **world.data)


def preemption_file(rng: random.Random, world: World) -> None:
  notice = world.new()
  notice.write_text('an old one')
  workdir = world.new()
  event = Event('training', rng.randint(1, 40), _notice, (str(notice),))
  status, output, _ = run(workdir, event, training__preemption_file=str(notice), **world.data)
  assert status == 75, output
  assert f'notice in {notice}: stopped, everything is saved' in output
  world.goes_on(workdir, training__preemption_file=str(notice), **world.data)


def stop_while_importing(rng: random.Random, world: World) -> None:
  process = tiny.main(f'--workdir={world.new()}', *tiny.flags())
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


# --- kills ----------------------------------------------------------------------------------------------------------------


def kill_run(rng: random.Random, world: World) -> None:
  workdir = world.new()
  for _ in range(2):
    moment = rng.choice(['making the steps', 'training', 'evaluating', 'copying the state', 'writing a checkpoint', 'sampling'])
    status, output, _ = run(
      workdir, Event(moment, rng.randint(1, MOMENTS[moment][1]), _signal, (signal.SIGKILL,)), **world.data
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
  ours, theirs = _context().Pipe(duplex=False)
  process = _context().Process(target=_saver, args=(folder, theirs))
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


# --- damage ---------------------------------------------------------------------------------------------------------------


def _damaged(world: World, damage: Callable[[Path], None]) -> None:
  from yxanul.training.checkpoint import Checkpoints

  template = world.folder / 'template'
  if not template.exists():
    checkpoints = Checkpoints(template, 2)
    for step in (1, 2):
      checkpoints.save(state(step, 500), {'progress': {'step': step}})
    checkpoints.close()
  folder = world.new()
  shutil.copytree(template, folder)
  damage(folder / '2')
  checkpoints, found = Checkpoints(folder, 2), state(0, 500)
  host, notes = checkpoints.restore(found)
  step = int(found.step)
  assert same(found, state(step, 500))
  assert host['progress'] == {'step': step}
  # A byte that nobody reads may be what it likes; anything else is told.
  assert step == 2 or (len(notes) == 1 and notes[0].startswith('checkpoint of step 2 is not usable')), notes
  checkpoints.close()
  shutil.rmtree(folder)


def _file(rng: random.Random, folder: Path) -> Path:
  return rng.choice(sorted(path for path in folder.rglob('*') if path.is_file() and path.stat().st_size))


def flipped_bit(rng: random.Random, world: World) -> None:
  def damage(folder: Path) -> None:
    path = _file(rng, folder)
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)

  _damaged(world, damage)


def missing_file(rng: random.Random, world: World) -> None:
  _damaged(world, lambda folder: _file(rng, folder).unlink())


def cut_file(rng: random.Random, world: World) -> None:
  def damage(folder: Path) -> None:
    path = _file(rng, folder)
    os.truncate(path, rng.randrange(path.stat().st_size))

  _damaged(world, damage)


# --- disks ----------------------------------------------------------------------------------------------------------------


def _mount(kind: str, folder: str, size: str, options: str = '') -> None:
  flags = {'': 0, 'ro': 33, 'rw': 32}[options]  # MS_REMOUNT | MS_RDONLY
  libc = ctypes.CDLL(None, use_errno=True)
  if libc.mount((kind or 'none').encode(), folder.encode(), kind.encode() or None, flags, size.encode() or None):
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class CannotMount(Exception):
  """Only root makes a disk to fill."""


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
  """A file system of 24 MB at `folder`.

  Raises:
    CannotMount: this user may not.
  """
  folder.mkdir(exist_ok=True)
  try:
    _mount('tmpfs', str(folder), 'size=24m')
  except PermissionError as error:
    raise CannotMount from error
  try:
    yield folder
  finally:
    subprocess.run(['umount', '-l', str(folder)], check=True)


def _empty(folder: Path) -> None:
  for path in folder.iterdir():
    if path.is_mount():
      _empty(path)
    elif path.is_dir():
      shutil.rmtree(path)
    else:
      path.unlink()


def _bad_disk(below: str, spoil: Callable, spoil_arguments: tuple, mend: Callable, mend_arguments: tuple, reason: str):
  """The disk holds what is `below` the workdir; it goes bad in the middle of a run, and is mended in time, or not."""

  def attempt(rng: random.Random, world: World) -> None:
    workdir = world.new()
    workdir.mkdir()
    with small_disk(workdir / below) as disk:
      at = rng.randint(5, 15)
      broken = Event('training', at, spoil, (str(disk), *spoil_arguments))
      mended = Event('training', rng.randint(at + 15, 44), mend, (str(disk), *mend_arguments))
      patches = (('yxanul.training.loop', '_RETRY_SECONDS', 0.1),)
      fields = {**world.data, 'training__checkpoint_every_seconds': 0.05}
      status, output, _ = run(workdir, broken, mended, patches=patches, **fields)
      assert status == 0, output
      assert 'cannot save the checkpoint of step' in output, output
      assert f'{reason}; the checkpoint of step' in output, output
      assert 'saving works again' in output, output
      assert 'Traceback' not in output, output
      assert tiny.same_arrays(workdir, world.whole)
      assert tiny.metrics(workdir) == tiny.metrics(world.whole)
      # And never mended before the end: the status tells, and once there is room the same command finishes.
      _empty(workdir)
      status, output, _ = run(workdir, broken, patches=patches, **fields)
      assert status == 74, output
      mend(str(disk), *mend_arguments)
      status, output, _ = run(workdir, **fields)
      assert status == 0, output
      assert tiny.same_arrays(workdir, world.whole)
      assert tiny.metrics(workdir) == tiny.metrics(world.whole)

  return attempt


full_disk = _bad_disk('', _fill, (), _free, (), 'No space left on device')
read_only_disk = _bad_disk('checkpoints', _remount, ('ro',), _remount, ('rw',), 'Read-only file system')


def file_size_limit(rng: random.Random, world: World) -> None:
  """The system refuses to let a file grow, as under a quota; needs no rights."""
  from yxanul.training.checkpoint import Checkpoints

  told: list[str] = []
  checkpoints = Checkpoints(world.new(), 2, tell=told.append)
  checkpoints.save(state(1), {})
  checkpoints.wait()
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (rng.randrange(50_000), limits[1]))
  try:
    checkpoints.save(state(2), {})
    checkpoints.wait()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert checkpoints.failed
  assert len(told) == 1, told
  assert 'cannot save the checkpoint of step 2' in told[0]
  assert 'the checkpoint of step 1 stands' in told[0]
  checkpoints.save(state(3), {})
  found = state(0)
  checkpoints.restore(found)
  assert same(found, state(3))
  assert not checkpoints.failed
  checkpoints.close()


# --- steps that go wrong --------------------------------------------------------------------------------------------------


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


def _bad_step(factor: float, lasting: bool, settle: int = 50) -> Callable:
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


# --- the table ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Fault:
  attempt: Callable[[random.Random, World], None]
  tries: int  # for the record
  quick: int  # in the default test suite
  survival: str  # what surviving means


AGAIN = 'exit status 75; the same command ends with the bits and the log of an undisturbed run'
FALLS_BACK = 'told; the state that comes back is one that was saved, bit for bit'
FAULTS = {
  'SIGKILL while saving': Fault(kill_saves, 200, 20, 'what was on disk is there, bit for bit, and nothing half'),
  'a flipped bit in a checkpoint': Fault(flipped_bit, 100, 10, FALLS_BACK),
  'a file of a checkpoint is gone': Fault(missing_file, 30, 5, FALLS_BACK),
  'a file of a checkpoint is cut short': Fault(cut_file, 30, 5, FALLS_BACK),
  **{f'SIGTERM or SIGINT while {moment}': Fault(stop_at(moment), 5, 1, AGAIN) for moment in MOMENTS},
  'SIGTERM or SIGINT while importing': Fault(stop_while_importing, 5, 1, 'exit status 75 and one line'),
  'what is under way does not end in time': Fault(hangs, 5, 1, f'ended by the clock; {AGAIN}'),
  'a second signal': Fault(second_signal, 5, 1, 'ends at once; the same command ends as an undisturbed run'),
  'a notice of pre-emption': Fault(preemption_file, 5, 1, AGAIN),
  'SIGKILL at two moments of a run': Fault(kill_run, 10, 1, 'the same command ends as an undisturbed run, bit for bit'),
  'a full disk': Fault(full_disk, 3, 1, 'told; training goes on and saves when it can; else exit status 74'),
  'a disk that becomes read-only': Fault(read_only_disk, 3, 1, 'told; training goes on and saves when it can; else 74'),
  'a limit on the size of files': Fault(file_size_limit, 5, 1, 'told; the checkpoint before stands'),
  'a step that is not finite': Fault(_bad_step(1e38, False), 5, 1, 'one step skipped, nothing else changed'),
  'a loss spike': Fault(_bad_step(-60.0, False, 2), 5, 1, 'one step skipped, nothing else changed'),
  'parameters that are not finite': Fault(_bad_step(float('nan'), True), 5, 1, 'back to the last good checkpoint, and on'),
  'parameters that are not finite, again and again': Fault(
    every_step_bad, 5, 1, 'gives up with one line; the same command without the fault ends as an undisturbed run'
  ),
  'parameters that went astray': Fault(_bad_step(-60.0, True, 2), 5, 1, 'back to the last good checkpoint, and on'),
}


def many(name: str, world: World, tries: int) -> list[str]:
  """Tries a fault again and again; what was lost, in words."""
  lost = []
  for number in range(tries):
    try:
      FAULTS[name].attempt(random.Random(f'{name} {number}'), world)
    except Exception as error:
      lost.append(f'try {number}: {error!r}')
  return lost


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--most_runs', type=int, default=10, help='tries of each fault that takes whole runs, at most')
  parser.add_argument('--output', type=Path, help='folder for README.md and record.json')
  arguments = parser.parse_args()
  started, rows = time.monotonic(), []
  with tempfile.TemporaryDirectory() as folder:
    world = World(Path(folder))
    for name, fault in FAULTS.items():
      tries = min(fault.tries, arguments.most_runs) if fault.tries <= 10 else fault.tries
      lost = many(name, world, tries)
      rows.append((name, tries, tries - len(lost), len(lost), fault.survival))
      print(f'{name}: {tries} tries, {len(lost)} lost', *lost, sep='\n  ', flush=True)
      if arguments.output:  # after each: this takes a while
        _write_record(arguments.output, rows, arguments.most_runs, sum(world.cut_saves), time.monotonic() - started)


def _write_record(folder: Path, rows: list[tuple], most_runs: int, cut: int, seconds: float) -> None:
  import orbax.checkpoint
  import torch

  tries, survived, lost = (sum(row[i] for row in rows) for i in (1, 2, 3))
  folder.mkdir(parents=True, exist_ok=True)
  table = '\n'.join(f'| {name} | {tried} | {kept} | {gone} | {survival} |' for name, tried, kept, gone, survival in rows)
  (folder / 'README.md').write_text(
    f"""# Faults

```bash
python -m tests.faults --most_runs={most_runs} --output={folder}
```

Each try makes the fault happen in a real process, at a moment, a byte or a file drawn at random, and then looks at what is
left; how is in `tests/faults.py`. The test suite tries each a few times, `python -m pytest -m slow
tests/training/faults_test.py` as often as `--most_runs=10`. Disks are a tmpfs, whose mounting takes root.

Hardware: {os.cpu_count()} CPU cores that other work shared, {seconds / 60:.0f} minutes. Of the kills while saving, {cut} came
while files were being written; the others between two saves, or while an old checkpoint was deleted.

| fault | tries | survived | lost | survived means |
|---|---|---|---|---|
{table}
| **all** | {tries} | {survived} | {lost} | |
"""
  )
  figures = {
    'tries': {'value': tries, 'unit': 'tries'},
    'survived': {'value': survived, 'unit': 'tries'},
    'lost': {'value': lost, 'unit': 'tries'},
    'kills_that_cut_a_save': {'value': cut, 'unit': 'tries'},
  }
  record = {
    'what': 'faults',
    'command': f'python -m tests.faults --most_runs={most_runs} --output={folder}',
    'hardware': f'{os.cpu_count()} CPU cores',
    'versions': {'python': platform.python_version(), 'torch': torch.__version__, 'orbax': orbax.checkpoint.__version__},
    'n': tries,
    'figures': figures,
    'faults': [dict(zip(('fault', 'tries', 'survived', 'lost', 'survival'), row, strict=True)) for row in rows],
  }
  (folder / 'record.json').write_text(json.dumps(record, indent=1) + '\n')


if __name__ == '__main__':
  # Forked processes find the attempts under this name, not under __main__.
  from tests import faults

  faults.main()
