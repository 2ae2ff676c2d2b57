"""A table whose entries learn with the entries that they were merged from.

Byte-pair encoding makes each entry out of two earlier ones, ' of the' out of ' of' and ' the'. In a step of 32,768 tokens most
of 200,000 entries do not occur, and each has to be learned from its own few places. Here a row T is what is its own, E, and a
share s of its parts' rows: in the first half of its columns of the left part's, in the second half of the right part's,

  T[c, first half]  = E[c, first half]  + s T[left part of c, first half]
  T[c, second half] = E[c, second half] + s T[right part of c, second half],

and what an optimizer moves is E. So an entry takes part in what its parts learn, and they in what it does, and what it has for
itself is left to its own E. (That words should learn with their pieces is fastText's, Bojanowski et al. 2017, arXiv 1607.04606;
there the pieces are all n-grams, and summed. Halves, because an entry begins like its left part and ends like its right one: as
an input the end counts, as a target the beginning.)

T is linear in E, T = M E, so this needs no other model: T alone is kept, gradients go through M^T to the optimizer and its
updates through M back. That is training E, but for one thing: gradients are clipped, before, by the norm that they have for T.
Half a row has one part, whose half has one part: a row of M is 1 at itself and s, s^2, ... at these ancestors, of which there
are three on average in SuperBPE's 200,000 entries and nine at most. Products with M are therefore sums over bags
(`kernels.bag_sums`).

Shapes: V entries, R columns, H half of them; U = 2V half rows, of entry v the 2v-th and the one behind it.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from yxanul.kernels.bag_sums import bag_sums
from yxanul.optim.transform import Hyper, State, Transform, Tree

BagSums = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # as `kernels.bag_sums.bag_sums`

_RUN = 256  # half rows that are summed one after another; one may be in more than a hundred thousand


def inheriting(
  transform: Transform, name: str, parts_V2: Tensor, share: float, device: torch.device | None = None
) -> Transform:
  """`transform`, to which the table `name` is what its entries have of their own.

  Args:
    parts_V2: int64, on the host: the left and the right part of each entry; -1 for those that no merge makes.
    share: of a part's row that its entries have, less than 1.
    device: of the table; None: the host.

  Sums are taken in a fixed order. Weight decay is of E, which is to decay T.
  """
  inherited, passed_on = matrices(parts_V2, share, device)
  part_U = _part_of_half_rows(parts_V2)
  share_U1 = (share * (part_U >= 0)).float().unsqueeze(1).to(device)
  part_U = part_U.clamp(min=0).to(device)

  def own(table_VR: Tensor) -> Tensor:
    rows_UH = half_rows(table_VR)
    return torch.addcmul(rows_UH, rows_UH[part_U], share_U1, value=-1).view_as(table_VR)

  def update(gradients: Tree, state: State, params: Tree, hyper: Hyper) -> tuple[Tree, State]:
    gradients = {**gradients, name: product(passed_on, gradients[name])}
    updates, state = transform.update(gradients, state, {**params, name: own(params[name])}, hyper)
    return {**updates, name: product(inherited, updates[name])}, state

  return Transform(transform.init, update)


def start(table_VR: Tensor, parts_V2: Tensor, share: float) -> Tensor:
  """A table to start from: `table_VR` mixed as M mixes, each row then brought back to the size that it was drawn with."""
  rows_VR = product(_matrix(*_entries(_part_of_half_rows(parts_V2), share)), table_VR)
  return rows_VR * (table_VR.norm(dim=1, keepdim=True) / rows_VR.norm(dim=1, keepdim=True))


class Matrix(NamedTuple):
  """A sparse matrix over half rows, in every row of which there is something."""

  columns: Tensor  # int32: those of one row side by side
  weights: Tensor  # FP32, of the same length
  runs: Tensor  # int32: where in `columns` stretches begin, each of one row
  run_numbers: Tensor  # int32: 0, 1, ... as many as there are runs
  ones: Tensor  # FP32, as many
  first_run_U: Tensor  # int32: the first run of each row


def matrices(parts_V2: Tensor, share: float, device: torch.device | None = None) -> tuple[Matrix, Matrix]:
  """M and its transpose; arguments as those of `inheriting`."""
  heirs, ancestors, weights = _entries(_part_of_half_rows(parts_V2), share)
  return _matrix(heirs, ancestors, weights, device), _matrix(ancestors, heirs, weights, device)


def product(matrix: Matrix, x_VR: Tensor, bag_sums: BagSums = bag_sums) -> Tensor:
  """The matrix times the half rows of `x_VR`, (V, R) FP32 as that is."""
  sums = bag_sums(half_rows(x_VR), matrix.columns, matrix.runs, matrix.weights)
  if len(matrix.runs) > len(matrix.first_run_U):
    # In two goes, as one over a hundred thousand would keep the device waiting for a single thread.
    sums = bag_sums(sums, matrix.run_numbers, matrix.first_run_U, matrix.ones)
  return sums.view_as(x_VR)


def half_rows(x_VR: Tensor) -> Tensor:
  return x_VR.reshape(2 * len(x_VR), -1)


def _part_of_half_rows(parts_V2: Tensor) -> Tensor:
  """(U,) int64: the half row of the part that each inherits from; -1 where there is none."""
  return torch.where(parts_V2 < 0, -1, 2 * parts_V2 + torch.arange(2)).flatten()


def _entries(part_U: Tensor, share: float) -> tuple[Tensor, Tensor, Tensor]:
  """What is not zero in M: rows, columns (a half row itself, or an ancestor) and values (the share that it has of that)."""
  heirs, ancestors, value = torch.arange(len(part_U)), torch.arange(len(part_U)), 1.0
  generations = []
  while len(heirs):  # a generation further back
    generations.append((heirs, ancestors, torch.full((len(heirs),), value)))
    before = part_U[ancestors]
    heirs, ancestors, value = heirs[before >= 0], before[before >= 0], value * share
  rows, columns, values = map(torch.cat, zip(*generations, strict=True))
  return rows, columns, values


def _matrix(rows: Tensor, columns: Tensor, weights: Tensor, device: torch.device | None = None) -> Matrix:
  order = rows.argsort(stable=True)
  counts_U = torch.bincount(rows)
  runs_U = -(-counts_U // _RUN)
  first_run_U = runs_U.cumsum(0) - runs_U
  owner = torch.repeat_interleave(torch.arange(len(counts_U)), runs_U)
  nth = torch.arange(len(owner)) - first_run_U[owner]  # of its owner's runs
  runs = (counts_U.cumsum(0) - counts_U)[owner] + nth * _RUN
  numbers, ones = torch.arange(len(runs)), torch.ones(len(runs))
  columns, runs, numbers, first_run_U = (x.int() for x in (columns[order], runs, numbers, first_run_U))
  return Matrix(*(x.to(device) for x in (columns, weights[order], runs, numbers, ones, first_run_U)))
