"""The fused rotation against plain torch; under Triton's interpreter where there is no GPU."""

import os

import pytest
import torch

GPU = torch.cuda.is_available()
if not GPU:
  os.environ['TRITON_INTERPRET'] = '1'
pytest.importorskip('triton', reason='needs triton')

from yxanul.config.model_spec import ModelSpec  # noqa: E402
from yxanul.kernels import attention, attention_rope  # noqa: E402

DEVICE = 'cuda' if GPU else 'cpu'


def draw(n_rows: int, length: int, heads: tuple[int, int], width: int, dtype, seed: int = 0):
  """qkv, the gradients of q, k and v, and the tables of RoPE."""
  g = torch.Generator().manual_seed(seed)
  n_heads, n_kv_heads = heads
  shapes = [(n_rows, length, n, width) for n in (n_heads, n_kv_heads, n_kv_heads)]
  qkv = torch.randn(n_rows, length, (n_heads + 2 * n_kv_heads) * width, generator=g).to(DEVICE, dtype).requires_grad_()
  gradients = [torch.randn(*shape, generator=g).to(DEVICE, dtype) for shape in shapes]
  return qkv, gradients, attention.rope_tables(length + 3, width, 10000.0, torch.device(DEVICE))


def plain(qkv, tables, heads, width):
  q, k, v = (part.unflatten(-1, (-1, width)) for part in qkv.split([n * width for n in (heads[0], heads[1], heads[1])], -1))
  cos, sin = (table[: qkv.shape[1]] for table in tables)
  return attention.rope(q, cos, sin), attention.rope(k, cos, sin), v


# The tokens fill whole blocks, or do not; a head's half is a power of two, or not.
@pytest.mark.parametrize(
  ('n_rows', 'length', 'heads', 'width'), [(2, 32, (4, 2), 16), (3, 7, (6, 1), 8), (1, 50, (2, 2), 12), (9, 8, (3, 3), 4)]
)
def test_equals_plain_torch(n_rows, length, heads, width):
  qkv, gradients, tables = draw(n_rows, length, heads, width, torch.float32)
  got, wants = attention_rope.rotated(qkv, *tables, *heads, width), plain(qkv, tables, heads, width)
  for name, a, b in zip('qkv', got, wants, strict=True):
    assert a.is_contiguous()
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6, msg=name)  # a fused multiply-add rounds once less
  torch.testing.assert_close(
    torch.autograd.grad(got, qkv, gradients)[0], torch.autograd.grad(wants, qkv, gradients)[0], rtol=1e-6, atol=1e-6
  )


def test_gradients_come_in_any_layout():
  qkv, gradients, tables = draw(2, 16, (4, 2), 8, torch.float32)
  transposed = [d.transpose(1, 2).contiguous().transpose(1, 2) for d in gradients]
  a, b = (torch.autograd.grad(attention_rope.rotated(qkv, *tables, 4, 2, 8), qkv, d)[0] for d in (gradients, transposed))
  assert torch.equal(a, b)


def test_nothing_keeps_the_projection_alive():
  qkv, _, tables = draw(2, 16, (4, 2), 8, torch.float32)
  parts = attention_rope.rotated(qkv, *tables, 4, 2, 8)
  assert {t.data_ptr() for t in parts[0].grad_fn.saved_tensors} == {t.data_ptr() for t in tables}
  storage = qkv.untyped_storage().data_ptr()
  assert all(part.untyped_storage().data_ptr() != storage for part in parts)


@pytest.mark.parametrize('engine', ['cudnn', 'sdpa'])
@pytest.mark.parametrize('length', [512, 2048])
@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason='needs a GPU')
def test_packed_attention_is_the_same_fused(engine, length):
  """BF16 with the heads of ultra: rotations round to the same bits but for fused multiply-adds, and attention follows."""
  model = ModelSpec()
  qkv, _, _ = draw(8192 // length, length, (12, 2), 64, torch.bfloat16)
  tables = attention.rope_tables(length, 64, 10000.0, torch.device(DEVICE))
  dout = torch.randn(*qkv.shape[:2], 768, device=DEVICE).bfloat16()

  def both(fused):
    out = attention.packed_attention(qkv, model, tables, None, engine, fused)
    return out.detach(), torch.autograd.grad(out, qkv, dout)[0]

  for name, a, b in zip(('out', 'dqkv'), both(True), both(False), strict=True):
    assert a.shape == b.shape
    assert ((a - b).float().norm() / b.float().norm()).item() < 2.0**-8, name


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason='needs a GPU')
def test_a_captured_rotation_reads_new_inputs():
  qkv, gradients, tables = draw(16, 128, (12, 2), 64, torch.bfloat16)

  def step():
    parts = attention_rope.rotated(qkv, *tables, 12, 2, 64)
    return *(part.detach() for part in parts), torch.autograd.grad(parts, qkv, gradients)[0]

  step()
  graph = torch.cuda.CUDAGraph()
  with torch.cuda.graph(graph):
    captured = step()
  fresh = draw(16, 128, (12, 2), 64, torch.bfloat16, seed=1)
  with torch.no_grad():
    for old, new in zip((qkv, *gradients), (fresh[0], *fresh[1]), strict=True):
      old.copy_(new)
  graph.replay()
  assert all(torch.equal(a, b) for a, b in zip(captured, step(), strict=True))
