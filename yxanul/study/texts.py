"""The text of every member, prepared before anything is timed: once for each tokenizer, and all of the same documents."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from yxanul.config.spec import DataSpec
from yxanul.data import prepare as preparation
from yxanul.data.prepare_journal import write_atomically
from yxanul.reporting.phases import Phases
from yxanul.study.apart import Apart
from yxanul.study.members import Member


def prepare(
  members: Sequence[Member], workdir: Path, apart: Apart, tell: Callable[[str], None]
) -> tuple[list[Member], list[str]]:
  """Prepares what is not there yet, so that no GPU waits for it later.

  Returns:
    The members that have a text, and the same as the first of them; and a line for each other one.

  Raises:
    Stopped: on request; the same call goes on.
  """
  sizes: dict[str, dict[str, int] | None] = {}
  reference, ready, failures = None, [], []
  for member in members:
    directory = member.spec.data.directory
    if directory not in sizes:
      sizes[directory] = _prepared(member, workdir / 'texts' / f'{Path(directory).name}.json', apart, tell)
    size = sizes[directory]
    if size is None:
      failures.append(f'{member.name}: its text could not be prepared; the lines above say why')
      continue
    reference = reference or (member.name, size)
    if size == reference[1]:
      ready.append(member)
    else:
      shown = ', '.join(f'{size[part]:,} bytes of {part} against {reference[1][part]:,}' for part in size)
      failures.append(f'{member.name}: its text is not that of {reference[0]} ({shown}); wants filters that count no tokens')
  return ready, failures


def _prepared(member: Member, path: Path, apart: Apart, tell: Callable[[str], None]) -> dict[str, int] | None:
  """Bytes of 'train' and 'validation'; None where it failed."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.unlink(missing_ok=True)
  tell(f'{member.name}: its text in {member.spec.data.directory}')
  return None if apart.call(measure_text, member.spec.data, path) else json.loads(path.read_text())


def measure_text(spec: DataSpec, path: Path) -> None:
  """Prepares the text and writes its bytes to `path`; meant for a process of its own."""
  with Phases() as phases:
    prepared = preparation.prepare(spec, Path(spec.directory), phases)
  sizes = {part: int(getattr(prepared, part).byte_counts.sum()) for part in ('train', 'validation')}
  write_atomically(path, json.dumps(sizes) + '\n')
