"""The registry of experiments: every file of `experiments/` with a `get_config`."""

import dataclasses
import difflib
import functools
import importlib.util
import os
import re
import sys
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict

from yxanul.config.convert import from_config

ROOT = Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Entry:
  """One line of the registry."""

  name: str
  summary: str  # first line of the experiment's docstring
  parameters: int
  tokens: int
  hardware: str  # the docstring's `Hardware:` line
  path: str


def experiments_folder() -> Path:
  """`experiments/` beside the package, or in the working directory."""
  beside = ROOT / 'experiments'
  return beside if beside.is_dir() else Path('experiments')


def names() -> list[str]:
  return sorted(path.stem for path in experiments_folder().glob('[!_]*.py'))


@functools.cache
def _module(path: Path) -> ModuleType:
  # Experiments build on one another (`from experiments import ultra`), wherever the command is run.
  if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))
  loader = importlib.util.spec_from_file_location(f'yxanul_experiment_{path.stem}', path)
  module = importlib.util.module_from_spec(loader)
  loader.loader.exec_module(module)
  return module


def check_path(text: str) -> Path:
  """The experiment file that `text` (PATH or PATH:variant) names.

  Raises:
    ValueError: there is no such file; the line lists the nearest names.
  """
  path = Path(text.partition(':')[0])
  if path.is_file() and path.suffix == '.py':
    return path
  near = difflib.get_close_matches(path.stem, names(), n=3, cutoff=0.4)
  shown = (os.path.relpath(experiments_folder() / f'{name}.py') for name in near)  # as one would type them here
  hint = f'nearest: {", ".join(shown)}' if near else f'known: {", ".join(names())}'
  raise ValueError(f'--config={path}: no such experiment; {hint}')


def load(text: str) -> ConfigDict:
  """The configuration of 'PATH' or 'PATH:variant'."""
  module = _module(check_path(text).resolve())
  if not hasattr(module, 'get_config'):
    raise ValueError(f'--config={text}: the file has no get_config(arg)')
  return module.get_config(text.partition(':')[2] or None)


def entries() -> list[Entry]:
  """Every experiment, by name. Imports no torch."""
  result = []
  for name in names():
    path = experiments_folder() / f'{name}.py'
    spec = from_config(load(str(path)))
    doc = (_module(path.resolve()).__doc__ or '').strip()
    hardware = re.search(r'^Hardware: (.*)$', doc, re.MULTILINE)
    result.append(
      Entry(
        name=name,
        summary=doc.splitlines()[0] if doc else '',
        parameters=spec.model.parameter_count(),
        tokens=spec.curriculum.budget_tokens,
        hardware=hardware.group(1) if hardware else '',
        path=f'experiments/{name}.py',
      )
    )
  return result
