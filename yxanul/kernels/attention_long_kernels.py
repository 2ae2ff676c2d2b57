"""The forward kernel of `attention_long`, in Gluon: Hopper's tensor cores (wgmma) and copy engine (TMA). What it shares with
the gradients' (`attention_long_gradients`) is explained here.

A multiprocessor has one program, which goes through its share of the items, longest first. The program is partitions (after
FlashAttention-3, arXiv 2407.08608): a producer that streams tiles into a ring in shared memory, and warpgroups of 64 rows
each that keep their own pace. Inside a warpgroup every loop has one pattern: the first products of the next tile are issued,
behind them the last products of this one, and under all of these runs the elementwise work on the next tile. What a warpgroup
holds for a whole item (queries, or keys and values) lies in its registers: products of two operands in shared memory with 64
columns would take all of its bandwidth, and its place there is free for the next item at once.

Shapes: as in `attention_long`. Rows of the matrices in memory are tokens (B T), columns are heads (H C or K C).
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
  fence_async_shared,
  mbarrier,
  tma,
  warpgroup_mma,
  warpgroup_mma_wait,
)

ROWS = gl.constexpr(64)  # tokens of a tile of queries, and rows of a warpgroup
WIDTH = gl.constexpr(64)  # of a head
SCALE = gl.constexpr(0.125)  # 1 / sqrt(WIDTH)
SCALE2 = gl.constexpr(0.125 * 1.4426950408889634)  # exponentials are powers of two
# Registers of a thread: the multiprocessor has 504 for one of each warpgroup with three warpgroups, 512 with four.
TWO, THREE, PRODUCER = gl.constexpr(240), gl.constexpr(160), gl.constexpr(24)


@gluon.jit
def attention_long_forward(
  q_tiles, k_tiles, v_tiles, out_ptr, lse_ptr, length, n_items, span,
  HEADS: gl.constexpr, KV_HEADS: gl.constexpr, GROUPS: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
  """out and lse (B H T, in powers of two). An item: 64 queries of GROUPS heads, one a warpgroup, that share keys and values."""
  q = buffers(q_tiles, GROUPS)
  k = buffers(k_tiles, STAGES)
  v = buffers(v_tiles, STAGES)
  q_full, q_empty = barriers(GROUPS, 1), barriers(GROUPS, 1)
  full, empty = barriers(STAGES, 1), barriers(STAGES, GROUPS)
  shared = (q, k, v, q_full, q_empty, full, empty)
  sizes = (length, n_items, span)
  places = (out_ptr, lse_ptr)
  if GROUPS == 2:
    gl.warp_specialize(
      [
        (_forward_rows, (shared, places, sizes, HEADS, KV_HEADS, 2, 0)),
        (_forward_rows, (shared, places, sizes, HEADS, KV_HEADS, 2, 1)),
        (_forward_stream, (q_tiles, k_tiles, v_tiles, shared, sizes, HEADS, KV_HEADS, 2)),
      ],
      [4, 1],
      [TWO, PRODUCER],
    )
  else:
    gl.warp_specialize(
      [
        (_forward_rows, (shared, places, sizes, HEADS, KV_HEADS, 3, 0)),
        (_forward_rows, (shared, places, sizes, HEADS, KV_HEADS, 3, 1)),
        (_forward_rows, (shared, places, sizes, HEADS, KV_HEADS, 3, 2)),
        (_forward_stream, (q_tiles, k_tiles, v_tiles, shared, sizes, HEADS, KV_HEADS, 3)),
      ],
      [4, 4, 1],
      [THREE, THREE, PRODUCER],
    )


@gluon.jit
def _forward_rows(shared, places, sizes, HEADS: gl.constexpr, KV_HEADS: gl.constexpr, GROUPS: gl.constexpr, MINE: gl.constexpr):
  q, k, v, q_full, q_empty, full, empty = shared
  out_ptr, lse_ptr = places
  length, n_items, _ = sizes
  STAGES: gl.constexpr = k.type.shape[0]
  KEYS: gl.constexpr = k.type.shape[1]
  tile: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
  wide: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDTH, 16])
  row: gl.constexpr = gl.SliceLayout(1, tile)
  wide_row: gl.constexpr = gl.SliceLayout(1, wide)
  HELD: gl.constexpr = GROUPS == 2  # queries in registers, where there is room
  zero = gl.zeros([ROWS, KEYS], gl.float32, tile)

  step = 0
  for item in range(gl.program_id(0), n_items, gl.num_programs(0)):
    batch, kv_head, part, place = query_item(item, sizes, KV_HEADS, HEADS // KV_HEADS // GROUPS)
    turn = item // gl.num_programs(0)
    head = kv_head * (HEADS // KV_HEADS) + part * GROUPS + MINE
    n_tiles = place * ROWS // KEYS + 1
    mbarrier.wait(q_full.index(MINE), turn & 1)
    if HELD:
      x = q.index(MINE).load(gl.DotOperandLayout(0, tile, 2))
      give_back(q_empty.index(MINE))
    else:
      x = q.index(MINE)
    mbarrier.wait(full.index(step % STAGES), (step // STAGES) & 1)
    logits = warpgroup_mma(x, k.index(step % STAGES).permute((1, 0)), zero, use_acc=False)
    # The tile on the diagonal comes first, so that no other needs a mask.
    queries = place * ROWS + gl.arange(0, ROWS, layout=row)
    keys = (n_tiles - 1) * KEYS + gl.arange(0, KEYS, layout=gl.SliceLayout(0, tile))
    logits = gl.where(keys[None, :] <= queries[:, None], logits, float('-inf'))
    top = gl.max(logits, 1) * SCALE2
    p_wide = gl.exp2(logits * SCALE2 - top[:, None])
    total = gl.sum(p_wide, 1)
    p = gl.convert_layout(p_wide.to(k.dtype), gl.DotOperandLayout(0, wide, 2))
    mean = gl.zeros([ROWS, WIDTH], gl.float32, wide)
    mbarrier.wait(full.index((step + 1) % STAGES), ((step + 1) // STAGES) & 1, pred=n_tiles > 1)
    for i in range(n_tiles - 1):
      current, following, later = (step + i) % STAGES, (step + i + 1) % STAGES, step + i + 2
      coming = warpgroup_mma(x, k.index(following).permute((1, 0)), zero, use_acc=False, is_async=True)
      running = warpgroup_mma(p, v.index(current), mean, is_async=True)
      logits = warpgroup_mma_wait(1, deps=(coming,))
      new_top = gl.maximum(top, gl.max(logits, 1) * SCALE2)
      p_wide = gl.exp2(logits * SCALE2 - new_top[:, None])
      shrink = gl.exp2(top - new_top)
      total = total * shrink + gl.sum(p_wide, 1)
      top = new_top
      # It must be waited for anyway; here its branch keeps the assembler from moving the wait below above the exponentials.
      mbarrier.wait(full.index(later % STAGES), (later // STAGES) & 1, pred=i + 2 < n_tiles)
      mean = warpgroup_mma_wait(0, deps=(running,))
      mean = mean * gl.convert_layout(shrink, wide_row)[:, None]
      mbarrier.arrive(empty.index(current), count=1)
      p = gl.convert_layout(p_wide.to(k.dtype), gl.DotOperandLayout(0, wide, 2))
    step += n_tiles
    mean = warpgroup_mma(p, v.index((step - 1) % STAGES), mean)
    mbarrier.arrive(empty.index((step - 1) % STAGES), count=1)
    if not HELD:
      mbarrier.arrive(q_empty.index(MINE), count=1)
    mean = mean / gl.convert_layout(total, wide_row)[:, None]
    store(out_ptr, mean, batch * length + place * ROWS, head, HEADS)
    gl.store(lse_ptr + (batch * HEADS + head) * length + queries, top + gl.log2(total))


@gluon.jit
def _forward_stream(
  q_tiles, k_tiles, v_tiles, shared, sizes, HEADS: gl.constexpr, KV_HEADS: gl.constexpr, GROUPS: gl.constexpr
):
  q, k, v, q_full, q_empty, full, empty = shared
  length, n_items, _ = sizes
  STAGES: gl.constexpr = k.type.shape[0]
  KEYS: gl.constexpr = k.type.shape[1]
  step = 0
  for item in range(gl.program_id(0), n_items, gl.num_programs(0)):
    batch, kv_head, part, place = query_item(item, sizes, KV_HEADS, HEADS // KV_HEADS // GROUPS)
    turn = item // gl.num_programs(0)
    head = kv_head * (HEADS // KV_HEADS) + part * GROUPS
    for mine in gl.static_range(GROUPS):
      mbarrier.wait(q_empty.index(mine), (turn & 1) ^ 1)
      mbarrier.expect(q_full.index(mine), q_tiles.block_type.nbytes)
      start = [batch * length + place * ROWS, (head + mine) * WIDTH]
      tma.async_copy_global_to_shared(q_tiles, start, q_full.index(mine), q.index(mine))
    n_tiles = place * ROWS // KEYS + 1
    for i in range(n_tiles):
      stage = step % STAGES
      start = [batch * length + (n_tiles - 1 - i) * KEYS, kv_head * WIDTH]
      mbarrier.wait(empty.index(stage), ((step // STAGES) & 1) ^ 1)
      mbarrier.expect(full.index(stage), k_tiles.block_type.nbytes + v_tiles.block_type.nbytes)
      tma.async_copy_global_to_shared(k_tiles, start, full.index(stage), k.index(stage))
      tma.async_copy_global_to_shared(v_tiles, start, full.index(stage), v.index(stage))
      step += 1


@gluon.jit
def query_item(item, sizes, KV_HEADS: gl.constexpr, PARTS: gl.constexpr):
  length, n_items, span = sizes
  unit, rank = _unit(item, n_items, length // ROWS, span)
  return unit // (PARTS * KV_HEADS), unit // PARTS % KV_HEADS, unit % PARTS, length // ROWS - 1 - rank


@gluon.jit
def key_item(item, sizes, KV_HEADS: gl.constexpr):
  length, n_items, span = sizes
  unit, rank = _unit(item, n_items, length // (2 * ROWS), span)
  return unit // KV_HEADS, unit % KV_HEADS, rank


@gluon.jit
def _unit(item, n_items, n_places, span):
  # Longest first, so that all programs end together; but `span` places of a unit (a row's heads) next to each other, which run
  # at the same time and find in the cache what they share. They turn around from unit to unit, as a program may always meet the
  # same one of them.
  n_alike = n_items // n_places * span
  unit = item % n_alike // span
  inside = item % span
  inside = gl.where(unit % 2 == 0, inside, span - 1 - inside)
  return unit, item // n_alike * span + inside


@gluon.jit
def store(ptr, x, token, head, HEADS: gl.constexpr):
  tokens = token + gl.arange(0, ROWS, layout=gl.SliceLayout(1, x.type.layout))
  columns = head * WIDTH + gl.arange(0, WIDTH, layout=gl.SliceLayout(0, x.type.layout))
  gl.store(ptr + tokens[:, None] * (HEADS * WIDTH) + columns[None, :], x.to(ptr.dtype.element_ty))


@gluon.jit
def give_back(barrier):
  # After loads into registers. An arrival does not wait for them: behind the stores of the item before they may still be on
  # their way, while the copy engine, which keeps no order with them, already writes the next item there. The fence waits.
  fence_async_shared()
  mbarrier.arrive(barrier, count=1)


@gluon.jit
def buffers(tiles, N: gl.constexpr):
  return gl.allocate_shared_memory(tiles.dtype, [N] + tiles.block_type.shape, tiles.layout)  # noqa: RUF005


@gluon.jit
def barriers(N: gl.constexpr, COUNT: gl.constexpr):
  barriers = gl.allocate_shared_memory(gl.int64, [N, 1], mbarrier.MBarrierLayout())
  for i in gl.static_range(N):
    mbarrier.init(barriers.index(i), count=COUNT)
  return barriers
