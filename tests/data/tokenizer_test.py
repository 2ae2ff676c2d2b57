"""Loading every kind of tokenizer file with the right splits, text that comes back whole, files that others load."""

import json

import huggingface_hub
import numpy as np
import pytest
import tokenizers
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, trainers

from yxanul.config.spec import TokenizerSpec
from yxanul.data import superbpe, tokenizer

SPECIAL = ('<|one|>', '<|endoftext|>')
TEXTS = [
  'By the way, 1234567 x² of the\n\n  end.',
  '',
  ' \u00a0\u3000é日本',
  "I'm <|endoftext|> here<|one|>",
  'a: b\r\n\tc',
  '\x00\x7f\x85',
]


@pytest.fixture(scope='module')
def folder(prose, tmp_path_factory):
  folder = tmp_path_factory.mktemp('trained')
  superbpe.train(lambda: prose, TokenizerSpec(vocab_size=1200, transition_size=700, special_tokens=SPECIAL), folder)
  return folder


@pytest.fixture(scope='module')
def trained(folder):
  return tokenizer.load(folder)


def export(one: tokenizer.Tokenizer, to) -> None:
  """The form in which GPT-2 and the official SuperBPE files come: no special tokens, no splits."""
  model = json.loads(one.inner.to_str())['model']
  (to / 'vocab.json').write_text(json.dumps(model['vocab']))
  (to / 'merges.txt').write_text('#version: 0.2\n' + ''.join(f'{a} {b}\n' for a, b in model['merges']))


@given(st.lists(st.text(max_size=60), max_size=4))
@settings(max_examples=300, deadline=None)
def test_any_text_comes_back_and_its_bytes_are_counted(trained, texts):
  for text, ids in zip(texts, trained.encode_batch(texts), strict=True):
    assert ids.dtype == np.int32
    assert trained.decode(ids) == text
    assert trained.token_bytes[ids].sum() == len(text.encode())


@given(st.lists(st.sampled_from(['<|endoftext|>', '<|one|>', '<|endof', 'text|>', ' ', 'x', '日']), max_size=6).map(''.join))
@settings(max_examples=100, deadline=None)
def test_the_spelling_of_a_special_token_is_plain_text(trained, text):
  ids = trained.encode_batch([text])[0]
  assert not np.isin(ids, [1200, 1201]).any()
  assert trained.decode(ids) == text


def test_sizes_and_special_tokens(trained):
  assert trained.vocab_size == 1202
  assert (trained.end_of_text, trained.end_of_text_id) == ('<|endoftext|>', 1201)
  assert trained.token_bytes.shape == (1202,)
  assert trained.token_bytes[1200:].tolist() == [0, 0]
  assert trained.token_bytes[:256].tolist() == [1] * 256
  assert trained.decode([1201]) == '<|endoftext|>'
  assert all(trained.token_bytes[i] == len(trained.decode([i]).encode()) for i in range(1200) if trained.decode([i]).isascii())


@given(st.text(max_size=60))
@settings(max_examples=100, deadline=None)
def test_entries_are_the_bytes_of_each_token(trained, text):
  assert b''.join(trained.entries[i] for i in trained.encode_batch([text])[0]) == text.encode()
  assert [len(entry) for entry in trained.entries] == trained.token_bytes.tolist()


def test_parts_are_the_merge_that_makes_an_entry(trained):
  assert trained.parts.shape == (1202, 2)
  merged = trained.parts[:, 0] >= 0
  assert np.flatnonzero(~merged).tolist() == [*range(256), 1200, 1201]
  assert (trained.parts[~merged] == -1).all()
  entries = trained.entries
  for entry, (left, right) in enumerate(trained.parts.tolist()):
    if merged[entry]:
      assert entries[entry] == entries[left] + entries[right]
      assert max(left, right) < entry
  superword = next(i for i, entry in enumerate(entries) if entry == b' of the')
  assert [entries[part] for part in trained.parts[superword]] == [b' of', b' the']


def test_parts_of_an_entry_that_two_merges_make():
  """The first of them is the one that is applied."""
  entries = [*tokenizer._character_of_byte().values(), 'ab', 'bc', 'abc']
  ids = {entry: i for i, entry in enumerate(entries)}
  merges = [('a', 'b'), ('b', 'c'), ('ab', 'c'), ('a', 'bc')]
  twice = tokenizer.build(ids, merges, tokenizer.superword_splits(), SPECIAL)
  assert twice.parts[ids['abc']].tolist() == [ids['ab'], ids['c']]


@given(st.text(max_size=40), st.integers(0, 160))
@settings(max_examples=200, deadline=None)
def test_texts_that_break_off_inside_a_character_are_encoded(trained, text, n):
  data = text.encode()[:n]
  (ids,) = trained.encode_beginnings([data])
  assert b''.join(trained.entries[i] for i in ids) == data
  if data == data.decode('utf-8', 'ignore').encode():
    assert ids == trained.encode_batch([data.decode()])[0].tolist()


def test_a_character_that_is_cut_counts_as_a_letter():
  entries = {'1': 0, 'Ã': 1, '©': 2, '1Ã': 3}
  digits_apart = tokenizer.build(entries, [('1', 'Ã')], tokenizer.superword_splits(), SPECIAL)
  assert digits_apart.encode_beginnings([b'1\xc3', b'1\xc3\xa9', b'\xc3']) == [[0, 1], [0, 1, 2], [1]]
  assert digits_apart.encode_beginnings([b'\xa9', b'\xc3\xc3', b'1\xc31', b'']) == [None, None, None, []]


def test_tokenizers_and_transformers_load_the_files_unchanged(trained, folder, prose):
  transformers = pytest.importorskip('transformers')
  texts = [text for text in TEXTS if '<|' not in text] + prose[:50]
  stock = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))
  auto = transformers.AutoTokenizer.from_pretrained(folder)
  assert auto.eos_token_id == trained.end_of_text_id
  assert len(auto) == trained.vocab_size
  for text, ids in zip(texts, trained.encode_batch(texts), strict=True):
    assert stock.encode(text).ids == ids.tolist()
    assert auto(text)['input_ids'] == ids.tolist()
    assert auto.decode(ids.tolist()) == text
  assert stock.encode('a<|endoftext|>').ids[-1] == trained.end_of_text_id  # there, the spelling is the token


def test_saving_and_loading_keeps_everything(trained, tmp_path):
  trained.save(tmp_path / 'a' / 'b')
  for path in (tmp_path / 'a' / 'b', tmp_path / 'a' / 'b' / 'tokenizer.json', str(tmp_path / 'a' / 'b')):
    again = tokenizer.load(path)
    assert again.fingerprint == trained.fingerprint
    assert again.end_of_text_id == trained.end_of_text_id
    assert all(map(np.array_equal, again.encode_batch(TEXTS), trained.encode_batch(TEXTS)))


def test_fingerprint_changes_with_entries_splits_and_special_tokens(trained, folder, tmp_path):
  export(trained, tmp_path)
  prints = {tokenizer.load(tmp_path, special).fingerprint for special in (SPECIAL, SPECIAL[::-1], ('<|endoftext|>',), None)}
  content = json.loads((folder / 'tokenizer.json').read_text())
  content['pre_tokenizer']['pretokenizers'][0]['behavior'] = 'MergedWithPrevious'
  (tmp_path / 'tokenizer.json').write_text(json.dumps(content))
  prints |= {trained.fingerprint, tokenizer.load(tmp_path, SPECIAL).fingerprint}
  assert len(prints) == 5  # only the first is the trained one over again


def test_merges_with_superwords_get_the_splits_of_superbpe(trained, tmp_path):
  export(trained, tmp_path)
  loaded = tokenizer.load(tmp_path, SPECIAL)
  assert loaded.fingerprint == trained.fingerprint
  assert loaded.end_of_text_id == 1201


def test_merges_without_superwords_get_the_splits_of_gpt2(prose, tmp_path):
  inner = tokenizers.Tokenizer(models.BPE())
  inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
  trainer = trainers.BpeTrainer(
    vocab_size=800, initial_alphabet=alphabet, special_tokens=['<|endoftext|>'], show_progress=False
  )
  inner.train_from_iterator(prose, trainer)
  inner.model.save(str(tmp_path))
  loaded = tokenizer.load(tmp_path)
  texts = [text for text in TEXTS if '<|' not in text] + ["it's 1234567, they'll  go"]
  assert [ids.tolist() for ids in loaded.encode_batch(texts)] == [inner.encode(text).ids for text in texts]
  assert loaded.vocab_size == 800
  assert loaded.end_of_text_id == 0
  assert loaded.token_bytes[0] == 0


def test_special_tokens_are_appended_where_none_is_known(trained, tmp_path):
  export(trained, tmp_path)
  loaded = tokenizer.load(tmp_path)
  assert loaded.vocab_size == 1205
  assert loaded.end_of_text_id == 1204


def test_official_files(shared):
  official = tokenizer.load(shared / 'superbpe_t80k')
  assert (official.vocab_size, official.end_of_text_id) == (200_005, 200_004)
  ids = official.encode_batch(['By the way, I am a fan of the Milky Way.', 'in 1234567'])
  assert [official.decode([i]) for i in ids[0]] == ['By the way', ', I am a', ' fan of the', ' Milky Way', '.']
  assert [official.decode([i]) for i in ids[1]] == ['in ', '1', '234', '567']
  gpt2 = tokenizer.load(shared / 'gpt2')
  assert (gpt2.vocab_size, gpt2.end_of_text_id) == (50_257, 50_256)
  assert gpt2.encode_batch(['Hello world'])[0].tolist() == [15496, 995]
  assert gpt2.encode_batch(["I'm 1234567"])[0].tolist() == [40, 1101, 17031, 2231, 3134]


def test_hub_names_are_fetched(trained, folder, tmp_path, monkeypatch):
  export(trained, tmp_path)
  for offered, names in ((folder, {'tokenizer.json', 'tokenizer_config.json'}), (tmp_path, {'vocab.json', 'merges.txt'})):
    asked = set()

    def fetch(repository, name, offered=offered, asked=asked):
      assert repository == 'owner/name'
      if not (offered / name).exists():
        raise EntryNotFoundError(f'{name} not found')
      asked.add(name)
      return str(offered / name)

    monkeypatch.setattr(huggingface_hub, 'hf_hub_download', fetch)
    assert tokenizer.load('owner/name', SPECIAL).fingerprint == trained.fingerprint
    assert asked == names


def test_bad_files_are_one_line(tmp_path, monkeypatch):
  def offline(repository, name):
    raise LocalEntryNotFoundError('cannot find it in the cache\nand no network')

  monkeypatch.setattr(huggingface_hub, 'hf_hub_download', offline)
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'broken').mkdir()
  (tmp_path / 'broken' / 'tokenizer.json').write_text('{"model": ')
  other = tokenizers.Tokenizer(models.WordLevel({'日': 0}, '日'))
  other.save(str(tmp_path / 'words.json'))
  wrong = {
    tmp_path / 'missing': 'no such file or folder',
    'owner/name': 'the hub did not give it: cannot find it in the cache',
    tmp_path / 'empty': 'no tokenizer.json, and no vocab.json with merges.txt',
    tmp_path / 'broken': 'EOF',
    tmp_path / 'words.json': 'wants byte-level entries',
  }
  for path, message in wrong.items():
    with pytest.raises(ValueError, match=message) as error:
      tokenizer.load(path)
    assert str(path) in str(error.value)
    assert '\n' not in str(error.value)
