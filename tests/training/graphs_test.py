"""One step a stage, made once; rows in pieces are the same step; a captured step is the eager one."""

import dataclasses
import shutil

import pytest
import torch

from tests import tiny
from tests.training.step_test import ENGINES, FP8, FP32, PARTS, TEXT, clone, make
from yxanul.kernels import fp8
from yxanul.kernels.capabilities import choose_engines, detect
from yxanul.optim.build import build
from yxanul.training.curriculum import Curriculum
from yxanul.training.graphs import StepCache
from yxanul.training.state import flatten, init_state
from yxanul.training.step import Text, calibrate, is_fp8, make_train_step

CPU = torch.device('cpu')


@ENGINES
def test_every_stage_is_made_once_whatever_the_rates(engines):
  spec, _, state, _, _ = make(engines)
  curriculum, made = Curriculum(spec), []
  optimizer = build(spec.optimizer, spec.model)

  def factory(stage, compiled, reduction):
    made.append((stage.number, compiled))
    return make_train_step(spec, stage.spec, optimizer, engines, TEXT, 1, compiled, reduction)

  def text(stage):
    return torch.randint(0, 511, (stage.spec.batch_size, stage.spec.seq_len + 1), dtype=torch.int32)

  # Without a GPU, `graph` is eager: nothing is compiled and nothing captured.
  cache = StepCache(factory, 'graph', CPU)
  before = clone(state)
  cache.warm(curriculum.stages, state, text, print)
  assert all(torch.equal(a, b) for a, b in zip(flatten(state).values(), flatten(before).values(), strict=True))
  for turn in range(3):
    for stage in curriculum.stages:
      state, metrics = cache(stage, state, text(stage), learning_rate=1e-3 / (turn + 1), max_norm=0.5 + turn)
      assert metrics.skipped == 0
  assert made == [(stage.number, False) for stage in curriculum.stages]
  assert len(cache) == 10
  assert cache.captured == 0
  assert int(state.step) == 30


def test_rates_go_to_the_device_without_waiting_for_it(monkeypatch):
  """A copy of a number from the host's ordinary memory waits for all that was launched before it."""
  given = []
  spec, _, state, _, tokens = make()
  cache = StepCache(lambda *_: lambda state, tokens, *rates: given.append(rates), 'eager', CPU)
  monkeypatch.setattr(torch, 'tensor', lambda *_, **__: pytest.fail('copied from the host'))
  cache(Curriculum(spec).stages[0], state, tokens, 1e-3, 2.0)
  assert [(rate.dtype, rate.shape, rate.item()) for rate in given[0]] == [
    (torch.float32, (), pytest.approx(1e-3, rel=1e-6)),
    (torch.float32, (), 2.0),
  ]


@pytest.mark.parametrize('engines', [FP32, FP8], ids=['fp32', 'fp8 reference'])
@pytest.mark.parametrize('pieces', [2, 4])
def test_rows_in_pieces_are_the_same_step(engines, pieces):
  spec, stage, state, step, tokens = make(engines)
  optimizer = build(spec.optimizer, spec.model)
  parts = make_train_step(spec, stage, optimizer, engines, TEXT, pieces)
  rates = torch.tensor(1e-3), torch.tensor(1.0)
  whole, m = step(clone(state), tokens, *rates)
  split, n = parts(clone(state), tokens, *rates)
  for a, b, name in zip(m, n, m._fields, strict=True):
    # Under FP8 a sum that differs in its last bit can round to the neighbour.
    torch.testing.assert_close(a, b, rtol=1e-5 if engines is FP32 else 1e-4, atol=1e-6, msg=name)
  a, b = flatten(whole), flatten(split)
  for path in a:
    if 'first' in path:  # the moment holds the gradient: the same sum in another order
      # The neighbour is an eighth away (E5M2's step is a quarter, halved).
      tolerance = 1e-5 if engines is FP32 else 2e-2
      assert (a[path] - b[path]).norm() <= tolerance * a[path].norm() + 1e-9, path
  if is_fp8(engines):
    # The amax of the whole is the largest of the pieces', so the scales agree.
    torch.testing.assert_close(whole.fp8_state['scale'], split.fp8_state['scale'], rtol=1e-2, atol=0.0)


@pytest.mark.skipif(not shutil.which('g++'), reason='torch.compile on a CPU needs g++')
@pytest.mark.parametrize('inheritance', [0.0, 0.7])
def test_a_compiled_step_agrees_with_the_eager_one(inheritance):
  spec, stage, state, _, tokens = make()
  optimizer = build(dataclasses.replace(spec.optimizer, inheritance=inheritance), spec.model, PARTS)
  step = make_train_step(spec, stage, optimizer, FP32, TEXT)
  compiled = make_train_step(spec, stage, optimizer, FP32, TEXT, 1, compiled=True)
  rates = torch.tensor(1e-3), torch.tensor(1.0)
  a, m = step(clone(state), tokens, *rates)
  b, n = compiled(clone(state), tokens, *rates)
  torch.testing.assert_close(m.loss, n.loss, rtol=1e-5, atol=0.0)
  torch.testing.assert_close(m.grad_norm, n.grad_norm, rtol=1e-4, atol=0.0)
  for name, p in a.params.items():
    torch.testing.assert_close(p, b.params[name], rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@pytest.mark.parametrize('attention', ['sdpa', 'short'])
@pytest.mark.parametrize('matmul', ['bf16', 'fp8'])
def test_captured_stages_equal_eager_ones_and_never_compile_again(matmul, attention):
  """Ten graphs for ten stages; the state survives the warming; replays wait for nothing and do as the eager step."""
  device = torch.device('cuda')
  spec = tiny.spec(precision__matmul=matmul, model__head_dim=64, model__d_model=64, model__d_hidden=64)
  engines = choose_engines(detect(), spec.precision, spec.model.embedding_rank)
  engines = dataclasses.replace(engines, attention=attention)
  text = Text(511, TEXT.token_bytes_V.to(device))
  optimizer = build(spec.optimizer, spec.model)
  curriculum = Curriculum(spec)

  def tokens(stage, seed=0):
    generator = torch.Generator().manual_seed(100 * stage.index + seed)
    return torch.randint(0, 512, (stage.spec.batch_size, stage.spec.seq_len + 1), generator=generator, dtype=torch.int32).to(
      device
    )

  def factory(stage, compiled, reduction):
    return make_train_step(spec, stage.spec, optimizer, engines, text, 1, compiled, reduction)

  state = init_state(spec, optimizer, fp8.init(spec.model, spec.precision, device) if is_fp8(engines) else {}, device)
  if is_fp8(engines):
    state = calibrate(state, tokens(curriculum.stages[0]), curriculum.stages[0].spec, spec, engines, text)
  before = clone(state)
  cache = StepCache(factory, 'graph', device)
  cache.warm(curriculum.stages, state, tokens, print)
  assert cache.captured == 10
  assert all(torch.equal(a, b) for a, b in zip(flatten(state).values(), flatten(before).values(), strict=True))
  eager = StepCache(factory, 'eager', device)
  torch._dynamo.utils.counters.clear()
  with torch.compiler.set_stance('fail_on_recompile'):
    for stage in curriculum.stages:
      batch = tokens(stage, 1).cpu().pin_memory()
      torch.cuda.set_sync_debug_mode('error')  # whatever makes the host wait for the device raises
      try:
        state, m = cache(stage, state, batch, 1e-3, 1.0)
      finally:
        torch.cuda.set_sync_debug_mode('default')
      loss = m.loss.item()
      before, n = eager(stage, before, tokens(stage, 1), 1e-3, 1.0)
      assert loss == pytest.approx(n.loss.item(), rel=2e-2)
  assert not torch._dynamo.utils.counters['stats']
