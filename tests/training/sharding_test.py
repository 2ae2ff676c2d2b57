"""The optimizer's state divided over processes, through real torchrun (Gloo): the same steps, and checkpoints of any number."""

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests import tiny
from tests.training import sharding_worker
from tests.training.step_test import TEXT, clone
from yxanul.planning import memory
from yxanul.training.checkpoint import Checkpoints
from yxanul.training.distributed import ALONE
from yxanul.training.sharding import Sharding, sharding_for
from yxanul.training.state import flatten
from yxanul.training.step import make_train_step

WORLDS, CASES = pytest.mark.parametrize('world', [2, 4]), pytest.mark.parametrize('case', sharding_worker.CASES)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('sharded')


@pytest.fixture(scope='module')
def results(folder):
  """What each process of 2 and of 4 came to, these from the checkpoints of the 2: {world: [of rank 0, ...]}."""
  found = {}
  for world, before in ((2, 2), (4, 2)):
    process = tiny.torchrun(world, 'tests/training/sharding_worker.py', folder, before)
    status, _, errors = tiny.finish(process, timeout=300)
    assert status == 0, errors
    found[world] = [torch.load(folder / f'{world}-{rank}.pt', weights_only=True) for rank in range(world)]
  return found


def assert_same(case, a, b, what):
  """To the bit; under Muon as nearly as products of one matrix and of a stack agree in BF16, which BLAS does not promise."""
  if case == 'muon' and a.is_floating_point():
    assert (a - b).norm() <= 1e-3 * a.norm() + 1e-9, what
  else:
    assert torch.equal(a, b), what


def assert_same_metrics(case, a, b):
  for ours, theirs in zip(a, b, strict=True):
    for name, value in ours.items():
      assert_same(case, value, theirs[name], name)


def is_divided(case, path, leaf):
  return path.startswith('opt_state/') and leaf.ndim and not (case == 'inherits' and path.endswith('embedding.table'))


@WORLDS
@CASES
def test_a_divided_state_takes_the_same_steps(results, world, case):
  whole = results[world][0][case]
  for rank in results[world]:
    ours = rank[case]
    assert_same_metrics(case, whole['whole_metrics'], ours['metrics'])
    for path, leaf in whole['whole'].items():
      if not path.startswith('opt_state/'):
        assert_same(case, leaf, ours['state'][path], path)
        assert torch.equal(ours['state'][path], whole['state'][path]), path  # on every process


@WORLDS
@CASES
def test_each_process_keeps_the_state_of_its_rows(results, world, case):
  whole = results[world][0][case]['whole']
  ranks = [rank[case]['state'] for rank in results[world]]
  kept = [path for path, leaf in whole.items() if path.startswith('opt_state/') and leaf.ndim]
  divided = [path for path in kept if is_divided(case, path, whole[path])]
  assert len(divided) > 10
  for path in divided:
    assert_same(case, whole[path], torch.cat([rank[path] for rank in ranks]), path)
  for path in set(kept) - set(divided):
    assert all(torch.equal(whole[path], rank[path]) for rank in ranks), path
  assert len(kept) - len(divided) == (2 if case == 'inherits' else 0)
  spec = sharding_worker.case(case)[0]
  # What memory is planned with; the second moments of Muon's rows are a thousandth and not counted.
  bytes_of = [sum(rank[path].nbytes for path in kept if '/rows/' not in path) for rank in ranks]
  assert max(bytes_of) == memory.optimizer_bytes(spec, world) < memory.optimizer_bytes(spec)
  table = sum(whole[path].nbytes for path in set(kept) - set(divided))
  assert sum(bytes_of) == memory.optimizer_bytes(spec) + (world - 1) * table


@WORLDS
@CASES
def test_one_process_restores_a_checkpoint_of_several(results, folder, world, case):
  state = sharding_worker.fresh(case, seed=1)
  checkpoints = Checkpoints(folder / f'{case}-{world}', 3)
  checkpoints.restore(state)
  checkpoints.close()
  whole = results[world][0][case]['whole']
  assert flatten(state).keys() == whole.keys()
  for path, leaf in flatten(state).items():
    assert_same(case, leaf, whole[path], path)


@CASES
def test_four_processes_restore_a_checkpoint_of_two(results, case):
  whole = results[2][0][case]['whole']
  for path, leaf in whole.items():
    parts = [rank[case]['restored'][path] for rank in results[4]]
    assert_same(case, leaf, torch.cat(parts) if is_divided(case, path, leaf) else parts[3], path)


@CASES
def test_a_restored_run_goes_on_as_it_would_have(results, case):
  for rank in results[2]:
    assert_same_metrics(case, rank[case]['next_whole_metrics'], rank[case]['next_metrics'])


@WORLDS
@CASES
def test_a_rollback_takes_every_process_to_the_checkpoint_before(results, world, case):
  for rank in results[world]:
    for path, leaf in rank[case]['state'].items():
      assert torch.equal(leaf, rank[case]['rolled_back'][path]), path


def test_a_trial_of_the_step_takes_the_memory_of_the_gather_and_sends_nothing():
  """There is no other process here: what is sent would fail."""
  taken = []

  class Taken(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
      out = func(*args, **(kwargs or {}))
      if func is torch.ops.aten.new_empty.default:
        taken.append(out.nbytes)
      return out

  spec, stage, optimizer, engines = sharding_worker.case('adamw')
  sharding = Sharding(1, 2)
  state = sharding_worker.fresh('adamw', sharding.own)
  before = flatten(clone(state))
  step = make_train_step(spec, stage, optimizer, engines, TEXT, sharding=sharding)
  with Taken():
    tokens = torch.randint(0, 512, (stage.batch_size, stage.seq_len + 1), dtype=torch.int32)
    state, _ = step(state, tokens, torch.tensor(1e-2), torch.tensor(0.5))
  for name, now in state.params.items():
    theirs, ours = now.tensor_split(2)
    then = before[f'params/{name}'].tensor_split(2)
    assert torch.equal(theirs, then[0]), name
    assert not torch.equal(ours, then[1]), name
  assert sum(taken) == memory.gather_bytes(spec, 2)


def test_a_process_that_is_alone_keeps_everything():
  spec = sharding_worker.case('adamw')[0]
  sharding, tree = sharding_for(spec, ALONE), {'x': torch.zeros(3)}
  assert sharding.own(tree) is tree
  state = sharding_worker.fresh('adamw')
  assert sharding.whole(state) is sharding.room(state) is state
  plain = dataclasses.replace(spec, training=dataclasses.replace(spec.training, shard_optimizer=False))
  two = dataclasses.replace(ALONE, world=2, rank=1)
  assert sharding_for(plain, two).own(tree) is tree
  assert sharding_for(spec, two).own(tree)['x'].shape == (1,)
