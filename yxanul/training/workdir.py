"""Whose a workdir is: one experiment's from its first checkpoint on, and one process's at a time."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from yxanul.config.convert import deciding_differences, is_saved, listed, to_dict
from yxanul.config.spec import ExperimentSpec
from yxanul.data.lock import locked
from yxanul.data.prepare_journal import write_atomically


def check_workdir(spec: ExperimentSpec, workdir: Path) -> None:
  """Whether a run of `spec` may write there.

  Raises:
    ValueError: in one line: the workdir holds another experiment, is no folder or cannot be written.
  """
  path = workdir / 'config.json'
  if path.exists():
    try:
      before = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
      raise ValueError(f'{path}: not readable as JSON ({error})') from None
    if not is_saved(before):
      raise ValueError(f"--workdir={workdir}: config.json there is not a run's")
    differing = deciding_differences(before, to_dict(spec))
    if differing and _binds(workdir):
      found = f'holds a run of another configuration (there -> now): {listed(differing)}'
      raise ValueError(f'--workdir={workdir}: {found}; wants the same one, or another --workdir')
  elif workdir.exists() and not workdir.is_dir():
    raise ValueError(f'--workdir={workdir}: is not a folder')
  existing = next(p for p in (workdir, *workdir.absolute().parents) if p.exists())
  try:  # os.access would say yes to root, whatever the file system says
    tempfile.TemporaryFile(dir=existing).close()
  except OSError as error:
    raise ValueError(f'--workdir={workdir}: cannot be written ({error.strerror}: {existing})') from None


@contextlib.contextmanager
def alone(workdir: Path) -> Iterator[None]:
  """One process at a time trains in a workdir; what was not there and stays empty goes at the end."""
  made = [path for path in (workdir, *workdir.parents) if not path.exists()]
  try:
    with locked(workdir / 'run.lock', busy=f'--workdir={workdir}: another process is training here'):
      yield
  finally:
    with contextlib.suppress(OSError):  # what is not empty stays
      for folder in made:
        folder.rmdir()


def _binds(workdir: Path) -> bool:
  """Whether something there was trained: until then a start that came to nothing binds nobody."""
  trained = any(path.name.isdigit() for path in workdir.glob('checkpoints/*'))
  return trained or any((workdir / name).exists() for name in ('result.json', 'checkpoints_broken'))


@contextlib.contextmanager
def begun(spec: ExperimentSpec, workdir: Path) -> Iterator[None]:
  """`config.json` stands before anything else does; it goes again where the settings turn out wrong."""
  path = workdir / 'config.json'
  before = json.loads(path.read_text(encoding='utf-8')) if path.exists() else None
  if before and not _binds(workdir) and deciding_differences(before, to_dict(spec)):
    # What a start of other settings left, before it had a checkpoint, is no part of these curves.
    for left in ('metrics.jsonl', 'wandb', 'tensorboard'):
      shutil.rmtree(workdir / left) if (workdir / left).is_dir() else (workdir / left).unlink(missing_ok=True)
  write_atomically(path, json.dumps(to_dict(spec), indent=1) + '\n')
  try:
    yield
  except (ValueError, OSError):
    if not _binds(workdir):
      path.unlink()
    raise
