"""The runs of a study, one after another: what is finished stays, what was stopped goes on."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from yxanul.config.convert import deciding, differing_fields, from_saved, to_dict
from yxanul.config.spec import ExperimentSpec
from yxanul.config.status import EXIT_UNSAVED
from yxanul.reporting.report import write_report
from yxanul.reporting.run_files import read_run
from yxanul.run import run
from yxanul.study.apart import Apart
from yxanul.study.members import Member, budget_folder, lost_itself, run_folder
from yxanul.study.speeds import speed
from yxanul.training.curriculum import Curriculum

Tell = Callable[[str], None]

_FEW_STEPS = 300  # fewer, and what is compared is how well the experiments do without steps


def train(
  members: Sequence[Member], seeds: Sequence[int], seconds: float, workdir: Path, apart: Apart, tell: Tell
) -> Iterator[str | None]:
  """Trains what is not finished, seed after seed, each run in a process of its own.

  A finished run keeps its configuration, log, result and report: a family's checkpoints would take 60 GB a seed.

  Args:
    seconds: of training, for each run; 0: its experiment's own budget of tokens.

  Yields:
    None after a run that ended well, or the line that says why one failed; the others go on. Of a run that was finished before
    only such a line: it had other values, or its loss is no number.

  Raises:
    Stopped: on request, with the run under way saved.
  """
  for seed in seeds:
    for member in members:
      apart.check()
      folder = run_folder(workdir, seconds, member, seed)
      spec = dataclasses.replace(member.spec, seed=seed)
      try:
        if (folder / 'result.json').exists():
          others = _other_values(spec, folder, seconds)
          if others:
            wants = 'wants another workdir'
            yield f'{member.name}, seed {seed}: finished before with other values ({"; ".join(others)}); {wants}'
          else:
            tell(f'{member.name}, seed {seed}: finished before')
            if failure := _put_away(folder, f'{member.name}, seed {seed}'):
              yield failure
          continue
        if seconds:
          spec = _with_budget(spec, _budget(member, seed, seconds, workdir, apart, tell))
        steps = Curriculum(spec).total_steps
      except ValueError as error:
        yield str(error) if str(error).startswith(f'{member.name}: ') else f'{member.name}: {error}'
        continue
      goes_on = 'going on' if (folder / 'config.json').exists() else 'starting'
      few = f', fewer than {_FEW_STEPS}: a smaller batch learns more' if steps < _FEW_STEPS else ''
      tokens = spec.curriculum.budget_tokens
      tell(f'{member.name}, seed {seed}: {goes_on} with {tokens:,} tokens, {steps:,} steps{few}, in {folder}')
      status = apart.call(run, spec, folder)
      if status:
        again = '; the same command tries again' if status == EXIT_UNSAVED else ''
        yield f'{member.name}, seed {seed}: ended with status {status}{again}'
      else:
        yield _put_away(folder, f'{member.name}, seed {seed}')


def _put_away(folder: Path, name: str) -> str | None:
  """What a finished run keeps; a line where there is nothing to compare it by."""
  if not (folder / 'report.html').exists():  # a request to stop came behind the result
    write_report(folder)
  shutil.rmtree(folder / 'checkpoints', ignore_errors=True)
  return f'{name}: its loss is no number in the end, so it is left out' if lost_itself(read_run(folder)) else None


def _with_budget(spec: ExperimentSpec, tokens: int) -> ExperimentSpec:
  return dataclasses.replace(spec, curriculum=dataclasses.replace(spec.curriculum, budget_tokens=tokens))


def _budget(member: Member, seed: int, seconds: float, workdir: Path, apart: Apart, tell: Tell) -> int:
  """Tokens: those that this run, or one of another seed, was begun with, or else what its speed gives.

  So all seeds have one budget, and a run keeps its own although its speed would be measured otherwise today.
  """
  begun = sorted((budget_folder(workdir, seconds) / member.folder).glob('seed*/config.json'))
  for path in sorted(begun, key=lambda path: path.parent.name != f'seed{seed}'):
    saved = _saved(path)
    if not _other_values(dataclasses.replace(member.spec, seed=saved.seed), path.parent, seconds):
      return saved.curriculum.budget_tokens
  return max(1, round(seconds * speed(member, workdir, apart, tell)))


def _saved(path: Path) -> ExperimentSpec:
  try:
    return from_saved(json.loads(path.read_text(encoding='utf-8')))
  except ValueError as error:
    raise ValueError(f'{path}: not the configuration of a run ({error})') from None


def _other_values(spec: ExperimentSpec, folder: Path, seconds: float) -> list[str]:
  """The fields in which the run in `folder` was not `spec`.

  Where its text lay does not matter, so that a record may be gone on with; nor do samples, nor how early it was first scored;
  nor the budget where it came from the clock.
  """

  def values(config: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in deciding(config).items() if name not in ('data', 'sample')}
    kept['evaluation'] = {**kept['evaluation'], 'first_share': None}
    return kept | {'curriculum': {**kept['curriculum'], **({'budget_tokens': None} if seconds else {})}}

  saved = _saved(folder / 'config.json')
  return differing_fields(values(to_dict(saved)), values(to_dict(spec)))
