"""Looks at this machine, says what will run by what, and tries an experiment out before it is paid for.

Command: python -m yxanul.tools.doctor
         python -m yxanul.tools.doctor --config=experiments/ultra.py:gpu=h100,source=PATH --workdir=runs/ultra [--price=2.5]

With `--config` follows the pre-flight: the device, the disk, the data (prepared in WORKDIR/data if it is not yet, as the run
would), and twenty real steps of every stage against the plan for this card. Nothing stays in the workdir but the prepared data.
The exit status says whether the experiment can run: 0 yes, 1 no; 2 is a mistake in the command.
"""

import dataclasses
import platform
from pathlib import Path
from typing import Any

from absl import flags

from yxanul.config import cli, json_flag
from yxanul.config.model_spec import PrecisionSpec
from yxanul.config.spec import ExperimentSpec

_WORKDIR = flags.DEFINE_string('workdir', None, 'Where the run is going to be; default runs/NAME.')
_STEPS = flags.DEFINE_integer('steps', 20, 'Steps to take of every stage, after three that are not timed.', lower_bound=1)
_PRICE = flags.DEFINE_float('price', None, 'Dollars an hour of this machine, to tell what the run costs.', lower_bound=0)
flags.adopt_module_key_flags(cli)
flags.adopt_module_key_flags(json_flag)

Result = dict[str, Any]
EXIT_CANNOT_RUN = 1
_PURPOSE = {
  'transformer_engine': 'FP8 linears with fused casts on Hopper',
  'triton': 'the vocabulary loss, attention over short rows, fused kernels',
  'flash_attn': 'attention over long rows before Hopper',
  'cudnn': 'attention over long rows on Hopper',
}


def _machine(capabilities: Any, card: dict[str, str] | None) -> list[Result]:
  versions = dict(capabilities.versions)
  gpu = 'none' if card is None else f'{card["name"]}, {card["memory"]}, that torch cannot use'
  if capabilities.device == 'cuda':
    major, minor = capabilities.compute_capability
    gpu = f'{capabilities.name} (sm_{major}{minor}), {capabilities.memory_bytes / 1e9:.1f} GB'
  found = {
    'Python': platform.python_version(),
    'GPU': gpu,
    'driver': card['driver'] if card else '–',
    'CUDA': versions.get('cuda', '–'),
    'cuDNN': versions.get('cudnn', '–'),
    'torch': versions['torch'],
    **{name: versions.get(name, '–') for name in ('transformer_engine', 'triton', 'flash_attn')},
  }
  return [{'what': what, 'found': value} for what, value in found.items()]


def _missing(capabilities: Any, card: dict[str, str] | None) -> list[str]:
  """A line for each thing that a GPU's run could use, with what to type."""
  from yxanul.kernels.capabilities import INSTALL

  if capabilities.device != 'cuda':
    return [] if card is None else [f'torch sees no GPU, nvidia-smi does: {INSTALL["torch for CUDA"]}']
  return [f'{name} ({_PURPOSE[name]}): {why}: {INSTALL[name]}' for name, why in capabilities.missing]


def _engines(capabilities: Any, precision: PrecisionSpec, spec: ExperimentSpec | None) -> list[Result]:
  from yxanul.kernels.capabilities import choose_engines

  engines = choose_engines(capabilities, precision, *([spec.model.head_width] if spec else []))
  on_gpu = capabilities.device == 'cuda'
  measured = on_gpu and capabilities.has('triton') and precision.attention_engine == 'auto'
  attention = 'the fastest of all at every length, measured when the run starts' if measured else ''
  execution = (spec.training.execution if spec else 'graph') if on_gpu else 'eager'
  rows = [
    {'part': 'linears', 'engine': engines.linear, 'why': ''},
    {'part': 'attention', 'engine': engines.attention, 'why': attention},
    {'part': 'vocabulary loss', 'engine': engines.vocab_loss, 'why': ''},
    {'part': 'the step', 'engine': execution, 'why': '' if on_gpu else 'no GPU: nothing to capture'},
  ]
  return rows + [{'part': 'note', 'engine': '', 'why': note} for note in engines.notes]


def _preflight(spec: ExperimentSpec, workdir: Path, capabilities: Any, result: Result) -> list[Any]:
  """What was found, in order; it stops at what makes all that follows useless."""
  from yxanul.data import prepare
  from yxanul.reporting.phases import Phases
  from yxanul.training import loggers, preflight
  from yxanul.training.workdir import check_workdir

  data = Path(spec.data.directory) if spec.data.directory else workdir / 'data'
  found = []
  try:
    check_workdir(spec, workdir)
    loggers.require_loggers(spec.training.loggers)
    found += preflight.check_device(spec, capabilities)
    found += preflight.check_disk(spec, workdir, data, prepare.is_prepared(spec.data, data))
    if any(finding.level == 'problem' for finding in found):
      return found
    with Phases() as phases:
      prepared = prepare.prepare(spec.data, data, phases)
  except ValueError as error:
    return [*found, preflight.Finding('problem', str(error))]
  found.append(preflight.check_data(spec, prepared))
  result['steps'], more = preflight.check_steps(spec, prepared, capabilities, _STEPS.value, _tell)
  return found + more


def _tell(line: str) -> None:
  print(line, flush=True)


def _show_steps(spec: ExperimentSpec, steps: Result) -> None:
  from yxanul.reporting import bench_tables, numbers, plan_tables, tables
  from yxanul.training.curriculum import Curriculum

  tables.print_table(bench_tables.stage_table(steps))
  if steps['check']:
    tables.print_table(plan_tables.check_table(steps['check']))
  if steps['schedule'] and steps['schedule']['complete']:
    seconds = Curriculum(spec).total_tokens / steps['schedule']['tokens_per_second']
    price = '' if _PRICE.value is None else f', ${seconds / 3600 * _PRICE.value:,.2f}'
    print(f'the whole run at this speed: {numbers.duration(seconds)} of training{price}, evaluations apart')


def _examine(spec: ExperimentSpec | None) -> Result:
  # Whatever needs torch is imported late: it takes seconds, and no mistake in a flag should wait for it.
  from yxanul.kernels.capabilities import detect, driver
  from yxanul.reporting import doctor_tables, tables

  capabilities, card = detect(), driver()
  result: Result = {
    'machine': _machine(capabilities, card),
    'engines': _engines(capabilities, spec.precision if spec else PrecisionSpec(), spec),
    'missing': _missing(capabilities, card),
  }
  tables.print_table(doctor_tables.machine_table(result['machine']))
  tables.print_table(doctor_tables.engine_table(result['engines']))
  for line in result['missing']:
    print(f'missing: {line}')
  can_run = True
  if spec:
    found = _preflight(spec, Path(_WORKDIR.value or Path('runs') / spec.name), capabilities, result)
    result['findings'] = [dataclasses.asdict(finding) for finding in found]
    if 'stages' in result.get('steps', {}):
      _show_steps(spec, result['steps'])
    tables.print_table(doctor_tables.finding_table(result['findings']))
    can_run = all(finding.level != 'problem' for finding in found)
    print(f'{spec.name} {"can run here" if can_run else "cannot run here"}')
  return result | {'can_run': can_run}


def main() -> int:
  spec = cli.spec()[1] if flags.FLAGS['config'].value is not None else None
  with json_flag.output() as write:
    result = _examine(spec)
    write(result)
  return 0 if result['can_run'] else EXIT_CANNOT_RUN


if __name__ == '__main__':
  cli.run(main)
