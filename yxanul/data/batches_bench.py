"""How fast the loader feeds a step that takes no time: tokens a second for each stage's shape."""

import itertools
import time
from collections.abc import Iterable
from typing import Any

import torch

from yxanul.data.batches import Loader
from yxanul.data.stream import Stream


def loader_benchmark(
  stream: Stream, shapes: Iterable[tuple[int, int, int]], seconds: float = 2.0, device: torch.device | str = 'cpu'
) -> list[dict[str, Any]]:
  """A row for each (position, batch_size, seq_len): target tokens a second through the whole loader, thread and queue included.

  The first batch, with the epoch's order, is not timed. What a stage has too little text for goes on into the next.
  """
  rows = []
  for position, batch_size, seq_len in shapes:
    with Loader(stream, position, itertools.repeat((batch_size, seq_len)), device) as loader:
      batches = iter(loader)
      _, position = next(batches)
      first, begin = position, time.perf_counter()
      while (took := time.perf_counter() - begin) < seconds:
        _, position = next(batches)
    rate = (position - first) / took
    rows.append({'seq_len': seq_len, 'batch_size': batch_size, 'tokens_per_second': rate})
  return rows
