"""The chunked vocabulary loss against all logits at once in FP64."""

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
