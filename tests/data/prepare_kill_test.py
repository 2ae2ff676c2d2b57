"""Killed with SIGKILL at random moments and run again, prepare ends with the bytes of a run that nobody disturbed."""

import gzip
import json
import multiprocessing
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from tests import forked
from yxanul.config.spec import DataSpec, TokenizerSpec
from yxanul.data import prepare, prepare_encode, prepare_journal, prepare_near, prepare_select, prepare_workers
from yxanul.data.shards_check import STAMPS


def files_of(folder: Path) -> dict[str, bytes]:
  names = ('train', 'validation', 'tokenizer')
  found = (p for name in names for p in sorted((folder / name).iterdir()) if p.is_file() and p.name != STAMPS)
  return {str(p.relative_to(folder)): p.read_bytes() for p in found}


@pytest.fixture
def mixed_source(tmp_path, prose) -> Path:
  """A folder with a file of every kind, duplicates across them, and a line and a text that cannot be read."""
  folder = tmp_path / 'source'
  folder.mkdir()
  with gzip.open(folder / 'a.jsonl.gz', 'wt') as file:
    for i, text in enumerate(prose[:600]):
      file.write('{broken\n' if i == 300 else json.dumps({'text': text}) + '\n')
  rows = pyarrow.table({'text': prose[500:1100], 'source': ['books'] * 600})
  pyarrow.parquet.write_table(rows, folder / 'b.parquet', row_group_size=97)
  again = [text.upper() if i % 2 else text for i, text in enumerate(prose[:1100])]
  (folder / 'e.jsonl').write_text(''.join(json.dumps({'text': text}) + '\n' for text in again))
  (folder / 'c.txt').write_text('\n\n'.join(prose))
  (folder / 'd.txt').write_bytes(b'caf\xe9')
  return folder


def small_steps(patch=setattr) -> None:
  """Commits after every batch, and makes batches small."""
  patch(prepare_select, 'COMMIT_SECONDS', 0.0)
  patch(prepare_select, '_LOOK_EVERY', 64)
  patch(prepare_near, 'COMMIT_SECONDS', 0.0)
  patch(prepare_encode, 'COMMIT_SECONDS', 0.0)
  patch(prepare_workers, 'BATCH_BYTES', 40_000)


def prepare_and_die(spec: DataSpec, folder: Path, die_at: int) -> None:
  """Prepares, but is killed at the `die_at`th time that it is about to touch a file, or has just done so."""
  touched = 0

  def touching(function):
    def wrapped(*args, **kwargs):
      nonlocal touched
      for step in (lambda: function(*args, **kwargs), lambda: None):
        touched += 1
        if touched == die_at:
          os.kill(os.getpid(), signal.SIGKILL)
        result = step()
        if result is not None:
          return result
      return None

    return wrapped

  small_steps()
  prepare_journal._write = touching(prepare_journal._write)
  for name in ('fsync', 'replace', 'truncate'):
    setattr(os, name, touching(getattr(os, name)))
  prepare.prepare(spec, folder)


def start(*args) -> multiprocessing.Process:
  process = forked.context().Process(target=prepare_and_die, args=args)
  process.start()
  return process


KINDS = {
  'tokenizer given': {'shard_tokens': 20_000},
  'tokenizer trained': {'tokenizer': TokenizerSpec(vocab_size=500, transition_size=400)},
  'near duplicates': {'near_duplicates': True},
}


@pytest.mark.parametrize('fields', KINDS.values(), ids=KINDS.keys())
def test_killed_at_random_moments_and_run_again(tmp_path, mixed_source, make_spec, fields, monkeypatch):
  spec = make_spec(mixed_source, on_error='skip', **fields)
  with monkeypatch.context() as patch:
    small_steps(patch.setattr)
    whole = prepare.prepare(spec, tmp_path / 'whole')
  assert whole.train.manifest['problems']['counts'] == {'line': 1, 'encoding': 1}
  assert whole.train.manifest['selection']['duplicate'] > 500
  assert whole.train.manifest['selection']['near duplicate'] > 300 * ('near_duplicates' in fields) - 1
  rng = random.Random(5)
  kills = 0
  while True:
    process = start(spec, tmp_path / 'killed', rng.randint(1, rng.choice([100, 300])))
    process.join()
    if process.exitcode == 0:
      break
    assert process.exitcode == -signal.SIGKILL
    kills += 1
    assert kills < 100
  assert kills >= 3
  assert files_of(tmp_path / 'killed') == files_of(tmp_path / 'whole')


SCRIPT = """
import pickle, sys
from yxanul.data import prepare, prepare_workers
from tests.data.prepare_kill_test import small_steps
if __name__ == '__main__':
  small_steps()
  prepare_workers.IN_PROCESS_BYTES = 0
  spec, folder = pickle.loads(bytes.fromhex(sys.argv[1]))
  print('begin', flush=True)
  prepare.prepare(spec, folder)
"""


def run_script(spec: DataSpec, folder: Path, script: Path, **kwargs) -> subprocess.Popen:
  script.write_text(SCRIPT)
  argument = pickle.dumps((spec, folder)).hex()
  environment = os.environ | {'PYTHONPATH': str(Path(__file__).parents[2])}
  # Errors go to a file: a pipe would stay open for as long as any worker lives.
  with script.with_suffix('.err').open('w') as errors:
    return subprocess.Popen(
      [sys.executable, script, argument], env=environment, start_new_session=True, stderr=errors, **kwargs
    )


def test_killed_workers_and_all(tmp_path, mixed_source, make_spec):
  """With worker processes, killed by the clock; the workers leave with their parent."""
  spec = make_spec(mixed_source, on_error='skip', shard_tokens=20_000, workers=2)
  whole = prepare.prepare(spec, tmp_path / 'whole')
  rng = random.Random(1)
  for _ in range(2):
    process = run_script(spec, tmp_path / 'killed', tmp_path / 'script.py', stdout=subprocess.PIPE)
    assert process.stdout.readline() == b'begin\n'
    time.sleep(rng.uniform(0.2, 1.2))
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
      try:
        os.killpg(process.pid, 0)
      except ProcessLookupError:
        break
      time.sleep(0.05)
    else:
      os.killpg(process.pid, signal.SIGKILL)
      pytest.fail('workers outlived the process that they work for')
  process = run_script(spec, tmp_path / 'killed', tmp_path / 'script.py')
  assert process.wait() == 0
  assert files_of(tmp_path / 'killed') == files_of(tmp_path / 'whole')
  assert whole.train.n_documents > 0


def test_a_full_disk_says_so_and_goes_on_later(tmp_path, mixed_source, make_spec):
  """A limit on file size stands in for the disk: the system refuses the write in the same way."""
  spec = make_spec(mixed_source, on_error='skip')
  limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))  # noqa: E731
  process = run_script(spec, tmp_path / 'full', tmp_path / 'script.py', preexec_fn=limit)
  assert process.wait() == 1
  last = (tmp_path / 'script.err').read_text().splitlines()[-1]
  assert last.startswith('ValueError')
  assert 'no space left' in last
  prepare.prepare(spec, tmp_path / 'full')
  prepare.prepare(spec, tmp_path / 'whole')
  assert files_of(tmp_path / 'full') == files_of(tmp_path / 'whole')
