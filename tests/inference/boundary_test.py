"""Covers against every tokenization there is, and the likelihoods that follow from them against counting documents."""

import itertools
import math
import random
from collections import Counter

import numpy as np
import pytest
import torch

from tests.inference import small
from yxanul.data import tokenizer as tokenizers
from yxanul.inference import likelihood
from yxanul.inference.boundary import Boundary
from yxanul.inference.likelihood import Likelihood, Reading

LETTERS = ('a', 'b', ' ', '1', 'é')


def canonical(one, tokens) -> bool:
  """Whether the tokenizer itself would write these tokens, at the start of some text."""
  return one.encode_beginnings([b''.join(one.entries[i] for i in tokens)])[0] == list(tokens)


def all_covers(one, data: bytes) -> set[tuple[int, ...]]:
  """Every sequence of tokens that ends with the one which holds the last byte of `data`, by trying all."""
  found, open_ = set(), [((), b'')]
  while open_:
    tokens, written = open_.pop()
    for i, entry in enumerate(one.entries):
      more = written + entry
      if not entry or not (data.startswith(more) or more.startswith(data)):
        continue
      if len(more) >= len(data):
        found.add((*tokens, i))
      else:
        open_.append(((*tokens, i), more))
  return found


def flat(branches) -> dict[tuple[int, ...], bytes]:
  covers = [((*b.head, int(last)), extra) for b in branches for last, extra in zip(b.lasts, b.extras, strict=True)]
  assert len(dict(covers)) == len(covers)
  return dict(covers)


def texts(seed: int, n: int, most: int) -> list[str]:
  draw = random.Random(seed)
  return [''.join(draw.choices(LETTERS, k=draw.randint(1, most))) for _ in range(n)]


@pytest.mark.parametrize('seed', range(6))
def test_covers_are_all_canonical_tokenizations_that_begin_with_the_text(seed):
  one = small.tokenizer(seed)
  boundary = Boundary(one)
  for text in texts(seed, 30, 7):
    data = text.encode()
    covers = flat(boundary.branches(text))
    assert set(covers) == {tokens for tokens in all_covers(one, data) if canonical(one, tokens)}, text
    for tokens, extra in covers.items():
      assert b''.join(one.entries[i] for i in tokens) == data + extra
    assert tuple(one.encode_batch([text])[0].tolist()) in covers


@pytest.mark.parametrize('seed', range(3))
def test_long_texts_are_cut_to_a_window_that_changes_nothing(seed):
  one = small.tokenizer(seed)
  boundary = Boundary(one)
  for text in texts(seed + 100, 20, 60):
    covers = set(flat(boundary.branches(text)))
    assert all(canonical(one, tokens) for tokens in covers)
    whole = {tuple(one.encode_batch([text + more])[0].tolist()) for more in ('', *LETTERS, *map(''.join, PAIRS))}
    n = len(text.encode())
    for tokens in whole:
      ends = list(itertools.accumulate(len(one.entries[i]) for i in tokens))
      assert tokens[: next(i for i, end in enumerate(ends) if end >= n) + 1] in covers


PAIRS = list(itertools.product(LETTERS, repeat=2))


def test_a_run_of_digits_moves_all_its_groups():
  entries = ['1', '11', '111', 'a']
  one = tokenizers.build(
    {entry: i for i, entry in enumerate(entries)}, [('1', '1'), ('11', '1')], tokenizers.superword_splits(), small.SPECIAL
  )
  covers = {tuple(entries[i] for i in tokens) for tokens in flat(Boundary(one).branches('a' + '1' * 30))}
  groups = ('111',) * 10
  assert covers == {('a', *groups), ('a', '1', *groups), ('a', '11', *groups)}


class Documents:
  """The model that knows a set of documents by heart: its probabilities are counts."""

  def __init__(self, one, documents: list[str]):
    self.end, self.vocab_size = one.end_of_text_id, one.vocab_size
    self.rows = Counter((self.end, *one.encode_batch([text])[0].tolist(), self.end) for text in documents)

  def read(self, _, rows) -> list[Reading]:
    return [self._read(row) for row in rows]

  def _count(self, row) -> int:
    return sum(n for document, n in self.rows.items() if document[: len(row)] == row)

  def _read(self, row) -> Reading:
    counts = [self._count(row[: i + 1]) for i in range(len(row))]
    with np.errstate(divide='ignore', invalid='ignore'):
      logp = np.log(np.divide(counts[1:], counts[:-1], dtype=float))
      after = np.array([[self._count((*row[: i + 1], v)) for v in range(self.vocab_size)] for i in range(len(row))])
      next_V = torch.from_numpy(np.log(after[-1] / counts[-1])).float()
    return Reading(np.nan_to_num(logp, nan=-np.inf), after.argmax(-1), next_V)


@pytest.mark.parametrize('seed', range(4))
def test_likelihoods_are_shares_of_the_documents(seed, monkeypatch):
  """P(y | x) is how many of the documents that begin with x begin with xy: bytes are counted, tokens do not matter."""
  one = small.tokenizer(seed)
  documents = texts(seed, 300, 8)
  monkeypatch.setattr(likelihood, 'read', Documents(one, documents).read)
  likelihoods = Likelihood(small.model(one))
  draw = random.Random(seed)
  pairs, shares = [('', '')], [1.0]
  for document in draw.sample(documents, 40):
    first, second = sorted(draw.choices(range(len(document) + 1), k=2))
    pairs.append((document[:first], document[first:second]))
    begun = [other for other in documents if other.startswith(document[:first])]
    shares.append(sum(other.startswith(document[:second]) for other in begun) / len(begun))
  found = [math.exp(logp) for logp, _ in likelihoods.continuations(pairs)]
  assert found == pytest.approx(shares, rel=1e-5)
  assert min(shares) < 0.2
  assert any(len(flat(likelihoods.boundary.branches(a + b))) > 1 for a, b in pairs if a + b)


def test_official_superwords_are_backed_off(shared):
  official = tokenizers.load(shared / 'superbpe_t80k')
  boundary = Boundary(official)

  def ways(text: str) -> dict[tuple[str, ...], list[str]]:
    return {
      tuple(official.decode([i]) for i in b.head): [official.decode([i]) for i in b.lasts] for b in boundary.branches(text)
    }

  found = ways('I am a fan of th')
  assert list(found) == [('I am a',), ('I am a', ' fan'), ('I am a', ' fan of')]
  assert found[('I am a',)] == [' fan of the']
  assert {' of that', ' of this'} <= set(found[('I am a', ' fan')])
  assert ' of the' not in found[('I am a', ' fan')]  # that is ' fan of the', one token
  assert {' th', ' theory', ' thing'} <= set(found[('I am a', ' fan of')])
  # A number's digits are grouped from its right end, which is not there yet.
  assert list(ways('in 12345')) == [('in ', '1', '234'), ('in ', '12'), ('in ', '123')]
