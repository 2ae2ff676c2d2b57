"""Tells before it is paid for what a run takes: parameters, memory, speed, hours and dollars, on any of the known cards.

Command: python -m yxanul.tools.plan --config=experiments/ultra.py --gpu=h100 [--price=2.5] [--json=plan.json] [--plot=plan.png]

`--gpu` also chooses the experiment's variant of that name, where it has one; without it the plan is for the variant's card, or
the smallest that has config.training.gpu_memory_gb. Speeds are a roofline fitted to a bench on an H200
(yxanul/planning/speed.py); for other cards they are extrapolated, and the plan says so. Needs no GPU and no data.

  --check=bench.json   compare with what `tools.bench --json` measured on that card, as a record
  --fit=bench.json     print the roofline fitted to a bench, to be kept as yxanul/planning/fit.json
"""

import dataclasses
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags

from yxanul.config import cli, json_flag
from yxanul.config.spec import ExperimentSpec

_GPU = flags.DEFINE_string('gpu', None, 'The card: rtx4090, a100-40, a100-80, h100, h200.')
_PRICE = flags.DEFINE_float('price', None, 'Dollars an hour of that card, beside the list of providers.', lower_bound=0)
_PLOT = flags.DEFINE_string('plot', None, 'Draw time and memory of the stages into this file (.png, .svg, .pdf).')
_CHECK = flags.DEFINE_string('check', None, 'Compare with the JSON of a bench on this card; the JSON is then a record.')
_FIT = flags.DEFINE_list('fit', [], 'Print the roofline fitted to the JSON of these benches (one for each format).')
flags.adopt_module_key_flags(cli)
flags.adopt_module_key_flags(json_flag)

Result = dict[str, Any]
Write = Callable[[Result], None]


def _read(flag: str, path: str) -> Result:
  from yxanul.planning import check

  try:
    bench = json.loads(Path(path).read_text(encoding='utf-8'))
  except ValueError as error:
    raise ValueError(f'--{flag}={path}: not readable as JSON ({error})') from None
  if field := check.missing(bench, check.FITTED if flag == 'fit' else check.CHECKED):
    raise ValueError(f'--{flag}={path}: not a bench of tools.bench --json, it lacks {field!r}')
  return bench


def _bench(flag: str, path: str) -> tuple[Result, Any]:
  """A bench and the card it ran on."""
  from yxanul.planning import gpus

  bench = _read(flag, path)
  card = gpus.by_name(bench['hardware'])
  if card is None:
    raise ValueError(f'--{flag}={path}: measured on {bench["hardware"]}, wants a bench of {", ".join(gpus.GPUS)}')
  return bench, card


def _fit(spec: ExperimentSpec, write: Write) -> None:
  from yxanul.planning import gpus, speed

  result: Result = {'record': '', 'gpu': gpus.MEASURED, 'formats': {}}
  for path in _FIT.value:
    bench, card = _bench('fit', path)
    if card.key != gpus.MEASURED:
      raise ValueError(f'--fit={path}: measured on {bench["hardware"]}, wants a bench of {gpus.GPUS[gpus.MEASURED].name}')
    where = str(Path(path).parent if Path(path).name == 'record.json' else path)
    result['record'] = ', '.join(filter(None, (result['record'], where)))
    for run in filter(lambda run: run and 'stages' in run, (bench, bench.get('against'))):
      ran = dataclasses.replace(spec, precision=dataclasses.replace(spec.precision, matmul=run['precision']))
      result['formats'][run['precision']] = speed.fit_shares(ran, run['stages'], card)
  print(json.dumps(result, indent=1))
  write(result)


def _check(spec: ExperimentSpec, write: Write) -> None:
  from yxanul.planning import check, plan
  from yxanul.reporting import plan_tables, tables

  bench, card = _bench('check', _CHECK.value)
  if _GPU.value not in (None, card.key):
    raise ValueError(f'--check={_CHECK.value}: measured on {bench["hardware"]}, the plan is for --gpu={_GPU.value}')
  made = plan.make(spec, _stages(spec, card), card)
  result = {
    'what': 'plan-check',
    'command': shlex.join(['python', '-m', 'yxanul.tools.plan', *sys.argv[1:]]),
    'hardware': bench['hardware'],
    'versions': bench['versions'],
    'n': bench['n'],
    'fitted_to': made['fitted_to'],
    **check.compare(made, bench),
  }
  write(result)
  tables.print_table(plan_tables.check_table(result))
  for name, figure in result['figures'].items():
    print(f'{name}: {100 * figure["value"]:.1f} %')


def _stages(spec: ExperimentSpec, card: Any, devices: int = 1) -> list[tuple[Any, int]]:
  """Every stage and its steps, with the batches that a run there would take."""
  from yxanul.planning import memory, plan
  from yxanul.training.curriculum import Curriculum, largest_batches

  spec, batches = plan.on_card(spec, card), None
  if spec.curriculum.batch_size == 'max':
    batches = largest_batches(spec, int(memory.USABLE_SHARE * plan.memory_limit(spec, card)), devices)
  return [(stage.spec, stage.n_steps) for stage in Curriculum(spec, batches).stages]


def _other_rates(spec: ExperimentSpec, card: Any) -> dict[str, float]:
  """Tokens/s without FP8 on this card, and with it on an H100: what claims are about."""
  from yxanul.planning import gpus, plan

  bf16 = dataclasses.replace(spec, precision=dataclasses.replace(spec.precision, matmul='bf16'))
  others = {'bf16': (bf16, card), 'h100': (cli.spec_of_variant('gpu', 'h100'), gpus.gpu('h100'))}
  made = {name: plan.make(other, _stages(other, its_card), its_card) for name, (other, its_card) in others.items()}
  return {name: other['total']['tokens_per_second'] for name, other in made.items()}


def _providers(spec: ExperimentSpec, card: Any) -> list[Result]:
  from yxanul.planning import gpus, plan

  offers = [*gpus.OFFERS, *([] if _PRICE.value is None else [gpus.Offer('--price', card.key, 1, _PRICE.value)])]
  return [plan.provider_row(spec, _stages, offer) for offer in offers]


def _show(plan: Result) -> None:
  from yxanul.planning import claims
  from yxanul.reporting import numbers, plan_tables, tables

  total = plan['total']
  for draw in (plan_tables.parameters_table, plan_tables.stage_table, plan_tables.memory_table, plan_tables.time_table):
    tables.print_table(draw(plan))
  tables.print_table(plan_tables.phase_table(plan, claims.PHASE_TOKENS if plan['claims'] else None))
  tables.print_table(plan_tables.provider_table(plan['providers'], claims=bool(plan['claims'])))
  if plan['claims']:
    tables.print_table(plan_tables.claims_table(plan['claims']))
  print(
    f'{plan["experiment"]} on {plan["gpu"]}, {plan["linears"]} linears: {numbers.count(total["tokens"])} tokens in '
    f'{numbers.duration(total["seconds"])} of training ({numbers.count(total["tokens_per_second"])} tokens/s, MFU '
    f'{numbers.percent(total["mfu"])}), {total["flops"]:.3g} FLOPs, {total["tokens_per_parameter"]:.1f} tokens a parameter'
  )
  for line in (
    *plan['notes'],
    f'speeds: shares of the peaks, fitted to {plan["fitted_to"]}; other cards are extrapolated',
    'training alone: preparing text, a minute of warming up and evaluations come on top',
  ):
    print(line)


def _check_plot() -> None:
  if _PLOT.value and not Path(_PLOT.value).absolute().parent.is_dir():
    raise ValueError(f'--plot={_PLOT.value}: the folder does not exist')
  if _PLOT.value and Path(_PLOT.value).suffix not in ('.png', '.svg', '.pdf'):
    raise ValueError(f'--plot={_PLOT.value}: wants a name that ends in .png, .svg or .pdf')


def main() -> None:
  spec = cli.spec()[1]
  _check_plot()
  with json_flag.output() as write:
    _plan(spec, write)


def _plan(spec: ExperimentSpec, write: Write) -> None:
  # torch stays out of all this: a plan is a matter of a second.
  from yxanul.planning import claims, gpus, plan

  if _GPU.value:
    gpus.gpu(_GPU.value)
    spec = cli.spec_of_variant('gpu', _GPU.value)
  if _FIT.value:
    return _fit(spec, write)
  if _CHECK.value:
    return _check(spec, write)
  card = gpus.gpu(_GPU.value or cli.variant('gpu') or gpus.fitting(spec.training.gpu_memory_gb))
  result = plan.make(spec, _stages(spec, card), card)
  result['claims'] = claims.checks(spec, result, _other_rates(spec, card)) if spec.name == 'ultra' else []
  result['providers'] = _providers(spec, card)
  if result['claims']:
    result['providers'] = claims.implied(result['providers'])
  if _PLOT.value:
    from yxanul.reporting import plan_plots

    plan_plots.save(result, Path(_PLOT.value))
  write(result)
  _show(result)


if __name__ == '__main__':
  cli.run(main)
