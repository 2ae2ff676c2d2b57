"""What starts processes for the tests leaves none behind."""

import subprocess
import time

import pytest

from tests import tiny


def test_what_takes_too_long_is_killed_with_all_that_it_started():
  process = subprocess.Popen(
    ['sh', '-c', 'sh -c "setsid sleep 30; true" & echo started; wait'],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  started = time.monotonic()
  with pytest.raises(subprocess.TimeoutExpired):
    tiny.finish(process, timeout=0.5)
  # It has read to the end of the output, which stays open for as long as the sleep lives.
  assert time.monotonic() - started < 15
