"""Whole runs over several processes through real torchrun (Gloo): the same losses, one end for all, and an exact restart."""

import contextlib
import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests import tiny
from tests.training.distributed_test import torchrun

# Rows that two processes can share, and less to evaluate.
FIELDS = {'evaluation__xz_mark': False, 'evaluation__max_tokens': 1000, 'curriculum__budget_tokens': 40_000}
BATCHES = [f'--config.curriculum.stages[{i}].batch_size={rows}' for i, rows in ((8, 4), (9, 4))]


def flags(**more) -> list[str]:
  return [*tiny.flags(**FIELDS, **more), *BATCHES]


@pytest.fixture(scope='module')
def alone(tmp_path_factory) -> Path:
  """The workdir of one process's run."""
  workdir = tmp_path_factory.mktemp('alone') / 'run'
  status, _, errors = tiny.finish(tiny.main(f'--workdir={workdir}', *flags()))
  assert status == 0, errors
  return workdir


@pytest.fixture(scope='module')
def together(alone) -> Path:
  """The same over two processes."""
  workdir = alone.with_name('together')
  status, output, errors = tiny.finish(run(2, workdir, alone), timeout=300)
  assert status == 0, errors
  assert output.count('report: ') == 1, output
  return workdir


def run(world: int, workdir: Path, alone: Path, *options: str, **more):
  arguments = ('-m', 'yxanul.main', f'--workdir={workdir}', *flags(data__directory=alone / 'data', **more))
  return torchrun(world, *arguments, options=options)


def test_two_processes_log_what_one_does(alone, together):
  ours, theirs = tiny.metrics(together), tiny.metrics(alone)
  assert len(ours) == len(theirs) > 20
  for a, b in zip(ours, theirs, strict=True):
    assert a.keys() == b.keys()
    for name in a:
      # FP32 sums in another order; later steps start from what that did to the weights.
      assert a[name] == pytest.approx(b[name], rel=1e-5 if name != 'grad_norm' else 1e-4), name
  results = [json.loads((workdir / 'result.json').read_text()) for workdir in (together, alone)]
  assert [result['processes'] for result in results] == [2, 1]
  assert results[0]['val_bpb'] == pytest.approx(results[1]['val_bpb'], rel=1e-6)
  assert (together / 'samples.txt').exists()


def workers(torchrun_pid: int) -> list[int]:
  """The processes that a torchrun started, in the order of their ranks."""
  children = Path(f'/proc/{torchrun_pid}/task/{torchrun_pid}/children').read_text().split()
  ranks = {}
  for child in map(int, children):
    with contextlib.suppress(OSError):  # one that ends just now
      environment = Path(f'/proc/{child}/environ').read_bytes().split(b'\0')
      ranks.update({int(entry[5:]): child for entry in environment if entry.startswith(b'RANK=')})
  return [ranks[rank] for rank in sorted(ranks)]


def wait_for_lines(process, workdir: Path, lines: int) -> None:
  log = workdir / 'metrics.jsonl'
  while process.poll() is None and (not log.exists() or len(log.read_text().splitlines()) < lines):
    time.sleep(0.01)


def test_a_killed_process_ends_all_and_a_restart_goes_on_exactly(alone, together):
  """SIGKILL of one: torchrun starts both again, from the checkpoint; killed again, with no restart left, all end.

  Up to here the optimizer's state is divided; the rest is done with the whole of it in both, to the bits of a run without.
  """
  workdir = alone.with_name('killed')
  often = {'training__checkpoint_every_seconds': 0.2}
  process = run(2, workdir, alone, '--max-restarts=1', training__shard_optimizer=True, **often)
  wait_for_lines(process, workdir, 8)
  first = workers(process.pid)
  os.kill(first[1], signal.SIGKILL)
  while process.poll() is None and (len(second := workers(process.pid)) < 2 or set(first) & set(second)):
    time.sleep(0.01)
  wait_for_lines(process, workdir, 20)
  os.kill(second[0], signal.SIGKILL)
  status, output, errors = tiny.finish(process, timeout=300)
  assert status == 1
  assert output.count('going on from the checkpoint of step') == 1
  for rank in (0, 1):
    assert f'rank {rank}: another process is gone' in errors
  assert 'what is saved stands, the same command goes on from there' in errors
  status, _, errors = tiny.finish(run(2, workdir, alone, **often), timeout=300)
  assert status == 0, errors
  assert tiny.metrics(workdir) == tiny.metrics(together)
  assert tiny.same_arrays(workdir, together)


def test_a_request_to_one_process_stops_all_and_fewer_go_on(alone, together):
  workdir = alone.with_name('stopped')
  process = run(2, workdir, alone, training__shard_optimizer=True)
  wait_for_lines(process, workdir, 10)
  os.kill(workers(process.pid)[1], signal.SIGTERM)
  status, output, errors = tiny.finish(process, timeout=300)
  assert status == 1  # torchrun's own; its table has each process's, where torchrun's SIGTERM was not faster
  assert output.count('a request to another process: stopped, everything is saved; the same command goes on') == 1
  assert 'exitcode  : 75' in errors
  assert len(tiny.metrics(workdir)) < len(tiny.metrics(together))
  status, output, errors = tiny.finish(tiny.main(f'--workdir={workdir}', *flags(data__directory=alone / 'data')))
  assert status == 0, errors
  assert 'going on from the checkpoint of step' in output
  assert json.loads((workdir / 'result.json').read_text())['processes'] == 1
  for a, b in zip(tiny.metrics(workdir), tiny.metrics(together), strict=True):
    assert all(a[name] == pytest.approx(b[name], rel=1e-4) for name in a)
