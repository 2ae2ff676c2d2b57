"""Metrics on their way from the device to the log, and the yardsticks."""

import json
import math
import resource

import pytest
import torch

from yxanul.training.metrics import MetricsLog, MetricsQueue, bits_per_byte, ppl_gpt2_equivalent
from yxanul.training.step import StepMetrics


def test_the_yardsticks():
  assert bits_per_byte(math.log(2) * 300, 100) == pytest.approx(3.0)
  assert math.isnan(bits_per_byte(1.0, 0))
  # The mission: perplexity 30 of a GPT-2 token of 4.488 characters is 1.093 bits a byte.
  assert ppl_gpt2_equivalent(1.0933) == pytest.approx(30.0, rel=1e-3)
  assert math.isfinite(ppl_gpt2_equivalent(1e6))


def test_the_queue_gives_back_in_order_with_its_context():
  queue = MetricsQueue(torch.device('cpu'))
  for i in range(3):
    queue.put(
      StepMetrics(*(torch.tensor(float(10 * i + j), dtype=torch.float64) for j in range(len(StepMetrics._fields)))), f'step {i}'
    )
  assert len(queue) == 3
  assert queue.get() == ([float(j) for j in range(len(StepMetrics._fields))], 'step 0')
  assert queue.get()[1] == 'step 1'


def test_the_log_drops_what_came_after_the_step_it_goes_on_from(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')  # a kill cut the last line short
  log = MetricsLog(path, after_step=2)
  log.write({'step': 3, 'loss': math.nan, 'mfu': None})
  log.close()
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  assert lines == [{'step': 1}, {'step': 2}, {'step': 3, 'loss': None, 'mfu': None}]


def test_lines_that_the_disk_does_not_take_wait_whole(tmp_path):
  """The system takes a part of a line and refuses the rest, as a full disk does."""
  path, told = tmp_path / 'metrics.jsonl', []
  log = MetricsLog(path, 0, told.append)
  lines = [{'step': i, 'text': 'x' * 30} for i in range(1, 11)]
  for line in lines[:3]:
    log.write(line)
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 17, limits[1]))
  try:
    for line in lines[3:6]:
      log.write(line)
    assert [json.loads(line) for line in path.read_text().splitlines()] == lines[:3]
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  for line in lines[6:]:
    log.write(line)
  log.close()
  assert [json.loads(line) for line in path.read_text().splitlines()] == lines
  assert len(told) == 1
  assert 'its lines wait for room' in told[0]


def test_a_line_broken_in_the_middle_is_told(tmp_path):
  path, told = tmp_path / 'metrics.jsonl', []
  path.write_bytes(b'{"step": 1}\n{"step": \xff}\n{"step": 3}\n')
  MetricsLog(path, 9, told.append).close()
  assert path.read_bytes() == b'{"step": 1}\n'
  assert told == [f'{path}: line 2 cannot be read; it and the 1 after it are dropped']
