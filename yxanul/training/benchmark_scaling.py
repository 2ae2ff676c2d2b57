"""How much faster several processes train than one: each of them alone first, then all together at as many times the batch.

The rows of one GPU are the same in both, so the ratio of the tokens/s is what the sums between the GPUs leave of their number.
All measure alone at the same time: a machine whose GPUs share its power and its host is no faster for the one.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from yxanul.config.spec import ExperimentSpec
from yxanul.data.prepare import Prepared
from yxanul.kernels.capabilities import Capabilities
from yxanul.training import benchmark
from yxanul.training.distributed import Processes

Row = dict[str, Any]
SHORTEST = 64  # tokens a row; in the stages below, a step is too short for what is promised
_NUMBERS = {2: 'two', 4: 'four', 8: 'eight'}


def measure(
  spec: ExperimentSpec,
  stages: Sequence[int],
  prepared: Prepared,
  capabilities: Capabilities,
  effort: benchmark.Effort,
  processes: Processes,
  tell: Callable[[str], None] = lambda line: None,
  save: Callable[[Row], None] = lambda result: None,
) -> Row:
  """'alone' and 'together' as `benchmark.measure` gives them, 'ratios' of their tokens/s, 'figures' of a record.

  Args:
    tell, save: as `benchmark.measure`.

  Raises:
    ValueError: as `benchmark.measure`.
  """
  result: Row = {}

  def keep(name: str) -> Callable[[Row], None]:
    return lambda measured: save(result | {name: measured})

  tell('each process alone')
  result['alone'] = benchmark.measure(spec, stages, prepared, capabilities, effort, tell, keep('alone'))
  tell(f'{processes.world} processes together, {processes.world} times the batch')
  spec = enlarged(spec, processes.world)
  result['together'] = benchmark.measure(spec, stages, prepared, capabilities, effort, tell, keep('together'), processes)
  result['ratios'] = benchmark.ratios(result['together'], result['alone'])
  return {'figures': figures(result), **result}


def enlarged(spec: ExperimentSpec, times: int) -> ExperimentSpec:
  """Every stage of the table with so many times the rows; `curriculum.batch_size = 'max'` finds its own."""
  stages = tuple(dataclasses.replace(stage, batch_size=times * stage.batch_size) for stage in spec.curriculum.stages)
  return dataclasses.replace(spec, curriculum=dataclasses.replace(spec.curriculum, stages=stages))


def figures(result: Row) -> dict[str, Row]:
  """The ratio of every stage; of a whole schedule the smallest, too, from rows of SHORTEST tokens on."""
  world = result['together']['processes']
  name = f'{_NUMBERS.get(world, world)}_gpu_speedup'
  rows = result['ratios']['stages']
  found = {f'{name}_{row["seq_len"]}': {'value': row['ratio'], 'unit': 'times'} for row in rows}
  if result['ratios']['complete'] and (long := [row['ratio'] for row in rows if row['seq_len'] >= SHORTEST]):
    found[f'{name}_min'] = {'value': min(long), 'unit': 'times'}
  return found
