"""A table that inherits: the products with M and with its transpose, and an update of AdamW with them and without.

M is that of a drawn vocabulary, for which no tokenizer has to be there: each entry has two earlier parts, the earlier the
likelier, so that half a row has three ancestors on average, as in SuperBPE's 200,000 entries. The floor of the products is
bytes: M's columns and weights, the table in and out, once each. Rows that are read again may come from the cache.
"""

import functools
import warnings

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from yxanul.config.model_spec import ModelSpec
from yxanul.kernels.bench.measure import Case, Step, Subject, Work
from yxanul.optim.adamw import adamw
from yxanul.optim.inherit import Matrix, inheriting, matrices, product
from yxanul.optim.transform import Hyper, Transform, apply_updates

_SHARE, _TABLE = 0.7, 'embedding.table'
_PLAIN = 261  # entries that no merge makes: bytes, and what is not text
_EARLIER = 3  # of a part: how far back it lies, as a power of chance


def cases(model: ModelSpec, n_tokens: int, device: torch.device) -> list[Case]:
  """The number of tokens does not matter to a table."""
  parts_V2, shape = drawn_parts(model.vocab_size), (model.vocab_size, model.head_width)
  ways = {'ours': product, 'embedding_bag': _embedding_bag, 'sparse': _sparse} if device.type == 'cuda' else {'ours': product}
  make = functools.partial
  products = [Subject(name, make(_products, way, parts_V2, shape, device)) for name, way in ways.items()]
  updates = [Subject('ours', make(_update, parts_V2, shape, device)), Subject('adamw', make(_update, None, shape, device))]
  table, entries = 4 * shape[0] * shape[1], len(matrices(parts_V2, _SHARE)[0].columns)
  work = 2 * (8 * entries + 2 * table)
  return [
    Case('products', f'{entries:,} in M, both ways', products, Work(bytes=work)),
    Case('update', 'x'.join(map(str, shape)), updates, Work(bytes=7 * table + work)),
  ]


def drawn_parts(vocab_size: int) -> Tensor:
  """(V, 2) int64, as `data.tokenizer` has the parts of a real one; -1 for entries that no merge makes."""
  generator = torch.Generator().manual_seed(0)
  chance = torch.rand(vocab_size, 2, dtype=torch.float64, generator=generator)
  parts_V2 = (torch.arange(vocab_size).unsqueeze(1) * chance**_EARLIER).long()
  parts_V2[: min(_PLAIN, vocab_size // 2)] = -1
  return parts_V2


def _products(way, parts_V2: Tensor, shape: tuple[int, int], device: torch.device) -> Step:
  x_VR, both = torch.randn(shape, device=device), matrices(parts_V2, _SHARE, device)
  if way is _sparse:
    both = [as_csr(matrix) for matrix in both]
  return lambda: [way(matrix, x_VR) for matrix in both]


def _embedding_bag(matrix: Matrix, x_VR: Tensor) -> Tensor:
  """As `inherit.product`, by torch's own kernel."""
  rows_UH = x_VR.reshape(2 * len(x_VR), -1)
  sums = embedding_bag(matrix.columns, rows_UH, matrix.runs, mode='sum', per_sample_weights=matrix.weights)
  if len(matrix.runs) > len(matrix.first_run_U):
    sums = embedding_bag(matrix.run_numbers, sums, matrix.first_run_U, mode='sum', per_sample_weights=matrix.ones)
  return sums.view_as(x_VR)


def as_csr(matrix: Matrix) -> Tensor:
  """The same as a sparse tensor, of which torch's product is cuSPARSE's on a GPU."""
  starts_U = matrix.runs[matrix.first_run_U.long()]
  rows = torch.cat([starts_U, starts_U.new_tensor([len(matrix.columns)])])
  size = len(starts_U), len(starts_U)
  with warnings.catch_warnings():
    warnings.filterwarnings('ignore', message='Sparse CSR tensor support is in beta')
    return torch.sparse_csr_tensor(rows, matrix.columns, matrix.weights, size, check_invariants=False)


def _sparse(matrix: Tensor, x_VR: Tensor) -> Tensor:
  return (matrix @ x_VR.reshape(2 * len(x_VR), -1)).view_as(x_VR)


def _update(parts_V2: Tensor | None, shape: tuple[int, int], device: torch.device) -> Step:
  optimizer: Transform = adamw(0.9, 0.99, 1e-8, {_TABLE: 0.0}, {_TABLE: 1.0})
  if parts_V2 is not None:
    optimizer = inheriting(optimizer, _TABLE, parts_V2, _SHARE, device)
  params, gradients = ({_TABLE: torch.randn(shape, device=device)} for _ in range(2))
  state = optimizer.init(params)
  update = torch.compile(optimizer.update, dynamic=False) if device.type == 'cuda' else optimizer.update
  hyper = Hyper(*(torch.tensor(value, device=device) for value in (1e-4, 1.0, 1.0, 1.0)))

  @torch.no_grad()
  def step():
    apply_updates(params, update(gradients, state, params, hyper)[0])

  return step
