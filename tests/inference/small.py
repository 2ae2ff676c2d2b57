"""Models over tokenizers so small that everything about them can be counted."""

import dataclasses
import random

import torch

from tests import tiny
from yxanul.data import tokenizer as tokenizers
from yxanul.data.tokenizer import Tokenizer
from yxanul.inference.model import Model
from yxanul.kernels.capabilities import Engines
from yxanul.model import transformer

ENGINES = Engines('fp32', 'sdpa', 'chunked')
SPECIAL = ('<|one|>', '<|endoftext|>')
ALPHABET = ('a', 'b', 'Ġ', '1', 'Ã', '©')  # the last two are the bytes of é


def tokenizer(seed: int, n_merges: int = 14) -> Tokenizer:
  """Random merges over six bytes, digits apart: entries span words, and may begin or end inside é."""
  draw = random.Random(seed)
  entries, merges = list(ALPHABET), []
  while len(merges) < n_merges:
    a, b = draw.choice(entries), draw.choice(entries)
    if a + b not in entries and len(a + b) <= 5:
      entries.append(a + b)
      merges.append((a, b))
  return tokenizers.build({entry: i for i, entry in enumerate(entries)}, merges, tokenizers.superword_splits(), SPECIAL)


def model(one: Tokenizer, seed: int = 0, std: float = 0.2, **fields) -> Model:
  """Random parameters, large enough to have opinions."""
  spec = tiny.spec(model__init_std=std, **fields)
  params = transformer.init(spec.model, torch.Generator().manual_seed(seed))
  params['embedding.table'][one.end_of_text_id] = 0  # so that it is seldom the likeliest
  return Model(spec, params, one, ENGINES)


def narrowed(model: Model, window: int) -> Model:
  """The same model, as if it had been trained on rows of `window` tokens."""
  stage = dataclasses.replace(model.experiment.curriculum.stages[-1], seq_len=window, step_share_start=0.0)
  curriculum = dataclasses.replace(model.experiment.curriculum, stages=(stage,))
  return dataclasses.replace(model, experiment=dataclasses.replace(model.experiment, curriculum=curriculum))
