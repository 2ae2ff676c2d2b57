"""Several processes through real torchrun (Gloo): one process's step to the rounding of sums, and the same bits on all."""

import dataclasses
import math
import subprocess
import sys

import pytest
import torch

from tests import tiny
from tests.training import distributed_worker
from yxanul.model import transformer
from yxanul.training.distributed import Processes, Reduction, join

SHARED = tiny.spec().curriculum.stages[:6]  # the later stages have odd rows
# Engine, pieces that the rows go through in, blocks that run.
KEYS = [(engine, *shape) for engine in ('fp32', 'reference') for shape in ((1, 2), (2, 2), (2, 1))]


@pytest.fixture(scope='module')
def results(tmp_path_factory):
  """What each process of 1, 2 and 4 came to: {world: [of rank 0, ...]}."""
  folder, script = tmp_path_factory.mktemp('steps'), 'tests/training/distributed_worker.py'
  distributed_worker.main(folder)
  for world in (2, 4):
    status, _, errors = tiny.finish(tiny.torchrun(world, script, folder), timeout=300)
    assert status == 0, errors
  found = {}
  for world in (1, 2, 4):
    found[world] = [torch.load(folder / f'{world}-{rank}.pt', weights_only=True) for rank in range(world)]
  return found


@pytest.mark.parametrize('world', [2, 4])
@pytest.mark.parametrize('key', KEYS, ids=str)
def test_every_process_has_the_same_bits(results, world, key):
  first, *others = (rank[key] for rank in results[world])
  for other in others:
    assert all(torch.equal(leaf, other['state'][path]) for path, leaf in first['state'].items())
    assert first['steps'] == other['steps']


@pytest.mark.parametrize('world', [1, 2, 4])
def test_every_process_hears_of_each(results, world):
  assert [rank['from_each'] for rank in results[world]] == [[[rank, math.inf] for rank in range(world)]] * world


@pytest.mark.parametrize('world', [2, 4])
@pytest.mark.parametrize('key', KEYS, ids=str)
def test_several_processes_take_the_step_of_one(results, world, key):
  one, several = results[1][0][key], results[world][0][key]
  exact = key[0] == 'fp32'
  for turn, (a, b) in enumerate(zip(one['steps'], several['steps'], strict=True)):
    for name in ('loss', 'nats', 'bytes', 'skipped', 'grad_norm'):
      # Under FP8 a sum that differs in its last bit can round to the neighbour, an eighth off, and later steps start from it.
      tolerance = 1e-6 if exact else (1e-4, 1e-3, 1e-3)[turn] if name != 'grad_norm' else (1e-4, 3e-2, 3e-2)[turn]
      torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=0.0, msg=name)
  assert [float(m['asks']) for m in several['steps']] == [0, 0, 1]
  for path, leaf in one['first'].items():
    other = several['first'][path]
    if 'first' in path.split('/'):  # the moment holds the gradient: the same sum in another order
      assert (leaf - other).norm() <= (1e-5 if exact else 2e-2) * leaf.norm() + 1e-9, path
    elif path in ('step', 'data_state', 'rng'):
      assert torch.equal(leaf, other), path
  if not exact:
    # Without the maximum over processes the scales would follow one share of the rows.
    torch.testing.assert_close(one['first']['fp8_state/scale'], several['first']['fp8_state/scale'], rtol=1e-2, atol=0.0)


@pytest.mark.parametrize('world', [2, 4])
@pytest.mark.parametrize('key', KEYS, ids=str)
def test_what_is_not_finite_on_one_process_is_skipped_by_all(results, world, key):
  assert all(rank[key]['skipped'] == 1 and rank[key]['untouched'] for rank in results[world])


def test_a_layers_sum_begins_before_the_layer_below_is_differentiated():
  """What overlaps on a GPU: the order in which backward enqueues the sums and the layers' own work."""
  events = []

  class Recorded(Reduction):
    def begin(self, x):
      events.append(('sum', x.numel()))

    def finish(self):
      events.append(('wait', 0))

  params = {'blocks.a.weight': torch.randn(3, 4, 4), 'blocks.b.weight': torch.randn(3, 4), 'other': torch.randn(4)}
  leaves = {name: p.requires_grad_() for name, p in params.items()}
  x = torch.randn(4)
  for layer, p in enumerate(Recorded(1, torch.device('cpu')).layers(leaves)):
    x = torch.tanh(p['a.weight'] @ x) * p['b.weight']
    x.register_hook(lambda _, layer=layer: events.append(('layer', layer)))
  x.sum().backward()
  sums = ('sum', 20)
  assert events == [('layer', 2), sums, ('layer', 1), sums, ('layer', 0), sums, ('wait', 0)]
  before = {name: torch.randn_like(p) for name, p in leaves.items()}
  y = torch.ones(4)
  for p in Recorded(1, torch.device('cpu')).layers(leaves, before):
    y = torch.tanh(p['a.weight'] @ y) * p['b.weight']
  plain, z = {name: p.detach().requires_grad_() for name, p in params.items()}, torch.ones(4)
  for p in transformer.layers(plain):
    z = torch.tanh(p['a.weight'] @ z) * p['b.weight']
  names = ['blocks.a.weight', 'blocks.b.weight']
  summed = torch.autograd.grad(y.sum(), [leaves[n] for n in names])
  for name, a, b in zip(names, summed, torch.autograd.grad(z.sum(), [plain[n] for n in names]), strict=True):
    torch.testing.assert_close(a, b + before[name])


def test_a_batch_that_cannot_be_shared_is_refused():
  spec = tiny.spec()
  Processes(0, 2).check(dataclasses.replace(spec, curriculum=dataclasses.replace(spec.curriculum, stages=SHARED)))
  with pytest.raises(ValueError, match=r'stages\[1\].batch_size: got 32, wants a multiple of the 3 processes$'):
    Processes(0, 3).check(spec)
  # 48 rows of 8 tokens: two rows for each of 24 processes go through FP8, the one that each of 48 would get does not.
  fp8 = tiny.spec(precision__matmul='fp8')
  fp8 = dataclasses.replace(fp8, curriculum=dataclasses.replace(fp8.curriculum, stages=fp8.curriculum.stages[:1]))
  Processes(0, 24).check(fp8)
  with pytest.raises(ValueError, match=r'got 48, wants a multiple of the 48 processes, each with a multiple of 16 tokens'):
    Processes(0, 48).check(fp8)


def test_a_gpu_that_hangs_is_one_line_and_a_status():
  """Alone: there is no peer that could be lost."""
  code = """
from yxanul.training import metrics
from yxanul.training.distributed import join

metrics.PEER_SECONDS = 0
class Hung:
  query = staticmethod(lambda: False)
with join():
  queue = metrics.MetricsQueue(metrics.torch.device('cpu'))
  queue._waiting.append((Hung, None, None))
  queue.get()
"""
  done = subprocess.run([sys.executable, '-c', code], cwd=tiny.REPOSITORY, capture_output=True, text=True, check=False)
  line = 'error: a step did not end in 0 s; what is saved stands, the same command goes on from there\n'
  assert (done.returncode, done.stderr) == (1, line)


def test_more_processes_than_gpus_are_refused(monkeypatch):
  monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
  monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
  for name, value in {'RANK': '0', 'WORLD_SIZE': '4', 'LOCAL_WORLD_SIZE': '4', 'LOCAL_RANK': '0'}.items():
    monkeypatch.setenv(name, value)
  with pytest.raises(ValueError, match=r'torchrun --nproc_per_node=4: wants at most the 2 GPUs of this machine'), join():
    pass


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='needs two CUDA devices')
@pytest.mark.parametrize(('matmul', 'optimizer'), [('fp32', 'adamw'), ('bf16', 'muon'), ('fp8', 'adamw')])
def test_two_gpus_take_the_captured_steps_of_one(tmp_path, matmul, optimizer):
  for world in (1, 2):
    script = ('tests/training/distributed_worker.py', tmp_path, matmul, optimizer)
    status, _, errors = tiny.finish(tiny.torchrun(world, *script), timeout=300)
    assert status == 0, errors
  one, two, other = (torch.load(tmp_path / name, weights_only=True) for name in ('1-0.pt', '2-0.pt', '2-1.pt'))
  for kind in ('whole', 'divided'):
    assert two[kind]['losses'] == other[kind]['losses']
    for path, leaf in two[kind]['shared'].items():
      assert torch.equal(leaf, other[kind]['shared'][path]), path
  one, two, divided = one['whole'], two['whole'], two['divided']
  if optimizer == 'adamw':
    assert divided['losses'] == two['losses']
  for path, leaf in two['shared'].items():
    theirs = divided['shared'][path]
    if optimizer == 'adamw':
      assert torch.equal(leaf, theirs), path
    elif path.startswith('params/'):  # as in sharding_test
      assert (leaf.double() - theirs.double()).norm() <= 1e-3 * leaf.double().norm() + 1e-9, path
  for a, b in zip(two['losses'], divided['losses'], strict=True):
    assert b == pytest.approx(a, rel=2e-2)
  assert one['captured'] == two['captured'] == 9
  tolerance = {'fp32': 1e-4, 'bf16': 2e-2, 'fp8': 2e-2}[matmul]
  for a, b in zip(one['losses'], two['losses'], strict=True):
    assert b[:2] == pytest.approx(a[:2], rel=tolerance)
    assert b[2] == pytest.approx(a[2], rel=10 * tolerance)
