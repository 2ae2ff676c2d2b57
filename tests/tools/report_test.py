"""python -m yxanul.tools.report: the page rebuilt, and one line for a mistake."""

import functools
import json

import pytest

from tests import tiny
from yxanul.config.convert import to_dict
from yxanul.config.spec import ExperimentSpec

report = functools.partial(tiny.tool, 'report')


def test_it_writes_the_page_and_prints_where(tmp_path):
  (tmp_path / 'config.json').write_text(json.dumps(to_dict(ExperimentSpec(name='begun', note='so far'))))
  done = report(str(tmp_path))
  assert done.returncode == 0, done.stderr
  assert done.stdout == f'{tmp_path / "report.html"}\n'
  assert 'begun' in (tmp_path / 'report.html').read_text()


def test_several_runs_make_a_comparison(tmp_path):
  for name, seed in (('a', 1), ('b', 2)):
    (tmp_path / name).mkdir()
    (tmp_path / name / 'config.json').write_text(json.dumps(to_dict(ExperimentSpec(name='begun', seed=seed))))
  done = report(str(tmp_path / 'a'), str(tmp_path / 'b'), f'--output={tmp_path / "out"}')
  assert done.returncode == 0, done.stderr
  assert done.stdout == f'{tmp_path / "out" / "index.html"}\n'
  assert '<td>seed</td><td>1</td><td>2</td>' in (tmp_path / 'out' / 'index.html').read_text()


@pytest.mark.parametrize(
  ('arguments', 'problem'),
  [
    ([], 'error: RUN: missing, wants the workdir of a run, or several to compare: runs/a runs/b\n'),
    (['/nowhere/at/all'], 'error: /nowhere/at/all: not the workdir of a run, it has no config.json\n'),
    (['--outptu=x'], "error: Unknown command line flag 'outptu'. Did you mean: output ?\n"),
  ],
)
def test_a_mistake_is_one_line_and_status_2(arguments, problem):
  done = report(*arguments)
  assert (done.returncode, done.stdout, done.stderr) == (2, '', problem)


def test_the_folder_of_another_program_is_named(tmp_path):
  (tmp_path / 'config.json').write_text('{"model_type": "llama"}')
  done = report(str(tmp_path))
  assert (done.returncode, done.stdout) == (2, '')
  assert done.stderr == f"error: {tmp_path}: not the workdir of a run, config.json there is not a run's\n"
