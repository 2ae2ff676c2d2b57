"""Generation: with the cache as without, in a batch as alone, and from prompts that end anywhere."""

import dataclasses
import math
from collections import Counter

import pytest
import torch

from tests.inference import small
from yxanul.data import tokenizer as tokenizers
from yxanul.inference.generate import Generator, Sampling, _Text, complete, draw, streams
from yxanul.inference.likelihood import Likelihood
from yxanul.model import transformer

GREEDY = Sampling(tokens=30, temperature=0)
PROMPTS = ['ab ', 'é1', '', 'ab ba b' * 3, 'a']
GPT2 = {
  'model__norm': 'layernorm',
  'model__activation': 'gelu',
  'model__position': 'learned',
  'model__bias': True,
  'model__n_kv_heads': 4,
}


@pytest.fixture(scope='module', params=[{}, GPT2], ids=['llama', 'gpt2'])
def model(request):
  return small.model(small.tokenizer(0), **request.param)


def uncached(model, row: list[int], n_tokens: int) -> list[int]:
  """Greedy decoding that reads everything anew for every token."""
  drawable = [i for i in range(model.tokenizer.vocab_size) if model.tokenizer.entries[i]] + [model.tokenizer.end_of_text_id]
  out = []
  for _ in range(n_tokens):
    logits_V = transformer.apply(model.params, torch.tensor([row + out]), model.spec, model.numerics)[0, -1]
    out.append(max(drawable, key=lambda i: logits_V[i]))
    if out[-1] == model.tokenizer.end_of_text_id:
      break
  return out


def test_greedy_with_the_cache_equals_reading_everything_anew(model):
  generator = Generator(model)
  texts = [''] * len(PROMPTS)
  for i, more in generator(PROMPTS, GREEDY, streams(0, len(PROMPTS))):
    texts[i] += more
  for prompt, text in zip(PROMPTS, texts, strict=True):
    row, extra = generator._begin(prompt, GREEDY, None)
    tokens = [token for token in uncached(model, row, GREEDY.tokens) if token != model.tokenizer.end_of_text_id]
    data = extra + b''.join(model.tokenizer.entries[token] for token in tokens)
    assert text == data.decode('utf-8', 'replace')
  assert sum(map(len, texts)) > 60


def test_logits_with_the_cache_equal_those_without(model):
  generator = Generator(model)
  rows = [[model.tokenizer.end_of_text_id, 1, 2, 3], [model.tokenizer.end_of_text_id, 4]]
  logits_BV, cache = generator._read_anew(rows)
  for step in range(6):
    for i, row in enumerate(rows):
      expected_V = transformer.apply(model.params, torch.tensor([row]), model.spec, model.numerics)[0, -1]
      drawable = logits_BV[i] > -torch.inf
      torch.testing.assert_close(logits_BV[i][drawable], expected_V[drawable], atol=1e-5, rtol=1e-5)
      row.append(step + i)
    logits_BV, cache = generator._extend([row[-1:] for row in rows], cache)


def test_a_batch_gives_what_each_prompt_gives_alone(model):
  sampling = Sampling(tokens=25, temperature=0.9, top_k=12, top_p=0.95, stop=('b1',))
  together = complete(model, PROMPTS, sampling, streams(7, len(PROMPTS)))
  alone = [complete(model, [p], sampling, [s])[0] for p, s in zip(PROMPTS, streams(7, len(PROMPTS)), strict=True)]
  assert together == alone
  assert together == complete(model, PROMPTS, sampling, streams(7, len(PROMPTS)))
  assert together != complete(model, PROMPTS, sampling, streams(8, len(PROMPTS)))
  assert not any('b1' in text for text in together)


def test_a_text_longer_than_the_window_goes_on(model):
  short = small.narrowed(model, 8)
  texts = complete(short, ['', 'ab ba b' * 9], dataclasses.replace(GREEDY, tokens=40), streams(0, 2))
  whole = complete(model, ['', 'ab ba b' * 9], dataclasses.replace(GREEDY, tokens=6), streams(0, 2))
  assert texts[0].startswith(whole[0])  # while it fits
  assert all(len(text) > 20 for text in texts)


def test_a_prompt_that_ends_inside_a_token_goes_on_as_the_documents_would():
  """Each way on is drawn with its share, which is the exact likelihood of the bytes that follow."""
  model = small.model(small.tokenizer(1), std=0.1)
  generator, scorer = Generator(model), Likelihood(model)
  sampling = Sampling(tokens=1, temperature=1.0)
  prompt, n = 'ab a', 1500
  stream = torch.Generator().manual_seed(3)
  found = Counter(generator._begin(prompt, sampling, stream)[1] for _ in range(n))
  assert len(found) >= 3
  shares = Counter()
  covers = [
    (extra, (model.tokenizer.end_of_text_id, *branch.head, int(last)))
    for branch in scorer.boundary.branches(prompt)
    for last, extra in zip(branch.lasts, branch.extras, strict=True)
  ]
  for extra, row in covers:
    logp_TV = transformer.apply(model.params, torch.tensor([row]), model.spec, model.numerics)[0].log_softmax(-1)
    shares[extra] += math.exp(sum(float(logp_TV[i, token]) for i, token in enumerate(row[1:])))
  total = shares.total()
  for extra, share in shares.items():
    p = share / total
    assert abs(found[extra] / n - p) < 4 * math.sqrt(p * (1 - p) / n) + 1e-9, extra


def test_prompts_that_end_inside_a_superword(shared):
  """Examples with the official entries: what is backed off, and what may stand in its place."""
  official = tokenizers.load(shared / 'superbpe_t80k')
  generator = Generator(small.model(official, std=0.1, data__tokenizer__vocab_size=200_004, model__vocab_size=200_005))
  entries = official.entries
  for prompt, kept in (
    ('By the w', []),
    ('I am a fan of th', ['I am a', ' fan', ' fan of']),
    ('in 12345', ['in ', '1', '12', '123', '234']),
    ('a caf', ['a']),
  ):
    for stream in streams(0, 3):
      (end, *row), extra = generator._begin(prompt, Sampling(temperature=1.0), stream)
      assert end == official.end_of_text_id
      assert b''.join(entries[i] for i in row) == prompt.encode() + extra
      assert len(entries[row[-1]]) > len(extra)  # the last one begins inside the prompt
      assert {official.decode([i]) for i in row[:-1]} <= set(kept), row
      assert official.encode_beginnings([prompt.encode() + extra])[0] == row


def test_draws_keep_to_top_k_and_top_p():
  logits = torch.tensor([0.5, 0.25, 0.125, 0.0625, 0.0625]).log()
  stream = torch.Generator().manual_seed(0)

  def drawn(**fields):
    return Counter(draw(logits, Sampling(**{'temperature': 1.0} | fields), stream) for _ in range(2000))

  assert set(drawn()) == {0, 1, 2, 3, 4}
  assert set(drawn(top_k=2)) == {0, 1}
  assert drawn(top_k=2)[0] / 2000 == pytest.approx(2 / 3, abs=0.045)
  assert set(drawn(top_p=0.5)) == {0}
  assert set(drawn(top_p=0.51)) == {0, 1}
  assert set(drawn(top_p=0.75)) == {0, 1}
  assert set(drawn(top_p=0.0)) == {0}
  assert drawn(temperature=0.5)[0] / 2000 == pytest.approx(0.25 / 0.3359, abs=0.045)
  assert set(drawn(temperature=0)) == {0}


@pytest.mark.parametrize('temperature', [5e-324, 1e-45, 1e-8, 1e308])
def test_any_finite_temperature_can_be_drawn_at(temperature):
  logits, stream = torch.tensor([-torch.inf, 80.0, 90.0, -70.0]), torch.Generator().manual_seed(0)
  drawn = {draw(logits, Sampling(temperature=temperature), stream) for _ in range(100)}
  assert drawn == ({1, 2, 3} if temperature > 1 else {2})


def test_sampling_wants_numbers_that_can_be_drawn_with():
  for name in ('temperature', 'top_p'):
    for value in (math.nan, math.inf, -0.1):
      with pytest.raises(ValueError, match=f'{name}: got {value}'):
        Sampling(**{name: value})


def test_nothing_is_read_behind_the_last_token(model, monkeypatch):
  generator = Generator(model)
  extend, n_reads = generator._extend, []
  monkeypatch.setattr(generator, '_extend', lambda *arguments: n_reads.append(1) or extend(*arguments))
  list(generator(['a'], Sampling(tokens=3, temperature=0), streams(0, 1)))
  assert len(n_reads) == 3  # the prompt, and two of the three tokens


def test_what_is_streamed_is_never_taken_back():
  text = _Text(Sampling(stop=('\n\n', 'END')))
  pieces = ['é'.encode()[:1], 'é'.encode()[1:], b'a\n', b'b', b'E', b'N', b'x', b'\n', b'\nmore']
  assert [text.add(piece) for piece in pieces] == ['', 'é', 'a', '\nb', '', '', 'ENx', '', '']
  assert text.ended
  text = _Text(Sampling(stop=('END',)))
  assert [text.add(b'EN'), text.add(b'\xc3'), text.add(b'', final=True)] == ['', '', 'EN\ufffd']
  assert not text.ended
