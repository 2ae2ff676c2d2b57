"""Prepares text for training: source, filters, duplicates, split, tokenizer, shards.

Command: python -m yxanul.tools.prepare --config=experiments/ultra.py --config.data.source=PATH --workdir=runs/NAME
A training run with the same `config.data` finds the shards there; killed, the same command goes on.
"""

from pathlib import Path

import numpy as np
from absl import flags

from yxanul.config import cli
from yxanul.data import prepare
from yxanul.data.shards import Shards
from yxanul.reporting import numbers, tables
from yxanul.reporting.phases import Phases

_WORKDIR = flags.DEFINE_string('workdir', None, 'Prepare in WORKDIR/data, where a run in WORKDIR looks; or set data.directory.')
flags.adopt_module_key_flags(cli)


def rows(shards: Shards, split: str) -> list[dict]:
  """Of each source of a split: documents, tokens (end-of-text tokens apart) and bytes."""
  ids, n = shards.source_ids, len(shards.sources)
  documents = np.bincount(ids, minlength=n)
  tokens = np.bincount(ids, shards.lengths - 1, n)
  sizes = np.bincount(ids, shards.byte_counts, n)
  found = zip(shards.sources, documents.tolist(), tokens.tolist(), sizes.tolist(), strict=True)
  return [
    {'split': split, 'source': name, 'documents': d, 'tokens': t, 'bytes': b, 'bytes_per_token': b / t}
    for name, d, t, b in found
    if d
  ]


def main() -> None:
  spec = cli.spec()[1]
  if not spec.data.directory and not _WORKDIR.value:
    raise ValueError('config.data.directory: missing, wants the folder for tokenizer and shards (or --workdir)')
  directory = Path(spec.data.directory or Path(_WORKDIR.value) / 'data')
  with Phases() as phases:
    prepared = prepare.prepare(spec.data, directory, phases)
  splits = {'train': prepared.train, 'validation': prepared.validation}
  tables.print_table(tables.corpus_table([row for split, shards in splits.items() for row in rows(shards, split)]))
  selection, problems = prepared.train.manifest['selection'], prepared.train.manifest['problems']
  dropped = ', '.join(f'{n:,} {reason}' for reason, n in selection.items() if n and reason not in splits)
  print(f'dropped: {dropped or "nothing"}')
  for kind, n in problems['counts'].items():
    print(f'skipped: {n:,} {kind}, such as {next(line for line in problems["first"])}')
  took = ', '.join(f'{phase} {numbers.duration(seconds)}' for phase, seconds in prepared.report['seconds'].items())
  print(f'{directory}: {took}')


if __name__ == '__main__':
  cli.run(main)
