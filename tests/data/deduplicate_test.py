"""The set of digests is a set, and a small one."""

import hashlib
import tracemalloc

import pytest

from yxanul.data.deduplicate import DigestSet, digest, unit_interval


def digests(n: int) -> list[bytes]:
  return [digest(str(i).encode()) for i in range(n)]


def test_adds_each_digest_once():
  seen = DigestSet()
  some = digests(20_000)
  assert all(seen.add(d) for d in some)
  assert not any(seen.add(d) for d in some)
  assert all(seen.add(d) for d in digests(20_500)[20_000:])
  assert len(seen) == 20_500


def test_tells_digests_apart_that_meet_in_one_slot():
  seen = DigestSet()
  some = [bytes([i]) + bytes(15) for i in range(1, 100)] + [bytes(16)]
  assert all(seen.add(d) for d in some)
  assert not any(seen.add(d) for d in some)


@pytest.mark.parametrize('n', [30_000, 46_500])  # at the second, most tables have just doubled
def test_at_most_64_bytes_a_document_even_while_it_grows(n):
  tracemalloc.start()
  try:
    seen = DigestSet()
    for i in range(n):
      seen.add(hashlib.blake2b(i.to_bytes(4, 'big'), digest_size=16).digest())
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert peak / n <= 64


def test_the_unit_interval_is_filled_evenly_and_pinned():
  places = [unit_interval(d) for d in digests(10_000)]
  assert all(0 <= p < 1 for p in places)
  assert sum(p < 0.1 for p in places) == pytest.approx(1000, abs=100)
  assert unit_interval(digest(b'a document')) == 0.6283624932627501
  assert unit_interval(b'\xff' * 16) < 1
