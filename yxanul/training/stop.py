"""Requests to stop: SIGINT, SIGTERM, or a file that says that the machine is about to be taken away.

A thread of its own hears them, so that one that comes while the main thread compiles, captures, evaluates or writes is
heard as well. The run asks at its boundaries, saves and leaves; if it does not come to a boundary in time, the thread says
what stands and ends the process. A second request ends it at once; what is saved stays whole either way.

Imports nothing that takes time: listening begins before torch is imported.
"""

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from yxanul.config.status import EXIT_AGAIN

_POLL_SECONDS = 0.5
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# torchrun passes on to its workers what the terminal has sent them already.
_SAME_REQUEST_SECONDS = 1.0 if 'TORCHELASTIC_RUN_ID' in os.environ else 0.0


class Stopped(Exception):
  """The run ends on request; the message says what stands."""


class StopRequest:
  """True once a request has come."""

  def __init__(self):
    self.name: str | None = None  # of what asked first
    self.doing = ''  # what the run is at, for people
    self.standing: Callable[[], str] = lambda: 'nothing was trained yet'
    # Not print: a request may come in the middle of one. A display that is shown takes lines of its own.
    self.tell: Callable[[str], None] = lambda line: _write(f'{line}\n')
    self._within_seconds: float | None = None  # None: nothing is under way that could be saved
    self._notice: Path | None = None
    self._notice_before: tuple[int, int] | None = None
    self._came = 0.0

  def __bool__(self) -> bool:
    return self.name is not None

  def check(self, doing: str | None = None) -> None:
    """Raises Stopped if a request has come; otherwise the run is at `doing` from now on."""
    if self:
      raise Stopped(self.standing())
    self.doing = doing or self.doing

  def follow(self) -> None:
    """Another process of the run was asked, and with it this one."""
    if not self:
      self._came = time.monotonic()
      self.name = 'a request to another process'

  # The rest runs in the listening thread.

  def _arrive(self, name: str, status: int) -> None:
    now = time.monotonic()
    if self:
      if now - self._came > _SAME_REQUEST_SECONDS:
        _end('', status)
      return
    self._came = now
    if self._within_seconds is None:
      _end(f'{name}: stopped before anything was begun\n', EXIT_AGAIN)
    self.name = name
    self.tell(f'{name}: stopping within {self._within_seconds:g} s; once more ends at once')

  def _look(self) -> None:
    if self._notice and (found := _stamp(self._notice)) and found != self._notice_before:
      self._notice_before = found
      if not self:
        self._arrive(f'notice in {self._notice}', EXIT_AGAIN)
    # Half a second for the last line and the end of the process.
    if self and self._within_seconds is not None and time.monotonic() - self._came > self._within_seconds - 0.5:
      late = f'{self.name}: {self.doing} did not end within {self._within_seconds:g} s'
      _end(f'{late}; {self.standing()}; the same command goes on from there\n', EXIT_AGAIN)


def _stamp(path: Path) -> tuple[int, int] | None:
  try:
    found = path.stat()
  except OSError:
    return None
  return found.st_ino, found.st_mtime_ns


def _write(text: str) -> None:
  os.write(2, text.encode())


def _end(line: str, status: int) -> None:
  show_cursor = '\x1b[?25h' if os.isatty(2) else ''  # a live display had hidden it
  _write(show_cursor + line)
  os._exit(status)


_listening: StopRequest | None = None


def listen() -> tuple[StopRequest, Callable[[], None]]:
  """Hears requests from now on; one that comes before `stop_request` ends the process. Also returns what undoes it."""
  global _listening
  _listening = StopRequest()
  ear, mouth = os.pipe()
  os.set_blocking(mouth, False)
  wakeup = signal.set_wakeup_fd(mouth)
  # Python must handle a signal for the pipe to be told of it.
  handlers = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
  thread = threading.Thread(target=_hear, args=(_listening, ear), name='stop', daemon=True)
  thread.start()

  def undo() -> None:
    global _listening
    _listening = None
    for number, handler in handlers.items():
      signal.signal(number, handler)
    signal.set_wakeup_fd(wakeup)
    os.close(mouth)
    thread.join()
    os.close(ear)

  return _listening, undo


def _hear(request: StopRequest, ear: int) -> None:
  while True:
    if select.select([ear], [], [], _POLL_SECONDS)[0]:
      numbers = os.read(ear, 64)
      if not numbers:  # nobody will write any more
        return
      for number in numbers:
        if number in _SIGNALS:
          request._arrive(signal.Signals(number).name, 128 + number)
    request._look()


@contextlib.contextmanager
def stop_request(within_seconds: float, notice: str = '') -> Iterator[StopRequest]:
  """A run is under way inside the block: requests are noted, and what it saves is waited for.

  Args:
    within_seconds: from a request to the end of the process, at most.
    notice: the path of a file whose appearance is a request; '': none. One that is there already is old news.
  """
  request, undo = (_listening, lambda: None) if _listening else listen()
  request._notice = Path(notice) if notice else None
  request._notice_before = _stamp(request._notice) if notice else None
  request._within_seconds = within_seconds
  try:
    yield request
  finally:
    undo()
