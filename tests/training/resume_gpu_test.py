"""Captured steps on a GPU, saved halfway and taken up by new objects: the same run, to the bit where that was asked for."""

import types

import numpy as np
import pytest
import torch

from tests import tiny
from tests.data.small_shards import END, make_shards
from yxanul.kernels.capabilities import choose_engines, detect
from yxanul.optim.schedule import learning_rate
from yxanul.training.checkpoint import Checkpoints
from yxanul.training.curriculum import Curriculum
from yxanul.training.state import flatten
from yxanul.training.trainer import Trainer, set_up_torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')]
RUN = {'training__execution': 'graph', 'curriculum__budget_tokens': 40_000}
RUN |= {f'curriculum__stages[{i}]__n_layers': 1 for i in range(4)}  # the second block joins
MODEL = {
  'model__head_dim': 64,
  'model__n_heads': 2,
  'model__n_kv_heads': 1,
  'model__d_model': 128,
  'model__d_hidden': 128,
  'model__vocab_size': 512,
}


def run(trainer: Trainer, start: int, until: int) -> list[float]:
  """Losses of the steps from `start` to `until`, as the loop takes them."""
  curriculum, losses = trainer.curriculum, []
  position = sum(stage.spec.tokens_per_step for stage, _ in zip(trainer._stages_from(0), range(start), strict=False))
  for number, tokens in enumerate(trainer.batches(position), start=start):
    if number == until:
      break
    stage = curriculum.lookup(position)
    position += stage.spec.tokens_per_step
    rate = learning_rate(position / curriculum.total_tokens, stage.lr_factor, trainer.spec.optimizer)
    trainer.state, metrics = trainer.step(stage, trainer.state, tokens, rate, stage.spec.grad_clip)
    losses.append(metrics.loss.item())
  return losses


@pytest.mark.parametrize('deterministic', [True, False])
@pytest.mark.parametrize('matmul', ['fp8', 'bf16'])
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path, matmul, deterministic):
  spec = tiny.spec(**MODEL, precision__matmul=matmul, training__deterministic=deterministic, **RUN)
  capabilities = detect()
  engines = choose_engines(capabilities, spec.precision, spec.model.head_width)
  device, curriculum = set_up_torch(spec, capabilities), Curriculum(spec)
  tokenizer = types.SimpleNamespace(end_of_text_id=END, token_bytes=np.full(512, 4, np.int32))
  shards = make_shards(tmp_path / 'shards', np.random.default_rng(0).integers(20, 400, 200), vocab_size=512)
  prepared = types.SimpleNamespace(tokenizer=tokenizer, train=shards)

  def fresh() -> Trainer:
    return Trainer(spec, curriculum, capabilities, engines, device, prepared)

  half, total = curriculum.total_steps // 2, curriculum.total_steps
  try:
    whole = fresh()
    whole.warm(0, calibrate_first=True, tell=print)
    losses = run(whole, 0, half)
    checkpoints = Checkpoints(tmp_path / 'checkpoints', 2)
    checkpoints.save(whole.state, {'choices': whole.choices()})
    checkpoints.wait()
    losses += run(whole, half, total)

    resumed = fresh()
    host, notes = checkpoints.restore(resumed.state)
    checkpoints.close()
    assert notes == []
    resumed.choose(host['choices'])
    resumed.warm(int(resumed.state.data_state), calibrate_first=False, tell=print)
    again = run(resumed, half, total)
  finally:
    torch.use_deterministic_algorithms(False)
  assert resumed.step.captured < whole.step.captured == 10
  a, b = flatten(whole.state), flatten(resumed.state)
  if deterministic:
    assert again == losses[half:]
    assert [path for path in a if not torch.equal(a[path], b[path])] == []
  else:
    assert again == pytest.approx(losses[half:], rel=1e-2)
