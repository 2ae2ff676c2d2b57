"""Every fault of tests/faults, a few times each; many times, for the record: `python -m tests.faults`, or -m slow."""

import random

import pytest

from tests.faults.damage import CannotMount
from tests.faults.table import FAULTS, many
from tests.faults.world import World


@pytest.fixture(scope='module')
def world(tmp_path_factory) -> World:
  return World(tmp_path_factory.mktemp('faults'))


@pytest.mark.parametrize('name', FAULTS)
def test_nothing_is_lost(world, name):
  fault = FAULTS[name]
  for number in range(fault.quick):
    try:
      fault.attempt(random.Random(f'{name} {number}'), world)
    except CannotMount:
      pytest.skip('mounting a disk takes root')


@pytest.mark.slow
@pytest.mark.parametrize('name', FAULTS)
def test_nothing_is_lost_in_many_tries(world, name):
  assert many(name, world, FAULTS[name].tries) == []
