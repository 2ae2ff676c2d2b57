"""Processes forked from a server that has imported what they need, which takes seconds in a process that starts from nothing.

One server serves all tests of a pytest process, whoever asks first says what it imports: so this module is the only one of the
tests to ask for it. Where the code under test did so before (yxanul/study/apart.py), programs start later, and are the same.
"""

import atexit
import contextlib
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

# Modules with a `main` define flags: none of those.
PRELOADED = (
  'yxanul.run',
  'tests.faults.table',
  'torch.distributed.run',
  'yxanul.config.cli',
  'yxanul.study.ablation_run',
  'datasketch',
  'pyarrow.parquet',
)


def context():
  found = multiprocessing.get_context('forkserver')
  found.set_forkserver_preload(list(PRELOADED))
  return found


class Program:
  """`python -m MODULE ARGUMENTS` in a process forked from the server; answers as a `subprocess.Popen` with pipes does.

  It has arguments, environment, folder, output, signals and an end of its own. What it does not show is the first second of
  a process: that the imports work from nothing, what comes while they are under way, variables that are read then, and hashes
  of strings that differ from one process to the next. An interrupt that nobody catches is status 1.
  """

  def __init__(self, module: str, arguments: list[str], folder: Path, environment: dict[str, str]):
    self.args = [module, *arguments]
    self._kept = tempfile.TemporaryDirectory()  # goes with this object
    self._outputs = [Path(self._kept.name, name) for name in ('stdout', 'stderr')]
    target = (module, arguments, str(folder), environment, self._outputs)
    # A daemon: it goes with pytest, should a test fail before it has ended it.
    self._process = context().Process(target=_main, args=target, daemon=True)
    self._process.start()
    self.pid = self._process.pid

  @property
  def returncode(self) -> int | None:
    return self._process.exitcode

  def poll(self) -> int | None:
    return self._process.exitcode

  def send_signal(self, number: int) -> None:
    if self.poll() is None:
      with contextlib.suppress(ProcessLookupError):  # it ends just now
        os.kill(self.pid, number)

  def kill(self) -> None:
    self._process.kill()

  def communicate(self, timeout: float | None = None) -> tuple[str, str]:
    self._process.join(timeout)
    if self.poll() is None:
      raise subprocess.TimeoutExpired(self.args, timeout)
    return tuple(path.read_text() for path in self._outputs)


def _main(module: str, arguments: list[str], folder: str, environment: dict[str, str], outputs: list[Path]) -> None:
  for path, number in zip(outputs, (1, 2), strict=True):
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(handle, number)
    os.close(handle)
  # As in a process that starts from nothing: its own children are allowed, and of the usual kind.
  multiprocessing.current_process()._config['daemon'] = False
  multiprocessing.set_start_method(None, force=True)
  os.chdir(folder)
  os.environ.clear()
  os.environ.update(environment)
  time.tzset()
  sys.path.insert(0, folder)  # as -m does
  sys.argv = [module, *arguments]
  try:
    runpy.run_module(module, run_name='__main__', alter_sys=True)
  finally:
    threading._shutdown()
    atexit._run_exitfuncs()
