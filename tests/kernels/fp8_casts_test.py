"""The Triton casts against the reference; under Triton's interpreter where there is no GPU."""

import os

import pytest
import torch

GPU = torch.cuda.is_available()
if not GPU:
  os.environ['TRITON_INTERPRET'] = '1'
pytest.importorskip('triton', reason='needs triton')

from yxanul.kernels import attention, fp8_casts, fp8_reference, fp8_rope  # noqa: E402
from yxanul.kernels.fp8_formats import BACKWARD, FORWARD, Matrix  # noqa: E402

DEVICE, DTYPE = ('cuda', torch.bfloat16) if GPU else ('cpu', torch.float32)
M, K = (4096 + 16, 768) if GPU else (272, 304)  # neither a whole number of tiles
EPS = 1e-5


@pytest.fixture(autouse=True)
def storage(monkeypatch):
  if not GPU:
    monkeypatch.setattr(fp8_casts, 'STORAGE', dict.fromkeys(fp8_casts.STORAGE, torch.float32))


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
  return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, DTYPE)


def both(name: str, *args, scale: float = 20.0):
  """The function of both modules: (results, amax) of each."""
  for module in (fp8_rope if name == 'turn_back_cast' else fp8_casts, fp8_reference):
    scale_1, amax = torch.tensor([scale], device=DEVICE), torch.full((1,), 1e-3, device=DEVICE)
    filled = [scale_1 if a == 'scale' else amax if a == 'amax' else a for a in args]
    yield getattr(module, name)(*filled), amax


def assert_same(got, wants, exact: bool):
  for a, b in zip(got, wants, strict=True):
    if isinstance(b, Matrix):
      assert a.dtype == b.dtype
      assert a.data.dtype == (b.dtype if GPU else torch.float32)
      assert a.scale_inv.item() == pytest.approx(b.scale_inv.item(), rel=1e-6)
      a, b = a.data.to(b.dtype).float(), b.data.float()
    assert a.shape == b.shape
    if exact:
      assert torch.equal(a, b)
    else:  # computed a hair apart before a rounding: a few land a step apart
      assert ((a.float() - b.float()).norm() / b.float().norm()).item() < (0.01 if GPU else 2e-3)


@pytest.mark.parametrize('dtype', [FORWARD, BACKWARD])
@pytest.mark.parametrize(('row', 'column'), [(True, True), (True, False), (False, True)])
def test_cast_is_bit_for_bit_the_reference(dtype, row, column):
  x = draw(M, K) * torch.logspace(-8, 5, K, device=DEVICE).to(DTYPE)
  (got, amax), (wants, wants_amax) = both('cast', x, 'scale', 'amax', dtype, row, column)
  assert [m is None for m in got] == [not row, not column]
  assert_same([m for m in got if m], [m for m in wants if m], exact=True)
  assert torch.equal(amax, wants_amax)


def test_cast_passes_nan_on_and_saturates_infinity():
  x = torch.tensor([[float('nan'), float('inf'), -float('inf'), 1.0] * 4] * 16, device=DEVICE, dtype=DTYPE)
  (row, _), _ = next(both('cast', x, 'scale', 'amax', FORWARD, True, True))
  assert row.data.to(FORWARD).float()[0, :4].isnan().tolist() == [True, False, False, False]
  assert row.data.to(FORWARD).float()[0, 1:4].tolist() == [448.0, -448.0, 20.0]


@pytest.mark.parametrize('with_delta', [False, True])
def test_norm_cast(with_delta):
  x, gain = draw(M, K) * 3, draw(K, seed=1).float()
  delta = draw(M, K, seed=2) if with_delta else None
  (got, amax), (wants, wants_amax) = both('norm_cast', x, delta, gain, EPS, 'scale', 'amax', True)
  assert_same(got, wants, exact=False)
  assert torch.equal(got[3], wants[3])
  torch.testing.assert_close(amax, wants_amax, rtol=1e-5, atol=0)


def test_norm_backward():
  x, dy, residual, gain = draw(M, K) * 3, draw(M, K, seed=1), draw(M, K, seed=2), draw(K, seed=3).float()
  rstd = torch.rsqrt(x.float().square().mean(-1) + EPS)
  got, wants = (module.norm_backward(dy, x, rstd, gain, residual) for module in (fp8_casts, fp8_reference))
  for a, b in zip(got, wants, strict=True):
    assert a.dtype == b.dtype
    assert ((a - b).float().norm() / b.float().norm()).item() < (2.0**-8 if GPU else 1e-5)


def test_swiglu_cast():
  (got, amax), (wants, wants_amax) = both('swiglu_cast', draw(M, 2 * K), 'scale', 'amax', True)
  assert_same(got, wants, exact=False)
  torch.testing.assert_close(amax, wants_amax, rtol=1e-5, atol=0)


@pytest.mark.parametrize(('row', 'column'), [(True, True), (False, True)])
def test_dswiglu_cast(row, column):
  (got, amax), (wants, wants_amax) = both(
    'dswiglu_cast', draw(M, K), draw(M, 2 * K, seed=1), 'scale', 'amax', row, column, scale=2000.0
  )
  assert_same([m for m in got if m], [m for m in wants if m], exact=False)
  torch.testing.assert_close(amax, wants_amax, rtol=1e-5, atol=0)


# Rows that no whole tile holds, lengths that fours of tokens straddle, halves of a head that are no power of two.
@pytest.mark.parametrize(('n_rows', 'length', 'heads', 'width'), [(4, 48, (4, 2), 16), (8, 13, (3, 1), 24), (1, 64, (2, 2), 8)])
def test_turn_back_cast(n_rows, length, heads, width):
  gradients = [draw(n_rows, length, n, width, seed=i) for i, n in enumerate((heads[0], heads[1], heads[1]))]
  tables = attention.rope_tables(length, width, 10000.0, torch.device(DEVICE))
  (got, amax), (wants, wants_amax) = both('turn_back_cast', *gradients, *tables, 'scale', 'amax', scale=2000.0)
  assert_same(got, wants, exact=False)
  assert torch.equal(got[0].data.t(), got[1].data)
  torch.testing.assert_close(amax, wants_amax, rtol=1e-5, atol=0)
