"""Every fault of tests/faults, a few times each; many times, for the record: `python -m tests.faults`, or -m slow.

Those of several processes are tried a few times by distributed_run_test.py.
"""

import pytest

from tests.faults.damage import CannotMount
from tests.faults.table import FAULTS, SEVERAL, few, many


@pytest.mark.parametrize('name', [name for name in FAULTS if name not in SEVERAL])
def test_nothing_is_lost(world, name):
  try:
    few(name, world)
  except CannotMount:
    pytest.skip('mounting a disk takes root')


@pytest.mark.slow
@pytest.mark.parametrize('name', FAULTS)
def test_nothing_is_lost_in_many_tries(world, name):
  assert many(name, world, FAULTS[name].tries) == []
