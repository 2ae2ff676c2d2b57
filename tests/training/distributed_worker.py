"""What distributed_test.py starts through torchrun: training steps on this process's rows, kept for comparison.

Usage: torchrun ... distributed_worker.py FOLDER. Alone (no torchrun) it takes the whole batch.
"""

import itertools
import sys
from pathlib import Path

import torch

from tests.training.step_test import FP8, FP32, TEXT, make
from yxanul.optim.build import build
from yxanul.training.distributed import Reduction, join
from yxanul.training.state import flatten, init_state
from yxanul.training.step import calibrate, is_fp8, make_train_step


def main(folder: Path) -> None:
  torch.set_num_threads(1)
  with join() as processes:
    reduction = Reduction(processes.world, torch.device('cpu')) if processes.world > 1 else None
    results = {}
    for engines, pieces in itertools.product((FP32, FP8), (1, 2)):
      spec, stage, state, _, tokens = make(engines)
      optimizer = build(spec.optimizer, spec.model)
      size = stage.tokens_per_step // processes.world
      own = tokens[processes.rank * size : (processes.rank + 1) * size + 1]
      if is_fp8(engines):
        fresh = {'scale': torch.ones_like(state.fp8_state['scale']), 'amax_history': state.fp8_state['amax_history'] * 0}
        state = init_state(spec, optimizer, fresh, torch.device('cpu'))
        state = calibrate(state, own, stage, spec, engines, TEXT, reduction=reduction)
      step = make_train_step(spec, stage, optimizer, engines, TEXT, pieces, reduction=reduction)
      steps = []
      for turn in range(3):
        if reduction and turn == 2 and processes.rank == 1:
          reduction.stop.fill_(1)
        state, metrics = step(state, own, torch.tensor(1e-3), torch.tensor(0.5))
        steps.append(metrics._asdict())
        if turn == 0:
          first = {path: leaf.clone() for path, leaf in flatten(state).items()}
      if reduction:
        reduction.stop.zero_()
      # One process with a gradient that is not finite: no process may take the step.
      broken = {name: p.clone() for name, p in state.params.items()}
      if processes.rank == processes.world - 1:
        broken['final_norm.weight'].fill_(1e38)
      before = {path: leaf.clone() for path, leaf in flatten(state.opt_state).items()}
      after, metrics = step(state._replace(params=broken), own, torch.tensor(1e-3), torch.tensor(0.5))
      same = all(torch.equal(leaf, before[path]) for path, leaf in flatten(after.opt_state).items())
      results[engines.linear, pieces] = {
        'first': first,
        'state': flatten(state._replace(opt_state=after.opt_state)),
        'steps': steps,
        'skipped': metrics.skipped,
        'untouched': same,
      }
    torch.save(results, folder / f'{processes.world}-{processes.rank}.pt')


if __name__ == '__main__':
  main(Path(sys.argv[1]))
