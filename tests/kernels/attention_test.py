"""Which kernel attention runs through, and that it hands them what they take."""

import sys
import types

import pytest
import torch

from yxanul.kernels import attention


@pytest.fixture
def flash_attn(monkeypatch):
  """A package of that name whose function has flash-attn's contract: (B, T, heads, C), grouped heads, causal=True."""

  def flash_attn_func(q_BTHC, k_BTKC, v_BTKC, causal):
    assert causal
    assert q_BTHC.is_contiguous()
    k_BTHC, v_BTHC = (x.repeat_interleave(q_BTHC.shape[2] // x.shape[2], 2) for x in (k_BTKC, v_BTKC))
    scores = torch.einsum('bthc,bshc->bhts', q_BTHC, k_BTHC) * q_BTHC.shape[-1] ** -0.5
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return torch.einsum('bhts,bshc->bthc', scores.masked_fill(hidden, -torch.inf).softmax(-1), v_BTHC), None

  monkeypatch.setitem(sys.modules, 'flash_attn', types.SimpleNamespace(flash_attn_func=flash_attn_func))
  attention._flash_attn.cache_clear()
  yield
  attention._flash_attn.cache_clear()


def test_flash_attn_says_the_same(flash_attn):
  generator = torch.Generator().manual_seed(0)
  q, k, v = (torch.randn(2, 24, heads, 16, generator=generator) for heads in (6, 2, 2))
  torch.testing.assert_close(attention.attention(q, k, v, engine='flash_attn'), attention.attention(q, k, v))


@pytest.mark.parametrize('deterministic', [False, True])
def test_cudnn_keeps_away_from_short_rows_and_from_deterministic_runs(deterministic):
  before = torch.are_deterministic_algorithms_enabled()
  torch.use_deterministic_algorithms(deterministic)
  try:
    assert [attention.runs('cudnn', length) for length in (256, 512)] == ['sdpa', 'sdpa' if deterministic else 'cudnn']
    assert attention.runs('flash_attn', 8) == ('sdpa' if deterministic else 'flash_attn')
    assert attention.runs('flash', 2048) == 'flash'
  finally:
    torch.use_deterministic_algorithms(before)
