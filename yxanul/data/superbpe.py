"""Trains SuperBPE tokenizers (arXiv 2503.13423) with stock `tokenizers` and a learner for what it cannot say.

Stage 1 learns entries inside words: the stock trainer, up to `transition_size` entries (the 256 bytes among them). Plain
BPE ends here. Stage 2 encodes the text again, with those merges but split at numbers only (digits in threes from the
right), and goes on with merges that may span words, up to `vocab_size`: `superbpe_learner` holds the rule and the limits.

Each stage leaves its result in the folder, under a name that says what it depends on; a run that was interrupted goes on
after the last stage that ended. The text is read once, into a sample on disk (`superbpe_sample`), which is removed, like
everything but the tokenizer, when training ends.
"""

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from yxanul.config.spec import TokenizerSpec
from yxanul.data import superbpe_learner, superbpe_sample
from yxanul.data import tokenizer as tokenizer_lib
from yxanul.data.superbpe_sample import Sample
from yxanul.data.tokenizer import Tokenizer

Progress = Callable[[str, int, int | None], None]  # step, how much is done, of how much if known
READ, WORDS, ENCODE, SUPERWORDS = 'read text', 'learn words', 'encode text', 'learn superwords'
_Pairs = list[tuple[str, str]]


def _silent(step: str, done: int, total: int | None) -> None:
  pass


def _throttled(progress: Progress) -> Progress:
  """At most ten calls a second, and always the last of a step."""
  last = 0.0

  def call(step: str, done: int, total: int | None) -> None:
    nonlocal last
    if done == total or time.monotonic() - last >= 0.1:
      progress(step, done, total)
      last = time.monotonic()

  return call


def train(
  texts: Callable[[], Iterable[str]],
  spec: TokenizerSpec,
  folder: Path,
  progress: Progress = _silent,
  source: str = '',
) -> Tokenizer:
  """Trains the tokenizer that `spec` describes, saves it in `folder` and returns it.

  Args:
    texts: gives the documents; called again only if an earlier run did not finish reading them.
    spec: sizes, limits and special tokens. `transition_size == vocab_size` means plain BPE.
    folder: where the stages and the tokenizer are kept. What is there already is used if it was made with the same
      settings and the same `source`.
    progress: called often with (step, done, total); `done` counts bytes of text or merges.
    source: names the text, so that stages made from another text are not mistaken for this one's.

  Raises:
    ValueError: the text is empty, or too short for so many entries.
  """
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  finished = folder / f'trained-{_key(source, dataclasses.asdict(spec))}'
  if finished.exists():
    return tokenizer_lib.load(str(folder), spec.special_tokens)
  progress = _throttled(progress)
  work = folder / f'stages-{_key(source, spec.sample_bytes)}'
  work.mkdir(exist_ok=True)
  words = work / f'words-{spec.transition_size}.json'
  if not words.exists():
    _write(words, json.dumps(_learn_words(_sample(texts, spec, work, progress), spec.transition_size, progress)))
  vocabulary, merges = json.loads(words.read_text())
  if spec.vocab_size > spec.transition_size:
    encoded = work / f'encoded-{spec.transition_size}.i32'
    if not encoded.exists():
      _encode(_sample(texts, spec, work, progress), vocabulary, merges, encoded, progress)
    vocabulary, merges = _learn_superwords(encoded, vocabulary, merges, spec, progress)
  splits = tokenizer_lib.superword_splits if spec.vocab_size > spec.transition_size else tokenizer_lib.word_splits
  tokenizer = tokenizer_lib.build(vocabulary, [tuple(merge) for merge in merges], splits(), spec.special_tokens)
  for old in folder.glob('trained-*'):
    old.unlink()
  tokenizer.save(folder)
  _write(finished, json.dumps(dataclasses.asdict(spec), indent=2))
  _remove(work)
  return tokenizer


def _key(*parts) -> str:
  return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def _write(path: Path, text: str) -> None:
  part = path.with_name(path.name + '.part')
  part.write_text(text, encoding='utf-8')
  os.replace(part, path)


def _remove(work: Path) -> None:
  for file in work.iterdir():
    file.unlink()
  work.rmdir()


def _sample(texts: Callable[[], Iterable[str]], spec: TokenizerSpec, work: Path, progress: Progress) -> Sample:
  if superbpe_sample.is_drawn(work):
    return Sample(work)
  return superbpe_sample.draw(texts(), spec.sample_bytes, work, lambda done: progress(READ, done, None))


def _too_short(got: int, wanted: int, field: str) -> ValueError:
  return ValueError(f'config.data.tokenizer.{field}: got {wanted}, wants at most the {got} entries that this text can give')


def _learn_words(sample: Sample, size: int, progress: Progress) -> tuple[dict[str, int], _Pairs]:
  """Stage 1: `size` entries and their merges. Ties go to the smaller ids, which follow the bytes' characters, then rank."""

  def batches() -> Iterator[list[str]]:
    done = 0
    for batch in sample.batches():
      yield batch
      done += sum(len(text.encode()) for text in batch)
      progress(WORDS, done, sample.n_bytes)

  inner = tokenizers.Tokenizer(models.BPE())
  inner.pre_tokenizer = tokenizer_lib.word_splits()
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  inner.train_from_iterator(batches(), trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False))
  model = json.loads(inner.to_str())['model']
  if len(model['vocab']) < size:
    raise _too_short(len(model['vocab']), size, 'transition_size')
  return model['vocab'], [tuple(merge) for merge in model['merges']]


def _encode(sample: Sample, vocabulary: dict[str, int], merges: _Pairs, to: Path, progress: Progress) -> None:
  """Writes the token ids of the sample, int32, with -1 before, between and after the parts that no merge may cross."""
  inner = tokenizers.Tokenizer(models.BPE(vocabulary, [tuple(merge) for merge in merges]))
  inner.pre_tokenizer = tokenizer_lib.superword_splits()
  part = to.with_name(to.name + '.part')
  done = 0
  with part.open('wb') as file:
    file.write(np.array([-1], np.int32).tobytes())
    for batch in sample.batches():
      for encoding in inner.encode_batch(batch):
        ids, parts = np.array(encoding.ids, np.int32), np.array(encoding.word_ids, np.int32)
        ends = np.flatnonzero(np.diff(parts, append=-1)) + 1
        file.write(np.insert(ids, ends, -1).astype(np.int32).tobytes())
      done += sum(len(text.encode()) for text in batch)
      progress(ENCODE, done, sample.n_bytes)
  os.replace(part, to)


def _learn_superwords(
  encoded: Path, vocabulary: dict[str, int], merges: _Pairs, spec: TokenizerSpec, progress: Progress
) -> tuple[dict[str, int], _Pairs]:
  """Stage 2: the entries and merges of stage 1 and those that follow."""
  names = sorted(vocabulary, key=vocabulary.__getitem__)
  learned = superbpe_learner.learn(
    np.fromfile(encoded, np.int32),
    [tokenizer_lib.to_bytes(name) for name in names],
    spec.vocab_size - len(names),
    spec.max_superword_words,
    lambda done, total: progress(SUPERWORDS, done, total),
  )
  if len(names) + len(learned) < spec.vocab_size:
    raise _too_short(len(names) + len(learned), spec.vocab_size, 'vocab_size')
  merges = list(merges)
  for a, b in learned:
    merges.append((names[a], names[b]))
    names.append(names[a] + names[b])
  return {name: i for i, name in enumerate(names)}, merges
