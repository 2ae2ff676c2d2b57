"""The learning rate of a strong baseline, chosen as a user would: a few rates, short runs, the best one."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from yxanul.study.ablation import STRONG, rate_rows
from yxanul.study.apart import Apart
from yxanul.study.members import Member, finished
from yxanul.study.training import Tell, train

Row = dict[str, Any]


def at_rate(member: Member, rate: float) -> Member:
  optimizer = dataclasses.replace(member.spec.optimizer, peak_lr=rate)
  return Member(f'{member.name}:lr={rate:g}', dataclasses.replace(member.spec, optimizer=optimizer))


def tried(members: Sequence[Member], rates: Sequence[float]) -> list[Member]:
  """Every strong baseline at every rate."""
  return [at_rate(member, rate) for member in members if member.name in STRONG for rate in rates]


def trials(
  members: Sequence[Member], rates: Sequence[float], seconds: float, workdir: Path, apart: Apart, tell: Tell
) -> Iterator[str | None]:
  """Trains what is `tried`, one seed; yields as `training.train` does."""
  yield from train(tried(members, rates), [0], seconds, workdir, apart, tell)


def rows(members: Sequence[Member], rates: Sequence[float], seconds: float, workdir: Path) -> list[Row]:
  """What the trials came to, as far as they are finished: `ablation.rate_rows` of every strong baseline."""
  runs, found = finished(workdir, seconds), []
  for member in members:
    if member.name in STRONG:
      own = {rate: runs.get(at_rate(member, rate).folder, {}).get(0) for rate in rates}
      found += rate_rows(member.name, {rate: run.evaluations[-1]['val_bpb'] if run else None for rate, run in own.items()})
  return found


def tuned(members: Sequence[Member], rows: Sequence[Row]) -> list[Member]:
  """The members, strong baselines at their best rates."""
  best = {row['name']: row['rate'] for row in rows if row['chosen']}
  return [at_rate(member, best[member.name]) if member.name in best else member for member in members]
