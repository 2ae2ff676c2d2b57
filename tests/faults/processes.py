"""Attempts: one process of several, through real torchrun (Gloo)."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests import tiny
from tests.faults.world import World, run, same_run
from tests.forked import Program


def _workers(torchrun: Program) -> list[int]:
  """The processes that a torchrun started, in the order of their ranks."""
  children = Path(f'/proc/{torchrun.pid}/task/{torchrun.pid}/children').read_text().split()
  ranks = {}
  for child in map(int, children):
    with contextlib.suppress(OSError):  # one that ends just now
      environment = Path(f'/proc/{child}/environ').read_bytes().split(b'\0')
      ranks.update({int(entry[5:]): child for entry in environment if entry.startswith(b'RANK=')})
  return [ranks[rank] for rank in sorted(ranks)]


def _lines(workdir: Path) -> int:
  log = workdir / 'metrics.jsonl'
  return len(log.read_text().splitlines()) if log.exists() else 0


def _wait(torchrun: Program, ready: Callable[[], bool]) -> None:
  """Until it is so, or the run is over; one that hangs is killed, with all that it started, and that raises."""
  until = time.monotonic() + 120
  while torchrun.poll() is None and not ready():
    time.sleep(0.01)
    if time.monotonic() > until:
      tiny.finish(torchrun, timeout=0)


def _is_saved(workdir: Path) -> bool:
  """There is a checkpoint. Before, a run that is killed starts anew, as it should."""
  return any(path.name.isdigit() for path in (workdir / 'checkpoints').glob('*'))


def _signal_one(rng: random.Random, torchrun: Program, workdir: Path, number: int, most_lines: int) -> int:
  """To any process, at a moment in the next `most_lines` of the log; returns its rank once both are gone."""
  lines = _lines(workdir) + rng.randint(1, most_lines)
  _wait(torchrun, lambda: _lines(workdir) >= lines and _is_saved(workdir))
  time.sleep(rng.random() * 0.05)
  assert torchrun.poll() is None, tiny.finish(torchrun)[2]
  rank, workers = rng.randrange(2), _workers(torchrun)
  os.kill(workers[rank], number)
  _wait(torchrun, lambda: not set(workers) & set(_workers(torchrun)))
  return rank


def _told(errors: str, killed: list[int]) -> None:
  """Each time the one that was left said so and ended."""
  assert re.findall(r'rank (\d): another process is gone', errors) == [str(1 - rank) for rank in killed], errors
  assert errors.count('what is saved stands, the same command goes on from there') == len(killed), errors


def _goes_on(world: World, workdir: Path) -> None:
  """The same command, but with the whole of the optimizer's state in both processes."""
  status, output, errors = tiny.finish(world.torchrun(workdir), timeout=300)
  assert status == 0, errors
  assert 'going on from the checkpoint of step' in output, output
  same_run(workdir, world.together)
  shutil.rmtree(workdir)


def kill_one_of_several(rng: random.Random, world: World) -> None:
  """torchrun starts both again, which go on from the checkpoint; one is killed again, with no restart left, and all end."""
  workdir = world.new()
  process = world.torchrun(workdir, '--max-restarts=1', training__shard_optimizer=True)
  killed = [_signal_one(rng, process, workdir, signal.SIGKILL, 8)]
  killed.append(_signal_one(rng, process, workdir, signal.SIGKILL, 8))
  status, output, errors = tiny.finish(process, timeout=300)
  assert status == 1, errors
  assert output.count('going on from the checkpoint of step') == 1, output
  _told(errors, killed)
  _goes_on(world, workdir)


def fewer_after_a_kill(rng: random.Random, world: World) -> None:
  workdir = world.new()
  process = world.torchrun(workdir, training__shard_optimizer=True)
  killed = _signal_one(rng, process, workdir, signal.SIGKILL, 16)
  status, _, errors = tiny.finish(process, timeout=300)
  assert status == 1, errors
  _told(errors, [killed])
  status, output, _ = run(workdir, **world.data)
  assert status == 0, output
  assert 'going on from the checkpoint of step' in output, output
  assert json.loads((workdir / 'result.json').read_text())['processes'] == 1
  assert tiny.apart(workdir, world.together, 1e-5, grad_norm=1e-4) == []
  shutil.rmtree(workdir)


def stop_one_of_several(rng: random.Random, world: World) -> None:
  workdir = world.new()
  process = world.torchrun(workdir, training__shard_optimizer=True)
  stopped = _signal_one(rng, process, workdir, signal.SIGTERM, 16)
  status, output, errors = tiny.finish(process, timeout=300)
  assert status == 1, errors  # torchrun's own; its table has the 75
  assert 'exitcode  : 75' in errors, errors
  who = 'a request to another process' if stopped else 'SIGTERM'
  assert output.count(f'{who}: stopped, everything is saved; the same command goes on') == 1, output
  assert len(tiny.metrics(workdir)) < len(tiny.metrics(world.together))
  _goes_on(world, workdir)
