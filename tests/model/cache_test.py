"""Decoding with a cache against reading every row anew."""

import pytest
import torch

from tests.model.transformer_test import GPT2, LLAMA, make
from yxanul.kernels.linear import Linears
from yxanul.model import transformer
from yxanul.model.cache import extend, init_cache
from yxanul.model.transformer import Numerics

CPU = torch.device('cpu')


@pytest.mark.parametrize('spec', [LLAMA, GPT2], ids=['llama', 'gpt2'])
def test_rows_of_any_length_read_in_pieces_equal_rows_read_whole(spec):
  params, _ = make(spec)
  numerics = Numerics(Linears(spec))
  generator = torch.Generator().manual_seed(3)
  rows = [torch.randint(0, spec.vocab_size, (n,), generator=generator) for n in (23, 5, 14)]
  whole = [transformer.hidden(params, row[None], spec, numerics)[0] for row in rows]
  cache = init_cache(spec, len(rows), 40, torch.float32, CPU)
  read = [0, 0, 0]
  for counts in ((9, 2, 5), (1, 1, 1), (0, 1, 8), (13, 1, 0)):
    tokens = torch.full((3, max(counts)), 96)
    for i, (row, at, count) in enumerate(zip(rows, read, counts, strict=True)):
      tokens[i, :count] = row[at : at + count]
    x_BTD, cache = extend(params, tokens, torch.tensor(counts), cache, spec, numerics)
    for i, count in enumerate(counts):
      expected = whole[i][read[i] : read[i] + count]
      torch.testing.assert_close(x_BTD[i, :count], expected, atol=1e-5, rtol=1e-5)
      read[i] += count
    assert cache.lengths_B.tolist() == read
  assert read == [23, 5, 14]


def test_the_cache_holds_the_key_value_heads_alone():
  cache = init_cache(LLAMA, 2, 10, torch.bfloat16, CPU)
  assert cache.keys_LBSKC.shape == (LLAMA.n_layers, 2, 10, LLAMA.n_kv_heads, LLAMA.head_dim)
  assert LLAMA.n_kv_heads < LLAMA.n_heads
