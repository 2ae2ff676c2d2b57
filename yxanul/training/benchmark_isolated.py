"""One kernel by itself, beside its peers and its floor: which cases there are, and the figures that come of them."""

from collections.abc import Callable
from typing import Any

import torch

from yxanul.config.model_spec import ModelSpec
from yxanul.kernels.bench import attention, casts, measure, vocab_loss
from yxanul.training import benchmark_inheritance, benchmark_optimizer

Result = dict[str, Any]

KERNELS = {
  'vocab-loss': vocab_loss.cases,
  'attention-short': attention.short_cases,
  'attention-long': attention.long_cases,
  'casts': casts.cases,
  'optimizer': benchmark_optimizer.cases,
  'inheritance': benchmark_inheritance.cases,
}


def measure_kernel(
  name: str, model: ModelSpec, n_tokens: int, device: torch.device, save: Callable[[Result], None], tell: Callable[[str], None]
) -> Result:
  """'tokens', 'rates', 'rows' (as `measure.measure` gives them) and 'figures', for one of KERNELS.

  Args:
    save: takes the result as far as it is, after each row.
    tell: takes a line about each subject.
  """
  rates = measure.rates(device)
  result = {'tokens': n_tokens, 'rates': rates._asdict(), 'rows': []}
  for case in KERNELS[name](model, n_tokens, device):
    result['rows'].append(measure.measure(case, device, rates, tell))
    result |= {'n': result['rows'][-1]['subjects']['ours'].get('n'), 'figures': figures(result['rows'])}
    save(result)
  return result


def figures(rows: list[measure.Row]) -> dict[str, Result]:
  """`ms_KEY`, `floor_ms_KEY` and `peer_NAME_ms_KEY` of every row; of the last, the shape that counts, without its key too.

  The spread is the 90th percentile less the 10th.
  """
  result = {}
  for row in rows:
    own = {'floor_ms': {'value': row['floor_ms'], 'unit': 'ms'}}
    for name, times in row['subjects'].items():
      if 'ms' in times:
        spread = times['ms_p90'] - times['ms_p10']
        own['ms' if name == 'ours' else f'peer_{name}_ms'] = {'value': times['ms'], 'unit': 'ms', 'spread': spread}
    result |= {f'{name}_{row["key"]}': figure for name, figure in own.items()}
  return own | result
