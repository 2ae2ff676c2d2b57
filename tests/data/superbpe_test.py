"""The trainer against a byte-pair learner that is slow and plain, its limits, its sample, and its stages."""

import heapq
import itertools
import json
import random
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import regex

from yxanul.config.spec import TokenizerSpec
from yxanul.data import superbpe, superbpe_learner, superbpe_sample
from yxanul.data import tokenizer as tokenizer_module

# --- a byte-pair learner and encoder by the definition ---------------------------------------------------------------


def allowed(token: bytes, max_words: int) -> bool:
  return len(token.decode('utf-8', 'replace').split()) <= max_words and b': ' not in token


def replace(sequence: list[int], pair: tuple[int, int], new: int) -> list[int]:
  out, i = [], 0
  while i < len(sequence):
    if sequence[i] == pair[0] and i + 1 < len(sequence) and sequence[i + 1] == pair[1]:
      out.append(new)
      i += 2
    else:
      out.append(sequence[i])
      i += 1
  return out


def naive_merges(sequences, entries, n_merges, may_join=lambda token: True):
  """Merges of the most frequent pair; ties to the smaller ids. `sequences`: [token ids, weight]; they are rewritten."""
  entries, merges = list(entries), []
  counts, where, heap = Counter(), defaultdict(set), []
  changed = Counter()
  for k, (sequence, weight) in enumerate(sequences):
    for pair in itertools.pairwise(sequence):
      changed[pair] += weight
      where[pair].add(k)
  while len(merges) < n_merges:
    for pair, difference in changed.items():
      counts[pair] += difference
      if difference and counts[pair] and may_join(entries[pair[0]] + entries[pair[1]]):
        heapq.heappush(heap, (-counts[pair], pair))
    while heap and -heap[0][0] != counts[heap[0][1]]:  # an old count
      heapq.heappop(heap)
    if not heap:
      break
    pair = heap[0][1]
    merges.append(pair)
    entries.append(entries[pair[0]] + entries[pair[1]])
    changed = Counter()
    for k in where.pop(pair):
      old, weight = sequences[k]
      new = sequences[k][0] = replace(old, pair, len(entries) - 1)
      if len(new) < len(old):
        for gone in itertools.pairwise(old):
          changed[gone] -= weight
        for here in itertools.pairwise(new):
          changed[here] += weight
          where[here].add(k)
  return merges


def apply_merges(sequence: list[int], ids_of_merges: dict[tuple[int, int], int]) -> list[int]:
  """The merges in the order they were learned, as long as one applies."""
  while True:
    pairs = [pair for pair in itertools.pairwise(sequence) if pair in ids_of_merges]
    if not pairs:
      return sequence
    pair = min(pairs, key=ids_of_merges.__getitem__)
    sequence = replace(sequence, pair, ids_of_merges[pair])


def number_groups(run: str) -> list[str]:
  """Decimal digits in threes from the right; other numerals stay with what stands before them."""
  groups, begin = [], 0
  for i in range(1, len(run)):
    if run[i].isdecimal() and len(regex.match(r'\d+', run[i:])[0]) % 3 == 0:
      groups.append(run[begin:i])
      begin = i
  return [*groups, run[begin:]]


def superword_parts(text: str) -> list[str]:
  parts = []
  for part in regex.findall(r'\p{N}+|[^\p{N}]+', text):
    parts += number_groups(part) if regex.match(r'\p{N}', part) else [part]
  return parts


def word_parts(text: str) -> list[str]:
  words = r' ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+'
  return [
    word for part in superword_parts(text) for word in ([part] if regex.match(r'\p{N}', part) else regex.findall(words, part))
  ]


# The 256 bytes come first, in the order of the characters that stand for them.
BYTES = [tokenizer_module.to_bytes(c) for c in sorted(map(chr, range(0x180))) if c in tokenizer_module._byte_of_character()]
ID_OF_BYTE = {entry[0]: i for i, entry in enumerate(BYTES)}


def to_ids(text: str) -> list[int]:
  return [ID_OF_BYTE[b] for b in text.encode()]


def naive_superbpe(texts: list[str], spec: TokenizerSpec):
  """(stage-1 merges, stage-2 merges) as pairs of ids."""
  words = Counter(word for text in texts for word in word_parts(text))
  first = naive_merges([[to_ids(word), n] for word, n in words.items()], BYTES, spec.transition_size - 256)
  entries = list(BYTES)
  for a, b in first:
    entries.append(entries[a] + entries[b])
  ids = {pair: 256 + i for i, pair in enumerate(first)}
  # Encoding is slow by the definition, so pieces that no merge can cross, as no entry holds such a pair of bytes, are
  # encoded once each.
  inside = {pair for entry in entries for pair in itertools.pairwise(entry)}
  known: dict[bytes, list[int]] = {}

  def encode(part: bytes) -> list[int]:
    out, begin = [], 0
    for i in range(1, len(part) + 1):
      if i == len(part) or (part[i - 1], part[i]) not in inside:
        piece = part[begin:i]
        if piece not in known:
          known[piece] = apply_merges([ID_OF_BYTE[b] for b in piece], ids)
        out += known[piece]
        begin = i
    return out

  sequences = [[encode(part.encode()), 1] for text in texts for part in superword_parts(text)]
  second = naive_merges(
    sequences, entries, spec.vocab_size - spec.transition_size, lambda token: allowed(token, spec.max_superword_words)
  )
  return first, second


def merges_of(tokenizer) -> list[tuple[bytes, bytes]]:
  merges = json.loads(tokenizer.inner.to_str())['model']['merges']
  return [(tokenizer_module.to_bytes(a), tokenizer_module.to_bytes(b)) for a, b in merges]


def as_bytes(merges, entries=BYTES) -> list[tuple[bytes, bytes]]:
  entries, out = list(entries), []
  for a, b in merges:
    out.append((entries[a], entries[b]))
    entries.append(entries[a] + entries[b])
  return out


# --- text ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope='session')
def varied(prose) -> list[str]:
  """More than 1 MB: prose, the same words in another order, and what prose lacks: numbers, scripts, runs, keys."""
  rng = random.Random(5)
  shuffled = [' '.join(rng.sample(words, len(words))) for words in (text.split(' ') for text in prose)]
  runs = [rng.choice(['-', '=', 'aab', ' ', '\n', 'ab ', '. ']) * rng.randint(1, 40) for _ in range(2000)]
  keys = [f'{rng.choice(["name", "the size", "value of it"])}: {rng.choice(prose)[:60]}' for _ in range(2500)]
  numbers = [
    f'in {rng.randint(0, 10 ** rng.randint(1, 9))} or {rng.random()}, x² ½{rng.randint(0, 99999)} ٣٤٥٦' for _ in range(1000)
  ]
  scripts = [''.join(rng.choice('日本語のテキスト 한국어 Ελληνικά\u00a0русский\u3000') for _ in range(40)) for _ in range(600)]
  texts = prose + shuffled + runs + keys + numbers + scripts
  assert sum(len(text.encode()) for text in texts) >= 1_000_000
  return texts


SPEC = TokenizerSpec(vocab_size=2400, transition_size=1400, max_superword_words=3, special_tokens=('<|x|>', '<|endoftext|>'))


@pytest.fixture(scope='session')
def trained(varied, tmp_path_factory):
  return superbpe.train(lambda: varied, SPEC, tmp_path_factory.mktemp('superbpe'))


@pytest.fixture(scope='session')
def naive(varied):
  return naive_superbpe(varied, SPEC)


# --- merges ----------------------------------------------------------------------------------------------------------


def test_merges_of_both_stages_equal_the_naive_learner_on_a_megabyte(trained, naive):
  first, second = naive
  merges = merges_of(trained)
  assert merges[: len(first)] == as_bytes(first)
  assert merges == as_bytes(first + second)
  assert len(merges) == SPEC.vocab_size - 256


def test_plain_bpe_is_stage_1_alone(trained, varied, tmp_path):
  spec = TokenizerSpec(vocab_size=SPEC.transition_size, transition_size=SPEC.transition_size)
  plain = superbpe.train(lambda: varied, spec, tmp_path)
  assert merges_of(plain) == merges_of(trained)[: SPEC.transition_size - 256]
  assert plain.vocab_size == SPEC.transition_size + 5
  assert max(len(plain.decode([i]).split()) for i in range(SPEC.transition_size)) == 1


def test_encoding_applies_the_merges_as_learned(trained, naive, varied):
  ids = {pair: 256 + i for i, pair in enumerate(naive[0] + naive[1])}
  rng = random.Random(7)
  texts = [text[rng.randint(0, 20) :][:150] for text in rng.sample(varied, 250)]
  for text, got in zip(texts, trained.encode_batch(texts), strict=True):
    want = [i for part in superword_parts(text) for i in apply_merges(to_ids(part), ids)]
    assert got.tolist() == want, text


@pytest.mark.parametrize('seed', range(60))
def test_learner_equals_a_recount_after_every_merge(seed):
  """Small alphabets make ties, runs of one token and characters cut in two; every first floor gives the same merges."""
  rng = random.Random(seed)
  entries = [b'a', b'b', b' ', b':', b'\xc2', b'\xa0', b' c', b'\n'][: rng.randint(1, 8)]
  sequences = [[rng.randrange(len(entries)) for _ in range(rng.randint(0, 80))] for _ in range(rng.randint(1, 9))]
  n_merges, max_words = rng.randint(1, 60), rng.randint(1, 4)
  flat = [-1]
  for sequence in sequences:
    flat += [*sequence, -1]
  want, known = [], list(entries)
  while len(want) < n_merges:
    counts = Counter(pair for sequence in sequences for pair in itertools.pairwise(sequence))
    pairs = [pair for pair in counts if allowed(known[pair[0]] + known[pair[1]], max_words)]
    if not pairs:
      break
    best = min(pairs, key=lambda pair: (-counts[pair], pair))
    want.append(best)
    known.append(known[best[0]] + known[best[1]])
    sequences = [replace(sequence, best, len(known) - 1) for sequence in sequences]
  for first_floor in (0, 2, 9, 70):
    got = superbpe_learner.learn(np.array(flat, np.int32), entries, n_merges, max_words, first_floor=first_floor)
    assert got == want, first_floor


def test_limits_hold_and_are_used_up(trained):
  superwords = [a + b for a, b in merges_of(trained)[SPEC.transition_size - 256 :]]
  words = Counter(len(token.decode('utf-8', 'replace').split()) for token in superwords)
  assert max(words) == SPEC.max_superword_words
  assert words[SPEC.max_superword_words] > 10
  assert not any(b': ' in token for token in superwords)
  assert any(b':' in token for token in superwords)


def test_without_the_limits_other_merges_come_out(trained, varied, tmp_path):
  spec = TokenizerSpec(vocab_size=SPEC.vocab_size, transition_size=SPEC.transition_size, max_superword_words=100)
  free = [a + b for a, b in merges_of(superbpe.train(lambda: varied, spec, tmp_path))]
  assert max(len(token.decode('utf-8', 'replace').split()) for token in free) > SPEC.max_superword_words
  assert not any(b': ' in token for token in free)


def test_no_merge_crosses_documents_or_groups_of_digits(tmp_path):
  spec = TokenizerSpec(vocab_size=263, transition_size=258, special_tokens=('<|endoftext|>',))
  trained = superbpe.train(lambda: ['x y', '1234567'] * 500 + ['ab', 'cd'] * 400 + ['y z'] * 30, spec, tmp_path)
  made = {a + b for a, b in merges_of(trained)}
  assert {b'234', b'567', b'x y'} <= made
  assert not any(token in b'1234567' and token not in b'234' and token not in b'567' for token in made)
  assert not any({b'yx', b'bc', b'dy', b'y1', b'7x'} & {token[i : i + 2] for i in range(len(token))} for token in made)


# --- sample ----------------------------------------------------------------------------------------------------------


def drawn(texts, budget, folder) -> list[str]:
  sample = superbpe_sample.draw(texts, budget, folder, lambda done: None)
  kept = [text for batch in sample.batches(1000) for text in batch]
  assert sample.n_bytes == sum(len(text.encode()) for text in kept) == (folder / 'sample.utf8').stat().st_size
  return kept


def test_sample_takes_everything_where_it_fits(prose, tmp_path):
  assert drawn(prose, 10**9, tmp_path) == prose


@pytest.mark.parametrize('budget', [100, 5_000, 60_000])
def test_sample_is_even_bounded_and_knows_no_order(prose, tmp_path, budget):
  kept = drawn(prose, budget, tmp_path)
  assert budget - 3 <= sum(len(text.encode()) for text in kept) <= budget
  whole = set(prose)
  assert sum(text not in whole for text in kept) <= 1  # the one that is cut where the budget ends
  again = drawn(random.Random(1).sample(prose, len(prose)), budget, tmp_path)
  assert sorted(again) == sorted(kept)
  if budget == 60_000:  # from the end as from the beginning
    places = [i / len(prose) for i, text in enumerate(prose) if text in set(kept)]
    assert 0.4 < np.mean(places) < 0.6


def test_sample_of_one_huge_document_is_its_beginning(tmp_path):
  assert drawn(['é' * 1000], 101, tmp_path) == ['é' * 50]


# --- stages ----------------------------------------------------------------------------------------------------------

SMALL = TokenizerSpec(vocab_size=500, transition_size=400, special_tokens=('<|endoftext|>',))


class Killed(Exception):
  pass


@pytest.mark.parametrize('step', [superbpe.READ, superbpe.WORDS, superbpe.ENCODE, superbpe.SUPERWORDS])
def test_training_goes_on_after_the_last_stage_that_ended(prose, tmp_path, step):
  calls = []

  def texts():
    calls.append(1)
    return prose[:300]

  def kill(at, done, total):
    if at == step:
      raise Killed

  with pytest.raises(Killed):
    superbpe.train(texts, SMALL, tmp_path / 'a', kill)
  steps = set()
  resumed = superbpe.train(texts, SMALL, tmp_path / 'a', lambda at, done, total: steps.add(at))
  order = [superbpe.READ, superbpe.WORDS, superbpe.ENCODE, superbpe.SUPERWORDS]
  assert steps == set(order[order.index(step) :])
  assert len(calls) == (2 if step == superbpe.READ else 1)
  whole = superbpe.train(texts, SMALL, tmp_path / 'b')
  assert resumed.fingerprint == whole.fingerprint
  names = {path.name.split('-')[0] for path in (tmp_path / 'a').iterdir()}
  assert names == {'tokenizer.json', 'tokenizer_config.json', 'trained'}


def test_what_is_trained_is_used_only_for_the_same_text_and_settings(prose, tmp_path):
  def never():
    raise AssertionError('read again')

  first = superbpe.train(lambda: prose[:300], SMALL, tmp_path, source='a')
  assert superbpe.train(never, SMALL, tmp_path, source='a').fingerprint == first.fingerprint
  other = superbpe.train(lambda: prose[300:600], SMALL, tmp_path, source='b')
  assert other.fingerprint != first.fingerprint
  bigger = TokenizerSpec(vocab_size=510, transition_size=400, special_tokens=('<|endoftext|>',))
  assert superbpe.train(lambda: prose[:300], bigger, tmp_path, source='b').vocab_size == 511
  assert tokenizer_module.load(tmp_path).vocab_size == 511


def test_too_little_text_is_one_line(tmp_path: Path):
  with pytest.raises(ValueError, match='the text to train a tokenizer on is empty'):
    superbpe.train(lambda: ['', ''], SMALL, tmp_path)
  with pytest.raises(ValueError, match=r'transition_size: got 400, wants at most the \d+ entries'):
    superbpe.train(lambda: ['too short'], SMALL, tmp_path)
  with pytest.raises(ValueError, match=r'data.tokenizer.vocab_size: got 90000, wants at most the \d+ entries'):
    superbpe.train(lambda: ['long enough for one merge'] * 2, TokenizerSpec(vocab_size=90000, transition_size=257), tmp_path)
