"""What each saving gives, alone and in the stack: which runs say so, and what they said.

The family lies in one folder and is named by one rule: `baseline_gpt2`; `baseline_SAVING`, one saving alone; the experiment in
question (`ultra`); `ultra_no_SAVING`, one taken off; strong baselines; and parts of the model over the baseline. A factor is
the ratio of two runs' seconds to equal quality (`pairs.compare`), of each seed; over seeds it is the geometric mean.
"""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from yxanul.planning.claims import GAINS
from yxanul.reporting.comparison import evaluations, reach
from yxanul.reporting.run_files import RunFiles
from yxanul.study import pairs

Row = dict[str, Any]
Runs = Mapping[str, Mapping[int, RunFiles]]  # by name and seed

BASELINE = 'baseline_gpt2'
STRONG = ('strong_gpt2', 'strong_ultra')
PARTS = ('part_rmsnorm_swiglu', 'part_gqa')  # claims about parts of the model; see `parts`
CLAIMS = dict(zip(('superbpe', 'fp8', 'curriculum', 'fused', 'batch'), GAINS, strict=True))
CLAIMED_TOTAL = 15.0
_SECONDS_TOLERANCE = 0.05  # between the seconds that were meant and those that a run took
GOALS = {'baseline': 15.0, 'strong': 3.0}  # times as fast as the baseline, and as the better of the strong ones


def family(experiment: Path) -> list[str]:
  """The names of the runs, in the order in which they are worth having; those whose file is not there are left out."""
  stem = experiment.stem
  names = [BASELINE, stem, *STRONG]
  names += [f'baseline_{saving}' for saving in CLAIMS] + [f'{stem}_no_{saving}' for saving in CLAIMS] + [*PARTS]
  return [name for name in names if (experiment.parent / f'{name}.py').is_file()]


def run_rows(runs: Runs) -> list[Row]:
  """A row for each experiment, means over its seeds; the target is the baseline's final figure, seed by seed."""
  rows = []
  for name, seeds in runs.items():
    figures = [_figures(run, runs.get(BASELINE, {}).get(seed)) for seed, run in seeds.items()]
    bpb = pairs.interval([row['final_bpb'] for row in figures])
    rows.append(
      {
        'name': name,
        'n': len(figures),
        **{key: _mean([row[key] for row in figures]) for key in figures[0]},
        'final_bpb_interval': (bpb.low, bpb.high),
      }
    )
  return rows


def _figures(run: RunFiles, baseline: RunFiles | None) -> Row:
  result, target = run.result, baseline.evaluations[-1]['val_bpb'] if baseline else None
  with_bytes = dataclasses.replace(run, evaluations=evaluations(run))
  return {
    'final_bpb': run.evaluations[-1]['val_bpb'],
    'seconds_training': result['seconds_training'],
    'seconds_warming': result['seconds_warming'],
    'tokens': result['tokens'],
    'tokens_per_second': result['tokens'] / result['seconds_training'],
    'bytes_per_second': result['bytes'] / result['seconds_training'],
    'target_bpb': target,
    'seconds_to_target': reach(run, target, 'seconds_training'),
    'bytes_to_target': reach(with_bytes, target, 'bytes'),
    'val_bytes': run.evaluations[-1]['val_bytes'],
    'skipped_steps': result['skipped_steps'],
  }


def _mean(values: Sequence[float | None]) -> float | None:
  return None if None in values else statistics.fmean(values)


def factor(runs: Runs, without: str, having: str) -> Row | None:
  """How many times as fast `having` comes to equal quality as `without`; None where no seed has both.

  Returns:
    'factor' with 'low' and 'high', over 'n' seeds. It is the product of 'rate_factor', how many times as much text it reads a
    second until then, and 'bytes_factor', how many times as far it comes with the same text. 'final_difference' in bpb.
  """
  seeds = [seed for seed in runs.get(without, {}) if seed in runs.get(having, {})]
  if not seeds:
    return None
  compared = [pairs.compare(runs[without][seed], runs[having][seed]) for seed in seeds]
  speedup = pairs.geometric([pair['speedup'] for pair in compared])
  text = pairs.geometric([pair['bytes_ratio'] for pair in compared]).mean
  return {
    'factor': speedup.mean,
    'low': speedup.low,
    'high': speedup.high,
    'n': speedup.n,
    'bytes_factor': text,
    'rate_factor': speedup.mean / text,
    'final_difference': statistics.fmean(pair['final_difference'] for pair in compared),
  }


def factor_rows(runs: Runs, stem: str) -> list[Row]:
  """A row a saving ('saving', 'claimed', 'alone' and 'in_stack' as `factor`, 'says'), then their product and the total."""
  rows = []
  for saving, claimed in CLAIMS.items():
    alone = factor(runs, BASELINE, f'baseline_{saving}')
    in_stack = factor(runs, f'{stem}_no_{saving}', stem)
    rows.append(
      {'saving': saving, 'claimed': claimed, 'alone': alone, 'in_stack': in_stack, 'says': _in_words(claimed, alone, in_stack)}
    )
  products = {'saving': 'product', 'claimed': CLAIMED_TOTAL, 'says': ''}
  for where in ('alone', 'in_stack'):
    known = [row[where]['factor'] for row in rows if row[where]]
    whole = len(known) == len(rows)
    products[where] = {'factor': pairs.geometric(known).mean ** len(known), 'low': None, 'high': None} if whole else None
  total = factor(runs, BASELINE, stem)
  says = 'not measured' if total is None else _says(CLAIMED_TOTAL, total)
  measured = {'saving': 'measured together', 'claimed': CLAIMED_TOTAL, 'alone': total, 'in_stack': total, 'says': says}
  return [*rows, products, measured]


def _in_words(claimed: float, alone: Row | None, in_stack: Row | None) -> str:
  said = {where: _says(claimed, row) for where, row in (('alone', alone), ('in the stack', in_stack)) if row}
  if len(said) == 2 and len(set(said.values())) == 1:
    return f'{said["alone"]}, alone and in the stack'
  return '; '.join(f'{says} {where}' for where, says in said.items()) or 'not measured'


def _ends(measured: Row) -> tuple[float, float]:
  """Of the interval; one seed has none, and speaks for itself."""
  return (measured['factor'],) * 2 if measured['low'] is None else (measured['low'], measured['high'])


def _says(claimed: float, measured: Row) -> str:
  low, high = _ends(measured)
  if low >= claimed:
    return 'reaches the claim'
  if high >= claimed:
    return 'may reach the claim: the interval includes it'
  if low > 1:
    return 'helps, by less than claimed'
  return 'gives nothing' if high <= 1 else 'may help, by less than claimed'


def best_strong(runs: Runs) -> str | None:
  """The strong baseline with the lower final figure."""
  return min(_strong(runs), key=lambda name: _final_bpb(runs[name]), default=None)


def _final_bpb(seeds: Mapping[int, RunFiles]) -> float:
  return statistics.fmean(run.evaluations[-1]['val_bpb'] for run in seeds.values())


def _strong(runs: Runs) -> list[str]:
  """Their variants too ('strong_gpt2:lr=1e-3'): so a baseline is tuned, and the best of them is the one to beat."""
  return [name for name in runs if name.startswith(STRONG)]


def headline(by_budget: Mapping[float, Runs], seconds: float, against: str, stem: str) -> Row | None:
  """How many times sooner the experiment comes to where `against` ends after `seconds`.

  Each budget of the experiment was annealed to its own end, so each is asked. What counts are those that most seeds have, and
  among them the fastest in which every seed came there.

  Returns:
    As `factor` ('factor', 'low', 'high', 'n'), with 'own_seconds', the budget that came first. Where none came there with every
    seed 'factor' is None, 'short' the bits per byte by which the farthest seed of the nearest budget missed, and 'at_its_end'
    how many times as late `against` is where that budget's runs end, on its way. None where no seed has both.
  """
  found = []
  for own_seconds, runs in by_budget.items():
    own, theirs = runs.get(stem, {}), by_budget[seconds].get(against, {})
    seeds = [seed for seed in theirs if seed in own]
    targets = {seed: theirs[seed].evaluations[-1]['val_bpb'] for seed in seeds}
    took = [reach(own[seed], targets[seed], 'seconds_training') for seed in seeds]
    row = {'n': len(seeds), 'own_seconds': own_seconds, **dict.fromkeys(('factor', 'low', 'high', 'short', 'at_its_end'))}
    if None in took:
      ends = {seed: own[seed].evaluations[-1]['val_bpb'] for seed in seeds}
      row['short'] = max(ends[seed] - targets[seed] for seed in seeds)
      late = [(reach(theirs[s], ends[s], 'seconds_training'), own[s].result['seconds_training']) for s in seeds]
      if all(a is not None for a, _ in late):
        row['at_its_end'] = pairs.geometric([a / b for a, b in late]).mean
    elif took:
      times = [reach(theirs[seed], targets[seed], 'seconds_training') for seed in seeds]
      speedup = pairs.geometric([a / b for a, b in zip(times, took, strict=True)])
      row |= {'factor': speedup.mean, 'low': speedup.low, 'high': speedup.high}
    if seeds:
      found.append(row)
  # Most seeds, then those that came there, then the fastest of them or the nearest of the others.
  return max(found, key=lambda row: (row['n'], row['factor'] is not None, row['factor'] or -row['short']), default=None)


def goal_rows(by_budget: Mapping[float, Runs], seconds: float, stem: str) -> list[Row]:
  """The experiment against each baseline: 'against', 'goal' (of the strong ones only the better has one), 'measured' as
  `headline`, 'says'."""
  rows, runs = [], by_budget[seconds]
  best = best_strong(runs)
  for name in (BASELINE, *_strong(runs)):
    measured = headline(by_budget, seconds, name, stem)
    goal = GOALS['baseline'] if name == BASELINE else GOALS['strong'] if name == best else None
    rows.append({'against': name, 'goal': goal, 'measured': measured, 'says': _judged(measured, goal, seconds)})
  return rows


def _judged(measured: Row | None, goal: float | None, seconds: float) -> str:
  if measured is None:
    return 'not measured'
  own = f'{measured["own_seconds"]:g} s'
  if measured['factor'] is None:
    seeds = '' if measured['n'] == 1 else f' (the farthest of {measured["n"]} seeds)'
    says = f'not reached: its end after {own} is {measured["short"]:.4f} bits per byte above{seeds}'
    if (late := measured['at_its_end']) is not None:
      times = f'{late:.2f} times as late' if late >= 1 else f'{1 / late:.2f} times as soon'
      says += f', where that one is {times}, on its way'
    return says if goal is None else f'{says}; the goal of {goal:g} is missed'
  says = f'{measured["factor"]:.2f} times as soon where that one ends after {seconds:g} s, in its run of {own}'
  if goal is None:
    return says
  low, high = _ends(measured)
  judgement = 'met' if low >= goal else 'missed' if high < goal else 'open: the interval includes it'
  return f'{says}; the goal of {goal:g} is {judgement}{" (one seed)" if measured["n"] == 1 else ""}'


def variant_rows(runs: Runs, stem: str) -> list[Row]:
  """What is no part of the family, against the experiment: 'name', 'factor' as `factor`, 'final_difference' in bpb."""
  family = {BASELINE, stem, *PARTS, *_strong(runs)}
  family |= {f'baseline_{saving}' for saving in CLAIMS} | {f'{stem}_no_{saving}' for saving in CLAIMS}
  rows = []
  for name in runs:
    if name not in family and (measured := factor(runs, stem, name)):
      rows.append({'name': name, 'factor': measured, 'final_difference': measured['final_difference']})
  return rows


def notes(rows: Sequence[Row], runs: Runs, seconds: float) -> list[str]:
  """What a reader must know before believing the table."""
  found = []
  if len(sizes := {row['val_bytes'] for row in rows}) > 1:
    found.append(
      f'the runs were not scored on the same text ({", ".join(f"{size:,.0f}" for size in sorted(sizes))} bytes): they want the '
      'same evaluation.max_bytes and filters'
    )
  found += pairs.notes(runs)
  off = {
    row['name']: row['seconds_training'] for row in rows if abs(row['seconds_training'] / seconds - 1) > _SECONDS_TOLERANCE
  }
  if off:
    shown = ', '.join(f'{name} {taken:.1f} s' for name, taken in off.items())
    found.append(f'not the {seconds:g} seconds that were meant, as their speed was another than when it was timed: {shown}')
  if 1 in {row['n'] for row in rows}:
    found.append('a factor of one seed has no interval')
  return found


def rate_rows(name: str, final_bpb: Mapping[float, float | None]) -> list[Row]:
  """A row a peak rate that was tried: 'name', 'rate', 'final_bpb' (None: it has none), 'chosen', 'at_the_end' of the rates."""
  finished = [rate for rate, bpb in final_bpb.items() if bpb is not None]
  best = min(finished, key=final_bpb.get, default=None)
  return [
    {
      'name': name,
      'rate': rate,
      'final_bpb': bpb,
      'chosen': rate == best,
      'at_the_end': rate == best and rate in (min(final_bpb), max(final_bpb)),
    }
    for rate, bpb in final_bpb.items()
  ]


def tuning_notes(tuning: Sequence[Row], runs: Runs) -> list[str]:
  """Whether the rates of the strong baselines may be believed: `rate_rows` of the tuning, and those of their variants."""
  found, untuned = [], []
  for name in STRONG:
    rows = [row for row in tuning if row['name'] == name]
    if whole := _rates_of_variants(name, runs):
      # Whole runs say which rate did best; the shorter ones of the tuning, which rates were tried besides.
      tuned = (row['rate'] for row in rows) if any(row['chosen'] for row in rows) else ()
      rows = rate_rows(name, dict.fromkeys(tuned) | whole)
    if len(rows) == 1:
      untuned.append(name)
    else:
      ends = [row['rate'] for row in rows if row['at_the_end']]
      found += [f'{name} did best at {rate:g}, an end of the rates that were tried: another may be better' for rate in ends]
  if untuned:
    found.insert(0, f'the learning rate of {" and ".join(untuned)} is a rule of thumb: --rates tunes it')
  return found


def _rates_of_variants(name: str, runs: Runs) -> dict[float, float]:
  """Final bpb by peak rate, of the best variant of this baseline and those that differ from it in the rate alone."""
  variants = {variant: seeds for variant, seeds in runs.items() if variant.startswith(name) and seeds}
  configs = {variant: next(iter(seeds.values())).config for variant, seeds in variants.items()}

  def but_for_the_rate(variant: str) -> Row:
    config = configs[variant]
    curriculum = {**config['curriculum'], 'budget_tokens': None}  # what the seconds of the budget come to, timed anew or not
    return {**config, 'seed': None, 'optimizer': {**config['optimizer'], 'peak_lr': None}, 'curriculum': curriculum}

  best = min(variants, key=lambda variant: _final_bpb(variants[variant]), default=None)
  alike = [variant for variant in variants if but_for_the_rate(variant) == but_for_the_rate(best)]
  return {configs[variant]['optimizer']['peak_lr']: _final_bpb(variants[variant]) for variant in alike}


def trend_rows(by_budget: Mapping[float, Runs], stem: str) -> list[Row]:
  """How the goals move with the budget: 'seconds' of the baselines, then 'baseline' and 'strong' as `headline`."""
  rows = []
  for seconds, runs in sorted(by_budget.items()):
    if not {BASELINE, stem} & set(runs):  # but trials of rates, perhaps
      continue
    best = best_strong(runs)
    row = {'seconds': seconds, 'baseline': headline(by_budget, seconds, BASELINE, stem)}
    row['strong'] = headline(by_budget, seconds, best, stem) if best else None
    if row['baseline'] or row['strong']:
      rows.append(row)
  return rows


def result(by_budget: Mapping[float, Runs], stem: str, seconds: float) -> Row:
  """Everything that the runs say, as plain values, a key for each function above; 'figures' are the record's.

  Args:
    by_budget: the finished runs of each budget in seconds.
    stem: the experiment in question.
    seconds: the budget that the tables are about; the trend is over all.
  """
  runs = by_budget[seconds]
  order = [BASELINE, *(f'baseline_{saving}' for saving in CLAIMS), stem, *(f'{stem}_no_{saving}' for saving in CLAIMS), *STRONG]
  runs = {name: runs[name] for name in [*(n for n in order if n in runs), *(n for n in runs if n not in order)]}
  rows, factors = run_rows(runs), factor_rows(runs, stem)
  goals, trend = goal_rows(by_budget, seconds, stem), trend_rows(by_budget, stem)
  return {
    'seconds': seconds,
    'runs': rows,
    'factors': factors,
    'goals': goals,
    'variants': variant_rows(runs, stem),
    'trend': trend,
    'notes': notes(rows, runs, seconds),
    'figures': _figures_of_record(factors, trend, rows, stem),
  }


def _figures_of_record(factors: Sequence[Row], trend: Sequence[Row], rows: Sequence[Row], stem: str) -> Row:
  found = {}

  def note(name: str, measured: Row | None) -> None:
    if measured and measured['factor'] is not None:
      found[name] = {'value': measured['factor'], 'unit': 'times', **_spread(measured['low'], measured['high'])}

  for row in factors:
    if row['saving'] in CLAIMS:
      note(f'factor_{row["saving"]}_alone', row['alone'])
      note(f'factor_{row["saving"]}_in_stack', row['in_stack'])
  for row in trend:
    note(f'speedup_vs_fp32_baseline_{row["seconds"]:g}s', row['baseline'])
    note(f'speedup_vs_strong_baseline_{row["seconds"]:g}s', row['strong'])
  for row in rows:
    if row['name'] == stem:
      found[f'final_bpb_{stem}'] = {
        'value': row['final_bpb'], 'unit': 'bits per byte', **_spread(*row['final_bpb_interval'])
      }  # fmt: skip
  return found


def _spread(low: float | None, high: float | None) -> Row:
  """Of a figure of a record: the width of its interval, where it has one."""
  return {} if low is None else {'spread': high - low}
