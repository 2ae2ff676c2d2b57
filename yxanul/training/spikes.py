"""Loss spikes, told on the device: a loss far above its running mean, in units of its deviation from step to step.

The deviation comes from successive differences (von Neumann 1941, doi 10.1214/aoms/1177731677): a loss that falls by six
nats in its first hundred steps has a large variance, but little of it is noise. Each length starts afresh, for another length
is another loss, and so are more blocks; until it has settled, only a loss far above the level of what was before is a spike.
A step that is skipped, for whatever reason, moves nothing here.
"""

import torch
from torch import Tensor

State = dict[str, Tensor]

_SETTLE_STEPS = 50  # of a length, before any of its losses counts as a spike
_MEAN_STEPS, _DEVIATION_STEPS = 20, 100  # that the running means reach back, about
_ASTRAY = 2.0  # times the level: no change of length does that
_LEAST_DEVIATION = 0.01  # of the mean: large batches are so even that one hard batch would be many deviations away


def init(device: torch.device) -> State:
  """Statistics that know nothing: 0-d FP32 tensors; `seq_len` is the kind that they are of."""
  names = ('mean', 'variance', 'last', 'count', 'level', 'seq_len')
  return {name: torch.zeros((), dtype=torch.float32, device=device) for name in names}


def judge(state: State, loss: Tensor, kind: float, deviations: float) -> tuple[Tensor, State]:
  """Whether `loss` is a spike, and the statistics with it taken in.

  Args:
    loss: 0-d FP32; one that is not finite is no spike, and the caller must not keep statistics that took it in.
    kind: losses of another kind are not compared: the length of the rows, plus the share of the blocks that do not run.
    deviations: how many deviations above the mean a spike begins; 0: there are none.

  Returns:
    (0-d bool, state): the given state is left as it is.
  """
  same = state['seq_len'] == kind
  count = state['count'] * same
  # Plain means over the first steps, exponentially weighted ones from then on. The first step has no difference.
  fresh = 1.0 / (count + 1.0)
  mean = state['mean'] + fresh.clamp(min=1.0 / _MEAN_STEPS) * (loss - state['mean'])
  half_square = 0.5 * (loss - state['last']).square() * (count > 0)
  weight = torch.maximum(1.0 / count.clamp(min=1.0), fresh.new_full((), 1.0 / _DEVIATION_STEPS))
  variance = state['variance'] + weight * (half_square - state['variance'])
  limit = deviations * torch.maximum(state['variance'].sqrt(), _LEAST_DEVIATION * state['mean'].abs())
  settled, level = count >= _SETTLE_STEPS, state['level']
  spike = (settled & (loss - state['mean'] > limit)) | ((level > 0) & (loss > _ASTRAY * level))
  after = {'mean': mean, 'variance': variance, 'last': loss.clone(), 'count': count + 1.0}
  after['level'] = torch.where(settled, mean, level)  # that the loss had when it was last settled
  return spike & (deviations > 0), {**after, 'seq_len': torch.full_like(mean, kind)}
