"""python -m yxanul.tools.doctor: the machine, what is missing with its line, the pre-flight and its exit status."""

import dataclasses
import functools
import json
import os

import pytest

from tests import tiny
from yxanul.config.convert import to_dict
from yxanul.kernels import capabilities
from yxanul.kernels.capabilities import Capabilities
from yxanul.tools import doctor

HOPPER = Capabilities(
  device='cuda',
  name='NVIDIA H200',
  compute_capability=(9, 0),
  memory_bytes=150 * 10**9,
  versions=(('torch', '2.11.0+cu130'), ('cuda', '13.0'), ('cudnn', '91300'), ('triton', '3.6.0')),
  missing=(('transformer_engine', 'ModuleNotFoundError: none'), ('flash_attn', 'ModuleNotFoundError: none')),
)
CARD = {'name': 'NVIDIA H200', 'driver': '580.65', 'memory': '143771 MiB'}


run = functools.partial(tiny.tool, 'doctor')


def test_the_preflight_of_an_experiment_that_can_run(tmp_path):
  path = tmp_path / 'doctor.json'
  done = run(*tiny.flags(), f'--workdir={tmp_path / "work"}', '--steps=2', '--price=3', f'--json={path}')
  assert done.returncode == 0, done.stderr + done.stdout
  for words in ('this machine', 'runs by', 'the whole run at this speed', 'of training, $0.00', 'quickstart can run here'):
    assert words in done.stdout
  result = json.loads(path.read_text())
  assert result['can_run'] is True
  assert [row['n'] for row in result['steps']['stages']] == [2] * 10
  assert {finding['level'] for finding in result['findings']} <= {'ok', 'warning'}
  assert 'speed and memory not compared' in result['findings'][-1]['text']
  assert [p.name for p in (tmp_path / 'work').iterdir()] == ['data']


def test_a_workdir_of_another_run_cannot_take_this_one(tmp_path):
  (tmp_path / 'config.json').write_text(json.dumps(to_dict(tiny.spec(seed=7))))
  (tmp_path / 'result.json').write_text('{}')
  done = run(*tiny.flags(), f'--workdir={tmp_path}')
  assert done.returncode == 1
  assert 'holds a run of another configuration' in done.stdout
  assert sorted(p.name for p in tmp_path.iterdir()) == ['config.json', 'result.json']


def test_a_logger_without_its_package_cannot_run(tmp_path, monkeypatch):
  """As main would say it, before money is spent."""
  from yxanul.training import loggers

  monkeypatch.setattr(loggers.importlib.util, 'find_spec', lambda name: None)
  spec = tiny.spec(training__loggers=('wandb',))
  (found,) = doctor._preflight(spec, tmp_path / 'run', Capabilities('cpu', 'CPU'), {})
  assert found.level == 'problem'
  assert 'wandb' in found.text
  assert 'pip install' in found.text


def test_data_that_is_missing_cannot_run(tmp_path):
  done = run(*tiny.flags(data__source='/no/such/text.txt'), f'--workdir={tmp_path / "work"}')
  assert done.returncode == 1
  assert "'/no/such/text.txt' does not exist" in done.stdout
  assert 'quickstart cannot run here' in done.stdout
  assert not (tmp_path / 'work').exists()


@pytest.mark.parametrize(
  ('arguments', 'problem'),
  [
    (['--config=experiments/no.py'], 'error: --config=experiments/no.py: no such experiment'),
    (['--steps=0'], 'error: flag --steps=0'),
  ],
)
def test_a_mistake_is_status_2(arguments, problem):
  done = run(*arguments)
  assert (done.returncode, done.stdout) == (2, '')
  assert done.stderr.startswith(problem)


def test_the_machine_and_its_engines():
  found = {row['what']: row['found'] for row in doctor._machine(HOPPER, CARD)}
  assert found['GPU'] == 'NVIDIA H200 (sm_90), 150.0 GB'
  assert (found['driver'], found['CUDA'], found['cuDNN'], found['triton']) == ('580.65', '13.0', '91300', '3.6.0')
  assert found['transformer_engine'] == '–'
  rows = doctor._engines(HOPPER, doctor.PrecisionSpec(), None)
  engines = {row['part']: row['engine'] for row in rows}
  assert (engines['linears'], engines['attention'], engines['vocabulary loss']) == ('torch', 'cudnn', 'triton')
  assert engines['the step'] == 'graph'
  assert any('transformer_engine does not load' in row['why'] for row in rows if row['part'] == 'note')


def test_everything_that_can_be_missing_has_a_line():
  names = (*capabilities._LIBRARIES, 'cudnn')
  card = dataclasses.replace(HOPPER, missing=tuple((name, 'broken') for name in names))
  assert [line.split(' ')[0] for line in doctor._missing(card, CARD)] == list(names)


def test_what_is_missing_comes_with_what_to_type():
  te, flash = doctor._missing(HOPPER, CARD)
  assert te.endswith("ModuleNotFoundError: none: pip install --no-build-isolation 'transformer-engine[pytorch]>=2.9'")
  assert 'flash_attn' in flash
  (line,) = doctor._missing(Capabilities('cpu', 'CPU', versions=(('torch', '2.13.0+cpu'),)), CARD)
  assert line.startswith('torch sees no GPU, nvidia-smi does: pip install')
  assert doctor._missing(Capabilities('cpu', 'CPU'), None) == []


@pytest.mark.parametrize(
  ('script', 'expected'),
  [
    ('echo "NVIDIA H200, 580.65, 143771 MiB"; echo "NVIDIA H200, 580.65, 143771 MiB"', CARD),
    ('echo "NVIDIA-SMI has failed"; exit 9', None),
    ('true', None),
  ],
)
def test_the_driver_by_nvidia_smi(script, expected, tmp_path, monkeypatch):
  program = tmp_path / 'nvidia-smi'
  program.write_text(f'#!/bin/sh\n{script}\n')
  program.chmod(0o755)
  monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
  assert capabilities.driver() == expected
