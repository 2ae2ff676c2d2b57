"""Runs an ablation as far as it goes, and writes what it says after every run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yxanul.config.model_spec import ModelSpec
from yxanul.reporting import ablation_page
from yxanul.reporting.comparison import MOST_RUNS
from yxanul.reporting.run_files import RunFiles
from yxanul.study import ablation, members, parts
from yxanul.study.apart import Apart
from yxanul.study.members import Member, Tell

Row = dict[str, Any]


def ablate(
  stem: str,
  chosen: Sequence[Member],
  seeds: Sequence[int],
  seconds: float,
  workdir: Path,
  envelope: Row,
  model: ModelSpec,
  apart: Apart,
  tell: Tell,
) -> list[str]:
  """Trains what is not finished; after every run, WORKDIR/SECONDSs has ablation.json, index.html and its plots.

  Args:
    stem: the experiment in question.
    envelope: what the record says besides ('what', 'command', 'versions').
    model: the experiment's, for the arithmetic of its parts.

  Returns:
    A line for every run that failed.

  Raises:
    Stopped: on request; the same call goes on.
  """
  failures = []
  baseline = next((member for member in chosen if member.name == ablation.BASELINE), None)
  attention = workdir / 'attention.json'
  write(stem, seconds, workdir, envelope, model)
  for failure in members.train(chosen, seeds, seconds, workdir, apart, tell):
    if failure:
      failures.append(failure)
      tell(f'failed: {failure}')
    if baseline and not attention.exists() and apart.call(parts.measure_attention, baseline.spec, attention):
      failures.append('attention by itself could not be timed')
    write(stem, seconds, workdir, envelope, model)
  return failures


def write(stem: str, seconds: float, workdir: Path, envelope: Row, model: ModelSpec) -> Row | None:
  """Tables and plots of what is finished; None where nothing is."""
  by_budget = {budget: members.finished(workdir, budget) for budget in members.budgets(workdir)}
  runs = by_budget.get(seconds)
  if not runs:
    return None
  measured = workdir / 'attention.json'
  attention = json.loads(measured.read_text()) if measured.exists() else None
  one = next(iter(next(iter(runs.values())).values())).result
  record = {**envelope, 'hardware': one['hardware'], 'n': max(map(len, runs.values()))}
  record['versions'] = envelope['versions'] | one['versions']
  record |= ablation.result(by_budget, stem, seconds) | {'parts': parts.rows(runs, model, attention)}
  folder = members.budget_folder(workdir, seconds)
  fresh = folder / 'ablation.json.tmp'
  fresh.write_text(json.dumps(record, indent=1) + '\n')
  fresh.replace(folder / 'ablation.json')
  ablation_page.write_page(record, _panels([row['name'] for row in record['runs']], runs, stem), folder)
  return record


def _panels(names: Sequence[str], runs: ablation.Runs, stem: str) -> dict[str, dict[str, RunFiles]]:
  """The first seed of each run, in two plots: what stands alone over the baseline, and what is in or off the stack."""
  first = {name: next(iter(runs[name].values())) for name in names}
  alone = [name for name in names if name.startswith('baseline_')]
  stack = [name for name in names if name not in alone and name != stem]
  panels = {'Savings alone': [*alone, stem], 'The stack': [stem, *stack]}
  return {
    title: {name: first[name] for name in chosen if name in first}
    for title, chosen in ((title, chosen[:MOST_RUNS]) for title, chosen in panels.items())
  }
