"""What the loop says is coming, and what the GPU is said to do."""

import json
from types import SimpleNamespace

import pytest
import torch

from tests import tiny
from yxanul import run
from yxanul.reporting.display import Display
from yxanul.training.gauge import GpuGauge


class Recorder(Display):
  """Keeps what a display is told of the outlook."""

  def __init__(self, *arguments):
    super().__init__(*arguments, log=lambda line: None)
    self.seen = []
    Recorder.last = self

  def update(self, metrics, outlook=None):
    self.seen.append((metrics['tokens'], outlook))
    super().update(metrics, outlook)


def test_evaluations_come_when_they_were_said_to(tmp_path, monkeypatch):
  monkeypatch.setattr(run, 'Display', Recorder)
  spec = tiny.spec(training__checkpoint_every_seconds=600.0, evaluation__first_share=0.01)
  assert run.run(spec, tmp_path / 'run') == 0
  lines = [json.loads(line) for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
  evaluated = [line['tokens'] for line in lines if 'val_bpb' in line]
  step = spec.curriculum.stages[0].tokens_per_step
  for share in spec.evaluation.shares():
    assert (
      min(n for n in evaluated if n >= share * spec.curriculum.budget_tokens) - share * spec.curriculum.budget_tokens < step
    )
  assert len(Recorder.last.seen) > 50
  for tokens, outlook in Recorder.last.seen:
    # A line is written a step late: an evaluation that is due at it comes before the display hears of it.
    following = min((n for n in evaluated if n > tokens + step), default=evaluated[-1])
    assert following - step < outlook['evaluation_tokens'] <= following or outlook['evaluation_tokens'] in (
      tokens,
      tokens + step,
    )
    assert 0 < outlook['checkpoint_seconds'] <= 600
    assert 'gpu_memory_bytes' not in outlook


def test_a_card_that_tells_no_use_ends_no_run(monkeypatch):
  class Refused(Exception):
    """As pynvml's, which are no RuntimeError."""

  def refuse(device):
    raise Refused

  monkeypatch.setattr(torch.cuda, 'utilization', refuse)
  monkeypatch.setattr(torch.cuda, 'memory_reserved', lambda device: 10)
  monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda device: SimpleNamespace(total_memory=80))
  figures = GpuGauge(torch.device('cuda', 0))()
  assert figures == {'gpu_memory_bytes': 10, 'gpu_memory_total_bytes': 80, 'gpu_busy': None}


def test_the_card_is_asked_at_most_once_a_second(monkeypatch):
  asked = []
  monkeypatch.setattr(torch.cuda, 'utilization', lambda device: asked.append(device) or 50)
  monkeypatch.setattr(torch.cuda, 'memory_reserved', lambda device: 10)
  monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda device: SimpleNamespace(total_memory=80))
  gauge = GpuGauge(torch.device('cuda', 0))
  asked.clear()
  assert [gauge()['gpu_busy'] for _ in range(100)] == [0.5] * 100
  assert len(asked) == 1


@pytest.mark.gpu
def test_the_gauge_reads_the_card():
  if not torch.cuda.is_available():
    pytest.skip('needs a CUDA device')
  device = torch.device('cuda', 0)
  block = torch.zeros(1 << 28, dtype=torch.uint8, device=device)
  figures = GpuGauge(device)()
  assert block.numel() <= figures['gpu_memory_bytes'] < figures['gpu_memory_total_bytes']
  assert figures['gpu_busy'] is None or 0 <= figures['gpu_busy'] <= 1
