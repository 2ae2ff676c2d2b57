"""Near duplicates are found by what documents share, and only then."""

import random

import numpy as np
import pytest

from tests.data.prepare_test import texts_of, write_jsonl
from yxanul.data import prepare, prepare_workers
from yxanul.data.deduplicate_near import PERMUTATIONS, NearDuplicates, shingles, signatures


def edited(text: str, n: int, rng: random.Random) -> str:
  """The text with n of its words replaced."""
  words = text.split()
  for place in rng.sample(range(len(words)), n):
    words[place] = f'new{rng.random()}'
  return ' '.join(words)


def long_texts(prose, n=60) -> list[str]:
  """n texts of about 300 words that share nothing."""
  words = ' '.join(prose).split()
  rng = random.Random(0)
  return [' '.join(rng.choice(words) for _ in range(300)) for _ in range(n)]


def test_signatures_estimate_the_shared_share_of_shingles(prose):
  rng = random.Random(1)
  errors = []
  for text in long_texts(prose):
    other = edited(text, rng.randint(0, 30), rng)
    a, b = shingles(text), shingles(other)
    estimate = np.mean(np.equal(*signatures([text, other])))
    errors.append(estimate - len(a & b) / len(a | b))
  # The standard error of one estimate is at most 0.5 / sqrt(128) = 0.044.
  assert abs(np.mean(errors)) < 3 * 0.044 / len(errors) ** 0.5
  assert np.max(np.abs(errors)) < 4 * 0.044


def test_case_and_punctuation_do_not_count_and_short_texts_have_one_shingle():
  assert shingles('One, two: THREE four -- five six') == {b'one two three four five', b'two three four five six'}
  assert shingles('Only three words') == {b'only three words'}
  assert shingles('...') == {b''}
  assert signatures([]).shape == (0, PERMUTATIONS)


def test_only_the_like_is_found(prose):
  texts = long_texts(prose)
  rng = random.Random(2)
  near = NearDuplicates()
  for signature in signatures(texts):
    assert not near.is_like_another(signature)
    near.keep(signature)
  assert all(map(near.is_like_another, signatures(edited(text, 1, rng) for text in texts)))
  assert not any(map(near.is_like_another, signatures(edited(text, 60, rng) for text in texts)))


@pytest.mark.parametrize('workers', [0, 2])
def test_prepare_drops_them_on_request(tmp_path, prose, make_spec, monkeypatch, workers):
  texts, rng = long_texts(prose, 200), random.Random(3)
  copies = [edited(text, 1, rng) for text in texts]
  source = write_jsonl(tmp_path / 'a.jsonl', texts + copies)
  if workers:
    monkeypatch.setattr(prepare_workers, 'IN_PROCESS_BYTES', 0)
  without = prepare.prepare(make_spec(source, workers=workers), tmp_path / 'without')
  assert sum(without.train.manifest['selection'][split] for split in ('train', 'validation')) == 400
  prepared = prepare.prepare(make_spec(source, workers=workers, near_duplicates=True), tmp_path / 'with')
  dropped = prepared.train.manifest['selection']['near duplicate']
  assert 196 <= dropped <= 200  # one word changed in 300: a similarity of 0.97, which LSH misses once in some 1,000
  assert prepared.report['seconds']['near duplicates'] > 0
  kept = set(texts_of(prepared, 'train')) | set(texts_of(prepared, 'validation'))
  assert set(texts) <= kept
  assert prepared.train.n_documents + prepared.validation.n_documents == len(kept) == 400 - dropped
  totals = prepared.train.manifest['selection']
  assert (totals['train'], totals['validation']) == (prepared.train.n_documents, prepared.validation.n_documents)


def test_a_validation_source_keeps_its_own_and_takes_from_training(tmp_path, prose, make_spec):
  texts, rng = long_texts(prose, 40), random.Random(4)
  held_out = [*texts[:10], *(edited(text, 1, rng) for text in texts[:5])]
  held = write_jsonl(tmp_path / 'held.jsonl', held_out)
  train = write_jsonl(tmp_path / 'train.jsonl', [*(edited(text, 1, rng) for text in texts[:10]), *texts[10:]])
  prepared = prepare.prepare(make_spec(train, validation_source=str(held), near_duplicates=True), tmp_path / 'out')
  assert texts_of(prepared, 'validation') == held_out
  assert texts_of(prepared, 'train') == texts[10:]
