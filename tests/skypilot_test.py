"""third_party/skypilot.yaml, as far as it can be tried without renting anything."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests import tiny
from yxanul.config import registry
from yxanul.config.convert import from_config

FILE = tiny.REPOSITORY / 'third_party' / 'skypilot.yaml'
pytestmark = pytest.mark.skipif(not FILE.exists(), reason='an image, which leaves it out')
# Fields of SkyPilot's YAML (docs.skypilot.co/en/latest/reference/yaml-spec.html), of those that a task like this could have.
TASK = {'name', 'workdir', 'num_nodes', 'resources', 'envs', 'secrets', 'file_mounts', 'setup', 'run'}
RESOURCES = {'accelerators', 'disk_size', 'use_spot', 'any_of', 'job_recovery', 'infra', 'cpus', 'memory', 'image_id'}


@pytest.fixture(scope='module')
def task() -> dict:
  return yaml.safe_load(FILE.read_text())


def test_it_has_skypilots_fields_and_the_missions_providers(task):
  assert set(task) <= TASK
  assert set(task['resources']) <= RESOURCES
  offers = task['resources']['any_of']
  assert all(set(offer) <= RESOURCES for offer in offers)
  assert {'lambda', 'runpod', 'vast'} <= {offer['infra'] for offer in offers}


@pytest.mark.parametrize('part', ['setup', 'run'])
def test_its_scripts_are_bash(task, part):
  done = subprocess.run(['bash', '-n'], input=task[part], text=True, capture_output=True, check=False)
  assert (done.returncode, done.stderr) == (0, '')


@pytest.mark.parametrize('gpu', ['h100', 'a100-80', 'a100-40'])
def test_its_command_is_one_that_the_run_takes(task, tmp_path, gpu):
  """The script with a torchrun that shows its arguments, on the second of two machines with eight GPUs each."""
  saved, home = tmp_path / 'saved', tmp_path / 'home'
  (saved / 'checkpoints' / '7').mkdir(parents=True)
  (home / 'yxanul' / 'bin').mkdir(parents=True)
  torchrun = home / 'yxanul' / 'bin' / 'torchrun'
  torchrun.write_text(f'#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n')
  torchrun.chmod(0o755)
  (home / 'yxanul' / 'bin' / 'activate').write_text(f'PATH={torchrun.parent}:$PATH\n')
  envs = {name: str(value) for name, value in task['envs'].items()} | {'GPU': gpu, 'HOME': str(home), 'PATH': '/usr/bin:/bin'}
  sky = {'NUM_NODES': '2', 'NUM_GPUS_PER_NODE': '8', 'NODE_RANK': '1', 'NODE_IPS': '10.0.0.1\n10.0.0.2', 'TASK_ID': 'sky-1'}
  envs |= {f'SKYPILOT_{name}': value for name, value in sky.items()}
  script = task['run'].replace('/saved', str(saved))
  done = subprocess.run(['bash', '-c', script], cwd=tmp_path, env=envs, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  arguments = json.loads(done.stdout)
  for argument in ('--nnodes=2', '--nproc_per_node=8', '--rdzv-endpoint=10.0.0.1:29400'):
    assert argument in arguments
  assert (tmp_path / 'runs' / 'ultra' / 'checkpoints' / '7').is_dir()  # what an earlier machine had saved
  # The same flags as the program would read them.
  own = arguments[arguments.index('yxanul.main') + 1 :]
  experiment = next(a.removeprefix('--config=') for a in own if a.startswith('--config='))
  path, _, variant = experiment.partition(':')
  config = registry.load(f'{tiny.REPOSITORY / path}:{variant}')
  overrides = dict(a.removeprefix('--config.').split('=', 1) for a in own if a.startswith('--config.'))
  config.update_from_flattened_dict(overrides)
  spec = from_config(config)
  assert spec.training.checkpoint_command == f'cp -r -t {saved}/checkpoints'
  assert spec.data.source == 'HuggingFaceFW/fineweb-edu'
  assert all(stage.batch_size % 16 == 0 for stage in spec.curriculum.stages)
  assert own[-1] == '--workdir=runs/ultra'
  assert not Path(tmp_path / 'saved' / 'result.json').exists()  # the first machine's to write
