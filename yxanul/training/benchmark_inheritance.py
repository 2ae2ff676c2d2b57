"""A table that inherits: the products with M and with its transpose, and an update of AdamW with them and without.

M is that of a drawn vocabulary, for which no tokenizer has to be there: each entry has two earlier parts, the earlier the
likelier, so that half a row has three ancestors on average, as in SuperBPE's 200,000 entries. The floor of the products is
bytes: M's columns and weights, the table in and out, once each. Rows that are read again may come from the cache. An update has
32 bytes a parameter besides, as in `benchmark_optimizer`.
"""

import functools
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from yxanul.config.model_spec import ModelSpec
from yxanul.kernels.bag_sums import bag_sums, bag_sums_by_torch
from yxanul.kernels.bench.measure import Case, Step, Subject, Work
from yxanul.optim.adamw import adamw
from yxanul.optim.inherit import BagSums, Matrix, half_rows, inheriting, matrices, product
from yxanul.training.benchmark_optimizer import updating

Product = Callable[[Tensor], Tensor]

_SHARE, _TABLE = 0.7, 'embedding.table'
_PLAIN = 261  # entries that no merge makes: bytes, and what is not text
_EARLIER = 3  # of a part: how far back it lies, as a power of chance


def cases(model: ModelSpec, n_tokens: int, device: torch.device) -> list[Case]:
  """The number of tokens does not matter to a table."""
  parts_V2, shape = drawn_parts(model.vocab_size), (model.vocab_size, model.head_width)
  both = matrices(parts_V2, _SHARE)
  make = functools.partial
  ways = {'ours': make(by_bags, bag_sums)}
  if device.type == 'cuda':
    ways |= {'embedding_bag': make(by_bags, bag_sums_by_torch), 'cusparse': by_sparse_tensor}
  products = [Subject(name, make(_products, way, both, shape, device)) for name, way in ways.items()]
  updates = [Subject('ours', make(_update, parts_V2, shape, device)), Subject('adamw', make(_update, None, shape, device))]
  n, entries = shape[0] * shape[1], len(both[0].columns)
  moved = 2 * (8 * entries + 8 * n)
  return [
    Case('products', f'{entries:,} in M, both ways', products, Work(bytes=moved)),
    Case('update', 'x'.join(map(str, shape)), updates, Work(bytes=32 * n + moved)),
  ]


def drawn_parts(vocab_size: int) -> Tensor:
  """(V, 2) int64, as `data.tokenizer` has the parts of a real one; -1 for entries that no merge makes."""
  generator = torch.Generator().manual_seed(0)
  chance = torch.rand(vocab_size, 2, dtype=torch.float64, generator=generator)
  parts_V2 = (torch.arange(vocab_size).unsqueeze(1) * chance**_EARLIER).long()
  parts_V2[: min(_PLAIN, vocab_size // 2)] = -1
  return parts_V2


def by_bags(bag_sums: BagSums, matrix: Matrix) -> Product:
  """As the table's optimizer multiplies, with this kernel."""
  return lambda x_VR: product(matrix, x_VR, bag_sums)


def by_sparse_tensor(matrix: Matrix) -> Product:
  """torch's product with a sparse tensor, which is cuSPARSE's on a GPU."""
  starts_U = matrix.runs[matrix.first_run_U.long()]
  rows = torch.cat([starts_U, starts_U.new_tensor([len(matrix.columns)])])
  size = len(starts_U), len(starts_U)
  with warnings.catch_warnings():
    warnings.filterwarnings('ignore', message='Sparse (CSR tensor support is in beta|invariant checks are)')
    sparse_UU = torch.sparse_csr_tensor(rows, matrix.columns, matrix.weights, size, check_invariants=False)
  return lambda x_VR: (sparse_UU @ half_rows(x_VR)).view_as(x_VR)


def _products(
  way: Callable[[Matrix], Product], both: tuple[Matrix, Matrix], shape: tuple[int, int], device: torch.device
) -> Step:
  x_VR = torch.randn(shape, device=device)
  ready = [way(Matrix(*(part.to(device) for part in matrix))) for matrix in both]
  return lambda: [multiply(x_VR) for multiply in ready]


def _update(parts_V2: Tensor | None, shape: tuple[int, int], device: torch.device) -> Step:
  optimizer = adamw(0.9, 0.99, 1e-8, {_TABLE: 0.0}, {_TABLE: 1.0})
  if parts_V2 is not None:
    optimizer = inheriting(optimizer, _TABLE, parts_V2, _SHARE, device)
  params, gradients = ({_TABLE: torch.randn(shape, device=device)} for _ in range(2))
  return updating(optimizer, params, gradients, device)
