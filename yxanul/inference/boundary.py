"""Where a text ends inside a token: every way in which a tokenization may go on over its end.

A tokenizer gives each text one sequence of tokens, its canonical one, and only these occur in training. That a document
begins with the bytes x says less than how x is tokenized when it ends there: " the" may be the token " the", or the start of
the superword " the end". What the event "the document begins with x" is made of are the covers of x, the canonical
sequences whose bytes begin with x and whose last token begins inside x:

  C(x) = { encode(x + e) : e any bytes, with a last token that begins before the end of x }
  P(x) = sum of p(c) over c in C(x)

They exclude one another and leave nothing out: cut the canonical tokens of a document that begins with x behind the token
that holds the last byte of x, and what is left is one cover. P is therefore exact but for the mass that the model gives to
sequences no tokenizer writes. The probability that y follows x is P(xy) / P(x), whatever the tokens do at the boundary, and
a continuation of x is drawn by drawing a cover with its share of P(x) and going on from there.

There are few: all covers whose last token begins at the same byte have the same tokens before it, so one reading of the
model there gives all of them, and canonical tokens seldom begin at more than a handful of the last bytes. Candidates for e
are what remains of each entry that begins with the last bytes of x; encoding x + e tells which are real.

(The same sums, with other ways to compute them: Phan et al., arXiv 2410.09303; Vieira et al., arXiv 2412.03719; Hayase et al.,
arXiv 2506.14123. Token healing is the draw without the sum: it backs off by one token, whatever the text.)
"""

import bisect
import functools
import itertools
from collections import defaultdict
from typing import NamedTuple

import numpy as np

from yxanul.data.tokenizer import Tokenizer

_CACHED_TEXTS = 256


class Branch(NamedTuple):
  """Covers whose last token begins at the same byte."""

  head: tuple[int, ...]  # their tokens before it
  lasts: np.ndarray  # (covers,) int64: their last token
  extras: tuple[bytes, ...]  # (covers,): what each adds to the text


class Boundary:
  """Finds covers. `boundary.branches(text)` has at least one for every text that is not empty."""

  def __init__(self, tokenizer: Tokenizer):
    self._tokenizer = tokenizer
    self._sorted = sorted(entry for entry in tokenizer.entries if entry)
    self._longest = max(map(len, self._sorted))
    self.branches = functools.lru_cache(_CACHED_TEXTS)(self._branches)

  def _branches(self, text: str) -> tuple[Branch, ...]:
    """The covers of `text`, which is not empty, in an order that depends on nothing else."""
    data, entries = text.encode(), self._tokenizer.entries
    ids = self._tokenizer.encode_batch([text])[0].tolist()
    starts = [0, *itertools.accumulate(len(entries[i]) for i in ids)]
    extras, window_bytes = self._candidates(data)
    found: dict[tuple[int, ...], list[tuple[bytes, int]]] = defaultdict(list)
    # Only the end of the text can come out otherwise, so only a window of it is encoded again and again. It is wide enough
    # where its own first token stays as it is: then all before it does too.
    first = len(ids)
    while extras:
      while first and (len(data) - starts[first] <= window_bytes or data[starts[first]] & 0xC0 == 0x80):  # inside a character
        first -= 1
      window, unclear = data[starts[first] :], []
      here: dict[tuple[int, ...], list[tuple[bytes, int]]] = defaultdict(list)
      for extra, tokens in zip(extras, self._tokenizer.encode_beginnings([window + e for e in extras]), strict=True):
        if tokens is None:
          continue  # no text goes on like this
        if first and tokens[0] != ids[first]:
          unclear.append(extra)
        elif len(entries[tokens[-1]]) > len(extra):
          here[tuple(tokens[:-1])].append((extra, tokens[-1]))
      for tokens, ends in here.items():
        found[(*ids[:first], *tokens)] += ends
      extras, window_bytes = unclear, 2 * len(window)
    return tuple(
      Branch(head, np.array([token for _, token in sorted(ends)]), tuple(extra for extra, _ in sorted(ends)))
      for head, ends in sorted(found.items())
    )

  def _candidates(self, data: bytes) -> tuple[list[bytes], int]:
    """What may follow inside the last token, and how far back from the end such a token may begin."""
    extras, reach = {b''}, 1
    for back in range(1, min(self._longest, len(data)) + 1):
      ending = data[len(data) - back :]
      at = bisect.bisect_left(self._sorted, ending)
      while at < len(self._sorted) and self._sorted[at].startswith(ending):
        extras.add(self._sorted[at][back:])
        reach, at = back, at + 1
    return sorted(extras), reach
