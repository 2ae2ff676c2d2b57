"""How kernels are timed: what a row holds, what a floor is, and that a peer that fails does not end the rest."""

import contextlib

import pytest
import torch
from torch.nn.attention import SDPBackend

from tests import tiny
from yxanul.kernels import attention
from yxanul.kernels.bench import attention as bench
from yxanul.kernels.bench import measure
from yxanul.kernels.bench.measure import Case, Rates, Subject, Work
from yxanul.training import benchmark_isolated

CPU = torch.device('cpu')


def test_a_floor_is_one_after_the_other():
  rates = Rates(bytes_per_second=1e9, flops_per_second=1e12, fp8_flops_per_second=2e12)
  assert rates.milliseconds(Work(bytes=1e6)) == 1
  assert rates.milliseconds(Work(bytes=1e6, fp8_flops=4e9)) == 3
  assert measure.binding(Work(bytes=1e6, fp8_flops=4e9)) == 'bytes + fp8_flops'


def test_rates_are_those_of_this_machine():
  rates = measure.rates(CPU)
  assert 1e8 < rates.bytes_per_second < 1e13
  assert 1e8 < rates.flops_per_second < 1e14


def test_a_peer_that_fails_is_named_with_its_reason():
  def missing():
    raise ImportError('no module named flash_attn\nand more')

  runs = []
  case = Case(
    '8', 'length 8', [Subject('ours', lambda: lambda: runs.append(1)), Subject('flash_attn', missing)], Work(bytes=2e6)
  )
  told = []
  row = measure.measure(case, CPU, Rates(1e9, 1e12, 1e12), told.append)
  assert (row['key'], row['shape'], row['floor_ms']) == ('8', 'length 8', 2)
  ours = row['subjects']['ours']
  assert ours['n'] >= 5
  assert len(runs) == ours['n'] + 2  # one to warm up, one to see how often
  assert ours['ms_p10'] <= ours['ms'] <= ours['ms_p90']
  assert row['subjects']['flash_attn'] == {'error': 'ImportError: no module named flash_attn'}
  assert told[1].startswith('length 8, flash_attn: ImportError: no module named flash_attn (after')
  figures = benchmark_isolated.figures([row | {'key': '4', 'floor_ms': 7}, row])
  assert set(figures) == {'floor_ms', 'ms', 'floor_ms_4', 'ms_4', 'floor_ms_8', 'ms_8'}
  assert (figures['floor_ms']['value'], figures['floor_ms_4']['value']) == (2, 7)


@pytest.mark.parametrize('length', [8, 512])
def test_a_column_is_the_kernel_that_it_names(length, monkeypatch):
  """`attention` runs another where one is not to be trusted in a run: cuDNN over short rows."""
  asked = []
  monkeypatch.setattr(attention, 'sdpa_kernel', lambda backends: contextlib.nullcontext(asked.append(backends)))
  monkeypatch.setattr(torch, 'compile', lambda function, **_: function)
  model = tiny.spec().model
  bench._alone(bench._library('cudnn'), model, 2, length, CPU)
  bench._compiled(model, 2, length, CPU)
  bench._alone(bench._library('flash'), model, 2, length, CPU)
  assert asked == [[SDPBackend.CUDNN_ATTENTION], [SDPBackend.CUDNN_ATTENTION], [SDPBackend.FLASH_ATTENTION]]


@pytest.mark.parametrize('name', benchmark_isolated.KERNELS)
def test_every_kernel_is_measured(name, monkeypatch):
  monkeypatch.setattr(measure, '_SECONDS', 0.02)
  saved = []
  model = tiny.spec().model
  save = lambda measured: saved.append(len(measured['rows']))  # noqa: E731
  result = benchmark_isolated.measure_kernel(name, model, 64, CPU, save, lambda line: None)
  assert saved == list(range(1, len(result['rows']) + 1))
  for row in result['rows']:
    assert row['subjects']['ours'].get('ms', 0) > 0, row
    assert row['floor_ms'] > 0
  assert result['figures']['ms']['value'] == row['subjects']['ours']['ms']


def test_the_tool_knows_every_kernel():
  told = tiny.tool('bench', '--config=experiments/quickstart.py', '--what=nothing').stderr
  assert told.split('gradients, ')[1].split(' (')[0].strip() == ', '.join(benchmark_isolated.KERNELS)
