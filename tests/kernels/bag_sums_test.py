"""Sums of weighted rows: torch's and our own kernel, which runs under Triton's interpreter where there is no GPU."""

import os

import pytest
import torch

GPU = torch.cuda.is_available()
if not GPU:
  os.environ['TRITON_INTERPRET'] = '1'

from yxanul.kernels.bag_sums import bag_sums  # noqa: E402

DEVICE = 'cuda' if GPU else 'cpu'


def bags(sizes, n_rows, width, seed=0):
  """Rows, which of them each bag has, where it begins, and weights; the sums in FP64."""
  generator = torch.Generator().manual_seed(seed)
  sizes = torch.tensor(sizes)
  x = torch.randn(n_rows, width, generator=generator)
  rows = torch.randint(0, n_rows, (int(sizes.sum()),), generator=generator)
  weights = torch.randn(len(rows), generator=generator)
  bag = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
  sums = torch.zeros(len(sizes), width, dtype=torch.float64).index_add_(0, bag, weights.double()[:, None] * x.double()[rows])
  return [t.to(DEVICE) for t in (x, rows, sizes.cumsum(0) - sizes, weights)], sums


# Bags shorter and longer than what the kernel reads at a time, programs with bags of every length and with too few, a last one
# of any size, rows that are no power of two, and rows too wide for several bags.
CASES = [([1, 3, 8, 9, 256, 1, 40], 50, 64), ([5], 7, 16), ([17, 2], 3, 12), ([1] * 30, 30, 1), ([3, 1, 5], 9, 300)]


@pytest.mark.parametrize('triton', [False, True], ids=['torch', 'triton'])
@pytest.mark.parametrize('numbers', [torch.int32, torch.int64], ids=['int32', 'int64'])
@pytest.mark.parametrize(('sizes', 'n_rows', 'width'), CASES)
def test_every_bag_is_the_sum_of_its_weighted_rows(sizes, n_rows, width, numbers, triton):
  (x, rows, starts, weights), wants = bags(sizes, n_rows, width)
  arguments = x, rows.to(numbers), starts.to(numbers), weights
  function = bag_sums
  if triton:
    pytest.importorskip('triton', reason='needs triton')
    from yxanul.kernels.bag_sums_triton import bag_sums as function
  got = function(*arguments)
  assert got.dtype == torch.float32
  torch.testing.assert_close(got.cpu().double(), wants, rtol=1e-5, atol=1e-5)
  assert torch.equal(got, function(*arguments))


def test_torch_compile_takes_it_as_it_is():
  arguments, wants = bags([2, 5, 1], 9, 8)
  compiled = torch.compile(lambda *args: 2 * bag_sums(*args), fullgraph=True, backend='aot_eager')
  torch.testing.assert_close(compiled(*arguments).cpu().double(), 2 * wants, rtol=1e-5, atol=1e-5)
