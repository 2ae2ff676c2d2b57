"""Text from a model: prompts go on, one token after another, drawn from the softmax of its logits.

A prompt may end anywhere, also inside what the tokenizer would make one token: the tokens at its end are backed off, and
what is drawn in their place agrees with the prompt's remaining bytes (`boundary`). Rows of a batch are independent: each
draws from a stream of its own, so a prompt's text is the same whatever stands beside it.

Shapes: B rows, T length, V vocabulary.
"""

import codecs
import dataclasses
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from yxanul.inference.boundary import Boundary
from yxanul.inference.likelihood import cover_logps, read
from yxanul.inference.model import Model
from yxanul.model import transformer
from yxanul.model.cache import Cache, extend, init_cache


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How tokens are drawn, and when a text ends."""

  tokens: int = 128  # at most, of each text
  temperature: float = 0.8  # 0: always the likeliest
  top_k: int = 0  # draw from the likeliest k alone; 0: from all
  top_p: float = 1.0  # draw from the fewest likeliest whose probabilities, at the temperature, sum to p (arXiv 1904.09751)
  stop: tuple[str, ...] = ()  # ends before any of these, besides at the end-of-text

  def __post_init__(self):
    if not 0 <= self.temperature < math.inf:
      raise ValueError(f'temperature: got {self.temperature}, wants a finite number from 0 on')
    if not 0 <= self.top_p <= 1:
      raise ValueError(f'top_p: got {self.top_p}, wants a number from 0 to 1')


def draw(logits_V: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
  """One index of unnormalized log-probabilities."""
  if sampling.temperature == 0:
    return int(logits_V.argmax())
  logits_V = logits_V.double().cpu()
  logits_V = ((logits_V - logits_V.max()) / sampling.temperature).float()  # the likeliest is 0 at the tiniest temperature too
  if sampling.top_k and sampling.top_k < len(logits_V):
    least = logits_V.topk(sampling.top_k).values[-1]
    logits_V = logits_V.masked_fill(logits_V < least, -torch.inf)
  p_V = logits_V.softmax(-1)
  if sampling.top_p < 1:
    ordered_V, order_V = p_V.sort(descending=True, stable=True)
    above_V = ordered_V.cumsum(-1) - ordered_V  # of all that are likelier; the likeliest itself always stays
    p_V[order_V[1:][above_V[1:] >= sampling.top_p]] = 0.0
  return int(torch.multinomial(p_V, 1, generator=generator))


def streams(seed: int, n: int) -> list[torch.Generator]:
  """A random stream for each of `n` texts; the first ones stay the same however many there are."""
  seeds = torch.randint(2**62, (n,), generator=torch.Generator().manual_seed(seed))
  return [torch.Generator().manual_seed(int(one)) for one in seeds]


class _Text:
  """What has been drawn of a text, handed out as soon as nothing that follows can change it."""

  def __init__(self, sampling: Sampling):
    self._stop = sampling.stop
    self._decode = codecs.getincrementaldecoder('utf-8')('replace').decode  # a character may take several tokens
    self._held = ''
    self.ended = False

  def add(self, data: bytes, final: bool = False) -> str:
    """What is certain now: whole characters, no stop and nothing that may become one."""
    self._held += self._decode(data, final)
    found = [at for at in map(self._held.find, self._stop) if at >= 0]
    if found:
      self.ended, keep = True, min(found)
    elif final:
      keep = len(self._held)
    else:
      keep = len(self._held) - max((_overlap(self._held, stop) for stop in self._stop), default=0)
    out, self._held = self._held[:keep], self._held[keep:]
    return out


def _overlap(text: str, stop: str) -> int:
  """Length of the longest end of `text` that begins `stop`."""
  return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


class Generator:
  """Continues prompts with one model."""

  def __init__(self, model: Model):
    self.model = model
    self.boundary = Boundary(model.tokenizer)

  @torch.no_grad()
  def __call__(
    self, prompts: Sequence[str], sampling: Sampling, generators: Sequence[torch.Generator]
  ) -> Iterator[tuple[int, str]]:
    """Yields (number of the prompt, text that follows what was yielded for it), as soon as it is certain.

    Args:
      generators: on the CPU, one for each prompt; the same states give the same texts.
    """
    model, end = self.model, self.model.tokenizer.end_of_text_id
    texts = [_Text(sampling) for _ in prompts]
    rows = []
    for i, (prompt, generator) in enumerate(zip(prompts, generators, strict=True)):
      row, extra = self._begin(prompt, sampling, generator)
      rows.append(row)
      if out := texts[i].add(extra):
        yield i, out
    alive = [i for i, text in enumerate(texts) if not text.ended]
    if not alive:
      return
    logits_BV, cache = self._read_anew([rows[i] for i in alive])
    for n_left in reversed(range(sampling.tokens)):
      for i, logits_V in zip(alive, logits_BV, strict=True):
        token = draw(logits_V, sampling, generators[i])
        rows[i].append(token)
        if out := texts[i].add(model.tokenizer.entries[token], final=token == end):
          yield i, out
        texts[i].ended |= token == end
      kept = [at for at, i in enumerate(alive) if not texts[i].ended]
      if not kept:
        return
      if len(kept) < len(alive):
        alive = [alive[at] for at in kept]
        cache = Cache(cache.keys_LBSKC[:, kept], cache.values_LBSKC[:, kept], cache.lengths_B[kept])
      if not n_left:
        break
      if max(len(rows[i]) for i in alive) > model.window:
        logits_BV, cache = self._read_anew([rows[i] for i in alive])
      else:
        logits_BV, cache = self._extend([rows[i][-1:] for i in alive], cache)
    for i in alive:
      if out := texts[i].add(b'', final=True):
        yield i, out

  def _begin(self, prompt: str, sampling: Sampling, generator: torch.Generator) -> tuple[list[int], bytes]:
    """The tokens of a cover of the prompt, drawn by its share, behind an end-of-text; and what it adds to the prompt."""
    end = self.model.tokenizer.end_of_text_id
    if not prompt:
      return [end], b''
    branches = self.boundary.branches(prompt)
    drop = max(0, 1 + max(len(branch.head) for branch in branches) - self.model.window)
    readings = read(self.model, [(end, *branch.head)[drop:] for branch in branches])
    logps = [torch.from_numpy(cover_logps(*both)) for both in zip(readings, branches, strict=True)]
    chosen = draw(torch.cat(logps), sampling, generator)
    for branch in branches:
      if chosen < len(branch.lasts):
        return [end, *branch.head, int(branch.lasts[chosen])], branch.extras[chosen]
      chosen -= len(branch.lasts)
    raise AssertionError('the draw lies behind the last cover')

  def _read_anew(self, rows: list[list[int]]) -> tuple[Tensor, Cache]:
    """Reads the rows into a fresh cache. A row that has outgrown the window loses its older half."""
    window = self.model.window
    for row in rows:
      if len(row) > window:
        del row[: -max(1, window // 2)]
    cache = init_cache(self.model.spec, len(rows), window, self.model.numerics.dtype, self.model.device)
    return self._extend(rows, cache)

  def _extend(self, pieces: list[list[int]], cache: Cache) -> tuple[Tensor, Cache]:
    """Reads more of each row; the logits of what follows, (B, V) FP32."""
    model, counts = self.model, torch.tensor([len(piece) for piece in pieces])
    tokens_BT = torch.zeros(len(pieces), int(counts.max()), dtype=torch.int64)
    for i, piece in enumerate(pieces):
      tokens_BT[i, : len(piece)] = torch.tensor(piece)
    x_BTD, cache = extend(model.params, tokens_BT.to(model.device), counts.to(model.device), cache, model.spec, model.numerics)
    x_BD = x_BTD[torch.arange(len(pieces)), counts - 1]
    x_BR = transformer.head_input(model.params, x_BD, model.spec)
    logits_BV = transformer.logits(model.params, x_BR, model.spec).float()
    return logits_BV.masked_fill(model.undrawable_V, -torch.inf), cache


def complete(model: Model, prompts: Sequence[str], sampling: Sampling, generators: Sequence[torch.Generator]) -> list[str]:
  """What follows each prompt, whole."""
  texts = [''] * len(prompts)
  for i, text in Generator(model)(prompts, sampling, generators):
    texts[i] += text
  return texts
