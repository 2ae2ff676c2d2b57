"""The Triton kernels of `attention_short`, which says what they compute and how; shapes as there, R rows of a tile.

Every kernel's grid is (tiles times the blocks of one, key/value heads) and ends on the same constants: SEQ tokens of a
sequence, PACK rows of a tile, BLOCK rows of a block of it, GROUP heads of a group, KV_HEADS, HALF = C/2, SCALE, ROPE, and
EVEN, which says that tiles are full of whole sequences and need no mask.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def attention_forward(
  qkv_ptr, out_ptr, cos_ptr, sin_ptr, n_tokens, SEQ: tl.constexpr, PACK: tl.constexpr, BLOCK: tl.constexpr,
  GROUP: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, SCALE: tl.constexpr, ROPE: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
  """out of a block of queries."""
  pack = tl.program_id(0) // (PACK // BLOCK)
  block = tl.program_id(0) % (PACK // BLOCK)
  for i in tl.static_range(PACK // BLOCK):  # the number of key blocks is static, so each position is code of its own
    if block == i:
      _forward_block(
        qkv_ptr, out_ptr, cos_ptr, sin_ptr, n_tokens, pack, i,
        SEQ, PACK, BLOCK, GROUP, KV_HEADS, HALF, SCALE, ROPE, EVEN,
      )  # fmt: skip


@triton.jit
def _forward_block(
  qkv_ptr, out_ptr, cos_ptr, sin_ptr, n_tokens, pack, LAST: tl.constexpr, SEQ: tl.constexpr, PACK: tl.constexpr,
  BLOCK: tl.constexpr, GROUP: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, SCALE: tl.constexpr,
  ROPE: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
  HEADS: tl.constexpr = GROUP * KV_HEADS
  WHOLE: tl.constexpr = HEADS + 2 * KV_HEADS
  ROWS: tl.constexpr = PACK // SEQ * SEQ
  kv = tl.program_id(1)
  first = pack.to(tl.int64) * ROWS
  here = tl.minimum(n_tokens - pack * ROWS, ROWS)
  qkv_ptr += first * (WHOLE * 2 * HALF)
  out_ptr += first * (HEADS * 2 * HALF)
  past = ()
  for j in tl.static_range(LAST):
    keys = j * BLOCK + tl.arange(0, BLOCK)
    past = past + (_keys_values(qkv_ptr, cos_ptr, sin_ptr, keys, here, kv, SEQ, HEADS, KV_HEADS, HALF, ROPE, EVEN),)  # noqa: RUF005
  rows = LAST * BLOCK + tl.arange(0, BLOCK)
  k_1, k_2, v = _keys_values(qkv_ptr, cos_ptr, sin_ptr, rows, here, kv, SEQ, HEADS, KV_HEADS, HALF, ROPE, EVEN)
  cos, sin = _angles(cos_ptr, sin_ptr, rows % SEQ, HALF, ROPE)
  for g in range(GROUP):
    head = kv * GROUP + g
    q_1, q_2 = _rotated(qkv_ptr, rows, here, head, WHOLE, cos, sin, HALF, ROPE, EVEN)
    s = _masked(tl.dot(q_2, k_2.T, tl.dot(q_1, k_1.T)), rows[:, None], rows[None, :], SEQ, PACK)
    top = tl.max(s, 1) * (SCALE * LOG2E)
    p = _power(s, top, SCALE)
    total = tl.sum(p, 1)
    out = tl.dot(p.to(v.dtype), v)
    for j in tl.static_range(LAST):  # online softmax over the blocks that lie wholly in the past (arXiv 1805.02867)
      s = tl.dot(q_2, past[j][1].T, tl.dot(q_1, past[j][0].T))
      higher = tl.maximum(top, tl.max(s, 1) * (SCALE * LOG2E))
      p = _power(s, higher, SCALE)
      shrink = tl.exp2(top - higher)
      total = total * shrink + tl.sum(p, 1)
      out = tl.dot(p.to(v.dtype), past[j][2], out * shrink[:, None])
      top = higher
    _store(out_ptr, out / total[:, None], rows, here, head, 0, HEADS, HALF, 2 * HALF, EVEN)


@triton.jit
def attention_backward(
  qkv_ptr, dout_ptr, dqkv_ptr, cos_ptr, sin_ptr, n_tokens, SEQ: tl.constexpr, PACK: tl.constexpr, BLOCK: tl.constexpr,
  GROUP: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, SCALE: tl.constexpr, ROPE: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
  """dqkv of a tile of whole sequences; PACK = BLOCK."""
  HEADS: tl.constexpr = GROUP * KV_HEADS
  WHOLE: tl.constexpr = HEADS + 2 * KV_HEADS
  ROWS: tl.constexpr = PACK // SEQ * SEQ
  pack = tl.program_id(0)
  kv = tl.program_id(1)
  first = pack.to(tl.int64) * ROWS
  here = tl.minimum(n_tokens - pack * ROWS, ROWS)
  qkv_ptr += first * (WHOLE * 2 * HALF)
  dqkv_ptr += first * (WHOLE * 2 * HALF)
  dout_ptr += first * (HEADS * 2 * HALF)
  rows = tl.arange(0, PACK)
  cos, sin = _angles(cos_ptr, sin_ptr, rows % SEQ, HALF, ROPE)
  k_1, k_2 = _rotated(qkv_ptr, rows, here, HEADS + kv, WHOLE, cos, sin, HALF, ROPE, EVEN)
  v = _load(qkv_ptr, rows, here, HEADS + KV_HEADS + kv, 0, WHOLE, HALF, 2 * HALF, EVEN)
  dk_1 = tl.zeros([PACK, HALF], tl.float32)
  dk_2 = tl.zeros([PACK, HALF], tl.float32)
  dv = tl.zeros([PACK, 2 * HALF], tl.float32)
  for g in range(GROUP):
    head = kv * GROUP + g
    q_1, q_2 = _rotated(qkv_ptr, rows, here, head, WHOLE, cos, sin, HALF, ROPE, EVEN)
    dout = _load(dout_ptr, rows, here, head, 0, HEADS, HALF, 2 * HALF, EVEN)
    s = _masked(tl.dot(q_2, k_2.T, tl.dot(q_1, k_1.T)), rows[:, None], rows[None, :], SEQ, PACK)
    dp = tl.dot(dout, v.T)
    p = _power(s, tl.max(s, 1) * (SCALE * LOG2E), SCALE)
    p *= (1 / tl.sum(p, 1))[:, None]
    ds = (p * (dp - tl.sum(p * dp, 1)[:, None])).to(v.dtype)
    dv = tl.dot(p.to(v.dtype).T, dout, dv)
    dk_1 = tl.dot(ds.T, q_1, dk_1)
    dk_2 = tl.dot(ds.T, q_2, dk_2)
    _store_turned(dqkv_ptr, tl.dot(ds, k_1), tl.dot(ds, k_2), rows, here, head, WHOLE, cos, sin, HALF, SCALE, ROPE, EVEN)
  _store_turned(dqkv_ptr, dk_1, dk_2, rows, here, HEADS + kv, WHOLE, cos, sin, HALF, SCALE, ROPE, EVEN)
  _store(dqkv_ptr, dv, rows, here, HEADS + KV_HEADS + kv, 0, WHOLE, HALF, 2 * HALF, EVEN)


@triton.jit
def attention_backward_rows(
  qkv_ptr, dout_ptr, dqkv_ptr, q_ptr, stats_ptr, cos_ptr, sin_ptr, n_tokens, SEQ: tl.constexpr, PACK: tl.constexpr,
  BLOCK: tl.constexpr, GROUP: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, SCALE: tl.constexpr,
  ROPE: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
  """dq of a block of queries, and for `attention_backward_columns` their log-sums and deltas and the turned queries."""
  pack = tl.program_id(0) // (PACK // BLOCK)
  block = tl.program_id(0) % (PACK // BLOCK)
  if block < PACK // BLOCK // 2:
    _rows_block(
      qkv_ptr, dout_ptr, dqkv_ptr, q_ptr, stats_ptr, cos_ptr, sin_ptr, n_tokens, pack, block, PACK // 2,
      SEQ, PACK, BLOCK, GROUP, KV_HEADS, HALF, SCALE, ROPE, EVEN,
    )  # fmt: skip
  else:
    _rows_block(
      qkv_ptr, dout_ptr, dqkv_ptr, q_ptr, stats_ptr, cos_ptr, sin_ptr, n_tokens, pack, block, PACK,
      SEQ, PACK, BLOCK, GROUP, KV_HEADS, HALF, SCALE, ROPE, EVEN,
    )  # fmt: skip


@triton.jit
def _rows_block(
  qkv_ptr, dout_ptr, dqkv_ptr, q_ptr, stats_ptr, cos_ptr, sin_ptr, n_tokens, pack, block, WIDTH: tl.constexpr,
  SEQ: tl.constexpr, PACK: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr, KV_HEADS: tl.constexpr,
  HALF: tl.constexpr, SCALE: tl.constexpr, ROPE: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
  HEADS: tl.constexpr = GROUP * KV_HEADS
  WHOLE: tl.constexpr = HEADS + 2 * KV_HEADS
  ROWS: tl.constexpr = PACK // SEQ * SEQ
  kv = tl.program_id(1)
  first = pack.to(tl.int64) * ROWS
  here = tl.minimum(n_tokens - pack * ROWS, ROWS)
  qkv_ptr += first * (WHOLE * 2 * HALF)
  dqkv_ptr += first * (WHOLE * 2 * HALF)
  dout_ptr += first * (HEADS * 2 * HALF)
  q_ptr += first * (HEADS * 2 * HALF)
  stats_ptr += first * 2
  rows = block * BLOCK + tl.arange(0, BLOCK)
  keys = tl.arange(0, WIDTH)  # all, or the first half where later ones lie in the future
  k_1, k_2, v = _keys_values(qkv_ptr, cos_ptr, sin_ptr, keys, here, kv, SEQ, HEADS, KV_HEADS, HALF, ROPE, EVEN)
  cos, sin = _angles(cos_ptr, sin_ptr, rows % SEQ, HALF, ROPE)
  for g in range(GROUP):
    head = kv * GROUP + g
    q_1, q_2 = _rotated(qkv_ptr, rows, here, head, WHOLE, cos, sin, HALF, ROPE, EVEN)
    if ROPE:
      _store(q_ptr, q_1, rows, here, head, 0, HEADS, HALF, HALF, EVEN)
      _store(q_ptr, q_2, rows, here, head, HALF, HEADS, HALF, HALF, EVEN)
    dout = _load(dout_ptr, rows, here, head, 0, HEADS, HALF, 2 * HALF, EVEN)
    s = _masked(tl.dot(q_2, k_2.T, tl.dot(q_1, k_1.T)) * (SCALE * LOG2E), rows[:, None], keys[None, :], SEQ, PACK)
    dp = tl.dot(dout, v.T)
    top = tl.max(s, 1)
    p = tl.exp2(s - top[:, None])
    total = tl.sum(p, 1)
    p *= (1 / total)[:, None]
    delta = tl.sum(p * dp, 1)
    ds = (p * (dp - delta[:, None])).to(v.dtype)
    dq_1 = tl.dot(ds, k_1)
    dq_2 = tl.dot(ds, k_2)
    places = stats_ptr + (head.to(tl.int64) * n_tokens + rows) * 2
    tl.store(places, top + tl.log2(total), rows < here)
    tl.store(places + 1, delta, rows < here)
    _store_turned(dqkv_ptr, dq_1, dq_2, rows, here, head, WHOLE, cos, sin, HALF, SCALE, ROPE, EVEN)


@triton.jit
def attention_backward_columns(
  qkv_ptr, dout_ptr, dqkv_ptr, q_ptr, stats_ptr, cos_ptr, sin_ptr, n_tokens, SEQ: tl.constexpr, PACK: tl.constexpr,
  BLOCK: tl.constexpr, GROUP: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, SCALE: tl.constexpr,
  ROPE: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
  """dk and dv of a block of keys; s, p and dp have keys in their rows and queries in their columns."""
  HEADS: tl.constexpr = GROUP * KV_HEADS
  WHOLE: tl.constexpr = HEADS + 2 * KV_HEADS
  ROWS: tl.constexpr = PACK // SEQ * SEQ
  Q_HEADS: tl.constexpr = HEADS if ROPE else WHOLE
  pack = tl.program_id(0) // (PACK // BLOCK)
  column = tl.program_id(0) % (PACK // BLOCK)
  kv = tl.program_id(1)
  first = pack.to(tl.int64) * ROWS
  here = tl.minimum(n_tokens - pack * ROWS, ROWS)
  qkv_ptr += first * (WHOLE * 2 * HALF)
  dqkv_ptr += first * (WHOLE * 2 * HALF)
  dout_ptr += first * (HEADS * 2 * HALF)
  q_ptr += first * (Q_HEADS * 2 * HALF)
  stats_ptr += first * 2
  keys = column * BLOCK + tl.arange(0, BLOCK)
  k_1, k_2, v = _keys_values(qkv_ptr, cos_ptr, sin_ptr, keys, here, kv, SEQ, HEADS, KV_HEADS, HALF, ROPE, EVEN)
  k = tl.reshape(tl.permute(tl.join(k_1, k_2), [0, 2, 1]), [BLOCK, 2 * HALF])
  dk = tl.zeros([BLOCK, 2 * HALF], tl.float32)
  dv = tl.zeros([BLOCK, 2 * HALF], tl.float32)
  blocks = PACK // BLOCK - column
  block = column
  head = kv * GROUP
  for _ in range(GROUP * blocks):
    rows = block * BLOCK + tl.arange(0, BLOCK)
    q = _load(q_ptr, rows, here, head, 0, Q_HEADS, HALF, 2 * HALF, EVEN)
    dout = _load(dout_ptr, rows, here, head, 0, HEADS, HALF, 2 * HALF, EVEN)
    # Both numbers of a row in one load: as two short ones they would be fetched by every thread for itself.
    pairs = tl.arange(0, 2 * BLOCK)
    places = stats_ptr + head.to(tl.int64) * n_tokens * 2 + block * BLOCK * 2 + pairs
    stats = tl.load(places) if EVEN else tl.load(places, block * BLOCK + pairs // 2 < here, 0.0)
    lse, delta = tl.split(tl.reshape(stats, [BLOCK, 2]))
    s = tl.dot(k, q.T)
    s = s * (SCALE * LOG2E) - lse[None, :]
    p = tl.exp2(_masked(s, rows[None, :], keys[:, None], SEQ, PACK))
    dp = tl.dot(v, dout.T)
    dv = tl.dot(p.to(v.dtype), dout, dv)
    dk = tl.dot((p * (dp - delta[None, :])).to(v.dtype), q, dk)
    block += 1
    if block == PACK // BLOCK:
      block = column
      head += 1
  dk_1, dk_2 = tl.split(tl.permute(tl.reshape(dk, [BLOCK, 2, HALF]), [0, 2, 1]))
  cos, sin = _angles(cos_ptr, sin_ptr, keys % SEQ, HALF, ROPE)
  _store_turned(dqkv_ptr, dk_1, dk_2, keys, here, HEADS + kv, WHOLE, cos, sin, HALF, SCALE, ROPE, EVEN)
  _store(dqkv_ptr, dv, keys, here, HEADS + KV_HEADS + kv, 0, WHOLE, HALF, 2 * HALF, EVEN)


@triton.jit
def _power(s, top_R, SCALE: tl.constexpr):
  """2^(scaled s - top), one fused operation before the exponential: left to itself LLVM draws the scale into the mask."""
  return tl.exp2(tl.fma(s, tl.full(s.shape, SCALE * LOG2E, tl.float32), tl.broadcast_to(-top_R[:, None], s.shape)))


@triton.jit
def _masked(s, rows, keys, SEQ: tl.constexpr, PACK: tl.constexpr):
  """s where a row may look: at no later key and at none of another sequence."""
  if PACK // SEQ == 1:
    return tl.where(keys <= rows, s, float('-inf'))
  else:
    # One comparison for both: as unsigned numbers, later keys lie further back than any position.
    return tl.where((rows - keys).to(tl.uint32) <= (rows % SEQ).to(tl.uint32), s, float('-inf'))


@triton.jit
def _keys_values(
  qkv_ptr, cos_ptr, sin_ptr, keys, here, kv, SEQ: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr,
  HALF: tl.constexpr, ROPE: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
  cos, sin = _angles(cos_ptr, sin_ptr, keys % SEQ, HALF, ROPE)
  k_1, k_2 = _rotated(qkv_ptr, keys, here, HEADS + kv, HEADS + 2 * KV_HEADS, cos, sin, HALF, ROPE, EVEN)
  v = _load(qkv_ptr, keys, here, HEADS + KV_HEADS + kv, 0, HEADS + 2 * KV_HEADS, HALF, 2 * HALF, EVEN)
  return k_1, k_2, v


@triton.jit
def _angles(cos_ptr, sin_ptr, position_R, HALF: tl.constexpr, ROPE: tl.constexpr):
  if ROPE:
    places = position_R[:, None] * HALF + tl.arange(0, HALF)[None, :]
    return tl.load(cos_ptr + places), tl.load(sin_ptr + places)
  else:
    return 1.0, 0.0


@triton.jit
def _rotated(ptr, rows, here, head, HEADS: tl.constexpr, cos, sin, HALF: tl.constexpr, ROPE: tl.constexpr, EVEN: tl.constexpr):
  """The two halves of a head's channels, rotated; two tiles, because the pairs (i, i + C/2) then lie in the same places."""
  x_1 = _load(ptr, rows, here, head, 0, HEADS, HALF, HALF, EVEN)
  x_2 = _load(ptr, rows, here, head, HALF, HEADS, HALF, HALF, EVEN)
  if ROPE:
    first, second = x_1.to(tl.float32), x_2.to(tl.float32)
    return (first * cos - second * sin).to(x_1.dtype), (second * cos + first * sin).to(x_1.dtype)
  else:
    return x_1, x_2


@triton.jit
def _store_turned(
  ptr, x_1, x_2, rows, here, head, HEADS: tl.constexpr, cos, sin, HALF: tl.constexpr, SCALE: tl.constexpr,
  ROPE: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
  """Scales the gradient of a rotated head, turns it back and stores it."""
  x_1 *= SCALE
  x_2 *= SCALE
  if ROPE:
    turned = x_1 * cos + x_2 * sin
    x_2 = x_2 * cos - x_1 * sin
    x_1 = turned
  _store(ptr, x_1, rows, here, head, 0, HEADS, HALF, HALF, EVEN)
  _store(ptr, x_2, rows, here, head, HALF, HEADS, HALF, HALF, EVEN)


@triton.jit
def _load(ptr, rows, here, head, column, HEADS: tl.constexpr, HALF: tl.constexpr, WIDTH: tl.constexpr, EVEN: tl.constexpr):
  places = rows[:, None] * (HEADS * 2 * HALF) + (head * 2 * HALF + column + tl.arange(0, WIDTH))[None, :]
  if EVEN:
    return tl.load(ptr + places)
  else:
    return tl.load(ptr + places, (rows < here)[:, None], 0.0)


@triton.jit
def _store(ptr, x, rows, here, head, column, HEADS: tl.constexpr, HALF: tl.constexpr, WIDTH: tl.constexpr, EVEN: tl.constexpr):
  places = rows[:, None] * (HEADS * 2 * HALF) + (head * 2 * HALF + column + tl.arange(0, WIDTH))[None, :]
  if EVEN:
    tl.store(ptr + places, x.to(ptr.dtype.element_ty))
  else:
    tl.store(ptr + places, x.to(ptr.dtype.element_ty), (rows < here)[:, None])
