"""FLOPs a token against torch's own count, and the table of peaks."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from yxanul.config.model_spec import ModelSpec
from yxanul.planning import flops

SMALL = ModelSpec(
  vocab_size=160, d_model=32, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=8, d_hidden=48, max_positions=64, embedding_rank=16
)
GPT2 = ModelSpec(
  vocab_size=160,
  d_model=32,
  n_layers=2,
  n_heads=4,
  n_kv_heads=4,
  head_dim=8,
  d_hidden=128,
  norm='layernorm',
  activation='gelu',
  position='learned',
  bias=True,
  embedding_rank=0,
)


def counted_flops_per_token(model: ModelSpec, seq_len: int) -> float:
  """Forward and backward FLOPs that torch counts for the matrix products of this model, attention without a mask."""
  x_TD = torch.randn(seq_len, model.d_model, requires_grad=True)
  weights = [torch.randn(o, i, requires_grad=True) for o, i in linear_shapes(model)]
  q_HTd = torch.randn(model.n_heads, seq_len, model.head_dim, requires_grad=True)
  k_HTd, v_HTd = torch.randn_like(q_HTd, requires_grad=True), torch.randn_like(q_HTd, requires_grad=True)
  with FlopCounterMode(display=False) as counter:
    for w_OI in weights:
      x_TI = x_TD.new_ones(seq_len, w_OI.shape[1], requires_grad=True)
      (x_TI @ w_OI.T).sum().backward()
    for _ in range(model.n_layers):
      ((q_HTd @ k_HTd.mT) @ v_HTd).sum().backward()
  return counter.get_total_flops() / seq_len


def linear_shapes(model: ModelSpec) -> list[tuple[int, int]]:
  d = model.d_model
  block = [(model.d_qkv, d), (d, model.d_query), (model.d_up, d), (d, model.d_hidden)]
  r = model.embedding_rank
  head = [(d, r), (r, d), (model.vocab_size, r)] if r else [(model.vocab_size, d)]
  return block * model.n_layers + head


@pytest.mark.parametrize('model', [SMALL, GPT2], ids=['llama', 'gpt2'])
def test_flops_match_what_torch_counts_with_half_of_attention_masked(model):
  seq_len = 24
  weights = sum(o * i for o, i in linear_shapes(model))
  full_attention = counted_flops_per_token(model, seq_len) - 6 * weights
  assert full_attention == pytest.approx(12 * model.n_layers * model.d_query * seq_len)
  assert flops.flops_per_token(model, seq_len) == pytest.approx(6 * weights + full_attention / 2)


def test_ultra_costs_a_little_more_than_six_flops_a_parameter():
  ultra = ModelSpec()
  assert flops.matmul_parameters(ultra) == 28 * 6_094_848 + 200_005 * 128 + 2 * 128 * 768
  assert flops.flops_per_token(ultra, 8) == pytest.approx(6 * 196_453_000, rel=1e-2)
  grown = flops.flops_per_token(ultra, 2048) - flops.flops_per_token(ultra, 1024)
  assert grown == 6 * 28 * 768 * 1024


def test_a_row_of_no_tokens_is_refused():
  with pytest.raises(ValueError, match='seq_len: got 0'):
    flops.flops_per_token(SMALL, 0)


@pytest.mark.parametrize(
  ('device', 'matmul_format', 'peak'),
  [
    ('NVIDIA H200', 'bf16', 989e12),
    ('NVIDIA H100 80GB HBM3', 'fp8', 1979e12),
    ('NVIDIA H100 PCIe', 'bf16', 756e12),
    ('NVIDIA A100-SXM4-80GB', 'bf16', 312e12),
    ('NVIDIA A100-SXM4-80GB', 'fp8', None),
    ('NVIDIA GeForce RTX 4090', 'fp8', 330e12),
    ('NVIDIA GeForce RTX 4090 Laptop GPU', 'bf16', None),
    ('cpu', 'fp32', None),
  ],
)
def test_peaks(device, matmul_format, peak):
  assert flops.peak_flops(device, matmul_format) == peak


def test_mfu_is_null_where_the_peak_is_unknown_and_a_share_elsewhere():
  assert flops.mfu(SMALL, 16, 1000.0, None) is None
  peak = flops.flops_per_token(SMALL, 16) * 4000.0
  assert flops.mfu(SMALL, 16, 1000.0, peak) == pytest.approx(0.25)
