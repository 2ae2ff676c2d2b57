"""Causal grouped-query attention and rotary positions.

Shapes: B rows, T length, H query heads, K key/value heads, C head width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


def rope_tables(length: int, head_dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
  """cos and sin of position times frequency (arXiv 2104.09864), each (T, C/2) FP32."""
  frequency_C = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim)
  angle_TC = torch.arange(length, dtype=torch.float32, device=device)[:, None] * frequency_C
  return angle_TC.cos(), angle_TC.sin()


def rope(x_BTHC: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> Tensor:
  """Rotates the pairs (x[i], x[i + C/2]) by the position's angle, in FP32; returns x's dtype. Llama's pairing."""
  first, second = x_BTHC.float().chunk(2, -1)
  cos, sin = cos_TC[:, None], sin_TC[:, None]
  return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x_BTHC.dtype)


def document_mask(tokens_BT: Tensor, end_of_text_id: int) -> Tensor:
  """True where a query may look: same document and not later. (B, 1, T, T) bool; an end-of-text starts its document."""
  document_BT = (tokens_BT == end_of_text_id).cumsum(-1)
  same_BTT = document_BT[:, :, None] == document_BT[:, None, :]
  return (same_BTT & same_BTT.new_ones(same_BTT.shape[-2:]).tril())[:, None]


_BACKENDS = {'cudnn': SDPBackend.CUDNN_ATTENTION, 'flash': SDPBackend.FLASH_ATTENTION}


def attention(q_BTHC: Tensor, k_BTKC: Tensor, v_BTKC: Tensor, mask_B1TT: Tensor | None = None, engine: str = 'sdpa') -> Tensor:
  """Causal attention scaled by 1/sqrt(C); every key/value head serves H/K query heads (arXiv 2305.13245).

  Args:
    q_BTHC, k_BTKC, v_BTKC: one dtype.
    mask_B1TT: bool, True where to look, instead of the plain causal triangle; only `sdpa` takes it.
    engine: `sdpa` (what torch chooses), `cudnn` or `flash` (that backend of torch's, BF16 on a GPU).

  Returns:
    (B, T, H, C), q's dtype.
  """
  q, k, v = (x.transpose(1, 2) for x in (q_BTHC, k_BTKC, v_BTKC))
  grouped = q.shape[1] != k.shape[1]
  if engine == 'sdpa' or mask_B1TT is not None:
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_B1TT, is_causal=mask_B1TT is None, enable_gqa=grouped)
  else:
    with sdpa_kernel(_BACKENDS[engine]):
      out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
  return out.transpose(1, 2)
