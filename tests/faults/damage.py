"""Attempts: checkpoints that are damaged, disks that fail."""

import contextlib
import os
import random
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.faults.stops import same, state
from tests.faults.world import Event, World, fill, free, mount, remount, run, same_run


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
    mount('tmpfs', str(folder), 'size=24m')
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
      same_run(workdir, world.whole)
      # And never mended before the end: the status tells, and once there is room the same command finishes.
      _empty(workdir)
      status, output, _ = run(workdir, broken, patches=patches, **fields)
      assert status == 74, output
      mend(str(disk), *mend_arguments)
      status, output, _ = run(workdir, **fields)
      assert status == 0, output
      same_run(workdir, world.whole)

  return attempt


full_disk = _bad_disk('', fill, (), free, (), 'No space left on device')
read_only_disk = _bad_disk('checkpoints', remount, ('ro',), remount, ('rw',), 'Read-only file system')


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
