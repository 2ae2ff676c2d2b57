"""A function in a process of its own: nothing of one run (memory, compiled code, settings of torch) is left to the next.

Processes are forked from a server that has imported what a run needs and no more: they start in a fraction of a second, with
no CUDA context. Each is in a process group of its own, so that Ctrl-C in a terminal reaches the caller alone, which hands it
on once.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from yxanul.config.status import EXIT_AGAIN, EXIT_USAGE
from yxanul.training.stop import Stopped

_CONTEXT = multiprocessing.get_context('forkserver')
_CONTEXT.set_forkserver_preload(['yxanul.run'])
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Apart:
  """Calls functions apart, one after another; see `listening`."""

  def __init__(self):
    self._asked: str | None = None
    self._process: Any = None

  def check(self) -> None:
    """Raises Stopped if a request to stop has come."""
    if self._asked:
      raise Stopped(self._asked)

  def call(self, function: Callable[..., int | None], *args: Any) -> int:
    """Calls `function(*args)`, which must be importable by name, and returns the exit status that it returned or ended with.

    Raises:
      Stopped: a request to stop came, or the function returned EXIT_AGAIN; it has ended by then.
    """
    self.check()
    self._process = process = _CONTEXT.Process(target=_work, args=(function, args))
    process.start()
    if self._asked:  # between the check and the start
      os.kill(process.pid, signal.SIGTERM)
    process.join()
    self._process = None
    self.check()
    if process.exitcode == EXIT_AGAIN:
      raise Stopped('a run was asked to stop')
    return process.exitcode

  def _hand_on(self, number: int, _frame: Any) -> None:
    self._asked = signal.Signals(number).name
    if self._process is not None and self._process.pid is not None:
      with contextlib.suppress(ProcessLookupError):
        os.kill(self._process.pid, signal.SIGTERM)


@contextlib.contextmanager
def listening() -> Iterator[Apart]:
  """Inside the block SIGINT and SIGTERM are requests to stop, each handed on as SIGTERM to what runs apart."""
  apart = Apart()
  before = {number: signal.signal(number, apart._hand_on) for number in _SIGNALS}
  try:
    yield apart
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def _work(function: Callable[..., int | None], args: tuple[Any, ...]) -> None:
  os.setpgrp()
  for number in _SIGNALS:
    signal.signal(number, signal.SIG_DFL)
  threading.Thread(target=_follow_the_caller, daemon=True).start()
  try:
    sys.exit(function(*args))
  except (ValueError, OSError) as error:  # as on a command line
    print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
    sys.exit(EXIT_USAGE)


def _follow_the_caller() -> None:
  """A caller that was killed would leave a run behind, and the next invocation would start it again beside it."""
  multiprocessing.parent_process().join()
  os.kill(os.getpid(), signal.SIGTERM)
