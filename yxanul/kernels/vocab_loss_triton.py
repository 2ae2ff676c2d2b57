"""Engine `triton` of the vocabulary loss: logits never leave the chip, gradients are exact.

Shapes: N tokens, R width in front of the head (the rank, 128), V vocabulary; a tile is BLOCK_N tokens by BLOCK_V entries.

The loss sum_n w_n (lse_n - x_n . t_target) is attention with the table as keys and values: with p = softmax(x T^T) its
gradients are dx_n = w_n (p_n T - t_target) and dT_v = sum_n w_n p_nv x_n - sum over the tokens whose target is v of w_n x_n.

Forward pass: each program holds a tile of tokens and streams the table past it, keeping the running maximum, the running sum
and p T (online softmax, arXiv 1805.02867 and 2205.14135). So dx is known when lse is, for one product more and no second
pass of exponentials. Backward pass: each program holds a tile of the table and streams the tokens past it; p comes from
the saved lse, with w_n folded into the exponent. Four products of 2 N V R operations in all, the least that recomputation
allows, and no atomics: the same inputs give the same bits. The targets' term needs no logits: it is the backward pass of an
embedding. Products take BF16 and sum in FP32; so p is rounded to BF16, relative to itself, and nothing is dropped.

Soft-capped logits c tanh(l / c) have the slope 1 - tanh^2: it multiplies p in front of the second product, in both passes,
and the target's terms. The Hopper kernels do not know it; with a cap these here run on every card.

Rejected: cut-cross-entropy's filter (it drops the small gradients that training from scratch consists of), and one backward
kernel for both gradients (its sums over the table need atomics or a second product anyway).
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
# Tokens and entries of a tile, warps, pipeline stages.
FORWARD_TILE = (128, 128, 8, 3)
BACKWARD_TILE = (128, 128, 8, 3)


def vocab_loss(
  x_NR: Tensor, table_VR: Tensor, targets_N: Tensor, weights_N: Tensor, z_loss: float = 0.0, softcap: float = 0.0
) -> tuple[Tensor, Tensor]:
  """sum(weights * (nll + z_loss * lse^2)) and every token's nll in nats; see `vocab_loss.vocab_loss`.

  Args:
    x_NR: BF16 (FP32 under Triton's interpreter, which cannot multiply BF16); R 16, 32, 64 or 128.
    table_VR: FP32 or BF16; cast to x's dtype for the products. Its gradient is summed in FP32.
    targets_N: int, in [0, V).
    weights_N: FP32, at least 0.
  """
  assert x_NR.dtype == torch.bfloat16 or not x_NR.is_cuda, x_NR.dtype
  return _Loss.apply(x_NR, table_VR, targets_N, weights_N, z_loss, softcap, torch.is_grad_enabled())


class _Loss(torch.autograd.Function):
  @staticmethod
  def forward(ctx, x_NR, table_VR, targets_N, weights_N, z_loss, softcap, differentiable):
    x_NR, table = x_NR.contiguous(), table_VR.to(x_NR.dtype)
    needs_x, needs_table = (differentiable and needed for needed in ctx.needs_input_grad[:2])
    kernel = functools.partial(forward, softcap=softcap) if softcap or not _on_hopper(x_NR) else _hopper().forward
    nll_N, bias_N, dx_NR = kernel(x_NR, table, targets_N, weights_N, with_gradient=needs_x or needs_table)
    penalty_N = 0.0
    if z_loss:
      penalty_N = _add_z_loss(z_loss, softcap, x_NR, table, targets_N, weights_N, nll_N, bias_N, dx_NR)
    if needs_x or needs_table:
      ctx.save_for_backward(x_NR, table, targets_N, weights_N, bias_N, dx_NR)
    ctx.table_dtype, ctx.softcap = table_VR.dtype, softcap
    ctx.mark_non_differentiable(nll_N)
    return (weights_N * (nll_N + penalty_N)).sum(), nll_N

  @staticmethod
  def backward(ctx, dloss, _):
    x_NR, table, targets_N, weights_N, bias_N, dx_NR = ctx.saved_tensors
    dx = (dx_NR * dloss).to(dx_NR.dtype) if ctx.needs_input_grad[0] else None
    if not ctx.needs_input_grad[1]:
      return dx, None, None, None, None, None, None
    softcap, hits_N = ctx.softcap, -dloss * weights_N
    if softcap:
      hits_N = hits_N * _of_targets(x_NR, table[targets_N].float(), softcap)[1]
    hits_NR = x_NR.float() * hits_N[:, None]
    dtable_VR = torch.ops.aten.embedding_dense_backward(hits_NR, targets_N.long(), len(table), -1, False)
    kernel = functools.partial(table_gradient, softcap=softcap) if softcap or not _on_hopper(x_NR) else _hopper().table_gradient
    kernel(x_NR, table, bias_N, dloss, dtable_VR)
    return dx, dtable_VR.to(ctx.table_dtype), None, None, None, None, None


def _of_targets(x_NR: Tensor, target_NR: Tensor, softcap: float) -> tuple[Tensor, Tensor | float]:
  """Every token's logit of its target, soft-capped, and the slope of the cap there; FP32."""
  logit_N = (x_NR.float() * target_NR).sum(-1)
  if not softcap:
    return logit_N, 1.0
  tanh_N = torch.tanh(logit_N / softcap)
  return softcap * tanh_N, 1 - tanh_N.square()


def _add_z_loss(z_loss: float, softcap: float, x_NR, table_VR, targets_N, weights_N, nll_N, bias_N, dx_NR) -> Tensor:
  """z_loss * lse^2 of every token; `bias` and `dx` become those of the loss with it, in place.

  The softmax's part of both gradients is multiplied by 1 + 2 z_loss lse, the target's stays.
  """
  target_NR = table_VR[targets_N].float()
  logit_N, slope_N = _of_targets(x_NR, target_NR, softcap)
  lse_N = nll_N + logit_N
  more_N = 2 * z_loss * lse_N
  bias_N.add_(torch.log1p(more_N))
  # dx is w (softmax T - target): w softmax T is dx with the target put back.
  dx_NR.copy_(dx_NR + more_N[:, None] * (dx_NR + (weights_N * slope_N)[:, None] * target_NR))
  return z_loss * lse_N.square()


def _on_hopper(x_NR: Tensor) -> bool:
  # Gluon is experimental and changes with every Triton: vocab_loss_hopper is written for the one that torch 2.11 brings.
  hopper = x_NR.is_cuda and torch.cuda.get_device_capability(x_NR.device)[0] == 9
  return hopper and triton.__version__.startswith('3.6.') and x_NR.shape[1] == 128


def _hopper():
  from yxanul.kernels import vocab_loss_hopper

  return vocab_loss_hopper


def forward(x_NR: Tensor, table_VR: Tensor, targets_N: Tensor, weights_N: Tensor, with_gradient: bool, softcap: float = 0.0):
  """nll_N; log(weight) - lse (N,) FP32 and dx_NR, BF16, for a loss whose own gradient is 1 (unset without gradient)."""
  (n_tokens, rank), n_vocab = x_NR.shape, len(table_VR)
  block_n, block_v, warps, stages = FORWARD_TILE
  nll_N, bias_N, dx_NR = torch.empty_like(weights_N), torch.empty_like(weights_N), torch.empty_like(x_NR)
  x_tiles = TensorDescriptor.from_tensor(x_NR, [block_n, rank])
  table_tiles = TensorDescriptor.from_tensor(table_VR, [block_v, rank])
  _forward_kernel[(triton.cdiv(n_tokens, block_n),)](
    x_tiles, table_tiles, table_VR, targets_N, weights_N, nll_N, bias_N, dx_NR, n_tokens, n_vocab,
    rank, block_n, block_v, with_gradient, softcap, num_warps=warps, num_stages=stages,
  )  # fmt: skip
  return nll_N, bias_N, dx_NR


def table_gradient(
  x_NR: Tensor, table_VR: Tensor, bias_N: Tensor, dloss: Tensor, dtable_VR: Tensor, softcap: float = 0.0
) -> None:
  """Adds dloss * sum_n exp(l_nv + bias_n) x_n, times the slope of the cap, to `dtable_VR` (FP32), in place."""
  (n_tokens, rank), n_vocab = x_NR.shape, len(table_VR)
  block_n, block_v, warps, stages = BACKWARD_TILE
  x_tiles = TensorDescriptor.from_tensor(x_NR, [block_n, rank])
  table_tiles = TensorDescriptor.from_tensor(table_VR, [block_v, rank])
  _table_gradient_kernel[(triton.cdiv(n_vocab, block_v),)](
    x_tiles, table_tiles, bias_N, dloss, dtable_VR, n_tokens, n_vocab,
    rank, block_n, block_v, softcap, num_warps=warps, num_stages=stages,
  )  # fmt: skip


@triton.jit
def _forward_kernel(
  x_tiles, table_tiles, table_ptr, targets_ptr, weights_ptr, nll_ptr, bias_ptr, dx_ptr, n_tokens, n_vocab,
  RANK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, WITH_GRADIENT: tl.constexpr, CAP: tl.constexpr,
):  # fmt: skip
  start = tl.program_id(0) * BLOCK_N
  x = x_tiles.load([start, 0])
  top = tl.full([BLOCK_N], float('-inf'), tl.float32)  # running maximum, in powers of two
  total = tl.zeros([BLOCK_N], tl.float32)
  mean = tl.zeros([BLOCK_N, RANK], tl.float32)
  whole = n_vocab // BLOCK_V * BLOCK_V
  for v in range(0, whole, BLOCK_V):
    t = table_tiles.load([v, 0])
    logits, slope = _capped(tl.dot(x, t.T), CAP)
    top, total, mean = _online_softmax(logits, slope, t, top, total, mean, WITH_GRADIENT)
  if whole < n_vocab:
    t = table_tiles.load([whole, 0])
    inside = whole + tl.arange(0, BLOCK_V) < n_vocab
    logits, slope = _capped(tl.dot(x, t.T), CAP)
    logits = tl.where(inside[None, :], logits, float('-inf'))
    top, total, mean = _online_softmax(logits, slope, t, top, total, mean, WITH_GRADIENT)

  tokens = start + tl.arange(0, BLOCK_N)
  columns = tl.arange(0, RANK)
  inside = tokens < n_tokens
  lse = (top + tl.log2(total)) * LN2
  target = tl.load(targets_ptr + tokens, inside, 0).to(tl.int64)
  t_target = tl.load(table_ptr + target[:, None] * RANK + columns[None, :]).to(tl.float32)
  logit, slope = _capped(tl.sum(x.to(tl.float32) * t_target, 1), CAP)
  tl.store(nll_ptr + tokens, lse - logit, inside)
  if WITH_GRADIENT:
    weight = tl.load(weights_ptr + tokens, inside, 0.0)
    tl.store(bias_ptr + tokens, tl.log(weight) - lse, inside)
    dx = (mean / total[:, None] - slope[:, None] * t_target) * weight[:, None]
    tl.store(dx_ptr + tokens[:, None] * RANK + columns[None, :], dx.to(dx_ptr.dtype.element_ty), inside[:, None])


@triton.jit
def _capped(logits, CAP: tl.constexpr):
  """CAP tanh(logits / CAP), and its slope; without a cap the logits and ones, which the compiler multiplies away."""
  slope = tl.full(logits.shape, 1.0, tl.float32)
  if CAP > 0:
    # tanh u = 1 - 2 / (1 + exp 2u): right at both infinities.
    tanh = 1 - 2 / (1 + tl.exp2(logits * (2 * LOG2E / CAP)))
    slope = 1 - tanh * tanh
    logits = CAP * tanh
  return logits, slope


@triton.jit
def _online_softmax(logits, slope, t, top, total, mean, WITH_GRADIENT: tl.constexpr):
  new_top = tl.maximum(top, tl.max(logits, 1) * LOG2E)
  p = tl.exp2(logits * LOG2E - new_top[:, None])
  shrink = tl.exp2(top - new_top)
  total = total * shrink + tl.sum(p, 1)
  if WITH_GRADIENT:
    mean = tl.dot((p * slope).to(t.dtype), t, mean * shrink[:, None])
  return new_top, total, mean


@triton.jit
def _table_gradient_kernel(
  x_tiles, table_tiles, bias_ptr, dloss_ptr, dtable_ptr, n_tokens, n_vocab,
  RANK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, CAP: tl.constexpr,
):  # fmt: skip
  start = tl.program_id(0) * BLOCK_V
  t = table_tiles.load([start, 0])
  total = tl.zeros([BLOCK_V, RANK], tl.float32)
  for n in range(0, n_tokens, BLOCK_N):
    x = x_tiles.load([n, 0])
    tokens = n + tl.arange(0, BLOCK_N)
    bias = tl.load(bias_ptr + tokens, tokens < n_tokens, float('-inf'))
    logits, slope = _capped(tl.dot(t, x.T), CAP)
    p = tl.exp2((logits + bias[None, :]) * LOG2E) * slope
    total = tl.dot(p.to(x.dtype), x, total)
  entries = start + tl.arange(0, BLOCK_V)
  places = dtable_ptr + entries[:, None] * RANK + tl.arange(0, RANK)[None, :]
  inside = (entries < n_vocab)[:, None]
  tl.store(places, tl.load(places, inside, 0.0) + total * tl.load(dloss_ptr), inside)
