"""Checkpoints: bit for bit, whole or not at all, and what a damaged one does."""

import shutil

import ml_dtypes
import numpy as np
import pytest
import torch

from yxanul.training.checkpoint import Checkpoints, from_numpy, read_params, to_numpy
from yxanul.training.state import TrainState, flatten


def state(seed=0, step=1):
  generator = torch.Generator().manual_seed(seed)
  weight = torch.randn(40, 30, generator=generator)
  return TrainState(
    step=torch.tensor(step),
    params={'blocks.qkv.weight': weight, 'half': weight.bfloat16()},
    opt_state=((), {'count': torch.tensor(float(step)), 'first': {'blocks.qkv.weight': weight.square()}}),
    fp8_state={'scale': weight[0], 'eight': weight.to(torch.float8_e4m3fn)},
    loss_state={'mean': weight[0, 0]},
    rng=torch.tensor([seed, 3]),
    data_state=torch.tensor(step * 1000),
  )


def same(a, b):
  a, b = flatten(a), flatten(b)
  return a.keys() == b.keys() and all(torch.equal(a[k].float(), b[k].float()) and a[k].dtype == b[k].dtype for k in a)


def saved(folder, steps, kept=3):
  checkpoints = Checkpoints(folder, kept)
  for step in steps:
    checkpoints.save(state(seed=step, step=step), {'progress': {'tokens': step * 1000, 'loss': 0.1 + 0.2}})
  checkpoints.close()


@pytest.mark.parametrize(
  ('dtype', 'name'),
  [
    (torch.bfloat16, ml_dtypes.bfloat16),
    (torch.float8_e4m3fn, ml_dtypes.float8_e4m3fn),
    (torch.float8_e5m2, ml_dtypes.float8_e5m2),
  ],
)
def test_the_bridge_to_numpy_keeps_every_bit(dtype, name):
  x = torch.randn(7, 5).to(dtype)
  array = to_numpy(x)
  assert array.dtype == name
  assert np.array_equal(array.astype(np.float32), x.float().numpy())
  back = from_numpy(array)
  assert back.dtype == dtype
  assert torch.equal(back.view(torch.uint8), x.view(torch.uint8))


def test_a_save_is_a_snapshot(tmp_path):
  """The state's tensors are reused by the next step while the files are still being written."""
  checkpoints = Checkpoints(tmp_path / 'c', 2)
  live = state()
  expected = state()
  checkpoints.save(live, {})
  for leaf in flatten(live).values():
    leaf.zero_()
  checkpoints.wait()
  _, notes = checkpoints.restore(live)
  assert same(live, expected)
  assert notes == []
  checkpoints.close()


def test_the_newest_is_restored_and_older_ones_go(tmp_path):
  saved(tmp_path / 'c', [1, 2, 3], kept=2)
  checkpoints, fresh = Checkpoints(tmp_path / 'c', 2), state(9)
  assert checkpoints.steps() == [2, 3]
  host, _ = checkpoints.restore(fresh)
  assert same(fresh, state(3, 3))
  assert host['progress'] == {'tokens': 3000, 'loss': 0.1 + 0.2}
  checkpoints.close()


def test_no_checkpoint_is_none(tmp_path):
  checkpoints = Checkpoints(tmp_path / 'c', 2)
  assert checkpoints.restore(state()) is None
  checkpoints.close()


def largest_file(folder):
  return max((p for p in folder.rglob('*') if p.is_file()), key=lambda p: p.stat().st_size)


def truncate(folder):
  path = largest_file(folder)
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(folder):
  path = largest_file(folder)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def lose(folder):
  largest_file(folder).unlink()


def lose_host(folder):
  shutil.rmtree(folder / 'host')


@pytest.mark.parametrize('damage', [truncate, flip, lose, lose_host])
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(tmp_path, damage):
  saved(tmp_path / 'c', [1, 2, 3])
  damage(tmp_path / 'c' / '3')
  checkpoints, fresh = Checkpoints(tmp_path / 'c', 3), state(9)
  host, notes = checkpoints.restore(fresh)
  assert same(fresh, state(2, 2))
  assert host['progress']['tokens'] == 2000
  assert len(notes) == 1
  assert notes[0].startswith('checkpoint of step 3 is not usable')
  # It stands aside, so that the step can be saved again; nothing is deleted.
  assert [p.name for p in (tmp_path / 'c_broken').iterdir()] == ['0-step-3']
  checkpoints.save(state(3, 3), {})
  checkpoints.wait()
  assert checkpoints.steps() == [1, 2, 3]
  checkpoints.close()


def test_when_all_are_damaged_nothing_is_touched(tmp_path):
  saved(tmp_path / 'c', [1, 2])
  for step in (1, 2):
    lose(tmp_path / 'c' / str(step))
  checkpoints, fresh = Checkpoints(tmp_path / 'c', 2), state(9)
  with pytest.raises(ValueError, match=r'checkpoint of step 2 is not usable.*checkpoint of step 1 .*no sound checkpoint'):
    checkpoints.restore(fresh)
  assert same(fresh, state(9))
  assert checkpoints.steps() == [1, 2]
  checkpoints.close()


def test_other_shapes_are_refused(tmp_path):
  saved(tmp_path / 'c', [1])
  other = state()._replace(params={'blocks.qkv.weight': torch.zeros(3, 3), 'half': torch.zeros(40, 30).bfloat16()})
  checkpoints = Checkpoints(tmp_path / 'c', 2)
  with pytest.raises(ValueError, match=r'params/blocks.qkv.weight is torch.float32\[40, 30\], wants torch.float32\[3, 3\]'):
    checkpoints.restore(other)
  checkpoints.close()


def test_parameters_are_read_alone_and_nothing_is_changed(tmp_path):
  shapes = {'blocks.qkv.weight': (40, 30)}
  saved(tmp_path / 'c', [1, 2, 3])
  flip(tmp_path / 'c' / '3')
  before = {p: p.read_bytes() for p in (tmp_path / 'c').rglob('*') if p.is_file()}
  params, host, notes = read_params(tmp_path / 'c', shapes)
  assert params.keys() == shapes.keys()
  assert torch.equal(params['blocks.qkv.weight'], state(2, 2).params['blocks.qkv.weight'])
  assert host['progress']['tokens'] == 2000
  assert [note[:35] for note in notes] == ['checkpoint of step 3 is not usable ']
  assert {p: p.read_bytes() for p in (tmp_path / 'c').rglob('*') if p.is_file()} == before
  with pytest.raises(ValueError, match=r'is float32\[40, 30\], wants float32\[4, 4\].*no sound checkpoint'):
    read_params(tmp_path / 'c', {'blocks.qkv.weight': (4, 4)})
  with pytest.raises(ValueError, match='missing: holds no checkpoint'):
    read_params(tmp_path / 'missing', shapes)
