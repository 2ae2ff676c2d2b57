"""Whole runs over several processes through real torchrun (Gloo): the same losses, one end for all, and an exact restart."""

import json

import pytest

from tests import tiny
from tests.faults.table import SEVERAL, few


def test_two_processes_log_what_one_does(world):
  assert len(tiny.metrics(world.whole)) > 20
  # FP32 sums in another order; later steps start from what that did to the weights.
  assert tiny.apart(world.together, world.whole, 1e-5, grad_norm=1e-4) == []
  results = [json.loads((workdir / 'result.json').read_text()) for workdir in (world.together, world.whole)]
  assert [result['processes'] for result in results] == [2, 1]
  assert results[0]['val_bpb'] == pytest.approx(results[1]['val_bpb'], rel=1e-6)
  assert (world.together / 'samples.txt').exists()


@pytest.mark.parametrize('name', SEVERAL)
def test_nothing_is_lost(world, name):
  few(name, world)
