"""What sharding_test.py starts through torchrun: the same steps with the optimizer's state whole and divided, and checkpoints.

Usage: torchrun ... sharding_worker.py FOLDER BEFORE; BEFORE is the number of processes whose checkpoints in FOLDER are gone on
from. Checkpoints are FOLDER/CASE-WORLD, what each process came to is FOLDER/WORLD-RANK.pt.
"""

import dataclasses
import sys
from pathlib import Path

import torch

from tests import tiny
from tests.training.step_test import FP8, FP32, PARTS, TEXT, clone
from yxanul.kernels import fp8
from yxanul.optim.build import build
from yxanul.training.checkpoint import Checkpoints
from yxanul.training.checkpoint_shared import SharedCheckpoints
from yxanul.training.distributed import Reduction, join
from yxanul.training.sharding import WHOLE, sharding_for
from yxanul.training.state import flatten, init_state
from yxanul.training.step import is_fp8, make_train_step

# Three layers: 2 and 1 for two processes; 1, 1, 1 and none for four.
FIELDS = {'model__n_layers': 3, 'training__shard_optimizer': True, 'optimizer__muon__row_normalization': True}
CASES = {'adamw': FP32, 'muon': FP32, 'fp8': FP8, 'inherits': FP32}


def case(name: str):
  """Specification, stage, optimizer, engines and the fresh FP8 state of a case."""
  engines = CASES[name]
  spec = tiny.spec(**FIELDS, precision__matmul='fp8' if is_fp8(engines) else 'fp32')
  if name == 'muon':
    blocks, *others = spec.optimizer.groups
    groups = (dataclasses.replace(blocks, optimizer='muon'), *others)
    spec = dataclasses.replace(spec, optimizer=dataclasses.replace(spec.optimizer, groups=groups))
  if name == 'inherits':
    spec = dataclasses.replace(spec, optimizer=dataclasses.replace(spec.optimizer, inheritance=0.7))
  optimizer = build(spec.optimizer, spec.model, PARTS)
  return spec, spec.curriculum.stages[3], optimizer, engines


def fresh(name: str, own=lambda params: params, seed: int = 0):
  spec, _, optimizer, engines = case(name)
  fp8_state = fp8.init(spec.model, spec.precision) if is_fp8(engines) else {}
  state = init_state(spec, optimizer, fp8_state, torch.device('cpu'), own, PARTS)
  for leaf in state.params.values():
    leaf.add_(seed)
  return state


def train(name: str, state, sharding, processes, steps: int, reduction):
  """The state after so many steps, and their metrics; each step has its own text."""
  spec, stage, optimizer, engines = case(name)
  step = make_train_step(spec, stage, optimizer, engines, TEXT, reduction=reduction, sharding=sharding)
  metrics = []
  for _ in range(steps):
    generator = torch.Generator().manual_seed(int(state.step))
    tokens = torch.randint(0, 512, (stage.batch_size, stage.seq_len + 1), generator=generator, dtype=torch.int32)
    state, after = step(state, tokens.chunk(processes.world)[processes.rank], torch.tensor(1e-2), torch.tensor(0.5))
    metrics.append(after._asdict())
  return state, metrics


def main(folder: Path, before: str) -> None:
  torch.set_num_threads(1)
  with join() as processes:
    reduction, results = Reduction(processes.world, torch.device('cpu')), {}
    for name in CASES:
      sharding = sharding_for(case(name)[0], processes)

      def checkpoints(world, name=name, sharding=sharding):
        own = Checkpoints(folder / f'{name}-{world}', 3) if processes.first else None
        return SharedCheckpoints(processes, own, sharding)

      whole, whole_metrics = train(name, fresh(name), WHOLE, processes, 3, reduction)
      state, metrics = train(name, fresh(name, sharding.own), sharding, processes, 3, reduction)
      saved = checkpoints(processes.world)
      saved.save(state, {'rank': processes.rank})
      saved.wait()
      ours = {'whole': clone_leaves(whole), 'whole_metrics': whole_metrics, 'state': clone_leaves(state), 'metrics': metrics}
      again = fresh(name, sharding.own, seed=1)
      assert checkpoints(before).restore(again)[0]['rank'] == 0
      ours['restored'] = clone_leaves(again)
      later, ours['next_metrics'] = train(name, again, sharding, processes, 2, reduction)
      _, ours['next_whole_metrics'] = train(name, whole, WHOLE, processes, 2, reduction)
      rolled = checkpoints(f'{processes.world}-rolled')
      rolled.save(state, {'step': 3})
      rolled.save(later, {'step': 5})
      assert rolled.restore(later, before=5)[0]['step'] == 3
      ours['rolled_back'] = clone_leaves(later)
      results[name] = ours
    torch.save(results, folder / f'{processes.world}-{processes.rank}.pt')


def clone_leaves(state) -> dict[str, torch.Tensor]:
  return flatten(clone(state))


if __name__ == '__main__':
  main(Path(sys.argv[1]), *sys.argv[2:])
