"""The vocabulary loss for heads of any width on a GPU: chunks of logits, and torch.compile between the products.

Per chunk of M tokens three products: logits, the input's gradient, the table's, the last summed in FP32. Between them one
fused function reads the logits, in x's dtype, and writes their gradient in it: some 8 bytes a logit in BF16, where op by op in
FP32 it is about 60. Nothing is computed twice: as in `vocab_loss`, both gradients are known in the forward pass.

The table is padded to a multiple of 64 rows, whose logits count as minus infinity: rows of GPT-2's 50,257 logits would not
start at multiples of 16 bytes, which the fast kernels for tensor cores want. Chunks are powers of two, so that batches are
whole ones and one shape is compiled.

Shapes: N tokens, R width in front of the head, V vocabulary, P vocabulary with padding, M tokens of one chunk.
"""

import functools

import torch
from torch import Tensor

CHUNK_BYTES = 2**30  # of a chunk's logits in FP32; in BF16 those and their gradient. Fewer rows leave a large GPU idle
_ROWS = 64


def vocab_loss(
  x_NR: Tensor, table_VR: Tensor, targets_N: Tensor, weights_N: Tensor, z_loss: float = 0.0, softcap: float = 0.0
) -> tuple[Tensor, Tensor]:
  """As `kernels.vocab_loss.vocab_loss`, in both gradients too."""
  return _Loss.apply(x_NR, table_VR, targets_N, weights_N, z_loss, softcap)


def _gradient(
  logits_MP: Tensor, targets_M: Tensor, weights_M: Tensor, vocab_size: int, z_loss: float, softcap: float
) -> tuple[Tensor, Tensor, Tensor]:
  """lse_M, nll_M in FP32, and the gradient of weights * (nll + z_loss lse^2) by the logits before the cap, in their dtype."""
  column_1P = torch.arange(logits_MP.shape[1], device=logits_MP.device)[None]
  capped_MP = logits_MP.float()
  if softcap:
    capped_MP = softcap * torch.tanh(capped_MP / softcap)
  real_MP = torch.where(column_1P < vocab_size, capped_MP, -torch.inf)
  lse_M = torch.logsumexp(real_MP, -1)
  at_target_MP = column_1P == targets_M[:, None]
  nll_M = lse_M - torch.where(at_target_MP, capped_MP, 0.0).sum(-1)
  d_MP = (real_MP - lse_M[:, None]).exp() * (1 + 2 * z_loss * lse_M[:, None]) - at_target_MP.float()
  if softcap:
    d_MP = d_MP * (1 - (capped_MP / softcap).square())
  return lse_M, nll_M, (d_MP * weights_M[:, None]).to(logits_MP.dtype)


@functools.cache
def _compiled_gradient():
  return torch.compile(_gradient, dynamic=False)


class _Loss(torch.autograd.Function):
  @staticmethod
  def forward(ctx, x_NR, table_VR, targets_N, weights_N, z_loss, softcap):
    vocab_size = len(table_VR)
    table_PR = torch.nn.functional.pad(table_VR.to(x_NR.dtype), (0, 0, 0, -vocab_size % _ROWS))
    chunk = 1 << (max(1, CHUNK_BYTES // (4 * vocab_size)).bit_length() - 1)
    nll_N, lse_N = torch.empty_like(weights_N), torch.empty_like(weights_N)
    dx_NR, dtable_PR = torch.empty_like(x_NR), torch.zeros(table_PR.shape, dtype=torch.float32, device=x_NR.device)
    for start in range(0, len(x_NR), chunk):
      part = slice(start, start + chunk)
      logits_MP = x_NR[part] @ table_PR.T
      lse_N[part], nll_N[part], d_MP = _compiled_gradient()(
        logits_MP, targets_N[part], weights_N[part], vocab_size, z_loss, softcap
      )
      torch.mm(d_MP, table_PR, out=dx_NR[part])
      dtable_PR += d_MP.T @ x_NR[part]
      del logits_MP, d_MP  # or they would stand beside the next chunk's
    ctx.save_for_backward(dx_NR, dtable_PR[:vocab_size])
    ctx.mark_non_differentiable(nll_N)
    return (weights_N * (nll_N + z_loss * lse_N.square())).sum(), nll_N

  @staticmethod
  def backward(ctx, dloss, _):
    dx_NR, dtable_VR = ctx.saved_tensors
    return (dx_NR * dloss).to(dx_NR.dtype), dtable_VR * dloss, None, None, None, None
