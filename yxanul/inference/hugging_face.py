"""Our parameters under the names and shapes that `transformers` has for Llama and GPT-2, and back.

Both directions are one table. What differs is form alone: their layers are not stacked, Llama's query, key and value (and gate
and up) are matrices of their own, GPT-2's linears are stored (in, out). Rotary pairs are Llama's own, so rows stay in order.

The factorized table has no counterpart there: it is multiplied out, table @ projection, (V, D). Input and head use the same
product, so their tied embedding is exactly that matrix; only where `input_scale` is not 1 they come apart.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from yxanul.config.model_spec import ModelSpec
from yxanul.model.transformer import Params

_LLAMA = {
  'attention_norm': ('input_layernorm',),
  'qkv': ('self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj'),
  'attention_out': ('self_attn.o_proj',),
  'mlp_norm': ('post_attention_layernorm',),
  'gate_up': ('mlp.gate_proj', 'mlp.up_proj'),
  'down': ('mlp.down_proj',),
}
_GPT2 = {
  'attention_norm': ('ln_1',),
  'qkv': ('attn.c_attn',),
  'attention_out': ('attn.c_proj',),
  'mlp_norm': ('ln_2',),
  'up': ('mlp.c_fc',),
  'down': ('mlp.c_proj',),
}
_ROWS_AT_ONCE = 16_384  # of the table, multiplied out in FP64


class _Part(NamedTuple):
  ours: str
  layer: int
  rows: slice
  theirs: str
  transposed: bool


def architecture(spec: ModelSpec) -> str:
  """'llama' or 'gpt2'.

  Raises:
    ValueError: neither computes what this model does.
  """
  wants = {
    'llama': {'norm': 'rmsnorm', 'activation': 'swiglu', 'position': 'rope', 'logit_softcap': 0},
    'gpt2': {'norm': 'layernorm', 'activation': 'gelu', 'position': 'learned', 'bias': True, 'n_kv_heads': spec.n_heads}
    | {'d_query': spec.d_model, 'logit_softcap': 0},
  }
  wrong = {name: {f: getattr(spec, f) for f, v in fields.items() if getattr(spec, f) != v} for name, fields in wants.items()}
  name, fields = min(wrong.items(), key=lambda item: len(item[1]))
  if fields:
    got = ', '.join(f'model.{field}={value}' for field, value in fields.items())
    wanted = ', '.join(f'{field}={wants[name][field]}' for field in fields)
    raise ValueError(f'{got}: transformers has no such model (nearest: {name}, {wanted}); --factorized keeps any')
  return name


def config(spec: ModelSpec, end_of_text_id: int) -> dict[str, Any]:
  """config.json of the architecture."""
  tied = {'tie_word_embeddings': spec.input_scale == 1, 'vocab_size': spec.vocab_size, 'initializer_range': spec.init_std}
  tied |= {name: end_of_text_id for name in ('bos_token_id', 'eos_token_id', 'pad_token_id')}
  if architecture(spec) == 'gpt2':
    return tied | {
      'architectures': ['GPT2LMHeadModel'],
      'model_type': 'gpt2',
      'n_positions': spec.max_positions,
      'n_ctx': spec.max_positions,  # llama.cpp's converter reads this one
      'n_embd': spec.d_model,
      'n_layer': spec.n_layers,
      'n_head': spec.n_heads,
      'n_inner': spec.d_hidden,
      'activation_function': 'gelu_new',
      'layer_norm_epsilon': spec.norm_eps,
      'attn_pdrop': 0.0,
      'embd_pdrop': 0.0,
      'resid_pdrop': 0.0,
    }
  return tied | {
    'architectures': ['LlamaForCausalLM'],
    'model_type': 'llama',
    'hidden_size': spec.d_model,
    'intermediate_size': spec.d_hidden,
    'num_hidden_layers': spec.n_layers,
    'num_attention_heads': spec.n_heads,
    'num_key_value_heads': spec.n_kv_heads,
    'head_dim': spec.head_dim,
    'hidden_act': 'silu',
    'max_position_embeddings': spec.max_positions,
    'rms_norm_eps': spec.norm_eps,
    'rope_theta': spec.rope_theta,  # transformers 4
    'rope_parameters': {'rope_type': 'default', 'rope_theta': spec.rope_theta},  # transformers 5
    'attention_bias': spec.bias,
    'mlp_bias': spec.bias,
    'attention_dropout': 0.0,
  }


def _names(spec: ModelSpec) -> tuple[dict[str, str], str]:
  """Their names of what belongs to no layer, and the prefix of a layer."""
  if architecture(spec) == 'gpt2':
    names = {'table': 'wte.weight', 'embedding.position': 'wpe.weight'}
    names |= {'final_norm.weight': 'ln_f.weight', 'final_norm.bias': 'ln_f.bias'}
    return {ours: f'transformer.{theirs}' for ours, theirs in names.items()}, 'transformer.h.{}.'
  return {'table': 'model.embed_tokens.weight', 'final_norm.weight': 'model.norm.weight'}, 'model.layers.{}.'


def _parts(spec: ModelSpec) -> Iterator[_Part]:
  is_gpt2 = architecture(spec) == 'gpt2'
  modules, prefix = _GPT2 if is_gpt2 else _LLAMA, _names(spec)[1]
  for ours, shape in spec.parameter_shapes().items():
    if not ours.startswith('blocks.'):
      continue
    _, module, kind = ours.split('.')
    packed = spec.packed_rows().get(f'blocks.{module}.weight', (shape[1],))
    sizes = packed if len(modules[module]) > 1 else (shape[1],)
    start = 0
    for theirs, size in zip(modules[module], sizes, strict=True):
      rows = slice(start, start + size)
      start += size
      for layer in range(spec.n_layers):
        yield _Part(ours, layer, rows, f'{prefix.format(layer)}{theirs}.{kind}', is_gpt2 and len(shape) == 3)


def multiplied_out(params: Params, spec: ModelSpec) -> Tensor:
  """The embeddings as one table, (V, D) FP32: table @ projection, each entry rounded once."""
  if not spec.embedding_rank:
    return params['embedding.table']
  projection = params['embedding.projection'].double()
  return torch.cat([(part.double() @ projection).float() for part in params['embedding.table'].split(_ROWS_AT_ONCE)])


def to_theirs(params: Params, spec: ModelSpec) -> dict[str, Tensor]:
  """Their tensors, on the device and in the dtype of ours."""
  names, _ = _names(spec)
  table = multiplied_out(params, spec)
  theirs = {names['table']: table * spec.input_scale}
  if spec.input_scale != 1:
    theirs['lm_head.weight'] = table
  theirs |= {name: params[ours] for ours, name in names.items() if ours != 'table'}
  for part in _parts(spec):
    x = params[part.ours][part.layer][part.rows]
    theirs[part.theirs] = (x.T if part.transposed else x).contiguous()
  return theirs


def to_ours(theirs: dict[str, Tensor], spec: ModelSpec) -> Params:
  """Our parameters of their tensors. `spec` has embedding_rank 0: what was multiplied out stays so."""
  assert not spec.embedding_rank
  names, _ = _names(spec)
  params = {ours: theirs[name] for ours, name in names.items() if ours != 'table'}
  params['embedding.table'] = theirs['lm_head.weight' if spec.input_scale != 1 else names['table']]
  shapes = spec.parameter_shapes()
  for part in _parts(spec):
    x = theirs[part.theirs]
    params.setdefault(part.ours, x.new_empty(shapes[part.ours]))[part.layer][part.rows] = x.T if part.transposed else x
  return {name: params[name] for name in shapes}
