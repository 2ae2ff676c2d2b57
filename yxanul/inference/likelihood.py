"""How likely a model holds a text to be, by the bytes, whatever the tokens do at its ends.

`boundary` has the maths. A text's beginning is always read from an end-of-text token on, or, where the window is shorter
than the text, from inside it.

Shapes: B rows, T length, N tokens that are no padding, M of one chunk, V vocabulary.
"""

import bisect
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from yxanul.inference.boundary import Boundary, Branch
from yxanul.inference.model import Model
from yxanul.kernels.vocab_loss import CHUNK_BYTES
from yxanul.model import transformer

_TOKENS_AT_ONCE = 16_384  # of a batch of rows, padding included


class Reading(NamedTuple):
  """What a model says along a row of T tokens. The first is context alone."""

  logp_T: np.ndarray  # (T - 1,) FP64: nats of each token but the first, given all before it
  best_T: np.ndarray  # (T,) int64: the likeliest token after each that can be drawn
  next_V: Tensor  # (V,) FP32 on the device: log-probabilities of what follows the row


@torch.no_grad()
def read(model: Model, rows: Sequence[tuple[int, ...]]) -> list[Reading]:
  """Reads rows of token ids; one that begins another is read with it. Each needs at least one token."""
  ordered = sorted(set(rows))
  longest = [a for a, b in zip(ordered, [*ordered[1:], ()], strict=True) if b[: len(a)] != a]
  beginnings: list[set[int]] = [set() for _ in longest]
  for row in ordered:
    beginnings[bisect.bisect_left(longest, row)].add(len(row))
  found: dict[tuple[int, ...], Reading] = {}
  by_length = sorted(zip(longest, beginnings, strict=True), key=lambda item: len(item[0]))
  while by_length:
    n_rows = max(1, _TOKENS_AT_ONCE // len(by_length[-1][0]))
    found |= _read_batch(model, by_length[-n_rows:])
    del by_length[-n_rows:]
  return [found[row] for row in rows]


def _read_batch(model: Model, batch: list[tuple[tuple[int, ...], set[int]]]) -> dict[tuple[int, ...], Reading]:
  lengths = [len(row) for row, _ in batch]
  tokens_BT = torch.zeros(len(batch), max(lengths), dtype=torch.int64)  # padding on the right is seen by padding alone
  for i, (row, _) in enumerate(batch):
    tokens_BT[i, : len(row)] = torch.tensor(row)
  is_text_BT = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
  targets_N = torch.cat((tokens_BT[:, 1:], tokens_BT[:, :1]), 1)[is_text_BT].to(model.device)
  x_BTD = transformer.hidden(model.params, tokens_BT.to(model.device), model.spec, model.numerics)
  x_NR = transformer.head_input(model.params, x_BTD, model.spec)[is_text_BT.to(model.device)]
  logp, best = [], []
  chunk = max(1, CHUNK_BYTES // (4 * model.spec.vocab_size))
  for x_MR, targets_M in zip(x_NR.split(chunk), targets_N.split(chunk), strict=True):
    logp_MV = transformer.logits(model.params, x_MR, model.spec).float().log_softmax(-1)
    logp.append(logp_MV.gather(-1, targets_M[:, None])[:, 0])
    best.append(logp_MV.masked_fill_(model.undrawable_V, -torch.inf).argmax(-1))
  logp_N, best_N = torch.cat(logp).double().cpu().numpy(), torch.cat(best).cpu().numpy()
  found, at = {}, 0
  for row, ends in batch:
    for n in ends:
      next_V = transformer.logits(model.params, x_NR[at + n - 1], model.spec).float().log_softmax(-1)
      found[row[:n]] = Reading(logp_N[at : at + n - 1], best_N[at : at + n], next_V)
    at += len(row)
  return found


def cover_logps(reading: Reading, branch: Branch) -> np.ndarray:
  """log p of each cover of a branch, (covers,) FP64, from the reading of its head (or of the end of it)."""
  lasts = torch.from_numpy(branch.lasts).to(reading.next_V.device)
  return reading.logp_T.sum() + reading.next_V[lasts].double().cpu().numpy()


class Likelihood:
  """Scores texts with one model."""

  def __init__(self, model: Model):
    self.model = model
    self.boundary = Boundary(model.tokenizer)
    self.n_long = 0  # continuations so far that did not fit into the window

  def _branches(self, text: str) -> tuple[Branch, ...]:
    return self.boundary.branches(text) if text else ()

  def continuations(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
    """Of each (context, continuation), two texts of any length.

    Where both do not fit into the model's window, the start of the context is left out. Where the continuation alone does
    not, both are scored as `rolling` does, by their own tokens: then whether it is the likeliest is not looked at, and False.

    Returns:
      log P(context + continuation) - log P(context) in nats: how likely a document that begins with the context's bytes
      goes on with the continuation's. And whether it is what decoding the likeliest gives: the likeliest cover of the
      context, then the likeliest token after it each time, until the continuation is covered.
    """
    end = self.model.tokenizer.end_of_text_id
    branches = [(self._branches(context), self._branches(context + continuation)) for context, continuation in pairs]
    drops = [self._dropped(*both) for both in branches]
    wanted = {
      (end, *branch.head)[drop:]
      for both, drop in zip(branches, drops, strict=True)
      if drop is not None
      for side in both
      for branch in side
    }
    rows = sorted(wanted)
    readings = dict(zip(rows, read(self.model, rows), strict=True))
    return [
      self._long(*pair) if drop is None else self._continuation(*both, drop, readings)
      for pair, both, drop in zip(pairs, branches, drops, strict=True)
    ]

  def rolling(self, texts: Sequence[str]) -> list[float]:
    """log p of each text whole, in nats, by the rule of bits per byte: its own tokens, the first from an end-of-text token on.

    A text longer than the window is read in rows that overlap by half, so each token has half a window before it, or all.
    """
    window, end = self.model.window, self.model.tokenizer.end_of_text_id
    streams = [(end, *ids.tolist()) for ids in self.model.tokenizer.encode_batch(texts)]
    stride = max(1, window // 2)
    starts = [range(0, max(1, len(stream) - window + stride), stride) for stream in streams]
    rows = [stream[at : at + window] for stream, some in zip(streams, starts, strict=True) for at in some]
    readings = iter(read(self.model, rows))
    totals = []
    for some in starts:
      # Each row but the first begins with what the one before it has scored.
      fresh = [next(readings).logp_T[window - 1 - stride if at else 0 :] for at in some]
      totals.append(float(np.concatenate(fresh).sum()))
    return totals

  def _long(self, context: str, continuation: str) -> tuple[float, bool]:
    self.n_long += 1
    before, both = self.rolling([context, context + continuation])
    return both - before, False

  def _dropped(self, before: tuple[Branch, ...], after: tuple[Branch, ...]) -> int | None:
    """How many tokens of the context to leave out so that every head fits behind what is left; None where none can."""
    longest = max((1 + len(branch.head) for branch in after), default=1)
    drop = max(0, longest - self.model.window)
    kept = before[0].head[:drop] if before else ()
    if any(branch.head[:drop] != kept for branch in (*before, *after)) or len(kept) < drop:
      return None
    return drop

  def _continuation(self, before, after, drop: int, readings) -> tuple[float, bool]:
    end = self.model.tokenizer.end_of_text_id
    before_at, after_at = ([readings[(end, *branch.head)[drop:]] for branch in side] for side in (before, after))
    if after == before:
      return 0.0, True
    scores = [cover_logps(reading, branch) for reading, branch in zip(after_at, after, strict=True)]
    total = np.logaddexp.reduce(np.concatenate(scores))
    start: tuple[int, ...] = ()
    if before:
      scores = [cover_logps(reading, branch) for reading, branch in zip(before_at, before, strict=True)]
      total -= np.logaddexp.reduce(np.concatenate(scores))
      likeliest = max(range(len(before)), key=lambda i: scores[i].max())
      start = (*before[likeliest].head, int(before[likeliest].lasts[scores[likeliest].argmax()]))
    return float(total), any(_is_greedy(start, branch, reading, drop) for branch, reading in zip(after, after_at, strict=True))


def _is_greedy(start: tuple[int, ...], branch: Branch, reading: Reading, drop: int) -> bool:
  """Whether a cover of the branch is `start` and the likeliest token after it each time."""
  n = len(start)
  if n > len(branch.head):  # `start` is a cover itself, if it reaches over the whole text
    return n == len(branch.head) + 1 and start[:-1] == branch.head and start[-1] in branch.lasts
  likeliest = reading.best_T[n - drop :]
  return branch.head[:n] == start and branch.head[n:] == tuple(likeliest[:-1]) and likeliest[-1] in branch.lasts
