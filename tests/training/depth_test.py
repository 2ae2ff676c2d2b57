"""Stages that run the first blocks alone: a step of theirs is a smaller model's, and leaves the other blocks as they are."""

import dataclasses
import json
import shutil

import pytest
import torch

from tests import tiny
from tests.training.step_test import FP8, FP32, TEXT, clone, rates
from yxanul import run
from yxanul.kernels import fp8
from yxanul.optim.adamw import adamw
from yxanul.optim.build import build
from yxanul.optim.transform import Hyper
from yxanul.planning.flops import flops_per_token
from yxanul.training import benchmark, depth
from yxanul.training.state import flatten, init_state
from yxanul.training.step import calibrate, is_fp8, make_eval_step, make_train_step
from yxanul.training.validation import Validation

ENGINES = pytest.mark.parametrize('engines', [FP32, FP8], ids=['fp32', 'fp8 reference'])
OPTIMIZERS = pytest.mark.parametrize('blocks', ['adamw', 'muon'])


def made(engines, blocks, n_layers=0):
  """A model of two blocks and its state, the first stage with `n_layers` of them, and a batch of it."""
  spec = tiny.spec(precision__matmul='fp8' if is_fp8(engines) else 'fp32')
  first, *rest = spec.optimizer.groups
  groups = (dataclasses.replace(first, optimizer=blocks, weight_decay=0.1), *rest)
  muon = dataclasses.replace(spec.optimizer.muon, row_normalization=True)  # with what it keeps of every row
  spec = dataclasses.replace(spec, optimizer=dataclasses.replace(spec.optimizer, groups=groups, muon=muon))
  stages = spec.curriculum.stages
  stages = (dataclasses.replace(stages[0], n_layers=n_layers), *stages[1:])
  spec = dataclasses.replace(spec, curriculum=dataclasses.replace(spec.curriculum, stages=stages))
  optimizer = build(spec.optimizer, spec.model, joining=spec.grows)
  fp8_state = fp8.init(spec.model, spec.precision) if is_fp8(engines) else {}
  state = init_state(spec, optimizer, fp8_state, torch.device('cpu'))
  shape = (stages[0].batch_size, stages[0].seq_len + 1)
  tokens = torch.randint(0, 512, shape, generator=torch.Generator().manual_seed(1), dtype=torch.int32)
  if is_fp8(engines):
    state = calibrate(state, tokens, stages[0], spec, engines, TEXT)
  return spec, state, optimizer, tokens


def fields(n_layers):
  return {f'curriculum__stages[{i}]__n_layers': n for i, n in n_layers.items()}


def of_one_block(tree, name=''):
  return {path: x[:1] if 'blocks.' in path else x for path, x in flatten(tree, name).items()}


@ENGINES
@OPTIMIZERS
def test_a_step_of_one_block_is_that_of_the_model_that_has_one(engines, blocks):
  spec, state, optimizer, tokens = made(engines, blocks, n_layers=1)
  before = clone(state)
  small_model = dataclasses.replace(spec.model, n_layers=1)
  small = dataclasses.replace(spec, model=small_model)
  small_state = clone(state)._replace(
    params={name: x.clone() for name, x in of_one_block(state.params).items()},
    opt_state=build(spec.optimizer, small_model).init(of_one_block(state.params)),
    fp8_state={'scale': before.fp8_state['scale'][:1], 'amax_history': before.fp8_state['amax_history'][:, :1]}
    if is_fp8(engines)
    else {},
  )
  step = make_train_step(spec, spec.curriculum.stages[0], optimizer, engines, TEXT)
  small_step = make_train_step(small, small.curriculum.stages[0], build(small.optimizer, small_model), engines, TEXT)
  for _ in range(3):
    state, metrics = step(state, tokens, *rates())
    small_state, small_metrics = small_step(small_state, tokens, *rates())
    assert (metrics.loss, metrics.grad_norm) == (small_metrics.loss, small_metrics.grad_norm)
  for path, x in of_one_block(small_state.params).items():
    assert torch.equal(of_one_block(state.params)[path], x), path
    assert not torch.equal(x, of_one_block(before.params)[path]), path
  mine, theirs = of_one_block(state.opt_state), flatten(small_state.opt_state)
  assert {path for path in mine if '/counts/' not in path} == theirs.keys()
  assert all(torch.equal(mine[path], x) for path, x in theirs.items())


@ENGINES
@OPTIMIZERS
def test_the_other_blocks_stay_until_they_join(engines, blocks):
  spec, state, optimizer, tokens = made(engines, blocks, n_layers=1)
  before, leaves = flatten(clone(state)), flatten(state)
  steps = [make_train_step(spec, stage, optimizer, engines, TEXT) for stage in spec.curriculum.stages[:2]]
  later = {path for path in before if 'blocks.' in path}
  state, _ = steps[0](state, tokens, *rates())
  after = flatten(state)
  assert after.keys() == before.keys()
  for path in later:
    assert after[path] is leaves[path]  # the whole, which a checkpoint takes, and not the view of it
    assert torch.equal(after[path][1:], before[path][1:]), path
    assert not torch.equal(after[path][:1], before[path][:1]), path
  if is_fp8(engines):
    assert torch.equal(state.fp8_state['scale'][1:], before['fp8_state/scale'][1:])
  assert state.loss_state['seq_len'] == spec.curriculum.stages[0].seq_len + 0.5  # half of the blocks
  second = spec.curriculum.stages[1]
  tokens = torch.arange(second.batch_size * (second.seq_len + 1)).view(second.batch_size, -1).int() % 511
  state, _ = steps[1](state, tokens, *rates())
  for path in later:
    assert not torch.equal(flatten(state)[path][1:], before[path][1:]), path


@pytest.mark.skipif(not shutil.which('g++'), reason='torch.compile on a CPU needs g++')
def test_a_compiled_update_writes_through_its_views():
  """Or the moments that a checkpoint takes would stay zero."""
  spec, state, optimizer, tokens = made(FP32, 'muon', n_layers=1)
  stage, compiled = spec.curriculum.stages[0], optimizer._replace(update=torch.compile(optimizer.update, dynamic=False))
  states = [state, clone(state)]
  for i, each in enumerate((optimizer, compiled)):
    step = make_train_step(spec, stage, each, FP32, TEXT)
    for _ in range(2):
      states[i], _ = step(states[i], tokens, *rates())
  eager, fused = map(flatten, states)
  for path, leaf in eager.items():
    torch.testing.assert_close(fused[path], leaf, rtol=1e-2, atol=1e-5, msg=path)
  assert fused['opt_state/2/momentum/blocks.gate_up.weight'][:1].any()


def test_a_run_scores_held_out_text_and_counts_its_work_with_the_blocks_that_run(tmp_path, monkeypatch):
  scored, score = [], Validation.__call__

  def counted(self, params, fp8_state, seq_len):
    scored.append((seq_len, len(params['blocks.qkv.weight'])))
    return score(self, params, fp8_state, seq_len)

  monkeypatch.setattr(Validation, '__call__', counted)
  monkeypatch.setattr(run, 'peak_flops', lambda *_: 1e12)
  spec = tiny.spec(**fields(dict.fromkeys(range(8), 1)))
  assert run.run(spec, tmp_path / 'run') == 0
  lines = [line for line in tiny.metrics(tmp_path / 'run') if 'val_bpb' in line]
  assert [n for _, n in scored] == [1 if line['stage'] <= 8 else 2 for line in lines]
  assert {line['stage'] for line in lines} == set(range(1, 11))
  trained = [json.loads(line) for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines() if '"mfu"' in line]
  for line in trained:
    model = spec.model_of(spec.curriculum.stages[line['stage'] - 1])
    assert line['mfu'] == pytest.approx(line['tokens_per_second'] * flops_per_token(model, line['seq_len']) / 1e12)


def test_scores_with_one_block_are_those_of_the_model_that_has_one():
  spec, state, _, tokens = made(FP32, 'adamw')
  small = dataclasses.replace(spec, model=dataclasses.replace(spec.model, n_layers=1))
  rows = tokens[:, :-1], tokens[:, 1:], tokens[:, 1:] != 511
  first = depth.first(state.params, 1)
  one, both = (make_eval_step(spec, FP32, TEXT)(params, {}, *rows) for params in (first, state.params))
  assert torch.equal(one, make_eval_step(small, FP32, TEXT)(first, {}, *rows))
  assert not torch.equal(one, both)


def test_views_are_of_block_leaves_alone_and_can_be_undone():
  tree = (
    {'count': torch.zeros(()), 'first': {'blocks.up.weight': torch.arange(6.0).view(3, 2), 'final_norm.weight': torch.ones(4)}},
  )
  view = depth.first(tree, 2)
  assert view[0]['first']['blocks.up.weight'].shape == (2, 2)
  assert view[0]['first']['final_norm.weight'].shape == (4,)
  view[0]['first']['blocks.up.weight'].zero_()
  assert tree[0]['first']['blocks.up.weight'].tolist() == [[0, 0], [0, 0], [4, 5]]
  back = depth.restore(view, tree)
  assert back[0]['first']['blocks.up.weight'] is tree[0]['first']['blocks.up.weight']


WRONG = [
  ({0: 3}, r'config\.curriculum\.stages\[0\]\.n_layers: got 3, wants at least 1 and at most the 2 of the model'),
  ({1: 1}, r'config\.curriculum\.stages\[1\]\.n_layers: got 1, wants at least 2, as many as the stage before,'),
  ({0: -1}, r'config\.curriculum\.stages\[0\]\.n_layers: got -1, wants a number of blocks, or 0 for all'),
  (dict.fromkeys(range(10), 1), r'stages\[9\]\.n_layers: got 1, wants 2: all blocks run in the last stage'),
]


@pytest.mark.parametrize(('n_layers', 'message'), WRONG)
def test_what_cannot_be_is_refused(n_layers, message):
  with pytest.raises(ValueError, match=message):
    tiny.spec(**fields(n_layers))


def test_a_few_stages_may_be_looked_at_alone():
  spec = tiny.spec(**fields({0: 1, 1: 1}))
  (stage,) = benchmark.narrowed(spec, [2]).curriculum.stages
  assert spec.model_of(stage).n_layers == 1


def test_adamw_takes_a_block_that_joins_as_it_took_the_first():
  """With a constant gradient AdamW moves by the rate, in a block's first step as in any, and whenever it comes in."""
  name = 'blocks.up.weight'
  optimizer = adamw(0.9, 0.999, 1e-8, {name: 0.0}, {name: 1.0}, joining=True)
  params = {name: torch.zeros(2, 3, 4)}
  state, (lr, max_norm) = optimizer.init(params), rates()
  hyper = Hyper(lr, max_norm, torch.tensor(1.0), torch.tensor(1.0))
  for n in (1,) * 30 + (2,) * 3:
    part = depth.first(params, n)
    updates, new = optimizer.update({name: torch.full_like(part[name], 0.1)}, depth.first(state, n), part, hyper)
    state = depth.restore(new, state)
    torch.testing.assert_close(updates[name], torch.full_like(part[name], -1e-3), rtol=1e-4, atol=0.0)
  assert state['counts'][name].tolist() == [33, 3]


def test_the_state_of_the_optimizer_is_whole_where_blocks_join():
  tiny.spec(training__shard_optimizer=True, **fields({0: 2}))
  with pytest.raises(ValueError, match=r'config\.training\.shard_optimizer: got True, wants False where blocks join'):
    tiny.spec(training__shard_optimizer=True, **fields({0: 1}))
