"""Fused FP8 functions against the same pieces one by one."""

import pytest
import torch

from yxanul.config.model_spec import ModelSpec
from yxanul.kernels import attention, fp8, fp8_fused, norm

N, D, F, EPS = 256, 64, 96, 1e-5


def tensors(seed: int):
  g = torch.Generator().manual_seed(seed)
  x = torch.randn(4, N // 4, D, generator=g) * 2
  gain = torch.rand(D, generator=g) + 0.5
  up = torch.randn(2 * F, D, generator=g) * 0.1
  down = torch.randn(D, F, generator=g) * 0.1
  dy = torch.randn(4, N // 4, 2 * F, generator=g)
  delta = torch.randn(4, N // 4, D, generator=g)
  return (t.requires_grad_() for t in (x, delta, gain, up, down)), dy


def scales(*shape: int) -> torch.Tensor:
  return torch.tensor([40.0, 800.0, 4000.0]).expand(*shape, 3).contiguous()


def gradients(outputs, inputs, dy):
  """Through both outputs: what the linears returned, and the residual connection."""
  y, x = outputs
  return (y.detach(), *torch.autograd.grad((y, x), inputs, (dy[..., : y.shape[-1]], dy[..., : x.shape[-1]] * 3)))


def assert_close(got, wants, tolerance: float):
  for i, (a, b) in enumerate(zip(got, wants, strict=True)):
    assert a.shape == b.shape
    error = ((a - b).norm() / b.norm()).item()
    assert error < tolerance, f'tensor {i}: {error}'


@pytest.mark.parametrize('recipe', ['delayed', 'current'])
@pytest.mark.parametrize('engine', ['reference', 'calibrate', 'fp32'])
@pytest.mark.parametrize('with_delta', [False, True])
def test_norm_linear_is_norm_then_linear(engine, recipe, with_delta):
  (x, delta, gain, up, _), dy = tensors(0)
  amax, wants_amax = torch.zeros(3), torch.zeros(3)
  inputs = (x, delta, gain, up) if with_delta else (x, gain, up)
  delta = delta if with_delta else None
  got = gradients(fp8_fused.norm_linear(x, delta, gain, up, scales(), amax, engine, EPS, recipe), inputs, dy)
  stream = x + delta if with_delta else x
  y = fp8.linear(norm.rms_norm(stream, gain, EPS), up, None, scales(), wants_amax, engine, recipe)
  # All in float32: the fused and the separate norm differ in the last bit, which now and then moves an FP8 rounding.
  assert_close(got, gradients((y, stream), inputs, dy), 1e-3)
  torch.testing.assert_close(amax, wants_amax)


@pytest.mark.parametrize('recipe', ['delayed', 'current'])
@pytest.mark.parametrize('engine', ['reference', 'calibrate', 'fp32'])
def test_norm_mlp_is_its_pieces(engine, recipe):
  (x, delta, gain, up, down), dy = tensors(1)
  amax, wants_amax, scale = torch.zeros(2, 3), torch.zeros(2, 3), scales(2)
  inputs = (x, delta, gain, up, down)
  got = gradients(fp8_fused.norm_mlp(x, delta, gain, up, down, scale, amax, engine, EPS, recipe), inputs, dy)
  h = fp8.linear(norm.rms_norm(x + delta, gain, EPS), up, None, scale[0], wants_amax[0], engine, recipe)
  y = fp8.linear(norm.swiglu(h), down, None, scale[1], wants_amax[1], engine, recipe)
  assert_close(got, gradients((y, x + delta), inputs, dy), 2e-3)
  torch.testing.assert_close(amax, wants_amax, rtol=1e-3, atol=0)


@torch.no_grad()
def test_without_gradients_only_the_forward_pass_is_computed():
  (x, delta, gain, up, down), _ = tensors(2)
  amax = torch.zeros(2, 3)
  y, stream = fp8_fused.norm_mlp(x, delta, gain, up, down, scales(2), amax, 'reference', EPS)
  assert torch.equal(stream, x + delta)
  assert y.shape == x.shape
  assert torch.count_nonzero(amax[:, 2]) == 0
  z, _ = fp8_fused.norm_linear(x, None, gain, up, scales(), amax[0], 'reference', EPS)
  assert z.shape == (*x.shape[:-1], 2 * F)


def test_norm_qkv_is_norm_linear_then_split():
  """The gradients of q, k and v reach the same weights, and the same amax, whether the packed gradient is written or not."""
  heads, width = (4, 2), 8
  g = torch.Generator().manual_seed(3)
  x, delta = (torch.randn(2, 16, 32, generator=g).requires_grad_() for _ in range(2))
  gain, weight = (
    torch.ones(32).requires_grad_(),
    torch.randn(sum(heads) * width + heads[1] * width, 32, generator=g).requires_grad_(),
  )
  tables, inputs = attention.rope_tables(16, width, 10000.0, torch.device('cpu')), (x, delta, gain, weight)
  model = ModelSpec(n_heads=heads[0], n_kv_heads=heads[1], head_dim=width)
  amax, wants_amax = torch.zeros(3), torch.zeros(3)
  rotation = fp8_fused.Rotation(*tables, *heads, width)
  got = fp8_fused.norm_qkv(x, delta, gain, weight, scales(), amax, 'reference', EPS, rotation)
  qkv, stream = fp8_fused.norm_linear(x, delta, gain, weight, scales(), wants_amax, 'reference', EPS)
  wants = *attention.split(qkv, model, tables, fused=False), stream
  for a, b in zip(got, wants, strict=True):
    assert torch.equal(a, b)
  dy = [torch.randn(*part.shape, generator=g) for part in got]
  assert_close(torch.autograd.grad(got, inputs, dy), torch.autograd.grad(wants, inputs, dy), 1e-5)
  torch.testing.assert_close(amax, wants_amax)
