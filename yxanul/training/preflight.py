"""Before money is spent: is there room on the disk, and does every stage take its steps as planned?

A finding is 'ok', 'warning' (the run works, but not as planned) or 'problem' (it would not).
"""

import dataclasses
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from yxanul.config.spec import ExperimentSpec
from yxanul.data.prepare import Prepared, parts_of
from yxanul.data.shards import token_dtype
from yxanul.data.sources import is_hub_name
from yxanul.kernels.capabilities import Capabilities
from yxanul.planning import check, gpus, memory, plan
from yxanul.planning.flops import flops_per_token
from yxanul.training import benchmark
from yxanul.training.curriculum import token_shares
from yxanul.training.trainer import curriculum_for

Row = dict[str, Any]
SPEED_TOLERANCE, MEMORY_TOLERANCE = 0.10, 0.08
_COMPRESSED = {'.parquet': 3, '.gz': 3, '.zst': 3, '.xz': 4}  # bytes of text in a byte of such a file, about
_TEXT_BYTES_PER_TOKEN = 4  # plain BPE's; SuperBPE needs half the tokens
_CPU_FLOPS = 1e12  # a second, of a large CPU: more than most reach
_CPU_DAYS = 2  # that somebody may want to wait for it


@dataclasses.dataclass(frozen=True)
class Finding:
  """One thing that was looked at."""

  level: Literal['ok', 'warning', 'problem']
  text: str


def check_device(spec: ExperimentSpec, capabilities: Capabilities) -> Iterator[Finding]:
  """Whether the run is beyond a machine without a GPU: before its text is fetched, let alone a step taken."""
  shares = zip(spec.curriculum.stages, token_shares(spec.curriculum), strict=True)
  per_token = sum(share * flops_per_token(spec.model_of(stage), stage.seq_len) for stage, share in shares)
  days = per_token * spec.curriculum.budget_tokens / _CPU_FLOPS / 86_400
  if capabilities.device == 'cpu' and days > _CPU_DAYS:
    yield Finding('problem', f'no GPU: at {_CPU_FLOPS / 1e12:g} TFLOP/s, more than most CPUs do, it takes {days:,.0f} days')


def check_disk(
  spec: ExperimentSpec,
  workdir: Path,
  data: Path,
  is_prepared: bool,
  free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
) -> Iterator[Finding]:
  """Whether the disks have room for checkpoints and, until they are there, for shards."""
  checkpoint = memory.checkpoint_bytes(spec)
  kept = spec.training.checkpoints_kept + 1  # the oldest goes when the newest is whole
  needs = [(workdir, kept * checkpoint, f'{kept} checkpoints')]
  if not is_prepared:
    needs.append((data, _preparing_bytes(spec), 'preparing the text'))
  on_one_disk = len({_device(folder) for folder, _, _ in needs}) == 1
  wanted = sum(size for _, size, _ in needs)
  for folder, size, what in needs:
    free = free_bytes(_existing(folder))
    line = f'{folder}: {_gb(free)} free, {what}: about {_gb(size)}'
    yield Finding('ok' if free >= (wanted if on_one_disk else size) else 'problem', line)


def _preparing_bytes(spec: ExperimentSpec) -> int:
  """About what preparing takes: the tokens, and the text itself where it comes from the hub."""
  width, total = token_dtype(spec.model.vocab_size).itemsize, 0
  for part in parts_of(spec.data):
    if is_hub_name(part.name):  # as much as the budget asks for: the whole is not known here
      total += spec.curriculum.budget_tokens * (width + _TEXT_BYTES_PER_TOKEN)
    else:
      text = sum(path.stat().st_size * _COMPRESSED.get(path.suffix, 1) for path in part.files)
      total += text * width // _TEXT_BYTES_PER_TOKEN
  return total


def check_data(spec: ExperimentSpec, prepared: Prepared) -> Finding:
  """How the corpus compares with the budget."""
  tokens, budget = prepared.train.n_tokens, spec.curriculum.budget_tokens
  epochs = budget / tokens
  line = f'data: {tokens:,} tokens to train on, {prepared.validation.n_tokens:,} held out; the budget is {epochs:.2f} epochs'
  if epochs <= 4:
    return Finding('ok', line)
  return Finding('warning', f'{line}; beyond four, text that comes again teaches less (arXiv 2305.16264)')


def check_steps(
  spec: ExperimentSpec, prepared: Prepared, capabilities: Capabilities, n_steps: int, tell: benchmark.Tell
) -> tuple[Row, list[Finding]]:
  """Takes steps of every stage and compares them with the plan for this card, where there is one.

  Returns:
    What the benchmark measured, with the comparison under 'check' (None without a plan); what was found.
  """
  effort = benchmark.Effort(steps=n_steps, profile_steps=0)
  numbers = range(1, len(spec.curriculum.stages) + 1)
  measured = benchmark.attempt(
    'the steps', lambda: benchmark.measure(spec, numbers, prepared, capabilities, effort, tell), tell
  )
  if 'error' in measured:
    return measured, [Finding('problem', f'no stage runs: {measured["error"]}')]
  measured['check'] = None
  found = list(_broken(measured))
  card = gpus.by_name(capabilities.name)
  if card is None:
    found.append(Finding('warning', f'no plan for {capabilities.name}: speed and memory not compared'))
  elif measured['schedule']:
    stages = [(stage.spec, stage.n_steps) for stage in curriculum_for(spec, capabilities).stages]
    try:
      measured['check'] = check.compare(plan.make(spec, stages, card), measured)
    except ValueError as error:
      found.append(Finding('warning', f'not compared with a plan: {error}'))
    else:
      found += _off_plan(measured['check'])
  return measured, found


def _broken(measured: Row) -> Iterator[Finding]:
  for row in measured['stages']:
    name = f'stage {row["stage"]}'
    if 'error' in row:
      yield Finding('problem', f'{name}: {row["error"]}')
    elif not math.isfinite(row['loss']):
      yield Finding('problem', f'{name}, length {row["seq_len"]}: the loss is {row["loss"]}')
    elif row['skipped_steps']:
      level = 'problem' if row['skipped_steps'] >= row['n'] else 'warning'
      yield Finding(level, f'{name}, length {row["seq_len"]}: {row["skipped_steps"]} of {row["n"]} steps skipped, not finite')
    else:
      yield Finding('ok', f'{name}, length {row["seq_len"]}: {row["n"]} steps, loss {row["loss"]:.3f}')


def _off_plan(compared: Row) -> Iterator[Finding]:
  for row in compared['stages']:
    name = f'stage {row["stage"]}, length {row["seq_len"]}'
    slower = row['speed_error'] / (1 + row['speed_error'])  # of what was planned
    if slower > SPEED_TOLERANCE:
      yield Finding('warning', f'{name}: {slower:.0%} slower than planned')
    if row['memory_error'] is not None and row['memory_error'] < -MEMORY_TOLERANCE:
      more = row['measured_memory_bytes'] / row['memory_bytes'] - 1
      yield Finding('warning', f'{name}: {more:.0%} more memory than planned ({_gb(row["measured_memory_bytes"])})')


def _existing(folder: Path) -> Path:
  return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _device(folder: Path) -> int:
  return _existing(folder).stat().st_dev


def _gb(n_bytes: float) -> str:
  return f'{n_bytes / 1e9:,.2f} GB'
