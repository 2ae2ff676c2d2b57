"""Causal grouped-query attention for long rows on Hopper: the query heads of a group share what is read, and what is summed.

Shapes: B rows, T length, H query heads, K key/value heads, C head width (64).

Forward, a program holds 64 queries of three heads of a group (one a warpgroup) against one stream of keys and values. Backward
is two kernels, which both recompute the scores from the saved log-sum-exp: one holds queries and makes dq (and delta, the row
sums of out * dout, on the way), one holds keys and values, and sums dk and dv over the queries of all heads of the group in
registers. That is seven products of the causal triangle where one kernel would do with five, but nothing is added to in memory:
the result is the same bit for bit, every time, nothing has to be set to zero before, nor summed or cast after.

Tried on one H200, 131,072 tokens of 12 heads and 2 of keys; milliseconds at lengths of 2048 and 512, before `give_back` had a
fence. Forward as here 1.02 and 0.48 (cuDNN 1.00 and 0.37), backward 2.66 and 0.88 (3.19 and 1.60): together 3.68 and 1.36.
  Two heads a program instead of three, forward: 1.11 and 0.49.
  Two heads, and every product waited for at once: forward 1.09 and 0.49, backward 3.03 and 0.99.
  Tiles of 64 keys, three heads: forward 0.99 and 0.40, rejected as it was off by 0.044 and 0.064 in relative norm.
  Tiles of 64 keys, two heads: forward 1.19 and 0.44, off by 0.009 and 0.013; rounding alone would be below 0.003.
What was off held queries in registers and most likely lost them to the next item's for want of that fence. Three heads with
their queries in shared memory load nothing into registers. The numbers of this code were checked with one or two items a
program only: no card was at hand since. Where the tests of many items pass, 64 keys are worth another trial.
"""

import torch
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from yxanul.kernels import attention_long_gradients as gradients
from yxanul.kernels import attention_long_kernels as kernels

HEAD_DIM = 64
TILE = 64
STAGES = 6  # of two tiles of 64 by 64 each
KEYS, FORWARD_STAGES = 128, 4  # the forward pass takes more keys at a time
# Threads: the consuming warpgroups' and the producer's, who gives most of its registers to them.
_TWO = {'num_warps': 4, 'maxnreg': 168}
_THREE = {'num_warps': 4, 'maxnreg': 128}


def attention_long(q_BTHC: Tensor, k_BTKC: Tensor, v_BTKC: Tensor) -> Tensor:
  """Causal attention scaled by 1/sqrt(C), differentiable, in BF16 with FP32 sums. Where `supports` says so."""
  return _attention(q_BTHC.contiguous(), k_BTKC.contiguous(), v_BTKC.contiguous())[0]


def supports(seq_len: int, n_heads: int, n_kv_heads: int, head_dim: int, capability: tuple[int, int]) -> bool:
  """Whether rows of `seq_len` are whole tiles of 128 keys, and groups whole pairs of heads, of 64 channels, on Hopper."""
  return capability == (9, 0) and head_dim == HEAD_DIM and seq_len % 128 == 0 and n_heads % (2 * n_kv_heads) == 0


# Operators of their own, as torch.compile cannot look into Gluon.
@torch.library.custom_op('yxanul::attention_long', mutates_args=())
def _attention(q_BTHC: Tensor, k_BTKC: Tensor, v_BTKC: Tensor) -> tuple[Tensor, Tensor]:
  return forward(q_BTHC, k_BTKC, v_BTKC)


@torch.library.custom_op('yxanul::attention_long_backward', mutates_args=())
def _attention_backward(
  q_BTHC: Tensor, k_BTKC: Tensor, v_BTKC: Tensor, out_BTHC: Tensor, lse_BHT: Tensor, dout_BTHC: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
  return backward(q_BTHC, k_BTKC, v_BTKC, out_BTHC, lse_BHT, dout_BTHC)


@_attention.register_fake
def _(q_BTHC, k_BTKC, v_BTKC):
  n_rows, length, n_heads, _ = q_BTHC.shape
  return torch.empty_like(q_BTHC), q_BTHC.new_empty(n_rows, n_heads, length, dtype=torch.float32)


@_attention_backward.register_fake
def _(q_BTHC, k_BTKC, v_BTKC, out_BTHC, lse_BHT, dout_BTHC):
  return torch.empty_like(q_BTHC), torch.empty_like(k_BTKC), torch.empty_like(v_BTKC)


def _save(ctx, inputs, output):
  ctx.save_for_backward(*inputs, *output)
  ctx.mark_non_differentiable(output[1])


def _differentiate(ctx, dout_BTHC, _):
  return _attention_backward(*ctx.saved_tensors, dout_BTHC.contiguous())


_attention.register_autograd(_differentiate, setup_context=_save)


def forward(q_BTHC: Tensor, k_BTKC: Tensor, v_BTKC: Tensor) -> tuple[Tensor, Tensor]:
  """The output, and the log-sum-exp of every row of scores in powers of two, (B, H, T) FP32."""
  n_rows, length, n_heads, _ = q_BTHC.shape
  n_kv_heads = k_BTKC.shape[2]
  assert q_BTHC.numel() < 2**31, q_BTHC.shape  # places are counted in 32 bits
  warpgroups = 3 if n_heads // n_kv_heads % 3 == 0 else 2
  out_BTHC = torch.empty_like(q_BTHC)
  lse_BHT = torch.empty(n_rows, n_heads, length, dtype=torch.float32, device=q_BTHC.device)
  n_items = n_rows * n_heads // warpgroups * (length // TILE)
  kernels.attention_long_forward[_programs(q_BTHC, n_items)](
    _tiles(q_BTHC), _tiles(k_BTKC, KEYS), _tiles(v_BTKC, KEYS), out_BTHC, lse_BHT, length, n_items, _span(length // TILE),
    n_heads, n_kv_heads, warpgroups, FORWARD_STAGES, **(_TWO if warpgroups == 2 else _THREE),
  )  # fmt: skip
  return out_BTHC, lse_BHT


def backward(
  q_BTHC: Tensor, k_BTKC: Tensor, v_BTKC: Tensor, out_BTHC: Tensor, lse_BHT: Tensor, dout_BTHC: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
  """dq, dk and dv."""
  n_rows, length, n_heads, _ = q_BTHC.shape
  n_kv_heads = k_BTKC.shape[2]
  dq_BTHC, dk_BTKC, dv_BTKC, delta_BHT = (torch.empty_like(x) for x in (q_BTHC, k_BTKC, v_BTKC, lse_BHT))
  q, k, v, out, dout = (_tiles(x) for x in (q_BTHC, k_BTKC, v_BTKC, out_BTHC, dout_BTHC))
  lse, delta = _numbers(lse_BHT), _numbers(delta_BHT)
  n_items = n_rows * n_heads // 2 * (length // TILE)
  gradients.attention_long_query_gradient[_programs(q_BTHC, n_items)](
    q, out, dout, k, v, lse, dq_BTHC, delta_BHT, length, n_items, _span(length // TILE),
    n_heads, n_kv_heads, STAGES, **_TWO,
  )  # fmt: skip
  n_items = n_rows * n_kv_heads * (length // (2 * TILE))
  gradients.attention_long_key_value_gradient[_programs(q_BTHC, n_items)](
    k, v, q, dout, lse, delta, dk_BTKC, dv_BTKC, length, n_items, _span(length // (2 * TILE)),
    n_heads, n_kv_heads, STAGES, **_TWO,
  )  # fmt: skip
  return dq_BTHC, dk_BTKC, dv_BTKC


def _programs(x: Tensor, n_items: int) -> tuple[int]:
  return (min(n_items, torch.cuda.get_device_properties(x.device).multi_processor_count),)


def _span(n_places: int) -> int:
  return next(span for span in (4, 2, 1) if n_places % span == 0)


def _tiles(x_BTHC: Tensor, rows: int = TILE) -> TensorDescriptor:
  block = [rows, HEAD_DIM]
  x_MD = x_BTHC.view(x_BTHC.shape[0] * x_BTHC.shape[1], -1)
  return TensorDescriptor.from_tensor(x_MD, block, gl.NVMMASharedLayout.get_default_for(block, gl.bfloat16))


def _numbers(x_BHT: Tensor) -> TensorDescriptor:
  return TensorDescriptor.from_tensor(x_BHT.view(-1), [TILE], gl.NVMMASharedLayout(0, 32, rank=1))
