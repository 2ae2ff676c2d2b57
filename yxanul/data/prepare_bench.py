"""How fast text becomes shards, beside what `tokenizers` itself does with the same text on the same cores."""

import os
import resource
import tempfile
import time
from typing import Any

from yxanul.config.spec import DataSpec
from yxanul.data import prepare, sources
from yxanul.data import tokenizer as tokenizers

_BATCH_DOCUMENTS = 1024


def raw_encode_rate(spec: DataSpec) -> dict[str, float]:
  """Bytes a second of the library's own `encode_batch`, all cores, on text that is in memory already."""
  inner = tokenizers.load(spec.tokenizer.path, spec.tokenizer.special_tokens).inner
  texts = [document.text for document in sources.documents(sources.find(spec.source), spec)]
  begin = _Clock()
  for i in range(0, len(texts), _BATCH_DOCUMENTS):
    inner.encode_batch(texts[i : i + _BATCH_DOCUMENTS], add_special_tokens=False)
  return begin.since(sum(len(text.encode()) for text in texts))


def prepare_rate(spec: DataSpec) -> dict[str, Any]:
  """Bytes a second from the source's files to finished shards in a new directory; peak memory of this process and a worker."""
  with tempfile.TemporaryDirectory() as directory:
    begin = _Clock()
    prepared = prepare.prepare(spec, directory)
    figures = begin.since(prepared.train.n_bytes + prepared.validation.n_bytes)
  own, workers = (resource.getrusage(who).ru_maxrss * 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
  return figures | {'peak_bytes': own, 'worker_peak_bytes': workers, 'phases': prepared.report['seconds']}


class _Clock:
  """Wall time and the CPU time of this process and its finished children; on a machine that others share, both matter."""

  def __init__(self):
    self._wall, self._cpu = time.perf_counter(), self._cpu_seconds()

  @staticmethod
  def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system

  def since(self, n_bytes: int) -> dict[str, float]:
    seconds, cpu_seconds = time.perf_counter() - self._wall, self._cpu_seconds() - self._cpu
    return {
      'bytes': n_bytes,
      'seconds': seconds,
      'cpu_seconds': cpu_seconds,
      'bytes_per_second': n_bytes / seconds,
      'bytes_per_cpu_second': n_bytes / cpu_seconds,
    }
