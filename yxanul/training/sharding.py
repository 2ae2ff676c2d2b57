"""The optimizer's state divided over the processes of a run: stage 1 of ZeRO (Rajbhandari et al. 2019, arXiv 1910.02054).

Every process holds the parameters whole, and the optimizer's state of its own slice of each: the `rank`-th of `world` along
dimension 0, as even as rows allow. Block parameters are stacked by layer, (L, O, I), so a slice has whole matrices, and Muon
takes them as AdamW does. A step updates the process's slices, and all processes gather everyone's. AdamW's parameters and
losses are those of an undivided state to the bit, where the rows go through the model in as many parts; Muon's as far as a
product of matrices is the same in stacks of any height. A token table whose entries inherit is not divided: what one row learns
moves rows of others, so every process updates it whole.

The gradients stay summed on all processes, layer by layer beside the backward pass: judging and clipping them wants the norm
of all, to the same bits as ever. So this saves memory and costs traffic, half as much again; to sum each gradient for its owner
alone would save that, and take another exchange for the norm.

Everything here but `whole` and `divide` has static shapes and leaves the host alone, so that a CUDA graph captures it. This is
why the thin form was written: torch's FSDP2 divides modules, its ZeroRedundancyOptimizer wraps a torch.optim object and sends
from the host, and here there are neither modules nor such objects.
"""

import dataclasses
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from yxanul.config.spec import ExperimentSpec
from yxanul.optim.transform import Tree
from yxanul.training.distributed import Processes, talking
from yxanul.training.state import TrainState, flatten

_all_gather = getattr(dist, 'all_gather_single', None) or dist.all_gather_into_tensor  # its name up to torch 2.12


@dataclasses.dataclass(frozen=True)
class Sharding:
  """Which slices of the parameters' rows are this process's. All of them by default."""

  rank: int = 0
  world: int = 1
  undivided: frozenset[str] = frozenset()  # parameters that every process updates whole

  def own(self, tree: Tree) -> Tree:
    """This process's slices, as views; empty ones where there are fewer rows than processes."""
    if self.world == 1:
      return tree
    return {name: x if name in self.undivided else self._slice(x) for name, x in tree.items()}

  def divided(self, tree: Tree) -> list[Tensor]:
    """The tensors of which this process's slice is not the whole."""
    return [x for name, x in tree.items() if name not in self.undivided]

  def _slice(self, x: Tensor) -> Tensor:
    return x.tensor_split(self.world)[self.rank]

  def gather(self, tensors: Iterable[Tensor], sends: bool = True) -> None:
    """Everyone's slices into everyone's tensors, in place: FP32 and contiguous, of one shape on all processes.

    Args:
      sends: or else only its memory is taken, and the others' slices stay as they are.
    """
    if self.world == 1:
      return
    slices = list(zip(*(x.tensor_split(self.world) for x in tensors), strict=True))  # by process
    sizes = [[x.numel() for x in part] for part in slices]
    # One collective of equal parts: the shorter ones end in what nobody reads.
    sent = slices[0][0].new_empty(max(map(sum, sizes)))
    torch.cat([x.flatten() for x in slices[self.rank]], out=sent[: sum(sizes[self.rank])])
    received = sent.new_empty(self.world * len(sent))
    if not sends:
      return
    with talking():
      _all_gather(received, sent)
    for rank, (part, size) in enumerate(zip(slices, sizes, strict=True)):
      if rank != self.rank:
        flat = received[rank * len(sent) :][: sum(size)].split(size)
        torch._foreach_copy_(part, [x.view_as(y) for x, y in zip(flat, part, strict=True)])

  def whole(self, state: TrainState) -> TrainState:
    """What a checkpoint holds: the optimizer's state gathered, leaf by leaf, on the host of the first process.

    All processes have to come; on the others the optimizer's state is left out. It goes through the hosts alone, for beside a
    captured step there may be no room on the GPU. The host waits.
    """
    if self.world == 1:
      return state
    leaves = {}
    for path, leaf, shape in self._leaves(state):
      if shape is not None:
        gathered = torch.empty(shape, dtype=leaf.dtype)
        self._slice(gathered).copy_(leaf)
        self.gather([gathered])
        leaf = gathered
      if self.rank == 0:
        leaves[path] = leaf.cpu()
    return state._replace(opt_state=leaves)

  def room(self, state: TrainState) -> TrainState:
    """`state` with room on the host for the whole of the optimizer's, for a checkpoint to fill; the rest is the state's own."""
    if self.world == 1:
      return state
    leaves = {
      path: torch.empty(leaf.shape if shape is None else shape, dtype=leaf.dtype) for path, leaf, shape in self._leaves(state)
    }
    return state._replace(opt_state=leaves)

  def divide(self, whole: TrainState, state: TrainState, processes: Processes) -> None:
    """What the first process's `room` holds into the state of all of them, through their own; as `whole`. The host waits."""
    processes.spread(flatten(state._replace(opt_state=())).values())
    read = flatten(whole.opt_state)
    processes.spread(read.values())
    for path, leaf, shape in self._leaves(state):
      leaf.copy_(read[path] if shape is None else self._slice(read[path]))

  def _leaves(self, state: TrainState) -> Iterator[tuple[str, Tensor, torch.Size | None]]:
    """The optimizer's leaves by path, and of those that are divided the shape of the whole."""
    for path, leaf in flatten(state.opt_state).items():
      # What belongs to a parameter has its name, and its rows.
      name = path.rpartition('/')[2]
      param = state.params.get(name) if self.world > 1 and name not in self.undivided else None
      yield path, leaf, None if param is None else torch.Size((len(param), *leaf.shape[1:]))


WHOLE = Sharding()


def sharding_for(spec: ExperimentSpec, processes: Processes) -> Sharding:
  """As `training.shard_optimizer` asks; a process that is alone has everything."""
  return Sharding(processes.rank, processes.world, spec.undivided) if spec.training.shard_optimizer else WHOLE
