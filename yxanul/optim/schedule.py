"""Learning rate over progress. Progress is target tokens consumed over the token budget, so it knows no steps."""

import math

from yxanul.config.spec import OptimizerSpec


def schedule(progress: float, spec: OptimizerSpec) -> float:
  """The share of the peak rate at `progress` in [0, 1]: linear warm-up, then the decay that the spec names.

  A step is given the progress *after* it, so that the first step moves and the last one runs at the final rate.
  """
  warmup = spec.warmup_share
  if progress < warmup:
    return progress / warmup
  if spec.schedule == 'constant':
    return 1.0
  if spec.schedule == 'trapezoid':
    left = min(1.0, max(0.0, (1.0 - progress) / spec.decay_share))
    return spec.final_lr_share + (1.0 - spec.final_lr_share) * left
  decayed = min(1.0, (progress - warmup) / (1.0 - warmup)) if warmup < 1 else 1.0
  return spec.final_lr_share + (1.0 - spec.final_lr_share) * 0.5 * (1.0 + math.cos(math.pi * decayed))


def learning_rate(progress: float, lr_factor: float, spec: OptimizerSpec) -> float:
  """Rate of one step: peak x stage factor x schedule."""
  return spec.peak_lr * lr_factor * schedule(progress, spec)
