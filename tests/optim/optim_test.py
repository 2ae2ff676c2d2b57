"""Every optimizer passes one table of tests; then the schedule and the groups."""

import math

import pytest
import torch

from yxanul.config.convert import default_config, from_config
from yxanul.config.spec import GroupSpec, OptimizerSpec
from yxanul.optim.adamw import adamw
from yxanul.optim.build import assign_groups, build
from yxanul.optim.schedule import learning_rate, schedule
from yxanul.optim.transform import Hyper, apply_updates, chain, clip_by_global_norm, global_norm

NAMES = ('blocks.qkv.weight', 'final_norm.weight')


def plain_adamw():
  return adamw(0.9, 0.95, 1e-8, dict.fromkeys(NAMES, 0.1), dict.fromkeys(NAMES, 1.0))


CHAINS = {
  'clip + adamw': lambda: chain(clip_by_global_norm(), plain_adamw()),
  'as configured': lambda: build(OptimizerSpec(), NAMES),
}
ALL = {'adamw': plain_adamw, **CHAINS}
OPTIMIZERS = pytest.mark.parametrize('make', ALL.values(), ids=ALL.keys())


def tree(seed):
  generator = torch.Generator().manual_seed(seed)
  shapes = {'blocks.qkv.weight': (2, 6, 4), 'final_norm.weight': (4,)}
  return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def hyper(gradients, lr=1e-2, max_norm=1.0, ok=1.0):
  return Hyper(torch.tensor(lr), torch.tensor(max_norm), global_norm(gradients), torch.tensor(ok))


def run(optimizer, params, steps):
  state = optimizer.init(params)
  for i in range(steps):
    gradients = {k: g + p for (k, g), p in zip(tree(100 + i).items(), params.values(), strict=True)}
    updates, state = optimizer.update(gradients, state, params, hyper(gradients))
    params = apply_updates(params, updates)
  return params, state


@OPTIMIZERS
def test_same_inputs_give_the_same_result(make):
  a, _ = run(make(), tree(0), 5)
  b, _ = run(make(), tree(0), 5)
  assert all(torch.equal(a[k], b[k]) for k in a)


@OPTIMIZERS
def test_a_quadratic_is_descended(make):
  optimizer, params = make(), tree(0)
  state, start = optimizer.init(params), sum(p.square().sum() for p in params.values())
  for _ in range(200):
    gradients = {k: p.clone() for k, p in params.items()}
    updates, state = optimizer.update(gradients, state, params, hyper(gradients))
    params = apply_updates(params, updates)
  assert sum(p.square().sum() for p in params.values()) < 0.3 * start


@OPTIMIZERS
def test_no_rate_no_change(make):
  optimizer, params = make(), tree(0)
  gradients = tree(1)
  updates, _ = optimizer.update(gradients, optimizer.init(params), params, hyper(gradients, lr=0.0))
  assert all((u == 0).all() for u in updates.values())


@pytest.mark.parametrize('make', CHAINS.values(), ids=CHAINS.keys())
@pytest.mark.parametrize('steps_before', [0, 2])
def test_a_step_that_is_not_ok_never_happened(make, steps_before):
  """NaN gradients change no parameter, and the step after them is the one that would have come without them."""
  optimizer = make()
  params, state = run(optimizer, tree(0), steps_before)
  clean, clean_state = run(make(), tree(0), steps_before)
  broken = {k: g * math.nan for k, g in tree(1).items()}
  updates, state = optimizer.update(broken, state, params, hyper(broken, ok=0.0))
  params = apply_updates(params, updates)
  assert all(torch.equal(params[k], clean[k]) for k in params)
  gradients = tree(5)
  after, _ = optimizer.update({k: g.clone() for k, g in gradients.items()}, state, params, hyper(gradients))
  expected, _ = optimizer.update(gradients, clean_state, clean, hyper(gradients))
  assert all(torch.equal(after[k], expected[k]) for k in after)


def test_adamw_equals_torch():
  params = tree(0)
  theirs = [torch.nn.Parameter(p.clone()) for p in params.values()]
  reference = torch.optim.AdamW(theirs, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
  optimizer, state = plain_adamw(), plain_adamw().init(params)
  for i in range(20):
    gradients = tree(50 + i)
    for p, g in zip(theirs, gradients.values(), strict=True):
      p.grad = g.clone()
    reference.step()
    updates, state = optimizer.update(gradients, state, params, hyper(gradients))
    params = apply_updates(params, updates)
  for ours, p in zip(params.values(), theirs, strict=True):
    torch.testing.assert_close(ours, p.data, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize('max_norm', [0.5, 1e6])
def test_clipping(max_norm):
  gradients = tree(3)
  norm = math.sqrt(sum(g.square().sum().item() for g in gradients.values()))
  clipped, _ = clip_by_global_norm().update(dict(gradients), (), {}, hyper(gradients, max_norm=max_norm))
  assert global_norm(clipped).item() == pytest.approx(min(norm, max_norm), rel=1e-5)


def test_cosine_schedule():
  spec = OptimizerSpec(warmup_share=0.01, final_lr_share=0.1)
  assert schedule(0.005, spec) == pytest.approx(0.5)
  assert schedule(0.01, spec) == pytest.approx(1.0)
  assert schedule(0.505, spec) == pytest.approx(0.55)
  assert schedule(1.0, spec) == pytest.approx(0.1)
  rates = [schedule(p / 1000, spec) for p in range(10, 1001)]
  assert rates == sorted(rates, reverse=True)
  assert learning_rate(1.0, 0.5, spec) == pytest.approx(6e-4 * 0.5 * 0.1)
  assert schedule(0.9, OptimizerSpec(schedule='constant')) == 1.0


def test_weight_decay_reaches_block_matrices_only():
  spec = from_config(default_config())
  groups = assign_groups(spec.model.parameter_shapes(), spec.optimizer.groups)
  decayed = {name for name, group in groups.items() if group.weight_decay}
  assert decayed == {f'blocks.{name}.weight' for name in ('qkv', 'attention_out', 'gate_up', 'down')}


def test_groups_must_cover_every_parameter_and_be_used():
  with pytest.raises(ValueError, match=r"'final_norm.weight' matches none of 'blocks"):
    assign_groups(NAMES, (GroupSpec(pattern=r'blocks\..*'),))
  with pytest.raises(ValueError, match=r"'qkv' is the first match of no parameter"):
    assign_groups(NAMES, (GroupSpec(pattern='.*'), GroupSpec(pattern='qkv')))
