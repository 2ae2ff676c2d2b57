"""What the bench of a table that inherits compares: the same sums, of a vocabulary like a real one."""

import functools

import pytest
import torch

from yxanul.kernels.bag_sums import bag_sums_by_torch
from yxanul.optim.inherit import matrices, product
from yxanul.training import benchmark_inheritance as bench

SHAPE = (3000, 16)


def test_a_drawn_vocabulary_is_built_of_earlier_entries_and_as_deep_as_superbpe():
  parts = bench.drawn_parts(200_005)
  merged = parts[:, 0] >= 0
  assert merged.sum() == 200_005 - 261
  assert (parts < torch.arange(200_005).unsqueeze(1)).all()
  inherited, _ = matrices(parts, 0.7)
  assert len(inherited.columns) / (2 * 200_005) - 1 == pytest.approx(2.9, abs=0.1)  # ancestors of half a row


def test_the_peers_of_the_products_give_the_same_sums():
  table = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
  both = matrices(bench.drawn_parts(SHAPE[0]), 0.7)
  assert len(both[1].runs) > 2 * SHAPE[0]  # some rows are summed in two goes
  for matrix in both:
    wants = product(matrix, table)
    for way in (functools.partial(bench.by_bags, bag_sums_by_torch), bench.by_sparse_tensor):
      torch.testing.assert_close(way(matrix)(table), wants, rtol=1e-5, atol=1e-5)
