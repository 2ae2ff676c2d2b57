"""The model against independent formulations: transformers' Llama and GPT-2 with the same weights."""

import dataclasses

import pytest
import torch

from yxanul.config.model_spec import ModelSpec
from yxanul.kernels.linear import Linears
from yxanul.model import transformer
from yxanul.model.transformer import Numerics

LLAMA = ModelSpec(
  vocab_size=97, d_model=48, n_layers=3, n_heads=6, n_kv_heads=2, head_dim=8, d_hidden=80, max_positions=64, embedding_rank=16
)
GPT2 = dataclasses.replace(
  LLAMA, n_kv_heads=6, d_hidden=192, norm='layernorm', activation='gelu', position='learned', bias=True, embedding_rank=0
)
PLAIN = Numerics(Linears(LLAMA))
SPECS = pytest.mark.parametrize('spec', [LLAMA, GPT2], ids=['llama', 'gpt2'])


def make(spec, seed=0, perturb=True):
  params = transformer.init(spec, torch.Generator().manual_seed(seed))
  if perturb:  # norms of one and biases of zero would hide a forgotten one
    generator = torch.Generator().manual_seed(seed + 1)
    params = {name: p + 0.1 * torch.randn(p.shape, generator=generator) for name, p in params.items()}
  tokens = torch.randint(0, spec.vocab_size, (2, 33), generator=torch.Generator().manual_seed(7))
  return params, tokens


def llama_of(params, spec):
  from transformers import LlamaConfig, LlamaForCausalLM

  config = LlamaConfig(
    vocab_size=spec.vocab_size,
    hidden_size=spec.d_model,
    intermediate_size=spec.d_hidden,
    num_hidden_layers=spec.n_layers,
    num_attention_heads=spec.n_heads,
    num_key_value_heads=spec.n_kv_heads,
    head_dim=spec.head_dim,
    max_position_embeddings=spec.max_positions,
    rms_norm_eps=spec.norm_eps,
    rope_theta=spec.rope_theta,
    tie_word_embeddings=True,
    attention_bias=False,
    mlp_bias=False,
  )
  model = LlamaForCausalLM(config).eval()
  table = params['embedding.table'] @ params['embedding.projection']
  state = {'model.embed_tokens.weight': table, 'lm_head.weight': table, 'model.norm.weight': params['final_norm.weight']}
  for i in range(spec.n_layers):
    at = f'model.layers.{i}'
    q, k, v = params['blocks.qkv.weight'][i].split((spec.d_query, spec.d_kv, spec.d_kv))
    gate, up = params['blocks.gate_up.weight'][i].chunk(2)
    state |= {
      f'{at}.self_attn.q_proj.weight': q,
      f'{at}.self_attn.k_proj.weight': k,
      f'{at}.self_attn.v_proj.weight': v,
      f'{at}.self_attn.o_proj.weight': params['blocks.attention_out.weight'][i],
      f'{at}.mlp.gate_proj.weight': gate,
      f'{at}.mlp.up_proj.weight': up,
      f'{at}.mlp.down_proj.weight': params['blocks.down.weight'][i],
      f'{at}.input_layernorm.weight': params['blocks.attention_norm.weight'][i],
      f'{at}.post_attention_layernorm.weight': params['blocks.mlp_norm.weight'][i],
    }
  model.load_state_dict(state)
  return model


def gpt2_of(params, spec):
  from transformers import GPT2Config, GPT2LMHeadModel

  config = GPT2Config(
    vocab_size=spec.vocab_size,
    n_positions=spec.max_positions,
    n_embd=spec.d_model,
    n_layer=spec.n_layers,
    n_head=spec.n_heads,
    n_inner=spec.d_hidden,
    layer_norm_epsilon=spec.norm_eps,
  )
  model = GPT2LMHeadModel(config).eval()
  state = {
    'transformer.wte.weight': params['embedding.table'],
    'lm_head.weight': params['embedding.table'],
    'transformer.wpe.weight': params['embedding.position'],
    'transformer.ln_f.weight': params['final_norm.weight'],
    'transformer.ln_f.bias': params['final_norm.bias'],
  }
  theirs = {
    'attention_norm': 'ln_1',
    'qkv': 'attn.c_attn',
    'attention_out': 'attn.c_proj',
    'mlp_norm': 'ln_2',
    'up': 'mlp.c_fc',
    'down': 'mlp.c_proj',
  }
  for i in range(spec.n_layers):
    for ours, name in theirs.items():
      weight = params[f'blocks.{ours}.weight'][i]
      # Their linears are Conv1D, stored (in, out).
      state[f'transformer.h.{i}.{name}.weight'] = weight if 'norm' in ours else weight.T
      state[f'transformer.h.{i}.{name}.bias'] = params[f'blocks.{ours}.bias'][i]
  model.load_state_dict(state)
  return model


@pytest.mark.parametrize(('spec', 'theirs'), [(LLAMA, llama_of), (GPT2, gpt2_of)], ids=['llama', 'gpt2'])
def test_logits_equal_transformers(spec, theirs):
  params, tokens = make(spec)
  ours = transformer.apply(params, tokens, spec, Numerics(Linears(spec)))
  with torch.no_grad():
    expected = theirs(params, spec)(tokens).logits
  assert expected.abs().max() > 0.5
  torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_the_missions_parameter_count():
  assert ModelSpec().parameter_count() == 196_398_464


@SPECS
def test_closed_form_count_equals_init(spec):
  params, _ = make(spec, perturb=False)
  assert sum(p.numel() for p in params.values()) == spec.parameter_count()
  assert {name: tuple(p.shape) for name, p in params.items()} == spec.parameter_shapes()


def test_init_draws_what_the_mission_says():
  spec = dataclasses.replace(LLAMA, d_model=256, d_hidden=512, n_layers=8)
  params, _ = make(spec, perturb=False)
  for name in ('blocks.qkv.weight', 'blocks.gate_up.weight', 'embedding.projection'):
    assert params[name].std().item() == pytest.approx(0.02, rel=0.03)
  for name in ('blocks.attention_out.weight', 'blocks.down.weight'):
    assert params[name].std().item() == pytest.approx(0.02 / 4, rel=0.03)  # 1 / sqrt(2 * 8 layers)
  assert (params['final_norm.weight'] == 1).all()
  assert all(torch.equal(a, b) for a, b in zip(params.values(), make(spec, perturb=False)[0].values(), strict=True))


@SPECS
def test_a_logit_depends_on_no_later_token(spec):
  params, _ = make(spec)
  table = params['embedding.table'].clone().requires_grad_()
  distinct = torch.arange(20).view(1, 20)  # every position has its own row of the table, so its gradient tells the position
  x = transformer.hidden({**params, 'embedding.table': table}, distinct, spec, Numerics(Linears(spec)))
  for position in (0, 7, 18):
    (gradient,) = torch.autograd.grad(x[0, position].square().sum(), table, retain_graph=True)
    reached = gradient.abs().sum(-1)[:20] > 0
    assert reached.tolist() == [i <= position for i in range(20)]


def test_masked_documents_do_not_see_each_other():
  from yxanul.kernels.attention import document_mask

  params, _ = make(LLAMA)
  end = LLAMA.vocab_size - 1
  first, second = torch.tensor([end, 3, 1, 4, 1]), torch.tensor([end, 5, 9, 2])
  row = torch.cat((first, second))[None]
  masked = transformer.apply(params, row, LLAMA, PLAIN, document_mask(row, end))
  alone = transformer.apply(params, first[None], LLAMA, PLAIN)
  torch.testing.assert_close(masked[:, :5], alone, atol=1e-5, rtol=1e-5)
  changed = row.clone()
  changed[0, 2] = 8
  assert torch.equal(transformer.apply(params, changed, LLAMA, PLAIN, document_mask(changed, end))[:, 5:], masked[:, 5:])
  assert not torch.equal(transformer.apply(params, changed, LLAMA, PLAIN)[:, 5:], masked[:, 5:])


def test_a_window_ends_what_a_query_sees():
  """One layer: the gradient of a logit reaches the window's tokens and no earlier one."""
  from yxanul.kernels.attention import window_mask

  spec = dataclasses.replace(LLAMA, n_layers=1)
  params, tokens = make(spec)
  embedded = params['embedding.table'][tokens[:1, :20]].detach().requires_grad_()
  unit = params | {'embedding.table': torch.cat((embedded[0], params['embedding.table']))}  # every position its own word
  logits = transformer.apply(unit, torch.arange(20)[None], spec, PLAIN, window_mask(20, 5, torch.device('cpu')))
  (gradient,) = torch.autograd.grad(logits[0, 11, 40:].sum(), embedded)
  assert (gradient[0].abs().sum(-1) > 0).tolist() == [7 <= i <= 11 for i in range(20)]


def test_input_scale_reaches_the_stream_and_not_the_head():
  params, tokens = make(LLAMA)
  scaled = dataclasses.replace(LLAMA, input_scale=3.0)
  x = transformer.embed(params, tokens, LLAMA, torch.float32)
  torch.testing.assert_close(transformer.embed(params, tokens, scaled, torch.float32), 3.0 * x)
  assert torch.equal(transformer.head_input(params, x, scaled), transformer.head_input(params, x, LLAMA))
  assert not torch.allclose(transformer.apply(params, tokens, scaled, PLAIN), transformer.apply(params, tokens, LLAMA, PLAIN))


def test_a_soft_cap_keeps_logits_within_it_in_their_order():
  params, tokens = make(LLAMA)
  plain = 100 * transformer.apply(params, tokens, LLAMA, PLAIN)
  capped = transformer.logits(
    {'embedding.table': torch.eye(plain.shape[-1])}, plain, dataclasses.replace(LLAMA, logit_softcap=5.0)
  )
  assert plain.abs().max() > 10
  assert capped.abs().max() <= 5
  torch.testing.assert_close(capped, 5 * torch.tanh(plain / 5))


def test_table_and_projection_have_an_initialization_of_their_own():
  generators = [torch.Generator().manual_seed(0) for _ in range(2)]
  plain = transformer.init(LLAMA, generators[0])
  own = transformer.init(dataclasses.replace(LLAMA, table_std=0.5, projection_std=0.25), generators[1])
  factors = {'embedding.table': 25.0, 'embedding.projection': 12.5}
  for name, p in plain.items():
    torch.testing.assert_close(own[name], factors.get(name, 1.0) * p)


def test_bf16_is_near_fp32():
  params, tokens = make(LLAMA)
  exact = transformer.apply(params, tokens, LLAMA, PLAIN)
  near = transformer.apply(params, tokens, LLAMA, Numerics(Linears(LLAMA), torch.bfloat16))
  assert near.dtype == torch.bfloat16
  assert ((near.float() - exact).norm() / exact.norm()).item() < 0.03  # 2^-8 a rounding, a few dozen roundings deep
