"""What distributed_test.py starts through torchrun: training steps on this process's rows, kept for comparison.

Usage: torchrun ... distributed_worker.py FOLDER, or FOLDER MATMUL OPTIMIZER for captured steps on GPUs. Alone (no torchrun) it
takes the whole batch.
"""

import dataclasses
import itertools
import math
import sys
from pathlib import Path

import torch

from tests import tiny
from tests.training.step_test import FP8, FP32, PARTS, TEXT, clone, make
from yxanul.kernels import fp8
from yxanul.kernels.capabilities import choose_engines, detect
from yxanul.optim.build import build
from yxanul.training.curriculum import Curriculum
from yxanul.training.distributed import Reduction, join
from yxanul.training.graphs import StepCache
from yxanul.training.sharding import WHOLE, Sharding
from yxanul.training.state import flatten, init_state
from yxanul.training.step import Text, calibrate, is_fp8, make_train_step


def main(folder: Path) -> None:
  torch.set_num_threads(1)
  with join() as processes:
    reduction = Reduction(processes.world, torch.device('cpu')) if processes.world > 1 else None
    results = {}
    for engines, pieces, n_layers in itertools.product((FP32, FP8), (1, 2), (1, 2)):
      if (pieces, n_layers) == (1, 1):
        continue
      spec, stage, state, _, tokens = make(engines)
      stage = dataclasses.replace(stage, n_layers=n_layers)
      optimizer = build(dataclasses.replace(spec.optimizer, inheritance=0.7), spec.model, PARTS)
      own = tokens.chunk(processes.world)[processes.rank]
      if is_fp8(engines):
        fresh = {'scale': torch.ones_like(state.fp8_state['scale']), 'amax_history': state.fp8_state['amax_history'] * 0}
        state = init_state(spec, optimizer, fresh, torch.device('cpu'))
        state = calibrate(state, own, stage, spec, engines, TEXT, reduction=reduction)
      step = make_train_step(spec, stage, optimizer, engines, TEXT, pieces, reduction=reduction)
      steps = []
      for turn in range(3):
        if reduction and turn == 2 and processes.rank == 1:
          reduction.ask(True)
        state, metrics = step(state, own, torch.tensor(1e-3), torch.tensor(0.5))
        steps.append(metrics._asdict())
        if turn == 0:
          first = {path: leaf.clone() for path, leaf in flatten(state).items()}
      if reduction:
        reduction.ask(False)
      # One process with a gradient that is not finite: no process may take the step.
      broken = {name: p.clone() for name, p in state.params.items()}
      if processes.rank == processes.world - 1:
        broken['final_norm.weight'].fill_(1e38)
      before = {path: leaf.clone() for path, leaf in flatten(state.opt_state).items()}
      after, metrics = step(state._replace(params=broken), own, torch.tensor(1e-3), torch.tensor(0.5))
      same = all(torch.equal(leaf, before[path]) for path, leaf in flatten(after.opt_state).items())
      results[engines.linear, pieces, n_layers] = {
        'first': first,
        'state': flatten(state._replace(opt_state=after.opt_state)),
        'steps': steps,
        'skipped': metrics.skipped,
        'untouched': same,
      }
    results['from_each'] = processes.from_each([processes.rank, math.inf])
    torch.save(results, folder / f'{processes.world}-{processes.rank}.pt')


def on_gpus(folder: Path, matmul: str, kind: str) -> None:
  """Twenty captured steps of one stage after another, with NCCL's sums inside the graphs; by several processes twice, the
  second time with the optimizer's state divided."""
  spec = tiny.spec(precision__matmul=matmul, model__head_dim=64, model__d_model=64, model__d_hidden=64, model__n_layers=3)
  blocks, *others = spec.optimizer.groups
  groups = (dataclasses.replace(blocks, optimizer=kind), *others)
  spec = dataclasses.replace(spec, optimizer=dataclasses.replace(spec.optimizer, groups=groups))
  with join() as processes:
    results = {'whole': captured_steps(spec, processes, WHOLE)}
    if processes.world > 1:
      results['divided'] = captured_steps(spec, processes, Sharding(processes.rank, processes.world))
    torch.save(results, folder / f'{processes.world}-{processes.rank}.pt')


def captured_steps(spec, processes, sharding):
  """Losses, how many stages were captured, what every process holds whole, on the CPU; nothing that holds a graph, and in it
  NCCL's communicator."""
  device = torch.device('cuda')
  engines = choose_engines(detect(), spec.precision, spec.model.embedding_rank)
  reduction = Reduction(processes.world, device) if processes.world > 1 else None
  text = Text(511, TEXT.token_bytes_V.to(device))
  optimizer, curriculum = build(spec.optimizer, spec.model), Curriculum(spec)

  def tokens(stage, seed=0):
    generator = torch.Generator().manual_seed(100 * stage.index + seed)
    whole = torch.randint(0, 512, (stage.spec.batch_size, stage.spec.seq_len + 1), generator=generator, dtype=torch.int32)
    return whole.chunk(processes.world)[processes.rank].to(device)

  def make(stage, compiled, reduction):
    pieces = 2 if stage.index == 5 else 1
    return make_train_step(spec, stage.spec, optimizer, engines, text, pieces, compiled, reduction, sharding)

  fp8_state = fp8.init(spec.model, spec.precision, device) if is_fp8(engines) else {}
  state = init_state(spec, optimizer, fp8_state, device, sharding.own)
  stages = [stage for stage in curriculum.stages if stage.spec.batch_size % 2 == 0]
  first = stages[0]
  if is_fp8(engines):
    state = calibrate(state, tokens(first), first.spec, spec, engines, text, reduction=reduction)
  cache = StepCache(make, 'graph', device, processes, reduction)
  cache.warm(stages, state, tokens, print)
  losses = []
  for turn in range(2):
    for stage in stages:
      state, metrics = cache(stage, state, tokens(stage, turn), 1e-3, 1.0)
      losses.append((metrics.loss.item(), metrics.nats.item(), metrics.grad_norm.item()))
  if sharding.world > 1:
    assert_saved_without_the_gpu(state, sharding, processes)
  shared = {path: leaf.cpu() for path, leaf in flatten(state._replace(opt_state=())).items()}
  return {'losses': losses, 'captured': cache.captured, 'shared': shared}


def assert_saved_without_the_gpu(state, sharding, processes):
  """A checkpoint's way out and back again takes none of its memory."""
  before, room = flatten(clone(state)), sharding.room(state)
  torch.cuda.reset_peak_memory_stats()
  used = torch.cuda.memory_allocated()
  whole = flatten(sharding.whole(state).opt_state)
  for path, leaf in flatten(room.opt_state).items() if processes.first else ():
    leaf.copy_(whole[path])
  for leaf in flatten(state.opt_state).values():
    leaf.zero_()
  sharding.divide(room, state, processes)
  assert torch.cuda.max_memory_allocated() == used
  for path, leaf in flatten(state).items():
    assert torch.equal(leaf, before[path]), path


if __name__ == '__main__':
  if len(sys.argv) == 2:
    main(Path(sys.argv[1]))
  else:
    on_gpus(Path(sys.argv[1]), *sys.argv[2:])
