"""Pages over finished and unfinished runs: python -m yxanul.tools.report RUN [RUN ...].

One workdir: its report.html, rebuilt from what the run left there. Several: one page that compares them, with every plot
beside it as a PNG; the first is what the others are measured by.
"""

from pathlib import Path

from absl import flags

from yxanul.config import cli

_OUTPUT = flags.DEFINE_string('output', 'runs/comparison', 'Folder of the comparison of several runs.')


def main(workdirs: list[str]) -> None:
  from yxanul.reporting.comparison import write_comparison
  from yxanul.reporting.report import write_report

  if not workdirs:
    raise ValueError('RUN: missing, wants the workdir of a run, or several to compare: runs/a runs/b')
  paths = [Path(workdir) for workdir in workdirs]
  print(write_report(paths[0]) if len(paths) == 1 else write_comparison(paths, Path(_OUTPUT.value)))


if __name__ == '__main__':
  cli.run(main, takes_arguments=True)
