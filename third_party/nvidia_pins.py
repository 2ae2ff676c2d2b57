"""Keeps NVIDIA's builds in NVIDIA's image: `record FILE` before installing the project, `check FILE` after.

NVIDIA's torch and Transformer Engine are built for each other and for the image's CUDA libraries, and are on no package
index: once pip has replaced one, it cannot be brought back. `record` writes what is installed as pip constraints, so that
an installation which would change any of it fails to resolve; `check` compares once more when all is installed, and fails
the build where a version differs or a package is gone. Standard library only: it runs before anything else is there.
"""

import argparse
import re
import sys
from importlib.metadata import distributions
from pathlib import Path

REQUIRED = ('torch', 'transformer-engine')
# Whatever links against torch or CUDA, and NumPy, whose binary interface they were compiled for.
PROTECTED = (
  'torch',
  'pytorch-triton',
  'triton',
  'transformer-engine',
  'flash-attn',
  'apex',
  'cuda-',
  'cupy',
  'nvidia-',
  'numpy',
)


def installed() -> dict[str, str]:
  """Version of every protected distribution, by normalized name; the first on the path counts, as for an import."""
  found: dict[str, str] = {}
  for distribution in distributions():
    name = re.sub(r'[-_.]+', '-', distribution.metadata['Name']).lower()
    if name.startswith(PROTECTED):
      found.setdefault(name, distribution.version)
  return found


def record(path: Path, torch_at_least: tuple[int, int]) -> None:
  found = installed()
  for name in REQUIRED:
    if name not in found:
      sys.exit(f'nvidia_pins: {name} is not installed here; is this an NVIDIA PyTorch image?')
  version = tuple(int(part) for part in re.match(r'(\d+)\.(\d+)', found['torch']).groups())
  if version < torch_at_least:
    wants = '.'.join(map(str, torch_at_least))
    sys.exit(f'nvidia_pins: torch {found["torch"]} is too old, wants {wants} or later: take a later tag')
  path.write_text(''.join(f'{name}=={found[name]}\n' for name in sorted(found)))
  both = ' and '.join(f'{name} {found[name]}' for name in REQUIRED)
  print(f'nvidia_pins: {len(found)} packages stay as they are, among them {both}')


def check(path: Path) -> None:
  recorded = dict(line.split('==', 1) for line in path.read_text().split())
  found = installed()
  changed = [
    f'{name}: {version} -> {found.get(name, "gone")}' for name, version in recorded.items() if found.get(name) != version
  ]
  if changed:
    sys.exit(f'nvidia_pins: the installation changed {", ".join(changed)}')
  print(f'nvidia_pins: all {len(recorded)} packages are as NVIDIA built them')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('command', choices=('record', 'check'))
  parser.add_argument('file', type=Path)
  parser.add_argument('--torch-at-least', default='2.11', metavar='MAJOR.MINOR')
  arguments = parser.parse_args()
  if arguments.command == 'record':
    major, minor = arguments.torch_at_least.split('.')
    record(arguments.file, (int(major), int(minor)))
  else:
    check(arguments.file)


if __name__ == '__main__':
  main()
