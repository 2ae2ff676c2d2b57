"""Trains an experiment: python -m yxanul.main --config=experiments/NAME.py[:key=value,...] --workdir=runs/NAME."""

from yxanul.training import stop

if __name__ == '__main__':
  stop.listen()  # first of all: whoever presses Ctrl-C while the imports take their second wants no traceback

import dataclasses
import json
from pathlib import Path

from absl import flags

from yxanul.config import cli, registry


class _Listing(flags.ArgumentParser):
  """`--list` alone is a table; `--list=json` is for programs."""

  def parse(self, argument: str) -> str:
    if argument not in ('', 'true', 'json'):
      raise ValueError('wants --list or --list=json')
    return argument


_WORKDIR = flags.DEFINE_string('workdir', None, 'Where the run keeps everything it writes; a second run there goes on.')
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Show parameters, stages, rates and memory; train nothing.')
_PRICE = flags.DEFINE_float('price', None, 'Dollars an hour of this machine; the display counts them.', lower_bound=0)
_LIST = flags.DEFINE_flag(
  flags.Flag(_Listing(), None, 'list', '', 'List the experiments, as a table or as json.', boolean=True)
)
flags.adopt_module_key_flags(cli)


def _list(form: str) -> None:
  rows = [dataclasses.asdict(entry) for entry in registry.entries()]
  if form == 'json':
    print(json.dumps(rows, indent=1))
    return
  from yxanul.reporting import tables

  tables.print_table(tables.registry_table(rows))


def main() -> int | None:
  if _LIST.value:
    return _list(_LIST.value)
  spec = cli.spec()[1]
  # Only now: torch takes seconds to import, and neither --list nor a mistake in a flag should wait for it.
  from yxanul import run

  if _DRY_RUN.value:
    return run.dry_run(spec)
  if not _WORKDIR.value:
    raise ValueError('--workdir: missing, wants the folder that the run writes to, such as runs/' + spec.name)
  return run.run(spec, Path(_WORKDIR.value), _PRICE.value)


if __name__ == '__main__':
  cli.run(main)
