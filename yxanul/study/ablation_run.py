"""Runs an ablation as far as it goes, and writes what it says after every run that ended well."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from yxanul.config.model_spec import ModelSpec
from yxanul.reporting import ablation_page
from yxanul.reporting.comparison import MOST_RUNS
from yxanul.reporting.run_files import RunFiles
from yxanul.study import ablation, members, parts, texts, training, tuning
from yxanul.study.apart import Apart
from yxanul.study.members import Member
from yxanul.study.training import Tell

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Ablation:
  """What was asked for. WORKDIR/SECONDSs has ablation.json, index.html and its plots; `write` makes them anew."""

  stem: str  # the experiment in question
  model: ModelSpec  # its own, for the arithmetic of its parts
  members: Sequence[Member]
  seeds: Sequence[int]
  seconds: float  # of training, for every run
  rates: Sequence[float]  # peak learning rates among which each strong baseline's is chosen; none: as it says
  rate_seconds: float  # of training, for each of those trials
  workdir: Path
  envelope: Row  # what the record says besides: 'what', 'command', 'versions'

  def run(self, apart: Apart, tell: Tell) -> list[str]:
    """Trains what is not finished, and writes after each run that ended well; whoever calls writes at the end.

    Returns:
      A line for every run that failed.

    Raises:
      Stopped: on request; the same call goes on.
    """
    failures: list[str] = []

    def fail(line: str) -> None:
      failures.append(line)
      tell(f'failed: {line}')

    def follow(runs: Iterator[str | None]) -> None:
      for failure in runs:
        if failure:
          fail(failure)
        else:
          self.write()

    ready = self.members
    if not self._is_finished():  # what is needs no text, which may be on another machine
      self.write()
      ready, without_text = texts.prepare(self.members, self.workdir, apart, tell)
      for failure in without_text:
        fail(failure)
      baseline = next((member for member in ready if member.name == ablation.BASELINE), None)
      attention = self.workdir / 'attention.json'
      if baseline and parts.read(attention) is None and apart.call(parts.measure_attention, baseline.spec, attention):
        fail('attention by itself could not be timed')
    if self.rates:
      follow(tuning.trials(ready, self.rates, self.rate_seconds, self.workdir, apart, tell))
      ready = tuning.tuned(ready, self._tuning())
    follow(training.train(ready, self.seeds, self.seconds, self.workdir, apart, tell))
    return failures

  def _is_finished(self) -> bool:
    """Whether every run that was asked for has its result."""
    tried = [(self.rate_seconds, its, 0) for its in tuning.tried(self.members, self.rates)]
    chosen = tuning.tuned(self.members, self._tuning()) if self.rates else self.members
    asked = [*tried, *((self.seconds, member, seed) for member in chosen for seed in self.seeds)]
    return all((members.run_folder(self.workdir, *run) / 'result.json').exists() for run in asked)

  def _tuning(self) -> list[Row]:
    return tuning.rows(self.members, self.rates, self.rate_seconds, self.workdir)

  def write(self) -> Row | None:
    """Tables and plots of what is finished; None where nothing is."""
    by_budget = {budget: members.finished(self.workdir, budget) for budget in members.budgets(self.workdir)}
    runs = by_budget.get(self.seconds)
    if not runs:
      return None
    attention = parts.read(self.workdir / 'attention.json')
    one = next(iter(next(iter(runs.values())).values())).result
    record = {**self.envelope, 'hardware': one['hardware'], 'n': max(map(len, runs.values()))}
    record['versions'] = self.envelope['versions'] | one['versions']
    folder = members.budget_folder(self.workdir, self.seconds)
    rates = self._tuning() if self.rates else _tuned_before(folder / 'ablation.json')
    record |= ablation.result(by_budget, self.stem, self.seconds) | {
      'parts': parts.rows(runs, self.model, attention),
      'tuning': rates,
    }
    record['notes'] += ablation.tuning_notes(rates, runs)
    fresh = folder / 'ablation.json.tmp'
    fresh.write_text(json.dumps(record, indent=1) + '\n')
    fresh.replace(folder / 'ablation.json')
    names = [row['name'] for row in record['runs']]
    panels = _goals_panel(by_budget, self.seconds, self.stem) | _panels(names, runs, self.stem)
    ablation_page.write_page(record, {title: its for title, its in panels.items() if len(its) > 1}, folder)
    return record


def _tuned_before(path: Path) -> list[Row]:
  """The rates of an earlier call: one that trains the rest does not lose them."""
  return json.loads(path.read_text()).get('tuning', []) if path.exists() else []


def _goals_panel(by_budget: Mapping[float, ablation.Runs], seconds: float, stem: str) -> dict[str, dict[str, RunFiles]]:
  """The first seed of the baselines, and of the experiment at each of its budgets: those that the goals ask."""
  runs = by_budget[seconds]
  strong = ablation.best_strong(runs)
  shown = {name: runs[name] for name in (ablation.BASELINE, strong) if name in runs}
  shown |= {f'{stem}, {budget:g} s': its[stem] for budget, its in by_budget.items() if stem in its}
  return {'Against the baselines': {name: next(iter(seeds.values())) for name, seeds in list(shown.items())[:MOST_RUNS]}}


def _panels(names: Sequence[str], runs: ablation.Runs, stem: str) -> dict[str, dict[str, RunFiles]]:
  """The first seed of each run: what stands alone over the baseline, what is off the stack, and the others by experiment."""
  first = {name: next(iter(runs[name].values())) for name in names}
  alone = [name for name in names if name.startswith('baseline_') and name != ablation.BASELINE]
  stack = [name for name in names if name.startswith(f'{stem}_no_')]
  others = [name for name in names if name not in (*alone, *stack, stem, ablation.BASELINE)]
  panels = {'Savings alone': [ablation.BASELINE, *alone, stem], 'The stack': [stem, *stack, ablation.best_strong(runs)]}
  # As many plots as it takes: each has a colour for a run.
  shared = [name for name in (ablation.BASELINE, stem) if name in first]
  room = MOST_RUNS - len(shared)
  for title, its in _by_experiment(others).items():
    for start in range(0, len(its), room):
      panels[f'{title}, {start // room + 1}' if start else title] = [*shared, *its[start : start + room]]
  return {title: {name: first[name] for name in chosen[:MOST_RUNS] if name in first} for title, chosen in panels.items()}


def _by_experiment(names: Sequence[str]) -> dict[str, list[str]]:
  """Variants under the name of their experiment, those that have no other beside them under `Others`."""
  found: dict[str, list[str]] = {}
  for name in names:
    found.setdefault(name.partition('-')[0], []).append(name)
  single = [name for its in found.values() if len(its) == 1 for name in its]
  return {title: its for title, its in found.items() if len(its) > 1} | ({'Others': single} if single else {})
