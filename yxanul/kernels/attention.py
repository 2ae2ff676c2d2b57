"""Causal grouped-query attention and rotary positions.

Shapes: B rows, T length, H query heads, K key/value heads, C head width, O width of the packed projection, (H + 2K)C.
"""

import contextlib
import functools
import importlib
from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from yxanul.config.model_spec import ModelSpec


def rope_tables(length: int, head_dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
  """cos and sin of position times frequency (arXiv 2104.09864), each (T, C/2) FP32."""
  frequency_C = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim)
  angle_TC = torch.arange(length, dtype=torch.float32, device=device)[:, None] * frequency_C
  return angle_TC.cos(), angle_TC.sin()


def rope(x_BTHC: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> Tensor:
  """Rotates the pairs (x[i], x[i + C/2]) by the position's angle, in FP32; returns x's dtype. Llama's pairing.

  Rows at positions of their own bring tables of their own, (B, T, C/2).
  """
  first, second = x_BTHC.float().chunk(2, -1)
  cos, sin = cos_TC[..., None, :], sin_TC[..., None, :]
  return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x_BTHC.dtype)


def document_mask(tokens_BT: Tensor, end_of_text_id: int) -> Tensor:
  """True where a query may look: same document and not later. (B, 1, T, T) bool; an end-of-text starts its document."""
  document_BT = (tokens_BT == end_of_text_id).cumsum(-1)
  same_BTT = document_BT[:, :, None] == document_BT[:, None, :]
  return (same_BTT & same_BTT.new_ones(same_BTT.shape[-2:]).tril())[:, None]


def window_mask(length: int, window: int, device: torch.device) -> Tensor:
  """True where a query may look: itself and the `window - 1` tokens before it. (1, 1, T, T) bool."""
  everything = torch.ones(length, length, dtype=torch.bool, device=device)
  return everything.tril().triu(1 - window)[None, None]


# Without cuDNN, torch's own choice: the fastest that takes the inputs, in this order.
_PLAIN = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
_BACKENDS = {
  'cudnn': [SDPBackend.CUDNN_ATTENTION],
  'flash': [SDPBackend.FLASH_ATTENTION],
  'sdpa': _PLAIN,
  'math': [SDPBackend.MATH],
}
# Replayed in a CUDA graph (cuDNN 9.14 under torch 2.11, one H200), cuDNN over 16,384 rows of 8 tokens never ended, and is the
# suspect of an illegal memory access over rows of 8 to 192; up to 256 the short kernel is the faster anyway.
CUDNN_SHORTEST = 512
LONG = 512  # rows from here on are `grouped`'s; what is shorter is one tile or two


def attention(q_BTHC: Tensor, k_BTKC: Tensor, v_BTKC: Tensor, mask_B1TT: Tensor | None = None, engine: str = 'sdpa') -> Tensor:
  """Causal attention scaled by 1/sqrt(C); every key/value head serves H/K query heads (arXiv 2305.13245).

  Args:
    q_BTHC, k_BTKC, v_BTKC: one dtype.
    mask_B1TT: bool, True where to look (B or 1 rows), instead of the plain causal triangle; only `sdpa` takes it.
    engine: `sdpa` (what torch chooses, cuDNN left out), `cudnn` or `flash` (that backend of torch's, BF16 on a GPU),
      `flash_attn` (the package of that name, the newest that is installed), `grouped` (our own for long rows on Hopper) or
      `math` (the scores written out: what the others are measured against). Where `runs` says so, or `grouped` does not
      take the inputs, it is another.

  Returns:
    (B, T, H, C), q's dtype.
  """
  engine = 'sdpa' if mask_B1TT is not None else runs(engine, q_BTHC.shape[1])
  if engine == 'grouped' and not _takes_grouped(q_BTHC, k_BTKC):
    engine = 'sdpa'
  return attention_through(engine, q_BTHC, k_BTKC, v_BTKC, mask_B1TT)


def attention_through(engine: str, q_BTHC: Tensor, k_BTKC: Tensor, v_BTKC: Tensor, mask_B1TT: Tensor | None = None) -> Tensor:
  """As `attention`, through this engine and no other: for measurements, which must not name one kernel and time another.

  Raises:
    Whatever the engine does for what it does not take.
  """
  if engine == 'grouped':
    return importlib.import_module('yxanul.kernels.attention_long').attention_long(q_BTHC, k_BTKC, v_BTKC)
  if engine == 'flash_attn':
    out = _flash_attn()(q_BTHC, k_BTKC, v_BTKC, causal=True)
    return out[0] if isinstance(out, tuple) else out  # some versions give the log-sum-exp too
  q, k, v = (x.transpose(1, 2) for x in (q_BTHC, k_BTKC, v_BTKC))
  grouped = q.shape[1] != k.shape[1]
  if grouped and mask_B1TT is not None:
    # Of torch's fused kernels on a GPU, the one that takes a mask takes no groups; without it the scores would be written out.
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    grouped = False
  with sdpa_kernel(_BACKENDS[engine]):
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_B1TT, is_causal=mask_B1TT is None, enable_gqa=grouped)
  return out.transpose(1, 2)


def runs(engine: str, seq_len: int) -> str:
  """What runs over rows of this length where `engine` is asked for: `sdpa` in place of `cudnn` for rows of fewer than
  CUDNN_SHORTEST tokens, and of `cudnn` and `flash_attn` where torch is told to be deterministic, which they are not.
  """
  short = engine == 'cudnn' and seq_len < CUDNN_SHORTEST
  loose = engine in ('cudnn', 'flash_attn') and torch.are_deterministic_algorithms_enabled()
  return 'sdpa' if short or loose else engine


def _takes_grouped(q_BTHC: Tensor, k_BTKC: Tensor) -> bool:
  _, length, n_heads, head_dim = q_BTHC.shape
  fits = q_BTHC.is_cuda and q_BTHC.dtype == torch.bfloat16
  return fits and supports_long(length, n_heads, k_BTKC.shape[2], head_dim, q_BTHC.device)


@functools.cache
def _flash_attn() -> Callable[..., Tensor | tuple[Tensor, ...]]:
  """flash-attn's function on (B, T, heads, C): version 3 (a package of its own), 4 or 2, in this order."""
  for module in ('flash_attn_interface', 'flash_attn.cute', 'flash_attn'):
    with contextlib.suppress(ImportError):
      return importlib.import_module(module).flash_attn_func
  raise ImportError('flash_attn')


def packed_attention(
  qkv_BTO: Tensor,
  model: ModelSpec,
  rope_tables: tuple[Tensor, Tensor] | None,
  mask_B1TT: Tensor | None,
  engine: str,
  fused: bool = False,
) -> Tensor:
  """Rotation and attention of a packed projection (queries, keys, values side by side), (B, T, d_query) in its dtype.

  `engine` is one of `attention`, or `short` (Triton, one kernel each way for rows of up to 256 tokens without a mask). On a GPU
  `fused` makes one Triton kernel each way of what stands around the other engines: rotation, split, and the gather of dqkv.
  """
  if takes_packed(engine, mask_B1TT):
    from yxanul.kernels.attention_short import attention_short  # Triton is there on GPUs only

    n_rows, length, _ = qkv_BTO.shape
    cos, sin = rope_tables or (None, None)
    mixed_ND = attention_short(qkv_BTO.flatten(0, 1), length, model.n_heads, model.n_kv_heads, model.head_dim, cos, sin)
    return mixed_ND.view(n_rows, length, -1)
  mixed_BTHC = attention(*split(qkv_BTO, model, rope_tables, fused), mask_B1TT, 'sdpa' if engine == 'short' else engine)
  return rearrange(mixed_BTHC, 'b t h c -> b t (h c)')


def takes_packed(engine: str, mask_B1TT: Tensor | None) -> bool:
  """Whether this attention works on the packed projection itself."""
  return engine == 'short' and mask_B1TT is None


def split(
  qkv_BTO: Tensor, model: ModelSpec, rope_tables: tuple[Tensor, Tensor] | None, fused: bool
) -> tuple[Tensor, Tensor, Tensor]:
  """Rotated queries and keys, and values, of a packed projection, each (B, T, heads, C); `fused` as in `packed_attention`."""
  # What torch.compile looks into it fuses itself.
  if rope_tables is not None and fused and qkv_BTO.is_cuda and not torch.compiler.is_compiling():
    from yxanul.kernels.attention_rope import rotated

    return rotated(qkv_BTO, *rope_tables, model.n_heads, model.n_kv_heads, model.head_dim)
  parts = qkv_BTO.split((model.d_query, model.d_kv, model.d_kv), -1)
  q_BTHC, k_BTKC, v_BTKC = (rearrange(part, 'b t (h c) -> b t h c', c=model.head_dim) for part in parts)
  if rope_tables is not None:
    q_BTHC, k_BTKC = rope(q_BTHC, *rope_tables), rope(k_BTKC, *rope_tables)
  return q_BTHC, k_BTKC, v_BTKC


def supports_short(seq_len: int, head_dim: int, device: torch.device) -> bool:
  """Whether engine `short` takes such rows on a GPU; False where there is no Triton."""
  try:
    from yxanul.kernels import attention_short
  except ImportError:
    return False
  return attention_short.supports(seq_len, head_dim, torch.cuda.get_device_capability(device))


@functools.cache
def supports_long(seq_len: int, n_heads: int, n_kv_heads: int, head_dim: int, device: torch.device) -> bool:
  """Whether engine `grouped` takes such rows on a GPU; False where there is no Triton that has Gluon."""
  try:
    from yxanul.kernels import attention_long
  except ImportError:
    return False
  capability = torch.cuda.get_device_capability(device)
  return seq_len >= LONG and attention_long.supports(seq_len, n_heads, n_kv_heads, head_dim, capability)
