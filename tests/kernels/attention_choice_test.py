"""The choice of attention: what is wrong on the device at hand is left out, and of the rest the fastest comes first."""

import pytest
import torch

from yxanul.config.model_spec import ModelSpec
from yxanul.kernels import attention_choice
from yxanul.kernels.attention import packed_attention
from yxanul.kernels.capabilities import Capabilities

MODEL = ModelSpec(d_model=128, n_heads=2, n_kv_heads=1)
CPU = torch.device('cpu')


@pytest.fixture
def trial(monkeypatch):
  """Engines as a table says: (milliseconds, what it does to the output and the gradient); the first call takes a second."""
  calls: list[str] = []
  engines: dict[str, tuple] = {}

  def run(qkv, dout, model, tables, engine):
    milliseconds, spoil = engines[engine]
    out = packed_attention(qkv, model, tables, None, 'sdpa')
    (dqkv,) = torch.autograd.grad(out, qkv, dout)
    out = out.detach().clone()
    spoil(out, dqkv)
    calls.append(engine)
    return (milliseconds if calls.count(engine) > 1 else 1000.0), out, dqkv

  monkeypatch.setattr(attention_choice, '_trial', run)
  monkeypatch.setattr(attention_choice, 'TRIAL_TOKENS', 2048)
  return engines


def right(out, dqkv):
  """Another order of the same sums."""
  for x in (out, dqkv):
    x.mul_(1 + 2**-8 * torch.randn_like(x))


def wrong_out(out, dqkv):
  out[-1, -64:, :64] = out[0, -64:, :64]


def wrong_value_gradient(out, dqkv):
  dqkv[1, -64:, -64:] = 0


def not_a_number(out, dqkv):
  dqkv[0, 0, 0] = float('nan')


def refuses(out, dqkv):
  raise RuntimeError('no kernel for this shape')


@pytest.mark.parametrize('length', [1, 8, 96, 256])
def test_the_fastest_of_those_that_agree(trial, length):
  trial |= {'sdpa': (3.0, right), 'flash': (2.0, right), 'cudnn': (9.0, refuses), 'short': (1.0, wrong_out)}
  trial |= {'grouped': (0.5, not_a_number)}
  taken, off = attention_choice.attempt(MODEL, length, list(trial), CPU)
  assert list(taken.items()) == [('flash', 2.0), ('sdpa', 3.0)]
  assert list(off) == ['short', 'grouped']
  assert off['short'] > 0.5
  assert off['grouped'] == float('inf')


def test_the_last_tile_of_a_gradient_that_is_small_there(trial):
  """Late values are looked at by few queries: their gradient hardly counts in a norm of the row."""
  trial |= {'sdpa': (3.0, right), 'grouped': (1.0, wrong_value_gradient)}
  taken, off = attention_choice.attempt(MODEL, 1024, list(trial), CPU)
  assert list(taken) == ['sdpa']
  assert off['grouped'] > 0.5


def test_torchs_own_is_held_to_scores_written_out(trial):
  """What the others are held to must be right itself: if it is not, or does not run, nothing is found."""
  trial |= {'sdpa': (3.0, wrong_out), 'flash': (1.0, right)}
  taken, off = attention_choice.attempt(MODEL, 256, list(trial), CPU)
  assert taken == {}
  assert off.keys() == {'sdpa'}
  trial |= {'sdpa': (3.0, refuses)}
  assert attention_choice.attempt(MODEL, 256, list(trial), CPU) == ({}, {})


def test_where_nothing_runs_nothing_is_chosen(trial):
  trial |= {'sdpa': (3.0, refuses)}
  assert attention_choice.attempt(MODEL, 64, ['sdpa'], CPU) == ({}, {})


def test_what_is_wrong_on_one_of_several_devices_is_left_out_on_all():
  first = attention_choice.Trials({'short': 1.0, 'flash': 2.0, 'cudnn': 2.5, 'sdpa': 3.0}, {'grouped': 0.2})
  second = attention_choice.Trials({'sdpa': 1.0, 'flash': 2.0}, {'short': 0.7, 'grouped': 0.4})  # and cuDNN does not run there
  taken, off = attention_choice.agreed([first, second])
  assert list(taken.items()) == [('flash', 2.0), ('sdpa', 3.0)]
  assert off == {'short': 0.7, 'grouped': 0.4}
  assert attention_choice.agreed([first]) == first


@pytest.mark.parametrize('length', [8, 48, 64, 512])
def test_rounding_is_no_difference(length):
  """In BF16 and in FP32 throughout: the most that exact engines differ by."""
  torch.manual_seed(0)
  qkv = torch.randn(4096 // length, length, MODEL.d_qkv).bfloat16()
  dout = torch.randn(4096 // length, length, MODEL.d_query).bfloat16()

  def result(dtype, engine):
    x = qkv.to(dtype).requires_grad_()
    out = packed_attention(x, MODEL, None, None, engine)
    return out.detach().bfloat16(), torch.autograd.grad(out, x, dout.to(dtype))[0].bfloat16()

  for a, b in zip(result(torch.bfloat16, 'sdpa'), result(torch.float32, 'math'), strict=True):
    assert 0 < attention_choice.difference(a, b, MODEL.head_dim) < attention_choice.LIMIT / 3


def test_candidates_without_a_gpu(monkeypatch):
  monkeypatch.setattr(attention_choice, 'supports_short', lambda *_: True)
  monkeypatch.setattr(attention_choice, 'supports_long', lambda *_: False)
  monkeypatch.setattr(torch, 'are_deterministic_algorithms_enabled', lambda: False)  # as a run in this process may have left it
  h100 = Capabilities('cuda', versions=(('flash_attn', '2.8'),))
  assert attention_choice.candidates(MODEL, 512, h100, CPU) == ['sdpa', 'flash', 'cudnn', 'flash_attn', 'short']
  assert attention_choice.candidates(MODEL, 256, Capabilities('cuda'), CPU) == ['sdpa', 'flash', 'short']


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('length', [8, 64, 512, 2048])
def test_all_engines_of_this_card_agree(length):
  from yxanul.kernels.capabilities import detect

  model, device = ModelSpec(), torch.device('cuda')
  engines = attention_choice.candidates(model, length, detect(), device)
  taken, off = attention_choice.attempt(model, length, engines, device)
  assert not off
  assert 'sdpa' in taken
  assert len(taken) > 1
