"""Trains the tokenizer of an experiment on its training text, and shows how many bytes of held-out text a token holds.

Command: python -m yxanul.tools.tokenizer --config=experiments/ultra.py --config.data.source=PATH --output=tokenizers/mine
Then --config.data.tokenizer.path=tokenizers/mine uses it anywhere. `--compare=gpt2=PATH,official=PATH` puts others beside it;
plain BPE is the same command with config.data.tokenizer.transition_size equal to vocab_size. Killed, the same command goes on
after the last stage that ended.
"""

import dataclasses
import hashlib
import json
import resource
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from absl import flags
from rich.box import SIMPLE_HEAD
from rich.table import Table

from yxanul.config import cli
from yxanul.config.convert import to_dict
from yxanul.config.spec import TokenizerSpec
from yxanul.data import prepare, superbpe, tokenizer
from yxanul.data.prepare_select import TRAIN, VALIDATION
from yxanul.data.sources_document import Document
from yxanul.data.tokenizer import Tokenizer
from yxanul.reporting import numbers, tables
from yxanul.reporting.phases import Phases

_OUTPUT = flags.DEFINE_string('output', None, 'Folder for tokenizer.json, tokenizer_config.json and comparison.json.')
_COMPARE = flags.DEFINE_list('compare', [], 'Other tokenizers to show beside it: NAME=PATH,... (or hub names).')
flags.adopt_module_key_flags(cli)

_BATCH_DOCUMENTS = 256
_Counts = dict[str, Counter]  # what is counted -> source -> how much


def count(texts: Iterator[Document], contestants: dict[str, Tokenizer]) -> _Counts:
  """Bytes, characters and each tokenizer's tokens of the texts, by source."""
  counts = {name: Counter() for name in ('bytes', 'characters', *contestants)}

  def add(batch: list[Document]) -> None:
    batch_texts = [document.text for document in batch]
    encoded = {name: one.encode_batch(batch_texts) for name, one in contestants.items()}
    for i, document in enumerate(batch):
      counts['bytes'][document.source] += len(document.text.encode())
      counts['characters'][document.source] += len(document.text)
      for name, ids in encoded.items():
        counts[name][document.source] += len(ids[i])

  batch = []
  for document in texts:
    batch.append(document)
    if len(batch) == _BATCH_DOCUMENTS:
      add(batch)
      batch = []
  add(batch)
  return counts


def table(counts: _Counts) -> Table:
  """Bytes per token by source and over all; under them characters per token and how many tokens in all."""
  contestants = [name for name in counts if name not in ('bytes', 'characters')]
  shown = Table(
    title='Bytes a token, held-out text', title_justify='left', title_style='bold', box=SIMPLE_HEAD, show_edge=False
  )
  shown.add_column('source', no_wrap=True)
  shown.add_column('text', justify='right', no_wrap=True)
  for name in contestants:
    shown.add_column(name, justify='right', no_wrap=True)
  for source, size in counts['bytes'].most_common():
    shown.add_row(source, numbers.byte_size(size), *(f'{size / counts[name][source]:.3f}' for name in contestants))
  shown.add_section()
  tokens = {name: counts[name].total() for name in contestants}
  size, characters = counts['bytes'].total(), counts['characters'].total()
  shown.add_row('all', numbers.byte_size(size), *(f'{size / n:.3f}' for n in tokens.values()), style='bold')
  shown.add_row('characters a token', '', *(f'{characters / n:.3f}' for n in tokens.values()))
  shown.add_row('tokens', '', *(f'{n:,}' for n in tokens.values()))
  return shown


def _compared(entries: list[str]) -> dict[str, Tokenizer]:
  found = {}
  for entry in entries:
    name, equals, path = entry.partition('=')
    if not equals:
      raise ValueError(f'--compare: got {entry!r}, wants NAME=PATH')
    found[name] = tokenizer.load(path)
  return found


def main() -> None:
  spec = cli.spec()[1].data
  if _OUTPUT.value is None:
    raise ValueError('--output: missing, wants the folder for the tokenizer')
  others = _compared(_COMPARE.value)
  output, begin = Path(_OUTPUT.value), time.monotonic()
  parts = prepare.parts_of(spec)
  output.mkdir(parents=True, exist_ok=True)
  the_same = dataclasses.replace(spec, directory='', workers=0, on_error='stop', tokenizer=TokenizerSpec())
  settings = json.dumps([to_dict(the_same), [part.listing() for part in parts]])
  source = hashlib.sha256(settings.encode()).hexdigest()
  chosen = output / f'chosen-{source[:12]}'
  chosen.mkdir(exist_ok=True)
  with Phases() as phases:
    parts, selection = prepare.choose(parts, spec, chosen, phases)

    def texts() -> Iterator[str]:
      return (document.text for document in prepare.documents(parts, spec, selection, TRAIN))

    trained = superbpe.train(texts, spec.tokenizer, output, phases, source)
  seconds = time.monotonic() - begin
  kind = 'BPE' if spec.tokenizer.transition_size == spec.tokenizer.vocab_size else 'SuperBPE'
  counts = count(prepare.documents(parts, spec, selection, VALIDATION), {kind: trained, **others})
  shutil.rmtree(chosen)
  tables.print_table(table(counts))
  peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
  print(f'{output}: {trained.vocab_size:,} entries in {numbers.duration(seconds)}, peak memory {peak_gb:.2f} GB')
  summary = {'counts': counts, 'seconds': round(seconds, 1), 'peak_memory_gb': round(peak_gb, 2)}
  (output / 'comparison.json').write_text(json.dumps(summary, indent=1) + '\n')


if __name__ == '__main__':
  cli.run(main)
