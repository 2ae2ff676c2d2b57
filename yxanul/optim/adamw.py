"""AdamW (arXiv 1711.05101): Adam's moments, with the weight decay apart from them."""

import torch

from yxanul.optim.transform import Hyper, State, Transform, Tree


def adamw(
  beta1: float,
  beta2: float,
  eps: float,
  weight_decay: dict[str, float],
  lr_multiplier: dict[str, float],
  joining: bool = False,
) -> Transform:
  """AdamW with FP32 moments.

  Args:
    beta1, beta2: decay of the first and second moment.
    eps: added to the root of the second moment.
    weight_decay, lr_multiplier: by parameter name.
    joining: blocks may join late, so t is counted for each of them.

  Update: -lr * lr_multiplier * (m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay * p). On a step that is
  not ok, the moments, the count and the parameters stay as they are.
  """

  def init(params: Tree) -> State:
    device = next(iter(params.values())).device
    own = {name: torch.zeros(len(p), device=device) for name, p in params.items() if joining and name.startswith('blocks.')}
    return {
      **({'counts': own} if own else {}),
      'count': torch.zeros((), dtype=torch.float32, device=device),
      'first': {name: torch.zeros_like(p, dtype=torch.float32) for name, p in params.items()},
      'second': {name: torch.zeros_like(p, dtype=torch.float32) for name, p in params.items()},
    }

  def update(gradients: Tree, state: State, params: Tree, hyper: Hyper) -> tuple[Tree, State]:
    count = state['count'] + hyper.ok
    counts, updates = state.get('counts', {}), {}
    for name, g in gradients.items():
      own = counts[name].add_(hyper.ok).view(-1, *[1] * (g.ndim - 1)) if name in counts else count
      # A first step that is not ok leaves the count at 0: correct as for 1, the update is zero anyway.
      steps = own.clamp(min=1)
      correction1, correction2 = 1 - beta1**steps, 1 - beta2**steps
      first = state['first'][name].lerp_(g, (1 - beta1) * hyper.ok)
      second = state['second'][name].lerp_(g.square(), (1 - beta2) * hyper.ok)
      direction = (first / correction1).div_((second / correction2).sqrt_().add_(eps))
      if weight_decay[name]:
        direction.add_(params[name], alpha=weight_decay[name])
      updates[name] = direction.mul_(-hyper.learning_rate * hyper.ok * lr_multiplier[name])
    return updates, {**state, 'count': count}

  return Transform(init, update)
