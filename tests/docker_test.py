"""The Dockerfile, read without a Docker engine, and the guard that keeps NVIDIA's packages, tried on stand-ins for them."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PINS = ROOT / 'third_party' / 'nvidia_pins.py'
IMAGE = {'torch': '2.11.0a0+eb65b36914.nv26.2', 'transformer_engine': '2.14.0+71bbefbf', 'numpy': '2.1.0', 'rich': '13.0.0'}


def instructions() -> list[tuple[str, str]]:
  """The Dockerfile as (instruction, argument) pairs, comments dropped and continued lines joined."""
  text = re.sub(r'^\s*#.*\n', '', (ROOT / 'Dockerfile').read_text(), flags=re.MULTILINE)
  lines = re.sub(r'\\\n\s*', '', text).splitlines()
  return [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]


def test_the_image_is_nvidias_by_an_argument():
  found = instructions()
  assert found[:2] == [('ARG', 'NVIDIA_PYTORCH_TAG=26.02-py3'), ('FROM', 'nvcr.io/nvidia/pytorch:${NVIDIA_PYTORCH_TAG}')]
  assert '24.10' in (ROOT / 'Dockerfile').read_text()  # the mission's claim is named


def test_what_runs_is_no_root():
  found = instructions()
  users = [argument for name, argument in found if name == 'USER']
  assert users == ['yxanul']
  after = [name for name, _ in found[found.index(('USER', 'yxanul')) :]]
  assert 'RUN' not in after
  assert after[-1] == 'CMD'
  assert any(name == 'RUN' and re.search(r'useradd .*yxanul', argument) for name, argument in found)


def test_versions_are_recorded_before_constrain_and_are_checked_after():
  runs = [argument for name, argument in instructions() if name == 'RUN']
  recorded = next(i for i, run in enumerate(runs) if 'nvidia_pins.py record third_party/nvidia_constraints.txt' in run)
  installs = [i for i, run in enumerate(runs) if 'pip install' in run]
  assert len(installs) == 1
  assert installs[0] > recorded
  install = runs[installs[0]]
  assert re.search(r'PIP_CONSTRAINT="\S+/nvidia_constraints.txt \S+/third_party/constraints.txt" .*pip install', install)
  assert '&& python third_party/nvidia_pins.py check third_party/nvidia_constraints.txt' in install
  assert install.index('pip install') < install.index('nvidia_pins.py check')
  assert not re.search(r'\|\||;', install)  # nothing that would swallow a failure


def test_everything_that_is_copied_exists_and_travels():
  ignored = (ROOT / '.dockerignore').read_text().split()
  assert ignored[0] == '**'
  for name, argument in instructions():
    if name == 'COPY':
      for source in argument.split()[:-1]:
        assert f'!{source.split("/")[0]}' in ignored
        assert (ROOT / source).exists()


def test_constraints_pin_no_package_of_nvidias_and_fit_setup_py():
  pins = dict(re.findall(r'^([a-z0-9-]+)==(\S+)$', (ROOT / 'third_party' / 'constraints.txt').read_text(), re.MULTILINE))
  wanted = dict(re.findall(r"^    '([a-z0-9-]+)>=([0-9.]+)", (ROOT / 'setup.py').read_text(), re.MULTILINE))
  assert not [name for name in pins if name.startswith(('torch', 'numpy', 'nvidia', 'triton', 'transformer-engine', 'flash'))]
  for name, least in wanted.items():
    if name not in ('torch', 'numpy'):
      assert [int(n) for n in pins[name].split('.')] >= [int(n) for n in least.split('.')], name


@pytest.fixture
def site(tmp_path):
  """A folder of stand-ins: distributions by name and version, with metadata and nothing else."""

  def install(versions: dict[str, str]) -> Path:
    folder = tmp_path / 'site'
    for old in folder.glob('*/METADATA'):
      old.unlink()
      old.parent.rmdir()
    for name, version in versions.items():
      metadata = folder / f'{name}-{version}.dist-info' / 'METADATA'
      metadata.parent.mkdir(parents=True)
      metadata.write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n')
    return folder

  return install


def pins(site: Path, *arguments: str) -> subprocess.CompletedProcess:
  # -S: only the stand-ins are installed.
  command = [sys.executable, '-S', str(PINS), *map(str, arguments)]
  return subprocess.run(command, env={**os.environ, 'PYTHONPATH': str(site)}, capture_output=True, text=True, timeout=60)


def test_record_writes_what_must_stay_and_leaves_the_rest_free(site, tmp_path):
  done = pins(site(IMAGE | {'nvidia-cudnn-cu13': '9.17.0', 'flash_attn': '2.7.4.post1+nv26.2'}), 'record', tmp_path / 'c.txt')
  assert done.returncode == 0, done.stderr
  assert (tmp_path / 'c.txt').read_text().splitlines() == [
    'flash-attn==2.7.4.post1+nv26.2',
    'numpy==2.1.0',
    'nvidia-cudnn-cu13==9.17.0',
    'torch==2.11.0a0+eb65b36914.nv26.2',
    'transformer-engine==2.14.0+71bbefbf',
  ]
  assert 'torch 2.11.0a0+eb65b36914.nv26.2 and transformer-engine 2.14.0+71bbefbf' in done.stdout


@pytest.mark.parametrize(
  ('versions', 'problem'),
  [
    ({'torch': '2.10.0a0+a36e1d39eb.nv26.1', 'transformer_engine': '2.11.0'}, 'too old, wants 2.11 or later'),
    ({'torch': '2.5.0a0+e000cf0ad9.nv24.10', 'transformer_engine': '1.11.0'}, 'too old, wants 2.11 or later'),
    ({'torch': '2.11.0'}, 'transformer-engine is not installed here'),
    ({'transformer_engine': '2.14.0'}, 'torch is not installed here'),
  ],
)
def test_record_refuses_an_image_that_will_not_do(site, tmp_path, versions, problem):
  done = pins(site(versions), 'record', tmp_path / 'c.txt')
  assert done.returncode == 1
  assert problem in done.stderr
  assert not (tmp_path / 'c.txt').exists()


@pytest.mark.parametrize(
  ('change', 'problem'),
  [
    ({}, ''),
    ({'rich': '15.0.0', 'orbax_checkpoint': '0.12.8'}, ''),
    ({'torch': '2.13.0'}, 'torch: 2.11.0a0+eb65b36914.nv26.2 -> 2.13.0'),
    ({'transformer_engine': '2.20.2'}, 'transformer-engine: 2.14.0+71bbefbf -> 2.20.2'),
    ({'numpy': None}, 'numpy: 2.1.0 -> gone'),
  ],
)
def test_check_fails_where_the_installation_changed_something(site, tmp_path, change, problem):
  assert pins(site(IMAGE), 'record', tmp_path / 'c.txt').returncode == 0
  now = {name: version for name, version in (IMAGE | change).items() if version is not None}
  done = pins(site(now), 'check', tmp_path / 'c.txt')
  assert done.returncode == (1 if problem else 0), done.stderr
  assert problem in done.stderr


@pytest.mark.parametrize(
  ('needs', 'resolves'), [('torch>=2.11.0a0,<2.14', True), ('torch>=2.12', False), ('numpy>=2.3', False)]
)
def test_pip_under_the_recorded_constraints_keeps_nvidias_build_or_fails(site, tmp_path, needs, resolves):
  """A project that needs `needs`, with a newer torch and NumPy on offer, in the stand-in image."""
  image = site(IMAGE)
  assert pins(image, 'record', tmp_path / 'c.txt').returncode == 0
  (tmp_path / 'index').mkdir()
  for name, version, requires in (('project', '1.0', needs), ('torch', '2.13.0', ''), ('numpy', '2.4.0', '')):
    wheel(tmp_path / 'index', name, version, requires)
  command = [sys.executable, '-m', 'pip', '--isolated', '--disable-pip-version-check', 'install', '--dry-run', '--no-index']
  command += ['--find-links', tmp_path / 'index', '--constraint', tmp_path / 'c.txt', 'project']
  environment = {**os.environ, 'PYTHONPATH': str(image)}
  done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
  assert (done.returncode == 0) == resolves, done.stderr
  if resolves:
    assert 'Would install project-1.0\n' in done.stdout
  else:
    assert 'The user requested (constraint)' in done.stdout + done.stderr


def wheel(folder: Path, name: str, version: str, requires: str) -> None:
  """An empty wheel."""
  info = f'{name}-{version}.dist-info'
  metadata = f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n' + (f'Requires-Dist: {requires}\n' if requires else '')
  with zipfile.ZipFile(folder / f'{name}-{version}-py3-none-any.whl', 'w') as archive:
    archive.writestr(f'{info}/METADATA', metadata)
    archive.writestr(f'{info}/WHEEL', 'Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
    archive.writestr(f'{info}/RECORD', '')
