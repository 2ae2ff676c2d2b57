"""Several experiments under one clock: which they are, where their runs lie, and the text that all have.

Each trains to its own end within the same seconds of training (`speeds` turns those into tokens), on the same text, and is
scored on the same held-out text.
"""

import dataclasses
import re
import zlib
from collections.abc import Sequence
from pathlib import Path

from yxanul.config.spec import ExperimentSpec, TokenizerSpec
from yxanul.reporting.run_files import RunFiles, read_run

_NO_LIMIT = 2**62
# Of held-out text, where nothing else is asked for. All runs are scored on the same, and some twenty times each: at three
# times its training speed (54,000 tokens/s on an H200) a GPT-2 in FP32 takes some 1.4 s for it; a minute for 40 MB.
_HELD_OUT_BYTES = 1_000_000
_FIRST_SHARE = 0.01  # of the budget: a run that is ten times as fast is there within a tenth of its own


@dataclasses.dataclass(frozen=True)
class Member:
  """One of the experiments; its runs differ in their seed alone."""

  name: str  # as people typed it: 'ultra', 'ultra_curriculum:shape=late'
  spec: ExperimentSpec

  @property
  def folder(self) -> str:
    return re.sub(r'[^\w.=-]+', '-', self.name)


def on_one_text(members: Sequence[Member], data_folder: Path, baseline_tokenizer: str = '') -> list[Member]:
  """The members on the text of the first, each with its own tokenizer, scored on the same held-out documents.

  Shards are kept by tokenizer, in the first member's `data.directory` or else in `data_folder`. What counts tokens would
  choose other documents for another tokenizer, which may be in a later call: held-out text is limited in bytes, and
  `data.min_document_tokens` is dropped. No samples are written.

  Args:
    baseline_tokenizer: a folder or hub name for those whose tokenizer is not the first one's; '': as they say.
  """
  first = members[0].spec
  folder = (Path(first.data.directory) if first.data.directory else data_folder).absolute()
  max_bytes = first.evaluation.max_bytes or _HELD_OUT_BYTES

  def own_tokenizer(spec: ExperimentSpec) -> TokenizerSpec:
    tokenizer = spec.data.tokenizer
    if baseline_tokenizer and tokenizer != first.data.tokenizer:
      return dataclasses.replace(tokenizer, path=baseline_tokenizer)
    return tokenizer

  def changed(spec: ExperimentSpec) -> ExperimentSpec:
    tokenizer = own_tokenizer(spec)
    directory = str(folder / _tokenizer_name(tokenizer))
    data = dataclasses.replace(first.data, tokenizer=tokenizer, directory=directory, min_document_tokens=0)
    first_share = spec.evaluation.first_share or _FIRST_SHARE
    evaluation = dataclasses.replace(spec.evaluation, max_tokens=_NO_LIMIT, max_bytes=max_bytes, first_share=first_share)
    return dataclasses.replace(spec, data=data, evaluation=evaluation, sample=dataclasses.replace(spec.sample, prompts=()))

  return [Member(member.name, changed(member.spec)) for member in members]


def _tokenizer_name(tokenizer: TokenizerSpec) -> str:
  """With a mark of the folder that it lies in: many are called `tokenizer`."""
  name = f'{Path(tokenizer.path).name or "trained"}-{tokenizer.vocab_size}-{tokenizer.transition_size}'
  if tokenizer.path and Path(tokenizer.path).exists():
    name += f'-{zlib.crc32(str(Path(tokenizer.path).resolve()).encode()):08x}'
  return name


def budget_folder(workdir: Path, seconds: float) -> Path:
  """Where the runs of one budget are, a name that `budgets` reads back; 0: each has the tokens that its experiment says."""
  return workdir / (f'{repr(seconds).removesuffix(".0")}s' if seconds else 'as-configured')


def run_folder(workdir: Path, seconds: float, member: Member, seed: int) -> Path:
  return budget_folder(workdir, seconds) / member.folder / f'seed{seed}'


def finished(workdir: Path, seconds: float) -> dict[str, dict[int, RunFiles]]:
  """The finished runs of one budget, by the name of the member's folder and the seed; without those that `lost_itself`."""
  found: dict[str, dict[int, RunFiles]] = {}
  for result in sorted(budget_folder(workdir, seconds).glob('*/seed*/result.json')):
    run = read_run(result.parent)
    if not lost_itself(run):
      found.setdefault(run.workdir.parent.name, {})[int(run.workdir.name.removeprefix('seed'))] = run
  return {name: dict(sorted(seeds.items())) for name, seeds in found.items()}


def lost_itself(run: RunFiles) -> bool:
  """Whether it ended with a loss that is no number, as at a rate that is too high: it has nothing to compare."""
  return not run.evaluations or run.evaluations[-1]['val_bpb'] is None


def budgets(workdir: Path) -> list[float]:
  """The seconds of which there are runs, ascending."""
  matches = (re.fullmatch(r'([\d.]+(?:e\+?\d+)?)s', path.name) for path in workdir.iterdir())
  return sorted(float(match[1]) for match in matches if match)
