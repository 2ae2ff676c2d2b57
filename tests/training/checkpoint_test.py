"""Checkpoints: bit for bit, whole or not at all, and what a damaged one does."""

import re
import shutil
import time

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


def test_fp8_that_this_machine_lacks_is_named(tmp_path):
  saved(tmp_path / 'c', [1])
  checkpoints, without = Checkpoints(tmp_path / 'c', 2), state()._replace(fp8_state={})
  with pytest.raises(
    ValueError, match='step 1 was trained in FP8, and this machine does not run in FP8; wants a card with FP8'
  ):
    checkpoints.restore(without)
  checkpoints.save(without._replace(step=torch.tensor(2)), {})
  with pytest.raises(
    ValueError, match='step 2 was trained without FP8, and this machine does run in FP8; wants a card without FP8'
  ):
    checkpoints.restore(state())
  checkpoints.close()
  assert checkpoints.steps() == [1, 2]


def test_parameters_are_read_alone_and_nothing_is_changed(tmp_path):
  shapes = {'blocks.qkv.weight': (40, 30)}
  saved(tmp_path / 'c', [1, 2, 3])
  data = largest_file(tmp_path / 'c' / '3')
  data.write_bytes(bytes(byte ^ 1 for byte in data.read_bytes()))  # all: damage to what is not read is not seen
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
  (tmp_path / 'empty').mkdir()
  with pytest.raises(ValueError, match=r'^.*/empty: holds no checkpoint$'):
    read_params(tmp_path / 'empty', shapes)


def test_a_changed_digit_in_the_host_object_is_noticed(tmp_path):
  """It is JSON all the same: only a checksum can tell."""
  saved(tmp_path / 'c', [1, 2])
  path = next(p for p in (tmp_path / 'c' / '2' / 'host').iterdir() if b'"tokens"' in p.read_bytes())
  path.write_bytes(path.read_bytes().replace(b'"tokens": 2000', b'"tokens": 2001'))
  checkpoints, fresh = Checkpoints(tmp_path / 'c', 2), state(9)
  host, notes = checkpoints.restore(fresh)
  assert host['progress']['tokens'] == 1000
  assert 'checksum of the host object does not fit' in notes[0]
  checkpoints.close()


def test_an_earlier_one_can_be_asked_for(tmp_path):
  saved(tmp_path / 'c', [1, 2, 3])
  checkpoints, fresh = Checkpoints(tmp_path / 'c', 3), state(9)
  checkpoints.restore(fresh, before=3)
  assert same(fresh, state(2, 2))
  assert checkpoints.restore(fresh, before=1) is None
  checkpoints.close()


def test_another_configuration_is_refused_with_what_differs(tmp_path):
  config = {'seed': 0, 'model': {'d_model': 32}, 'training': {'checkpoints_kept': 2, 'execution': 'eager'}}
  checkpoints = Checkpoints(tmp_path / 'c', 2, config=config)
  checkpoints.save(state(1, 1), {})
  checkpoints.close()
  fresh = state(9)
  for training in ({'checkpoints_kept': 2, 'execution': 'graph'}, {'checkpoints_kept': 5, 'execution': 'graph'}):
    other = Checkpoints(tmp_path / 'c', 2, config={**config, 'seed': 7, 'training': training})
    with pytest.raises(
      ValueError, match=r"step 1 is of another .* config\.seed: 0 -> 7; config\.training\.execution: 'eager' ->"
    ):
      other.restore(fresh)
    other.close()
  assert same(fresh, state(9))
  assert not (tmp_path / 'c_broken').exists()
  # How a run is looked after may change between its sessions.
  kept = {**config, 'training': {'checkpoints_kept': 9, 'execution': 'eager', 'checkpoint_command': 'cp'}}
  kept['data'] = {'workers': 3}
  kept['seed'], kept['evaluation'] = 0, {'every_share': 0.05}  # a field that an older version did not save, at its default
  free = Checkpoints(tmp_path / 'c', 2, config=kept)
  free.restore(fresh)
  assert same(fresh, state(1, 1))
  free.close()


@pytest.mark.parametrize(('seconds', 'left'), [(0.0, [4, 5]), (1e6, [1, 4, 5]), (1e-6, [1, 2, 3, 4, 5])])
def test_one_in_every_so_many_seconds_stays_for_good(tmp_path, seconds, left):
  checkpoints = Checkpoints(tmp_path / 'c', 2, keep_every_seconds=seconds)
  for step in range(1, 6):
    checkpoints.save(state(step, step), {})
  checkpoints.close()
  assert Checkpoints(tmp_path / 'c', 2).steps() == left


def test_every_checkpoint_is_handed_to_the_command(tmp_path):
  (tmp_path / 'copies').mkdir()
  checkpoints = Checkpoints(tmp_path / 'c', 2, command=f'cp -r --target-directory={tmp_path / "copies"}', tell=pytest.fail)
  for step in (1, 2):
    checkpoints.save(state(step, step), {})
    checkpoints.close()
  copies, fresh = Checkpoints(tmp_path / 'copies', 2), state(9)
  assert copies.steps() == [1, 2]
  copies.restore(fresh)
  assert same(fresh, state(2, 2))
  copies.close()


COMMANDS = {
  'no-such-program -x': r'^no-such-program: cannot be started \(No such file or directory\); .*/1 is not copied$',
  "sh -c 'echo one >&2; echo two >&2; exit 3'": r'^sh: ended with status 3 \(two\); .*/1 is not copied$',
  'false': r'^false: ended with status 1 \(no message\); .*/1 is not copied$',
}


@pytest.mark.parametrize(('command', 'said'), COMMANDS.items(), ids=['missing', 'fails', 'says nothing'])
def test_a_command_that_fails_is_told_and_no_more(tmp_path, command, said):
  told = []
  checkpoints = Checkpoints(tmp_path / 'c', 2, command=command, tell=told.append)
  checkpoints.save(state(1, 1), {})
  checkpoints.close()
  assert len(told) == 1
  assert re.search(said, told[0]), told
  assert not checkpoints.failed


def test_a_command_that_is_slow_holds_nothing_up(tmp_path):
  told, started = [], time.perf_counter()
  checkpoints = Checkpoints(tmp_path / 'c', 2, command="sh -c 'sleep 3'", tell=told.append)
  for step in (1, 2):
    checkpoints.save(state(step, step), {})
    checkpoints.wait()
  assert time.perf_counter() - started < 3
  assert len(told) == 1
  assert 'still at work on the checkpoint before' in told[0]
  checkpoints.close()
  assert time.perf_counter() - started > 3
