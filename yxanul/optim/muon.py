"""Muon: momentum, and of it the nearest matrix with orthogonal rows or columns.

A matrix's momentum U S V^T is replaced by (nearly) U V^T, so that every direction which the gradient knows moves alike
(Jordan et al. 2024, https://kellerjordan.github.io/posts/muon). Newton-Schulz finds it by products alone, in BF16: an odd
polynomial p(s) = a s + b s^3 + c s^5 is applied to the singular values again and again, after the matrix has been brought to
norm 1. Published choices, all of them fields of `MuonSpec`:

- polynomial: Jordan's one quintic, steep at zero, whose values end between 0.7 and 1.2 and stay there; or Polar Express
  (arXiv 2505.16932), five polynomials, each the best for the interval that the one before leaves.
- update_scale: 0.2 sqrt(max(out, in)) gives the update the root mean square that AdamW's has, so that AdamW's rates and
  weight decay carry over (Moonlight, arXiv 2502.16982); sqrt(max(1, out/in)) is Jordan's.
- row_normalization: a running mean square of each row of the direction divides it, as Adam does entry by entry, and the
  whole keeps its norm (NorMuon, arXiv 2510.05491).

Shapes: L layers, O and I a linear's output and input width. Linears that are packed in one parameter are taken apart.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from yxanul.config.spec import MuonSpec
from yxanul.optim.transform import Hyper, State, Transform, Tree

Polynomial = tuple[float, float, float]  # of s, s^3 and s^5

QUINTIC: Polynomial = (3.4445, -4.7750, 2.0315)
# Made for singular values in [0.0005, 1 / 1.02]: the margin is for what BF16 adds to a norm of 1.
POLAR_EXPRESS: tuple[Polynomial, ...] = (
  (8.156554524902461, -22.48329292557795, 15.878769915207462),
  (4.042929935166739, -2.808917465908714, 0.5000178451051316),
  (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
  (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
  (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
_MARGIN = 1.02
_EPS = 1e-30  # a momentum of zero stays zero


def orthogonalize(m_LOI: Tensor, polynomials: Sequence[Polynomial]) -> Tensor:
  """Of every matrix U S V^T of the stack (nearly) U V^T, by Newton-Schulz in BF16; (L, O, I) BF16."""
  norm_L = m_LOI.square().sum((-2, -1), keepdim=True).sqrt()
  x = (m_LOI / (_MARGIN * norm_L + _EPS)).bfloat16()
  tall = x.shape[-2] > x.shape[-1]  # the product of the matrix with itself is taken over its longer side
  x = x.mT if tall else x
  for a, b, c in polynomials:
    gram = x @ x.mT
    x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
  return x.mT if tall else x


def muon(
  spec: MuonSpec, rows: Mapping[str, tuple[int, ...]], weight_decay: dict[str, float], lr_multiplier: dict[str, float]
) -> Transform:
  """Muon over stacks of matrices (L, O, I), with FP32 momentum.

  Args:
    rows: by parameter name: O of each linear that is packed in it, in order.
    weight_decay, lr_multiplier: by parameter name.

  Update: -lr * lr_multiplier * (scale(O, I) * orthogonal(momentum) + weight_decay * p). On a step that is not ok, the
  state and the parameters stay as they are.
  """
  polynomials = POLAR_EXPRESS if spec.polynomial == 'polar_express' else [QUINTIC] * spec.newton_schulz_steps

  def init(params: Tree) -> State:
    state = {'momentum': {name: torch.zeros_like(p, dtype=torch.float32) for name, p in params.items()}}
    if spec.row_normalization:
      state['rows'] = {name: torch.zeros_like(p[..., :1], dtype=torch.float32) for name, p in params.items()}
    return state

  def update(gradients: Tree, state: State, params: Tree, hyper: Hyper) -> tuple[Tree, State]:
    updates = {}
    for name, g in gradients.items():
      momentum = state['momentum'][name].lerp_(g, (1 - spec.momentum) * hyper.ok)
      ahead = g.lerp_(momentum, spec.momentum) if spec.nesterov else momentum
      parts = []
      second = state['rows'][name].split(rows[name], 1) if spec.row_normalization else [None] * len(rows[name])
      for part, second_LO1 in zip(ahead.split(rows[name], 1), second, strict=True):
        direction = orthogonalize(part, polynomials).float()
        if second_LO1 is not None:
          direction = _normalize_rows(direction, second_LO1, spec.row_beta, hyper)
        parts.append(direction.mul_(_scale(spec, *part.shape[1:])))
      direction = torch.cat(parts, 1)
      if weight_decay[name]:
        direction.add_(params[name], alpha=weight_decay[name])
      updates[name] = direction.mul_(-hyper.learning_rate * hyper.ok * lr_multiplier[name])
    return updates, state

  return Transform(init, update)


def _normalize_rows(direction_LOI: Tensor, second_LO1: Tensor, beta: float, hyper: Hyper) -> Tensor:
  """Each row over the root of its running mean square, which is updated in place; the stack's matrices keep their norms."""
  second_LO1.lerp_(direction_LOI.square().mean(-1, keepdim=True), (1 - beta) * hyper.ok)
  # The second moment starts at zero and is not corrected: a factor over all rows is undone by the norm below.
  even = direction_LOI / (second_LO1.sqrt() + 1e-10)
  before, after = (x.square().sum((-2, -1), keepdim=True).sqrt() for x in (direction_LOI, even))
  return even.mul_(before / (after + _EPS))


def _scale(spec: MuonSpec, d_out: int, d_in: int) -> float:
  return 0.2 * max(d_out, d_in) ** 0.5 if spec.update_scale == 'rms' else max(1.0, d_out / d_in) ** 0.5
