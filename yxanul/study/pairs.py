"""Two runs beside each other, and what several such pairs say together.

Three comparisons, each by one rule:
- at the ends: both final figures, which is what equal text asks for, as only there is each run annealed;
- equal time: both held-out curves at the second at which the shorter run ended, linearly between evaluations;
- equal quality: the seconds (or bytes) after which each curve first came down to the worse of the two final figures, so that
  both runs have really been there. A curve that was below it at its first evaluation counts from there.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from yxanul.reporting.comparison import evaluations, reach
from yxanul.reporting.run_files import RunFiles

CONFIDENCE = 0.95
_EQUAL_TEXT = 0.01  # whole steps end a run a little past its budget


@dataclasses.dataclass(frozen=True)
class Interval:
  """A mean, and the interval that holds the true one with probability CONFIDENCE; without ends for fewer than two values."""

  mean: float
  low: float | None
  high: float | None
  n: int

  def excludes(self, value: float) -> bool:
    return self.low is not None and not self.low <= value <= self.high


def interval(values: Sequence[float]) -> Interval:
  """Student's t over independent values: with two or three it is as wide as they deserve."""
  n, mean = len(values), float(np.mean(values))
  if n < 2:
    return Interval(mean, None, None, n)
  half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
  return Interval(mean, mean - half, mean + half, n)


def geometric(values: Sequence[float]) -> Interval:
  """The same of ratios, on their logarithms: half as fast and twice as fast are equally far from 1."""
  logs = interval([math.log(value) for value in values])
  return Interval(*(None if x is None else math.exp(x) for x in (logs.mean, logs.low, logs.high)), logs.n)


def bpb_at(run: RunFiles, seconds: float) -> float:
  """Held-out bits per byte after so many seconds of training, linearly between evaluations."""
  lines = run.evaluations
  return float(np.interp(seconds, [line['seconds_training'] for line in lines], [line['val_bpb'] for line in lines]))


def compare(a: RunFiles, b: RunFiles) -> dict[str, Any]:
  """One pair of finished runs.

  Keys: 'final_a', 'final_b', 'final_difference' (b - a), 'equal_text' (whether both were trained on as many bytes);
  'at_seconds', 'bpb_a', 'bpb_b', 'difference' (b - a) at equal time; 'target_bpb', 'seconds_a', 'seconds_b', 'speedup'
  (how many times as fast b is), 'bytes_a', 'bytes_b', 'bytes_ratio' (how many times fewer bytes of text b needs) at equal
  quality.
  """
  at = min(run.evaluations[-1]['seconds_training'] for run in (a, b))
  bpb = [bpb_at(run, at) for run in (a, b)]
  final = [run.evaluations[-1]['val_bpb'] for run in (a, b)]
  target = max(final)
  seconds = [reach(run, target, 'seconds_training') for run in (a, b)]
  sizes = [reach(dataclasses.replace(run, evaluations=evaluations(run)), target, 'bytes') for run in (a, b)]
  return {
    'final_a': final[0],
    'final_b': final[1],
    'final_difference': final[1] - final[0],
    'equal_text': math.isclose(a.result['bytes'], b.result['bytes'], rel_tol=_EQUAL_TEXT),
    'at_seconds': at,
    'bpb_a': bpb[0],
    'bpb_b': bpb[1],
    'difference': bpb[1] - bpb[0],
    'target_bpb': target,
    'seconds_a': seconds[0],
    'seconds_b': seconds[1],
    'speedup': seconds[0] / seconds[1],
    'bytes_a': sizes[0],
    'bytes_b': sizes[1],
    'bytes_ratio': sizes[0] / sizes[1],
  }


def notes(runs: Mapping[str, Mapping[int, RunFiles]]) -> list[str]:
  """What a reader must know before believing a comparison of these runs, by name and seed."""
  found, results = [], {name: [run.result for run in seeds.values()] for name, seeds in runs.items()}
  hardware = {result['hardware'] for several in results.values() for result in several}
  if len(hardware) > 1:
    found.append(f'the runs are of different machines: {", ".join(sorted(hardware))}')
  if skipped := [name for name, several in results.items() if any(result['skipped_steps'] for result in several)]:
    found.append(f'steps were skipped in {", ".join(skipped)}')
  return found


def verdict(a: str, b: str, difference: Interval, speedup: Interval | None, where: str = 'at equal time') -> str:
  """In plain words: which is better `where` the difference was taken, if the interval allows to say so, and how much faster
  (None: times of different machines).
  """
  if difference.low is None:
    return 'no verdict: one pair of runs has no interval, and seeds alone may differ by more'
  shown = f'{difference.low:+.4f} to {difference.high:+.4f}'
  pairs = f'{CONFIDENCE:.0%} interval over {difference.n} pairs'
  if not difference.excludes(0.0):
    return f'no verdict: the difference {where}, {shown} bits per byte ({pairs}), may be none'
  better = b if difference.mean < 0 else a
  line = f'{better} is better by {abs(difference.mean):.4f} bits per byte {where} ({shown} for {b}; {pairs})'
  if speedup is None:
    return line
  if not speedup.excludes(1.0):
    return f'{line}; to equal quality the interval of its speed, {speedup.low:.2f} to {speedup.high:.2f} times, includes 1'
  return f'{line}; to equal quality {b} is {speedup.mean:.2f} times as fast ({speedup.low:.2f} to {speedup.high:.2f})'
