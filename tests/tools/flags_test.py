"""What holds for the flags of every tool: --help, --json, numbers."""

import ast
import json
import os
import re
import subprocess
import sys

import pytest

from tests import tiny
from yxanul.config import json_flag

PACKAGE = tiny.REPOSITORY / 'yxanul'
PROGRAMS = ['main', *(f'tools.{path.stem}' for path in sorted((PACKAGE / 'tools').glob('[!_]*.py')))]
SOURCES = {name: (PACKAGE / f'{name.replace(".", "/")}.py').read_text() for name in PROGRAMS}
WITH_JSON = [name for name, source in SOURCES.items() if 'json_flag.output()' in source]


@pytest.mark.parametrize('name', PROGRAMS)
def test_help_is_printed_with_every_flag_of_its_own(name):
  asked = '-h' if name == 'main' else '--help'
  status, output, errors = tiny.finish(tiny.start(name, '--config=experiments/no_such.py', asked))
  assert (status, errors) == (0, '')
  assert output.startswith(ast.get_docstring(ast.parse(SOURCES[name])).splitlines()[0])
  own = re.findall(r"^_\w+ = flags\.DEFINE_\w+\(\s*'(\w+)'", SOURCES[name], re.MULTILINE)
  own += ['config'] * ('cli.spec()' in SOURCES[name]) + ['json'] * (name in WITH_JSON)
  shown = re.findall(r'^  --(?:\[no\])?(\w+):', output, re.MULTILINE)
  assert set(own) <= set(shown)


def test_no_tool_has_a_json_flag_of_its_own():
  assert len(WITH_JSON) == 5
  for source in SOURCES.values():
    assert "'json', " not in source


@pytest.fixture(scope='module')
def runs(trained_run, tmp_path_factory):
  """The same run in two folders."""
  folder = tmp_path_factory.mktemp('runs')
  for name in ('a', 'b'):
    (folder / name).symlink_to(trained_run)
  return folder


ARGUMENTS = {
  'tools.bench': ['--what=optimizer', *tiny.flags()],
  'tools.compare': ['RUNS/a', 'RUNS/b', '--workdir=RUNS/compared'],
  'tools.doctor': [],
  'tools.evaluate': ['--model=RUNS/a'],
  'tools.plan': ['--config=experiments/quickstart.py'],
}


@pytest.mark.parametrize('name', WITH_JSON)
def test_json_has_standard_output_alone(name, runs, tmp_path):
  arguments = [argument.replace('RUNS', str(runs)) for argument in ARGUMENTS[name]]
  status, output, errors = tiny.finish(tiny.start(name, *arguments, '--json=-'))
  assert status == 0, errors
  assert json.loads(output)
  assert '─' in errors  # of a table
  assert not (tiny.REPOSITORY / '-').exists()


@pytest.mark.parametrize('name', WITH_JSON)
def test_json_that_cannot_be_written_is_told_at_once(name, runs):
  arguments = [argument.replace('RUNS', str(runs)) for argument in ARGUMENTS[name]]
  errors = 'error: --json=/no/such/x.json: the folder does not exist\n'
  assert tiny.finish(tiny.start(name, *arguments, '--json=/no/such/x.json')) == (2, '', errors)


@pytest.mark.parametrize(
  ('path', 'problem'),
  [('', '--json: got .., wants a file'), ('/tmp', '--json: got ./tmp., wants a file'), ('x.json', 'x.json: cannot be written')],
)
def test_what_is_no_place_for_json(path, problem, monkeypatch):
  monkeypatch.setattr(os, 'access', lambda *_: False)
  with pytest.raises(ValueError, match=problem):
    json_flag._check(path)


@pytest.mark.parametrize(('name', 'flag'), [('main', 'config'), ('tools.evaluate', 'json'), ('tools.generate', 'prompt')])
def test_a_flag_without_its_value_does_not_take_the_next(name, flag):
  errors = f'error: --{flag}: has no value, wants --{flag}=VALUE\n'
  assert tiny.finish(tiny.start(name, f'--{flag}', '--verbosity=0')) == (2, '', errors)


@pytest.mark.parametrize(
  ('name', 'argument'), [('tools.generate', '--config=experiments/ultra.py'), ('tools.compare', '--config.seed=1')]
)
def test_an_experiment_is_refused_where_it_would_mean_nothing(name, argument):
  errors = f'error: {argument}: means nothing to this program; --help lists its flags\n'
  assert tiny.finish(tiny.start(name, argument)) == (2, '', errors)


@pytest.mark.parametrize(
  ('name', 'flag', 'value'),
  [
    ('main', 'price', 'inf'),
    ('tools.ablate', 'seconds', 'nan'),
    ('tools.compare', 'seconds', 'inf'),
    ('tools.generate', 'temperature', 'nan'),
  ],
)
def test_numbers_are_finite(name, flag, value):
  errors = f'error: --{flag}: got {value}, wants a finite number\n'
  assert tiny.finish(tiny.start(name, f'--{flag}={value}')) == (2, '', errors)


@pytest.mark.parametrize(
  ('name', 'flag', 'value', 'wants'),
  [('tools.plan', 'price', 'cheap', 'a number'), ('tools.doctor', 'steps', '1.5', 'a whole number')],
)
def test_a_word_is_no_number(name, flag, value, wants):
  errors = f"error: --{flag}: got '{value}', wants {wants}\n"
  assert tiny.finish(tiny.start(name, f'--{flag}={value}')) == (2, '', errors)


def test_libraries_keep_their_own_affairs_to_themselves():
  code = "import logging; from yxanul.config import cli; cli.run(lambda: logging.info('fonts') or logging.warning('fire'))"
  done = subprocess.run([sys.executable, '-c', code], cwd=tiny.REPOSITORY, capture_output=True, text=True, check=True)
  assert 'fire' in done.stderr
  assert 'fonts' not in done.stderr
