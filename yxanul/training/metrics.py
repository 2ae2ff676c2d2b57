"""Metrics on their way from the device to `metrics.jsonl`: read one step late, never waited for by the step itself."""

import errno
import json
import math
import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from yxanul.training.distributed import PEER_SECONDS, PeerLost
from yxanul.training.step import StepMetrics

GPT2_CHARACTERS_PER_TOKEN = 4.488  # of English, the mission's figure


def bits_per_byte(nats: float, n_bytes: float) -> float:
  """Nats over text of `n_bytes` UTF-8 bytes, as bits a byte."""
  return nats / (math.log(2.0) * n_bytes) if n_bytes else math.nan


def ppl_gpt2_equivalent(bpb: float) -> float:
  """The perplexity a token that a GPT-2 tokenizer would show at this many bits a byte."""
  return 2.0 ** min(bpb * GPT2_CHARACTERS_PER_TOKEN, 1000.0)


class MetricsQueue:
  """Step metrics that wait on the device until the next step is under way.

  `put` copies a step's numbers to pinned memory without waiting; `get` waits for that copy only, not for what was
  launched after it.
  """

  def __init__(self, device: torch.device):
    self._cuda = device.type == 'cuda'
    self._waiting: deque[tuple[Any, torch.Tensor, Any]] = deque()

  def __len__(self) -> int:
    return len(self._waiting)

  def put(self, metrics: StepMetrics, context: Any) -> None:
    values = torch.stack(tuple(metrics))
    event = None
    if self._cuda:
      host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
      host.copy_(values, non_blocking=True)
      event = torch.cuda.Event()
      event.record()
      values = host
    self._waiting.append((event, values, context))

  def get(self) -> tuple[list[float], Any]:
    """The oldest step's numbers, and the context that was put beside them.

    Raises:
      PeerLost: none came in PEER_SECONDS: a step that waits for a process which is gone never ends, nor does a GPU that hangs.
    """
    event, values, context = self._waiting.popleft()
    if event is not None:
      until = time.monotonic() + PEER_SECONDS
      while not event.query():
        if time.monotonic() > until:
          raise PeerLost(f'a step did not end in {PEER_SECONDS} s')
        time.sleep(1e-4)
    return values.tolist(), context


def line_kind(record: dict[str, Any]) -> str:
  return 'event' if 'event' in record else 'held_out' if 'val_bpb' in record else 'training'


def _record(line: bytes) -> dict[str, Any] | None:
  """What a line of the log holds; None when it is none."""
  try:
    record = json.loads(line)
  except ValueError:
    return None
  return record if isinstance(record, dict) and type(record.get('step')) is int else None


class MetricsLog:
  """`metrics.jsonl`, one object a line. A resumed run drops what was logged after the step it goes on from.

  `written_before` has step and kind of every line that earlier sessions wrote, dropped ones too.
  """

  def __init__(self, path: Path, after_step: int, tell: Callable[[str], None] = print):
    kept, written = [], set()
    if path.exists():
      lines = path.read_bytes().splitlines()
      for number, line in enumerate(lines, start=1):
        record = _record(line)
        if record is None:
          if number < len(lines):  # else a kill cut it short
            tell(f'{path}: line {number} cannot be read; it and the {len(lines) - number} after it are dropped')
          break
        written.add((record['step'], line_kind(record)))
        if record['step'] <= after_step:
          kept.append(line)
    # Written beside and renamed: a kill here must not lose the lines that stay.
    fresh = path.with_suffix('.jsonl.tmp')
    fresh.write_bytes(b''.join(line + b'\n' for line in kept))
    os.replace(fresh, path)
    self._file = path.open('ab', buffering=0)  # a buffer would hide what a full disk did not take
    self._size = self._file.tell()  # of the lines that are whole
    self._waiting = b''
    self.path, self._tell = path, tell
    self.written_before = frozenset(written)

  def write(self, record: dict[str, Any]) -> None:
    """Adds a line. One that the disk does not take waits, and is written with the next."""
    fails = bool(self._waiting)
    self._waiting += json.dumps(_finite(record)).encode() + b'\n'
    try:
      self._flush()
    except OSError as error:
      if not fails:
        self._tell(f'cannot write {self.path}: {error.strerror}; its lines wait for room')

  def _flush(self) -> None:
    written = self._file.write(self._waiting)
    if written < len(self._waiting):  # a full disk takes what fits: not half a line
      os.ftruncate(self._file.fileno(), self._size)
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    self._size += written
    self._waiting = b''

  def close(self) -> None:
    """Raises OSError when lines are left that the disk does not take."""
    with self._file:
      if self._waiting:
        self._flush()


def _finite(record: dict[str, Any]) -> dict[str, Any]:
  """JSON has no NaN and no infinity: they become null."""
  return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
