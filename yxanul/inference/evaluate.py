"""Bits per byte of any text, by source: the rule is `training.validation`'s, and so are batches and step."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch

from yxanul.config.spec import DataSpec
from yxanul.data import sources, sources_hub
from yxanul.data.batches import Documents, evaluation_batches
from yxanul.data.sources_document import START, Document, from_row
from yxanul.data.tokenizer import Tokenizer
from yxanul.inference.model import Model
from yxanul.training.metrics import bits_per_byte, ppl_gpt2_equivalent
from yxanul.training.step import Text, make_eval_step

ALL = 2**62  # tokens: no limit
_ENCODED_AT_ONCE = 256


@dataclasses.dataclass(frozen=True)
class Tokenized:
  """Documents in memory, in the form that shards have on disk (`batches.Documents`)."""

  end_of_text_id: int
  sources: tuple[str, ...]
  tokens: list[np.ndarray]
  lengths: np.ndarray
  byte_counts: np.ndarray
  source_ids: np.ndarray


def read_source(source: str, spec: DataSpec) -> Iterator[Document]:
  """The documents of anything that `data.source` may name, as they are: no filter, no split. From the hub as a stream.

  Raises:
    ValueError: in one line: nothing is there, or it cannot be read.
  """
  if sources.is_hub_name(source):
    dataset = sources_hub.parse(source)
    for row, _ in sources_hub.rows(lambda: sources_hub.open_stream(dataset), None, source):
      yield from_row(row, spec, dataset.name, START)
    return
  try:
    found = sources.find(source)
  except ValueError as error:
    raise ValueError(str(error).replace('config.data.source', '--source')) from None
  yield from sources.documents(found, spec)


def tokenize(documents: Iterable[Document], tokenizer: Tokenizer, max_tokens: int) -> Tokenized:
  """Reads documents until they have `max_tokens` tokens, end-of-text tokens included; empty ones are left out.

  Raises:
    ValueError: there is no text.
  """
  names: dict[str, int] = {}
  tokens, sizes, ids, total = [], [], [], 0
  waiting: list[Document] = []

  def encode() -> int:
    for document, encoded in zip(waiting, tokenizer.encode_batch([d.text for d in waiting]), strict=True):
      tokens.append(np.append(encoded, np.int32(tokenizer.end_of_text_id)))
      sizes.append(len(document.text.encode()))
      ids.append(names.setdefault(document.source, len(names)))
    read = sum(map(len, tokens[-len(waiting) :])) if waiting else 0
    waiting.clear()
    return read

  for document in documents:
    if document.text:
      waiting.append(document)
    if len(waiting) == _ENCODED_AT_ONCE:
      total += encode()
      if total >= max_tokens:
        break
  encode()
  if not tokens:
    raise ValueError('there is no text to evaluate')
  lengths = np.array([len(one) for one in tokens])
  return Tokenized(
    tokenizer.end_of_text_id, tuple(names), [np.concatenate(tokens)], lengths, np.array(sizes), np.array(ids, np.int64)
  )


def evaluate(
  model: Model,
  documents: Documents,
  seq_len: int,
  stride: int | None = None,
  max_tokens: int = ALL,
  max_bytes: int | None = None,
  progress: Callable[[str, float, float | None], None] = lambda phase, done, total: None,
) -> list[dict[str, Any]]:
  """Scores documents in rows of `seq_len` tokens that start `stride` apart (`batches.evaluation_batches`).

  Returns:
    A row for each source, and one for 'all' at the end: source, documents, tokens (scored: no end-of-text), bytes, nats,
    val_bpb, ppl_gpt2_equivalent.

  Raises:
    ValueError: the rows are longer than the model's positions, or the stride than the rows.
  """
  if not 1 <= seq_len <= model.spec.max_positions:
    raise ValueError(f'--seq_len: got {seq_len}, wants 1 to {model.spec.max_positions} (model.max_positions)')
  if stride is not None and not 1 <= stride <= seq_len:
    raise ValueError(f'--stride: got {stride}, wants 1 to the row of {seq_len} tokens')
  experiment = model.experiment
  plain = dataclasses.replace(experiment.precision, fp8_evaluation=False)
  rows = max(1, experiment.evaluation.batch_size * experiment.evaluation.seq_len // seq_len)
  batches = evaluation_batches(documents, seq_len, rows, max_tokens, stride, max_bytes)
  text = Text(model.tokenizer.end_of_text_id, torch.from_numpy(model.tokenizer.token_bytes).to(model.device))
  step = make_eval_step(dataclasses.replace(experiment, precision=plain), model.any_length, text)
  n_sources = len(documents.sources)
  nats_S = torch.zeros(n_sources, dtype=torch.float64, device=model.device)
  counted_S = torch.zeros(n_sources, dtype=torch.int64)
  for i, batch in enumerate(batches, start=1):
    inputs, targets, mask, source = (x.to(model.device) for x in batch)
    nats_S.index_add_(0, source.flatten().long(), step(model.params, {}, inputs, targets, mask).flatten())
    counted_S += torch.bincount(batch.sources[batch.mask].long(), minlength=n_sources)
    progress('evaluate', i, len(batches))
  documents_S = np.bincount(documents.source_ids[: batches.n_documents], minlength=n_sources)
  nats, tokens = nats_S.tolist(), counted_S.tolist()
  found = [
    _row(name, int(documents_S[i]), tokens[i], batches.bytes_by_source[name], nats[i])
    for i, name in enumerate(documents.sources)
    if name in batches.bytes_by_source
  ]
  return [*found, _row('all', batches.n_documents, sum(tokens), batches.n_bytes, sum(nats))]


def _row(source: str, n_documents: int, tokens: int, n_bytes: int, nats: float) -> dict[str, Any]:
  bpb = bits_per_byte(nats, n_bytes)
  row = {'source': source, 'documents': n_documents, 'tokens': tokens, 'bytes': n_bytes, 'nats': nats}
  return row | {'bytes_per_token': n_bytes / tokens, 'val_bpb': bpb, 'ppl_gpt2_equivalent': ppl_gpt2_equivalent(bpb)}
