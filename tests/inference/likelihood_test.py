"""Reading many rows at once against the model itself, and what is scored at the ends of a window."""

import math

import numpy as np
import pytest
import torch

from tests.inference import small
from yxanul.inference import likelihood
from yxanul.inference.generate import Sampling, complete, streams
from yxanul.inference.likelihood import Likelihood, read
from yxanul.model import transformer


@pytest.fixture(scope='module')
def model():
  return small.model(small.tokenizer(0), curriculum__budget_tokens=1000)


def alone(model, row) -> torch.Tensor:
  return transformer.apply(model.params, torch.tensor([row]), model.spec, model.numerics)[0].log_softmax(-1)


@pytest.mark.parametrize('tokens_at_once', [20, 16_384])
def test_rows_that_begin_one_another_are_read_as_if_alone(model, monkeypatch, tokens_at_once):
  monkeypatch.setattr(likelihood, '_TOKENS_AT_ONCE', tokens_at_once)
  rows = [(5,), (5, 1, 2, 3), (5, 1), (5, 1, 2, 4, 4, 4, 4), (7, 7), (5, 1, 2, 3)]
  read_batch, forwarded = likelihood._read_batch, []
  monkeypatch.setattr(
    likelihood, '_read_batch', lambda model, batch: forwarded.extend(row for row, _ in batch) or read_batch(model, batch)
  )
  for row, reading in zip(rows, read(model, rows), strict=True):
    logp_TV = alone(model, row)
    np.testing.assert_allclose(reading.logp_T, [float(logp_TV[i, token]) for i, token in enumerate(row[1:])], atol=1e-5)
    assert reading.best_T.tolist() == logp_TV.masked_fill(model.undrawable_V, -torch.inf).argmax(-1).tolist()
    torch.testing.assert_close(reading.next_V, logp_TV[-1], atol=1e-5, rtol=1e-5)
  assert sorted(forwarded) == [(5, 1, 2, 3), (5, 1, 2, 4, 4, 4, 4), (7, 7)]


def test_a_prefix_is_as_likely_as_the_sum_of_its_covers(model):
  one, end = model.tokenizer, model.tokenizer.end_of_text_id
  scorer = Likelihood(model)
  for text in ('a', 'ab', 'b a', 'éa1', 'aab ba'):
    total = 0.0
    for branch in scorer.boundary.branches(text):
      for last in branch.lasts.tolist():
        row = [end, *branch.head, last]
        logp_TV = alone(model, row)
        total += math.exp(sum(float(logp_TV[i, token]) for i, token in enumerate(row[1:])))
    ((logp, _),) = scorer.continuations([('', text)])
    assert logp == pytest.approx(math.log(total), abs=1e-5)
    naive = [end, *one.encode_batch([text])[0].tolist()]
    assert logp >= sum(float(alone(model, naive)[i, token]) for i, token in enumerate(naive[1:])) - 1e-6


def test_the_chain_rule_holds_over_bytes(model):
  scorer = Likelihood(model)
  pairs = [('a', 'b'), ('ab', ' a'), ('a', 'b a'), ('', 'ab a'), ('', 'a')]
  b, a, both, all_of_it, first = (logp for logp, _ in scorer.continuations(pairs))
  assert both == pytest.approx(b + a, abs=1e-5)
  assert all_of_it == pytest.approx(first + both, abs=1e-5)
  assert scorer.continuations([('ab', '')]) == [(0.0, True)]


def test_greedy_is_what_decoding_gives(model):
  scorer, contexts = Likelihood(model), ['', 'a', 'ab ', 'é', 'b', 'a1 b', ' ', 'ba', 'é é', '1']
  texts = complete(model, contexts, Sampling(tokens=4, temperature=0), streams(0, len(contexts)))
  pairs = [(c, text) for c, text in zip(contexts, texts, strict=True) if text and '\ufffd' not in text]
  assert len(pairs) >= 4
  wrong = [(c, text[:-1] + ('a' if text[-1] != 'a' else 'b')) for c, text in pairs]
  assert all(greedy for _, greedy in scorer.continuations(pairs))
  assert not any(greedy for _, greedy in scorer.continuations(wrong))


@pytest.mark.parametrize('window', [2, 7, 12, 150])
def test_rolling_scores_every_token_once_with_half_a_window_before_it(model, window):
  text = 'ab éa1 ' * 12 + 'b'
  stream = [model.tokenizer.end_of_text_id, *model.tokenizer.encode_batch([text])[0].tolist()]
  expected, stride = 0.0, window // 2
  for at in range(1, len(stream)):
    row = 0 if at < window else -(-(at + 1 - window) // stride) * stride  # where the first row that reaches it starts
    expected += float(alone(model, stream[row : row + window])[at - row - 1, stream[at]])
  assert Likelihood(small.narrowed(model, window)).rolling(['a', text])[1] == pytest.approx(expected, rel=1e-5)


def test_a_context_longer_than_the_window_loses_its_start(model):
  short = small.narrowed(model, 12)
  scorer, whole = Likelihood(short), Likelihood(model)
  ((short_logp, _),) = scorer.continuations([('ab ' * 30, 'aé1')])
  ((logp, _),) = whole.continuations([('ab ' * 30, 'aé1')])
  assert short_logp != pytest.approx(logp, abs=1e-6)
  # Texts that fit are scored the same.
  assert scorer.continuations([('ab', 'a')])[0][0] == pytest.approx(whole.continuations([('ab', 'a')])[0][0], abs=1e-5)


def test_a_continuation_longer_than_the_window_is_scored_in_rows(model):
  scorer, long = Likelihood(small.narrowed(model, 12)), 'b1a ' * 30
  alone, short, behind = scorer.continuations([('', long), ('ab', 'a'), ('ab ' * 9, long)])
  assert scorer.n_long == 2
  before, both = scorer.rolling(['ab ' * 9, 'ab ' * 9 + long])
  assert alone == (pytest.approx(scorer.rolling([long])[0]), False)
  assert behind == (pytest.approx(both - before), False)
  assert short == Likelihood(model).continuations([('ab', 'a')])[0]
  # The exact sum over covers, where the window is long enough, is near what its own tokens give.
  ((exact, _),) = Likelihood(model).continuations([('ab ' * 9, long)])
  assert behind[0] == pytest.approx(exact, rel=0.2)
