"""Shards that are not what they should be are refused in one line that names both sides."""

import json

import numpy as np
import pytest

from tests.data.small_shards import END, make_shards
from yxanul.data import shards


class Other:
  fingerprint, vocab_size = 'f00d' * 16, 50257


@pytest.fixture
def folder(tmp_path):
  make_shards(tmp_path, [5, 6, 7], shard_tokens=7)
  return tmp_path / 'train'


def change(path, **fields):
  path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def refused(folder, message, **arguments):
  with pytest.raises(ValueError, match=message) as error:
    shards.open(folder, **arguments)
  assert '\n' not in str(error.value)


def test_no_manifest(tmp_path):
  refused(tmp_path, r'holds no shards \(manifest.json is missing\)$')


def test_a_broken_manifest(folder):
  (folder / 'manifest.json').write_text('{"format"')
  refused(folder, r'manifest.json: not a manifest \(')
  (folder / 'manifest.json').write_text('[]')
  refused(folder, r"manifest.json: format 'list', wants 'yxanul shards 1'$")


def test_another_format(folder):
  change(folder / 'manifest.json', format='yxanul shards 9')
  refused(folder, r"format 'yxanul shards 9', wants 'yxanul shards 1'$")


def test_another_tokenizer(folder):
  message = r'train: made with tokenizer test of 1000 entries, got f00df00df00d of 50257 entries$'
  refused(folder, message, tokenizer=Other)


@pytest.mark.parametrize(('name', 'own', 'wrong'), [('vocab_size', 1000, 1001), ('end_of_text_id', END, END + 1)])
def test_a_number_that_is_not_the_tokenizers(folder, name, own, wrong):
  class Own:
    fingerprint, vocab_size, end_of_text_id = 'test', 1000, END

  assert shards.open(folder, Own).n_documents == 3
  change(folder / 'manifest.json', **{name: wrong})
  refused(folder, rf'manifest.json: {name} is {wrong}, the tokenizer has {own}$', tokenizer=Own)


def test_a_file_of_another_size(folder):
  with (folder / '00001.tokens.npy').open('ab') as file:
    file.write(b'xx')
  refused(folder, r'00001.tokens.npy: 146 bytes, the manifest says 144$')


def test_a_missing_file(folder):
  (folder / '00000.bytes.npy').unlink()
  refused(folder, r'00000.bytes.npy: No such file or directory, the manifest has it with 144 bytes$')


def test_hashes_that_do_not_fit_are_found_on_request(folder):
  shards.open(folder, verify=True)
  data = bytearray((folder / '00001.tokens.npy').read_bytes())
  data[-1] ^= 1
  (folder / '00001.tokens.npy').write_bytes(data)
  shards.open(folder)
  refused(folder, r'00001.tokens.npy: SHA-256 [0-9a-f]{64}, the manifest says [0-9a-f]{64}$', verify=True)


@pytest.mark.parametrize(('vocab_size', 'dtype'), [(1000, np.uint16), (65536, np.uint16), (65537, np.uint32)])
def test_tokens_take_as_little_room_as_the_vocabulary_lets_them(tmp_path, vocab_size, dtype):
  data = make_shards(tmp_path, [5, 2000, 7], vocab_size=vocab_size)
  assert data.tokens[0].dtype == dtype
  assert data.document(1).max() > vocab_size * 0.9
  assert [len(data.document(i)) for i in range(3)] == [5, 2000, 7]
