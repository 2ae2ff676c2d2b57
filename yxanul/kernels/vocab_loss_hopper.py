"""The two kernels of `vocab_loss_triton` in Gluon, for Hopper's tensor cores (wgmma) and copy engine (TMA).

Triton waits for a product before it takes exponentials of it, so tensor cores and exponentials take turns. Here (after
FlashAttention-3, arXiv 2407.08608) a program is three partitions: a producer that streams tiles into a ring in shared memory,
and two warpgroups of 64 rows each that keep their own pace, so that one multiplies while the other exponentiates; and inside a
warpgroup the second product of a tile runs under the exponentials of the next.

Shapes: as in `vocab_loss_triton`. ROWS rows of a warpgroup (tokens forward, entries backward), COLUMNS of a streamed tile.
"""

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

LOG2E = gl.constexpr(1.4426950408889634)
LN2 = gl.constexpr(0.6931471805599453)
ROWS = gl.constexpr(64)
COLUMNS = 128
RANK = 128  # what the kernels are laid out for
STAGES = 3
# Threads: two consuming warpgroups and the producer's. 168 registers each are what a multiprocessor has for 384 threads; the
# producer gives all but 24 of its own to the consumers.
LAUNCH = {'num_warps': 4, 'maxnreg': 168}
CONSUMER_REGISTERS, PRODUCER_REGISTERS = gl.constexpr(240), gl.constexpr(24)


def forward(x_NR: Tensor, table_VR: Tensor, targets_N: Tensor, weights_N: Tensor, with_gradient: bool):
  """As `vocab_loss_triton.forward`."""
  n_tokens, n_vocab = len(x_NR), len(table_VR)
  nll_N, bias_N, dx_NR = torch.empty_like(weights_N), torch.empty_like(weights_N), torch.empty_like(x_NR)
  _forward_kernel[(triton.cdiv(n_tokens, 2 * 64),)](
    _tiles(x_NR, 64), _tiles(table_VR, COLUMNS), table_VR, targets_N, weights_N, nll_N, bias_N, dx_NR, n_tokens, n_vocab,
    STAGES, with_gradient, **LAUNCH,
  )  # fmt: skip
  return nll_N, bias_N, dx_NR


def table_gradient(x_NR: Tensor, table_VR: Tensor, bias_N: Tensor, dloss: Tensor, dtable_VR: Tensor) -> None:
  """As `vocab_loss_triton.table_gradient`."""
  n_tokens, n_vocab = len(x_NR), len(table_VR)
  biases = TensorDescriptor.from_tensor(bias_N, [COLUMNS], gl.NVMMASharedLayout(0, 32, rank=1))
  _table_gradient_kernel[(triton.cdiv(n_vocab, 2 * 64),)](
    _tiles(table_VR, 64), _tiles(x_NR, COLUMNS), biases, dloss, dtable_VR, n_tokens, n_vocab, STAGES, **LAUNCH
  )


def _tiles(x_MR: Tensor, rows: int) -> TensorDescriptor:
  block = [rows, x_MR.shape[1]]
  return TensorDescriptor.from_tensor(x_MR, block, gl.NVMMASharedLayout.get_default_for(block, gl.bfloat16))


@gluon.jit
def _forward_kernel(
  x_tiles, table_tiles, table_ptr, targets_ptr, weights_ptr, nll_ptr, bias_ptr, dx_ptr, n_tokens, n_vocab,
  STAGES: gl.constexpr, WITH_GRADIENT: gl.constexpr,
):  # fmt: skip
  x_pair, ring, held, full, empty = _allocate(x_tiles, table_tiles, STAGES)
  start = gl.program_id(0) * 2 * ROWS
  _load_pair(x_tiles, start, x_pair, held)
  n_tiles = gl.cdiv(n_vocab, ring.type.shape[1])
  pointers = (table_ptr, targets_ptr, weights_ptr, nll_ptr, bias_ptr, dx_ptr)
  gl.warp_specialize(
    [
      (_forward_rows, (x_pair.index(0), held, ring, full, empty, start, n_tiles, n_tokens, n_vocab, pointers, WITH_GRADIENT)),
      (
        _forward_rows,
        (x_pair.index(1), held, ring, full, empty, start + ROWS, n_tiles, n_tokens, n_vocab, pointers, WITH_GRADIENT),
      ),
      (_stream_table, (table_tiles, ring, full, empty, n_tiles)),
    ],
    [4, 1],
    [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
  )


@gluon.jit
def _forward_rows(x, held, ring, full, empty, start, n_tiles, n_tokens, n_vocab, pointers, WITH_GRADIENT: gl.constexpr):
  table_ptr, targets_ptr, weights_ptr, nll_ptr, bias_ptr, dx_ptr = pointers
  STAGES: gl.constexpr = ring.type.shape[0]
  COLUMNS: gl.constexpr = ring.type.shape[1]
  RANK: gl.constexpr = ring.type.shape[2]
  tile: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, COLUMNS, 16])
  out: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, RANK, 16])
  operand: gl.constexpr = gl.DotOperandLayout(0, out, 2)
  out_row: gl.constexpr = gl.SliceLayout(1, out)

  zero = gl.zeros([ROWS, COLUMNS], gl.float32, tile)
  top = gl.full([ROWS], float('-inf'), gl.float32, gl.SliceLayout(1, tile))  # running maximum, in powers of two
  total = gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, tile))
  mean = gl.zeros([ROWS, RANK], gl.float32, out)
  mbarrier.wait(held, 0)
  mbarrier.wait(full.index(0), 0)
  logits = warpgroup_mma(x, ring.index(0).permute((1, 0)), zero, use_acc=False)
  p, shrink, top, total = _online_softmax(logits, top, total, n_vocab, n_tiles == 1)
  p = gl.convert_layout(p.to(ring.dtype), operand)
  mbarrier.wait(full.index(1 % STAGES), 0, pred=n_tiles > 1)
  for i in range(n_tiles - 1):
    current = i % STAGES
    coming = warpgroup_mma(x, ring.index((i + 1) % STAGES).permute((1, 0)), zero, use_acc=False, is_async=True)
    if WITH_GRADIENT:
      running = warpgroup_mma(p, ring.index(current), mean, is_async=True)
      logits = warpgroup_mma_wait(1, deps=(coming,))
    else:
      logits = warpgroup_mma_wait(0, deps=(coming,))
    next_p, shrink, top, total = _online_softmax(logits, top, total, n_vocab - (i + 1) * COLUMNS, i + 2 == n_tiles)
    # It must be waited for anyway; here its branch keeps the assembler from moving the wait below above the exponentials.
    mbarrier.wait(full.index((i + 2) % STAGES), ((i + 2) // STAGES) & 1, pred=i + 2 < n_tiles)
    if WITH_GRADIENT:
      mean = warpgroup_mma_wait(0, deps=(running,))
      mean = mean * gl.convert_layout(shrink, out_row)[:, None]
    mbarrier.arrive(empty.index(current), count=1)
    p = gl.convert_layout(next_p.to(ring.dtype), operand)
  if WITH_GRADIENT:
    mean = warpgroup_mma(p, ring.index((n_tiles - 1) % STAGES), mean)

  tokens = start + gl.arange(0, ROWS, layout=out_row)
  columns = gl.arange(0, RANK, layout=gl.SliceLayout(0, out))
  inside = tokens < n_tokens
  lse = gl.convert_layout((top + gl.log2(total)) * LN2, out_row)
  target = gl.load(targets_ptr + tokens, inside, 0).to(gl.int64)
  t_target = gl.load(table_ptr + target[:, None] * RANK + columns[None, :]).to(gl.float32)
  gl.store(nll_ptr + tokens, lse - gl.sum(x.load(out).to(gl.float32) * t_target, 1), inside)
  if WITH_GRADIENT:
    weight = gl.load(weights_ptr + tokens, inside, 0.0)
    gl.store(bias_ptr + tokens, gl.log(weight) - lse, inside)
    dx = (mean / gl.convert_layout(total, out_row)[:, None] - t_target) * weight[:, None]
    gl.store(dx_ptr + tokens[:, None] * RANK + columns[None, :], dx.to(dx_ptr.dtype.element_ty), inside[:, None])


@gluon.jit
def _online_softmax(logits, top, total, n_left, last):
  if last:
    columns = gl.arange(0, logits.shape[1], layout=gl.SliceLayout(0, logits.type.layout))
    logits = gl.where((columns < n_left)[None, :], logits, float('-inf'))
  new_top = gl.maximum(top, gl.max(logits, 1) * LOG2E)
  p = gl.exp2(logits * LOG2E - new_top[:, None])
  shrink = gl.exp2(top - new_top)
  return p, shrink, new_top, total * shrink + gl.sum(p, 1)


@gluon.jit
def _stream_table(tiles, ring, full, empty, n_tiles):
  for i in range(n_tiles):
    stage = i % ring.type.shape[0]
    mbarrier.wait(empty.index(stage), ((i // ring.type.shape[0]) & 1) ^ 1)
    mbarrier.expect(full.index(stage), tiles.block_type.nbytes)
    tma.async_copy_global_to_shared(tiles, [i * ring.type.shape[1], 0], full.index(stage), ring.index(stage))


@gluon.jit
def _table_gradient_kernel(table_tiles, x_tiles, biases, dloss_ptr, dtable_ptr, n_tokens, n_vocab, STAGES: gl.constexpr):
  t_pair, ring, held, full, empty = _allocate(table_tiles, x_tiles, STAGES)
  bias_ring = gl.allocate_shared_memory(gl.float32, [STAGES] + biases.block_type.shape, biases.layout)  # noqa: RUF005
  start = gl.program_id(0) * 2 * ROWS
  _load_pair(table_tiles, start, t_pair, held)
  n_tiles = gl.cdiv(n_tokens, ring.type.shape[1])
  pointers = (dloss_ptr, dtable_ptr)
  gl.warp_specialize(
    [
      (_gradient_rows, (t_pair.index(0), held, ring, bias_ring, full, empty, start, n_tiles, n_vocab, pointers)),
      (_gradient_rows, (t_pair.index(1), held, ring, bias_ring, full, empty, start + ROWS, n_tiles, n_vocab, pointers)),
      (_stream_tokens, (x_tiles, biases, ring, bias_ring, full, empty, n_tiles)),
    ],
    [4, 1],
    [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
  )


@gluon.jit
def _gradient_rows(t, held, ring, bias_ring, full, empty, start, n_tiles, n_vocab, pointers):
  dloss_ptr, dtable_ptr = pointers
  STAGES: gl.constexpr = ring.type.shape[0]
  COLUMNS: gl.constexpr = ring.type.shape[1]
  RANK: gl.constexpr = ring.type.shape[2]
  tile: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, COLUMNS, 16])
  out: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, RANK, 16])
  operand: gl.constexpr = gl.DotOperandLayout(0, out, 2)
  column: gl.constexpr = gl.SliceLayout(0, tile)

  zero = gl.zeros([ROWS, COLUMNS], gl.float32, tile)
  total = gl.zeros([ROWS, RANK], gl.float32, out)
  mbarrier.wait(held, 0)
  mbarrier.wait(full.index(0), 0)
  # The bias is where the sums of the product start. Tokens past the end are zeros, bias and all: they add exp(0) * 0.
  logits = warpgroup_mma(t, ring.index(0).permute((1, 0)), zero + bias_ring.index(0).load(column)[None, :])
  p = gl.convert_layout(gl.exp2(logits * LOG2E).to(ring.dtype), operand)
  mbarrier.wait(full.index(1 % STAGES), 0, pred=n_tiles > 1)
  for i in range(n_tiles - 1):
    current, following = i % STAGES, (i + 1) % STAGES
    bias = zero + bias_ring.index(following).load(column)[None, :]
    coming = warpgroup_mma(t, ring.index(following).permute((1, 0)), bias, is_async=True)
    running = warpgroup_mma(p, ring.index(current), total, is_async=True)
    logits = warpgroup_mma_wait(1, deps=(coming,))
    next_p = gl.exp2(logits * LOG2E)
    mbarrier.wait(full.index((i + 2) % STAGES), ((i + 2) // STAGES) & 1, pred=i + 2 < n_tiles)  # here as in the forward pass
    total = warpgroup_mma_wait(0, deps=(running,))
    mbarrier.arrive(empty.index(current), count=1)
    p = gl.convert_layout(next_p.to(ring.dtype), operand)
  total = warpgroup_mma(p, ring.index((n_tiles - 1) % STAGES), total)

  entries = start + gl.arange(0, ROWS, layout=gl.SliceLayout(1, out))
  places = dtable_ptr + entries[:, None] * RANK + gl.arange(0, RANK, layout=gl.SliceLayout(0, out))[None, :]
  inside = (entries < n_vocab)[:, None]
  gl.store(places, gl.load(places, inside, 0.0) + total * gl.load(dloss_ptr), inside)


@gluon.jit
def _stream_tokens(tiles, biases, ring, bias_ring, full, empty, n_tiles):
  for i in range(n_tiles):
    stage = i % ring.type.shape[0]
    mbarrier.wait(empty.index(stage), ((i // ring.type.shape[0]) & 1) ^ 1)
    mbarrier.expect(full.index(stage), tiles.block_type.nbytes + biases.block_type.nbytes)
    tma.async_copy_global_to_shared(tiles, [i * ring.type.shape[1], 0], full.index(stage), ring.index(stage))
    tma.async_copy_global_to_shared(biases, [i * ring.type.shape[1]], full.index(stage), bias_ring.index(stage))


@gluon.jit
def _allocate(held_tiles, streamed_tiles, STAGES: gl.constexpr):
  # Two held tiles, a ring of streamed ones, and the barriers: held loaded, stage full, stage empty (by both consumers).
  pair = gl.allocate_shared_memory(held_tiles.dtype, [2] + held_tiles.block_type.shape, held_tiles.layout)  # noqa: RUF005
  ring = gl.allocate_shared_memory(streamed_tiles.dtype, [STAGES] + streamed_tiles.block_type.shape, streamed_tiles.layout)  # noqa: RUF005
  held = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
  full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
  empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
  mbarrier.init(held, count=1)
  for i in gl.static_range(STAGES):
    mbarrier.init(full.index(i), count=1)
    mbarrier.init(empty.index(i), count=2)
  return pair, ring, held, full, empty


@gluon.jit
def _load_pair(tiles, start, pair, held):
  mbarrier.expect(held, 2 * tiles.block_type.nbytes)
  tma.async_copy_global_to_shared(tiles, [start, 0], held, pair.index(0))
  tma.async_copy_global_to_shared(tiles, [start + ROWS, 0], held, pair.index(1))
