"""TensorBoard and Weights & Biases, the real packages: they show the lines of metrics.jsonl, and no step twice."""

import importlib.util
import json
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import tiny
from yxanul.config.checks import FieldError
from yxanul.training.loggers import Logs, require_loggers


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
  monkeypatch.setenv('WANDB_MODE', 'offline')


def line(step: int, **more) -> dict:
  return {'step': step, 'tokens': 100 * step, 'loss': 5.0 - step / 10, 'mfu': None, **more}


def held_out(step: int) -> dict:
  return {'step': step, 'tokens': 100 * step, 'val_bpb': 2.5}


def tensorboard_points(workdir: Path) -> dict[str, list[tuple[int, float]]]:
  from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

  events = EventAccumulator(str(workdir / 'tensorboard'), size_guidance={'scalars': 0}).Reload()
  return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()['scalars']}


def wandb_rows(workdir: Path) -> list[dict]:
  """The history of all sessions, in order, from W&B's own files: LevelDB's log format over its protocol buffers."""
  rows = []
  for path in sorted(workdir.glob('wandb/offline-run-*/run-*.wandb')):
    for record in _wandb_records(path.read_bytes()):
      if record.WhichOneof('record_type') == 'history':
        row = {item.key or '.'.join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        rows.append({key: value for key, value in row.items() if not key.startswith('_')})
  return rows


def _wandb_records(data: bytes) -> Iterator:
  from wandb.proto.wandb_internal_pb2 import Record

  block, header, at, whole = 32_768, 7, 7, b''  # the file's own header is seven bytes, too
  while at + header <= len(data):
    if block - at % block < header:
      at += block - at % block
      continue
    _, size, kind = struct.unpack_from('<IHB', data, at)
    whole += data[at + header : at + header + size]
    at += header + size
    if kind in (1, 4):  # whole, last part
      record = Record()
      record.ParseFromString(whole)
      yield record
      whole = b''


def test_every_line_reaches_both_and_a_resumed_run_shows_no_step_twice(tmp_path):
  pytest.importorskip('tensorboard')
  pytest.importorskip('wandb')
  spec = tiny.spec(training__loggers=('tensorboard', 'wandb'))
  logs = Logs(spec, tmp_path, 0)
  for step in range(1, 7):
    logs.write(line(step))
  logs.write(held_out(6))
  logs.close()
  resumed = Logs(spec, tmp_path, 4)  # the last checkpoint: 5 and 6 come again
  for step in range(5, 9):
    resumed.write(line(step))
    if step == 6:
      resumed.write(held_out(step))
  resumed.close()
  points = tensorboard_points(tmp_path)
  assert [step for step, _ in points['training/loss']] == list(range(1, 9))
  assert points['training/loss'][6] == (7, pytest.approx(4.3))
  assert points['held_out/val_bpb'] == [(6, 2.5)]
  assert 'training/mfu' not in points
  rows = wandb_rows(tmp_path)
  assert [row['step'] for row in rows if 'training/loss' in row] == list(range(1, 9))
  assert [row['step'] for row in rows if 'held_out/val_bpb' in row] == [6]
  assert len({path.stem for path in tmp_path.glob('wandb/offline-run-*/*.wandb')}) == 1  # one run, two sessions
  assert [json.loads(text)['step'] for text in (tmp_path / 'metrics.jsonl').read_text().splitlines()] == [*range(1, 7), 6, 7, 8]


def test_a_killed_run_shows_every_step_once(tmp_path):
  pytest.importorskip('tensorboard')
  workdir = tmp_path / 'run'
  fields = {'training__loggers': "('tensorboard',)", 'training__checkpoint_every_seconds': 0.3}
  arguments = (f'--workdir={workdir}', *tiny.flags(**fields))
  log = workdir / 'metrics.jsonl'
  process = tiny.main(*arguments)
  while process.poll() is None and (not log.exists() or len(log.read_text().splitlines()) < 30):
    time.sleep(0.01)
  process.kill()
  process.communicate()
  status, _, errors = tiny.finish(tiny.main(*arguments))
  assert status == 0, errors
  records = [json.loads(text) for text in log.read_text().splitlines()]
  points = tensorboard_points(workdir)
  for tag, key in (('training/loss', 'loss'), ('held_out/val_bpb', 'val_bpb')):
    wanted = [(record['step'], pytest.approx(record[key], rel=1e-6)) for record in records if key in record]
    assert points[tag] == wanted


def test_what_is_missing_is_one_line_with_what_to_type(monkeypatch, tmp_path):
  real = importlib.util.find_spec
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None if name == 'tensorboard' else real(name))
  with pytest.raises(FieldError, match=r"pip install -e '\.\[tensorboard\]'"):
    require_loggers(('tensorboard',))
  require_loggers(())


def test_wandb_without_an_account_is_told_before_anything_begins(tmp_path):
  pytest.importorskip('wandb')
  environment = {key: value for key, value in os.environ.items() if not key.startswith('WANDB')}
  environment |= {'HOME': str(tmp_path)}
  process = tiny.main(f'--workdir={tmp_path / "run"}', *tiny.flags(training__loggers="('wandb',)"), environment=environment)
  status, _, errors = tiny.finish(process)
  assert status == 2, errors
  assert 'error: config.training.loggers' in errors
  assert 'wandb login, or WANDB_MODE=offline' in errors
  assert not (tmp_path / 'run').exists()


def test_an_unknown_logger_is_refused():
  with pytest.raises(FieldError, match="did you mean 'wandb'"):
    tiny.spec(training__loggers=('wandbb',))
