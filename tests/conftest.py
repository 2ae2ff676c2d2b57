"""Fixtures that more than one area uses."""

import os
from pathlib import Path

import pytest

from tests import tiny

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope='session')
def shared() -> Path:
  """The folder with the measurement corpus and the official tokenizers; tests that need it skip without it."""
  folder = Path(os.environ.get('YXANUL_SHARED', REPOSITORY.parent / 'shared'))
  if not folder.is_dir():
    pytest.skip(f'needs the measurement data, not found at {folder} (YXANUL_SHARED names another place)')
  return folder


@pytest.fixture(scope='session')
def trained_run(tmp_path_factory) -> Path:
  """The workdir of a tiny run that is over. Whoever writes to it takes a copy."""
  workdir = tmp_path_factory.mktemp('trained') / 'run'
  status, _, errors = tiny.finish(tiny.main(f'--workdir={workdir}', *tiny.flags()))
  assert status == 0, errors
  return workdir
