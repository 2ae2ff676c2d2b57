"""The Triton vocabulary loss against plain autograd over all logits in float64.

Without a GPU the portable kernels run under Triton's interpreter (TRITON_INTERPRET=1, set before Triton is imported).
"""

import os

import pytest
import torch

if not torch.cuda.is_available():
  os.environ['TRITON_INTERPRET'] = '1'
pytest.importorskip('triton', reason='needs triton')

from yxanul.kernels import vocab_loss_triton

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
DTYPE = torch.bfloat16 if torch.cuda.is_available() else torch.float32  # the interpreter cannot multiply BF16
# p is rounded to the dtype before the second product, dx after it: half a step of the significand each; float32 sums.
DX_TOLERANCE = 2.0**-8 if torch.cuda.is_available() else 1e-5
DTABLE_TOLERANCE = 2.0**-9 if torch.cuda.is_available() else 1e-5
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')


def tensors(n_tokens: int, n_vocab: int, rank: int, scale: float = 1.0, seed: int = 0):
  g = torch.Generator().manual_seed(seed)
  x = (torch.randn(n_tokens, rank, generator=g) * scale).bfloat16().to(DEVICE, DTYPE).requires_grad_()
  table = (torch.randn(n_vocab, rank, generator=g) * 0.5).bfloat16().float().to(DEVICE).requires_grad_()
  targets = torch.randint(n_vocab, (n_tokens,), generator=g).to(DEVICE)
  weights = torch.rand(n_tokens, generator=g).to(DEVICE) / n_tokens
  weights[::7] = 0
  return x, table, targets, weights


def oracle(x, table, targets, weights, dloss: float, z_loss: float = 0.0, softcap: float = 0.0):
  x, table = x.detach().double().requires_grad_(), table.detach().double().requires_grad_()
  logits = softcap * torch.tanh(x @ table.T / softcap) if softcap else x @ table.T
  nll = torch.nn.functional.cross_entropy(logits, targets, reduction='none')
  loss = ((nll + z_loss * logits.logsumexp(-1) ** 2) * weights.double()).sum()
  return loss.detach(), nll.detach(), *torch.autograd.grad(loss * dloss, (x, table))


def relative(a, b) -> float:
  return ((a.double() - b).norm() / b.norm()).item()


def check(x, table, targets, weights, dloss: float = 2.0, z_loss: float = 0.0, softcap: float = 0.0):
  loss, nll = vocab_loss_triton.vocab_loss(x, table, targets, weights, z_loss, softcap)
  dx, dtable = torch.autograd.grad(loss * dloss, (x, table))
  wants = oracle(x, table, targets, weights, dloss, z_loss, softcap)
  assert (dx.dtype, dtable.dtype, nll.requires_grad) == (DTYPE, torch.float32, False)
  assert abs(loss.item() - wants[0].item()) < 1e-5 * abs(wants[0].item())
  assert relative(nll, wants[1]) < 1e-5  # float32 sums of exact products
  assert relative(dx, wants[2]) < DX_TOLERANCE
  assert relative(dtable, wants[3]) < DTABLE_TOLERANCE
  again, _ = vocab_loss_triton.vocab_loss(x, table, targets, weights, z_loss, softcap)
  assert torch.equal(torch.autograd.grad(again * dloss, table)[0], dtable)


@pytest.mark.parametrize(('n_tokens', 'n_vocab'), [(128, 256), (144, 300), (16, 1000), (260, 130)])
def test_equals_autograd_over_all_logits(n_tokens, n_vocab):
  check(*tensors(n_tokens, n_vocab, 16))


def test_z_loss_changes_both_gradients():
  # Not as small as a z-loss is in training: so that its own share of the gradients is far above the tolerance.
  check(*tensors(144, 300, 16), z_loss=0.03)


@pytest.mark.parametrize('z_loss', [0.0, 0.03])
def test_a_soft_cap_bends_the_gradients_too(z_loss):
  # Logits of up to 10 and more against a cap of 4: where tanh is straight nothing would be tested.
  x, table, targets, weights = tensors(144, 300, 16, scale=2.0)
  assert (x @ table.to(DTYPE).T).abs().max() > 8
  check(x, table, targets, weights, z_loss=z_loss, softcap=4.0)


def test_large_logits_neither_overflow_nor_vanish():
  x, table, targets, weights = tensors(64, 300, 16, scale=60.0)
  assert (x @ table.to(DTYPE).T).abs().max() > 500
  check(x, table, targets, weights)


def test_gradients_are_exact_where_every_probability_is_tiny():
  """The start of training: no entry's probability reaches a filter's threshold, all of them together are the gradient."""
  x, table, targets, weights = tensors(128, 1000, 16, scale=1e-3)
  _, dtable = torch.autograd.grad(vocab_loss_triton.vocab_loss(x, table, targets, weights)[0], (x, table))
  wants = oracle(x, table, targets, weights, 1.0)[3]
  untargeted = torch.ones(1000, dtype=torch.bool, device=DEVICE)
  untargeted[targets] = False
  assert untargeted.sum() > 500
  assert relative(dtable[untargeted], wants[untargeted]) < DTABLE_TOLERANCE


def test_without_gradients_only_the_loss_is_computed():
  x, table, targets, weights = tensors(32, 200, 16)
  with torch.no_grad():
    loss, nll = vocab_loss_triton.vocab_loss(x, table, targets, weights)
  wants = oracle(x, table, targets, weights, 1.0)
  assert not loss.requires_grad
  assert relative(nll, wants[1]) < 1e-5
  only_x = torch.autograd.grad(vocab_loss_triton.vocab_loss(x, table.detach(), targets, weights)[0], x)[0]
  assert relative(only_x, wants[2]) < DX_TOLERANCE


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize(('n_tokens', 'n_vocab'), [(4096, 20_005), (8192 + 16, 4099), (64, 200_005)])
def test_on_a_gpu_at_the_rank_of_ultra(n_tokens, n_vocab):
  check(*tensors(n_tokens, n_vocab, 128, scale=0.3))


@pytest.mark.gpu
@gpu
def test_a_captured_loss_reads_new_inputs():
  x, table, targets, weights = tensors(2048, 5000, 128)

  def step():
    loss, nll = vocab_loss_triton.vocab_loss(x, table, targets, weights)
    return loss.detach(), nll, *torch.autograd.grad(loss, (x, table))

  step()
  graph = torch.cuda.CUDAGraph()
  with torch.cuda.graph(graph):
    captured = step()
  new = tensors(2048, 5000, 128, seed=1)
  with torch.no_grad():
    for old, fresh in zip((x, table, targets, weights), new, strict=True):
      old.copy_(fresh)
  graph.replay()
  assert all(torch.equal(a, b) for a, b in zip(captured, step(), strict=True))


@pytest.mark.gpu
@gpu
def test_both_implementations_agree(monkeypatch):
  if not vocab_loss_triton._on_hopper(torch.empty(1, 128, device='cuda')):
    pytest.skip('needs Hopper and the Triton that vocab_loss_hopper is written for')
  monkeypatch.setattr(vocab_loss_triton, '_on_hopper', lambda x: False)
  check(*tensors(2048 + 16, 5003, 128, scale=0.3))
