"""One class over the `tokenizers` library's byte-level BPE: what the loader, the model and the records need of it.

How text is split before merges apply is not part of vocab.json + merges.txt, so `load` decides by what the entries show.
An entry with white space between two other characters is a superword: the file is SuperBPE's, whose splits are groups of
digits only (`superword_splits`). Without one, the file is read as GPT-2's, with GPT-2's own regular expression. A
tokenizer.json says its splits itself.
"""

import functools
import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from yxanul.config.spec import TokenizerSpec

_NUMBERS = r'\p{N}+'
_THREES = r'(?=(\d{3})+(?!\d))'  # a boundary before every third digit, counted from the right
# Letters or marks, each with at most one space before them; white space. Numbers are apart already. From the tokenizers
# of the paper (github.com/PythonNut/superbpe): its baselines, and its stage 1.
_WORDS = r' ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+'
_SUPERWORD = re.compile(r'\S\s+\S')
_HUB_NAME = re.compile(r'\w[\w.-]*(/[\w.-]+)?')
_FILES = ('tokenizer.json', 'tokenizer_config.json', 'vocab.json', 'merges.txt')
# Every byte of text that there is, cases, spaces, and what normalizers would change.
_PROBE = ''.join(map(chr, range(0x250))) + '  e\u0301 ﬁ x² 1234567\r\n\n 日本 \U0001f680\U000fffff <|endoftext|> the The'
END_OF_TEXT = '<|endoftext|>'
_LETTER = 'x'


def _splits(pattern: str) -> pre_tokenizers.PreTokenizer:
  return pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(Regex(_NUMBERS), 'isolated'),
      pre_tokenizers.Split(Regex(pattern), 'isolated'),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )


def word_splits() -> pre_tokenizers.PreTokenizer:
  """Splits into words, marks, white space and numbers (digits in threes from the right): stage 1 and plain BPE."""
  return _splits(f'{_THREES}|{_WORDS}')


def superword_splits() -> pre_tokenizers.PreTokenizer:
  """Splits off numbers (digits in threes from the right) and nothing else: stage 2, and every SuperBPE tokenizer."""
  return _splits(_THREES)


@functools.cache
def _byte_of_character() -> dict[str, int]:
  """Byte-level BPE writes each byte as one printable character: the ones that are printable as themselves, others moved."""
  kept = [b for b in range(256) if chr(b).isprintable() and chr(b) != ' ']
  moved = [b for b in range(256) if b not in kept]
  return {chr(b): b for b in kept} | {chr(256 + i): b for i, b in enumerate(moved)}


@functools.cache
def _character_of_byte() -> dict[int, str]:
  return {byte: character for character, byte in _byte_of_character().items()}


def to_bytes(entry: str) -> bytes:
  """The bytes that a byte-level entry stands for."""
  return bytes(_byte_of_character()[character] for character in entry)


class Tokenizer:
  """A byte-level BPE tokenizer with its special tokens.

  Text is always encoded as plain text: the spelling of a special token in it becomes ordinary tokens. No token is added
  at either end.
  """

  def __init__(self, inner: tokenizers.Tokenizer, end_of_text: str):
    """
    Args:
      inner: a byte-level BPE, its special tokens added.
      end_of_text: the special token that ends a document.

    Raises:
      ValueError: an entry is not byte-level, an id is missing or there twice, or `end_of_text` is no special token.
    """
    inner.encode_special_tokens = True
    inner.no_padding()
    inner.no_truncation()
    special = {i for i, token in inner.get_added_tokens_decoder().items() if token.special}
    self.inner = inner
    self.end_of_text = end_of_text
    self.vocab_size = inner.get_vocab_size(with_added_tokens=True)
    self.end_of_text_id = inner.token_to_id(end_of_text)
    if self.end_of_text_id not in special:
      raise ValueError(f'tokenizer: got end of text {end_of_text!r}, wants one of its special tokens')
    ids = sorted(inner.get_vocab(with_added_tokens=True).values())
    if ids != list(range(self.vocab_size)):
      raise ValueError('tokenizer: wants each id from 0 up exactly once')
    self.token_bytes = np.zeros(self.vocab_size, np.int32)  # (V,): UTF-8 bytes of each entry, 0 for special tokens
    added, plain = inner.get_added_tokens_decoder(), _byte_of_character().keys()
    for entry, i in inner.get_vocab(with_added_tokens=True).items():
      if i in special:
        continue
      if i in added:
        self.token_bytes[i] = len(entry.encode())
      elif plain >= set(entry):
        self.token_bytes[i] = len(entry)
      else:
        raise ValueError(f'tokenizer: got entry {i}, {entry!r}, wants byte-level entries (as GPT-2 and SuperBPE have)')

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Token ids of each text, int32 (T,)."""
    encoded = self.inner.encode_batch_fast(list(texts), add_special_tokens=False)
    return [np.array(e.ids, np.int32) for e in encoded]

  def encode_beginnings(self, beginnings: Sequence[bytes]) -> list[list[int] | None]:
    """Token ids of texts that may break off inside a character; None where no text begins like this.

    A character of which only the first bytes are there counts as a letter where splits ask for its kind.
    """
    texts, cut = [], {}
    for i, data in enumerate(beginnings):
      try:
        texts.append(data.decode())
      except UnicodeDecodeError as error:
        texts.append(data[: error.start].decode())
        cut[i] = data[error.start :] if error.reason == 'unexpected end of data' else None
    encoded = [e.ids for e in self.inner.encode_batch_fast(texts, add_special_tokens=False)]
    for i, rest in cut.items():
      encoded[i] = self._encode_cut(texts[i], rest) if rest else None
    return encoded

  def _encode_cut(self, text: str, rest: bytes) -> list[int]:
    pieces = [piece for piece, _ in self.inner.pre_tokenizer.pre_tokenize_str(text + _LETTER)]
    pieces[-1] = pieces[-1].removesuffix(_LETTER) + ''.join(_character_of_byte()[b] for b in rest)
    return [token.id for piece in pieces for token in self.inner.model.tokenize(piece)]

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """The text of token ids, special tokens spelt out; bytes that are no UTF-8 become U+FFFD."""
    return self.inner.decode([int(i) for i in ids], skip_special_tokens=False)

  @functools.cached_property
  def entries(self) -> list[bytes]:
    """The bytes of each id, which need not be whole characters; none for the special tokens."""
    plain = {i: entry for entry, i in self.inner.get_vocab(with_added_tokens=False).items() if self.token_bytes[i]}
    added = {i: token.content.encode() for i, token in self.inner.get_added_tokens_decoder().items() if self.token_bytes[i]}
    return [added[i] if i in added else to_bytes(plain.get(i, '')) for i in range(self.vocab_size)]

  @functools.cached_property
  def fingerprint(self) -> str:
    """SHA-256 of all that decides ids: entries, merges, splits, special tokens; not of how a library version writes them."""
    content = json.loads(self.inner.to_str())
    model = content['model']
    added = [(token['id'], token['content'], token['special']) for token in content['added_tokens']]
    all_of_it = [sorted(model['vocab'].items()), _merges(model), content['normalizer'], content['pre_tokenizer'], added]
    text = json.dumps([*all_of_it, self.end_of_text], sort_keys=True, separators=(',', ':'))
    return hashlib.sha256(text.encode()).hexdigest()

  @functools.cached_property
  def parts(self) -> np.ndarray:
    """The left and the right one of the entries that each is merged from, (V, 2) int64; -1 for those that no merge makes."""
    model = json.loads(self.inner.to_str())['model']
    ids, parts = model['vocab'], np.full((self.vocab_size, 2), -1, np.int64)
    for left, right in reversed(_merges(model)):  # the first of several merges to an entry is the one that counts
      parts[ids[left + right]] = ids[left], ids[right]
    return parts

  def save(self, folder: str | Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json, which `tokenizers` and `transformers` load as they are."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
      'tokenizer_class': 'PreTrainedTokenizerFast',
      'bos_token': None,
      'eos_token': self.end_of_text,
      'unk_token': None,
      'pad_token': None,
      'add_prefix_space': False,
      'clean_up_tokenization_spaces': False,
      'model_max_length': int(1e30),
    }
    _write(folder / 'tokenizer_config.json', json.dumps(config, indent=2) + '\n')
    _write(folder / 'tokenizer.json', self.inner.to_str())


def _merges(model: dict[str, Any]) -> list[list[str]]:
  """The merges of a tokenizer.json, in order, as either version of the format writes them."""
  return [merge.split(' ') if isinstance(merge, str) else merge for merge in model['merges']]


def _write(path: Path, text: str) -> None:
  """All of the file or none of it."""
  part = path.with_name(path.name + '.part')
  part.write_text(text, encoding='utf-8')
  os.replace(part, path)


def build(
  vocabulary: dict[str, int],
  merges: list[tuple[str, str]],
  splits: pre_tokenizers.PreTokenizer,
  special_tokens: Sequence[str],
) -> Tokenizer:
  """A tokenizer from byte-level entries and merges; special tokens that are no entries yet come after them."""
  inner = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
  inner.pre_tokenizer = splits
  inner.decoder = decoders.ByteLevel()
  return _with_special(inner, special_tokens)


def _with_special(inner: tokenizers.Tokenizer, special_tokens: Sequence[str]) -> Tokenizer:
  inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special_tokens])
  return Tokenizer(inner, special_tokens[-1])


# --- loading ---------------------------------------------------------------------------------------------------------


def load(path: str | Path, special_tokens: Sequence[str] | None = None) -> Tokenizer:
  """Loads a tokenizer.json, a folder with one or with vocab.json and merges.txt, or a hub name.

  Args:
    path: file, folder, or hub name ('owner/name').
    special_tokens: the last one ends a document; those that are no entries yet are appended in this order. None: the
      tokenizer's own end of text where it has one ('<|endoftext|>', or `eos_token` of tokenizer_config.json), and
      otherwise the default five.

  Raises:
    ValueError: in one line: nothing is there, a file is broken, or it is no byte-level BPE.
  """
  where = Path(path).expanduser()
  if where.exists():
    folder = where if where.is_dir() else where.parent
    files = {name: folder / name for name in _FILES if (folder / name).is_file()}
    if where.is_file():
      files['tokenizer.json'] = where
  elif _HUB_NAME.fullmatch(str(path)):
    files = _from_hub(str(path))
  else:
    raise ValueError(f'tokenizer {path}: no such file or folder')
  try:
    if 'tokenizer.json' in files:
      inner = tokenizers.Tokenizer.from_file(str(files['tokenizer.json']))
    elif {'vocab.json', 'merges.txt'} <= files.keys():
      inner = _from_merges(files['vocab.json'], files['merges.txt'])
    else:
      raise ValueError('no tokenizer.json, and no vocab.json with merges.txt')
    found = _with_special(inner, special_tokens or _own_special(inner, files))
    _try(found)
    return found
  except BaseException as error:
    # The library raises plain Exception for a broken file, or panics, which is no Exception at all.
    if not isinstance(error, Exception) and type(error).__name__ != 'PanicException':
      raise
    raise ValueError(f'tokenizer {path}: {str(error).splitlines()[0]}') from None


def _try(found: Tokenizer) -> None:
  """Raises ValueError unless text becomes tokens and the same text again, none of them special."""
  if found.decode(found.encode_batch([_PROBE])[0]) != _PROBE:
    raise ValueError('text does not come back from its tokens as it was')
  special = [token.content for token in found.inner.get_added_tokens_decoder().values() if token.special]
  for text, ids in zip(special, found.encode_batch(special), strict=True):
    if found.token_bytes[ids].sum() != len(text.encode()):
      raise ValueError(f'{text!r} is a special token and an entry of text as well')


def _own_special(inner: tokenizers.Tokenizer, files: dict[str, Path]) -> Sequence[str]:
  if 'tokenizer_config.json' in files:
    token = json.loads(files['tokenizer_config.json'].read_text(encoding='utf-8')).get('eos_token')
    token = token['content'] if isinstance(token, dict) else token
    if token:
      return (token,)
  return (END_OF_TEXT,) if inner.token_to_id(END_OF_TEXT) is not None else TokenizerSpec().special_tokens


def _from_merges(vocab_file: Path, merges_file: Path) -> tokenizers.Tokenizer:
  vocabulary, merges = models.BPE.read_file(str(vocab_file), str(merges_file))
  texts = (to_bytes(a + b).decode('utf-8', 'replace') for a, b in merges)
  superwords = any(_SUPERWORD.search(text) for text in texts)
  inner = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
  inner.pre_tokenizer = superword_splits() if superwords else pre_tokenizers.ByteLevel(add_prefix_space=False)
  inner.decoder = decoders.ByteLevel()
  return inner


def _from_hub(name: str) -> dict[str, Path]:
  from huggingface_hub import hf_hub_download
  from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

  files = {}
  try:
    for file in _FILES:
      try:
        files[file] = Path(hf_hub_download(name, file))
      except LocalEntryNotFoundError:
        raise  # no network: says so, rather than that the file is missing
      except EntryNotFoundError:
        continue
      if 'tokenizer.json' in files and file == 'tokenizer_config.json':
        break
  except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
    reason = str(error).splitlines()[0]
    raise ValueError(f'tokenizer {name}: no such file or folder, and the hub did not give it: {reason}') from None
  return files
