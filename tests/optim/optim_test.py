"""Every optimizer passes one table of tests; then what each is by itself, and the groups."""

import dataclasses
import math
import shutil

import pytest
import torch

from yxanul.config.convert import default_config, from_config
from yxanul.config.groups import assign_groups
from yxanul.config.model_spec import ModelSpec
from yxanul.config.spec import GroupSpec, MuonSpec, OptimizerSpec
from yxanul.optim.adamw import adamw
from yxanul.optim.build import build
from yxanul.optim.muon import POLAR_EXPRESS, QUINTIC, muon, orthogonalize
from yxanul.optim.transform import Hyper, apply_updates, chain, clip_by_global_norm, global_norm
from yxanul.training.state import flatten

MODEL = ModelSpec(
  vocab_size=20, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=4, d_hidden=24, embedding_rank=8, max_positions=8
)
SHAPES = MODEL.parameter_shapes()
MATRICES = tuple(MODEL.packed_rows())
OTHERS = tuple(name for name in SHAPES if name not in MATRICES)
DECAY, LR = 0.1, 1e-2
PARTS = torch.tensor([[-1, -1]] * 8 + [[i - 8, i - 3] for i in range(8, 20)])
MUON_GROUPS = (GroupSpec(r'blocks\.(?!.*norm).*', 'muon', weight_decay=DECAY), GroupSpec('.*'))


WEIGHT_DECAY = dict.fromkeys(OTHERS, 0.0) | dict.fromkeys(MATRICES, DECAY)
SPEC = OptimizerSpec(eps=1e-12)


def plain_adamw():
  return adamw(SPEC.beta1, SPEC.beta2, SPEC.eps, WEIGHT_DECAY, dict.fromkeys(SHAPES, 1.0))


def plain_muon(**fields):
  return muon(MuonSpec(**fields), MODEL.packed_rows(), WEIGHT_DECAY, dict.fromkeys(SHAPES, 1.0))


# Name: how it is made, and the parameters it takes.
TABLE = {
  'adamw': (plain_adamw, tuple(SHAPES)),
  'muon': (plain_muon, MATRICES),
  'muon, no nesterov, spectral': (lambda: plain_muon(nesterov=False, update_scale='spectral'), MATRICES),
  'muon, polar express': (lambda: plain_muon(polynomial='polar_express'), MATRICES),
  'muon, rows normalized': (lambda: plain_muon(row_normalization=True), MATRICES),
  'clip + adamw': (lambda: chain(clip_by_global_norm(), plain_adamw()), tuple(SHAPES)),
  'as configured': (lambda: build(SPEC, MODEL), tuple(SHAPES)),
  'muon and adamw, as configured': (lambda: build(dataclasses.replace(SPEC, groups=MUON_GROUPS), MODEL), tuple(SHAPES)),
  'adamw of a table that inherits, as configured': (
    lambda: build(dataclasses.replace(SPEC, inheritance=0.7), MODEL, PARTS),
    tuple(SHAPES),
  ),
  'all of muon, as configured': (
    lambda: build(dataclasses.replace(SPEC, groups=MUON_GROUPS, muon=MuonSpec(row_normalization=True)), MODEL),
    tuple(SHAPES),
  ),
}
OPTIMIZERS = pytest.mark.parametrize(('make', 'names'), TABLE.values(), ids=TABLE.keys())
CHAINS = pytest.mark.parametrize(
  ('make', 'names'), [row for key, row in TABLE.items() if 'clip' in key or 'configured' in key], ids=lambda _: ''
)


def tree(seed, names, scale=1.0):
  generator = torch.Generator().manual_seed(seed)
  return {name: scale * torch.randn(SHAPES[name], generator=generator) for name in names}


def hyper(gradients, lr=LR, max_norm=1e9, ok=1.0):
  return Hyper(torch.tensor(lr), torch.tensor(max_norm), global_norm(gradients), torch.tensor(ok))


def run(optimizer, params, steps):
  state = optimizer.init(params)
  for i in range(steps):
    gradients = tree(100 + i, params)
    updates, state = optimizer.update(gradients, state, params, hyper(gradients))
    params = apply_updates(params, updates)
  return params, state


def first_update(make, names, scale=1.0, lr=LR, params=None):
  optimizer, params, gradients = make(), params or tree(0, names), tree(1, names, scale)
  return optimizer.update(gradients, optimizer.init(params), params, hyper(gradients, lr))[0]


def same(a, b):
  return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# --- the table -------------------------------------------------------------------------------------------------------


@OPTIMIZERS
def test_same_inputs_give_the_same_result(make, names):
  (a, x), (b, y) = (run(make(), tree(0, names), 4) for _ in range(2))
  assert same(a, b)
  assert same(flatten(x), flatten(y))


@OPTIMIZERS
def test_updates_and_state_are_fp32_and_shaped_as_the_parameters(make, names):
  updates = first_update(make, names)
  assert {k: (u.shape, u.dtype) for k, u in updates.items()} == {k: (SHAPES[k], torch.float32) for k in names}
  assert {leaf.dtype for leaf in flatten(make().init(tree(0, names))).values()} == {torch.float32}


@OPTIMIZERS
def test_the_state_is_updated_in_its_own_memory(make, names):
  """A captured graph reads the same addresses at every replay."""
  optimizer, params, gradients = make(), tree(0, names), tree(1, names)
  state = optimizer.init(params)
  before = {path: (leaf.data_ptr(), leaf.clone()) for path, leaf in flatten(state).items() if leaf.dim()}
  after = flatten(optimizer.update(gradients, state, params, hyper(gradients))[1])
  assert before
  for path, (pointer, old) in before.items():
    assert after[path].data_ptr() == pointer, path
    assert not torch.equal(after[path], old), path


@OPTIMIZERS
def test_a_quadratic_is_descended(make, names):
  optimizer, params = make(), tree(0, names)
  state, start = optimizer.init(params), sum(p.square().sum() for p in params.values())
  for _ in range(150):
    gradients = {k: p.clone() for k, p in params.items()}
    updates, state = optimizer.update(gradients, state, params, hyper(gradients, 2e-2))
    params = apply_updates(params, updates)
  assert sum(p.square().sum() for p in params.values()) < 0.3 * start


@OPTIMIZERS
def test_no_rate_no_change(make, names):
  assert all((u == 0).all() for u in first_update(make, names, lr=0.0).values())


@OPTIMIZERS
def test_the_rate_only_scales_the_update(make, names):
  once, twice = first_update(make, names), first_update(make, names, lr=2 * LR)
  for name in names:
    torch.testing.assert_close(twice[name], 2 * once[name])


@OPTIMIZERS
def test_weight_decay_is_decoupled(make, names):
  """Other parameters, same gradients: the update differs by lr x decay x the parameters' difference, and by nothing else."""
  here = first_update(make, names)
  there = first_update(make, names, params={k: p + 1.0 for k, p in tree(0, names).items()})
  decayed = {name for name in names if not torch.equal(here[name], there[name])}
  assert decayed == set(MATRICES)
  for name in decayed:
    torch.testing.assert_close(there[name] - here[name], torch.full(SHAPES[name], -LR * DECAY), rtol=1e-3, atol=1e-7)


@OPTIMIZERS
@pytest.mark.parametrize('scale', [2.0**-12, 2.0**12])
def test_the_first_update_does_not_know_the_gradients_scale(make, names, scale):
  for (name, a), b in zip(first_update(make, names).items(), first_update(make, names, scale).values(), strict=True):
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6, msg=name)


@CHAINS
@pytest.mark.parametrize('steps_before', [0, 2])
def test_a_step_that_is_not_ok_never_happened(make, names, steps_before):
  """NaN gradients change no leaf and no parameter, and the next step is the one that would have come without them."""
  optimizer = make()
  params, state = run(optimizer, tree(0, names), steps_before)
  clean, clean_state = run(make(), tree(0, names), steps_before)
  broken = {k: g * math.nan for k, g in tree(1, names).items()}
  updates, state = optimizer.update(broken, state, params, hyper(broken, ok=0.0))
  params = apply_updates(params, updates)
  assert same(params, clean)
  assert same(flatten(state), flatten(clean_state))
  gradients = tree(5, names)
  after, _ = optimizer.update({k: g.clone() for k, g in gradients.items()}, state, params, hyper(gradients))
  expected, _ = optimizer.update(gradients, clean_state, clean, hyper(gradients))
  assert same(after, expected)


@pytest.mark.skipif(not shutil.which('g++'), reason='torch.compile on a CPU needs g++')
def test_compiled_muon_equals_the_eager_one():
  """One packed parameter: compiling is slow. AdamW compiled is in tests/training/graphs_test.py."""
  names = ('blocks.qkv.weight',)
  optimizer = plain_muon(row_normalization=True)
  compiled = optimizer._replace(update=torch.compile(optimizer.update, dynamic=False, fullgraph=True))
  (a, _), (b, _) = (run(o, tree(0, names), 3) for o in (optimizer, compiled))
  start = tree(0, names)
  for key in names:  # what is fused is rounded to BF16 less often: a step of its significand, of three updates
    assert (a[key] - b[key]).norm() <= 2.0**-7 * (a[key] - start[key]).norm(), key


# --- each by itself --------------------------------------------------------------------------------------------------


def test_adamw_moves_by_the_sign_first():
  params = tree(0, SHAPES)
  for name, update in first_update(plain_adamw, tuple(SHAPES)).items():
    torch.testing.assert_close(update, -LR * (tree(1, SHAPES)[name].sign() + WEIGHT_DECAY[name] * params[name]))


def test_adamw_equals_torch():
  params = tree(0, SHAPES)
  theirs = [torch.nn.Parameter(p.clone()) for p in params.values()]
  groups = [{'params': [p], 'weight_decay': WEIGHT_DECAY[name]} for name, p in zip(SHAPES, theirs, strict=True)]
  reference = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), eps=SPEC.eps)
  optimizer = plain_adamw()
  state = optimizer.init(params)
  for i in range(20):
    gradients = tree(50 + i, SHAPES)
    for p, g in zip(theirs, gradients.values(), strict=True):
      p.grad = g.clone()
    reference.step()
    updates, state = optimizer.update(gradients, state, params, hyper(gradients))
    params = apply_updates(params, updates)
  for ours, p in zip(params.values(), theirs, strict=True):
    torch.testing.assert_close(ours, p.data, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize('shape', [(3, 8, 8), (3, 8, 40), (3, 40, 8)])
@pytest.mark.parametrize(
  ('polynomials', 'low', 'high'), [([QUINTIC] * 5, 0.65, 1.25), (POLAR_EXPRESS, 0.8, 1.2)], ids=['quintic', 'polar express']
)
def test_muons_direction_is_orthogonal(shape, polynomials, low, high):
  """Singular values from 1 down to 0.02 all come out near 1, between the matrix's own singular vectors."""
  generator = torch.Generator().manual_seed(0)
  left, _, right = torch.linalg.svd(torch.randn(shape, generator=generator, dtype=torch.float64), full_matrices=False)
  sizes = torch.logspace(0, math.log10(0.02), 8, dtype=torch.float64)
  direction = orthogonalize((left @ torch.diag(1e-4 * sizes) @ right).float(), polynomials)
  assert direction.dtype == torch.bfloat16
  inside = left.mT @ direction.double() @ right.mT
  values = inside.diagonal(dim1=-2, dim2=-1)
  assert values.min() > low
  assert values.max() < high
  assert (inside - torch.diag_embed(values)).abs().max() < 0.05  # BF16 over five steps


@pytest.mark.parametrize('polynomial', ['quintic', 'polar_express'])
def test_muons_first_update_in_closed_form(polynomial):
  """The polynomials over the singular values of each linear's own gradient, computed in FP64."""
  updates = first_update(lambda: plain_muon(polynomial=polynomial), MATRICES)
  gradients, params = tree(1, MATRICES), tree(0, MATRICES)
  for name, rows in MODEL.packed_rows().items():
    expected = []
    for g in gradients[name].double().split(rows, 1):
      left, s, right = torch.linalg.svd(g, full_matrices=False)
      s = s / (1.02 * s.square().sum(-1, keepdim=True).sqrt())
      for a, b, c in POLAR_EXPRESS if polynomial == 'polar_express' else [QUINTIC] * 5:
        s = a * s + b * s**3 + c * s**5
      expected.append(0.2 * math.sqrt(max(g.shape[1:])) * left @ torch.diag_embed(s) @ right)
    expected = -LR * (torch.cat(expected, 1) + DECAY * params[name].double())
    assert (updates[name] - expected).norm() < 0.03 * expected.norm(), name


@pytest.mark.parametrize('nesterov', [True, False])
def test_muon_follows_its_momentum(nesterov):
  name = 'blocks.down.weight'
  optimizer, params = plain_muon(nesterov=nesterov), {name: torch.zeros(SHAPES[name])}
  state, momentum = optimizer.init(params), torch.zeros(SHAPES[name])
  for seed in (1, 2, 3):
    g = tree(seed, [name])[name]
    momentum = 0.95 * momentum + 0.05 * g
    updates, state = optimizer.update({name: g.clone()}, state, params, hyper({name: g}))
  ahead = 0.05 * g + 0.95 * momentum if nesterov else momentum
  expected = -LR * 0.2 * math.sqrt(max(g.shape[1:])) * orthogonalize(ahead, [QUINTIC] * 5).float()
  assert (updates[name] - expected).norm() < 0.01 * expected.norm()


def test_muon_takes_packed_linears_apart():
  """What happens to the gradient of k leaves the update of q and v as it is."""
  gradients = tree(1, MATRICES)
  changed = {name: g.clone() for name, g in gradients.items()}
  d_query, d_kv = MODEL.d_query, MODEL.d_kv
  changed['blocks.qkv.weight'][:, d_query : d_query + d_kv] *= torch.linspace(1, 5, MODEL.d_model)
  params, results = tree(0, MATRICES), []
  for g in (gradients, changed):
    optimizer = plain_muon()
    results.append(optimizer.update(g, optimizer.init(params), params, hyper(g))[0]['blocks.qkv.weight'])
  parts = [x.split((d_query, d_kv, d_kv), 1) for x in results]
  assert [torch.equal(a, b) for a, b in zip(*parts, strict=True)] == [True, False, True]


def test_muons_update_is_as_large_as_adamws():
  """So that a rate carries over: a root mean square of 0.2 of the rate, whatever the shape."""
  params = {name: torch.zeros(SHAPES[name]) for name in MATRICES}
  for name, update in first_update(lambda: plain_muon(polynomial='polar_express'), MATRICES, params=params).items():
    for part in update.split(MODEL.packed_rows()[name], 1):
      assert part.square().mean().sqrt().item() == pytest.approx(0.2 * LR, rel=0.15), name


def test_normalized_rows_have_one_size_and_the_matrix_keeps_its_norm():
  params = {name: torch.zeros(SHAPES[name]) for name in MATRICES}
  plain, even = (first_update(lambda f=f: plain_muon(row_normalization=f), MATRICES, params=params) for f in (False, True))
  for name in MATRICES:
    for a, b in zip(*(x[name].split(MODEL.packed_rows()[name], 1) for x in (plain, even)), strict=True):
      torch.testing.assert_close(a.square().sum((1, 2)), b.square().sum((1, 2)), rtol=1e-4, atol=0.0)
      sizes = b.square().mean(-1)
      torch.testing.assert_close(sizes, sizes.mean(1, keepdim=True).expand_as(sizes), rtol=1e-4, atol=0.0)


@pytest.mark.parametrize('max_norm', [0.5, 1e6])
def test_clipping(max_norm):
  gradients = tree(3, SHAPES)
  norm = math.sqrt(sum(g.square().sum().item() for g in gradients.values()))
  clipped, _ = clip_by_global_norm().update(dict(gradients), (), {}, hyper(gradients, max_norm=max_norm))
  assert global_norm(clipped).item() == pytest.approx(min(norm, max_norm), rel=1e-5)


# --- groups ----------------------------------------------------------------------------------------------------------


def test_weight_decay_reaches_block_matrices_only():
  spec = from_config(default_config())
  groups = assign_groups(spec.model.parameter_shapes(), spec.optimizer.groups)
  decayed = {name for name, group in groups.items() if group.weight_decay}
  assert decayed == {f'blocks.{name}.weight' for name in ('qkv', 'attention_out', 'gate_up', 'down')}


def test_each_group_has_its_optimizer_and_its_rate():
  groups = (*MUON_GROUPS[:1], GroupSpec('embedding.projection', lr_multiplier=0.5), GroupSpec('.*'))
  updates = first_update(lambda: build(dataclasses.replace(SPEC, groups=groups), MODEL), tuple(SHAPES))
  params, gradients = ({name: t[name] for name in MATRICES} for t in (tree(0, SHAPES), tree(1, SHAPES)))
  alone, _ = plain_muon().update(gradients, plain_muon().init(params), params, hyper(gradients))
  assert all(torch.equal(updates[name], alone[name]) for name in MATRICES)
  sizes = {name: updates[name].abs().mean().item() / LR for name in OTHERS}
  assert sizes == {name: pytest.approx(0.5 if name == 'embedding.projection' else 1.0, rel=1e-4) for name in OTHERS}


def test_groups_must_cover_every_parameter_and_be_used():
  names = ('blocks.qkv.weight', 'final_norm.weight')
  with pytest.raises(ValueError, match=r"'final_norm.weight' matches none of 'blocks"):
    assign_groups(names, (GroupSpec(pattern=r'blocks\..*'),))
  with pytest.raises(ValueError, match=r"'qkv' is the first match of no parameter"):
    assign_groups(names, (GroupSpec(pattern='.*'), GroupSpec(pattern='qkv')))


def test_muon_refuses_what_is_no_block_matrix():
  with pytest.raises(ValueError, match=r"pattern '\.\*' gives muon 'embedding.table', wants block matrices only: blocks.qkv"):
    build(dataclasses.replace(SPEC, groups=(GroupSpec('.*', 'muon'),)), MODEL)
