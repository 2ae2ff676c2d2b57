"""What an experiment will take on a card: memory and time of every stage, the whole run, its phases, and what providers charge.

Rows are dicts of plain values; times are those of training alone, without preparing text, warming up (a minute) or evaluating.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from yxanul.config.curriculum_spec import StageSpec
from yxanul.config.model_spec import ModelSpec
from yxanul.config.spec import ExperimentSpec
from yxanul.planning import flops, memory, speed
from yxanul.planning.gpus import Gpu, Offer, gpu

Row = dict[str, Any]
Stages = Sequence[tuple[StageSpec, int]]  # every stage and its steps

# The mission's names for the stages, by the longest rows they hold.
PHASES = (('Warmup', 16), ('Foundation', 64), ('Building', 256), ('Mastery', None))


def on_card(spec: ExperimentSpec, card: Gpu) -> ExperimentSpec:
  """The experiment as the card runs it: FP8 becomes BF16 where there are no FP8 tensor cores."""
  if spec.precision.matmul == 'fp8' and card.peak_flops('fp8') is None:
    return dataclasses.replace(spec, precision=dataclasses.replace(spec.precision, matmul='bf16'))
  return spec


def make(spec: ExperimentSpec, stages: Stages, card: Gpu, devices: int = 1, fit: speed.Row | None = None) -> Row:
  """The plan of a run: 'stages', 'total', 'phases', and what they rest on.

  Args:
    stages: of the run, with their steps, as `training.curriculum` has them.
    fit: as `speed.fitted`, which is the default.

  Raises:
    ValueError: a stage does not fit in the card's memory; the line says what would.
  """
  fit = fit or speed.fitted()
  asked, spec = spec.precision.matmul, on_card(spec, card)
  limit = memory_limit(spec, card)
  rows = [
    {'stage': number, **_stage(spec, stage, n_steps, card, limit, devices, fit)}
    for number, (stage, n_steps) in enumerate(stages, 1)
  ]
  tokens, seconds, operations = (sum(row[key] for row in rows) for key in ('tokens', 'seconds', 'flops'))
  peak = card.peak_flops(linears_format(spec))
  parameters = spec.model.parameter_count()
  return {
    'experiment': spec.name,
    'gpu': card.name,
    'devices': devices,
    'linears': linears_format(spec),
    'memory_limit_bytes': limit,
    'fitted_to': fit['record'],
    'notes': _notes(spec, asked, card, devices, fit),
    'parameters': parameter_parts(spec.model),
    'stages': rows,
    'phases': phases(rows),
    'total': {
      'parameters': parameters,
      'budget_tokens': spec.curriculum.budget_tokens,
      'tokens': tokens,
      'tokens_per_parameter': tokens / parameters,
      'steps': sum(row['steps'] for row in rows),
      'flops': operations,
      'seconds': seconds,
      'tokens_per_second': tokens / seconds,
      'mfu': operations / seconds / (devices * peak),
    },
  }


def linears_format(spec: ExperimentSpec) -> str:
  return 'tf32' if spec.precision.matmul == 'fp32' and spec.precision.tf32 else spec.precision.matmul


def memory_limit(spec: ExperimentSpec, card: Gpu) -> int:
  """Bytes a run may fill: the card's, or `training.gpu_memory_gb` where that is less."""
  return int(min(spec.training.gpu_memory_gb * 1e9 or card.memory_bytes, card.memory_bytes))


def _stage(spec: ExperimentSpec, stage: StageSpec, n_steps: int, card: Gpu, limit: int, devices: int, fit: speed.Row) -> Row:
  usable = int(memory.USABLE_SHARE * limit)
  parts = memory.pieces(spec, stage, usable, devices)
  format_fit = speed.format_fit(fit, linears_format(spec))
  seconds = speed.step_seconds(spec, stage, parts, card, format_fit, devices)
  whole = sum(seconds.values())
  tokens = n_steps * stage.tokens_per_step
  model = spec.model_of(stage)
  per_token = flops.flops_per_token(model, stage.seq_len)
  rate = stage.tokens_per_step / whole
  estimate = memory.step_memory(spec, stage, parts, devices)
  used = estimate.total_bytes
  return {
    'seq_len': stage.seq_len,
    'n_layers': model.n_layers,
    'batch_size': stage.batch_size,
    'tokens_per_step': stage.tokens_per_step,
    'parts': parts,
    'steps': n_steps,
    'tokens': tokens,
    'largest_batch': memory.largest_batch(spec, stage, usable, devices),
    'memory': {part.removesuffix('_bytes'): value for part, value in dataclasses.asdict(estimate).items()},
    'memory_bytes': used,
    'free_bytes': limit - used,
    'flops': per_token * tokens,
    'attention': speed.attention_engine(format_fit, stage.seq_len),
    'ms_by_part': {part: 1e3 * value for part, value in seconds.items()},
    'ms': 1e3 * whole,
    'tokens_per_second': rate,
    'mfu': flops.mfu(model, stage.seq_len, rate, devices * card.peak_flops(linears_format(spec))),
    'seconds': n_steps * whole,
  }


def parameter_parts(model: ModelSpec) -> Row:
  """Parameters by part of the model: the embeddings, each sublayer over all layers, the norms."""
  parts = {'embeddings': 0, 'attention': 0, 'mlp': 0, 'norms': 0}
  for name, shape in model.parameter_shapes().items():
    count = 1
    for size in shape:
      count *= size
    if name.startswith('embedding'):
      parts['embeddings'] += count
    elif 'norm' in name:
      parts['norms'] += count
    else:
      parts['attention' if name.split('.')[1] in ('qkv', 'attention_out') else 'mlp'] += count
  return parts


def phases(rows: Sequence[Row]) -> list[Row]:
  """The run by the mission's phases: tokens, their share, seconds, and when the phase is over."""
  result, after = [], 0.0
  total = sum(row['tokens'] for row in rows)
  low = 0
  for name, longest in PHASES:
    mine = [row for row in rows if low < row['seq_len'] and (longest is None or row['seq_len'] <= longest)]
    low = longest or low
    if not mine:
      continue
    tokens, seconds = (sum(row[key] for row in mine) for key in ('tokens', 'seconds'))
    after += seconds
    lengths = sorted({row['seq_len'] for row in mine})
    result.append(
      {
        'phase': name,
        'lengths': [lengths[0], lengths[-1]],
        'steps': sum(row['steps'] for row in mine),
        'tokens': tokens,
        'share': tokens / total,
        'seconds': seconds,
        'end_seconds': after,
      }
    )
  return result


def provider_row(spec: ExperimentSpec, stages_on: Callable[[ExperimentSpec, Gpu, int], Stages], offer: Offer) -> Row:
  """An offer with 'tokens_per_second', 'hours' and 'dollars' of this run; None where it does not fit.

  Each card may be filled: `training.gpu_memory_gb` was set for one of them.

  Args:
    stages_on: the stages of a run on so many of a card.
  """
  whole_card = dataclasses.replace(spec, training=dataclasses.replace(spec.training, gpu_memory_gb=0.0))
  row = dataclasses.asdict(offer) | dict.fromkeys(('tokens_per_second', 'hours', 'dollars'))
  with contextlib.suppress(ValueError):
    card = gpu(offer.gpu)
    total = make(whole_card, stages_on(whole_card, card, offer.devices), card, offer.devices)['total']
    hours = total['seconds'] / 3600
    row |= {'tokens_per_second': total['tokens_per_second'], 'hours': hours, 'dollars': hours * offer.dollars_per_hour}
  return row


def _notes(spec: ExperimentSpec, asked: str, card: Gpu, devices: int, fit: speed.Row) -> list[str]:
  notes = []
  if spec.precision.matmul != asked:
    notes.append(f'linears in {spec.precision.matmul}, not {asked}: {card.name} has no FP8 tensor cores')
  if card.key != fit['gpu']:
    notes.append(f'speed extrapolated: shares measured on {fit["gpu"]}, peaks of {card.name} from its datasheet')
  if linears_format(spec) not in fit['formats']:
    notes.append(f'speed extrapolated: {linears_format(spec)} linears were not benched, fp8 shares stand for them')
  if devices > 1:
    notes.append(f'{devices} cards: gradients exchanged at the peak of their links, nothing measured')
  if any(stage.masked for stage in spec.curriculum.stages):
    notes.append('windows and document masks: planned as plain causal attention')
  if spec.training.execution == 'eager':
    notes.append('execution=eager: the plan supposes fused kernels, an eager run is slower')
  return notes
