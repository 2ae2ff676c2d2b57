"""A table whose entries learn with the entries that they were merged from.

Byte-pair encoding makes each entry out of two earlier ones, ' of the' out of ' of' and ' the'. In a step of 32,768 tokens most
of 200,000 entries do not occur, and each has to be learned from its own few places. Here a row T is what is its own, E, and a
share s of its parts' rows: in its first half of the columns of the left part's, in its second half of the right one's,

  T[c, first half]  = E[c, first half]  + s T[left part of c, first half]
  T[c, second half] = E[c, second half] + s T[right part of c, second half],

and what an optimizer moves is E. So an entry takes part in what its parts learn, and they in what it does, and what it has for
itself is left to its own E. (That words should learn from their pieces is fastText's, Bojanowski et al. 2017, arXiv 1607.04606;
there the pieces are all n-grams and summed. Halves, because an entry begins like its left part and ends like its right one: as
an input the end counts, as a target the beginning.)

T is linear in E, T = M E, so this needs no other model: T alone is kept, gradients go through M^T to the optimizer and its
updates through M back. Half a row has one ancestor a generation, so M is a geometric series over generations, and with S for
one generation I + sS + s^2 S^2 + ... = (I + sS)(I + s^2 S^2)(I + s^4 S^4)...: as many passes over the table as the deepest
entry has generations in binary.

Shapes: V entries, R columns, H half of them; U = 2V half rows, of entry v the 2v-th and the one behind it.
"""

import dataclasses

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from yxanul.optim.transform import Hyper, State, Transform, Tree

_RUN = 256  # half rows that are summed one after another; a part may have thousands of entries


def inheriting(
  transform: Transform, name: str, parts_V2: Tensor, share: float, device: torch.device | None = None
) -> Transform:
  """`transform`, to which the table `name` is what its entries have of their own.

  Args:
    parts_V2: int64, on the host: the left and the right part of each entry; -1 for those that no merge makes.
    share: of a part's row that its entries have, less than 1.
    device: of the table; None: the host.

  Sums are taken in a fixed order. Weight decay is that of the rows as they are.
  """
  generations = _generations(parts_V2, share, device)

  def update(gradients: Tree, state: State, params: Tree, hyper: Hyper) -> tuple[Tree, State]:
    gradient, table, first = gradients[name], params[name], generations[0]
    for generation in generations:
      gradient = generation.up(gradient)
    own = 2 * table - first.down(table)
    updates, state = transform.update({**gradients, name: gradient}, state, {**params, name: own}, hyper)
    moved = updates[name]
    for generation in generations:
      moved = generation.down(moved)
    return {**updates, name: moved}, state

  return Transform(transform.init, update)


def start(table_VR: Tensor, parts_V2: Tensor, share: float) -> Tensor:
  """A table to start from, of which `table_VR` is what the entries have of their own; rows keep their size."""
  rows_VR = table_VR
  for generation in _generations(parts_V2, share):
    rows_VR = generation.down(rows_VR)
  return rows_VR * (table_VR.norm(dim=1, keepdim=True) / rows_VR.norm(dim=1, keepdim=True))


@dataclasses.dataclass(frozen=True)
class _Generation:
  """I + s^n S^n: every half row and its ancestor n merges back."""

  ancestor_U: Tensor  # int64; any where there is none
  weight_U1: Tensor  # FP32: s^n; 0 where there is none
  descendants: Tensor  # int64: half rows that have an ancestor, those of one side by side
  runs: Tensor  # int64: where in `descendants` stretches begin, each of one ancestor
  run_numbers: Tensor  # int64: 0, 1, ... as many as there are runs
  first_run_U: Tensor  # int64: the first run of each half row; behind the last of the one before where it has none
  weight: float

  def down(self, x_VR: Tensor) -> Tensor:
    """To every half row what its ancestor has, times s^n."""
    x_UH = x_VR.reshape(len(self.ancestor_U), -1)
    return torch.addcmul(x_UH, x_UH[self.ancestor_U], self.weight_U1).view_as(x_VR)

  def up(self, x_VR: Tensor) -> Tensor:
    """To every half row what its descendants have, times s^n: `down` transposed."""
    x_UH = x_VR.reshape(len(self.ancestor_U), -1)
    # Two sums, as one over thousands would keep the device waiting for a single thread.
    sums = embedding_bag(self.descendants, x_UH, self.runs, mode='sum')
    return torch.add(x_UH, embedding_bag(self.run_numbers, sums, self.first_run_U, mode='sum'), alpha=self.weight).view_as(x_VR)


def _generations(parts_V2: Tensor, share: float, device: torch.device | None = None) -> list[_Generation]:
  """Of 1, 2, 4, ... merges, as far back as any entry goes; of 1 always."""
  ancestor_U = torch.where(parts_V2 < 0, -1, 2 * parts_V2 + torch.arange(2)).flatten()
  generations, weight = [], share
  while not generations or (ancestor_U >= 0).any():
    generations.append(_generation(ancestor_U, weight, device))
    ancestor_U = torch.where(ancestor_U < 0, -1, ancestor_U[ancestor_U.clamp(min=0)])
    weight *= weight
  return generations


def _generation(ancestor_U: Tensor, weight: float, device: torch.device | None) -> _Generation:
  has = ancestor_U >= 0
  descendants = has.nonzero().flatten()
  descendants = descendants[ancestor_U[descendants].argsort(stable=True)]
  counts_U = torch.bincount(ancestor_U[has], minlength=len(ancestor_U))
  runs_U = -(-counts_U // _RUN)
  first_run_U = runs_U.cumsum(0) - runs_U
  # The k-th run of a half row begins k stretches behind its first descendant.
  owner = torch.repeat_interleave(torch.arange(len(ancestor_U)), runs_U)
  nth = torch.arange(len(owner)) - first_run_U[owner]
  runs = (counts_U.cumsum(0) - counts_U)[owner] + nth * _RUN
  return _Generation(
    ancestor_U=ancestor_U.clamp(min=0).to(device),
    weight_U1=(has * weight).float().unsqueeze(1).to(device),
    descendants=descendants.to(device),
    runs=runs.to(device),
    run_numbers=torch.arange(len(runs), device=device),
    first_run_U=first_run_U.to(device),
    weight=weight,
  )
