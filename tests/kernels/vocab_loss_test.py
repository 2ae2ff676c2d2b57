"""The chunked vocabulary loss against all logits at once in FP64."""

import weakref

import pytest
import torch

from yxanul.kernels import vocab_loss as module
from yxanul.kernels import vocab_loss_compiled
from yxanul.kernels.vocab_loss import vocab_loss


def oracle(x, table, targets, weights, z_loss=0.0, softcap=0.0):
  x, table = x.double().requires_grad_(), table.double().requires_grad_()
  logits = softcap * torch.tanh(x @ table.T / softcap) if softcap else x @ table.T
  nll = torch.nn.functional.cross_entropy(logits, targets.long(), reduction='none')
  loss = ((nll + z_loss * logits.logsumexp(-1) ** 2) * weights.double()).sum()
  return loss, nll, *torch.autograd.grad(loss, (x, table))


@pytest.mark.parametrize(('z_loss', 'softcap'), [(0.0, 0.0), (0.03, 0.0), (0.03, 5.0)])
@pytest.mark.parametrize(
  ('engine', 'compiled'), [('chunked', False), ('chunked', True), ('reference', False), ('compiled', False)]
)
@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_loss_and_gradients_are_exact(engine, compiled, dtype, tolerance, z_loss, softcap, monkeypatch):
  for its in (module, vocab_loss_compiled):
    monkeypatch.setattr(its, 'CHUNK_BYTES', 4 * 301 * 7)  # seven tokens a chunk, or four: 50 tokens do not divide evenly
  generator = torch.Generator().manual_seed(0)
  x = torch.randn(50, 24, generator=generator).to(dtype)
  table = torch.randn(301, 24, generator=generator)
  targets = torch.randint(0, 301, (50,), generator=generator, dtype=torch.int32)
  weights = torch.rand(50, generator=generator)
  weights[3] = 0.0
  expected = oracle(x.float(), table.to(dtype).float(), targets, weights, z_loss, softcap)
  expected_loss, expected_nll, expected_dx, expected_dtable = expected

  x.requires_grad_()
  table.requires_grad_()
  with torch.compiler.set_stance('force_eager'):  # what is compiled, as it is written
    loss, nll = vocab_loss(x, table, targets, weights, engine, z_loss, softcap, compiled)
    dx, dtable = torch.autograd.grad(3.0 * loss, (x, table))
  assert (dx.dtype, dtable.dtype, loss.dtype, nll.dtype) == (dtype, torch.float32, torch.float32, torch.float32)
  assert not nll.requires_grad

  def close(a, b):
    assert (a.double() - b).norm() <= tolerance * b.norm()

  close(loss, expected_loss)
  close(nll, expected_nll)
  close(dx, 3.0 * expected_dx)
  close(dtable, 3.0 * expected_dtable)
  assert (dx[3] == 0).all()


def test_the_compiled_one_holds_the_logits_and_gradient_of_one_chunk(monkeypatch):
  alive, most, gradient = [], [], vocab_loss_compiled._gradient

  def watched(logits, *arguments):
    results = gradient(logits, *arguments)
    alive.extend(weakref.ref(x) for x in (logits, results[2]))
    most.append(sum(x() is not None for x in alive))
    return results

  monkeypatch.setattr(vocab_loss_compiled, '_compiled_gradient', lambda: watched)
  monkeypatch.setattr(vocab_loss_compiled, 'CHUNK_BYTES', 4 * 300 * 8)
  x, table = torch.randn(32, 24, requires_grad=True), torch.randn(300, 24, requires_grad=True)
  vocab_loss(x, table, torch.arange(32), torch.ones(32), compiled=True)[0].backward()
  assert most == [2, 2, 2, 2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_the_compiled_one_is_exact_at_the_size_of_gpt2_and_can_be_captured(dtype, tolerance):
  """A chunk and a shorter one, over a vocabulary that is padded; replayed on other inputs than it was captured on."""
  n, vocab_size, width = 5000, 50_257, 768
  x, again = (torch.randn(n, width, device='cuda').to(dtype) for _ in range(2))
  table = (0.05 * torch.randn(vocab_size, width, device='cuda')).requires_grad_()
  targets = torch.randint(vocab_size, (n,), device='cuda', dtype=torch.int32)
  weights = torch.full((n,), 1 / n, device='cuda')
  leaf = x.clone().requires_grad_()

  def run():
    loss, nll = vocab_loss(leaf, table, targets, weights, compiled=True)
    return loss.detach(), nll, *torch.autograd.grad(loss, (leaf, table))

  for _ in range(2):
    run()
  torch.cuda.synchronize()
  torch.cuda.reset_peak_memory_stats()
  before = torch.cuda.memory_allocated()
  graph = torch.cuda.CUDAGraph()
  with torch.cuda.graph(graph):
    found = run()
  # One chunk's logits and their gradient, the table padded and in x's format, its gradient twice.
  room = 2 * 4096 * (vocab_size + 63) * x.element_size() + 4 * vocab_size * width * 4 + 4 * n * width * 4
  assert torch.cuda.max_memory_allocated() - before < room
  for inputs in (x, again):
    with torch.no_grad():
      leaf.copy_(inputs)
    graph.replay()
    expected = oracle(inputs.float(), table.to(dtype).float(), targets, weights)
    for a, b in zip(found, expected, strict=True):
      assert (a.double() - b).norm() <= tolerance * b.norm()
