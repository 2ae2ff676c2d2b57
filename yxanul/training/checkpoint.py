"""Checkpoints through orbax: asynchronous, atomic, whole. The only importer of orbax, and the only bridge from torch to numpy.

A checkpoint is two items: `state`, the leaves of `TrainState` by path, and `host`, a JSON object with what the loop counts
on the host, the choices made at warm-up, and a CRC-32 of every leaf. Orbax commits by renaming a finished folder, so a
killed save leaves the one before it whole; what it does not check (names, shapes, dtypes, flipped bits) is checked here.
"""

import os
import sys
import zlib
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
  for path, array in arrays.items():
    if _crc(array) != host['crc32'][path]:
      raise ValueError(f'checksum of {path} does not fit')


def _hear_no_closed_loop() -> None:
  """Drops the complaints of reads that were under way when another read of the same damaged checkpoint failed.

  Orbax closes its event loop at the first failure; the others then cannot report to it, and every one of them would print a
  traceback from a thread of its own.
  """
  before = sys.unraisablehook

  def hook(unraisable) -> None:
    if not (isinstance(unraisable.exc_value, RuntimeError) and 'Event loop is closed' in str(unraisable.exc_value)):
      before(unraisable)

  sys.unraisablehook = hook


class Checkpoints:
  """The checkpoints of one run in a folder, newest last; the newest `kept` stay."""

  def __init__(self, folder: Path, kept: int):
    logging.get_absl_logger().setLevel('WARNING')  # orbax tells every step of a save at INFO
    self.folder = folder.resolve()
    self._options = ocp.CheckpointManagerOptions(max_to_keep=kept, create=True, enable_async_checkpointing=True)
    self._manager = self._open()

  def _open(self) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(self.folder, options=self._options, item_names=('state', 'host'))

  def steps(self) -> list[int]:
    return sorted(self._manager.all_steps())

  def save(self, state: TrainState, host: dict[str, Any]) -> None:
    """Copies the state to the host and returns; the files are written behind. A step that is saved already stays."""
    step = int(state.step)
    if step in self.steps():
      return
    leaves = {path: to_numpy(leaf) for path, leaf in flatten(state).items()}
    host = {**host, 'crc32': {path: _crc(leaf) for path, leaf in leaves.items()}}
    self._manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(leaves), host=ocp.args.JsonSave(host)))

  def restore(self, state: TrainState) -> tuple[dict[str, Any], list[str]] | None:
    """Copies the newest sound checkpoint into the state's own tensors.

    Returns:
      The host object, and one line for every newer checkpoint that was not sound (it is moved aside, to
      `<folder>_broken/`); None where there is no checkpoint.

    Raises:
      ValueError: there are checkpoints and none is sound; nothing is touched.
    """
    broken: dict[int, str] = {}
    _hear_no_closed_loop()
    for step in reversed(self.steps()):
      try:
        leaves, host = self._read(step, state)
      except Exception as error:  # orbax and its store raise many kinds for a damaged file; each means: not this one
        broken[step] = f'checkpoint of step {step} is not usable ({" ".join(str(error).split())[:160]})'
        continue
      for path, leaf in flatten(state).items():
        leaf.copy_(leaves[path])
      self._set_aside(list(broken))
      return host, list(broken.values())
    if broken:
      raise ValueError('; '.join(broken.values()) + f': no sound checkpoint is left in {self.folder}')
    return None

  def _read(self, step: int, state: TrainState) -> tuple[dict[str, Tensor], dict[str, Any]]:
    args = ocp.args.Composite(state=ocp.args.StandardRestore(), host=ocp.args.JsonRestore())
    restored = self._manager.restore(step, args=args)
    arrays, host = restored['state'], restored['host']
    wanted = flatten(state)
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
    """Until every save is on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    self._manager.wait_until_finished()
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
  _hear_no_closed_loop()
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
        notes.append(f'checkpoint of step {step} is not usable ({" ".join(str(error).split())[:160]})')
        continue
      return {name: from_numpy(arrays[f'params/{name}']) for name in shapes}, host, notes
  raise ValueError(f'{"; ".join(notes) or "no checkpoint"}: no sound checkpoint in {folder}')
