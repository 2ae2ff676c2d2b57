"""Entries that learn with their parts: against matrices written out, and against a table that is trained as their product."""

import pytest
import torch

from tests.optim.optim_test import hyper
from yxanul.optim import inherit
from yxanul.optim.adamw import adamw
from yxanul.optim.inherit import inheriting
from yxanul.optim.transform import Hyper, apply_updates, chain, clip_by_global_norm
from yxanul.training.state import flatten

SHARE, NAME = 0.7, 'embedding.table'
N_BASE, N_MERGED, N_SPECIAL, WIDTH = 10, 60, 2, 8
N = N_BASE + N_MERGED + N_SPECIAL


@pytest.fixture(scope='module')
def parts():
  """Of entries as byte-pair encoding makes them, one of them the left part of many, and some many merges deep."""
  generator = torch.Generator().manual_seed(0)
  parts = torch.full((N, 2), -1)
  for entry in range(N_BASE, N_BASE + N_MERGED):
    parts[entry] = torch.randint(0, entry, (2,), generator=generator)
  parts[30:50, 0] = 3
  parts[50:60, 1] = torch.arange(49, 59)
  return parts


@pytest.fixture(autouse=True)
def short_runs(monkeypatch):
  monkeypatch.setattr(inherit, '_RUN', 4)  # so that the popular parts have several


@pytest.fixture(scope='module')
def matrices(parts):
  """M of either half, row by row as the recursion says it."""
  matrices = torch.eye(N, dtype=torch.float64).repeat(2, 1, 1)
  for side in range(2):
    for entry, part in enumerate(parts[:, side].tolist()):
      if part >= 0:
        matrices[side, entry] += SHARE * matrices[side, part]
  return matrices


def product(matrices, table):
  return torch.cat([m @ half for m, half in zip(matrices, table.double().chunk(2, 1), strict=True)], 1)


def draw(seed):
  return torch.randn(N, WIDTH, generator=torch.Generator().manual_seed(seed))


def test_the_matrices_are_the_recursion_and_its_transpose(parts, matrices):
  table = draw(0)
  inherited, passed_on = inherit.matrices(parts, SHARE)
  assert len(passed_on.runs) > 2 * N  # some rows are summed in two goes
  torch.testing.assert_close(inherit.product(inherited, table).double(), product(matrices, table), rtol=1e-5, atol=1e-5)
  torch.testing.assert_close(inherit.product(passed_on, table).double(), product(matrices.mT, table), rtol=1e-5, atol=1e-5)


def test_it_trains_what_entries_have_of_their_own(parts, matrices):
  """Ten steps with T alone, and ten of AdamW on E with T = M E in the graph: the same table."""
  rates = 0.9, 0.99, 1e-8, {NAME: 0.3}, {NAME: 1.0}
  target, own = draw(1).double(), draw(2)
  table = product(matrices, own)

  def loss_of(table):
    return ((table - target) ** 2).sum() + (table**4).sum() / 8

  ours, theirs = inheriting(adamw(*rates), NAME, parts, SHARE), adamw(*rates)
  params, own_params = {NAME: table.float()}, {NAME: own}
  state, own_state = ours.init(params), theirs.init(own_params)
  for _ in range(10):
    leaf = params[NAME].double().requires_grad_()
    gradient = {NAME: torch.autograd.grad(loss_of(leaf), leaf)[0].float()}
    updates, state = ours.update(gradient, state, params, hyper(gradient))
    params = apply_updates(params, updates)
    leaf = own_params[NAME].double().requires_grad_()
    gradient = {NAME: torch.autograd.grad(loss_of(product(matrices, leaf)), leaf)[0].float()}
    updates, own_state = theirs.update(gradient, own_state, own_params, hyper(gradient))
    own_params = apply_updates(own_params, updates)
  expected = product(matrices, own_params[NAME])
  assert (expected - table).norm() > 0.1 * table.norm()
  torch.testing.assert_close(params[NAME].double(), expected, rtol=1e-4, atol=1e-4)


def test_a_step_that_is_not_ok_leaves_table_and_moments(parts):
  optimizer = chain(clip_by_global_norm(), inheriting(adamw(0.9, 0.99, 1e-8, {NAME: 0.3}, {NAME: 1.0}), NAME, parts, SHARE))
  params, gradient, broken = {NAME: draw(0)}, {NAME: draw(1)}, {NAME: torch.full((N, WIDTH), torch.nan)}
  _, state = optimizer.update(gradient, optimizer.init(params), params, hyper(gradient))
  before = {path: leaf.clone() for path, leaf in flatten(state).items()}
  updates, state = optimizer.update(broken, state, params, hyper(broken, ok=0.0))
  assert torch.equal(apply_updates({NAME: draw(0)}, updates)[NAME], draw(0))
  assert all(torch.equal(leaf, before[path]) for path, leaf in flatten(state).items())


def test_entries_start_like_their_parts_and_as_large_as_drawn(parts):
  drawn = torch.randn(N, 512, generator=torch.Generator().manual_seed(0))
  table = inherit.start(drawn, parts, SHARE)
  torch.testing.assert_close(table.norm(dim=1), drawn.norm(dim=1))
  merged = parts[:, 0] >= 0
  torch.testing.assert_close(table[~merged], drawn[~merged])
  for side, half in enumerate(table.chunk(2, 1)):
    likeness = torch.cosine_similarity(half[merged], half[parts[merged, side]], dim=1)
    assert likeness.min() > 0.3  # of unrelated rows of 256 numbers: 0.06


def popular(n_entries):
  """Parts of a table in which one entry is the left part of all others."""
  parts = torch.full((n_entries, 2), -1)
  parts[2:] = torch.tensor([0, 1])
  return parts


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@pytest.mark.parametrize('n_entries', [N, 200_005])
def test_a_captured_update_is_the_compiled_one_and_that_of_the_host(parts, n_entries, monkeypatch):
  if n_entries != N:
    monkeypatch.undo()  # runs as long as they are
    parts = popular(n_entries)

  def draw_on(device, seed):
    return {NAME: torch.randn(n_entries, WIDTH, generator=torch.Generator().manual_seed(seed)).to(device)}

  def made(device):
    optimizer = inheriting(adamw(0.9, 0.99, 1e-8, {NAME: 0.3}, {NAME: 1.0}), NAME, parts, SHARE, torch.device(device))
    params = draw_on(device, 0)
    rates = Hyper(*(torch.tensor(value, device=device) for value in (1e-2, 1e9, 1.0, 1.0)))
    return optimizer, params, optimizer.init(params), rates

  def two_steps(update, params, state, rates):
    for seed in (1, 2):
      updates, state = update(draw_on(params[NAME].device, seed), state, params, rates)
    return updates[NAME], state

  optimizer, params, state, rates = made('cpu')
  on_host, _ = two_steps(optimizer.update, params, state, rates)

  optimizer, params, state, rates = made('cuda')
  update = torch.compile(optimizer.update, dynamic=False)
  compiled, compiled_state = two_steps(update, params, state, rates)
  torch.testing.assert_close(compiled.cpu(), on_host, rtol=1e-3, atol=1e-4)

  gradient, state, graph = draw_on('cuda', 1), optimizer.init(params), torch.cuda.CUDAGraph()
  leaves = flatten(state)
  torch.cuda.synchronize()
  torch.cuda.set_sync_debug_mode('error')  # whatever makes the host wait for the device raises
  try:
    update({NAME: gradient[NAME].clone()}, optimizer.init(params), params, rates)
  finally:
    torch.cuda.set_sync_debug_mode('default')
  with torch.cuda.graph(graph):
    updates, after = update({NAME: gradient[NAME].clone()}, state, params, rates)
    for path, leaf in flatten(after).items():
      leaves[path].copy_(leaf)
  for seed in (1, 2):
    gradient[NAME].copy_(draw_on('cuda', seed)[NAME])
    graph.replay()
  torch.cuda.synchronize()
  assert torch.equal(updates[NAME], compiled)
  assert all(torch.equal(leaf, flatten(compiled_state)[path]) for path, leaf in leaves.items())
