"""The comparison of gradients: what it measures is what it says."""

import math

import pytest
import torch

from tests import tiny
from yxanul.data.prepare import prepare
from yxanul.kernels.capabilities import detect
from yxanul.training import benchmark_gradients


def test_cosine_and_difference_by_hand():
  a, b = torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0]])
  assert benchmark_gradients.cosine(a, b) == pytest.approx(24 / 25)
  assert benchmark_gradients.difference(a, b) == pytest.approx(math.sqrt(2) / 5)


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  return prepare(tiny.spec().data, tmp_path_factory.mktemp('gradients') / 'data')


def test_fp8_is_near_fp32_and_bf16_nearer(prepared):
  spec = tiny.spec(precision__matmul='fp8', precision__fp8_engine='reference')
  result = benchmark_gradients.measure(spec, 4, 3, prepared, detect(), lambda line: None)
  assert [moment['steps'] for moment in result['moments']] == [0, 3]
  names = set(spec.model.parameter_shapes())
  for moment in result['moments']:
    assert moment['parameters'].keys() == names
    assert moment['zero'] == []
    for name, values in moment['parameters'].items():
      # On a CPU the engine is the reference, so nothing may differ; BF16 rounds less than FP8 does.
      assert values['difference_reference'] == 0
      assert 0.9 < values['cosine_fp8'] < values['cosine_bf16'] < 1, name
    worst = moment['worst']['cosine_fp8']
    assert moment['parameters'][worst]['cosine_fp8'] == min(v['cosine_fp8'] for v in moment['parameters'].values())
    assert moment['worst_layer']['name'].startswith('blocks.')
  first, last = (moment['parameters'] for moment in result['moments'])
  assert all(first[name] != last[name] for name in names)
  figures = benchmark_gradients.figures(result)
  assert figures['gradient_cosine_min']['value'] == min(
    m['parameters'][m['worst']['cosine_fp8']]['cosine_fp8'] for m in result['moments']
  )


def test_without_fp8_there_is_nothing_to_compare(prepared):
  with pytest.raises(ValueError, match='--what=gradients: linears run in fp32 here, wants FP8'):
    benchmark_gradients.measure(tiny.spec(), 1, 1, prepared, detect(), print)
