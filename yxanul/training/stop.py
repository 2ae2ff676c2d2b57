"""A request to stop, by signal: noted at once, acted on by the loop where everything can be saved."""

import contextlib
import os
import signal
from collections.abc import Iterator


class StopRequest:
  """True once SIGINT or SIGTERM has come. A second signal ends the process at once; what is saved stays whole."""

  def __init__(self):
    self.signal_name: str | None = None

  def __bool__(self) -> bool:
    return self.signal_name is not None

  def _handle(self, number: int, _frame) -> None:
    if self:
      os._exit(128 + number)
    self.signal_name = signal.Signals(number).name
    # os.write and not print: a handler may come in the middle of a print.
    os.write(2, f'{self.signal_name}: saving; once more ends at once\n'.encode())


@contextlib.contextmanager
def stop_request() -> Iterator[StopRequest]:
  """Listens for SIGINT and SIGTERM inside the block."""
  request = StopRequest()
  before = {number: signal.signal(number, request._handle) for number in (signal.SIGINT, signal.SIGTERM)}
  try:
    yield request
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


class Stopped(Exception):
  """The run ended on request, with everything saved."""
