"""The model as two pure functions over an explicit tree: `init` and `apply`.

Parameters are a flat dict, name to tensor (`ModelSpec.parameter_shapes`); block parameters are stacked over layers. What
a training step differentiates is `hidden` followed by `kernels.vocab_loss`; `apply` writes all logits out and is for
sampling, tests and export.

Shapes: B rows, T length, N = B*T tokens, D model width, R embedding rank (D where the table is not factorized), V vocabulary,
H query heads, K key/value heads, C head width, L layers, O and I a linear's output and input width.
"""

import dataclasses
import math

import torch
from einops import rearrange
from torch import Tensor

from yxanul.config.model_spec import LINEARS, ModelSpec
from yxanul.kernels import attention, norm
from yxanul.kernels.fp8 import Fp8Linears
from yxanul.kernels.linear import Linears

Params = dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Numerics:
  """How `apply` computes: the dtype of the residual stream and the linears of the blocks.

  `linears` runs the four linears of a layer; under FP8 it holds the step's scales and collects its amaxes.
  """

  dtype: torch.dtype = torch.float32
  linears: Linears | Fp8Linears = dataclasses.field(default_factory=Linears)
  attention: str = 'sdpa'  # engine of kernels.attention


def init(spec: ModelSpec, generator: torch.Generator) -> Params:
  """Parameters in FP32 on the generator's device: N(0, init_std), residual outputs scaled by 1/sqrt(2 L) (GPT-2)."""
  params = {}
  for name, shape in spec.parameter_shapes().items():
    if name.endswith('.bias'):
      params[name] = torch.zeros(shape, device=generator.device)
    elif 'norm' in name:
      params[name] = torch.ones(shape, device=generator.device)
    else:
      residual = name in ('blocks.attention_out.weight', 'blocks.down.weight')
      std = spec.init_std / math.sqrt(2 * spec.n_layers) if residual else spec.init_std
      params[name] = torch.randn(shape, generator=generator, device=generator.device) * std
  return params


def hidden(params: Params, tokens_BT: Tensor, spec: ModelSpec, numerics: Numerics, mask_B1TT: Tensor | None = None) -> Tensor:
  """The residual stream after the last norm, (B, T, D) in the numerics' dtype. `mask_B1TT` as in `kernels.attention`."""
  x_BTD = embed(params, tokens_BT, spec, numerics.dtype)
  rope = None
  if spec.position == 'rope':
    rope = attention.rope_tables(tokens_BT.shape[1], spec.head_dim, spec.rope_theta, tokens_BT.device)
  layers = {name.removeprefix('blocks.'): p.unbind(0) for name, p in params.items() if name.startswith('blocks.')}
  for layer in range(spec.n_layers):
    x_BTD = block(x_BTD, {name: p[layer] for name, p in layers.items()}, layer, spec, numerics, rope, mask_B1TT)
  return _norm(x_BTD, params, 'final_norm', spec)


def embed(params: Params, tokens_BT: Tensor, spec: ModelSpec, dtype: torch.dtype) -> Tensor:
  """Token embeddings (plus learned positions), (B, T, D)."""
  x_BTR = torch.nn.functional.embedding(tokens_BT, params['embedding.table']).to(dtype)
  x_BTD = x_BTR @ params['embedding.projection'].to(dtype) if spec.embedding_rank else x_BTR
  if spec.position == 'learned':
    x_BTD = x_BTD + params['embedding.position'][: tokens_BT.shape[1]].to(dtype)
  return x_BTD


def block(x_BTD, p, layer, spec, numerics, rope, mask_B1TT) -> Tensor:
  """One pre-norm layer. `p` holds its parameters without the prefix `blocks.`."""

  def linear(name: str, x: Tensor) -> Tensor:
    role = 'up' if name == 'gate_up' else name
    return numerics.linears(x, p[f'{name}.weight'], p.get(f'{name}.bias'), layer, LINEARS.index(role))

  qkv_BTO = linear('qkv', _norm(x_BTD, p, 'attention_norm', spec))
  q, k, v = qkv_BTO.split((spec.d_query, spec.d_kv, spec.d_kv), -1)
  q_BTHC, k_BTKC, v_BTKC = (rearrange(part, 'b t (h c) -> b t h c', c=spec.head_dim) for part in (q, k, v))
  if rope is not None:
    q_BTHC, k_BTKC = attention.rope(q_BTHC, *rope), attention.rope(k_BTKC, *rope)
  mixed_BTHC = attention.attention(q_BTHC, k_BTKC, v_BTKC, mask_B1TT, numerics.attention)
  x_BTD = x_BTD + linear('attention_out', rearrange(mixed_BTHC, 'b t h c -> b t (h c)'))

  y_BTD = _norm(x_BTD, p, 'mlp_norm', spec)
  y_BTF = norm.swiglu(linear('gate_up', y_BTD)) if spec.activation == 'swiglu' else norm.gelu(linear('up', y_BTD))
  return x_BTD + linear('down', y_BTF)


def head_input(params: Params, x_BTD: Tensor, spec: ModelSpec) -> Tensor:
  """What meets the table: x through the tied projection, (B, T, R); x itself where the table is not factorized."""
  return x_BTD @ params['embedding.projection'].to(x_BTD.dtype).T if spec.embedding_rank else x_BTD


def apply(params: Params, tokens_BT: Tensor, spec: ModelSpec, numerics: Numerics, mask_B1TT: Tensor | None = None) -> Tensor:
  """Logits of the next token, (B, T, V) in the numerics' dtype."""
  x_BTR = head_input(params, hidden(params, tokens_BT, spec, numerics, mask_B1TT), spec)
  return x_BTR @ params['embedding.table'].to(x_BTR.dtype).T


def _norm(x_BTD: Tensor, p: Params, name: str, spec: ModelSpec) -> Tensor:
  if spec.norm == 'rmsnorm':
    return norm.rms_norm(x_BTD, p[f'{name}.weight'], spec.norm_eps)
  return norm.layer_norm(x_BTD, p[f'{name}.weight'], p[f'{name}.bias'], spec.norm_eps)
