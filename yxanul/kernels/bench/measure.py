"""Times a kernel, its peers and the rates that its floor is computed from, on one device in one run.

On a GPU a step is captured in a CUDA graph and its replays are timed by events, so that the host's launches are not measured;
one that refuses is launched by the host. Without a GPU the clock is the host's. Tensors should exceed the cache: nothing is
flushed between the steps.
"""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

Row = dict[str, Any]
Step = Callable[[], object]  # the kernel, forward and backward, once

_SECONDS, _LEAST, _MOST = 0.25, 5, 31  # of one timing: how long it should take, and how often the step runs


class Work(NamedTuple):
  """What any implementation has to move and to multiply; the floor takes one after the other."""

  bytes: float = 0
  flops: float = 0  # of BF16 products
  fp8_flops: float = 0


class Rates(NamedTuple):
  """What this device reaches on large copies (bytes read and written) and on large square products."""

  bytes_per_second: float
  flops_per_second: float
  fp8_flops_per_second: float

  def milliseconds(self, work: Work) -> float:
    seconds = (a / b for a, b in zip(work, self, strict=True) if a)
    return 1e3 * sum(seconds)


class Subject(NamedTuple):
  """One way to do it. `make` allocates and gives the step, so that only one subject's tensors are there at a time."""

  name: str
  make: Callable[[], Step]
  captures: bool = True


class Case(NamedTuple):
  key: str  # short, for the figures' names
  shape: str
  subjects: Sequence[Subject]  # ours is the first
  floor: Work


def rates(device: torch.device) -> Rates:
  """Measured now. On the CPU FP8 counts as FP32 does: its products are for tests only."""
  on_gpu = device.type == 'cuda'
  n_bytes, n = (2**32, 8192) if on_gpu else (2**24, 256)
  source = torch.zeros(n_bytes // 4, device=device)
  target = torch.empty_like(source)
  # One copy of 1 GiB on an H200 came to 2.75 TB/s where kernels reach 4.2: a larger one, and the faster of two ways.
  copies = (lambda: target.copy_(source), lambda: torch.mul(source, 1.0, out=target))
  copy = min((timed(step, device, captures=True) for step in copies), key=lambda times: times['ms'])
  a = torch.randn(n, n, device=device).to(torch.bfloat16 if on_gpu else torch.float32)
  product = fp8 = timed(lambda: a @ a, device, captures=True)
  if on_gpu and torch.cuda.get_device_capability(device) >= (8, 9):
    b, one = a.to(torch.float8_e4m3fn), torch.ones((), device=device)
    multiply = lambda: torch._scaled_mm(b, b.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True)  # noqa: E731
    fp8 = timed(multiply, device, captures=True)
  return Rates(*(1e3 * work / t['ms'] for work, t in ((2 * n_bytes, copy), (2 * n**3, product), (2 * n**3, fp8))))


def measure(case: Case, device: torch.device, rates: Rates, tell: Callable[[str], None]) -> Row:
  """Times every subject, and tells a line of each.

  Returns:
    'key', 'shape', 'floor_ms', 'floor' (what it counts), and under 'subjects' by name their times or an 'error'.
  """
  floor = {'floor_ms': rates.milliseconds(case.floor), 'floor': binding(case.floor)}
  row = {'key': case.key, 'shape': case.shape, **floor, 'subjects': {}}
  for subject in case.subjects:
    release(device)
    start = time.perf_counter()
    try:
      row['subjects'][subject.name] = timed(subject.make(), device, subject.captures)
    except Exception as error:  # a library that is absent, or does not take this shape, fails in any way it likes
      lines = str(error).strip().splitlines() or ['']
      row['subjects'][subject.name] = {'error': f'{type(error).__name__}: {lines[0][:160]}'}
    times = row['subjects'][subject.name]
    said = f'{times["ms"]:.3f} ms' if 'ms' in times else times['error']
    tell(f'{case.shape}, {subject.name}: {said} (after {time.perf_counter() - start:.1f} s)')
  release(device)
  return row


def binding(work: Work) -> str:
  """'bytes', 'flops' or both: what a floor counts."""
  return ' + '.join(name for name, value in work._asdict().items() if value)


def release(device: torch.device) -> None:
  """Forgets what the last subject left: memory, and compiled functions."""
  torch._dynamo.reset()  # or the ninth shape of a compiled function would run as it is written
  gc.collect()
  if device.type == 'cuda':
    torch.cuda.empty_cache()


def timed(step: Step, device: torch.device, captures: bool) -> Row:
  """'ms' (the median), 'ms_p10', 'ms_p90', 'n', and 'extra_bytes': the most it held beside what it was given."""
  if device.type == 'cpu':
    step()
    return _statistics(lambda: _on_host(step))
  before = torch.cuda.memory_allocated(device)
  with torch.cuda.stream(torch.cuda.Stream(device)):
    step()  # compiles
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
  torch.cuda.synchronize(device)
  extra = torch.cuda.max_memory_allocated(device) - before
  graph = torch.cuda.CUDAGraph() if captures else None
  if graph:
    with torch.cuda.graph(graph):
      step()
  run = graph.replay if graph else step
  run()
  return _statistics(lambda: _on_gpu(run)) | {'extra_bytes': extra, 'captured': captures}


def _statistics(once: Callable[[], float]) -> Row:
  n = min(_MOST, max(_LEAST, int(1e3 * _SECONDS / max(once(), 1e-3))))
  times = sorted(once() for _ in range(n))
  low, high = times[round(0.1 * (n - 1))], times[round(0.9 * (n - 1))]
  return {'ms': statistics.median(times), 'ms_p10': low, 'ms_p90': high, 'n': n}


def _on_gpu(run: Step) -> float:
  start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
  start.record()
  run()
  end.record()
  end.synchronize()
  return start.elapsed_time(end)


def _on_host(step: Step) -> float:
  start = time.perf_counter()
  step()
  return 1e3 * (time.perf_counter() - start)
