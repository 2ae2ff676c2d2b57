"""A hundred steps against a curve that was right when it was written.

Written anew, after a change that is meant to change it: python -m tests.training.golden_test
"""

import json
from pathlib import Path

import pytest
import torch

from tests.training.step_test import FP8, FP32, make

CURVES = Path(__file__).with_name('golden.json')


def text(n_tokens: int, seed: int) -> torch.Tensor:
  """Something to learn that no library's random stream decides: a walk over the entries with a few kinds of step."""
  steps, token, tokens = (1, 5, 17, 3, 90), 7 * seed, []
  for i in range(n_tokens + 1):
    token = (token * 3 + steps[(i * i + seed) % 5]) % 509
    tokens.append(token)
  return torch.tensor(tokens, dtype=torch.int32)


def curve(engines, n_steps: int = 100) -> list[float]:
  _, stage, state, step, _ = make(engines, stage_index=4)
  losses = []
  for i in range(n_steps):
    # Each row begins with the last token of the one before.
    rows = text(stage.tokens_per_step, i).unfold(0, stage.seq_len + 1, stage.seq_len)
    state, metrics = step(state, rows, torch.tensor(3e-3), torch.tensor(1.0))
    losses.append(round(metrics.loss.item(), 5))
  return losses


@pytest.mark.parametrize(('name', 'engines', 'tolerance'), [('fp32', FP32, 2e-3), ('fp8', FP8, 2e-2)])
def test_the_curve_has_not_moved(name, engines, tolerance):
  golden = json.loads(CURVES.read_text())[name]
  assert golden[-1] < golden[0] - 0.5
  # Other processors round other bits, and a hundred steps carry them on: the tolerance grows with the steps.
  for i, (loss, wanted) in enumerate(zip(curve(engines), golden, strict=True)):
    assert loss == pytest.approx(wanted, rel=tolerance * (1 + i / 10)), i


if __name__ == '__main__':
  CURVES.write_text(json.dumps({'fp32': curve(FP32), 'fp8': curve(FP8)}) + '\n')
