"""Checkpoints through orbax: written behind, atomic, whole. The only importer of orbax, the only bridge from torch to numpy.

A checkpoint is two items: `state`, the leaves of `TrainState` by path, and `host`, a JSON object with what the loop counts
on the host, the choices made at warm-up, the configuration, and a CRC-32 of every leaf and of itself. Orbax commits by
renaming a finished folder, so a killed save leaves the one before it whole; what it does not check (names, shapes, dtypes,
flipped bits) is checked here. Nothing in a checkpoint depends on the number of processes that wrote it.
"""

import json
import logging as standard_logging
import os
import re
import shutil
import sys
import threading
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from absl import logging
from torch import Tensor

# Or jax, which orbax imports, takes most of a GPU's memory for itself.
os.environ['JAX_PLATFORMS'] = 'cpu'
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, EveryNSeconds, LatestN

from yxanul.config.convert import deciding_differences, listed
from yxanul.training.copy_command import CopyCommand
from yxanul.training.state import TrainState, flatten

# Formats that numpy lacks: (torch dtype, an integer of the same width, numpy's name for it).
_VIEWS = {
  torch.bfloat16: (torch.uint16, ml_dtypes.bfloat16),
  torch.float8_e4m3fn: (torch.uint8, ml_dtypes.float8_e4m3fn),
  torch.float8_e5m2: (torch.uint8, ml_dtypes.float8_e5m2),
}


def to_numpy(x: Tensor) -> np.ndarray:
  """A copy on the host, bit for bit."""
  x = x.detach().to('cpu', copy=True).contiguous()
  if x.dtype in _VIEWS:
    integer, dtype = _VIEWS[x.dtype]
    return x.view(integer).numpy().view(dtype)
  return x.numpy()


def from_numpy(x: np.ndarray) -> Tensor:
  """The inverse of `to_numpy`."""
  for dtype, (integer, name) in _VIEWS.items():
    if x.dtype == name:
      return torch.from_numpy(x.view(np.dtype(str(integer).removeprefix('torch.')))).view(dtype)
  return torch.from_numpy(np.array(x))


def _crc(x: np.ndarray) -> int:
  return zlib.crc32(np.ascontiguousarray(x).view(np.uint8).data)


def _check(arrays: dict[str, np.ndarray], host: dict[str, Any]) -> None:
  """Raises ValueError for a leaf, or the host object, that is not what was saved."""
  if host['crc32_host'] != _json_crc({name: value for name, value in host.items() if name != 'crc32_host'}):
    raise ValueError('checksum of the host object does not fit')
  for path, array in arrays.items():
    if _crc(array) != host['crc32'][path]:
      raise ValueError(f'checksum of {path} does not fit')


def _json_crc(host: dict[str, Any]) -> int:
  return zlib.crc32(json.dumps(host, sort_keys=True).encode())


_OS_ERROR = re.compile(r"os_error_code='(\d+)'|\[Errno (\d+)\]")


def _reason(error: Exception) -> str:
  """In one line: what the system said, where the store hides it in a paragraph."""
  if found := _OS_ERROR.search(str(error)):
    return os.strerror(int(found[1] or found[2]))
  return ' '.join(str(error).split())[:160]


class _OtherConfiguration(ValueError):
  """The checkpoint is sound, and not of this run."""


def _hear_each_failure_once() -> None:
  """Drops what orbax prints, from threads of its own, about failures that it raises here as well.

  A thread of a save that failed prints its traceback; so does every read that was under way when another read of the same
  damaged checkpoint failed and closed their event loop.
  """
  standard_logging.getLogger('asyncio').setLevel('CRITICAL')
  before_thread, before_unraisable = threading.excepthook, sys.unraisablehook
  if getattr(before_thread, 'hears_no_orbax', False):
    return

  def in_thread(args) -> None:
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(args.exc_traceback)]
    if not any('/orbax/' in file for file in files):
      before_thread(args)

  def unraisable(args) -> None:
    if not (isinstance(args.exc_value, RuntimeError) and 'Event loop is closed' in str(args.exc_value)):
      before_unraisable(args)

  in_thread.hears_no_orbax = True
  threading.excepthook, sys.unraisablehook = in_thread, unraisable


class Checkpoints:
  """The checkpoints of one run in a folder, newest last. One save at a time is written behind the training.

  A save that fails (a full disk, one that became read-only) is told and leaves the others whole; `failed` says so until a
  later one succeeds. Nothing here ever ends a run.

  Args:
    folder: made if missing.
    kept: the newest that stay.
    keep_every_seconds: besides those, one in every such time stays for good; 0: none.
    config: the configuration as plain values; a checkpoint of another one is refused.
    command: a program and its first arguments, started with the path of each checkpoint that was saved.
    tell: takes one line about what went wrong.
  """

  def __init__(
    self,
    folder: Path,
    kept: int,
    *,
    keep_every_seconds: float = 0.0,
    config: Any = None,
    command: str = '',
    tell: Callable[[str], None] = print,
  ):
    logging.get_absl_logger().setLevel('CRITICAL')  # orbax tells every step of a save, and failures that it raises as well
    _hear_each_failure_once()
    self.folder = folder.resolve()
    self.failed = False  # the last save that ended did not succeed
    self._config, self._tell = json.loads(json.dumps(config)), tell
    self._copy = CopyCommand(command, tell)
    policies = [LatestN(kept)]
    if keep_every_seconds:
      policies.append(EveryNSeconds(keep_every_seconds))
    self._options = ocp.CheckpointManagerOptions(
      preservation_policy=AnyPreservationPolicy(policies),
      enable_async_checkpointing=False,  # what fails behind orbax's back is hard to tell apart: the thread is ours
      cleanup_tmp_directories=True,  # those of saves that were killed
    )
    self._manager = self._open()
    self._thread: threading.Thread | None = None

  def _open(self) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(self.folder, options=self._options, item_names=('state', 'host'))

  def steps(self) -> list[int]:
    """The steps of what is on disk, whole."""
    return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdigit())

  def standing(self) -> str:
    """What a run that ends now goes on from, in words."""
    steps = self.steps()
    return f'the checkpoint of step {steps[-1]} stands' if steps else 'no checkpoint was saved yet'

  def save(self, state: TrainState, host: dict[str, Any]) -> None:
    """Copies the state to the host and returns; the files are written behind. A step that is saved already stays."""
    self.wait()
    step = int(state.step)
    if step in self.steps():
      return
    leaves = {path: to_numpy(leaf) for path, leaf in flatten(state).items()}
    host = {**host, 'config': self._config, 'crc32': {path: _crc(leaf) for path, leaf in leaves.items()}}
    self._thread = threading.Thread(target=self._write, args=(step, leaves, host), name='checkpoint')
    self._thread.start()

  def _write(self, step: int, leaves: dict[str, np.ndarray], host: dict[str, Any]) -> None:
    host = {**host, 'crc32_host': _json_crc(host)}
    try:
      self._manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(leaves), host=ocp.args.JsonSave(host)))
    except Exception as error:  # orbax and its store raise many kinds for a disk that does not take a file
      self.failed = True
      for path in self.folder.glob('*.orbax-checkpoint-tmp'):
        shutil.rmtree(path, ignore_errors=True)  # it takes room that the next attempt may need
      self._tell(f'cannot save the checkpoint of step {step} in {self.folder}: {_reason(error)}; {self.standing()}')
      return
    if self.failed:
      self._tell(f'the checkpoint of step {step} is saved: saving works again')
    self.failed = False
    self._copy.start(self.folder / str(step))

  def restore(self, state: TrainState, before: int | None = None) -> tuple[dict[str, Any], list[str]] | None:
    """Copies the newest sound checkpoint into the state's own tensors.

    Args:
      state: what the checkpoint is for; its leaves are overwritten.
      before: take one of an earlier step than this.

    Returns:
      The host object, and one line for every newer checkpoint that was not sound (it is moved aside, to
      `<folder>_broken/`); None where there is no checkpoint.

    Raises:
      ValueError: there are checkpoints and none is sound, or they are of another configuration; nothing is touched.
    """
    self.wait()
    broken: dict[int, str] = {}
    for step in reversed(self.steps()):
      if before is not None and step >= before:
        continue
      try:
        leaves, host = self._read(step, state)
      except _OtherConfiguration:
        raise
      except Exception as error:  # orbax and its store raise many kinds for a damaged file; each means: not this one
        broken[step] = f'checkpoint of step {step} is not usable ({_reason(error)})'
        continue
      for path, leaf in flatten(state).items():
        leaf.copy_(leaves[path])
      self._set_aside(list(broken))
      return host, list(broken.values())
    if broken:
      raise ValueError('; '.join(broken.values()) + f': no sound checkpoint is left in {self.folder}')
    return None

  def _read(self, step: int, state: TrainState) -> tuple[dict[str, Tensor], dict[str, Any]]:
    host = self._manager.restore(step, args=ocp.args.Composite(host=ocp.args.JsonRestore()))['host']
    _check({}, host)
    if self._config is not None and (differing := deciding_differences(host['config'], self._config)):
      raise _OtherConfiguration(
        f'{self.folder}: the checkpoint of step {step} is of another configuration; {listed(differing)}'
      )
    wanted = flatten(state)
    others = host['crc32'].keys() ^ wanted.keys()
    if others and all(path.startswith('fp8_state/') for path in others):
      had, here = ('in FP8', 'does not') if others <= host['crc32'].keys() else ('without FP8', 'does')
      raise _OtherConfiguration(
        f'{self.folder}: the checkpoint of step {step} was trained {had}, and this machine {here} run in FP8; wants a card '
        f'{"with" if had == "in FP8" else "without"} FP8 tensor cores (sm_89 or later), or a new --workdir'
      )
    arrays = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore()))['state']
    if arrays.keys() != wanted.keys():
      raise ValueError(f'it holds other leaves: {sorted(arrays.keys() ^ wanted.keys())[:3]}')
    _check(arrays, host)
    leaves = {}
    for path, leaf in wanted.items():
      leaves[path] = from_numpy(arrays[path])
      if leaves[path].shape != leaf.shape or leaves[path].dtype != leaf.dtype:
        raise ValueError(f'{path} is {leaves[path].dtype}{list(leaves[path].shape)}, wants {leaf.dtype}{list(leaf.shape)}')
    return leaves, host

  def _set_aside(self, steps: list[int]) -> None:
    if not steps:
      return
    self._manager.close()
    aside = self.folder.with_name(self.folder.name + '_broken')
    aside.mkdir(exist_ok=True)
    for step in steps:
      number = len(list(aside.iterdir()))
      (self.folder / str(step)).rename(aside / f'{number}-step-{step}')
    self._manager = self._open()

  def wait(self) -> None:
    """Until the save that is under way has ended, well or not."""
    if self._thread:
      self._thread.join()

  def close(self) -> None:
    """Waits for the save that is under way, and for its copy."""
    self.wait()
    self._copy.wait()
    self._manager.close()


def read_params(folder: Path, shapes: dict[str, tuple[int, ...]]) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
  """The parameters alone of the newest sound checkpoint in `folder`, on the CPU; nothing there is changed.

  Args:
    shapes: of every parameter by its name, all FP32.

  Returns:
    The parameters, the host object, and one line for every newer checkpoint that was not sound.

  Raises:
    ValueError: there is no checkpoint, or none is sound.
  """
  logging.get_absl_logger().setLevel('ERROR')  # orbax warns of what read_only means
  _hear_each_failure_once()
  if not folder.is_dir():
    raise ValueError(f'{folder}: holds no checkpoint')
  options = ocp.CheckpointManagerOptions(read_only=True)
  handlers = {'state': ocp.PyTreeCheckpointHandler(), 'host': ocp.JsonCheckpointHandler()}
  wanted = {f'params/{name}': np.empty(shape, np.float32) for name, shape in shapes.items()}
  notes = []
  with ocp.CheckpointManager(folder.resolve(), options=options, item_handlers=handlers) as manager:
    for step in sorted(manager.all_steps(), reverse=True):
      state = ocp.args.PyTreeRestore(wanted, partial_restore=True)
      try:
        restored = manager.restore(step, args=ocp.args.Composite(state=state, host=ocp.args.JsonRestore()))
        arrays, host = restored['state'], restored['host']
        _check(arrays, host)
        for path, leaf in wanted.items():
          if arrays[path].shape != leaf.shape or arrays[path].dtype != leaf.dtype:
            raise ValueError(f'{path} is {arrays[path].dtype}{list(arrays[path].shape)}, wants {leaf.dtype}{list(leaf.shape)}')
      except Exception as error:  # as in Checkpoints.restore
        notes.append(f'checkpoint of step {step} is not usable ({_reason(error)})')
        continue
      return {name: from_numpy(arrays[f'params/{name}']) for name in shapes}, host, notes
  if not notes:
    raise ValueError(f'{folder}: holds no checkpoint')
  raise ValueError(f'{"; ".join(notes)}: no sound checkpoint in {folder}')
