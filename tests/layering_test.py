"""Each place imports only from the places that the house allows, and outside libraries where they belong."""

import ast
from pathlib import Path

import pytest

from tests.conftest import LONG

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / 'yxanul'

# Place: the places of yxanul that it may import, besides itself.
MAY_IMPORT = {
  'config': set(),
  'kernels': {'config'},
  'data': {'config'},
  'model': {'config', 'kernels'},
  'optim': {'config', 'kernels'},
  'planning': {'config'},
  'training': {'config', 'kernels', 'data', 'model', 'optim', 'planning'},
  'inference': {'config', 'kernels', 'data', 'model', 'optim', 'planning', 'training'},
  'reporting': {'config', 'planning'},
}
MAY_IMPORT['run'] = {*MAY_IMPORT}
MAY_IMPORT['study'] = {*MAY_IMPORT}  # several runs together: above one run, below the tools
EVERYTHING = {*MAY_IMPORT}
# Outside library: the only places or files that may import it.
ONLY_IN = {
  'transformer_engine': ('kernels/',),
  'transformer_engine_torch': ('kernels/',),
  'flash_attn': ('kernels/',),
  'triton': ('kernels/',),
  'orbax': ('training/checkpoint.py',),
  'jax': ('training/checkpoint.py',),
  'lm_eval': ('inference/harness.py',),
}


def imports(path: Path) -> set[str]:
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: relative import'
      found |= {f'{node.module}.{alias.name}' for alias in node.names}
  return found


FILES = sorted(PACKAGE.rglob('*.py'))


@pytest.mark.parametrize('path', FILES, ids=[str(p.relative_to(REPOSITORY)) for p in FILES])
def test_imports_follow_the_house(path):
  place = path.relative_to(PACKAGE).parts[0].removesuffix('.py')
  allowed = MAY_IMPORT.get(place, EVERYTHING) | {place}
  for name in imports(path):
    parts = name.split('.')
    if parts[0] == 'yxanul' and len(parts) > 1:
      assert parts[1] in allowed, f'{path.relative_to(REPOSITORY)} imports {name}: {place} may import {sorted(allowed)}'
    for library, places in ONLY_IN.items():
      inside = str(path.relative_to(PACKAGE)).startswith(places)
      assert parts[0] != library or inside, f'{path.relative_to(REPOSITORY)} imports {name}, which belongs to {places}'
    assert not (place == 'config' and parts[0] == 'torch'), f'{path.relative_to(REPOSITORY)} imports torch'


def test_experiments_import_configuration_only():
  for path in (REPOSITORY / 'experiments').glob('*.py'):
    for name in imports(path):
      assert name.startswith(('math', 'ml_collections', 'experiments', 'yxanul.config')), f'{path.name} imports {name}'


def test_the_top_level_is_the_house():
  import subprocess

  listed = subprocess.run(['git', 'ls-files'], cwd=REPOSITORY, capture_output=True, text=True, check=False)
  if listed.returncode:
    pytest.skip('not a git checkout')
  top = {line.split('/')[0] for line in listed.stdout.splitlines()}
  house = {'yxanul', 'experiments', 'tests', 'third_party', 'Dockerfile', 'setup.py', 'README.md'}
  assert {name for name in top if not name.startswith('.')} <= house


def test_files_stay_under_400_lines():
  long = {str(p.relative_to(REPOSITORY)): n for p in FILES if (n := len(p.read_text().splitlines())) > 400}
  assert not long


def test_the_files_that_are_said_to_take_longest_exist():
  assert set(LONG) <= {path.name for path in (REPOSITORY / 'tests').rglob('*_test.py')}


def test_main_stays_small():
  assert len((PACKAGE / 'main.py').read_text().splitlines()) <= 60
