"""Generation, likelihoods and evaluation on a GPU against the CPU; skipped where there is none."""

import dataclasses

import pytest
import torch

from tests.inference import small
from tests.inference.generate_test import GREEDY, PROMPTS
from yxanul.data.sources_document import START, Document
from yxanul.inference.evaluate import evaluate, tokenize
from yxanul.inference.generate import Generator, complete, streams
from yxanul.inference.likelihood import Likelihood
from yxanul.inference.model import Model
from yxanul.kernels.capabilities import Engines
from yxanul.model import transformer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')]
PAIRS = [('ab', ' a'), ('', 'ab a'), ('é', '1 b'), ('a b', 'a')]


def on_gpu(model: Model, linear: str = 'fp32') -> Model:
  return Model(
    model.experiment, {name: p.cuda() for name, p in model.params.items()}, model.tokenizer, Engines(linear, 'sdpa', 'chunked')
  )


@pytest.fixture(scope='module')
def model():
  return small.model(small.tokenizer(0), model__head_dim=16)


def test_fp32_on_a_gpu_is_the_cpu(model):
  there = on_gpu(model)
  expected = [logp for logp, _ in Likelihood(model).continuations(PAIRS)]
  assert [logp for logp, _ in Likelihood(there).continuations(PAIRS)] == pytest.approx(expected, abs=1e-3)
  documents = tokenize([Document('ab éa 1a ' * 20, 'x', START), Document('b', 'y', START)], model.tokenizer, 10**6)
  rows, found = (evaluate(one, documents, 32, stride=8) for one in (model, there))
  assert [row['nats'] for row in found] == pytest.approx([row['nats'] for row in rows], rel=1e-4)
  texts = complete(there, PROMPTS, GREEDY, streams(0, len(PROMPTS)))
  assert texts == complete(model, PROMPTS, GREEDY, streams(0, len(PROMPTS)))


@torch.no_grad()
def test_the_cache_in_bf16_is_as_good_as_reading_anew_in_bf16(model):
  there = on_gpu(model, 'bf16')
  assert there.numerics.dtype == torch.bfloat16
  generator = Generator(there)
  end = model.tokenizer.end_of_text_id
  rows = [[end, 1, 2, 3, 4, 5], [end, 4]]
  logits_BV, cache = generator._read_anew(rows)
  assert cache.keys_LBSKC.dtype == torch.bfloat16
  drawable = ~model.undrawable_V
  for step in range(8):
    for i, row in enumerate(rows):
      exact = transformer.apply(model.params, torch.tensor([row]), model.spec, model.numerics)[0, -1]
      anew = transformer.apply(there.params, torch.tensor([row], device='cuda'), model.spec, there.numerics)[0, -1]
      exact, anew, cached = (x.float().cpu()[drawable] for x in (exact, anew, logits_BV[i]))
      # 2^-8 a rounding, a dozen roundings deep; the cache adds none of its own.
      assert (cached - exact).norm() < 0.05 * exact.norm()
      assert (cached - exact).norm() < 2 * (anew - exact).norm() + 0.005 * exact.norm()
      row.append(step + i)
    logits_BV, cache = generator._extend([row[-1:] for row in rows], cache)
  texts = complete(there, PROMPTS, dataclasses.replace(GREEDY, tokens=10), streams(0, len(PROMPTS)))
  assert len(texts) == len(PROMPTS)
