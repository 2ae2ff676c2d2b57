"""Held-out text in bits per byte, by one rule everywhere.

A document's first token is scored from the end-of-text token before it, the end-of-text token's own loss is left out, and the
bytes are the documents' real UTF-8 bytes, not what the tokens decode to.
"""

from typing import Any

import torch

from yxanul.config.spec import ExperimentSpec
from yxanul.data.batches import evaluation_batches
from yxanul.data.shards import Shards
from yxanul.kernels import fp8
from yxanul.kernels.capabilities import Engines
from yxanul.model.transformer import Params
from yxanul.training.distributed import ALONE, Processes
from yxanul.training.metrics import bits_per_byte
from yxanul.training.step import Text, make_eval_step
from yxanul.training.stop import StopRequest


class Validation:
  """The held-out text of a run. `validation(params, fp8_state, seq_len)` scores it in rows of `seq_len` tokens.

  Several processes share the batches out, and all of them get the result.

  Returns the fields of an evaluation line (`eval_seq_len, val_loss` in nats a token, `val_bpb, val_bytes`), or None when a
  request to stop came in between.
  """

  def __init__(
    self,
    spec: ExperimentSpec,
    shards: Shards,
    engines: Engines,
    text: Text,
    device: torch.device,
    stop: StopRequest,
    processes: Processes = ALONE,
  ):
    self._spec, self._shards, self._engines, self._text = spec, shards, engines, text
    self._device, self._stop, self._processes = device, stop, processes

  def __call__(self, params: Params, fp8_state: fp8.State, seq_len: int) -> dict[str, Any] | None:
    evaluation = self._spec.evaluation
    # Shorter rows, more of them: a batch always holds the same number of tokens.
    rows = max(1, evaluation.batch_size * evaluation.seq_len // seq_len)
    batches = evaluation_batches(self._shards, seq_len, rows, evaluation.max_tokens, max_bytes=evaluation.max_bytes or None)
    step = make_eval_step(self._spec, self._engines, self._text)
    nats = torch.zeros((), dtype=torch.float64, device=self._device)
    counted = 0
    processes = self._processes
    for number, batch in enumerate(batches):
      if number % processes.world == 0 and processes.any(bool(self._stop)):
        return None
      if number % processes.world != processes.rank:
        continue
      inputs, targets, mask = (x.to(self._device) for x in (batch.inputs, batch.targets, batch.mask))
      nats += step(params, fp8_state, inputs, targets, mask).sum()
      counted += int(batch.mask.sum())
    total, counted = processes.total([float(nats), counted])
    return {
      'eval_seq_len': seq_len,
      'val_loss': total / counted,
      'val_bpb': bits_per_byte(total, batches.n_bytes),
      'val_bytes': batches.n_bytes,
    }
