"""The training step of a stage, and the evaluation step: pure functions of state and batch.

`train_step(state, tokens, hyper) -> (state, metrics)`. Purity is at this seam: nothing is read from or written to anywhere
else, and the same state and batch give the same result bit for bit. Inside, the state is donated: its tensors are updated
in place, so the old state must not be used again.

Shapes: B rows, T length, N = B*T tokens. A batch of rows travels as the one stretch of text it is, N + 1 tokens: inputs
are all but the last, targets all but the first.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from yxanul.config.spec import ExperimentSpec, StageSpec
from yxanul.kernels.attention import document_mask
from yxanul.kernels.vocab_loss import vocab_loss
from yxanul.model import transformer
from yxanul.model.transformer import Numerics
from yxanul.optim.transform import Hyper, Transform, apply_updates, global_norm
from yxanul.training.state import TrainState

LN2 = math.log(2.0)


class Text(NamedTuple):
  """What a step must know of the tokenizer."""

  end_of_text_id: int
  token_bytes_V: Tensor  # int32: UTF-8 bytes that each entry stands for; 0 for the special ones


class StepMetrics(NamedTuple):
  """Sums over one step, 0-d FP64 tensors on the device; the loop reads them one step late."""

  loss: Tensor  # mean nats a target
  nats: Tensor  # of the targets that count for bits per byte: all but the end-of-text
  bytes: Tensor  # of text in those targets
  grad_norm: Tensor  # before clipping
  skipped: Tensor  # 1 when loss or gradient was not finite and nothing was updated


TrainStep = Callable[[TrainState, Tensor, Tensor, Tensor], tuple[TrainState, StepMetrics]]


def loss_of(
  params, tokens, weights_N, seq_len, mask_documents, spec: ExperimentSpec, numerics: Numerics, text: Text, engine: str
):
  """Weighted loss and every token's nats for rows of `seq_len`; `tokens` (N + 1,) int."""
  inputs_BT, targets_N = tokens[:-1].view(-1, seq_len), tokens[1:]
  mask = document_mask(inputs_BT, text.end_of_text_id) if mask_documents else None
  x_BTD = transformer.hidden(params, inputs_BT, spec.model, numerics, mask)
  x_NR = transformer.head_input(params, x_BTD, spec.model).flatten(0, 1)
  return vocab_loss(x_NR, params['embedding.table'], targets_N, weights_N, engine)


def make_train_step(
  spec: ExperimentSpec, stage: StageSpec, optimizer: Transform, numerics: Numerics, text: Text, vocab_loss_engine: str
) -> TrainStep:
  """The step of one stage.

  Returns:
    train_step(state, tokens, learning_rate, max_norm): tokens (N + 1,) int32, the rates 0-d FP32.
  """

  def train_step(state: TrainState, tokens: Tensor, learning_rate: Tensor, max_norm: Tensor) -> tuple[TrainState, StepMetrics]:
    names = list(state.params)
    leaves = {name: p.detach().requires_grad_() for name, p in state.params.items()}
    n_tokens = tokens.shape[0] - 1
    weights_N = torch.full((n_tokens,), 1.0 / n_tokens, dtype=torch.float32, device=tokens.device)
    loss, nll_N = loss_of(
      leaves, tokens, weights_N, stage.seq_len, stage.mask_documents, spec, numerics, text, vocab_loss_engine
    )
    gradients = dict(zip(names, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    with torch.no_grad():
      norm = global_norm(gradients)
      ok = (torch.isfinite(loss) & torch.isfinite(norm)).float()
      updates, opt_state = optimizer.update(gradients, state.opt_state, state.params, Hyper(learning_rate, max_norm, norm, ok))
      params = apply_updates(state.params, updates)
      targets_N = tokens[1:]
      counts_N = (targets_N != text.end_of_text_id).double()
      metrics = StepMetrics(
        loss=loss.detach().double(),
        nats=(nll_N * counts_N).sum(),
        bytes=text.token_bytes_V[targets_N].sum().double(),
        grad_norm=norm.double(),
        skipped=1.0 - ok.double(),
      )
    data_state = state.data_state + n_tokens
    return TrainState(state.step + 1, params, opt_state, state.fp8_state, state.rng, data_state), metrics

  return train_step


def make_eval_step(spec: ExperimentSpec, seq_len: int, numerics: Numerics, text: Text, vocab_loss_engine: str):
  """eval_step(params, tokens (N + 1,), counts_BT bool) -> nats over the targets that count, 0-d FP64."""

  @torch.no_grad()
  def eval_step(params: transformer.Params, tokens: Tensor, counts_BT: Tensor) -> Tensor:
    weights_N = counts_BT.flatten().float()
    _, nll_N = loss_of(params, tokens, weights_N, seq_len, False, spec, numerics, text, vocab_loss_engine)
    return (nll_N.double() * counts_BT.flatten()).sum()

  return eval_step
