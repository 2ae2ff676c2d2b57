"""The model as two pure functions over an explicit tree: `init` and `apply`.

Parameters are a flat dict, name to tensor (`ModelSpec.parameter_shapes`); block parameters are stacked over layers. What
a training step differentiates is `hidden` followed by `kernels.vocab_loss`; `apply` writes all logits out and is for
sampling, tests and export.

Shapes: B rows, T length, N = B*T tokens, D model width, R embedding rank (D where the table is not factorized), V vocabulary,
H query heads, K key/value heads, C head width, L layers, O and I a linear's output and input width.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from yxanul.config.model_spec import ModelSpec
from yxanul.kernels import attention
from yxanul.kernels.linear import Linears, normalize
from yxanul.kernels.vocab_loss import soft_capped

Params = dict[str, Tensor]
Layers = Callable[[Params], Iterable[Params]]


def layers(params: Params) -> Iterator[Params]:
  """Each layer's parameters in turn, without the prefix `blocks.`."""
  stacked = {name.removeprefix('blocks.'): p.unbind(0) for name, p in params.items() if name.startswith('blocks.')}
  for slices in zip(*stacked.values(), strict=True):
    yield dict(zip(stacked, slices, strict=True))


@dataclasses.dataclass(frozen=True)
class Numerics:
  """How `apply` computes."""

  linears: Linears  # the sublayers' format; under FP8 it holds the step's scales and collects its amaxes
  dtype: torch.dtype = torch.float32  # of the residual stream
  attention: str = 'sdpa'  # engine of kernels.attention.packed_attention
  compiled: bool = False  # chains of elementwise operations fused, by torch.compile or in kernels of our own
  recompute: bool = False  # keep a block's input alone for the backward pass, which runs the block again


def init(spec: ModelSpec, generator: torch.Generator) -> Params:
  """Parameters in FP32 on the generator's device: N(0, init_std), residual outputs scaled by 1/sqrt(2 L) (GPT-2).

  The table and its projection have a standard deviation of their own where the spec names one.
  """
  params = {}
  for name, shape in spec.parameter_shapes().items():
    if name.endswith('.bias'):
      params[name] = torch.zeros(shape, device=generator.device)
    elif 'norm' in name:
      params[name] = torch.ones(shape, device=generator.device)
    else:
      std = {'embedding.table': spec.table_std, 'embedding.projection': spec.projection_std}.get(name) or spec.init_std
      if name in ('blocks.attention_out.weight', 'blocks.down.weight'):
        std /= math.sqrt(2 * spec.n_layers)
      params[name] = torch.randn(shape, generator=generator, device=generator.device) * std
  return params


def hidden(
  params: Params,
  tokens_BT: Tensor,
  spec: ModelSpec,
  numerics: Numerics,
  mask_B1TT: Tensor | None = None,
  layers: Layers = layers,
) -> Tensor:
  """The residual stream after the last norm, (B, T, D) in the numerics' dtype.

  Args:
    mask_B1TT: as in `kernels.attention`.
    layers: gives each block its parameters; training over several processes has its own.
  """
  x_BTD, delta_BTD = embed(params, tokens_BT, spec, numerics.dtype), None
  rope = None
  if spec.position == 'rope':
    rope = attention.rope_tables(tokens_BT.shape[1], spec.head_dim, spec.rope_theta, tokens_BT.device)
  # Formats with state run kernels of their own, which torch.compile cannot look into; the plain one it fuses whole.
  run = _compiled(block) if numerics.compiled and type(numerics.linears) is Linears else block
  for layer, p in enumerate(layers(params)):
    arguments = (x_BTD, delta_BTD, p, numerics.linears.at(layer), spec, numerics, rope, mask_B1TT)
    if numerics.recompute and torch.is_grad_enabled():
      # Nothing is drawn inside a block, so there is no random state to keep; an FP8 amax raised twice is the same amax.
      x_BTD, delta_BTD = checkpoint(run, *arguments, use_reentrant=False, preserve_rng_state=False)
    else:
      x_BTD, delta_BTD = run(*arguments)
  final = {name: p for name, p in params.items() if name.startswith('final_norm')}
  return (_compiled(final_norm) if numerics.compiled else final_norm)(x_BTD, delta_BTD, final, spec)


def embed(params: Params, tokens_BT: Tensor, spec: ModelSpec, dtype: torch.dtype, positions_BT: Tensor | None = None) -> Tensor:
  """Token embeddings times `input_scale` (plus learned positions, of 0 to T - 1 where none are given), (B, T, D)."""
  x_BTR = torch.nn.functional.embedding(tokens_BT, params['embedding.table']).to(dtype)
  x_BTD = x_BTR @ params['embedding.projection'].to(dtype) if spec.embedding_rank else x_BTR
  if spec.input_scale != 1:
    x_BTD = x_BTD * spec.input_scale
  if spec.position == 'learned':
    at = slice(tokens_BT.shape[1]) if positions_BT is None else positions_BT
    x_BTD = x_BTD + params['embedding.position'][at].to(dtype)
  return x_BTD


def block(x_BTD, delta_BTD, p, linears, spec, numerics, rope, mask_B1TT) -> tuple[Tensor, Tensor]:
  """One pre-norm layer: the stream so far and what is still to be added to it, in and out. `p` has no prefix `blocks.`."""
  if attention.takes_packed(numerics.attention, mask_B1TT):

    def attend(qkv_BTO: Tensor) -> Tensor:
      return attention.packed_attention(qkv_BTO, spec, rope, mask_B1TT, numerics.attention)

    return sublayers(x_BTD, delta_BTD, p, linears, attend)
  *qkv, x_BTD = linears.norm_qkv(x_BTD, delta_BTD, p, rope, numerics.compiled)
  mixed_BTHC = attention.attention(*qkv, mask_B1TT, 'sdpa' if numerics.attention == 'short' else numerics.attention)
  return _after_attention(mixed_BTHC.flatten(2), x_BTD, p, linears)


def sublayers(x_BTD, delta_BTD, p, linears, attend: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
  """`block`, for any attention: `attend` takes the packed projection (B, T, d_qkv) to the mixed values (B, T, d_query)."""
  qkv_BTO, x_BTD = linears.norm_linear(x_BTD, delta_BTD, p)
  return _after_attention(attend(qkv_BTO), x_BTD, p, linears)


def _after_attention(mixed_BTD, x_BTD, p, linears) -> tuple[Tensor, Tensor]:
  delta_BTD = linears.linear(mixed_BTD, p, 'attention_out')
  delta_BTD, x_BTD = linears.norm_mlp(x_BTD, delta_BTD, p)
  return x_BTD, delta_BTD


def final_norm(x_BTD: Tensor, delta_BTD: Tensor, params: Params, spec: ModelSpec) -> Tensor:
  return normalize(x_BTD + delta_BTD, params, 'final_norm', spec)


@functools.cache
def _compiled(function: Callable) -> Callable:
  """When first asked for: the compiler's import takes seconds. Shapes are static within a stage; each compiles its own."""
  return torch.compile(function, dynamic=False)


def head_input(params: Params, x_BTD: Tensor, spec: ModelSpec) -> Tensor:
  """What meets the table: x through the tied projection, (B, T, R); x itself where the table is not factorized."""
  return x_BTD @ params['embedding.projection'].to(x_BTD.dtype).T if spec.embedding_rank else x_BTD


def logits(params: Params, x_NR: Tensor, spec: ModelSpec) -> Tensor:
  """What the table makes of its input, (..., R) to (..., V), soft-capped where the spec says so; x's dtype."""
  return soft_capped(x_NR @ params['embedding.table'].to(x_NR.dtype).T, spec.logit_softcap)


def apply(params: Params, tokens_BT: Tensor, spec: ModelSpec, numerics: Numerics, mask_B1TT: Tensor | None = None) -> Tensor:
  """Logits of the next token, (B, T, V) in the numerics' dtype."""
  return logits(params, head_input(params, hidden(params, tokens_BT, spec, numerics, mask_B1TT), spec), spec)
