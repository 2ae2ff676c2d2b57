"""A run in a process of its own, in which something happens at a moment; and the world that attempts work in."""

import contextlib
import ctypes
import dataclasses
import errno
import functools
import importlib
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from tests import forked, tiny

FIELDS = {
  'curriculum__stages[8]__batch_size': 2,  # for two processes
  'curriculum__budget_tokens': 20_000,
  'evaluation__max_tokens': 1000,
  'evaluation__xz_mark': False,
  'sample__tokens': 2,
  'training__checkpoint_every_seconds': 0.2,
  'training__rollback_after_skips': 3,
}

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


def send_signal(number: int) -> None:
  os.kill(os.getpid(), number)
  time.sleep(0.05)  # it is heard by another thread


def hang(number: int) -> None:
  send_signal(number)
  time.sleep(60)


def send_twice(number: int) -> None:
  send_signal(number)
  time.sleep(0.2)
  hang(number)


def give_notice(path: str) -> None:
  Path(path).write_text('going away in 30 s')
  time.sleep(0.7)


def _poison(_, state) -> None:
  state.params['final_norm.weight'].fill_(float('nan'))


def mount(kind: str, folder: str, size: str, options: str = '') -> None:
  flags = {'': 0, 'ro': 33, 'rw': 32}[options]  # MS_REMOUNT | MS_RDONLY
  libc = ctypes.CDLL(None, use_errno=True)
  if libc.mount((kind or 'none').encode(), folder.encode(), kind.encode() or None, flags, size.encode() or None):
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def remount(folder: str, options: str) -> None:
  while True:
    try:
      return mount('', folder, '', options)
    except OSError as error:
      if error.errno != errno.EBUSY:  # a save has files open
        raise
    time.sleep(0.005)


def fill(folder: str) -> None:
  """In the middle of a save, if one is under way, and once more when it has ended: broken or not, it made room again."""
  with Path(folder, 'ballast').open('wb', buffering=0) as file:
    _write_until_full(file)
    for thread in threading.enumerate():
      if thread.name == 'checkpoint':
        thread.join()
    _write_until_full(file)


def _write_until_full(file: BinaryIO) -> None:
  with contextlib.suppress(OSError):
    while True:
      file.write(bytes(1 << 12))


def free(folder: str) -> None:
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


def run(workdir: Path, *events: Event, patches: tuple = (), **fields) -> tuple[int, str, float]:
  """A run in `workdir`: its exit status, what it said, and its seconds."""
  started = time.monotonic()
  process = forked.context().Process(target=_child, args=(workdir, fields, events, patches))
  process.start()
  process.join()
  return process.exitcode, workdir.with_suffix('.out').read_text(), time.monotonic() - started


def same_run(a: Path, b: Path) -> None:
  """The same end, bit for bit, and the same log."""
  assert tiny.same_arrays(a, b)
  assert tiny.metrics(a) == tiny.metrics(b)


class World:
  """A folder to work in, and undisturbed runs to compare with."""

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

  def torchrun(self, workdir: Path, *options: str, **fields) -> forked.Program:
    """The run over two processes."""
    flags = tiny.flags(**{**FIELDS, **self.data, **fields})
    return tiny.torchrun(2, '-m', 'yxanul.main', f'--workdir={workdir}', *flags, options=options)

  @functools.cached_property
  def together(self) -> Path:
    """The undisturbed run of two processes."""
    workdir = self.folder / 'together'
    status, output, errors = tiny.finish(self.torchrun(workdir), timeout=300)
    assert status == 0, errors
    assert output.count('report: ') == 1, output
    return workdir

  def goes_on(self, workdir: Path, like: Path | None = None, **fields) -> str:
    """The same command again comes to the same end, bit for bit, as the undisturbed run or another; returns what it said."""
    status, output, _ = run(workdir, **fields)
    assert status == 0, output
    same_run(workdir, like or self.whole)
    shutil.rmtree(workdir)
    return output
