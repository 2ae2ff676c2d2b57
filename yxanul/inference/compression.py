"""What a general compressor needs for the same held-out text: a mark that any reader can reproduce."""

import lzma

from yxanul.data.prepare import Prepared
from yxanul.data.shards import Shards


def _text(tokenizer, shards: Shards) -> bytes:
  """The documents as they were; byte-level tokens without special ones decode to exactly the text."""
  text = ''.join(tokenizer.decode(shards.document(i)) for i in range(shards.n_documents)).encode()
  assert len(text) == shards.byte_counts.sum(), 'decoding is not the inverse of encoding'
  return text


def _xz_bytes(data: bytes) -> int:
  return len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))


def xz_marks(prepared: Prepared) -> dict[str, float]:
  """Bits per byte of `xz -9e` on the held-out text.

  Returns:
    `xz_bpb`: on the held-out text alone. `xz_given_training_bpb`: what it adds to the compressed training text when both
    are compressed in one go, which is the fairer mark for a model that has read the training text.
  """
  train, held_out = (_text(prepared.tokenizer, part) for part in (prepared.train, prepared.validation))
  added = _xz_bytes(train + held_out) - _xz_bytes(train)
  return {
    'xz_bpb': 8 * _xz_bytes(held_out) / len(held_out),
    'xz_given_training_bpb': 8 * added / len(held_out),
  }
