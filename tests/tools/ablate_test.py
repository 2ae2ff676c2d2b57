"""tools.ablate from outside, on a family made small: runs, is stopped, goes on, writes its tables and its page."""

import functools
import json
import shutil
import signal
import time

import pytest

from tests import tiny
from tests.study.toy import write_family
from yxanul.reporting.run_files import read_run

OVERRIDES = ('--config.model.n_layers=1', '--config.data.tokenizer.sample_bytes=200_000')
NAMES = ('baseline_gpt2', 'strong_gpt2', 'ultra')


start = functools.partial(tiny.start, 'tools.ablate')


@pytest.fixture(scope='module')
def command(tmp_path_factory):
  folder = tmp_path_factory.mktemp('ablate')
  experiment = write_family(folder / 'experiments', *NAMES)
  return folder / 'runs', (
    f'--config={experiment}',
    f'--workdir={folder / "runs"}',
    '--seconds=0.4',
    '--rates=1e-3,3e-3',
    '--rate_seconds=0.2',
    *OVERRIDES,
  )


def test_it_stops_goes_on_and_writes_what_it_knows(command):
  workdir, arguments = command
  result = workdir / '0.4s' / 'ablation.json'
  process = start(*arguments)
  while process.poll() is None and not result.exists():
    time.sleep(0.02)
  process.send_signal(signal.SIGTERM)
  status, output, errors = tiny.finish(process, timeout=300)
  assert status == 75, errors
  assert 'SIGTERM: stopped; the same command goes on from here' in output
  first = [row['name'] for row in json.loads(result.read_text())['runs']]
  assert first == ['baseline_gpt2']
  assert (workdir / '0.2s' / 'strong_gpt2-lr=0.003' / 'seed0' / 'result.json').exists()  # rates come before the family
  kept = (workdir / '0.4s' / 'baseline_gpt2' / 'seed0' / 'metrics.jsonl').read_bytes()

  status, output, errors = tiny.finish(start(*arguments), timeout=300)
  assert status == 0, errors
  assert 'baseline_gpt2, seed 0: finished before' in output
  assert (workdir / '0.4s' / 'baseline_gpt2' / 'seed0' / 'metrics.jsonl').read_bytes() == kept
  for text in ('What each saving gives, 0.4 s a run', 'measured together', 'Claims about parts', 'index.html'):
    assert text in output, text
  record = json.loads(result.read_text())
  (chosen,) = [f'strong_gpt2-lr={row["rate"]:g}' for row in record['tuning'] if row['chosen']]
  assert {row['name'] for row in record['runs']} == {'baseline_gpt2', 'ultra', chosen}
  assert len({row['val_bytes'] for row in record['runs']}) == 1
  assert record['what'] == 'ablate'
  assert 'final_bpb_ultra' in record['figures']
  assert {goal['against'] for goal in record['goals']} == {'baseline_gpt2', chosen}
  parts = {row['claim']: row['found'] for row in record['parts']}
  assert parts['key/value cache saved by grouped queries'] == 0.5
  assert parts['flash attention, times as fast'] > 0
  # What a table is made of stays; the weights of a family would fill a disk.
  left = {path.name for path in (workdir / '0.4s' / 'ultra' / 'seed0').iterdir()}
  assert {'config.json', 'metrics.jsonl', 'result.json', 'report.html'} <= left
  assert 'checkpoints' not in left
  for name in (
    'against_the_baselines_over_training_time.png',
    'savings_alone_over_text.png',
    'the_stack_over_training_time.png',
  ):
    assert (workdir / '0.4s' / name).read_bytes().startswith(b'\x89PNG')
  page = (workdir / '0.4s' / 'index.html').read_text()
  for text in ('baseline_gpt2', 'in the stack', 'var(--run-2)', '</svg>'):
    assert text in page, text


def test_what_is_finished_is_told_again_where_its_text_is_not(command, tmp_path):
  workdir, arguments = command
  copied = tmp_path / 'runs'
  shutil.copytree(workdir, copied, ignore=shutil.ignore_patterns('data'))
  for name in ('ablation.json', 'index.html'):
    (copied / '0.4s' / name).unlink()
  status, output, errors = tiny.finish(start(*arguments, f'--workdir={copied}', '--config.data.source=elsewhere'))
  assert status == 0, errors
  assert output.count('finished before') == 5  # three, and two rates
  assert json.loads((copied / '0.4s' / 'ablation.json').read_text())['runs']
  assert (copied / '0.4s' / 'index.html').exists()
  status, _, errors = tiny.finish(start(*arguments, f'--workdir={copied}', '--config.data.source=elsewhere', '--seeds=2'))
  assert status == 1
  assert "config.data.source: 'elsewhere'" in errors
  assert 'its text could not be prepared' in errors


def test_what_finished_before_a_field_was_there_had_its_default(command):
  workdir, arguments = command
  path = workdir / '0.4s' / 'ultra' / 'seed0' / 'config.json'
  config = json.loads(path.read_text())
  del config['model']['logit_softcap']
  path.write_text(json.dumps(config))
  status, output, errors = tiny.finish(start(*arguments, '--only=ultra', '--rates='))
  assert status == 0, errors
  assert 'ultra, seed 0: finished before' in output


def test_another_machine_may_run_the_later_seeds(command):
  workdir, arguments = command
  status, output, errors = tiny.finish(start(*arguments, '--only=ultra', '--rates=', '--first_seed=1'), timeout=300)
  assert status == 0, errors
  assert 'ultra, seed 1: starting' in output
  assert 'seed 0' not in output
  assert json.loads((workdir / '0.4s' / 'ultra' / 'seed1' / 'config.json').read_text())['seed'] == 1
  rows = json.loads((workdir / '0.4s' / 'ablation.json').read_text())['runs']
  assert {row['name']: row['n'] for row in rows}['ultra'] == 2


def test_what_finished_with_other_values_is_not_taken_for_it(command):
  _, arguments = command
  status, _, errors = tiny.finish(start(*arguments, '--only=ultra', '--rates=', '--config.optimizer.peak_lr=1e-5'))
  assert status == 1
  assert errors.startswith('error: ultra, seed 0: finished before with other values (optimizer.peak_lr: ')
  assert errors.count('\n') == 1


def test_runs_took_the_tokens_of_their_seconds_on_one_text_and_the_flags_reached_all(command):
  workdir, _ = command
  for name in ('baseline_gpt2', 'ultra'):
    config = json.loads((workdir / '0.4s' / name / 'seed0' / 'config.json').read_text())
    speed = json.loads((workdir / 'speeds' / f'{name}.json').read_text())
    assert config['curriculum']['budget_tokens'] == round(0.4 * speed['tokens_per_second'])
    assert config['model']['n_layers'] == 1
    # The tokenizer's fields are for those who share the experiment's.
    assert (config['data']['tokenizer']['sample_bytes'] == 200_000) is (name == 'ultra')
    assert (config['data']['source'], config['evaluation']['max_bytes']) == ('python-docs', 8000)
    # What a result says was scored is what was, not all that is held out.
    run = read_run(workdir / '0.4s' / name / 'seed0')
    assert 0 < run.result['val_bytes'] == run.evaluations[-1]['val_bytes'] <= 8000
    assert config['data']['directory'] == str(
      workdir / 'data' / ('trained-511-511' if name == 'baseline_gpt2' else 'trained-511-400')
    )


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--seconds=1'], '--workdir: missing'),
    (['--workdir=x'], '--seconds: got None, wants the seconds of training'),
    (['--workdir=x', '--seconds=1', '--rates=1e-3,fast'], "--rates: got '1e-3,fast', wants learning rates"),
    (['--workdir=x', '--seconds=1', '--rate_seconds=0'], '--rate_seconds: got 0, wants the seconds'),
    (['--workdir=x', '--seconds=1', '--only=ultar'], "--only: got 'ultar', no experiment in .*; did you mean 'ultra'?"),
    (
      ['--workdir=x', '--seconds=1', '--config.curriculum.stages[3].lr_scale=0.9'],
      'baseline_gpt2.py: does not take --config.curriculum.stages[3]',
    ),
  ],
  ids=['workdir', 'seconds', 'rates', 'rate_seconds', 'only', 'override'],
)
def test_a_mistake_is_one_line_and_status_2(arguments, message):
  import re

  status, _, errors = tiny.finish(start('--config=experiments/ultra.py', *arguments), timeout=300)
  assert status == 2
  assert re.search(message.replace('[', r'\[').replace('?', r'\?'), errors), errors
  assert errors.strip().count('\n') == 0
