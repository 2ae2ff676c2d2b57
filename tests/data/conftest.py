"""A small tokenizer, small corpora and shards for the tests of the data path."""

from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, trainers

from tests.data.small_shards import CASES, make_shards
from yxanul.config.spec import DataSpec, TokenizerSpec
from yxanul.data import python_docs
from yxanul.data import tokenizer as tokenizer_module

SPECIAL = ('<|pad|>', '<|endoftext|>')
ENTRIES = 600


@pytest.fixture(scope='session')
def prose() -> list[str]:
  """English paragraphs, all different."""
  return [p for _, text, _ in python_docs.read() for p in python_docs.paragraphs(text) if len(p) > 40]


@pytest.fixture(scope='session')
def tokenizer_path(tmp_path_factory, prose) -> Path:
  """The folder of a byte-level BPE with ENTRIES entries and SPECIAL tokens."""
  inner = tokenizers.Tokenizer(models.BPE())
  inner.pre_tokenizer = tokenizer_module.word_splits()
  inner.decoder = decoders.ByteLevel()
  alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
  inner.train_from_iterator(prose, trainers.BpeTrainer(vocab_size=ENTRIES, initial_alphabet=alphabet, show_progress=False))
  folder = tmp_path_factory.mktemp('tokenizer')
  inner.save(str(folder / 'tokenizer.json'))
  tokenizer_module.load(str(folder), SPECIAL).save(folder)
  return folder


@pytest.fixture(scope='session')
def tokenizer(tokenizer_path) -> tokenizer_module.Tokenizer:
  return tokenizer_module.load(str(tokenizer_path), SPECIAL)


@pytest.fixture
def make_spec(tokenizer_path):
  """A DataSpec with the small tokenizer; fields as arguments."""

  def make(source, **fields) -> DataSpec:
    tokenizer = TokenizerSpec(path=str(tokenizer_path), vocab_size=ENTRIES, transition_size=ENTRIES, special_tokens=SPECIAL)
    return DataSpec(source=str(source), **{'tokenizer': tokenizer, 'validation_fraction': 0.1} | fields)

  return make


@pytest.fixture(scope='module', params=CASES.values(), ids=CASES.keys())
def data(request, tmp_path_factory):
  documents, longest, shard_tokens = request.param
  lengths = np.random.default_rng(1).integers(1, longest, documents)
  return make_shards(tmp_path_factory.mktemp('shards'), lengths, shard_tokens)
