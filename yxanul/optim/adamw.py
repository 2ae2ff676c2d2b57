"""AdamW (arXiv 1711.05101): Adam's moments, with the weight decay apart from them."""

import torch

from yxanul.optim.transform import Hyper, State, Transform, Tree


def adamw(beta1: float, beta2: float, eps: float, weight_decay: dict[str, float], lr_multiplier: dict[str, float]) -> Transform:
  """AdamW with FP32 moments.

  Args:
    beta1, beta2: decay of the first and second moment.
    eps: added to the root of the second moment.
    weight_decay, lr_multiplier: by parameter name.

  Update: -lr * lr_multiplier * (m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay * p). On a step that is
  not ok, the moments, the count and the parameters stay as they are.
  """

  def init(params: Tree) -> State:
    return {
      'count': torch.zeros((), dtype=torch.float32, device=next(iter(params.values())).device),
      'first': {name: torch.zeros_like(p, dtype=torch.float32) for name, p in params.items()},
      'second': {name: torch.zeros_like(p, dtype=torch.float32) for name, p in params.items()},
    }

  def update(gradients: Tree, state: State, params: Tree, hyper: Hyper) -> tuple[Tree, State]:
    count = state['count'] + hyper.ok
    # A first step that is not ok leaves the count at 0: correct as for 1, the update is zero anyway.
    steps = count.clamp(min=1)
    correction1, correction2 = 1 - beta1**steps, 1 - beta2**steps
    updates = {}
    for name, g in gradients.items():
      first = state['first'][name].lerp_(g, (1 - beta1) * hyper.ok)
      second = state['second'][name].lerp_(g.square(), (1 - beta2) * hyper.ok)
      direction = (first / correction1).div_((second / correction2).sqrt_().add_(eps))
      if weight_decay[name]:
        direction.add_(params[name], alpha=weight_decay[name])
      updates[name] = direction.mul_(-hyper.learning_rate * hyper.ok * lr_multiplier[name])
    return updates, {'count': count, 'first': state['first'], 'second': state['second']}

  return Transform(init, update)
