"""The record of faults: `python -m tests.faults [--most_runs=10] [--output=experiments/records/DATE_faults]`."""

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

from tests.faults.table import FAULTS, many
from tests.faults.world import World


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--most_runs', type=int, default=10, help='tries of each fault that takes whole runs, at most')
  parser.add_argument('--output', type=Path, help='folder for README.md and record.json')
  arguments = parser.parse_args()
  started, rows = time.monotonic(), []
  with tempfile.TemporaryDirectory() as folder:
    world = World(Path(folder))
    for name, fault in FAULTS.items():
      tries = min(fault.tries, arguments.most_runs) if fault.tries <= 10 else fault.tries
      lost = many(name, world, tries)
      rows.append((name, tries, tries - len(lost), len(lost), fault.survival))
      print(f'{name}: {tries} tries, {len(lost)} lost', *lost, sep='\n  ', flush=True)
      if arguments.output:  # after each: this takes a while
        _write_record(arguments.output, rows, arguments.most_runs, sum(world.cut_saves), time.monotonic() - started)


def _write_record(folder: Path, rows: list[tuple], most_runs: int, cut: int, seconds: float) -> None:
  import orbax.checkpoint
  import torch

  tries, survived, lost = (sum(row[i] for row in rows) for i in (1, 2, 3))
  folder.mkdir(parents=True, exist_ok=True)
  table = '\n'.join(f'| {name} | {tried} | {kept} | {gone} | {survival} |' for name, tried, kept, gone, survival in rows)
  (folder / 'README.md').write_text(
    f"""# Faults

```bash
python -m tests.faults --most_runs={most_runs} --output={folder}
```

Each try makes the fault happen in a real process, at a moment, a byte or a file drawn at random, and then looks at what is
left; how is in `tests/faults`. The test suite tries each a few times, `python -m pytest -m slow
tests/training/faults_test.py` as often as `--most_runs=10`. Disks are a tmpfs, whose mounting takes root; out of
memory are steps over more tokens than a number drawn at random, which raise what CUDA would; several processes are two under
torchrun with Gloo.

Hardware: {os.cpu_count()} CPU cores that other work shared, {seconds / 60:.0f} minutes. Of the kills while saving, {cut} came
while files were being written; the others between two saves, or while an old checkpoint was deleted.

| fault | tries | survived | lost | survived means |
|---|---|---|---|---|
{table}
| **all** | {tries} | {survived} | {lost} | |
"""
  )
  figures = {
    'tries': {'value': tries, 'unit': 'tries'},
    'survived': {'value': survived, 'unit': 'tries'},
    'lost': {'value': lost, 'unit': 'tries'},
    'kills_that_cut_a_save': {'value': cut, 'unit': 'tries'},
  }
  record = {
    'what': 'faults',
    'command': f'python -m tests.faults --most_runs={most_runs} --output={folder}',
    'hardware': f'{os.cpu_count()} CPU cores',
    'versions': {'python': platform.python_version(), 'torch': torch.__version__, 'orbax': orbax.checkpoint.__version__},
    'n': tries,
    'figures': figures,
    'faults': [dict(zip(('fault', 'tries', 'survived', 'lost', 'survival'), row, strict=True)) for row in rows],
  }
  (folder / 'record.json').write_text(json.dumps(record, indent=1) + '\n')


if __name__ == '__main__':
  main()
