"""Decoding with a cache: keys and values of the positions read so far, an explicit tree that goes in and comes out.

Rows are independent and may differ in length. A call reads up to T more tokens of each row, written at the row's own next
positions. Rows that bring fewer are padded on the right: what padding writes lies behind the row's end, where no query
looks, and the row's next tokens overwrite it. So no mask has to travel with the cache: a query sees the slots up to its own
position.

Shapes: B rows, T new positions, S capacity in positions, L layers, K key/value heads, C head width, D model width, O width
of the packed projection.
"""

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from yxanul.config.model_spec import ModelSpec
from yxanul.kernels import attention
from yxanul.kernels.linear import normalize
from yxanul.model import transformer
from yxanul.model.transformer import Numerics, Params


class Cache(NamedTuple):
  """Only the key/value heads are kept: grouped-query attention makes it smaller by the size of a group."""

  keys_LBSKC: Tensor  # rotated already
  values_LBSKC: Tensor
  lengths_B: Tensor  # int64: positions of each row that hold text


def init_cache(spec: ModelSpec, n_rows: int, capacity: int, dtype: torch.dtype, device: torch.device) -> Cache:
  """An empty cache for rows of up to `capacity` positions, padding included."""
  shape = (spec.n_layers, n_rows, capacity, spec.n_kv_heads, spec.head_dim)
  keys, values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
  return Cache(keys, values, torch.zeros(n_rows, dtype=torch.int64, device=device))


def extend(
  params: Params, tokens_BT: Tensor, counts_B: Tensor, cache: Cache, spec: ModelSpec, numerics: Numerics
) -> tuple[Tensor, Cache]:
  """Reads more tokens of every row.

  Args:
    tokens_BT: the next tokens of each row, padded on the right. The longest row and its padding must fit the capacity.
    counts_B: int64, how many of them are the row's.
    cache: donated: its tensors are written to, so the old cache must not be used again.

  Returns:
    The residual stream after the last norm, (B, T, D) in the numerics' dtype, equal to `transformer.hidden` of the whole
    rows at these positions; and the cache with the tokens in it.
  """
  n_rows, length = tokens_BT.shape
  capacity = cache.keys_LBSKC.shape[2]
  positions_BT = cache.lengths_B[:, None] + torch.arange(length, device=tokens_BT.device)
  rows_B1 = torch.arange(n_rows, device=tokens_BT.device)[:, None]
  visible_B1TS = (torch.arange(capacity, device=tokens_BT.device) <= positions_BT[..., None])[:, None]
  rope = None
  if spec.position == 'rope':
    tables = attention.rope_tables(capacity, spec.head_dim, spec.rope_theta, tokens_BT.device)
    rope = tuple(table_SC[positions_BT] for table_SC in tables)
  x_BTD, delta_BTD = transformer.embed(params, tokens_BT, spec, numerics.dtype, positions_BT), None
  for layer, p in enumerate(transformer.layers(params)):
    keys_BSKC, values_BSKC = cache.keys_LBSKC[layer], cache.values_LBSKC[layer]

    def attend(qkv_BTO: Tensor, keys_BSKC=keys_BSKC, values_BSKC=values_BSKC) -> Tensor:
      parts = qkv_BTO.split((spec.d_query, spec.d_kv, spec.d_kv), -1)
      q_BTHC, k_BTKC, v_BTKC = (rearrange(part, 'b t (h c) -> b t h c', c=spec.head_dim) for part in parts)
      if rope is not None:
        q_BTHC, k_BTKC = attention.rope(q_BTHC, *rope), attention.rope(k_BTKC, *rope)
      keys_BSKC[rows_B1, positions_BT] = k_BTKC
      values_BSKC[rows_B1, positions_BT] = v_BTKC
      mixed_BTHC = attention.attention(q_BTHC, keys_BSKC, values_BSKC, visible_B1TS)
      return rearrange(mixed_BTHC, 'b t h c -> b t (h c)')

    x_BTD, delta_BTD = transformer.sublayers(x_BTD, delta_BTD, p, numerics.linears.at(layer), attend)
  x_BTD = normalize(x_BTD + delta_BTD, params, 'final_norm', spec)
  return x_BTD, cache._replace(lengths_B=cache.lengths_B + counts_B)
