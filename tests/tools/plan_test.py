"""python -m yxanul.tools.plan: its tables, JSON and picture, the card's variant, and one line for a mistake."""

import functools
import json
import os
import signal

import pytest
from rich.text import Text

from tests import tiny
from yxanul.planning import speed

BENCH = speed.fitted()['record']
BENCHED = 'experiments/ultra.py:gpu=h200,batch=0.25'


plan = functools.partial(tiny.tool, 'plan')


def test_tables_json_and_picture(tmp_path):
  path, picture = tmp_path / 'plan.json', tmp_path / 'plan.png'
  done = plan('--config=experiments/ultra.py', '--gpu=h200', '--price=3.5', f'--json={path}', f'--plot={picture}')
  assert done.returncode == 0, done.stderr
  for words in ('Stages on H200', 'Memory at its peak, of 141 GB', 'Timeline', 'Lambda', '--price', 'The claims', 'Mastery'):
    assert words in done.stdout
  result = json.loads(path.read_text())
  assert [row['batch_size'] for row in result['stages']][:2] == [4 * 8192, 4 * 8192]  # the variant gpu=h200
  assert result['providers'][-1]['dollars'] == pytest.approx(3.5 * result['total']['seconds'] / 3600, rel=0.05)
  assert picture.read_bytes().startswith(b'\x89PNG')


def test_eighty_columns_hold_every_table():
  arguments = ('--config=experiments/ultra.py', '--gpu=h200', '--price=3.5')
  done = plan(*arguments, FORCE_COLOR='1', COLUMNS='80')  # by which rich takes a pipe for a terminal
  assert done.returncode == 0, done.stderr
  text = Text.from_ansi(done.stdout).plain.partition('ultra on H200')[0]
  lines = text.splitlines()
  assert max(map(len, lines)) == 80
  assert '…' not in text
  assert 'continued' not in text
  assert [line.split()[-1] for line in lines if line.startswith('13.2 tokens a')] == ['yes']


def test_overrides_stay_when_the_card_is_chosen_and_other_experiments_have_no_claims():
  fields = ('--config.curriculum.budget_tokens=1_000_000_000', '--config.curriculum.stages[9].batch_size=128')
  result = json.loads(plan('--config=experiments/ultra.py:gpu=rtx4090', '--gpu=h100', *fields, '--json=-').stdout)
  assert result['total']['budget_tokens'] == 1_000_000_000
  assert (result['stages'][9]['batch_size'], result['stages'][8]['batch_size']) == (128, 256)
  result = json.loads(plan('--config=experiments/baseline_gpt2.py', '--json=-').stdout)
  assert result['gpu'] == 'H200'
  assert result['claims'] == []
  assert 'claimed_tokens_per_second' not in result['providers'][0]


def test_the_largest_batches_are_the_cards_own():
  flags = ('--config=experiments/ultra.py', '--config.curriculum.batch_size=max', '--json=-')
  small, large = (json.loads(plan(*flags, f'--gpu={gpu}').stdout) for gpu in ('a100-80', 'h200'))
  for a, b in zip(small['stages'], large['stages'], strict=True):
    assert a['parts'] == b['parts'] == 1
    assert a['batch_size'] < b['batch_size'] <= b['largest_batch']
  assert small['providers'] == large['providers']


def test_the_card_is_that_of_the_variant():
  assert json.loads(plan('--config=experiments/ultra.py:gpu=a100-80', '--json=-').stdout)['gpu'] == 'A100 80GB'
  assert json.loads(plan('--config=experiments/ultra.py', '--json=-').stdout)['gpu'] == 'RTX 4090'


def test_a_check_against_the_recorded_bench_is_a_record(tmp_path):
  path = tmp_path / 'check.json'
  done = plan(f'--config={BENCHED}', f'--check={BENCH}', f'--json={path}')
  assert done.returncode == 0, done.stderr
  assert 'speed_error_max' in done.stdout
  record = json.loads(path.read_text())
  assert record['what'] == 'plan-check'
  assert record['hardware'] == 'NVIDIA H200'
  assert record['figures']['speed_error_max']['value'] < 0.1
  assert record['figures']['memory_error_max']['value'] < 0.08
  assert len(record['stages']) == 10
  # A record of the bench, in which what is said of the engines was left out, is enough.
  done = plan(f'--config={BENCHED}', '--check=experiments/records/2026-11-22_bench-ultra/record.json', '--json=-')
  assert json.loads(done.stdout)['figures'] == record['figures']


def test_a_bench_that_it_was_not_fitted_to_is_as_near_as_the_record_says(tmp_path):
  folder, path = tiny.REPOSITORY / 'experiments/records/2026-11-29_plan-check', tmp_path / 'check.json'
  done = plan(f'--config={BENCHED}', f'--check={folder / "bench.json"}', f'--json={path}')
  assert done.returncode == 0, done.stderr
  found, recorded = (json.loads(text.read_text())['figures'] for text in (path, folder / 'record.json'))
  assert str(folder.name) not in BENCH
  for name, most in (('speed_error_max', 0.1), ('memory_error_max', 0.08)):
    assert found[name]['value'] == pytest.approx(recorded[name]['value'], abs=5e-4)
    assert found[name]['value'] < most


def test_a_fit_prints_what_fit_json_holds():
  done = plan(f'--config={BENCHED}', f'--fit={BENCH}')
  assert done.returncode == 0, done.stderr
  assert json.loads(done.stdout) == speed.fitted()


@pytest.mark.parametrize(
  ('arguments', 'problem'),
  [
    (['--gpu=h200'], 'error: --config: missing'),
    (['--config=experiments/ultra.py', '--gpu=h20'], "error: --gpu: got 'h20', wants one of rtx4090, a100-40"),
    (['--config=experiments/ultra.py', '--price=-1'], 'error: flag --price=-1'),
    (['--config=experiments/ultra.py', '--check=README.md'], 'error: --check=README.md: not readable as JSON'),
    (
      ['--config=experiments/ultra.py', '--gpu=h100', f'--check={BENCH}'],
      f'error: --check={BENCH}: measured on NVIDIA H200, the plan is for --gpu=h100',
    ),
    (['--config=experiments/ultra.py:gpu=h100', f'--check={BENCH}'], 'error: the bench timed no stage of this plan'),
    (
      ['--config=experiments/ultra.py', '--plot=plan.txt'],
      'error: --plot=plan.txt: wants a name that ends in .png, .svg or .pdf',
    ),
  ],
)
def test_a_mistake_is_one_line_and_status_2(arguments, problem):
  done = plan(*arguments)
  assert (done.returncode, done.stdout) == (2, '')
  assert done.stderr.startswith(problem)
  assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
  ('flag', 'text', 'field'),
  [
    ('check', '{}', 'hardware'),
    ('fit', '[]', 'hardware'),
    ('check', '{"hardware": "NVIDIA H200", "versions": {}, "n": 1, "schedule": null, "stages": [1]}', 'stages'),
    ('fit', '{"hardware": "NVIDIA H200", "versions": {}, "n": 1, "schedule": null, "stages": []}', 'precision'),
    ('fit', '{"hardware": "NVIDIA H200", "precision": "fp8", "stages": [{"stage": 1, "ms": 2.0}]}', 'stages: attention'),
  ],
)
def test_json_that_is_no_bench_is_one_line(flag, text, field, tmp_path):
  path = tmp_path / 'bench.json'
  path.write_text(text)
  done = plan('--config=experiments/ultra.py', f'--{flag}={path}')
  assert (done.returncode, done.stdout) == (2, '')
  assert done.stderr == f"error: --{flag}={path}: not a bench of tools.bench --json, it lacks '{field}'\n"


def test_ctrl_c_ends_without_a_traceback(tmp_path):
  os.mkfifo(tmp_path / 'bench.json')
  heard = {'preexec_fn': lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}  # a shell's jobs in the background ignore it
  process = tiny.start_afresh('tools.plan', '--config=experiments/ultra.py', f'--check={tmp_path / "bench.json"}', **heard)
  with (tmp_path / 'bench.json').open('w'):  # opens once the tool does
    process.send_signal(signal.SIGINT)
  # Closed again: a signal that came before the tool began to read is handled only when that ends.
  assert tiny.finish(process) == (130, '', '\n')
