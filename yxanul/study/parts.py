"""The mission's claims about parts of the model, each beside what was measured or computed.

RMSNorm and SwiGLU are two runs under one clock, as the savings are. Attention without its matrix of scores is timed by itself,
against the same attention written out in the same format, in the rows of the baseline. The key/value cache is arithmetic.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yxanul.config.model_spec import ModelSpec
from yxanul.config.spec import ExperimentSpec
from yxanul.data.prepare_journal import write_atomically
from yxanul.kernels.attention import attention
from yxanul.kernels.bench.measure import timed
from yxanul.kernels.capabilities import choose_engines, detect
from yxanul.study.ablation import BASELINE, PARTS, Row, Runs, factor

NORM_AND_MLP, GROUPED = PARTS


def measure_attention(spec: ExperimentSpec, path: Path) -> None:
  """Writes ms and peak bytes of attention, written out and by the device's best kernel; meant for a process of its own."""
  capabilities = detect()
  device = torch.device(capabilities.device)
  stage = spec.curriculum.stages[-1]
  engines = choose_engines(capabilities, spec.precision)
  dtype = torch.bfloat16 if device.type == 'cuda' else torch.float32  # the kernels take 16 bits only
  best = engines.attention if engines.linear != 'fp32' or device.type == 'cpu' else 'flash'
  ways = {'written_out': written_out, best: functools.partial(attention, engine=best)}
  rows = {name: _measure(way, spec.model, stage.batch_size, stage.seq_len, dtype, device) for name, way in ways.items()}
  record = {'rows': stage.batch_size, 'seq_len': stage.seq_len, 'dtype': str(dtype).removeprefix('torch.'), 'best': best}
  write_atomically(path, json.dumps(record | {'hardware': capabilities.name, 'engines': rows}, indent=1) + '\n')


def written_out(q_BTHC: Tensor, k_BTKC: Tensor, v_BTKC: Tensor) -> Tensor:
  """Causal attention that holds its scores, in the inputs' format throughout; torch's own (`math`) turns BF16 into FP32."""
  q, k, v = (x.transpose(1, 2) for x in (q_BTHC, k_BTKC, v_BTKC))
  k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
  scores = q @ k.mT * q.shape[-1] ** -0.5
  later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
  return (scores.masked_fill(later, -torch.inf).softmax(-1) @ v).transpose(1, 2)


def _measure(
  attend: Callable[..., Tensor], model: ModelSpec, rows: int, length: int, dtype: torch.dtype, device: torch.device
) -> Row:
  """Forward and backward, as `timed`: 'ms' (median), its percentiles, 'n', and on a GPU 'extra_bytes'."""
  heads = (model.n_heads, model.n_kv_heads, model.n_kv_heads)
  inputs = [torch.randn(rows, length, n, model.head_dim, dtype=dtype, device=device, requires_grad=True) for n in heads]
  dout = torch.randn_like(inputs[0])
  return timed(lambda: torch.autograd.grad(attend(*inputs), inputs, dout), device, captures=True)


def read(path: Path) -> dict[str, Any] | None:
  """What `measure_attention` wrote; None where it did not, or measured something else, as it once did."""
  measured = json.loads(path.read_text()) if path.exists() else None
  return measured if measured and 'written_out' in measured['engines'] else None


def rows(runs: Runs, grouped: ModelSpec, measured: dict[str, Any] | None) -> list[Row]:
  """'claim', 'claimed', 'found' (None: not measured), 'how'.

  Args:
    grouped: the model whose key/value heads are shared.
    measured: what `measure_attention` wrote.
  """
  norm_and_mlp, gqa = factor(runs, BASELINE, NORM_AND_MLP), factor(runs, BASELINE, GROUPED)
  cache = 1 - grouped.n_kv_heads / grouped.n_heads
  seconds = f'{BASELINE} against {NORM_AND_MLP}, seconds to equal quality, less 1'
  cost = '' if gqa is None else f'; it is {gqa["factor"]:.2f} times as fast to equal quality as {BASELINE}'
  found = [
    {'claim': 'RMSNorm and SwiGLU', 'claimed': 0.15, 'found': norm_and_mlp and norm_and_mlp['factor'] - 1, 'how': seconds},
    {
      'claim': 'key/value cache saved by grouped queries',
      'claimed': 0.75,
      'found': cache,
      'how': f'1 - {grouped.n_kv_heads} / {grouped.n_heads}, arithmetic{cost}',
    },
  ]
  speed = memory = None
  how = 'attention alone, forward and backward, against scores written out'
  if measured:
    plain, best = measured['engines']['written_out'], measured['engines'][measured['best']]
    speed = plain['ms'] / best['ms']
    memory = plain['extra_bytes'] / best['extra_bytes'] if 'extra_bytes' in best else None
    how += (
      f': {measured["best"]}, {measured["rows"]} rows of {measured["seq_len"]}, {measured["dtype"]}, {measured["hardware"]}'
    )
  found.append({'claim': 'flash attention, times as fast', 'claimed': 3.0, 'found': speed, 'how': how})
  found.append({'claim': 'flash attention, times less memory', 'claimed': 10.0, 'found': memory, 'how': how})
  return found
