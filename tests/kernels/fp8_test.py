"""FP8 linears and their state, through the engines that need no GPU."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from yxanul.config.model_spec import LINEARS, ModelSpec, PrecisionSpec
from yxanul.kernels import fp8, fp8_reference
from yxanul.kernels.fp8_formats import BACKWARD, FORWARD, LARGEST, scale_of
from yxanul.kernels.fp8_linears import Fp8Linears

MODEL = ModelSpec(vocab_size=64, d_model=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, d_hidden=96, max_positions=32)
N_TOKENS = 512
OK, NOT_OK = torch.tensor(True), torch.tensor(False)


# --- the formats -----------------------------------------------------------------------------------------------------


def finite_values(exponent_bits: int, mantissa_bits: int, bias: int, largest: float) -> list[float]:
  """Every non-negative finite value of a small float, by its definition (arXiv 2209.05433, table 1), in order of its code."""
  values = []
  for code in range(2 ** (exponent_bits + mantissa_bits)):
    exponent, mantissa = divmod(code, 2**mantissa_bits)
    if exponent == 0:
      value = mantissa * 2.0 ** (1 - bias - mantissa_bits)
    else:
      value = (1 + mantissa / 2**mantissa_bits) * 2.0 ** (exponent - bias)
    if value <= largest:
      values.append(value)
  return values


def round_slowly(x: np.ndarray, values: list[float]) -> np.ndarray:
  """Nearest value, ties to the even code, saturating: by comparison with every value."""
  table = np.array(values)
  distance = np.abs(np.abs(x)[:, None] - table[None])
  nearest = distance.min(1, keepdims=True)
  codes = np.arange(len(table))
  even_first = np.where(distance == nearest, codes % 2 * len(table) + codes, 10 * len(table)).argmin(1)
  return np.copysign(table[even_first], x)


FORMATS = [(FORWARD, finite_values(4, 3, 7, 448.0)), (BACKWARD, finite_values(5, 2, 15, 57344.0))]


@pytest.mark.parametrize(('dtype', 'values'), FORMATS, ids=['e4m3', 'e5m2'])
def test_cast_rounds_as_the_format_is_defined(dtype, values):
  assert values[-1] == LARGEST[dtype]
  table = np.array(values)
  middles = (table[1:] + table[:-1]) / 2
  random = np.exp(np.random.default_rng(0).uniform(math.log(values[1] / 8), math.log(values[-1] * 8), 4000))
  x = np.concatenate([table, middles, np.nextafter(np.float32(middles), np.float32(0)), random]).astype(np.float32)
  x = np.concatenate([x, -x])
  amax, scale = torch.zeros(1), torch.ones(1)
  row, column = fp8_reference.cast(torch.from_numpy(x)[None], scale, amax, dtype, row=True, column=True)
  np.testing.assert_array_equal(row.data.float()[0].numpy(), round_slowly(x.astype(np.float64), values))
  assert torch.equal(column.data.view(torch.uint8)[:, 0], row.data.view(torch.uint8)[0])
  assert amax.item() == np.abs(x).max()


def test_cast_scales_before_and_undoes_it_after():
  x = torch.randn(64, 32, generator=torch.Generator().manual_seed(0)) * 1e-6
  amax = torch.zeros(1)
  scale = scale_of(x.abs().amax().view(1), LARGEST[FORWARD], torch.ones(1))
  row, _ = fp8_reference.cast(x, scale, amax, FORWARD, row=True, column=False)
  assert row.data.float().abs().max() == LARGEST[FORWARD]
  back = row.data.float() * row.scale_inv
  # Half a step of a 3-bit mantissa, or half the least subnormal where x is small.
  bound = torch.maximum(x.abs() * 2.0**-4, row.scale_inv * 2.0**-10) * (1 + 1e-5)
  assert bool(((back - x).abs() <= bound).all())


@pytest.mark.parametrize(
  ('amax', 'wants'),
  [(2.0, 224.0), (0.0, 3.0), (math.inf, 3.0), (math.nan, 3.0), (1e-38, torch.finfo(torch.float32).max), (448.0, 1.0)],
)
def test_scale_of(amax, wants):
  assert scale_of(torch.tensor([amax]), 448.0, torch.tensor([3.0])).item() == wants
  if wants == 224.0:
    assert scale_of(torch.tensor([amax]), 448.0, torch.tensor([3.0]), margin=2).item() == 56.0


# --- the state -------------------------------------------------------------------------------------------------------


def slow_delayed_scaling(amaxes: list[float], oks: list[bool], length: int, largest: float, margin: int) -> list[float]:
  """One tensor's scales over the steps, as Transformer Engine's documentation tells it, in plain Python."""
  history, scale, scales = [], 1.0, []
  for amax, ok in zip(amaxes, oks, strict=True):
    if ok:
      history = [*history, amax][-length:]
      top = max(history)
      if top > 0 and math.isfinite(top):
        scale = largest / top / 2**margin
    scales.append(scale)
  return scales


@given(data=st.data(), length=st.integers(1, 6), margin=st.integers(0, 2))
@settings(max_examples=60, deadline=None)
def test_delayed_scaling_follows_a_plain_model(data, length, margin):
  steps = data.draw(st.integers(1, 12))
  amax = st.one_of(st.just(0.0), st.floats(2.0**-20, 2.0**20, width=32), st.just(math.inf))
  tracks = {role: data.draw(st.lists(amax, min_size=steps, max_size=steps)) for role in fp8.ROLES}
  oks = data.draw(st.lists(st.booleans(), min_size=steps, max_size=steps))
  precision = PrecisionSpec(fp8_amax_history_steps=length, fp8_margin=margin)
  model = ModelSpec(vocab_size=64, d_model=64, n_layers=1, n_heads=4, n_kv_heads=2, head_dim=16, d_hidden=96)
  state = fp8.init(model, precision)
  got = []
  for step in range(steps):
    row = torch.tensor([tracks[role][step] for role in fp8.ROLES])
    state = fp8.update(state, row.expand(1, 4, 3), precision, torch.tensor(oks[step]))
    got.append(state['scale'])
  for i, role in enumerate(fp8.ROLES):
    wants = slow_delayed_scaling(tracks[role], oks, length, fp8.ROLE_LARGEST[i], margin)
    for step, want in enumerate(wants):
      np.testing.assert_allclose(got[step][0, :, i].numpy(), want, rtol=3e-7)


def test_update_keeps_its_argument_and_a_skipped_step_changes_nothing():
  precision = PrecisionSpec(fp8_amax_history_steps=4)
  state = fp8.init(MODEL, precision)
  amax = torch.rand(state['scale'].shape, generator=torch.Generator().manual_seed(1)) + 0.1
  before = {name: tensor.clone() for name, tensor in state.items()}
  after = fp8.update(state, amax, precision, OK)
  assert all(torch.equal(state[name], before[name]) for name in before)
  assert not torch.equal(after['scale'], before['scale'])
  assert torch.equal(after['amax_history'][-1], amax)
  for bad in (amax * 2, torch.full_like(amax, math.nan), torch.full_like(amax, math.inf)):
    skipped = fp8.update(after, bad, precision, NOT_OK)
    assert all(torch.equal(skipped[name], after[name]) for name in after)


# --- the linear ------------------------------------------------------------------------------------------------------


def tensors(seed: int, gradient_size: float = 1.0, dtype=torch.float32):
  g = torch.Generator().manual_seed(seed)
  x = torch.randn(4, N_TOKENS // 4, 64, generator=g).to(dtype)
  weight = torch.randn(96, 64, generator=g) * 0.02
  dy = (torch.randn(4, N_TOKENS // 4, 96, generator=g) * gradient_size).to(dtype)
  return x.requires_grad_(), weight.requires_grad_(), dy


def run(x, weight, dy, scale, engine, recipe='delayed', bias=None):
  amax = torch.zeros(3)
  y = fp8.linear(x, weight, bias, scale, amax, engine, recipe)
  dx, dweight = torch.autograd.grad(y, (x, weight), dy)
  return y.detach(), dx, dweight, amax


def calibrated_scale(amax: torch.Tensor) -> torch.Tensor:
  return scale_of(amax, torch.tensor(fp8.ROLE_LARGEST), torch.ones(3))


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
  return ((a.double() - b.double()).norm() / b.double().norm()).item()


def test_calibrate_computes_without_fp8_and_writes_all_amaxes():
  x, weight, dy = tensors(0, 1e-9)
  wants = run(x, weight, dy, torch.ones(3), 'fp32')
  got = run(x, weight, dy, torch.ones(3), 'calibrate')
  assert all(torch.equal(a, b) for a, b in zip(got[:3], wants[:3], strict=True))
  torch.testing.assert_close(got[3], torch.stack([x.abs().max(), weight.abs().max(), dy.abs().max()]).detach(), rtol=0, atol=0)
  assert torch.equal(wants[3], torch.zeros(3))


@pytest.mark.parametrize('recipe', ['delayed', 'current'])
@pytest.mark.parametrize('seed', range(3))
def test_reference_products_are_within_the_error_of_the_formats(recipe, seed):
  """Rounding errors are independent over the summed axis, so a product's relative error is that of its operands.

  A format with m mantissa bits rounds within 2^-(m+1) of a value in [1, 2) times a power of two: a uniform error over a
  log-uniform value has a relative RMS of about 2^-(m+1) * 0.42. Two operands add in squares; twice that is the bound.
  """
  x, weight, dy = tensors(seed, 1e-7)
  scale = calibrated_scale(run(x, weight, dy, torch.ones(3), 'calibrate')[3])
  exact = run(x, weight, dy, scale, 'fp32')
  got = run(x, weight, dy, scale if recipe == 'delayed' else torch.ones(3), 'reference', recipe)
  e4m3, e5m2 = 0.42 * 2.0**-4, 0.42 * 2.0**-3
  for name, a, b, error in zip(
    ('y', 'dx', 'dweight'), got, exact, (math.hypot(e4m3, e4m3), math.hypot(e4m3, e5m2), math.hypot(e4m3, e5m2)), strict=False
  ):
    assert error / 2 < relative(a, b) < 2 * error, name
  assert torch.equal(got[3], calibrated_amax(x, weight, dy))


def calibrated_amax(x, weight, dy):
  return torch.stack([t.detach().abs().max() for t in (x, weight, dy)])


def test_reference_equals_the_recipe_written_out():
  x, weight, dy = tensors(3, 1e-6)
  scale = torch.tensor([100.0, 2000.0, 1e9])

  def quantized(t, i, dtype):
    return (t.detach() * scale[i]).clamp(-LARGEST[dtype], LARGEST[dtype]).to(dtype).double() / scale[i].double()

  xq, wq, dyq = quantized(x, 0, FORWARD), quantized(weight, 1, FORWARD), quantized(dy, 2, BACKWARD)
  y, dx, dweight, _ = run(x, weight, dy, scale, 'reference')
  for got, wants in ((y, xq @ wq.T), (dx, dyq @ wq), (dweight, dyq.flatten(0, 1).T @ xq.flatten(0, 1))):
    assert relative(got, wants) < 1e-6  # sums of 512 products in float32


def test_first_step_gradients_vanish_without_calibration_and_not_with_it():
  """The gradient of a mean over 131,072 tokens, as it reaches a block's weight at the start of `ultra`."""
  x, weight, dy = tensors(4, 1e-3 / 131_072)
  blind = run(x, weight, dy, torch.ones(3), 'reference')
  assert torch.count_nonzero(blind[2]) == 0
  assert torch.count_nonzero(blind[1]) == 0
  state = fp8.init(MODEL, PrecisionSpec())
  amax = torch.zeros_like(state['scale'])
  amax[1, 2] = run(x, weight, dy, state['scale'][1, 2], 'calibrate')[3]
  state = fp8.update(state, amax, PrecisionSpec(), OK)
  seeing = run(x, weight, dy, state['scale'][1, 2], 'reference')
  assert torch.count_nonzero(seeing[2]) == seeing[2].numel()


def test_linear_keeps_dtypes_shapes_and_bias():
  x, weight, dy = tensors(5, dtype=torch.bfloat16)
  bias = torch.randn(96, requires_grad=True)
  scale = torch.tensor([100.0, 1000.0, 1000.0])
  for engine in ('reference', 'bf16', 'calibrate'):
    y = fp8.linear(x, weight, bias, scale, torch.zeros(3), engine)
    assert y.shape == (4, N_TOKENS // 4, 96)
    assert y.dtype == torch.bfloat16
    dx, dweight, dbias = torch.autograd.grad(y, (x, weight, bias), dy)
    assert (dx.dtype, dweight.dtype, dbias.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    assert relative(dbias, dy.float().sum((0, 1))) < 2.0**-7
    assert relative(y.float(), (x.float() @ weight.T + bias).detach()) < 0.05
  assert fp8.linear(x, weight, bias, scale, torch.zeros(3), 'fp32').dtype == torch.float32


def test_linear_without_gradients_casts_no_transposes_and_agrees():
  x, weight, _ = tensors(6)
  scale, amax = torch.tensor([100.0, 1000.0, 1.0]), torch.zeros(3)
  with_gradients = fp8.linear(x, weight, None, scale, amax.clone(), 'reference')
  with torch.no_grad():
    assert torch.equal(fp8.linear(x, weight, None, scale, amax, 'reference'), with_gradients)
  frozen = fp8.linear(x, weight.detach(), None, scale, amax, 'reference')
  assert torch.autograd.grad(frozen.sum(), x)[0].shape == x.shape


def test_recomputation_in_the_backward_pass_changes_nothing():
  x, weight, dy = tensors(7)
  scale = torch.tensor([100.0, 1000.0, 1000.0])
  plain = run(x, weight, dy, scale, 'reference')
  amax = torch.zeros(3)
  y = torch.utils.checkpoint.checkpoint(
    lambda a, w: fp8.linear(a, w, None, scale, amax, 'reference'), x, weight, use_reentrant=False
  )
  again = (y.detach(), *torch.autograd.grad(y, (x, weight), dy), amax)
  assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_linears_of_a_model_read_and_write_their_own_state():
  precision = PrecisionSpec(fp8_linears=('qkv', 'down'), fp8_engine='reference')
  state = fp8.init(MODEL, precision)
  state['scale'] = state['scale'] * 64
  amax = torch.zeros_like(state['scale'])
  linears = Fp8Linears(MODEL, precision, 'reference', state['scale'], amax).at(1)
  x, weight, dy = tensors(8)
  for role, name in enumerate(LINEARS):
    torch.autograd.grad(linears.linear(x, {f'{name}.weight': weight}, name), (x, weight), dy)
    assert bool((amax[1, role] > 0).all()) == (name in ('qkv', 'down'))
  assert torch.count_nonzero(amax[0]) == 0


def test_torch_engine_agrees_with_reference():
  """The same casts, so only sums and the rounding of a product to BF16 differ: half a step of an 8-bit significand."""
  x, weight, dy = tensors(9, 1e-6, dtype=torch.bfloat16)
  scale = torch.tensor([100.0, 1000.0, 1e9])
  wants = run(x, weight, dy, scale, 'reference')
  got = run(x, weight, dy, scale, 'torch')
  for a, b in zip(got[:3], wants[:3], strict=True):
    assert relative(a, b) < 2.0**-8
  assert torch.equal(got[3], wants[3])
