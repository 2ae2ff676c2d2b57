"""The training step of a stage, and the evaluation step: pure functions of state and batch.

`train_step(state, tokens, learning_rate, max_norm) -> (state, metrics)`. Purity is at this seam: nothing is read from or
written to anywhere else, and the same state and batch give the same result bit for bit (on a GPU under
`training.deterministic`, as cuDNN's attention adds in any order). Inside, the state is donated: its tensors are updated in
place, so the old state must not be used again.

Shapes: B rows, T length, N = B*T tokens. A batch travels as rows of T + 1 tokens: inputs are all but the last of each, targets
all but the first.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from yxanul.config.curriculum_spec import StageSpec
from yxanul.config.model_spec import ModelSpec, PrecisionSpec
from yxanul.config.spec import ExperimentSpec
from yxanul.kernels import fp8
from yxanul.kernels.attention import document_mask, window_mask
from yxanul.kernels.capabilities import Engines
from yxanul.kernels.fp8_linears import Fp8Linears
from yxanul.kernels.linear import Linears
from yxanul.kernels.vocab_loss import vocab_loss
from yxanul.model import transformer
from yxanul.model.transformer import Numerics
from yxanul.optim.transform import Hyper, Transform, apply_updates, global_norm
from yxanul.training import depth, spikes
from yxanul.training.distributed import Reduction
from yxanul.training.sharding import WHOLE, Sharding
from yxanul.training.state import TrainState


class Text(NamedTuple):
  """What a step must know of the tokenizer."""

  end_of_text_id: int
  token_bytes_V: Tensor  # int32: UTF-8 bytes that each entry stands for; 0 for the special ones


class StepMetrics(NamedTuple):
  """Sums over one step, 0-d FP64 tensors on the device; the loop reads them one step late."""

  loss: Tensor  # what is minimized: mean nats a target, plus the z-loss where there is one
  nats: Tensor  # of the targets that count for bits per byte: all but the end-of-text
  bytes: Tensor  # of text in those targets
  grad_norm: Tensor  # before clipping
  skipped: Tensor  # 1 when nothing was updated: loss or gradient was not finite, or the loss was a spike
  spike: Tensor  # 1 when that was a spike
  asks: Tensor  # processes that ask all to come to a boundary, see training.loop; 0 where there is but one


TrainStep = Callable[[TrainState, Tensor, Tensor, Tensor], tuple[TrainState, StepMetrics]]


def is_fp8(engines: Engines) -> bool:
  """Whether the block linears run in FP8, and so have state."""
  return engines.linear in ('te', 'torch', 'reference')


def matmul_format(engines: Engines, precision: PrecisionSpec) -> str:
  """The format that the block linears really run in: fp8 | bf16 | tf32 | fp32."""
  if is_fp8(engines):
    return 'fp8'
  return 'tf32' if engines.linear == 'fp32' and precision.tf32 else engines.linear


def plain_numerics(spec: ExperimentSpec, engines: Engines, compiled: bool = False) -> Numerics:
  """Numerics without FP8: for evaluation and sampling, and for training where no linear runs in FP8."""
  dtype = torch.float32 if engines.linear == 'fp32' else torch.bfloat16
  return Numerics(Linears(spec.model), dtype, engines.attention, compiled, spec.training.recompute == 'blocks')


def fp8_numerics(spec: ExperimentSpec, engines: Engines, engine: str, scale: Tensor, amax: Tensor, compiled: bool) -> Numerics:
  """Numerics with the block linears in FP8 through `engine`, over (L, 4, 3) FP32 scales; amaxes are raised in place."""
  linears = Fp8Linears(spec.model, spec.precision, engine, scale, amax)
  return dataclasses.replace(plain_numerics(spec, engines, compiled), linears=linears)


def loss_of(
  params,
  inputs_BT: Tensor,
  targets_N: Tensor,
  weights_N: Tensor,
  stage: StageSpec,
  spec: ModelSpec,
  numerics: Numerics,
  text: Text,
  engine: str,
  layers: transformer.Layers = transformer.layers,
  z_loss: float = 0.0,
):
  """sum(weights * (nats + z)), and every token's nats, of rows under the stage's masks; z is the z-loss (`kernels.vocab_loss`).

  Args:
    inputs_BT, targets_N: int; the rows need not follow one another.
    weights_N: FP32.
  """
  mask = document_mask(inputs_BT, text.end_of_text_id) if stage.mask_documents else None
  if stage.window:
    window = window_mask(inputs_BT.shape[1], stage.window, inputs_BT.device)
    mask = window if mask is None else mask & window
  x_BTD = transformer.hidden(params, inputs_BT, spec, numerics, mask, layers)
  x_NR = transformer.head_input(params, x_BTD, spec).flatten(0, 1)
  table_VR = params['embedding.table']
  return vocab_loss(x_NR, table_VR, targets_N, weights_N, engine, z_loss, spec.logit_softcap, numerics.compiled)


def differentiate(
  params, tokens, stage, spec: ExperimentSpec, numerics, engines: Engines, text, pieces: int = 1, reduction=None
):
  """Loss (its mean over the global batch), nats of the targets that count, and the gradients by name.

  Sums in FP32 over `pieces` of this process's rows; with a reduction the gradients of the blocks, and they alone, are those
  of all processes.
  """
  leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
  n_rows = len(tokens)
  size = n_rows // pieces
  weights_M = torch.full((size * stage.seq_len,), 1.0 / stage.tokens_per_step, dtype=torch.float32, device=tokens.device)
  loss = nats = gradients = None
  layers, complete = transformer.layers, set()  # complete: gradients that hold the earlier pieces already
  for start in range(0, n_rows, size):
    piece = tokens[start : start + size]
    if reduction is not None and start + size == n_rows:
      layers = functools.partial(reduction.layers, before=gradients)
      complete = {name for name in leaves if name.startswith('blocks.')}
    inputs_BT, targets_M = piece[:, :-1].contiguous(), piece[:, 1:].flatten()
    part, nll_M = loss_of(
      leaves, inputs_BT, targets_M, weights_M, stage, spec.model, numerics, text, engines.vocab_loss, layers,
      spec.optimizer.z_loss,
    )  # fmt: skip
    part_gradients = dict(zip(leaves, torch.autograd.grad(part, list(leaves.values())), strict=True))
    part, part_nats = part.detach(), (nll_M * (targets_M != text.end_of_text_id)).double().sum()
    if gradients is None:
      loss, nats, gradients = part, part_nats, part_gradients
    else:
      loss, nats = loss + part, nats + part_nats
      for name, gradient in part_gradients.items():
        gradients[name] = gradient if name in complete else gradients[name].add_(gradient)
      del gradient
    del part_gradients  # or they would stand beside those of the next piece
  return loss, nats, gradients


def make_train_step(
  spec: ExperimentSpec,
  stage: StageSpec,
  optimizer: Transform,
  engines: Engines,
  text: Text,
  pieces: int = 1,
  compiled: bool = False,
  reduction: Reduction | None = None,
  sharding: Sharding = WHOLE,
) -> TrainStep:
  """The step of one stage.

  Args:
    pieces: the rows go through the model in this many equal parts, whose gradients are summed: less memory, same step.
    compiled: chains of elementwise operations are fused by torch.compile.
    reduction: makes it one step of several processes, each with its share of the stage's rows; None for one process.
    sharding: of what the optimizer's state is this process's. Divided and without a reduction, the step is a trial of what
      fits: it takes the memory for the others' slices of the parameters, and leaves them as they were.

  Returns:
    train_step(state, tokens, learning_rate, max_norm): tokens (B, T + 1) int32, the rates 0-d FP32.
  """
  assert stage.batch_size % (pieces * (reduction.world if reduction else 1)) == 0
  update = torch.compile(optimizer.update, dynamic=False) if compiled else optimizer.update
  n_layers = spec.model_of(stage).n_layers
  kind = stage.seq_len + 1 - n_layers / spec.model.n_layers  # of the loss

  def train_step(state: TrainState, tokens: Tensor, learning_rate: Tensor, max_norm: Tensor) -> tuple[TrainState, StepMetrics]:
    numerics, amax = plain_numerics(spec, engines, compiled), None
    if is_fp8(engines):
      scale = state.fp8_state['scale']
      amax = torch.zeros_like(scale)
      numerics = fp8_numerics(spec, engines, engines.linear, scale, amax, compiled)
    params = depth.first(state.params, n_layers)
    loss, nats, gradients = differentiate(params, tokens, stage, spec, numerics, engines, text, pieces, reduction)
    with torch.no_grad():
      n_bytes, asks = text.token_bytes_V[tokens[:, 1:]].sum(), torch.zeros_like(nats)
      if reduction is not None:
        loss, nats, n_bytes, asks = reduction.complete(gradients, amax, [loss, nats, n_bytes])
        loss = loss.float()
      # From here on every process has the same numbers.
      norm = global_norm(gradients)
      finite = torch.isfinite(loss) & torch.isfinite(norm)
      fp8_state = state.fp8_state
      if amax is not None:
        finite = finite & torch.isfinite(amax).all()
      spike, loss_state = spikes.judge(state.loss_state, loss, kind, spec.training.spike_deviations)
      spike = spike & finite
      taken = finite & ~spike
      loss_state = {name: torch.where(taken, new, state.loss_state[name]) for name, new in loss_state.items()}
      if amax is not None:
        fp8_state = fp8.update(fp8_state, amax, spec.precision, taken)
      ok = taken.float()
      hyper, own_params = Hyper(learning_rate, max_norm, norm, ok), sharding.own(params)
      updates, opt_state = update(sharding.own(gradients), depth.first(state.opt_state, n_layers), own_params, hyper)
      apply_updates(own_params, updates)
      opt_state = depth.restore(opt_state, state.opt_state)
      del gradients, updates  # what is gathered takes their room
      sharding.gather(sharding.divided(state.params), sends=reduction is not None)
      metrics = StepMetrics(
        loss=loss.double(),
        nats=nats,
        bytes=n_bytes.double(),
        grad_norm=norm.double(),
        skipped=1.0 - ok.double(),
        spike=spike.double(),
        asks=asks,
      )
    data_state = state.data_state + stage.tokens_per_step
    return TrainState(state.step + 1, state.params, opt_state, fp8_state, loss_state, state.rng, data_state), metrics

  return train_step


def calibrate(
  state: TrainState,
  tokens: Tensor,
  stage: StageSpec,
  spec: ExperimentSpec,
  engines: Engines,
  text: Text,
  pieces: int = 1,
  reduction: Reduction | None = None,
) -> TrainState:
  """The state with FP8 scales from a forward and backward over a first batch; nothing else changes.

  Scales of 1 would start blind: every gradient of a mean over many tokens underflows E5M2.
  """
  scale = state.fp8_state['scale']
  amax = torch.zeros_like(scale)
  numerics = fp8_numerics(spec, engines, 'calibrate', scale, amax, False)
  differentiate(state.params, tokens, stage, spec, numerics, engines, text, pieces)
  if reduction is not None:
    reduction.maximum(amax)
  return state._replace(fp8_state=fp8.update(state.fp8_state, amax, spec.precision, torch.isfinite(amax).all()))


EvalStep = Callable[[transformer.Params, fp8.State, Tensor, Tensor, Tensor], Tensor]


def make_eval_step(spec: ExperimentSpec, engines: Engines, text: Text) -> EvalStep:
  """eval_step(params, fp8_state, inputs_BT int32, targets_BT int32, counts_BT bool) -> nats (B, T) FP64, 0 where not counted.

  `precision.fp8_evaluation` decides whether the linears run in FP8, with the state's scales, or without it. The state stays
  as it is either way: what evaluation sees does not move the scales of training.
  """
  stage = spec.curriculum.stages[-1]

  @torch.no_grad()
  def eval_step(
    params: transformer.Params, fp8_state: fp8.State, inputs_BT: Tensor, targets_BT: Tensor, counts_BT: Tensor
  ) -> Tensor:
    numerics = plain_numerics(spec, engines)
    if spec.precision.fp8_evaluation and is_fp8(engines):
      scale = fp8_state['scale']
      numerics = fp8_numerics(spec, engines, engines.linear, scale, torch.zeros_like(scale), False)
    targets_N, weights_N = targets_BT.flatten(), counts_BT.flatten().float()
    _, nll_N = loss_of(params, inputs_BT, targets_N, weights_N, stage, spec.model, numerics, text, engines.vocab_loss)
    return nll_N.double().view(counts_BT.shape) * counts_BT

  return eval_step
