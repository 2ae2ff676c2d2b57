"""Attention from the packed projection to its gradient: ours, and the kernels of torch and flash-attn.

Shapes as in `kernels.attention`. `cudnn`, `te`, `flash`, `flash_attn` and `grouped` are those kernels alone, on q, k, v that
lie ready; what has to stand around them, rotation, split and the gather of dqkv, is in `ours` and in `cudnn_compiled`, where
torch.compile does it.
"""

import functools

import torch
from einops import rearrange
from torch import Tensor

from yxanul.config.model_spec import ModelSpec
from yxanul.kernels import attention
from yxanul.kernels.bench.measure import Case, Step, Subject, Work

SHORT, LONG = (8, 16, 32, 64, 128, 256), (512, 1536, 2048)
_CUDNN_LEAST = 64  # 16,384 rows of 8 tokens never came back from a captured graph


def short_cases(model: ModelSpec, n_tokens: int, device: torch.device) -> list[Case]:
  """The floor is bytes: qkv and out forward; qkv, dout and dqkv backward."""
  element = _dtype(device).itemsize
  floor = Work(bytes=n_tokens * element * (3 * model.d_qkv + 2 * model.d_query))
  return [Case(str(n), f'length {n}', _subjects('short', model, n_tokens, n, device), floor) for n in SHORT]


def long_cases(model: ModelSpec, n_tokens: int, device: torch.device) -> list[Case]:
  """The floor is the seven products of the causal triangle, two forward and five backward."""
  cases = []
  for length in LONG:
    rows = max(1, n_tokens // length)
    flops = 7 * rows * length**2 * model.d_query
    heads = model.n_heads, model.n_kv_heads, model.head_dim
    grouped = device.type == 'cuda' and attention.supports_long(length, *heads, device)
    subjects = _subjects('grouped' if grouped else 'cudnn', model, rows * length, length, device)
    if grouped:
      subjects.append(Subject('grouped', functools.partial(_alone, _library('grouped'), model, rows, length, device)))
    cases.append(Case(str(length), f'length {length}', subjects, Work(flops=flops)))
  return cases


def _subjects(engine: str, model: ModelSpec, n_tokens: int, length: int, device: torch.device) -> list[Subject]:
  rows = max(1, n_tokens // length)
  bind = functools.partial
  if device.type == 'cpu':
    return [Subject('ours', bind(_packed, 'sdpa', model, rows, length, device))]
  captures = length >= _CUDNN_LEAST
  ours = Subject('ours', bind(_packed, engine, model, rows, length, device))
  peers = [
    Subject('cudnn', bind(_alone, _library('cudnn'), model, rows, length, device), captures),
    Subject('cudnn_compiled', bind(_compiled, model, rows, length, device), captures),
    Subject('te', bind(_alone, _transformer_engine(model), model, rows, length, device), captures),
    Subject('flash', bind(_alone, _library('flash'), model, rows, length, device)),
    Subject('flash_attn', bind(_alone, _library('flash_attn'), model, rows, length, device)),
  ]
  return [ours, *peers]


def _library(engine: str):
  return functools.partial(attention.attention_through, engine)


def _transformer_engine(model: ModelSpec):
  @functools.cache
  def module():
    from transformer_engine.pytorch import DotProductAttention

    heads = {'num_gqa_groups': model.n_kv_heads, 'attn_mask_type': 'causal', 'qkv_format': 'bshd'}
    return DotProductAttention(model.n_heads, model.head_dim, **heads)

  return lambda q_BTHC, k_BTKC, v_BTKC: module()(q_BTHC, k_BTKC, v_BTKC)


def _dtype(device: torch.device) -> torch.dtype:
  return torch.bfloat16 if device.type == 'cuda' else torch.float32


def _draw(device: torch.device, *shape: int) -> Tensor:
  return torch.randn(*shape, device=device, dtype=_dtype(device)).requires_grad_()


def _step(function, inputs: list[Tensor]) -> Step:
  dout = torch.randn_like(function(*inputs))
  return lambda: torch.autograd.grad(function(*inputs), inputs, dout)


def _packed(engine: str, model: ModelSpec, rows: int, length: int, device: torch.device) -> Step:
  tables = attention.rope_tables(length, model.head_dim, model.rope_theta, device)
  qkv_BTO = _draw(device, rows, length, model.d_qkv)
  return _step(lambda qkv: attention.packed_attention(qkv, model, tables, None, engine, fused=True), [qkv_BTO])


def _alone(function, model: ModelSpec, rows: int, length: int, device: torch.device) -> Step:
  heads = model.n_heads, model.n_kv_heads, model.n_kv_heads
  return _step(function, [_draw(device, rows, length, n, model.head_dim) for n in heads])


def _compiled(model: ModelSpec, rows: int, length: int, device: torch.device) -> Step:
  tables = attention.rope_tables(length, model.head_dim, model.rope_theta, device)
  rotate = torch.compile(attention.rope, dynamic=False)

  def function(qkv_BTO: Tensor) -> Tensor:
    parts = qkv_BTO.split((model.d_query, model.d_kv, model.d_kv), -1)
    q, k, v = (rearrange(part, 'b t (h c) -> b t h c', c=model.head_dim) for part in parts)
    return attention.attention_through('cudnn', rotate(q, *tables), rotate(k, *tables), v)

  return _step(function, [_draw(device, rows, length, model.d_qkv)])
