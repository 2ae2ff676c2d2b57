"""One run over several processes: data parallel, through torch.distributed alone.

torchrun starts a process for each GPU. Each holds the whole state (the optimizer's divided where that is asked for, see
`sharding`) and takes its rows of every global batch; the step sums the gradients, takes the maximum of the FP8 amaxes and
sums the metrics before it judges and uses any of them, so every process takes the same step to the same bits, and the run is
the one that a single process would do, to the rounding of sums.

The gradients of a layer are summed while the layers before it are still being differentiated: `Reduction.layers` hands the
model its parameters through an autograd node for each layer, whose backward pass starts the sum. Everything is enqueued on
streams (NCCL's own beside the current one), so that a CUDA graph captures it together with the step. Rejected:
DistributedDataParallel, which wraps a module, and there is none here.

What the host must agree on (a stop during an evaluation, a stage that does not fit) goes through Gloo, off the hot path.
"""

import contextlib
import dataclasses
import datetime
import gc
import json
import os
import re
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from yxanul.config.spec import ExperimentSpec
from yxanul.model.transformer import Params

PEER_SECONDS = 600  # without a word from the others, after which they are given up
EXIT_PEER_LOST = 1

T = TypeVar('T')


class PeerLost(RuntimeError):
  """Another process of the run is gone, or has not answered for PEER_SECONDS, or the GPU has not."""


@contextlib.contextmanager
def talking() -> Iterator[None]:
  """Around every collective: its failure means that another process is gone."""
  try:
    yield
  except PeerLost:
    raise
  except RuntimeError as error:
    # Its first sentence, less where in Gloo's source it was said.
    said = re.sub(r'^\[\S+:\d+\] ', '', ' '.join(str(error).split())).partition('. ')[0]
    raise PeerLost(f'another process is gone ({said[:120]})') from error


@dataclasses.dataclass(frozen=True)
class Processes:
  """The processes of a run, and this one's place among them. Alone by default."""

  rank: int = 0
  world: int = 1
  here: int = 1  # of them on this machine

  @property
  def first(self) -> bool:
    """Whether this is the one that logs, saves and reports."""
    return self.rank == 0

  def any(self, flag: bool) -> bool:
    """Whether any process says so; every process gets the same answer at the same place. The host waits."""
    return bool(self.largest(int(flag)))

  def largest(self, value: int) -> int:
    """The largest of the processes' values. The host waits."""
    if self.world == 1:
      return value
    shared = torch.tensor(value)
    with talking():
      dist.all_reduce(shared, dist.ReduceOp.MAX)
    return int(shared)

  def total(self, values: list[float]) -> list[float]:
    """Sums over the processes, in FP64. The host waits."""
    if self.world == 1:
      return values
    shared = torch.tensor(values, dtype=torch.float64)
    with talking():
      dist.all_reduce(shared)
    return shared.tolist()

  def from_first(self, value: Any) -> Any:
    """The first process's value, which has to be JSON; what the others give is not looked at. The host waits."""
    if self.world == 1:
      return value
    box = [json.dumps(value) if self.first else None]
    with talking():
      dist.broadcast_object_list(box, device=torch.device('cpu'))
    return json.loads(box[0])

  def from_each(self, value: Any) -> list[Any]:
    """The processes' values by rank, each of which has to be JSON. The host waits."""
    if self.world == 1:
      return [value]
    box = [''] * self.world
    with talking():
      dist.all_gather_object(box, json.dumps(value))
    return [json.loads(text) for text in box]

  def spread(self, tensors: Iterable[Tensor]) -> None:
    """The first process's values into everyone's tensors."""
    if self.world > 1:
      with talking():
        for tensor in tensors:
          dist.broadcast(tensor, 0)

  def fitting(self, run: Callable[['Reduction | None'], T], reduction: 'Reduction | None', smaller: Callable[[], None]) -> T:
    """`run(reduction)`, once it fits into every process's memory; before each new try `smaller` is called on all of them.

    With several processes it is tried without the reduction first: one that runs out of memory must not keep the others
    waiting inside a sum.
    """
    while True:
      result, fits = None, True
      try:
        result = run(None)
      except RuntimeError as error:
        if not is_out_of_memory(error):
          raise
        fits = False
      # Only here is the error gone, and with it the frames that held what was allocated.
      if not self.any(not fits):
        return result if self.world == 1 else run(reduction)
      result = None
      if torch.cuda.is_available():
        torch.cuda.empty_cache()
      smaller()

  def check(self, spec: ExperimentSpec) -> None:
    """
    Raises:
      ValueError: a batch of the table cannot be shared out evenly, in rows and in what FP8 needs.
    """
    if spec.curriculum.batch_size == 'max':
      return
    for i, stage in enumerate(spec.curriculum.stages):
      rows, left = divmod(stage.batch_size, self.world)
      fp8 = spec.precision.matmul == 'fp8'
      if left or (fp8 and rows * stage.seq_len % 16):
        tokens = f', each with a multiple of 16 tokens ({stage.seq_len} a row)' if fp8 else ''
        raise ValueError(
          f'config.curriculum.stages[{i}].batch_size: got {stage.batch_size}, wants a multiple of the {self.world} '
          f'processes{tokens}'
        )


ALONE = Processes()


def is_out_of_memory(error: BaseException | None) -> bool:
  """Whether memory ran out: here, or in what this error came from (ending a capture that failed fails in its own way)."""
  while error is not None:
    if isinstance(error, torch.OutOfMemoryError) or 'out of memory' in str(error):
      return True
    error = error.__cause__ or error.__context__
  return False


def _fresh_store(rank: int, world: int) -> dist.Store:
  """A part of torchrun's store that these processes alone write to.

  torchrun keeps its store over restarts, and a process that reads where its peers are before they have written it anew is
  sent to those of the last time (pytorch/pytorch issue 135712); its restart counter differs between machines. So the first
  process names a fresh part, and is heard only by those that answer to that name.
  """
  store, *_ = next(rendezvous('env://', rank, world, timeout=datetime.timedelta(seconds=PEER_SECONDS)))
  own = uuid.uuid4().hex
  if rank:
    store.set(f'hello/{rank}', own)
    name = store.get(f'welcome/{own}').decode()
    store.set(f'{name}/{rank}', own)
    return dist.PrefixStore(name, store)
  missing, until = set(range(1, world)), time.monotonic() + PEER_SECONDS
  while missing:
    for peer in [peer for peer in missing if store.check([f'hello/{peer}'])]:
      store.set(f'welcome/{store.get(f"hello/{peer}").decode()}', own)
      if store.check([f'{own}/{peer}']):
        missing.remove(peer)
    if time.monotonic() > until:
      raise PeerLost(f'ranks {sorted(missing)} did not come within {PEER_SECONDS} s')
    time.sleep(0.02)
  return dist.PrefixStore(own, store)


def _end(line: str) -> NoReturn:
  sys.stdout.flush()
  os.write(2, f'{line}; what is saved stands, the same command goes on from there\n'.encode())
  os._exit(EXIT_PEER_LOST)  # a GPU that never ends what it was given would hold a normal end up


@contextlib.contextmanager
def join() -> Iterator[Processes]:
  """Meets the other processes that torchrun started, and takes this one's GPU; alone without torchrun.

  Inside the block a `PeerLost` ends the process with one line and status 1, whatever the GPU still waits for; one that is
  alone waits for nothing but its GPU, and ends in the same way when that hangs.

  Raises:
    ValueError: torchrun started more processes on this machine than it has GPUs.
  """
  rank, world, here = (int(os.environ.get(name, n)) for name, n in (('RANK', 0), ('WORLD_SIZE', 1), ('LOCAL_WORLD_SIZE', 1)))
  if world == 1:
    try:
      yield ALONE
    except PeerLost as error:
      _end(f'error: {error}')
    return
  backend = 'gloo'
  if torch.cuda.is_available():
    gpus = torch.cuda.device_count()
    if here > gpus:
      raise ValueError(f'torchrun --nproc_per_node={here}: wants at most the {gpus} GPUs of this machine')
    torch.cuda.set_device(int(os.environ['LOCAL_RANK']))
    backend = 'cpu:gloo,cuda:nccl'
  try:
    with talking():
      store, timeout = _fresh_store(rank, world), datetime.timedelta(seconds=PEER_SECONDS)
      dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)
    processes = Processes(rank, world, here)
    yield processes
    # torchrun takes the first to leave for one that failed, and ends the others: not while the first process still writes.
    processes.any(False)
  except PeerLost as error:
    _end(f'rank {rank}: {error}')
  gc.collect()  # NCCL waits for every graph that holds its sums to be gone
  dist.destroy_process_group()


class Reduction:
  """What makes a step of each process one step of all of them; an argument of `make_train_step`.

  Nothing here waits on the host, except where the tensors are the host's.
  """

  def __init__(self, world: int, device: torch.device):
    self.world = world
    self._asks = torch.zeros((), dtype=torch.float64, device=device)  # read by every step, so it stays where it is
    self._under_way: list[dist.Work] = []

  def ask(self, asks: bool) -> None:
    """From the next step on, tells all processes with its metrics that this one asks for a boundary; or no longer."""
    self._asks.fill_(float(asks))

  def layers(self, params: Params, before: Params | None = None) -> Iterator[Params]:
    """As `transformer.layers`; the backward pass gives gradients summed over the processes.

    Args:
      before: gradients of this process's earlier pieces, by full name; they are added before the sum.
    """
    names = [name for name in params if name.startswith('blocks.')]
    short = [name.removeprefix('blocks.') for name in names]
    slices, n = _Unbind.apply(self, *(params[name] for name in names)), len(names)
    # One after another as the model asks for them: autograd runs what was made last first, and a layer's sum has to start
    # before the layer below it is differentiated.
    for layer in range(len(slices) // n):
      earlier = None if before is None else [before[name][layer] for name in names]
      yield dict(zip(short, _Sum.apply(self, earlier, *slices[layer * n : (layer + 1) * n]), strict=True))

  def begin(self, x: Tensor) -> None:
    """Starts to sum `x` over the processes, in place, beside whatever the current stream does next."""
    with talking():
      self._under_way.append(dist.all_reduce(x, async_op=True))

  def finish(self) -> None:
    """What the current stream does next sees the sums that were begun."""
    with talking():
      for work in self._under_way:
        work.wait()
    self._under_way.clear()

  def maximum(self, x: Tensor) -> None:
    """The largest over the processes, element by element, in place."""
    with talking():
      dist.all_reduce(x, dist.ReduceOp.MAX)

  def complete(self, gradients: Params, amax: Tensor | None, sums: list[Tensor]) -> list[Tensor]:
    """Sums what `layers` has not: the other gradients, in place of theirs, and 0-d figures; takes the largest amaxes.

    Returns:
      The summed figures in FP64, and last the number of processes that ask for a boundary.
    """
    rest = [name for name in gradients if not name.startswith('blocks.')]
    bucket = torch.cat([gradients[name].flatten() for name in rest])
    figures = torch.stack([x.double() for x in (*sums, self._asks)])
    self.begin(bucket)
    self.begin(figures)
    if amax is not None:
      self.maximum(amax)
    self.finish()
    parts = bucket.split([gradients[name].numel() for name in rest])
    gradients.update({name: part.view(gradients[name].shape) for name, part in zip(rest, parts, strict=True)})
    return list(figures.unbind())


class _Unbind(torch.autograd.Function):
  """Stacked parameters to slices, layer after layer; backward waits for the sums of all layers."""

  @staticmethod
  def forward(ctx, reduction, *stacked):
    ctx.reduction, ctx.n = reduction, len(stacked)
    return tuple(p for layer in zip(*(p.unbind(0) for p in stacked), strict=True) for p in layer)

  @staticmethod
  def backward(ctx, *gradients):
    ctx.reduction.finish()
    return None, *(torch.stack(gradients[i :: ctx.n]) for i in range(ctx.n))


class _Sum(torch.autograd.Function):
  """One layer's parameters, unchanged; backward begins the sum of their gradients, as one bucket."""

  @staticmethod
  def forward(ctx, reduction, before, *params):
    ctx.reduction, ctx.before = reduction, before
    return tuple(p.view_as(p) for p in params)

  @staticmethod
  def backward(ctx, *gradients):
    own = gradients if ctx.before is None else torch._foreach_add(gradients, ctx.before)
    bucket = torch.cat([g.flatten() for g in own])
    ctx.reduction.begin(bucket)
    parts = bucket.split([g.numel() for g in gradients])
    return None, None, *(part.view(g.shape) for part, g in zip(parts, gradients, strict=True))
