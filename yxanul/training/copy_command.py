"""A program of the user's that takes each checkpoint somewhere else: started behind the training, never in its way."""

import shlex
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path


class CopyCommand:
  """Starts `command PATH` for a path; one at a time. What fails is told, and that is all.

  Args:
    command: a program and its first arguments, split as a shell would, but run without one; '': nothing is ever started.
    tell: takes one line.
  """

  def __init__(self, command: str, tell: Callable[[str], None]):
    self._words, self._tell = shlex.split(command), tell
    self._thread: threading.Thread | None = None

  def start(self, path: Path) -> None:
    if not self._words:
      return
    if self._thread and self._thread.is_alive():
      self._tell(f'{self._words[0]}: still at work on the checkpoint before; {path} is not copied')
      return
    # A daemon, and its program in a session of its own: a run that is made to stop leaves the copy to finish by itself.
    self._thread = threading.Thread(target=self._run, args=(path,), name='copy', daemon=True)
    self._thread.start()

  def _run(self, path: Path) -> None:
    try:
      done = subprocess.run(
        [*self._words, str(path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors='replace',
        start_new_session=True,
        check=False,
      )
    except OSError as error:
      self._tell(f'{self._words[0]}: cannot be started ({error.strerror}); {path} is not copied')
      return
    if done.returncode:
      last = (done.stderr.strip().splitlines() or ['no message'])[-1]
      self._tell(f'{self._words[0]}: ended with status {done.returncode} ({last}); {path} is not copied')

  def wait(self) -> None:
    """Until the program that is at work has ended."""
    if self._thread:
      self._thread.join()
