"""The training step: pure at its seam, deterministic, whole."""

import dataclasses
import math
import weakref

import pytest
import torch

from tests import tiny
from tests.model.transformer_test import gpt2_of
from yxanul.config import registry
from yxanul.config.convert import from_config
from yxanul.kernels import fp8, fp8_fused
from yxanul.kernels.capabilities import Engines
from yxanul.model import transformer
from yxanul.optim.build import build
from yxanul.training.state import flatten, init_state
from yxanul.training.step import Text, calibrate, is_fp8, make_eval_step, make_train_step

FP32 = Engines('fp32', 'sdpa', 'chunked')
FP8 = Engines('reference', 'sdpa', 'chunked')
TEXT = Text(511, torch.arange(512, dtype=torch.int32) % 7)
ENGINES = pytest.mark.parametrize('engines', [FP32, FP8], ids=['fp32', 'fp8 reference'])


# What the entries of a table are merged from, for one that inherits.
PARTS = torch.tensor([[-1, -1]] * 256 + [[i - 256, i // 2] for i in range(256, 512)])


def make(engines=FP32, stage_index=3):
  spec = tiny.spec(precision__matmul='fp8' if is_fp8(engines) else 'fp32')
  stage = spec.curriculum.stages[stage_index]
  optimizer = build(spec.optimizer, spec.model)
  fp8_state = fp8.init(spec.model, spec.precision) if is_fp8(engines) else {}
  state = init_state(spec, optimizer, fp8_state, torch.device('cpu'))
  tokens = torch.randint(
    0, 512, (stage.batch_size, stage.seq_len + 1), generator=torch.Generator().manual_seed(1), dtype=torch.int32
  )
  tokens.view(-1)[[5, 40]] = 511
  if is_fp8(engines):
    state = calibrate(state, tokens, stage, spec, engines, TEXT)
  step = make_train_step(spec, stage, optimizer, engines, TEXT)
  return spec, stage, state, step, tokens


def clone(state):
  return torch.utils._pytree.tree_map(lambda x: x.clone(), state)


def rates(lr=1e-3, max_norm=1.0):
  return torch.tensor(lr), torch.tensor(max_norm)


@ENGINES
def test_same_state_and_batch_twice_is_bitwise_the_same(engines):
  *_, state, step, tokens = make(engines)
  results = []
  for _ in range(2):
    s = clone(state)
    for _ in range(3):
      s, m = step(s, tokens, *rates())
    results.append((flatten(s), m))
  (a, m), (b, n) = results
  assert all(torch.equal(a[k], b[k]) for k in a)
  assert all(torch.equal(x, y) for x, y in zip(m, n, strict=True))


@pytest.mark.parametrize(
  'choice',
  [{'fp8_recipe': 'current'}, {'fp8_linears': ('up', 'down')}, {'fp8_linears': ()}, {'fp8_margin': 2}],
  ids=['current scaling', 'the MLP alone in FP8', 'none in FP8', 'margin'],
)
def test_choices_of_the_recipe_train_in_a_whole_step(choice):
  """Each is another step than the recipe's own, and learns as it does."""
  losses = {}
  for name, fields in (('own', {}), ('choice', choice)):
    spec, stage, _, _, tokens = make(FP8)
    spec = dataclasses.replace(spec, precision=dataclasses.replace(spec.precision, **fields))
    optimizer = build(spec.optimizer, spec.model)
    state = init_state(spec, optimizer, fp8.init(spec.model, spec.precision), torch.device('cpu'))
    state = calibrate(state, tokens, stage, spec, FP8, TEXT)
    step, losses[name] = make_train_step(spec, stage, optimizer, FP8, TEXT), []
    for _ in range(15):
      state, metrics = step(state, tokens, *rates())
      losses[name].append(float(metrics.loss))
  assert losses['choice'] != losses['own']
  assert losses['choice'][-1] < losses['choice'][0] - 0.3
  assert losses['choice'][-1] == pytest.approx(losses['own'][-1], abs=0.05)


@ENGINES
def test_the_loss_falls_on_a_batch_seen_again(engines):
  *_, state, step, tokens = make(engines)
  losses = []
  for _ in range(15):
    state, m = step(state, tokens, *rates(3e-3))
    losses.append(m.loss.item())
  assert losses[0] == pytest.approx(math.log(512), abs=0.3)
  assert losses[-1] < losses[0] - 0.3
  assert int(state.step) == 15
  assert int(state.data_state) == 15 * tokens[:, 1:].numel()


def test_metrics_count_what_they_say():
  spec, _, state, step, tokens = make()
  evaluate = make_eval_step(spec, FP32, TEXT)
  rows = tokens[:, :-1], tokens[:, 1:]
  counts = rows[1] != 511
  nats = evaluate(state.params, state.fp8_state, *rows, counts).sum()
  everything = evaluate(state.params, state.fp8_state, *rows, torch.ones_like(counts)).sum()
  _, m = step(state, tokens, *rates())
  assert m.bytes.item() == sum(int(t) % 7 for t in rows[1].flatten().tolist())
  assert m.nats.item() == pytest.approx(nats.item(), rel=1e-6)
  assert m.nats < everything
  assert m.loss.item() == pytest.approx(everything.item() / rows[1].numel(), rel=1e-5)
  assert m.skipped == 0


@ENGINES
def test_a_step_that_is_not_finite_changes_nothing_but_the_counters(engines):
  *_, state, step, tokens = make(engines)
  state, _ = step(state, tokens, *rates())
  broken = clone(state)
  broken.params['final_norm.weight'].fill_(1e38)  # finite itself, but no logit is
  before = flatten(clone(broken))
  after, m = step(broken, tokens, *rates())
  assert (m.skipped, m.spike) == (1, 0)
  after = flatten(after)
  for path, leaf in before.items():
    if path == 'step':
      assert after[path] == leaf + 1
    elif path == 'data_state':
      assert after[path] == leaf + tokens[:, 1:].numel()
    else:
      assert torch.equal(after[path], leaf), path


def test_stages_may_attend_through_a_window_inside_documents():
  """A window of one row's length changes nothing; a shorter one does, with and without document masks."""
  spec, stage, state, _, tokens = make()
  optimizer = build(spec.optimizer, spec.model)

  def loss(**fields):
    step = make_train_step(spec, dataclasses.replace(stage, **fields), optimizer, FP32, TEXT)
    return step(clone(state), tokens, *rates())[1].loss.item()

  assert loss(window=stage.seq_len) == pytest.approx(loss(), rel=1e-6)
  assert loss(window=2) != pytest.approx(loss(), rel=1e-5)
  assert loss(window=2, mask_documents=True) != pytest.approx(loss(window=2), rel=1e-5)
  assert loss(window=2, mask_documents=True) != pytest.approx(loss(mask_documents=True), rel=1e-5)


def test_z_loss_is_part_of_what_is_minimized():
  spec, stage, state, step, tokens = make()
  with_z = dataclasses.replace(spec, optimizer=dataclasses.replace(spec.optimizer, z_loss=0.01))
  _, m = step(clone(state), tokens, *rates())
  _, n = make_train_step(with_z, stage, build(spec.optimizer, spec.model), FP32, TEXT)(clone(state), tokens, *rates())
  assert n.nats == m.nats
  # At the start the logits are near zero: the log-partition is that of 512 words, for every token.
  assert (n.loss - m.loss).item() == pytest.approx(0.01 * math.log(512) ** 2, rel=0.02)
  assert n.grad_norm != m.grad_norm


def test_clipping_limits_the_gradient_that_the_optimizer_sees():
  *_, state, step, tokens = make()
  a, m = step(clone(state), tokens, *rates(max_norm=1e9))
  b, n = step(clone(state), tokens, *rates(max_norm=m.grad_norm.item() / 2))
  assert torch.equal(m.grad_norm, n.grad_norm)
  first = [s.opt_state[1]['first']['final_norm.weight'] for s in (a, b)]
  torch.testing.assert_close(first[1], first[0] / 2)


def test_gradients_of_earlier_pieces_are_kept_as_one_sum(monkeypatch):
  spec, stage, state, _, tokens = make()
  step = make_train_step(spec, stage, build(spec.optimizer, spec.model), FP32, TEXT, pieces=4)
  earlier, alive, differentiate = [], [], torch.autograd.grad

  def watched(*args):
    alive.append(sum(reference() is not None for reference in earlier))
    gradients = differentiate(*args)
    earlier.append(weakref.ref(gradients[0]))
    return gradients

  monkeypatch.setattr(torch.autograd, 'grad', watched)
  step(state, tokens, *rates())
  assert alive == [0, 1, 1, 1]


def test_calibration_keeps_gradients_from_underflowing():
  """With scales of 1 the gradients of a mean over many tokens round to zero in E5M2; calibrated ones do not."""
  spec, stage, state, *_ = make(FP8)
  optimizer = build(spec.optimizer, spec.model)
  blind = init_state(spec, optimizer, fp8.init(spec.model, spec.precision), torch.device('cpu'))
  many = dataclasses.replace(stage, batch_size=64 * stage.batch_size)
  long = torch.randint(0, 511, (many.batch_size, many.seq_len + 1), dtype=torch.int32)
  names = [f'blocks.{name}.weight' for name in ('qkv', 'attention_out', 'gate_up', 'down')]
  for start, zero in ((blind, True), (calibrate(clone(state), long, many, spec, FP8, TEXT), False)):
    after, _ = make_train_step(spec, many, optimizer, FP8, TEXT)(clone(start), long, *rates())
    shares = [(after.opt_state[1]['first'][name] == 0).float().mean().item() for name in names]
    # 65,536 tokens: against 2^-17, half of E5M2's least value, most gradients are nothing.
    assert (max(shares) > 0.3) is zero, shares


@ENGINES
def test_recomputed_blocks_give_the_same_step_bit_for_bit(engines, monkeypatch):
  spec, stage, state, step, tokens = make(engines)
  again = dataclasses.replace(spec, training=dataclasses.replace(spec.training, recompute='blocks'))
  optimizer = build(spec.optimizer, spec.model)
  a, m = step(clone(state), tokens, *rates())
  runs, block = [], transformer.block
  monkeypatch.setattr(transformer, 'block', lambda *arguments: runs.append(1) or block(*arguments))
  b, n = make_train_step(again, stage, optimizer, engines, TEXT)(clone(state), tokens, *rates())
  assert len(runs) == 2 * spec.model.n_layers
  a, b = flatten(a), flatten(b)
  assert all(torch.equal(a[k], b[k]) for k in a)
  assert all(torch.equal(x, y) for x, y in zip(m, n, strict=True))


def test_the_fused_path_of_fp8_takes_the_same_step(monkeypatch):
  """What runs on a GPU, where steps are compiled: q, k and v from the norm, their gradients cast as they are turned."""
  spec, stage, state, step, tokens = make(FP8)
  optimizer = build(spec.optimizer, spec.model)
  plain, m = step(clone(state), tokens, *rates())
  monkeypatch.setattr(transformer, '_compiled', lambda function: function)  # the path, without the compiler
  monkeypatch.setattr(torch, 'compile', lambda function, **_: function)
  calls, norm_qkv = [], fp8_fused.norm_qkv
  monkeypatch.setattr(fp8_fused, 'norm_qkv', lambda *arguments: calls.append(1) or norm_qkv(*arguments))
  fused, n = make_train_step(spec, stage, optimizer, FP8, TEXT, 1, compiled=True)(clone(state), tokens, *rates())
  assert len(calls) == spec.model.n_layers
  assert torch.equal(m.loss, n.loss)
  # The moment holds the gradient. The packed one is rounded to BF16 before its cast and the fused one is not: sqrt(0.8 e step)
  # of a cast to E5M2 is 0.02 for each of two layers.
  for name, first in plain.opt_state[1]['first'].items():
    assert (fused.opt_state[1]['first'][name] - first).norm() <= 5e-2 * first.norm(), name
  torch.testing.assert_close(fused.fp8_state['scale'], plain.fp8_state['scale'], rtol=5e-2, atol=0.0)


def test_evaluation_in_fp8_is_a_choice_and_moves_no_scale():
  spec, stage, state, _, tokens = make(FP8)
  counts = torch.ones(stage.batch_size, stage.seq_len, dtype=torch.bool)
  rounded = dataclasses.replace(spec, precision=dataclasses.replace(spec.precision, fp8_evaluation=True))
  before = flatten(clone(state))
  rows = tokens[:, :-1], tokens[:, 1:]
  plain, fp8_nats = (make_eval_step(s, FP8, TEXT)(state.params, state.fp8_state, *rows, counts).sum() for s in (spec, rounded))
  assert plain != fp8_nats
  assert plain.item() == pytest.approx(fp8_nats.item(), rel=1e-2)
  in_training = make_train_step(spec, stage, build(spec.optimizer, spec.model), FP8, TEXT)
  assert all(torch.equal(leaf, before[path]) for path, leaf in flatten(state).items())
  _, m = in_training(state, tokens, *rates())
  assert m.loss.item() * counts.numel() == pytest.approx(fp8_nats.item(), rel=1e-6)


@pytest.mark.parametrize('stage_index', range(10))
def test_every_stage_has_a_step(stage_index):
  *_, state, step, tokens = make(stage_index=stage_index)
  _, m = step(state, tokens, *rates())
  assert math.isfinite(m.loss.item())


def test_sixty_steps_are_those_of_transformers_and_torchs_adamw():
  """The GPT-2 baseline, made small: model, loss, clipping, decay and bias correction against two other libraries at once."""
  config = registry.load(str(tiny.REPOSITORY / 'experiments' / 'baseline_gpt2.py'))
  fields = {'vocab_size': 512, 'd_model': 64, 'n_layers': 3, 'n_heads': 2, 'n_kv_heads': 2, 'head_dim': 32, 'd_hidden': 256}
  config.model.update(fields | {'max_positions': 64})
  config.data.tokenizer.vocab_size = config.data.tokenizer.transition_size = 511
  config.evaluation.seq_len = 64
  config.curriculum.stages[0].update({'seq_len': 64, 'batch_size': 4, 'reference_batch_size': 4})
  spec = from_config(config)
  stage, optimizer = spec.curriculum.stages[0], build(spec.optimizer, spec.model)
  state = init_state(spec, optimizer, {}, torch.device('cpu'))
  step = make_train_step(spec, stage, optimizer, FP32, TEXT)

  theirs = gpt2_of(clone(state.params), spec.model)  # in evaluation: without dropout
  decayed, others = [], []
  for name, p in theirs.named_parameters():
    (decayed if p.ndim == 2 and '.h.' in name else others).append(p)
  groups = [{'params': decayed, 'weight_decay': 0.1}, {'params': others, 'weight_decay': 0.0}]
  adamw = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95), eps=1e-8)

  generator, losses = torch.Generator().manual_seed(0), []
  likely = torch.softmax(2 * torch.randn(512, generator=generator), 0)  # so that there is something to learn
  for i in range(60):
    tokens = torch.multinomial(likely, 4 * 65, replacement=True, generator=generator).int().view(4, 65)
    lr = 1e-3 * min(1.0, (i + 1) / 10)
    state, metrics = step(state, tokens, *rates(lr, 0.5))
    inputs, targets = tokens[:, :-1].long(), tokens[:, 1:].flatten().long()
    loss = torch.nn.functional.cross_entropy(theirs(inputs).logits.flatten(0, 1), targets)
    adamw.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
    for group in adamw.param_groups:
      group['lr'] = lr
    adamw.step()
    losses.append(loss.item())
    assert metrics.loss.item() == pytest.approx(losses[-1], rel=2e-6)
    assert metrics.grad_norm.item() == pytest.approx(norm.item(), rel=1e-5)
  assert losses[-1] < losses[0] - 0.5  # it did learn
