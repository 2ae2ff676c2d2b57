"""The checkpoints of a run of several processes."""

from typing import Any

from yxanul.training.checkpoint import Checkpoints
from yxanul.training.distributed import Processes
from yxanul.training.sharding import WHOLE, Sharding
from yxanul.training.state import TrainState


class SharedCheckpoints:
  """As `training.checkpoint.Checkpoints`: the first process keeps them, and all are given what they hold.

  What is divided among the processes is gathered before a save, so a checkpoint knows nothing of how many there are.
  """

  def __init__(self, processes: Processes, own: Checkpoints | None, sharding: Sharding = WHOLE):
    """`own` is the first process's; the others have none."""
    self._processes, self._own, self._sharding = processes, own, sharding

  @property
  def failed(self) -> bool:
    return self._own is not None and self._own.failed

  def steps(self) -> list[int]:
    return self._own.steps() if self._own else []

  def standing(self) -> str:
    return self._own.standing() if self._own else 'the last checkpoint stands'

  def save(self, state: TrainState, host: dict[str, Any]) -> None:
    """As `Checkpoints.save`, called by every process."""
    whole = self._sharding.whole(state)
    if self._own:
      self._own.save(whole, host)

  def restore(self, state: TrainState, before: int | None = None) -> tuple[dict[str, Any], list[str]] | None:
    """As `Checkpoints.restore`, on every process. The host waits."""
    found = error = None
    whole = self._sharding.room(state)
    if self._own:
      try:
        found = self._own.restore(whole, before)
      except ValueError as raised:
        error = str(raised)
    found, error = self._processes.from_first([found, error])
    if error:
      raise ValueError(error)
    if not found:
      return None
    self._sharding.divide(whole, state, self._processes)
    return tuple(found)

  def wait(self) -> None:
    if self._own:
      self._own.wait()

  def close(self) -> None:
    if self._own:
      self._own.close()
