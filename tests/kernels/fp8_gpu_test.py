"""FP8 engines on a GPU against `reference` at equal scales; skipped where there is none."""

import pytest
import torch

from yxanul.config.model_spec import ModelSpec, PrecisionSpec
from yxanul.kernels import attention, capabilities, fp8, fp8_fused

pytestmark = [
  pytest.mark.gpu,
  pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9), reason='needs a GPU with FP8 (sm_89)'
  ),
]
# Casts are bit for bit the same; what differs is sums and the rounding of results. Hopper sums FP8 products with some 14 bits,
# in the forward pass without the second accumulator; BF16 results round by half a step of an 8-bit significand.
TOLERANCE = 0.02
WIDTHS = {'qkv': (1024, 768), 'attention_out': (768, 768), 'up': (4096, 768), 'down': (768, 2048)}
N = 4096


@pytest.fixture(params=['te', 'torch'])
def engine(request):
  if request.param == 'te':
    pytest.importorskip('transformer_engine.pytorch')
  return request.param


def tensors(name: str, seed: int = 0):
  g = torch.Generator('cuda').manual_seed(seed)
  d_out, d_in = WIDTHS[name]
  x = torch.randn(N, d_in, generator=g, device='cuda').bfloat16().requires_grad_()
  weight = (torch.randn(d_out, d_in, generator=g, device='cuda') * 0.02).requires_grad_()
  dy = (torch.randn(N, d_out, generator=g, device='cuda') * 1e-8).bfloat16()
  return x, weight, dy


def relative(a, b) -> float:
  return ((a.double() - b.double()).norm() / b.double().norm()).item()


def run(x, weight, dy, scale, engine, recipe='delayed'):
  amax = torch.zeros(3, device='cuda')
  y = fp8.linear(x, weight, None, scale, amax, engine, recipe)
  dx, dweight = torch.autograd.grad(y, (x, weight), dy)
  return y.detach(), dx, dweight, amax


def calibrated(x, weight, dy):
  amax = run(x, weight, dy, torch.ones(3, device='cuda'), 'calibrate')[3]
  return torch.tensor(fp8.ROLE_LARGEST, device='cuda') / amax


@pytest.mark.parametrize('recipe', ['delayed', 'current'])
@pytest.mark.parametrize('name', WIDTHS)
def test_linear_equals_reference(engine, name, recipe):
  x, weight, dy = tensors(name)
  scale = calibrated(x, weight, dy) * 0.7
  wants = run(x, weight, dy, scale, 'reference', recipe)
  got = run(x, weight, dy, scale, engine, recipe)
  for label, a, b in zip(('y', 'dx', 'dweight'), got, wants, strict=False):
    assert a.dtype == b.dtype
    assert relative(a, b) < TOLERANCE, label
  assert torch.equal(got[3], wants[3])


def test_casts_are_bit_for_bit_the_reference(engine):
  engine, reference = fp8.load(engine), fp8.load('reference')
  for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
    for source in (torch.bfloat16, torch.float32):
      x = (torch.randn(512, 256, device='cuda') * torch.logspace(-8, 4, 256, device='cuda')).to(source)
      scale, amax, wants_amax = torch.tensor([3.0], device='cuda'), *torch.zeros(2, 1, device='cuda')
      got = engine.cast(x, scale, amax, dtype, True, True)
      wants = reference.cast(x, scale, wants_amax, dtype, True, True)
      for a, b in zip(got, wants, strict=True):
        assert torch.equal(a.data.view(torch.uint8), b.data.view(torch.uint8))
        assert relative(a.scale_inv, b.scale_inv) < 3e-7  # a division rounded to within two steps
      assert torch.equal(amax, wants_amax)


def block(x, p, scale, amax, engine):
  """A layer without its attention: the four linears, both norms, both residual connections."""
  qkv, x = fp8_fused.norm_linear(x, None, p['gain1'], p['qkv'], scale[0], amax[0], engine, 1e-5)
  delta = fp8.linear(qkv[:, :768], p['attention_out'], None, scale[1], amax[1], engine)
  y, x = fp8_fused.norm_mlp(x, delta, p['gain2'], p['up'], p['down'], scale[2:], amax[2:], engine, 1e-5)
  return x + y


def block_tensors(seed: int = 0):
  g = torch.Generator('cuda').manual_seed(seed)
  p = {name: torch.randn(*shape, generator=g, device='cuda') * 0.02 for name, shape in WIDTHS.items()}
  p['gain1'], p['gain2'] = (torch.rand(768, generator=g, device='cuda') + 0.5 for _ in range(2))
  x = torch.randn(N, 768, generator=g, device='cuda').bfloat16()
  dy = (torch.randn(N, 768, generator=g, device='cuda') * 1e-7).bfloat16()
  return x.requires_grad_(), {name: t.requires_grad_() for name, t in p.items()}, dy


def run_block(x, p, dy, scale, engine):
  amax = torch.zeros(4, 3, device='cuda')
  out = block(x, p, scale, amax, engine)
  return out.detach(), amax, torch.autograd.grad(out, (x, *p.values()), dy)


@pytest.mark.parametrize('piece', ['norm', 'swiglu', 'dswiglu'])
def test_fused_casts_equal_reference(engine, piece):
  """At equal inputs: values a hair apart round apart now and then, a whole step of the format, so a few differ."""
  x, gain, h, da = (torch.randn(*shape, device='cuda') for shape in ((N, 768), (768,), (N, 4096), (N, 2048)))
  x, h, da = x.bfloat16(), h.bfloat16(), da.bfloat16()
  scale, got, wants = torch.tensor([50.0], device='cuda'), [], []
  for name, out in ((engine, got), ('reference', wants)):
    module, amax = fp8.load(name), torch.zeros(1, device='cuda')
    if piece == 'norm':
      out += module.norm_cast(x, x, gain, 1e-5, scale, amax, True)
    elif piece == 'swiglu':
      out += module.swiglu_cast(h, scale, amax, True)
    else:
      out += module.dswiglu_cast(da, h, scale, amax, True, True)
    out.append(amax)
  assert torch.equal(got[0].data.view(torch.uint8).t(), got[1].data.view(torch.uint8)), 'one rounding for both copies'
  for a, b in zip(got, wants, strict=True):
    if isinstance(b, fp8.Matrix):
      ours, theirs = a.data.view(torch.uint8), b.data.view(torch.uint8)
      assert (ours != theirs).float().mean().item() < 1e-3
      assert relative(a.data.view(b.dtype).float(), b.data.float()) < TOLERANCE
    else:
      assert relative(a, b) < 2.0**-8


def test_fused_block_is_near_the_reference(engine):
  """Rounding is chaotic: inputs of a cast apart by e come out apart by about sqrt(0.8 e step), step 1/8 to 1/4 in E5M2.

  So results equal to BF16's 0.002 after one linear are 0.02 apart after another, and 0.05 after two; two independent
  roundings would be 0.08 apart.
  """
  x, p, dy = block_tensors()
  amax = run_block(x, p, dy, torch.ones(4, 3, device='cuda'), 'calibrate')[1]
  assert bool((amax > 0).all())
  scale = torch.tensor(fp8.ROLE_LARGEST, device='cuda') / amax
  out, amax, gradients = run_block(x, p, dy, scale, engine)
  wants_out, wants_amax, wants = run_block(x, p, dy, scale, 'reference')
  assert relative(out, wants_out) < TOLERANCE
  for name, a, b in zip(('x', *p), gradients, wants, strict=True):
    assert relative(a, b) < 0.08, name
  torch.testing.assert_close(amax, wants_amax, rtol=0.15, atol=0)


def test_norm_qkv_equals_reference(engine):
  x, weight, _ = tensors('qkv')
  x, gain = x.detach().view(4, N // 4, 768).requires_grad_(), torch.ones(768, device='cuda', requires_grad=True)
  rotation = fp8_fused.Rotation(*attention.rope_tables(N // 4, 64, 10000.0, torch.device('cuda')), 12, 2, 64)
  dy = [torch.randn(4, N // 4, *rest, device='cuda').bfloat16() * 1e-7 for rest in ((12, 64), (2, 64), (2, 64), (768,))]
  scale, results = torch.tensor([80.0, 2000.0, 1e11], device='cuda'), []
  for name in (engine, 'reference'):
    amax = torch.zeros(3, device='cuda')
    out = fp8_fused.norm_qkv(x, None, gain, weight, scale, amax, name, 1e-5, rotation)
    results.append([*(part.detach() for part in out), amax, *torch.autograd.grad(out, (x, gain, weight), dy)])
  for a, b in zip(*results, strict=True):
    assert a.dtype == b.dtype
    assert relative(a, b) < TOLERANCE


def test_update_is_transformer_engines():
  pytest.importorskip('transformer_engine.pytorch')
  import transformer_engine_torch as tex
  from transformer_engine.pytorch.constants import TE_DType

  history, margin = 5, 1
  precision = PrecisionSpec(fp8_amax_history_steps=history, fp8_margin=margin)
  model = ModelSpec(vocab_size=64, d_model=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, d_hidden=96)
  state = fp8.init(model, precision, 'cuda')
  theirs = {role: [torch.zeros(history, 8, device='cuda'), torch.ones(8, device='cuda')] for role in range(3)}
  for step in range(14):
    amax = torch.rand(2, 4, 3, device='cuda') * 2.0 ** (step % 7 - 3)
    amax[0, 0] = 0
    state = fp8.update(state, amax, precision, torch.tensor(True, device='cuda'))
    for role, dtype in enumerate((torch.float8_e4m3fn, torch.float8_e4m3fn, torch.float8_e5m2)):
      tex.fused_amax_and_scale_update_after_reduction(
        amax[..., role].reshape(-1).contiguous(), [theirs[role][0]], [theirs[role][1]], 'max', TE_DType[dtype], margin
      )
      torch.testing.assert_close(state['scale'][..., role].flatten(), theirs[role][1], rtol=3e-7, atol=0)


def test_a_captured_block_reads_new_inputs_and_new_scales(engine):
  x, p, dy = block_tensors()
  amax = run_block(x, p, dy, torch.ones(4, 3, device='cuda'), 'calibrate')[1]
  scale = torch.tensor(fp8.ROLE_LARGEST, device='cuda') / amax
  for _ in range(2):
    run_block(x, p, dy, scale, engine)
  graph = torch.cuda.CUDAGraph()
  with torch.cuda.graph(graph):
    captured = run_block(x, p, dy, scale, engine)
  new_x, _, new_dy = block_tensors(seed=1)
  with torch.no_grad():
    x.copy_(new_x)
    dy.copy_(new_dy)
    scale.mul_(0.5)
  graph.replay()
  wants = run_block(x, p, dy, scale, engine)
  assert torch.equal(captured[0], wants[0])
  assert torch.equal(captured[1], wants[1])
  for a, b in zip(captured[2], wants[2], strict=True):
    # Transformer Engine's gradient of the norm's gain sums in an order that may differ between runs.
    assert relative(a, b) < 1e-3


def test_detect_names_the_card_and_its_engines():
  seen = capabilities.detect()
  assert seen.device == 'cuda'
  assert seen.memory_bytes > 2**30
  engines = capabilities.choose_engines(seen, PrecisionSpec())
  assert engines.linear in ('te', 'torch')
