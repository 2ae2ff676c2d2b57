"""Two experiments, seed by seed: trained if they are not, and what their difference is worth."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yxanul.reporting.run_files import RunFiles, read_run
from yxanul.study import pairs


def runs_of(folder: Path) -> dict[int, RunFiles]:
  """The finished runs of a workdir, or of the workdirs in a folder, by seed.

  Raises:
    ValueError: there is none, one is not finished, or a seed is there twice; one line that names it.
  """
  workdirs = [folder] if (folder / 'config.json').is_file() else sorted(p.parent for p in folder.glob('*/config.json'))
  if not workdirs:
    raise ValueError(f'{folder}: neither an experiment (experiments/NAME.py) nor a folder with finished runs')
  found: dict[int, RunFiles] = {}
  for workdir in workdirs:
    run = read_run(workdir)
    if run.result is None:
      raise ValueError(f'{workdir}: is not finished, wants the command that began it once more')
    if run.config['seed'] in found:
      raise ValueError(f'{workdir}: has seed {run.config["seed"]}, as {found[run.config["seed"]].workdir} has')
    found[run.config['seed']] = run
  return found


def compared(a: str, b: str, runs_a: Mapping[int, RunFiles], runs_b: Mapping[int, RunFiles]) -> dict[str, Any]:
  """Everything that the pairs say, as plain values: 'pairs', 'where', 'difference', 'speedup', 'verdict', 'notes', 'figures'.

  The difference is that of the final figures where both had the same text, and that at equal time where they had not.

  Raises:
    ValueError: no seed is in both, or the runs were scored on different text, or their times are of different machines and
      their texts of different sizes, so that nothing is left to compare.
  """
  seeds = [seed for seed in runs_a if seed in runs_b]
  if not seeds:
    raise ValueError(f'{a} has seeds {sorted(runs_a)}, {b} {sorted(runs_b)}: wants the same in both')
  sizes = {run.evaluations[-1]['val_bytes'] for seed in seeds for run in (runs_a[seed], runs_b[seed])}
  if len(sizes) > 1:
    shown = ' and '.join(f'{size:,}' for size in sorted(sizes))
    raise ValueError(f'{a}, {b}: scored on different text ({shown} bytes), wants the same evaluation.max_bytes and filters')
  rows = [{'seed': seed, **pairs.compare(runs_a[seed], runs_b[seed])} for seed in seeds]
  equal_text = all(row['equal_text'] for row in rows)
  hardware = {run.result['hardware'] for seed in seeds for run in (runs_a[seed], runs_b[seed])}
  if len(hardware) > 1:  # their times say nothing
    if not equal_text:
      raise ValueError(f'{a}, {b}: ran on {" and ".join(sorted(hardware))}, wants one machine, or equal text')
    rows = [row | {'speedup': None} for row in rows]
  where = 'at their ends, after equal text' if equal_text else 'at equal time'
  difference = pairs.interval([row['final_difference' if equal_text else 'difference'] for row in rows])
  bytes_ratio = pairs.geometric([row['bytes_ratio'] for row in rows])
  speedup = pairs.geometric([row['speedup'] for row in rows]) if len(hardware) == 1 else None
  figures = {'bpb_difference': _figure(difference, 'bits per byte')}
  return {
    'a': a,
    'b': b,
    'n': len(rows),
    'pairs': rows,
    'where': where,
    'difference': dataclasses.asdict(difference),
    'speedup': speedup and dataclasses.asdict(speedup),
    'bytes_ratio': dataclasses.asdict(bytes_ratio),
    'verdict': pairs.verdict(a, b, difference, speedup, where),
    'notes': pairs.notes({name: {seed: runs[seed] for seed in seeds} for name, runs in ((a, runs_a), (b, runs_b))}),
    'figures': figures | ({'speedup': _figure(speedup, 'times')} if speedup else {}),
  }


def _figure(interval: pairs.Interval, unit: str) -> dict[str, Any]:
  spread = {} if interval.low is None else {'spread': interval.high - interval.low}
  return {'value': interval.mean, 'unit': unit, **spread}
