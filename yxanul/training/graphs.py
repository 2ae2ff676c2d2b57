"""A step for each stage: made once, then called by stage.

Execution is the experiment's choice: `eager` runs the step as it is written; `compile` gives every stage a torch.compile of its
own (one function recompiled ten times would pass torch's limit of eight and silently run eager from the ninth).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from yxanul.config.spec import StageSpec
from yxanul.training.curriculum import Stage
from yxanul.training.state import TrainState
from yxanul.training.step import StepMetrics, TrainStep


class StepCache:
  """`cache(stage, state, tokens, lr, max_norm)` runs that stage's step, made on its first use."""

  def __init__(self, make: Callable[[StageSpec], TrainStep], execution: str, device: torch.device):
    self._make, self._execution, self._device = make, execution, device
    self._steps: dict[int, TrainStep] = {}

  def __len__(self) -> int:
    return len(self._steps)

  def __call__(
    self, stage: Stage, state: TrainState, tokens: Tensor, learning_rate: float, max_norm: float
  ) -> tuple[TrainState, StepMetrics]:
    if stage.index not in self._steps:
      step = self._make(stage.spec)
      self._steps[stage.index] = torch.compile(step, dynamic=False) if self._execution == 'compile' else step
    scalars = (torch.tensor(value, dtype=torch.float32, device=self._device) for value in (learning_rate, max_norm))
    return self._steps[stage.index](state, tokens, *scalars)
