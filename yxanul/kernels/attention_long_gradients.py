"""The gradients of `attention_long`, in Gluon, in the manner of `attention_long_kernels`."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait

from yxanul.kernels.attention_long_kernels import (
  PRODUCER,
  ROWS,
  SCALE,
  SCALE2,
  TWO,
  WIDTH,
  barriers,
  buffers,
  give_back,
  key_item,
  query_item,
  store,
)


@gluon.jit
def attention_long_query_gradient(
  q_tiles, out_tiles, dout_tiles, k_tiles, v_tiles, lse_tiles, dq_ptr, delta_ptr, length, n_items, span,
  HEADS: gl.constexpr, KV_HEADS: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
  """dq, and on the way delta = sum(out * dout) (B H T), which the other gradient needs. An item: 64 queries of two heads."""
  q, out, dout, lse = buffers(q_tiles, 2), buffers(out_tiles, 2), buffers(dout_tiles, 2), buffers(lse_tiles, 2)
  k, v = buffers(k_tiles, STAGES), buffers(v_tiles, STAGES)
  q_full, q_empty = barriers(2, 1), barriers(2, 1)
  full, empty = barriers(STAGES, 1), barriers(STAGES, 2)
  shared = (q, out, dout, lse, k, v, q_full, q_empty, full, empty)
  tiles = (q_tiles, out_tiles, dout_tiles, k_tiles, v_tiles, lse_tiles)
  sizes = (length, n_items, span)
  places = (dq_ptr, delta_ptr)
  gl.warp_specialize(
    [
      (_query_gradient_rows, (shared, places, sizes, HEADS, KV_HEADS, 0)),
      (_query_gradient_rows, (shared, places, sizes, HEADS, KV_HEADS, 1)),
      (_query_gradient_stream, (tiles, shared, sizes, HEADS, KV_HEADS)),
    ],
    [4, 1],
    [TWO, PRODUCER],
  )


@gluon.jit
def _query_gradient_rows(shared, places, sizes, HEADS: gl.constexpr, KV_HEADS: gl.constexpr, MINE: gl.constexpr):
  q, out, dout, lse, k, v, q_full, q_empty, full, empty = shared
  dq_ptr, delta_ptr = places
  length, n_items, _ = sizes
  STAGES: gl.constexpr = k.type.shape[0]
  tile: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])  # of ROWS x ROWS and of ROWS x WIDTH
  operand: gl.constexpr = gl.DotOperandLayout(0, tile, 2)
  row: gl.constexpr = gl.SliceLayout(1, tile)
  zero = gl.zeros([ROWS, ROWS], gl.float32, tile)
  mask = gl.arange(0, ROWS, layout=gl.SliceLayout(0, tile))[None, :] <= gl.arange(0, ROWS, layout=row)[:, None]

  step = 0
  for item in range(gl.program_id(0), n_items, gl.num_programs(0)):
    batch, kv_head, part, place = query_item(item, sizes, KV_HEADS, HEADS // KV_HEADS // 2)
    turn = item // gl.num_programs(0)
    head = kv_head * (HEADS // KV_HEADS) + part * 2 + MINE
    n_tiles = place + 1
    mbarrier.wait(q_full.index(MINE), turn & 1)
    x, dy = q.index(MINE).load(operand), dout.index(MINE).load(operand)
    lse_row = lse.index(MINE).load(row)
    delta = gl.sum(out.index(MINE).load(tile).to(gl.float32) * dout.index(MINE).load(tile).to(gl.float32), 1)
    give_back(q_empty.index(MINE))
    gl.store(delta_ptr + (batch * HEADS + head) * length + place * ROWS + gl.arange(0, ROWS, layout=row), delta)
    mbarrier.wait(full.index(step % STAGES), (step // STAGES) & 1)
    logits = warpgroup_mma(x, k.index(step % STAGES).permute((1, 0)), zero, use_acc=False)
    dp = warpgroup_mma(dy, v.index(step % STAGES).permute((1, 0)), zero, use_acc=False)
    p = gl.where(mask, gl.exp2(logits * SCALE2 - lse_row[:, None]), 0.0)  # the tile on the diagonal comes first
    ds = gl.convert_layout((p * (dp - delta[:, None])).to(k.dtype), operand)
    dx = gl.zeros([ROWS, WIDTH], gl.float32, tile)
    mbarrier.wait(full.index((step + 1) % STAGES), ((step + 1) // STAGES) & 1, pred=n_tiles > 1)
    for i in range(n_tiles - 1):
      current, following, later = (step + i) % STAGES, (step + i + 1) % STAGES, step + i + 2
      coming = warpgroup_mma(x, k.index(following).permute((1, 0)), zero, use_acc=False, is_async=True)
      coming_dp = warpgroup_mma(dy, v.index(following).permute((1, 0)), zero, use_acc=False, is_async=True)
      running = warpgroup_mma(ds, k.index(current), dx, is_async=True)
      logits = warpgroup_mma_wait(2, deps=(coming,))
      p = gl.exp2(logits * SCALE2 - lse_row[:, None])
      dp = warpgroup_mma_wait(1, deps=(coming_dp,))
      ds_wide = p * (dp - delta[:, None])
      mbarrier.wait(full.index(later % STAGES), (later // STAGES) & 1, pred=i + 2 < n_tiles)  # here as in the forward pass
      dx = warpgroup_mma_wait(0, deps=(running,))
      mbarrier.arrive(empty.index(current), count=1)
      ds = gl.convert_layout(ds_wide.to(k.dtype), operand)
    step += n_tiles
    dx = warpgroup_mma(ds, k.index((step - 1) % STAGES), dx)
    mbarrier.arrive(empty.index((step - 1) % STAGES), count=1)
    store(dq_ptr, dx * SCALE, batch * length + place * ROWS, head, HEADS)


@gluon.jit
def _query_gradient_stream(tiles, shared, sizes, HEADS: gl.constexpr, KV_HEADS: gl.constexpr):
  q_tiles, out_tiles, dout_tiles, k_tiles, v_tiles, lse_tiles = tiles
  q, out, dout, lse, k, v, q_full, q_empty, full, empty = shared
  length, n_items, _ = sizes
  STAGES: gl.constexpr = k.type.shape[0]
  step = 0
  for item in range(gl.program_id(0), n_items, gl.num_programs(0)):
    batch, kv_head, part, place = query_item(item, sizes, KV_HEADS, HEADS // KV_HEADS // 2)
    turn = item // gl.num_programs(0)
    for mine in gl.static_range(2):
      head = kv_head * (HEADS // KV_HEADS) + part * 2 + mine
      start = [batch * length + place * ROWS, head * WIDTH]
      mbarrier.wait(q_empty.index(mine), (turn & 1) ^ 1)
      mbarrier.expect(q_full.index(mine), 3 * q_tiles.block_type.nbytes + lse_tiles.block_type.nbytes)
      tma.async_copy_global_to_shared(q_tiles, start, q_full.index(mine), q.index(mine))
      tma.async_copy_global_to_shared(out_tiles, start, q_full.index(mine), out.index(mine))
      tma.async_copy_global_to_shared(dout_tiles, start, q_full.index(mine), dout.index(mine))
      lse_start = (batch * HEADS + head) * length + place * ROWS
      tma.async_copy_global_to_shared(lse_tiles, [lse_start], q_full.index(mine), lse.index(mine))
    for i in range(place + 1):
      stage = step % STAGES
      start = [batch * length + (place - i) * ROWS, kv_head * WIDTH]
      mbarrier.wait(empty.index(stage), ((step // STAGES) & 1) ^ 1)
      mbarrier.expect(full.index(stage), k_tiles.block_type.nbytes + v_tiles.block_type.nbytes)
      tma.async_copy_global_to_shared(k_tiles, start, full.index(stage), k.index(stage))
      tma.async_copy_global_to_shared(v_tiles, start, full.index(stage), v.index(stage))
      step += 1


@gluon.jit
def attention_long_key_value_gradient(
  k_tiles, v_tiles, q_tiles, dout_tiles, lse_tiles, delta_tiles, dk_ptr, dv_ptr, length, n_items, span,
  HEADS: gl.constexpr, KV_HEADS: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
  """dk and dv, summed over the queries of all heads of a group. An item: 128 keys, 64 a warpgroup.

  STAGES: at least 5, as the second warpgroup may wait for the tile four after one that it still holds.
  """
  k, v = buffers(k_tiles, 2), buffers(v_tiles, 2)
  q, dout = buffers(q_tiles, STAGES), buffers(dout_tiles, STAGES)
  lse, delta = buffers(lse_tiles, STAGES), buffers(delta_tiles, STAGES)
  k_full, k_empty = barriers(2, 1), barriers(2, 1)
  full, empty = barriers(STAGES, 1), barriers(STAGES, 2)
  shared = (k, v, q, dout, lse, delta, k_full, k_empty, full, empty)
  tiles = (k_tiles, v_tiles, q_tiles, dout_tiles, lse_tiles, delta_tiles)
  sizes = (length, n_items, span)
  places = (dk_ptr, dv_ptr)
  gl.warp_specialize(
    [
      (_key_value_gradient_rows, (shared, places, sizes, HEADS, KV_HEADS, 0)),
      (_key_value_gradient_rows, (shared, places, sizes, HEADS, KV_HEADS, 1)),
      (_key_value_gradient_stream, (tiles, shared, sizes, HEADS, KV_HEADS)),
    ],
    [4, 1],
    [TWO, PRODUCER],
  )


@gluon.jit
def _key_value_gradient_rows(shared, places, sizes, HEADS: gl.constexpr, KV_HEADS: gl.constexpr, MINE: gl.constexpr):
  k, v, q, dout, lse, delta, k_full, k_empty, full, empty = shared
  dk_ptr, dv_ptr = places
  length, n_items, _ = sizes
  STAGES: gl.constexpr = q.type.shape[0]
  tile: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])  # of keys x queries and of keys x WIDTH
  operand: gl.constexpr = gl.DotOperandLayout(0, tile, 2)
  column: gl.constexpr = gl.SliceLayout(0, tile)
  zero = gl.zeros([ROWS, ROWS], gl.float32, tile)
  mask = gl.arange(0, ROWS, layout=gl.SliceLayout(1, tile))[:, None] <= gl.arange(0, ROWS, layout=column)[None, :]

  at = 0  # the next tile of the stream
  for item in range(gl.program_id(0), n_items, gl.num_programs(0)):
    batch, kv_head, place = key_item(item, sizes, KV_HEADS)
    turn = item // gl.num_programs(0)
    n_mine = length // ROWS - 2 * place - MINE  # tiles of a head; the second warpgroup's keys are after the first tile
    n_tiles = n_mine * (HEADS // KV_HEADS)
    mbarrier.wait(k_full.index(MINE), turn & 1)
    t, u = k.index(MINE).load(operand), v.index(MINE).load(operand)
    give_back(k_empty.index(MINE))
    at = _skip(at, full, empty, MINE, True)
    mbarrier.wait(full.index(at % STAGES), (at // STAGES) & 1)
    current = at
    logits = warpgroup_mma(t, q.index(at % STAGES).permute((1, 0)), zero, use_acc=False)
    dp = warpgroup_mma(u, dout.index(at % STAGES).permute((1, 0)), zero, use_acc=False)
    p_wide = gl.where(mask, gl.exp2(logits * SCALE2 - lse.index(at % STAGES).load(column)[None, :]), 0.0)
    ds_wide = p_wide * (dp - delta.index(at % STAGES).load(column)[None, :])
    p, ds = gl.convert_layout(p_wide.to(q.dtype), operand), gl.convert_layout(ds_wide.to(q.dtype), operand)
    dt, du = gl.zeros([ROWS, WIDTH], gl.float32, tile), gl.zeros([ROWS, WIDTH], gl.float32, tile)
    left = n_mine - 1  # tiles of this head
    at = _skip(at + 1, full, empty, MINE, left == 0)
    mbarrier.wait(full.index(at % STAGES), (at // STAGES) & 1, pred=n_tiles > 1)
    for i in range(1, n_tiles):
      now, following = current % STAGES, at % STAGES
      coming = warpgroup_mma(t, q.index(following).permute((1, 0)), zero, use_acc=False, is_async=True)
      coming_dp = warpgroup_mma(u, dout.index(following).permute((1, 0)), zero, use_acc=False, is_async=True)
      running_dv = warpgroup_mma(p, dout.index(now), du, is_async=True)
      running_dk = warpgroup_mma(ds, q.index(now), dt, is_async=True)
      lse_column = lse.index(following).load(column)
      logits = warpgroup_mma_wait(3, deps=(coming,))
      p_wide = gl.exp2(logits * SCALE2 - lse_column[None, :])
      if left == 0:  # a head begins, on the diagonal
        p_wide = gl.where(mask, p_wide, 0.0)
      delta_column = delta.index(following).load(column)
      dp = warpgroup_mma_wait(2, deps=(coming_dp,))
      ds_wide = p_wide * (dp - delta_column[None, :])
      left = gl.where(left == 0, n_mine, left) - 1
      current = at
      at = _skip(at + 1, full, empty, MINE, (left == 0) & (i + 1 < n_tiles))
      mbarrier.wait(full.index(at % STAGES), (at // STAGES) & 1, pred=i + 1 < n_tiles)  # here as in the forward pass
      du, dt = warpgroup_mma_wait(0, deps=(running_dv, running_dk))
      mbarrier.arrive(empty.index(now), count=1)
      p, ds = gl.convert_layout(p_wide.to(q.dtype), operand), gl.convert_layout(ds_wide.to(q.dtype), operand)
    now = current % STAGES
    du = warpgroup_mma(p, dout.index(now), du)
    dt = warpgroup_mma(ds, q.index(now), dt)
    mbarrier.arrive(empty.index(now), count=1)
    token = batch * length + (2 * place + MINE) * ROWS
    store(dv_ptr, du, token, kv_head, KV_HEADS)
    store(dk_ptr, dt * SCALE, token, kv_head, KV_HEADS)


@gluon.jit
def _skip(at, full, empty, MINE: gl.constexpr, head_begins):
  # The first tile of a head is before the second warpgroup's keys. Only when it is there may it be given back: before, the
  # barrier would count this for the tile that had the place.
  STAGES: gl.constexpr = full.type.shape[0]
  if MINE == 1:
    mbarrier.wait(full.index(at % STAGES), (at // STAGES) & 1, pred=head_begins)
    mbarrier.arrive(empty.index(at % STAGES), count=1, pred=head_begins)
    at += gl.where(head_begins, 1, 0)
  return at


@gluon.jit
def _key_value_gradient_stream(tiles, shared, sizes, HEADS: gl.constexpr, KV_HEADS: gl.constexpr):
  k_tiles, v_tiles, q_tiles, dout_tiles, lse_tiles, delta_tiles = tiles
  k, v, q, dout, lse, delta, k_full, k_empty, full, empty = shared
  length, n_items, _ = sizes
  STAGES: gl.constexpr = q.type.shape[0]
  GROUP: gl.constexpr = HEADS // KV_HEADS
  step = 0
  for item in range(gl.program_id(0), n_items, gl.num_programs(0)):
    batch, kv_head, place = key_item(item, sizes, KV_HEADS)
    turn = item // gl.num_programs(0)
    for mine in gl.static_range(2):
      start = [batch * length + (2 * place + mine) * ROWS, kv_head * WIDTH]
      mbarrier.wait(k_empty.index(mine), (turn & 1) ^ 1)
      mbarrier.expect(k_full.index(mine), k_tiles.block_type.nbytes + v_tiles.block_type.nbytes)
      tma.async_copy_global_to_shared(k_tiles, start, k_full.index(mine), k.index(mine))
      tma.async_copy_global_to_shared(v_tiles, start, k_full.index(mine), v.index(mine))
    n_mine = length // ROWS - 2 * place
    for i in range(n_mine * GROUP):
      stage = step % STAGES
      head = kv_head * GROUP + i // n_mine
      token = (2 * place + i % n_mine) * ROWS
      number = [(batch * HEADS + head) * length + token]
      start = [batch * length + token, head * WIDTH]
      mbarrier.wait(empty.index(stage), ((step // STAGES) & 1) ^ 1)
      mbarrier.expect(full.index(stage), 2 * q_tiles.block_type.nbytes + 2 * lse_tiles.block_type.nbytes)
      tma.async_copy_global_to_shared(q_tiles, start, full.index(stage), q.index(stage))
      tma.async_copy_global_to_shared(lse_tiles, number, full.index(stage), lse.index(stage))
      tma.async_copy_global_to_shared(dout_tiles, start, full.index(stage), dout.index(stage))
      tma.async_copy_global_to_shared(delta_tiles, number, full.index(stage), delta.index(stage))
      step += 1
