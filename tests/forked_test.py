"""A forked program is, to whoever starts it, the same as one that starts from nothing."""

import importlib.util
import os
import signal
import subprocess

import pytest

from tests import tiny
from tests.forked import PRELOADED, Program


@pytest.mark.parametrize('module', PRELOADED)
def test_what_the_server_imports_is_there(module):
  """The server says nothing of a module that is not: programs would only start later."""
  assert importlib.util.find_spec(module)


@pytest.mark.parametrize(
  'arguments', [('--help',), ('--list=json',), ('--config=experiments/quikstart.py',)], ids=['help', 'list', 'mistake']
)
def test_status_and_output_are_those_of_a_start_from_nothing(arguments):
  forked, afresh = tiny.main(*arguments), tiny.start_afresh('main', *arguments)
  assert tiny.finish(forked) == tiny.finish(afresh)


def test_it_has_an_environment_a_folder_and_an_end_of_its_own(tmp_path):
  (tmp_path / 'own.py').write_text(
    'import atexit, os, sys, threading, time\n'
    'atexit.register(print, "left")\n'
    'threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()\n'
    'print(__name__, sys.argv[1:], os.getcwd(), sorted(os.environ))\n'
    'sys.exit("told")\n'
  )
  process = Program('own', ['a b', ''], tmp_path, {'OWN': '1'})
  assert tiny.finish(process) == (1, f"__main__ ['a b', ''] {tmp_path} ['OWN']\nthread\nleft\n", 'told\n')


def test_what_takes_too_long_is_killed():
  process = Program('http.server', ['0', '--bind=127.0.0.1'], tiny.REPOSITORY, dict(os.environ))
  assert process.poll() is None
  with pytest.raises(subprocess.TimeoutExpired):
    tiny.finish(process, timeout=0.5)
  assert process.poll() == -signal.SIGKILL
