"""Every fault of tests/faults.py, a few times each; many times, for the record: `python -m tests.faults`, or -m slow."""

import random

import pytest

from tests import faults


@pytest.fixture(scope='module')
def world(tmp_path_factory) -> faults.World:
  return faults.World(tmp_path_factory.mktemp('faults'))


@pytest.mark.parametrize('name', faults.FAULTS)
def test_nothing_is_lost(world, name):
  fault = faults.FAULTS[name]
  for number in range(fault.quick):
    try:
      fault.attempt(random.Random(f'{name} {number}'), world)
    except faults.CannotMount:
      pytest.skip('mounting a disk takes root')


@pytest.mark.slow
@pytest.mark.parametrize('name', faults.FAULTS)
def test_nothing_is_lost_in_many_tries(world, name):
  assert faults.many(name, world, faults.FAULTS[name].tries) == []
