"""Several experiments under one clock: on one text, each to its own end within the same seconds of training.

A budget in seconds becomes a budget in tokens before the run begins: the experiment's whole schedule is timed on this device,
a few steps of every stage, and tokens = seconds x tokens/s. So the run is an ordinary one, exact and resumable, and its
learning rate reaches its end with its last step. (Rejected: progress by the clock. Two runs would never be the same, and a
resumed one not even itself.) The speed is measured once for an experiment, kept beside the runs and used for every seed and
budget; what a run then really took is in its own result, and curves are drawn over that.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from yxanul.config.convert import deciding, differences, differing_fields, from_saved, to_dict
from yxanul.config.spec import ExperimentSpec, TokenizerSpec
from yxanul.config.status import EXIT_UNSAVED
from yxanul.data import prepare as preparation
from yxanul.data.prepare_journal import write_atomically
from yxanul.kernels.capabilities import detect
from yxanul.reporting.run_files import RunFiles, read_run
from yxanul.run import run
from yxanul.study.apart import Apart
from yxanul.training import benchmark

Tell = Callable[[str], None]

_EFFORT = benchmark.Effort(steps=3, warmup_steps=1, profile_steps=0)
_NO_LIMIT = 2**62
_BYTES_PER_TOKEN = 4  # for a limit on held-out text that was given in tokens


@dataclasses.dataclass(frozen=True)
class Member:
  """One of the experiments; its runs differ in their seed alone."""

  name: str  # as people typed it: 'ultra', 'ultra_curriculum:shape=late'
  spec: ExperimentSpec

  @property
  def folder(self) -> str:
    return re.sub(r'[^\w.=-]+', '-', self.name)


def on_one_text(members: Sequence[Member], data_folder: Path) -> list[Member]:
  """The members on the text of the first, each with its own tokenizer, scored on the same held-out documents.

  Shards are kept by tokenizer, in the first member's `data.directory` or else in `data_folder`. Held-out text is limited in
  bytes, because a limit in tokens would be other text for another tokenizer.
  """
  first = members[0].spec
  folder = Path(first.data.directory) if first.data.directory else data_folder
  max_bytes = first.evaluation.max_bytes or _BYTES_PER_TOKEN * first.evaluation.max_tokens

  def changed(spec: ExperimentSpec) -> ExperimentSpec:
    own = spec.data.tokenizer
    data = dataclasses.replace(first.data, tokenizer=own, directory=str(folder / _tokenizer_name(own)))
    evaluation = dataclasses.replace(spec.evaluation, max_tokens=_NO_LIMIT, max_bytes=max_bytes)
    return dataclasses.replace(spec, data=data, evaluation=evaluation)

  return [Member(member.name, changed(member.spec)) for member in members]


def _tokenizer_name(tokenizer: TokenizerSpec) -> str:
  return f'{Path(tokenizer.path).name or "trained"}-{tokenizer.vocab_size}-{tokenizer.transition_size}'


# --- seconds to tokens -----------------------------------------------------------------------------------------------


def speed(member: Member, workdir: Path, apart: Apart, tell: Tell) -> float:
  """Tokens/s of the member's whole schedule on this device: from WORKDIR/speeds, or measured and kept there.

  Raises:
    Stopped: on request; what was measured is lost.
    ValueError: the member could not be timed, or its tokenizer left it other documents than those timed before have.
  """
  path = workdir / 'speeds' / f'{member.folder}.json'
  if path.exists() and not differences(json.loads(path.read_text())['config'], _timed(member.spec)):
    return _of_one_text(path)['tokens_per_second']
  tell(f'{member.name}: timing its stages, to know how many tokens its seconds are')
  path.parent.mkdir(parents=True, exist_ok=True)
  if apart.call(measure_speed, member.spec, path):
    raise ValueError(f'{member.name}: could not be timed; the lines above say why')
  measured = _of_one_text(path)
  tell(f'{member.name}: {measured["tokens_per_second"]:,.0f} tokens/s on {measured["hardware"]}')
  return measured['tokens_per_second']


def _of_one_text(path: Path) -> dict[str, Any]:
  """The record at `path`, if its text has as many bytes as that of every other one there."""
  own = json.loads(path.read_text())
  for other in sorted(path.parent.glob('*.json')):
    theirs = json.loads(other.read_text())['text_bytes']
    if theirs != own['text_bytes']:
      shown = ', '.join(f'{own["text_bytes"][part]:,} bytes of {part} against {theirs[part]:,}' for part in theirs)
      raise ValueError(
        f'{path.stem}: its text is not that of {other.stem} ({shown}): a filter counts tokens, which are other ones; '
        'wants --config.data.min_document_tokens=0 and a new workdir'
      )
  return own


def _timed(spec: ExperimentSpec) -> dict[str, Any]:
  """What a speed depends on, as JSON has it: neither seed nor budget."""
  curriculum = dataclasses.replace(spec.curriculum, budget_tokens=_NO_LIMIT)
  return json.loads(json.dumps(to_dict(dataclasses.replace(spec, seed=0, curriculum=curriculum))))


def measure_speed(spec: ExperimentSpec, path: Path) -> None:
  """Times every stage and writes `path`; meant for a process of its own."""
  told: list[str] = []
  capabilities = detect()
  prepared = preparation.prepare(spec.data, Path(spec.data.directory), lambda *_: None)
  stages = range(1, len(spec.curriculum.stages) + 1)
  measured = benchmark.measure(spec, stages, prepared, capabilities, _EFFORT, told.append)
  schedule = measured['schedule']
  if schedule is None or not schedule['complete']:
    raise ValueError('; '.join(row['error'] for row in measured['stages'] if 'error' in row))
  record = {
    'tokens_per_second': schedule['tokens_per_second'],
    'hardware': capabilities.name,
    'text_bytes': {name: int(getattr(prepared, name).byte_counts.sum()) for name in ('train', 'validation')},
    'seconds_warming': measured['warm_seconds'],
    'stages': [{key: row[key] for key in ('stage', 'seq_len', 'tokens_per_step', 'ms', 'n')} for row in measured['stages']],
    'config': _timed(spec),
  }
  write_atomically(path, json.dumps(record, indent=1) + '\n')


# --- the runs --------------------------------------------------------------------------------------------------------


def budget_folder(workdir: Path, seconds: float) -> Path:
  """Where the runs of one budget are; 0: each has the tokens that its experiment says."""
  return workdir / (f'{seconds:g}s' if seconds else 'as-configured')


def run_folder(workdir: Path, seconds: float, member: Member, seed: int) -> Path:
  return budget_folder(workdir, seconds) / member.folder / f'seed{seed}'


def train(
  members: Sequence[Member], seeds: Sequence[int], seconds: float, workdir: Path, apart: Apart, tell: Tell
) -> Iterator[str | None]:
  """Trains what is not finished, seed after seed, each run in a process of its own; yields after each.

  Args:
    seconds: of training, for each run; 0: its experiment's own budget of tokens.

  Yields:
    None, or the line that says that a run failed. The others go on.

  Raises:
    Stopped: on request, with the run under way saved.
  """
  for seed in seeds:
    for member in members:
      apart.check()
      folder = run_folder(workdir, seconds, member, seed)
      spec = dataclasses.replace(member.spec, seed=seed)
      if (folder / 'result.json').exists():
        others = _other_values(spec, folder, seconds)
        if others:
          yield f'{member.name}, seed {seed}: finished before with other values ({"; ".join(others)}); wants another workdir'
        else:
          tell(f'{member.name}, seed {seed}: finished before')
        continue
      try:
        if seconds:
          budget = max(1, round(seconds * speed(member, workdir, apart, tell)))
          spec = dataclasses.replace(spec, curriculum=dataclasses.replace(spec.curriculum, budget_tokens=budget))
      except ValueError as error:
        yield str(error)
        continue
      goes_on = 'going on' if (folder / 'config.json').exists() else 'starting'
      tell(f'{member.name}, seed {seed}: {goes_on} with {spec.curriculum.budget_tokens:,} tokens in {folder}')
      status = apart.call(run, spec, folder)
      yield None if status in (0, EXIT_UNSAVED) else f'{member.name}, seed {seed}: ended with status {status}'


def _other_values(spec: ExperimentSpec, folder: Path, seconds: float) -> list[str]:
  """The fields in which the finished run in `folder` was not `spec`.

  Where its text lay does not matter, so that a record may be gone on with: whether it was the same is seen by its bytes
  when the next member is timed. Nor does the budget where it came from the clock.
  """

  def values(config: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in deciding(config).items() if name != 'data'}
    return kept | {'curriculum': {**kept['curriculum'], **({'budget_tokens': None} if seconds else {})}}

  saved = from_saved(json.loads((folder / 'config.json').read_text()))
  return differing_fields(values(to_dict(saved)), values(to_dict(spec)))


def finished(workdir: Path, seconds: float) -> dict[str, dict[int, RunFiles]]:
  """The finished runs of one budget, by the name of the member's folder and the seed."""
  found: dict[str, dict[int, RunFiles]] = {}
  for result in sorted(budget_folder(workdir, seconds).glob('*/seed*/result.json')):
    run_folder = result.parent
    found.setdefault(run_folder.parent.name, {})[int(run_folder.name.removeprefix('seed'))] = read_run(run_folder)
  return {name: dict(sorted(seeds.items())) for name, seeds in found.items()}


def budgets(workdir: Path) -> list[float]:
  """The seconds of which there are runs, ascending."""
  matches = (re.fullmatch(r'([\d.]+(?:e\+?\d+)?)s', path.name) for path in workdir.iterdir())
  return sorted(float(match[1]) for match in matches if match)
