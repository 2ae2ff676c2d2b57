"""How long a step takes: a roofline whose achieved shares are fitted to a bench of this package on an H200.

Each part of a step is a chain of kernels, some bound by products and some by memory traffic, so its time is the sum of both:

  seconds = FLOPs / (compute share x the card's peak) + bytes / (traffic share x the card's bandwidth)

(`work` has FLOPs and bytes). Beside the parts stand the gaps between kernels, in proportion to the blocks that are launched,
and on several cards the exchange of gradients: a ring, 2 (n - 1) / n times their bytes over the link at its peak, after the
backward pass; half as much again for the parameters where the optimizer is sharded, and more where the n cannot have the same.
The exchange is arithmetic, not a measurement.

Tried: the larger of the two terms instead of their sum. cuDNN's attention over rows of 512 to 2,048 tokens is then missed by up
to 9 % of its own time, and by 1 % with the sum; the short kernel's, a twentieth of its step, by 14 % and by 25 %.

The shares are data: `fit.json`, written by `tools.plan --fit=bench.json`; it names its record. Another card gets the same
shares, which is an extrapolation, as is a format that was not benched.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from yxanul.config.curriculum_spec import StageSpec
from yxanul.config.spec import ExperimentSpec
from yxanul.planning import memory
from yxanul.planning.gpus import Gpu
from yxanul.planning.work import Work, step_work

Row = Mapping[str, Any]

# How the bench names the parts of a step, by the part of a plan that they count to.
_BENCH_PARTS = {'elementwise': ('elementwise', 'embedding', 'rest')}


@functools.cache
def fitted() -> Row:
  """The shares as they were fitted: 'record', 'gpu', and 'formats', each as `fit_shares` returns it."""
  return json.loads(resources.files('yxanul.planning').joinpath('fit.json').read_text(encoding='utf-8'))


def format_fit(fit: Row, matmul_format: str) -> Row:
  """The shares for linears in this format; FP8's where it was not benched."""
  return fit['formats'].get(matmul_format, fit['formats']['fp8'])


def attention_engine(fit: Row, seq_len: int) -> str:
  """The engine that ran rows of this length in the bench: the one benched from the nearest length below."""
  starts = sorted((start, engine) for engine, start in fit['attention_from'].items())
  return next((engine for start, engine in reversed(starts) if start <= seq_len), starts[0][1])


def step_seconds(spec: ExperimentSpec, stage: StageSpec, parts: int, gpu: Gpu, fit: Row, devices: int = 1) -> dict[str, float]:
  """Seconds of one step by part.

  Args:
    parts: into which a device's rows are split.
    fit: of the linears' format, as `format_fit` gives it.
  """
  attention = attention_engine(fit, stage.seq_len)
  seconds = {}
  for part, work in step_work(spec, stage, parts, attention, devices).items():
    compute, traffic = _ideal_seconds(work, gpu)
    share = fit['shares'][f'attention_{attention}' if part == 'attention' else part]
    seconds[part] = sum(ideal / share[term] for term, ideal in (('compute', compute), ('traffic', traffic)) if share[term])
  model = spec.model_of(stage)
  sent = 2 * model.parameter_count() / devices  # to each of the others
  if spec.training.shard_optimizer:
    sent += memory.sent_parameters(spec, devices)
  seconds['exchange'] = 4 * (devices - 1) * sent / gpu.link_bytes_per_second
  seconds['gaps'] = fit['gap_seconds'] * parts * model.n_layers
  return seconds


def _ideal_seconds(work: Work, gpu: Gpu) -> tuple[float, float]:
  """Seconds at the card's peaks, computing and moving."""
  return sum(n / gpu.peak_flops(kind) for kind, n in work.flops.items() if n), work.bytes / gpu.bytes_per_second


def fit_shares(spec: ExperimentSpec, rows: Sequence[Row], gpu: Gpu) -> Row:
  """The shares that reproduce a bench's profile best: least squares of each part's time, as a share of its step.

  Args:
    spec: what was benched, in the format in which it ran.
    rows: of its stages, as `training.benchmark.measure` gives them; those with a profile count.

  Returns:
    'shares' by part, 'compute' and 'traffic', None for a term that takes no time; 'attention_from', the shortest rows of each
    engine; 'gap_seconds' of one block of one part of the batch.

  Raises:
    ValueError: no row has a profile.
  """
  rows = [row for row in rows if row.get('profile', {}).get('wall_ms')]
  if not rows:
    raise ValueError('the bench holds no profile of a GPU to fit; wants tools.bench with --profile_steps')
  points: dict[str, list[tuple[float, float, float]]] = {}
  for row in rows:
    stage = _stage_of(spec, row)
    for part, work in step_work(spec, stage, row['pieces'], row['attention']).items():
      name = f'attention_{row["attention"]}' if part == 'attention' else part
      ms = sum(row['profile']['parts_ms'][key] for key in _BENCH_PARTS.get(part, (part,)))
      wall = row['profile']['wall_ms']
      points.setdefault(name, []).append((*(1e3 * ideal / wall for ideal in _ideal_seconds(work, gpu)), ms / wall))
  engines = {row['attention'] for row in rows}
  layers = [spec.model_of(_stage_of(spec, row)).n_layers for row in rows]
  gaps = [1e-3 * row['profile']['idle_ms'] / (row['pieces'] * n) for row, n in zip(rows, layers, strict=True)]
  return {
    'shares': {name: dict(zip(('compute', 'traffic'), _least_squares(values), strict=True)) for name, values in points.items()},
    'attention_from': {e: min(row['seq_len'] for row in rows if row['attention'] == e) for e in sorted(engines)},
    'gap_seconds': float(f'{sum(gaps) / len(gaps):.3g}'),
  }


def _stage_of(spec: ExperimentSpec, row: Row) -> StageSpec:
  stages = spec.curriculum.stages
  stage = stages[min(row['stage'], len(stages)) - 1]
  if (stage.seq_len, stage.tokens_per_step) != (row['seq_len'], row['tokens_per_step']):
    got = f'{row["tokens_per_step"]:,} tokens a step in rows of {row["seq_len"]}'
    raise ValueError(f'the bench ran {got}, which is no stage of --config; wants the experiment and variant that was benched')
  return stage


def _least_squares(points: Sequence[tuple[float, float, float]]) -> tuple[float | None, float | None]:
  """Shares (1/x, 1/y) of the x, y that bring x * compute + y * traffic nearest to the time; None for a term of 0.

  No part is faster than the card's peak: x and y are 0 or at least 1. The best of the inside and of each edge is taken.
  """
  cc, tt, ct, cs, ts = (sum(p[i] * p[j] for p in points) for i, j in ((0, 0), (1, 1), (0, 1), (0, 2), (1, 2)))
  candidates = []
  if cc:
    candidates += [(cs / cc, 0.0), ((cs - ct) / cc, 1.0)]
  if tt:
    candidates += [(0.0, ts / tt), (1.0, (ts - ct) / tt)]
  if (determinant := cc * tt - ct * ct) > 1e-9 * cc * tt:
    candidates.append(((cs * tt - ts * ct) / determinant, (ts * cc - cs * ct) / determinant))
  allowed = [xy for xy in candidates if all(value == 0 or value >= 1 for value in xy)]
  x, y = min(allowed, key=lambda xy: sum((xy[0] * p[0] + xy[1] * p[1] - p[2]) ** 2 for p in points), default=(0.0, 0.0))
  return tuple(float(f'{1 / value:.4g}') if value else None for value in (x, y))
