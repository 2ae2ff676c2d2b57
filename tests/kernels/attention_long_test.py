"""Long attention of our own: where it is chosen and where it gives way, and on a GPU that it says what plain attention says."""

import itertools

import pytest
import torch

from yxanul.config.model_spec import ModelSpec
from yxanul.kernels import attention

GPU = torch.cuda.is_available()
HOPPER = GPU and torch.cuda.get_device_capability() == (9, 0)
# Operands and results are rounded to BF16, some 2^-9 / sqrt(3) each, in root mean square.
TOLERANCE = 2.0**-7


def draw(n_rows: int, length: int, heads=(12, 2), device='cpu', dtype=torch.float32, seed: int = 0):
  """q, k, v, and the gradient of the output."""
  g = torch.Generator(device).manual_seed(seed)
  shapes = [(n_rows, length, n, 64) for n in (heads[0], heads[1], heads[1], heads[0])]
  q, k, v, dout = (torch.randn(*shape, generator=g, device=device).to(dtype) for shape in shapes)
  return *(x.requires_grad_() for x in (q, k, v)), dout


def both(q, k, v, dout, engine):
  out = attention.attention(q, k, v, engine=engine)
  return out.detach(), *torch.autograd.grad(out, (q, k, v), dout)


def test_where_there_is_no_gpu_another_runs():
  inputs = draw(1, 128, (6, 2))
  for a, b in zip(both(*inputs, 'grouped'), both(*inputs, 'sdpa'), strict=True):
    assert torch.equal(a, b)


def test_deterministic_runs_may_use_it():
  before = torch.are_deterministic_algorithms_enabled()
  torch.use_deterministic_algorithms(True)
  try:
    assert attention.runs('grouped', 2048) == 'grouped'
  finally:
    torch.use_deterministic_algorithms(before)


def test_what_it_takes():
  attention_long = pytest.importorskip('yxanul.kernels.attention_long', reason='needs Triton with Gluon')
  hopper, ultra = (9, 0), (12, 2, 64)
  assert all(attention_long.supports(length, *ultra, hopper) for length in (512, 768, 1536, 2048))
  assert not attention_long.supports(576, *ultra, hopper)  # half a tile of keys
  assert not attention_long.supports(512, *ultra, (10, 0))
  assert not attention_long.supports(512, 12, 2, 128, hopper)
  assert not attention_long.supports(512, 6, 2, 64, hopper)  # three heads of a group are no pairs
  assert attention_long.supports(512, 8, 2, 64, hopper)


def test_every_item_is_done_once_and_programs_share_the_work():
  """The order of the items, as `attention_long_kernels._unit` has it: a permutation, and the sums of tiles are close."""
  for n_places, n_units in ((8, 1024), (32, 256), (16, 128), (6, 5), (3, 7)):
    span = next(span for span in (4, 2, 1) if n_places % span == 0)
    n_alike = n_units * span

    def at(item, span=span, n_alike=n_alike):
      unit, inside = item % n_alike // span, item % span
      return unit, item // n_alike * span + (span - 1 - inside if unit % 2 else inside)

    items = [at(item) for item in range(n_units * n_places)]
    assert sorted(items) == list(itertools.product(range(n_units), range(n_places)))
    if n_units >= 128:
      loads = [sum(n_places - rank for _, rank in items[program::132]) for program in range(132)]
      assert max(loads) < 1.05 * sum(loads) / 132


def test_the_operator_hands_its_kernels_what_they_take(monkeypatch):
  """Strided inputs and gradients arrive contiguous, and what the kernels give is what autograd gets."""
  attention_long = pytest.importorskip('yxanul.kernels.attention_long', reason='needs Triton with Gluon')

  def forward(q, k, v):
    assert q.is_contiguous()
    assert k.is_contiguous()
    return attention.attention(q, k, v), q.new_zeros(q.shape[0], q.shape[2], q.shape[1])

  q, k, v, dout = draw(2, 128, (4, 2))
  want = both(q, k, v, dout, 'sdpa')

  def backward(*got):
    assert got[5].is_contiguous()
    for a, b in zip(got, (q, k, v, want[0], torch.zeros(2, 4, 128), dout), strict=True):
      torch.testing.assert_close(a, b, check_layout=False)
    return tuple(x.clone() for x in want[1:])

  monkeypatch.setattr(attention_long, 'forward', forward)
  monkeypatch.setattr(attention_long, 'backward', backward)
  q_strided = torch.cat((q.detach(), q.detach()), -1)[..., :64].requires_grad_()
  out = attention_long.attention_long(q_strided, k, v)
  got = out.detach(), *torch.autograd.grad(out, (q_strided, k, v), dout.mT.contiguous().mT)
  for a, b in zip(got, want, strict=True):
    torch.testing.assert_close(a, b)


on_hopper = pytest.mark.skipif(not HOPPER, reason='needs a GPU of capability 9.0')


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize('heads', [(12, 2), (8, 2), (6, 1)])
@pytest.mark.parametrize('length', [512, 768, 2048])
def test_it_says_what_plain_attention_says(length, heads):
  assert attention.supports_long(length, *heads, 64, torch.device('cuda'))
  inputs = draw(3, length, heads, 'cuda', torch.bfloat16)
  got = both(*inputs, 'grouped')
  exact = both(*(x.detach().float().requires_grad_() for x in inputs[:3]), inputs[3].float(), 'math')
  for name, a, b in zip(('out', 'dq', 'dk', 'dv'), got, exact, strict=True):
    assert (a.dtype, a.shape) == (torch.bfloat16, b.shape)
    assert ((a.float() - b).norm() / b.norm()).item() < TOLERANCE, name


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize('heads', [(12, 2), (8, 2), (4, 2)])
@pytest.mark.parametrize(('n_rows', 'length'), [(64, 2048), (256, 512)])
def test_programs_of_many_items_keep_them_apart(n_rows, length, heads):
  """Some 15 to 90 items a program, short ones last, when the next item's tiles come while this one's are read: each tile is
  looked at, as a wrong one among thousands hardly shows in a norm of all."""
  inputs = draw(n_rows, length, heads, 'cuda', torch.bfloat16)
  got, again, peer = (both(*inputs, engine) for engine in ('grouped', 'grouped', 'cudnn'))
  for name, a, b, c in zip(('out', 'dq', 'dk', 'dv'), got, again, peer, strict=True):
    assert torch.equal(a, b), name
    assert ((a.float() - c.float()).norm() / c.float().norm()).item() < TOLERANCE, name
    off, size = (x.float().unflatten(1, (-1, 64)).norm(dim=(2, 4)) for x in (a.float() - c.float(), c))
    assert (off / size).max().item() < 8 * TOLERANCE, name


@pytest.mark.gpu
@on_hopper
def test_the_same_twice_and_no_query_sees_what_follows():
  q, k, v, dout = draw(70, 512, device='cuda', dtype=torch.bfloat16)
  first, second = (both(q, k, v, dout, 'grouped') for _ in range(2))
  assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
  late = dout.clone()
  late[:, :300] = 0  # gradients of early outputs only: nothing may reach later keys and queries
  _, dq, dk, dv = both(q, k, v, dout - late, 'grouped')
  assert all(not x[:, 300:].any() for x in (dq, dk, dv))


@pytest.mark.gpu
@on_hopper
def test_scores_far_apart_stay_finite():
  q, k, v, dout = draw(2, 1024, device='cuda', dtype=torch.bfloat16)
  q, k = ((x.detach() * 30).requires_grad_() for x in (q, k))
  got = both(q, k, v, dout, 'grouped')
  exact = both(*(x.detach().float().requires_grad_() for x in (q, k, v)), dout.float(), 'math')
  assert all(x.isfinite().all() for x in got)
  assert ((got[0].float() - exact[0]).norm() / exact[0].norm()).item() < TOLERANCE


@pytest.mark.gpu
@on_hopper
def test_the_compiler_takes_it_and_it_replays():
  """As in a step: inside torch.compile, and in a CUDA graph that reads new inputs."""
  model = ModelSpec()
  tables = attention.rope_tables(512, 64, 10000.0, torch.device('cuda'))
  qkv, fresh = (torch.randn(4, 512, model.d_qkv, device='cuda').bfloat16().requires_grad_() for _ in range(2))

  def step(x):
    out = attention.packed_attention(x, model, tables, None, 'grouped')
    return torch.autograd.grad(out, x, torch.ones_like(out))[0]

  compiled = torch.compile(lambda x: attention.packed_attention(x, model, tables, None, 'grouped'), dynamic=False)
  want = step(fresh)
  assert ((compiled(fresh) - attention.packed_attention(fresh, model, tables, None, 'grouped')).float().norm() < 1).item()
  step(qkv)
  graph = torch.cuda.CUDAGraph()
  with torch.cuda.graph(graph):
    captured = step(qkv)
  with torch.no_grad():
    qkv.copy_(fresh)
  graph.replay()
  assert torch.equal(captured, want)
