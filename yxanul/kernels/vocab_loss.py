"""Cross-entropy over a large vocabulary that never holds all logits.

Shapes: N tokens, R width in front of the head, V vocabulary, M tokens of one chunk.

The loss is a weighted sum over tokens, so its gradients are known in the forward pass: for a chunk of tokens the logits
x W^T give the log-partition, then (softmax - onehot) * weight gives both gradients, and the chunk is dropped. The backward
pass only multiplies by the incoming scalar. Rejected: torch's own cross-entropy (N x V logits: 105 GB for 131,072
tokens over 200,005 words in FP32), and dropping small gradients as cut-cross-entropy does, which starves the head of nearly all
negative gradients at the start of training.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from yxanul.kernels import vocab_loss_compiled

CHUNK_BYTES = 256 * 2**20  # of FP32 logits
_COMPILED_CHUNKS = 32  # 3.3 GB of FP32 logits for 131,072 tokens over 200,005 words


def soft_capped(logits: Tensor, softcap: float) -> Tensor:
  """softcap tanh(logits / softcap), which stays within that many nats of 0 (Gemma 2, arXiv 2408.00118); 0: the logits."""
  return softcap * torch.tanh(logits / softcap) if softcap else logits


def vocab_loss(
  x_NR: Tensor,
  table_VR: Tensor,
  targets_N: Tensor,
  weights_N: Tensor,
  engine: str = 'chunked',
  z_loss: float = 0.0,
  softcap: float = 0.0,
  compiled: bool = False,
) -> tuple[Tensor, Tensor]:
  """sum(weights * (nll + z_loss * lse^2)) and every token's nll = lse - l[target], in nats; lse = logsumexp(l), where the
  logits l are x W^T, `soft_capped`.

  The second term keeps the log-partition near zero (PaLM, arXiv 2204.02311). Its gradient is that of nll's lse once more,
  2 z_loss lse times, so that no engine needs another pass for it.

  Args:
    x_NR: FP32 or BF16.
    table_VR: the head, FP32; it is cast to x's dtype for the products, its gradient is FP32.
    targets_N: int, in [0, V).
    weights_N: FP32; 0 leaves a token out of the loss.
    engine: 'triton' (a GPU, BF16, R a power of two), 'chunked', 'reference' (all logits at once, plain autograd), or
      'compiled' (what people write without a kernel of their own: checkpointed chunks under torch.compile; for comparison).
    compiled: what stands between the products of 'chunked' is fused by torch.compile (`vocab_loss_compiled`).

  Returns:
    The loss, 0-d FP32, differentiable in x and table; nll_N, FP32, not differentiable.
  """
  if engine == 'reference':
    nll_N, lse_N = _nll(x_NR, table_VR, targets_N, softcap)
    return (weights_N * (nll_N + z_loss * lse_N.square())).sum(), nll_N.detach()
  if engine == 'triton':
    from yxanul.kernels import vocab_loss_triton  # Triton is there on GPUs only

    return vocab_loss_triton.vocab_loss(x_NR, table_VR, targets_N, weights_N, z_loss, softcap)
  if engine == 'compiled':
    nll_N, lse_N = _compiled_chunks(x_NR, table_VR, targets_N, softcap)
    return (weights_N * (nll_N + z_loss * lse_N.square())).sum(), nll_N.detach()
  assert engine == 'chunked', engine
  if compiled:
    return vocab_loss_compiled.vocab_loss(x_NR, table_VR, targets_N, weights_N, z_loss, softcap)
  return _ChunkedLoss.apply(x_NR, table_VR, targets_N, weights_N, z_loss, softcap)


def _nll(x_NR: Tensor, table_VR: Tensor, targets_N: Tensor, softcap: float) -> tuple[Tensor, Tensor]:
  logits_NV = soft_capped((x_NR @ table_VR.to(x_NR.dtype).T).float(), softcap)
  nll_N = torch.nn.functional.cross_entropy(logits_NV, targets_N.long(), reduction='none')
  return nll_N, logits_NV.logsumexp(-1)


def _compiled_chunks(x_NR: Tensor, table_VR: Tensor, targets_N: Tensor, softcap: float) -> tuple[Tensor, Tensor]:
  """nll_N and lse_N. A chunk's logits are computed again backward; the table's gradient is summed in x's dtype."""
  table, chunks = table_VR.to(x_NR.dtype), zip(x_NR.chunk(_COMPILED_CHUNKS), targets_N.chunk(_COMPILED_CHUNKS), strict=True)
  run = torch.compile(_nll, dynamic=False)
  # Nothing is drawn at random, and a state kept for it could not be captured in a CUDA graph.
  parts = [checkpoint(run, x, table, targets, softcap, use_reentrant=False, preserve_rng_state=False) for x, targets in chunks]
  nll_N, lse_N = (torch.cat(part) for part in zip(*parts, strict=True))
  return nll_N, lse_N


class _ChunkedLoss(torch.autograd.Function):
  @staticmethod
  def forward(ctx, x_NR, table_VR, targets_N, weights_N, z_loss, softcap):
    needs_x, needs_table = ctx.needs_input_grad[:2]
    table = table_VR.to(x_NR.dtype)
    chunk = max(1, CHUNK_BYTES // (4 * table.shape[0]))
    nll_N, lse_N = torch.empty_like(weights_N), torch.empty_like(weights_N)
    dx_NR = torch.empty_like(x_NR) if needs_x else None
    dtable_VR = torch.zeros_like(table_VR) if needs_table else None
    for start in range(0, len(x_NR), chunk):
      part = slice(start, start + chunk)
      x_MR, target_M1 = x_NR[part], targets_N[part, None].long()
      logits_MV = soft_capped((x_MR @ table.T).float(), softcap)
      lse_M = lse_N[part] = torch.logsumexp(logits_MV, -1)
      nll_N[part] = lse_M - logits_MV.gather(-1, target_M1)[:, 0]
      if not (needs_x or needs_table):
        continue
      slope_MV = 1 - (logits_MV / softcap).square() if softcap else None
      d_MV = logits_MV.sub_(lse_M[:, None]).exp_()
      if z_loss:
        d_MV *= 1 + 2 * z_loss * lse_M[:, None]
      d_MV.scatter_add_(-1, target_M1, d_MV.new_full(target_M1.shape, -1.0))
      if softcap:
        d_MV *= slope_MV
      d_MV = d_MV.mul_(weights_N[part, None]).to(x_NR.dtype)
      if needs_x:
        torch.mm(d_MV, table, out=dx_NR[part])
      if needs_table:
        dtable_VR += (d_MV.T @ x_MR).float()
    ctx.save_for_backward(dx_NR, dtable_VR)
    ctx.mark_non_differentiable(nll_N)
    return (weights_N * (nll_N + z_loss * lse_N.square())).sum(), nll_N

  @staticmethod
  def backward(ctx, dloss, _):
    dx_NR, dtable_VR = ctx.saved_tensors
    return (
      None if dx_NR is None else (dx_NR * dloss).to(dx_NR.dtype),
      None if dtable_VR is None else dtable_VR * dloss,
      None,
      None,
      None,
      None,
    )
