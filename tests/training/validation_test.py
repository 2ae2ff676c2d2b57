"""Bits per byte by its rule, computed again the long way."""

import json
import math

import pytest
import torch

from tests import tiny
from yxanul.data.prepare import prepare
from yxanul.kernels.capabilities import Engines
from yxanul.model import transformer
from yxanul.training.step import Text, plain_numerics
from yxanul.training.stop import StopRequest
from yxanul.training.validation import Validation

ENGINES = Engines('fp32', 'sdpa', 'chunked')
DOCUMENTS = ['Ein Häuschen, ein Baum — und 1234567 Äpfel. 🍎', 'Plain words, then more plain words.', 'x', 'naïve café ' * 5]


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  folder = tmp_path_factory.mktemp('text')
  held_out = folder / 'held_out.jsonl'
  held_out.write_text(''.join(json.dumps({'text': text}) + '\n' for text in DOCUMENTS))
  train = folder / 'train.jsonl'
  train.write_text(
    ''.join(json.dumps({'text': f'{i} plain words and more apples, trees number {i * i}'}) + '\n' for i in range(400))
  )
  spec = tiny.spec(data__source=str(train), data__validation_source=str(held_out))
  return prepare(spec.data, folder / 'data')


@pytest.mark.parametrize('seq_len', [4, 16, 192])
def test_bits_per_byte_the_long_way(prepared, seq_len):
  spec = tiny.spec(evaluation__max_tokens=100_000)
  text = Text(prepared.tokenizer.end_of_text_id, torch.from_numpy(prepared.tokenizer.token_bytes))
  params = transformer.init(spec.model, torch.Generator().manual_seed(0))
  validation = Validation(spec, prepared.validation, ENGINES, text, torch.device('cpu'), StopRequest())
  got = validation(params, {}, seq_len)

  # The stream is an end-of-text, then every document and an end-of-text after it; rows of seq_len, nothing carried over.
  end = text.end_of_text_id
  shards = prepared.validation
  stream = [end, *(int(t) for i in range(shards.n_documents) for t in [*shards.document(i), end])]
  nats, scored = 0.0, 0
  for begin in range(0, len(stream) - 1, seq_len):
    row = stream[begin : begin + seq_len + 1]
    logits = transformer.apply(params, torch.tensor([row[:-1]]), spec.model, plain_numerics(spec, ENGINES))[0]
    for position, target in enumerate(row[1:]):
      if target != end:
        nats -= logits[position].log_softmax(-1)[target].item()
        scored += 1
  n_bytes = sum(len(text.encode()) for text in DOCUMENTS)
  assert got['val_bytes'] == n_bytes
  assert scored == sum(len(ids) for ids in prepared.tokenizer.encode_batch(DOCUMENTS))
  assert got['val_bpb'] == pytest.approx(nats / math.log(2) / n_bytes, rel=1e-5)
  assert got['val_loss'] == pytest.approx(nats / scored, rel=1e-5)


def test_a_request_to_stop_ends_an_evaluation(prepared):
  spec = tiny.spec()
  text = Text(prepared.tokenizer.end_of_text_id, torch.from_numpy(prepared.tokenizer.token_bytes))
  stop = StopRequest()
  stop.name = 'SIGTERM'
  validation = Validation(spec, prepared.validation, ENGINES, text, torch.device('cpu'), stop)
  assert validation(transformer.init(spec.model, torch.Generator().manual_seed(0)), {}, 16) is None
