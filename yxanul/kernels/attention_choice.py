"""Which attention a stage runs through: the fastest of those that say the same, tried on the device itself."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from yxanul.config.model_spec import ModelSpec
from yxanul.kernels.attention import packed_attention, rope_tables, runs, supports_long, supports_short
from yxanul.kernels.capabilities import Capabilities

TRIAL_TOKENS = 131_072
LIMIT = 1 / 16  # of `difference`; rounding alone comes to 1/80 (lengths 8 to 2048), a tile of other values to 1
_TILE = 64
_SMALL = 1 / 20
_MOST_SCORES = 2**26  # that plain attention writes out at a time, in FP32
_HEAD_START_CYCLES = 10_000_000  # some 5 ms


class Trials(NamedTuple):
  """Engines by what came out."""

  milliseconds: dict[str, float]  # forward and backward, the fastest first
  off: dict[str, float]  # the `difference` of those that are wrong here


def candidates(model: ModelSpec, seq_len: int, capabilities: Capabilities, device: torch.device) -> list[str]:
  """The engines that may take rows of `seq_len`, `sdpa` first."""
  asked = ('sdpa', 'flash', 'cudnn', *(['flash_attn'] if capabilities.has('flash_attn') else []))
  engines = list(dict.fromkeys(runs(engine, seq_len) for engine in asked))
  if supports_short(seq_len, model.head_dim, device):
    engines.append('short')
  if supports_long(seq_len, model.n_heads, model.n_kv_heads, model.head_dim, device):
    engines.append('grouped')
  return engines


def attempt(model: ModelSpec, seq_len: int, engines: Sequence[str], device: torch.device, trials: int = 5) -> Trials:
  """Times each engine that runs rows of `seq_len`, and leaves out what is wrong.

  Right is what plain attention, its scores written out, says of the last rows, and torch's own (`sdpa`) of all, where it says
  the same of those; where it does not, or does not run, nothing can be held to anything, and nothing is found.

  131,072 tokens of random BF16 stand for the batch, and the device is kept busy until all is launched: in a captured step no
  engine's time is that of its launches either. A batch of that size gives every program of a kernel as many tiles as a step
  does, one after the other; what goes wrong only then, on this card and under its driver, is seen here.
  """
  rows = max(1, TRIAL_TOKENS // seq_len)
  qkv_BTO = torch.randn(rows, seq_len, model.d_qkv, dtype=torch.bfloat16, device=device, requires_grad=True)
  dout_BTO = torch.randn(rows, seq_len, model.d_query, dtype=torch.bfloat16, device=device)
  tables = rope_tables(seq_len, model.head_dim, model.rope_theta, device) if model.position == 'rope' else None
  plain_rows = min(rows, max(1, _MOST_SCORES // (model.n_heads * seq_len**2)))
  milliseconds, off, right = {}, {}, None
  for engine in ('sdpa', *(engine for engine in engines if engine != 'sdpa')):
    try:
      times = [_trial(qkv_BTO, dout_BTO, model, tables, engine)[0] for _ in range(trials)]
      last, *result = _trial(qkv_BTO, dout_BTO, model, tables, engine)
      if engine == 'sdpa':
        right = result
        plain = _plain(qkv_BTO[-plain_rows:], dout_BTO[-plain_rows:], model, tables)
        pairs = [(a[-plain_rows:], b) for a, b in zip(right, plain, strict=True)]
      else:
        pairs = list(zip(result, right, strict=True))
      worst = max(difference(a, b, model.head_dim) for a, b in pairs)
    except torch.AcceleratorError:  # the device is lost: whatever ran next would fail for a reason that is not its own
      raise
    except Exception:  # each backend and Triton's compiler raise their own kinds for a shape that they do not take
      worst = None
    if worst is not None and worst < LIMIT:
      milliseconds[engine] = sorted((*times[1:], last))[trials // 2]
    elif worst is not None:
      off[engine] = worst
    if 'sdpa' not in milliseconds:
      break
  return Trials(dict(sorted(milliseconds.items(), key=lambda item: item[1])), off)


def agreed(trials: Sequence[Trials]) -> Trials:
  """What several devices may run, each with trials of its own: what is right on all, in the order of the first."""
  off: dict[str, float] = {}
  for trial in trials:
    off |= {engine: max(worst, off.get(engine, 0.0)) for engine, worst in trial.off.items()}
  first, *others = (trial.milliseconds for trial in trials)
  return Trials({engine: ms for engine, ms in first.items() if all(engine in other for other in others)}, off)


def difference(a_BTO: Tensor, b_BTO: Tensor, head_dim: int) -> float:
  """The largest norm of a - b over 64 tokens of one head, by the root mean square of b's norms there over all rows (or by a
  twentieth of that of all tiles, where it is smaller).

  Rows that are not whole tiles of 64 are looked at whole. Infinite where a or b is not finite.
  """
  length = a_BTO.shape[1]
  tile = _TILE if length % _TILE == 0 else length

  def norms(x_BTO: Tensor) -> Tensor:  # (B, tiles, heads)
    tiles = x_BTO.unflatten(2, (-1, head_dim)).unflatten(1, (-1, tile))
    return torch.linalg.vector_norm(tiles, dim=(2, 4), dtype=torch.float32)

  square_TH = norms(b_BTO).square().mean(0)
  # A row of one token has no gradient of scores but rounding: what is small beside the rest is measured by the rest.
  size_TH = torch.maximum(square_TH, _SMALL**2 * square_TH.mean()).sqrt()
  worst = (norms(a_BTO - b_BTO).amax(0) / size_TH).max().item()
  return worst if math.isfinite(worst) else math.inf


def _plain(qkv_BTO: Tensor, dout_BTO: Tensor, model: ModelSpec, tables) -> tuple[Tensor, Tensor]:
  """The output and the gradient of qkv by scores that are written out."""
  qkv_BTO = qkv_BTO.detach().requires_grad_()
  out_BTO = packed_attention(qkv_BTO, model, tables, None, 'math')
  return out_BTO.detach(), torch.autograd.grad(out_BTO, qkv_BTO, dout_BTO)[0]


def _trial(qkv_BTO: Tensor, dout_BTO: Tensor, model: ModelSpec, tables, engine: str) -> tuple[float, Tensor, Tensor]:
  """Milliseconds, the output and the gradient of qkv."""
  start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
  torch.cuda._sleep(_HEAD_START_CYCLES)
  start.record()
  out_BTO = packed_attention(qkv_BTO, model, tables, None, engine, fused=True)
  (dqkv_BTO,) = torch.autograd.grad(out_BTO, qkv_BTO, dout_BTO)
  end.record()
  end.synchronize()
  return start.elapsed_time(end), out_BTO.detach(), dqkv_BTO
