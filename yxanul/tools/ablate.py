"""Measures what each saving gives, alone and in the stack, on this device.

Command: python -m yxanul.tools.ablate --config=experiments/ultra.py:gpu=h200,batch=0.125,source=PATH --seconds=120
  --rates=3e-4,6e-4,1.2e-3,2.4e-3 --workdir=runs/ablate
Runs the baseline, the baseline with each saving alone, the experiment, the experiment with each saving off, two strong
baselines, and the baseline with parts of the model that claims are about; each for `--seconds` of training, annealed to its
own end, on the same text. What is finished is skipped and what was stopped goes on, so the same command may be given as often
as it takes; tables and page are written anew after every run. Another `--seconds` in the same workdir adds a budget to the
trend. The variant and every --config.FIELD=VALUE go to all runs (but the tokenizer's fields, to those with the experiment's
tokenizer); so it is data.source, evaluation.max_bytes and the like that belong here. A short run wants small batches
(`batch=0.125`): one with few steps says little. Text is prepared once for each tokenizer, in a folder with its name inside
data.directory or WORKDIR/data, without `data.min_document_tokens`, before anything is timed; where every run is finished none
is. With `--rates` each strong baseline first runs at every one of them for `--rate_seconds`, and takes the best into the table.
Finished runs keep their logs and results, not their checkpoints.
"""

import difflib
import platform
import re
import shlex
import sys
from pathlib import Path

from absl import flags

from yxanul.config import cli
from yxanul.config.status import EXIT_AGAIN

_WORKDIR = flags.DEFINE_string('workdir', None, 'Keeps the runs, their speeds, the data, the tables and the page.')
_SECONDS = flags.DEFINE_float('seconds', None, 'Of training, for every run; compiling is counted apart.')
_SEEDS = flags.DEFINE_integer('seeds', 1, 'Runs of each experiment.', lower_bound=1)
_FIRST_SEED = flags.DEFINE_integer(
  'first_seed', 0, 'Of those: seeds may be divided over machines, their run folders put together later.', lower_bound=0
)
_ONLY = flags.DEFINE_string(
  'only', '', 'These experiments alone, of the family or any other beside it: ultra,ultra_no_fp8,ultra_curriculum:shape=late.'
)
_RATES = flags.DEFINE_list('rates', [], 'Peak learning rates among which that of each strong baseline is chosen.')
_RATE_SECONDS = flags.DEFINE_float(
  'rate_seconds', None, 'Of training, for each of those trials; without it a quarter of --seconds.'
)
_BASELINE_TOKENIZER = flags.DEFINE_string(
  'baseline_tokenizer',
  '',
  "Folder of GPT-2's tokenizer, for those that do not have the experiment's; '': the hub's.",
)
flags.adopt_module_key_flags(cli)


def _only(folder: Path) -> list[str]:
  """The names that --only gives; a comma inside a variant is followed by its key."""
  names = re.split(r',(?![^,:]*=)', _ONLY.value)
  known = sorted(path.stem for path in folder.glob('[!_]*.py'))
  for name in names:
    if name.partition(':')[0] not in known:
      near = difflib.get_close_matches(name, known, n=1)
      hint = f'did you mean {near[0]!r}?' if near else f'known: {", ".join(known)}'
      raise ValueError(f'--only: got {name!r}, no experiment in {folder}; {hint}')
  return names


def _rates() -> list[float]:
  try:
    rates = [float(text) for text in _RATES.value]
  except ValueError:
    rates = [0.0]
  if not all(0 < rate < 1 for rate in rates):
    raise ValueError(f'--rates: got {",".join(_RATES.value)!r}, wants learning rates, such as 3e-4,6e-4,1.2e-3')
  return rates


def _tell(line: str) -> None:
  print(line, flush=True)


def main() -> int | None:
  experiment, spec = cli.experiment(), cli.spec()[1]
  if not _WORKDIR.value:
    raise ValueError('--workdir: missing, wants the folder that keeps the runs, such as runs/ablate')
  if not _SECONDS.value or _SECONDS.value < 0:
    raise ValueError(f'--seconds: got {_SECONDS.value}, wants the seconds of training of every run, such as --seconds=120')
  if _RATE_SECONDS.value is not None and not _RATE_SECONDS.value > 0:
    raise ValueError(f'--rate_seconds: got {_RATE_SECONDS.value:g}, wants the seconds of training of every trial')
  only, rates = _only(experiment.parent) if _ONLY.value else None, _rates()
  from yxanul.study import ablation

  workdir, stem, specs = Path(_WORKDIR.value), experiment.stem, {}
  for name in only or ablation.family(experiment):
    file, _, variant = name.partition(':')
    specs[name] = cli.spec_beside(f'{experiment.with_name(file)}.py:{variant}')
  # What needs torch is imported now: it takes seconds, and no mistake in a flag should wait for it.
  from yxanul.reporting import ablation_page, tables
  from yxanul.study import members
  from yxanul.study.ablation_run import Ablation
  from yxanul.study.apart import listening
  from yxanul.training.stop import Stopped

  everybody = [members.Member(name, its) for name, its in [(stem, spec), *specs.items()]]  # the first one's text is everybody's
  asked = Ablation(
    stem=stem,
    model=spec.model,
    members=members.on_one_text(everybody, workdir / 'data', _BASELINE_TOKENIZER.value)[1:],
    seeds=range(_FIRST_SEED.value, _FIRST_SEED.value + _SEEDS.value),
    seconds=_SECONDS.value,
    rates=rates,
    rate_seconds=_RATE_SECONDS.value or _SECONDS.value / 4,
    workdir=workdir,
    envelope={
      'what': 'ablate',
      'command': shlex.join(['python', '-m', 'yxanul.tools.ablate', *sys.argv[1:]]),
      'versions': {'python': platform.python_version()},
    },
  )
  workdir.mkdir(parents=True, exist_ok=True)
  failures, stopped = [], None
  try:
    with listening() as apart:
      failures = asked.run(apart, _tell)
  except Stopped as request:
    stopped = request
  if result := asked.write():
    for table in ablation_page.command_line_tables(result):
      tables.print_table(table)
    for note in result['notes']:
      _tell(f'note: {note}')
    _tell(f'page: {members.budget_folder(workdir, _SECONDS.value) / "index.html"}')
  if stopped:
    _tell(f'{stopped}: stopped; the same command goes on from here')
    return EXIT_AGAIN
  for failure in failures:
    print(f'error: {failure}', file=sys.stderr)
  return 1 if failures else None


if __name__ == '__main__':
  cli.run(main)
