"""Short attention against plain attention in float64; under Triton's interpreter where there is no GPU."""

import os

import pytest
import torch

GPU = torch.cuda.is_available()
if not GPU:
  os.environ['TRITON_INTERPRET'] = '1'
pytest.importorskip('triton', reason='needs triton')

from yxanul.kernels import attention, attention_short  # noqa: E402

DEVICE, DTYPE = ('cuda', torch.bfloat16) if GPU else ('cpu', torch.float32)  # the interpreter cannot multiply BF16
# Rotated q and k, P or dS, and the result are rounded: some 2^-9 / sqrt(3) each, in root mean square.
TOLERANCE = 2.0**-8 if GPU else 2e-6
gpu = pytest.mark.skipif(not GPU, reason='needs a GPU')


def draw(n_rows: int, length: int, heads: tuple[int, int], width: int, seed: int = 0, scale: float = 1.0):
  """qkv, dout, and the tables of RoPE."""
  g = torch.Generator().manual_seed(seed)
  n_heads, n_kv_heads = heads
  qkv = torch.randn(n_rows * length, (n_heads + 2 * n_kv_heads) * width, generator=g) * scale
  dout = torch.randn(n_rows * length, n_heads * width, generator=g)
  tables = attention.rope_tables(length, width, 10000.0, torch.device(DEVICE))
  return qkv.to(DEVICE, DTYPE).requires_grad_(), dout.to(DEVICE, DTYPE), tables


def both(qkv, dout, length, heads, width, tables):
  out = attention_short.attention_short(qkv, length, *heads, width, *(tables or (None, None)))
  return out.detach(), torch.autograd.grad(out, qkv, dout)[0]


def parts(x, heads, width):
  return x.split([n * width for n in (*heads, heads[1])], 1)


def oracle(qkv, dout, length, heads, width, tables):
  x = qkv.detach().double().requires_grad_()
  q, k, v = (part.reshape(-1, length, part.shape[1] // width, width) for part in parts(x, heads, width))
  if tables:
    cos, sin = (table[:length, None].double() for table in tables)
    q, k = (torch.cat((a * cos - b * sin, b * cos + a * sin), -1) for a, b in (q.chunk(2, -1), k.chunk(2, -1)))
  out = attention.attention(q, k, v).reshape(dout.shape)
  return out.detach(), torch.autograd.grad(out, x, dout.double())[0]


def relative(a, b) -> float:
  return ((a.double() - b).norm() / b.norm()).item()


def check(n_rows, length, heads, width, with_rope=True, scale=1.0):
  qkv, dout, tables = draw(n_rows, length, heads, width, scale=scale)
  args = qkv, dout, length, heads, width, tables if with_rope else None
  got, wants = both(*args), oracle(*args)
  for name, a, b in zip(('out', 'dqkv'), got, wants, strict=True):
    assert (a.dtype, a.shape) == (DTYPE, b.shape)
    assert relative(a, b) < TOLERANCE, name
  for name, a, b in zip('qkv', *(parts(dqkv, heads, width) for _, dqkv in (got, wants)), strict=True):
    assert relative(a, b) < 1.5 * TOLERANCE, name
  assert all(torch.equal(a, b) for a, b in zip(got, both(*args), strict=True)), 'the same inputs give the same bits'


# Beside the curriculum's lengths some that leave rows of a tile idle, and a last tile that is not full.
@pytest.mark.parametrize(
  ('n_rows', 'length', 'heads', 'width'),
  [
    (4, 8, (6, 1), 32), (2, 16, (4, 2), 32), (2, 32, (4, 2), 64), (2, 64, (2, 1), 32), (1, 128, (2, 1), 32),
    (1, 256, (4, 2), 32), (7, 5, (3, 3), 32), (3, 24, (2, 1), 32), (3, 8, (2, 1), 32), (2, 100, (2, 1), 32),
    (2, 200, (2, 1), 64),
  ],
)  # fmt: skip
def test_equals_attention_in_float64(n_rows, length, heads, width):
  check(n_rows, length, heads, width)


@pytest.mark.parametrize('length', [16, 200])
def test_without_rope(length):
  check(2, length, (4, 2), 32, with_rope=False)


@pytest.mark.parametrize('length', [16, 256])
def test_large_scores_neither_overflow_nor_vanish(length):
  qkv, dout, tables = draw(2, length, (2, 1), 32, scale=30.0)
  out, dqkv = both(qkv, dout, length, (2, 1), 32, tables)
  assert out.isfinite().all()
  assert dqkv.isfinite().all()
  # Each query looks at one key, more or less: the rounding of scores near 1000 moves whole weights, but not in the first row.
  torch.testing.assert_close(out[0], qkv[0, -32:].repeat(2).detach())


@pytest.mark.parametrize(('n_rows', 'length'), [(4, 8), (2, 128), (1, 256)])
def test_no_gradient_reaches_later_tokens_or_other_rows(n_rows, length):
  qkv, dout, tables = draw(n_rows, length, (2, 1), 32)
  row, position = n_rows // 2, length * 3 // 4
  token = row * length + position
  only = torch.zeros_like(dout)
  only[token] = dout[token]
  _, dqkv = both(qkv, only, length, (2, 1), 32, tables)
  reached = dqkv.ne(0).any(1).view(n_rows, length)
  assert reached[row, : position + 1].all()
  assert reached.sum() == position + 1


@pytest.mark.parametrize('length', [8, 256])
def test_only_the_projection_is_saved(length):
  qkv, _, tables = draw(2, length, (2, 1), 32)
  out = attention_short.attention_short(qkv, length, 2, 1, 32, *tables)
  assert {t.data_ptr() for t in out.grad_fn.saved_tensors} == {t.data_ptr() for t in (qkv, *tables)}


def test_supports_what_it_was_written_for():
  assert all(attention_short.supports(length, 64, (9, 0)) for length in (1, 8, 100, 128, 256))
  assert not attention_short.supports(257, 64, (9, 0))
  assert not attention_short.supports(8, 128, (9, 0))
  assert attention_short.supports(64, 64, (8, 9))
  assert not attention_short.supports(128, 64, (8, 9))
  assert not attention_short.supports(8, 64, (7, 5))


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize('length', [8, 16, 32, 64, 128, 256, 24, 100, 200])
def test_on_a_gpu_with_the_heads_of_ultra(length):
  check(32768 // length, length, (12, 2), 64)


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize('length', [8, 256])
def test_a_captured_step_reads_new_inputs(length):
  qkv, dout, tables = draw(64, length, (12, 2), 64)

  def step():
    return both(qkv, dout, length, (12, 2), 64, tables)

  step()
  graph = torch.cuda.CUDAGraph()
  with torch.cuda.graph(graph):
    captured = step()
  fresh_qkv, fresh_dout, _ = draw(64, length, (12, 2), 64, seed=1)
  with torch.no_grad():
    qkv.copy_(fresh_qkv)
    dout.copy_(fresh_dout)
  graph.replay()
  assert all(torch.equal(a, b) for a, b in zip(captured, step(), strict=True))
