"""What a run reads back from its workdir, damaged: gone on with as it was, or one line that says what is wrong."""

import ast
import json
import pickle
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import mutations, tiny
from tests.faults import world
from tests.mutations import one_line
from yxanul import run
from yxanul.config.convert import _completed, differing_fields, from_config, to_dict
from yxanul.config.spec import ExperimentSpec
from yxanul.reporting.report import write_report
from yxanul.training.checkpoint import Checkpoints
from yxanul.training.curriculum import Curriculum
from yxanul.training.metrics import MetricsLog
from yxanul.training.overview import parameter_rows, stage_rows
from yxanul.training.workdir import check_workdir

RANDOM = st.randoms(use_true_random=False)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory) -> Path:
  workdir = tmp_path_factory.mktemp('fuzz') / 'run'
  status, output, _ = world.run(workdir)
  assert status == 0, output
  return workdir


def damaged(rng: random.Random, path: Path, to: Path) -> bytes:
  data = path.read_bytes()
  if rng.random() < 0.5:
    data = mutations.bytes_of(rng, data)
  elif path.suffix == '.jsonl':
    lines = data.splitlines()
    at = rng.randrange(len(lines))
    lines[at] = json.dumps(mutations.json_of(rng, json.loads(lines[at]))).encode()
    data = b'\n'.join(lines) + b'\n'
  else:
    data = json.dumps(mutations.json_of(rng, json.loads(data))).encode()
  to.write_bytes(data)
  return data


@settings(max_examples=150, deadline=None)
@given(rng=RANDOM)
def test_a_damaged_config_is_refused_or_the_same(workdir, tmp_path_factory, rng):
  copy = tmp_path_factory.mktemp('config')
  (copy / 'result.json').touch()  # or the configuration binds nobody
  spec = tiny.spec(**world.FIELDS)
  damaged(rng, workdir / 'config.json', copy / 'config.json')
  same = one_line(lambda: check_workdir(spec, copy) or True)
  if same:
    # Nothing that decides the run may differ; how it is looked after may.
    now, wanted = json.loads((copy / 'config.json').read_text()), to_dict(spec)
    kept = {name: value for name, value in now['training'].items() if name in ('execution', 'threads')}
    now['training'], now['data']['workers'] = wanted['training'] | {'execution': 'graph', 'threads': 0} | kept, 0
    assert differing_fields(_completed(ExperimentSpec, now), wanted) == []


@settings(max_examples=150, deadline=None)
@given(rng=RANDOM)
def test_a_damaged_log_keeps_its_whole_lines(workdir, tmp_path_factory, rng):
  path = tmp_path_factory.mktemp('log') / 'metrics.jsonl'
  data = damaged(rng, workdir / 'metrics.jsonl', path)
  log = MetricsLog(path, 10**40)  # no step is later
  log.write({'step': 99, 'loss': 1.0})
  log.close()
  *kept, last = path.read_text().splitlines()
  assert json.loads(last) == {'step': 99, 'loss': 1.0}
  assert all(isinstance(json.loads(line)['step'], int) for line in kept)
  assert [line.encode() for line in kept] == data.splitlines()[: len(kept)]


@settings(max_examples=40, deadline=None)
@given(rng=RANDOM)
def test_a_damaged_workdir_gets_a_report_or_one_line(workdir, tmp_path_factory, rng):
  copy = tmp_path_factory.mktemp('report') / 'run'
  copy.mkdir()
  names = ['config.json', 'metrics.jsonl', 'result.json', 'samples.txt']
  for name in names:
    shutil.copy(workdir / name, copy / name)
  damaged(rng, workdir / (name := rng.choice(names[:3])), copy / name)
  one_line(lambda: write_report(copy))
  run._read_result(copy / 'result.json')


def overview(spec) -> None:
  stage_rows(spec, Curriculum(spec))
  parameter_rows(spec)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_sound_spec_has_an_overview_or_one_line(data):
  """What --dry_run shows, for numbers that nobody would choose."""
  config = to_dict(tiny.spec())
  config = json.loads(json.dumps(config))
  numbers = [
    (owner, key)
    for owner, key in mutations._places(config)
    if isinstance(owner[key], int | float) and not isinstance(owner[key], bool)
  ]
  for owner, key in data.draw(
    st.lists(st.sampled_from(range(len(numbers))), max_size=3).map(lambda at: [numbers[i] for i in at])
  ):
    whole = st.one_of(st.integers(0, 4), st.integers(0, 2**40))
    owner[key] = data.draw(whole if isinstance(owner[key], int) else st.floats(0, 1e6))
  one_line(lambda: overview(from_config(config)))


# --- no pickle ------------------------------------------------------------------------------------------------------------

LOADERS = {'pickle', 'cPickle', '_pickle', 'dill', 'cloudpickle', 'joblib', 'shelve', 'marshal'}


def test_no_module_can_load_a_pickle():
  for path in (tiny.REPOSITORY / 'yxanul').rglob('*.py'):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Import | ast.ImportFrom):
        names = {alias.name.split('.')[0] for alias in node.names} | {(getattr(node, 'module', None) or '').split('.')[0]}
        assert not names & LOADERS, path
      if isinstance(node, ast.Call):
        call = ast.unparse(node.func)
        assert call != 'torch.load', path
        assert not any(
          k.arg == 'allow_pickle' and not (isinstance(k.value, ast.Constant) and k.value.value is False) for k in node.keywords
        ), path


def test_reading_a_run_back_unpickles_nothing(workdir, tmp_path, monkeypatch):
  """Checkpoint, shards and tokenizer are read while every way to unpickle raises."""

  def refuse(*_, **__):
    raise AssertionError('a pickle was loaded')

  for module, names in ((pickle, ('load', 'loads', 'Unpickler')), (torch, ('load',))):
    for name in names:
      monkeypatch.setattr(module, name, refuse)
  from yxanul.data import prepare

  spec = tiny.spec(**world.FIELDS)
  prepared = prepare.prepare(spec.data, workdir / 'data')
  assert prepared.train.tokens[0][0] >= 0
  shutil.copytree(workdir / 'checkpoints', tmp_path / 'c')
  checkpoints = Checkpoints(tmp_path / 'c', 2)
  from yxanul.optim.build import build
  from yxanul.training.state import init_state

  state = init_state(spec, build(spec.optimizer, spec.model), {}, torch.device('cpu'))
  assert checkpoints.restore(state)[1] == []
  checkpoints.close()


def test_an_array_of_objects_is_refused_by_name(workdir, tmp_path):
  """NumPy's own format can hold pickles: such a file is refused before anything in it is looked at."""
  from yxanul.data import shards

  shutil.copytree(workdir / 'data' / 'train', tmp_path / 'train')
  path = tmp_path / 'train' / '00000.tokens.npy'
  np.save(path, np.array([world.World], dtype=object), allow_pickle=True)
  with pytest.raises(ValueError, match=r'00000\.tokens\.npy'):
    shards.open(tmp_path / 'train', verify=True)
