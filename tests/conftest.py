"""Fixtures that more than one area uses."""

import os
from pathlib import Path

# Before torch is imported, here and in what the tests start: several processes share the cores, and threads of all of them
# would wait for one another at every product of these small models.
os.environ.setdefault('OMP_NUM_THREADS', '1')

import pytest

from tests import tiny
from tests.faults.world import World

REPOSITORY = Path(__file__).resolve().parent.parent

# Files that take longest, the longest first: where several processes share the files, one of these begun last would run alone.
LONG = ('quickstart_test.py', 'readme_test.py', 'faults_test.py', 'distributed_run_test.py', 'main_test.py', 'ablate_test.py')


def pytest_collection_modifyitems(config, items):
  if hasattr(config, 'workerinput'):  # of pytest-xdist
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture(scope='session')
def shared() -> Path:
  """The folder with the measurement corpus and the official tokenizers; tests that need it skip without it."""
  folder = Path(os.environ.get('YXANUL_SHARED', REPOSITORY.parent / 'shared'))
  if not folder.is_dir():
    pytest.skip(f'needs the measurement data, not found at {folder} (YXANUL_SHARED names another place)')
  return folder


@pytest.fixture(scope='module')
def world(tmp_path_factory) -> World:
  """Where faults happen."""
  return World(tmp_path_factory.mktemp('faults'))


@pytest.fixture(scope='session')
def trained_run(tmp_path_factory) -> Path:
  """The workdir of a tiny run that is over, what it said in output.txt. Whoever writes to it takes a copy."""
  workdir = tmp_path_factory.mktemp('trained') / 'run'
  status, output, errors = tiny.finish(tiny.main(f'--workdir={workdir}', *tiny.flags()))
  assert status == 0, errors
  (workdir / 'output.txt').write_text(output)
  return workdir
