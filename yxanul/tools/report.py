"""Rebuilds WORKDIR/report.html from what the run left there: python -m yxanul.tools.report --workdir=runs/quickstart."""

from pathlib import Path

from absl import flags

from yxanul.config import cli
from yxanul.reporting.report import write_report

_WORKDIR = flags.DEFINE_string('workdir', None, 'The workdir of a run, finished or not.')


def main() -> None:
  if _WORKDIR.value is None:
    raise ValueError('--workdir: missing, wants the workdir of a run')
  print(write_report(Path(_WORKDIR.value)))


if __name__ == '__main__':
  cli.run(main)
