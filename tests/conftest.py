"""Fixtures that more than one area uses."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope='session')
def shared() -> Path:
  """The folder with the measurement corpus and the official tokenizers; tests that need it skip without it."""
  folder = Path(os.environ.get('YXANUL_SHARED', REPOSITORY.parent / 'shared'))
  if not folder.is_dir():
    pytest.skip(f'needs the measurement data, not found at {folder} (YXANUL_SHARED names another place)')
  return folder
