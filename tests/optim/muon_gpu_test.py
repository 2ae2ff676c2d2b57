"""Muon on a GPU: the same direction as on the CPU, no host sync, and a captured update that is the eager one."""

import pytest
import torch

from tests.optim.optim_test import MATRICES, hyper, plain_muon, tree
from yxanul.optim.muon import POLAR_EXPRESS, QUINTIC, orthogonalize
from yxanul.training.state import flatten

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')]


def on_gpu(tensors):
  return {name: t.cuda() for name, t in tensors.items()}


@pytest.mark.parametrize('shape', [(28, 768, 768), (28, 128, 768), (28, 2048, 768), (28, 768, 2048)])
@pytest.mark.parametrize('polynomials', [[QUINTIC] * 5, POLAR_EXPRESS], ids=['quintic', 'polar express'])
def test_ultras_shapes_come_out_orthogonal(shape, polynomials):
  matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0)).cuda()
  direction = orthogonalize(matrices, polynomials)
  values = torch.linalg.svdvals(direction[:2].float()).flatten()
  assert values.quantile(0.05) > 0.6  # the least of a random square matrix are near zero: five steps do not bring them up
  assert values.max() < 1.3
  expected = orthogonalize(matrices[:1].cpu(), polynomials).float()
  # The same products summed in another order, rounded to BF16 after each.
  assert (direction[:1].float().cpu() - expected).norm() < 0.03 * expected.norm()


@pytest.mark.parametrize('rows', [False, True], ids=['plain', 'rows normalized'])
def test_a_captured_update_is_the_eager_one_and_waits_for_nothing(rows):
  optimizer = plain_muon(row_normalization=rows)
  params, gradients = on_gpu(tree(0, MATRICES)), on_gpu(tree(1, MATRICES))
  rates = hyper(gradients)
  rates = rates._replace(**{name: value.cuda() for name, value in rates._asdict().items()})
  state, eager_state = (optimizer.init(params) for _ in range(2))

  def update(its_state):
    return optimizer.update({name: g.clone() for name, g in gradients.items()}, its_state, params, rates)

  for _ in range(3):  # libraries find their workspaces
    update(optimizer.init(params))
  torch.cuda.synchronize()
  torch.cuda.set_sync_debug_mode('error')
  try:
    expected = [update(eager_state)[0] for _ in range(2)][-1]
  finally:
    torch.cuda.set_sync_debug_mode('default')
  graph = torch.cuda.CUDAGraph()
  with torch.cuda.graph(graph):
    updates, after = update(state)
  for _ in range(2):
    graph.replay()
  torch.cuda.synchronize()
  assert all(torch.equal(updates[name], expected[name]) for name in MATRICES)
  assert all(torch.equal(a, b) for a, b in zip(flatten(after).values(), flatten(eager_state).values(), strict=True))
