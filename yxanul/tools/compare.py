"""Compares two experiments with paired seeds: bits per byte at equal time, seconds to equal quality, and a verdict if any.

Command: python -m yxanul.tools.compare experiments/ultra.py experiments/ultra_muon.py --seconds=120 --seeds=3
  --workdir=runs/compare --set=data.source=PATH
A and B are experiments, with their variants (experiments/ultra.py:gpu=h200), or folders of finished runs (a workdir, or a
folder of workdirs, one a seed). Experiments are trained, each seed of both on the same text (without
`data.min_document_tokens`, which another tokenizer counts otherwise), for `--seconds` of training or, without it, for the
tokens that they say; runs that stopped go on, finished ones are kept. A verdict is given only when the 95 % interval of the
difference allows one, so it takes two seeds at least, and more when they are close.
"""

import itertools
import platform
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from absl import flags

from yxanul.config import cli, convert, json_flag, registry
from yxanul.config.spec import ExperimentSpec
from yxanul.config.status import EXIT_AGAIN

_WORKDIR = flags.DEFINE_string('workdir', 'runs/compare', 'Keeps the runs, their speeds, the data and the page.')
_SECONDS = flags.DEFINE_float('seconds', 0.0, 'Of training, for every run; 0: the tokens that each experiment says.')
_SEEDS = flags.DEFINE_integer('seeds', 3, 'Pairs of runs.', lower_bound=1)
_SET = flags.DEFINE_multi_string('set', [], 'FIELD=VALUE for both experiments, as --config.FIELD=VALUE elsewhere; repeatable.')
flags.adopt_module_key_flags(json_flag)


def _tell(line: str) -> None:
  print(line, flush=True)


def _spec(argument: str) -> ExperimentSpec:
  config = registry.load(argument)
  cli.override(config, _SET.value)
  return convert.from_config(config)


def _names(arguments: list[str]) -> list[str]:
  """Short ones, where those tell the two apart: 'ultra:batch=0.5'."""
  short = []
  for argument in arguments:
    path, colon, variant = argument.partition(':')
    short.append(f'{Path(path).stem if path.endswith(".py") else Path(path).name}{colon}{variant}')
  return short if short[0] != short[1] else arguments


def _trained(specs: dict[str, ExperimentSpec], workdir: Path) -> tuple[list[str], list[dict]]:
  """Trains both experiments; their names and their runs by seed."""
  from yxanul.study import members, texts, training
  from yxanul.study.apart import listening

  chosen = members.on_one_text([members.Member(name, spec) for name, spec in specs.items()], workdir / 'data')
  workdir.mkdir(parents=True, exist_ok=True)
  with listening() as apart:
    ready, failures = texts.prepare(chosen, workdir, apart, _tell)
    for failure in itertools.chain(failures, training.train(ready, range(_SEEDS.value), _SECONDS.value, workdir, apart, _tell)):
      if failure:
        raise ValueError(failure)
  names, found = [member.folder for member in chosen], members.finished(workdir, _SECONDS.value)
  return names, [found[name] for name in names]


def main(arguments: list[str]) -> int | None:
  with json_flag.output() as write:
    return _compare(arguments, write)


def _compare(arguments: list[str], write: Callable[[dict], None]) -> int | None:
  if len(arguments) != 2:
    raise ValueError(f'A B: got {len(arguments)} of them, wants two experiments (experiments/NAME.py) or two folders of runs')
  if _SECONDS.value < 0:
    raise ValueError(f'--seconds: got {_SECONDS.value:g}, wants a positive number, or 0 for the tokens of each experiment')
  experiments = [argument for argument in arguments if argument.partition(':')[0].endswith('.py')]
  names = _names(arguments)
  specs = {name: _spec(argument) for name, argument in zip(names, experiments, strict=False)}
  if len(experiments) == 1:
    raise ValueError(f'{arguments[0]}, {arguments[1]}: wants two experiments or two folders of runs, not one of each')
  if len(specs) < len(experiments):
    raise ValueError(f'{arguments[1]}: the same experiment twice, wants two')
  # What needs torch is imported later: it takes seconds, and no mistake in a flag should wait for it.
  from yxanul.reporting import tables
  from yxanul.reporting.comparison import MOST_RUNS, write_comparison
  from yxanul.reporting.comparison_tables import pair_table
  from yxanul.study import comparison_run
  from yxanul.training.stop import Stopped

  workdir = Path(_WORKDIR.value)
  try:
    if experiments:
      names, runs = _trained(specs, workdir)
    else:
      runs = [comparison_run.runs_of(Path(argument)) for argument in arguments]
  except Stopped as stopped:
    _tell(f'{stopped}: stopped; the same command goes on from here')
    return EXIT_AGAIN
  result = {
    'what': 'compare',
    'command': shlex.join(['python', '-m', 'yxanul.tools.compare', *sys.argv[1:]]),
    'hardware': next(iter(runs[0].values())).result['hardware'],
    'versions': {'python': platform.python_version(), **next(iter(runs[0].values())).result['versions']},
    **comparison_run.compared(*names, *runs),
  }
  shown = [result['pairs'][i]['seed'] for i in range(min(result['n'], MOST_RUNS // 2))]
  page = write_comparison(
    [side[seed].workdir for seed in shown for side in runs],
    workdir / '-'.join(Path(name).name for name in names),
    result['verdict'],
  )
  write(result)
  tables.print_table(pair_table(result))
  for note in result['notes']:
    _tell(f'note: {note}')
  _tell(result['verdict'])
  _tell(f'page: {page}')


if __name__ == '__main__':
  cli.run(main, takes_arguments=True)
