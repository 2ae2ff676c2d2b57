"""Device memory of one training step, estimated part by part from the specs.

It adds up the tensors that have to exist at the moment when memory peaks, the start of the backward pass; it leaves out the
CUDA context (some 0.5 GB), what the allocator keeps for itself, and libraries' own buffers. It supposes fused kernels: an
operation keeps only what its own backward pass reads. Composed from plain torch operations, norms, rotations and activations
keep several intermediate results each: the activations of an eager step on a CPU take some 1.4 times as much (FP32).

What is kept for the backward pass, per token and block (a: bytes of an activation, 4 in FP32 and 2 otherwise; w: bytes of
a linear's saved input, 1 when that linear runs in FP8 and a otherwise):

| operation      | keeps                                                                                  |
|----------------|----------------------------------------------------------------------------------------|
| attention_norm | its input a x d_model and its statistics (FP32: one for RMSNorm, two for LayerNorm)     |
| qkv            | its input w x d_model                                                                  |
| attention      | rotated query and key, value, output a x (2 d_query + 2 d_kv); log-sum-exp 4 x n_heads |
| (short rows)   | the packed projection a x d_qkv, for a GPU's kernel that recomputes all else            |
| attention_out  | its input in FP8, d_query; in other formats that is the attention's output, kept above |
| mlp_norm       | as attention_norm                                                                      |
| up             | its input w x d_model                                                                  |
| activation     | its input a x d_up                                                                     |
| down           | its input w x d_hidden                                                                 |

Outside the blocks: the token and its target (2 x 8), the looked-up row of a factorized table, the final norm, the head's
input and its projection, and one FP32 log-sum-exp.
"""

import bisect
import dataclasses
import math

from yxanul.config.curriculum_spec import StageSpec
from yxanul.config.groups import optimizer_groups
from yxanul.config.model_spec import ModelSpec, PrecisionSpec
from yxanul.config.spec import ExperimentSpec

USABLE_SHARE = 0.85  # of the memory a process may use: the rest is for what the estimate leaves out
SHORT_ROWS = 256  # tokens of the longest row that kernels.attention_short takes
FUSED_LOSS_WIDTHS = (16, 32, 64, 128)  # in front of the head, for which kernels.vocab_loss_triton is there
VOCAB_CHUNK_BYTES = 2**30  # of FP32 logits that exist at one time: kernels.vocab_loss_compiled.CHUNK_BYTES


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
  """Bytes on one device, by part."""

  parameters_bytes: int  # FP32 master weights
  weight_copies_bytes: int  # the formats that matrix products read
  gradients_bytes: int  # FP32: those of the parts before, or those that take the place of activations
  optimizer_bytes: int  # FP32: AdamW's two moments, Muon's one
  activations_bytes: int  # kept for the backward pass
  workspace_bytes: int  # gradients inside one block while it is differentiated
  vocab_loss_bytes: int  # the head's two gradients, and a chunk of logits where one is held
  gather_bytes: int = 0  # with a divided optimizer: the buffers of the gather at the step's end, beyond what is free by then

  @property
  def total_bytes(self) -> int:
    return sum(dataclasses.astuple(self))


def _activation_bytes(precision: PrecisionSpec) -> int:
  return 4 if precision.matmul == 'fp32' else 2


def _is_fp8(precision: PrecisionSpec, linear: str) -> bool:
  return precision.matmul == 'fp8' and linear in precision.fp8_linears


def _linear_sizes(model: ModelSpec) -> dict[str, int]:
  """Weights of each linear of one block."""
  return {
    'qkv': model.d_model * model.d_qkv,
    'attention_out': model.d_query * model.d_model,
    'up': model.d_model * model.d_up,
    'down': model.d_hidden * model.d_model,
  }


def weight_copies_bytes(model: ModelSpec, precision: PrecisionSpec) -> int:
  """Bytes of the copies that matrix products read beside the FP32 master weights.

  An FP8 linear keeps its transpose for the backward pass, a byte a weight; the copy that the forward pass reads is dropped at
  once. The others, the table and the projection have one in BF16. Under FP32 the master weights serve.
  """
  if precision.matmul == 'fp32':
    return 0
  block = sum(size if _is_fp8(precision, name) else 2 * size for name, size in _linear_sizes(model).items())
  embedding = model.embedding_rank * (model.vocab_size + model.d_model) or model.vocab_size * model.d_model
  return model.n_layers * block + 2 * embedding


def saved_bytes_per_token(model: ModelSpec, precision: PrecisionSpec, seq_len: int) -> dict[str, int]:
  """Bytes a token keeps for the backward pass, by operation of one block, and 'ends' for all outside the blocks."""
  d, a = model.d_model, _activation_bytes(precision)
  statistics = 4 if model.norm == 'rmsnorm' else 8

  def saved_input(linear: str) -> int:
    return 1 if _is_fp8(precision, linear) else a

  attention = a * (2 * model.d_query + 2 * model.d_kv) + 4 * model.n_heads
  if a == 2 and seq_len <= SHORT_ROWS:
    attention = a * model.d_qkv
  ends = 16 + a * d + statistics + a * d + 4
  ends += 2 * a * model.embedding_rank  # in: the looked-up row; out: the head's projected input
  return {
    'attention_norm': a * d + statistics,
    'qkv': saved_input('qkv') * d,
    'attention': attention,
    'attention_out': model.d_query if _is_fp8(precision, 'attention_out') else 0,
    'mlp_norm': a * d + statistics,
    'up': saved_input('up') * d,
    'activation': a * model.d_up,
    'down': saved_input('down') * model.d_hidden,
    'ends': ends,
  }


def vocab_loss_bytes(model: ModelSpec, precision: PrecisionSpec, tokens: int) -> int:
  """The gradients of input and table; where no kernel keeps the logits on the chip, one chunk of them in FP32 (and of their
  gradient in the activations' format)."""
  rank, a = model.head_width, _activation_bytes(precision)
  gradients = a * tokens * rank + 4 * model.vocab_size * rank
  if a == 2 and rank in FUSED_LOSS_WIDTHS:
    return gradients
  chunk_tokens = min(tokens, max(1, VOCAB_CHUNK_BYTES // (4 * model.vocab_size)))
  return chunk_tokens * model.vocab_size * (4 + a) + gradients


def optimizer_bytes(spec: ExperimentSpec, devices: int = 1) -> int:
  """Bytes of the optimizer's state: two FP32 moments of what AdamW moves, one of what Muon does.

  Divided over `devices` (`training.shard_optimizer`): of the one that has most, for rows are divided as even as they come.
  """
  groups = optimizer_groups(spec.optimizer, spec.model)
  return sum((4 if groups[name].optimizer == 'muon' else 8) * n for name, n in _largest_slices(spec, devices).items())


def _largest_slices(spec: ExperimentSpec, devices: int) -> dict[str, int]:
  return {
    name: math.ceil(shape[0] / (1 if name in spec.undivided else devices)) * math.prod(shape[1:])
    for name, shape in spec.model.parameter_shapes().items()
  }


def owned_parameters(spec: ExperimentSpec, devices: int) -> int:
  """Parameters that the one of `devices` updates that has most, with the optimizer's state divided."""
  return sum(_largest_slices(spec, devices).values())


def sent_parameters(spec: ExperimentSpec, devices: int) -> int:
  """Those of them that it has to send to the others."""
  return sum(n for name, n in _largest_slices(spec, devices).items() if name not in spec.undivided)


def gather_bytes(spec: ExperimentSpec, devices: int) -> int:
  """Bytes of the buffers in which updated parameters are sent and received, with the optimizer's state divided."""
  return 4 * (1 + devices) * sent_parameters(spec, devices) if devices > 1 else 0


def estimate(model: ModelSpec, precision: PrecisionSpec, tokens: int, seq_len: int, recompute: str = 'none') -> MemoryEstimate:
  """Memory of one step over `tokens` tokens on one device (rows of its micro-batch times their length), under AdamW.

  Args:
    recompute: `training.recompute`; under `blocks` every block keeps its two inputs (the stream, and what is to be added to
      it), and one block at a time keeps what the table above says.

  Raises:
    ValueError: `tokens` is not positive.
  """
  if tokens < 1:
    raise ValueError(f'tokens: got {tokens}, wants at least 1 on each device')
  parameters = model.parameter_count()
  saved = saved_bytes_per_token(model, precision, seq_len)
  ends = saved.pop('ends')
  a = _activation_bytes(precision)
  # Widest moment inside a block: gradients of the residual stream, of what is added to it, of the activation's output and of
  # its input; under FP8 the last in two quantized copies (for the gradients of the input and of the weight), as is the second.
  widest = a * (2 * model.d_model + model.d_hidden)
  widest += 2 * (model.d_model + model.d_up) if _is_fp8(precision, 'up') else a * model.d_up
  block = sum(saved.values())
  kept = model.n_layers * block if recompute == 'none' else model.n_layers * 2 * a * model.d_model + block
  return MemoryEstimate(
    parameters_bytes=4 * parameters,
    weight_copies_bytes=weight_copies_bytes(model, precision),
    gradients_bytes=4 * parameters,
    optimizer_bytes=8 * parameters,
    activations_bytes=tokens * (kept + ends),
    workspace_bytes=tokens * widest,
    vocab_loss_bytes=vocab_loss_bytes(model, precision, tokens),
  )


def pieces(spec: ExperimentSpec, stage: StageSpec, memory_bytes: int, devices: int = 1) -> int:
  """Into how many equal parts a stage's rows are split, so that the estimate of one fits in `memory_bytes`.

  The smallest number that divides the rows of one device and leaves FP8 its multiple of 16 tokens.

  Raises:
    ValueError: not even one row at a time fits, or the rows cannot be shared; the line names the stage, the need and what there
      is.
  """
  rows = stage.batch_size // devices
  multiple = 16 if spec.precision.matmul == 'fp8' else 1
  possible = [n for n in range(1, rows + 1) if rows % n == 0 and rows * stage.seq_len // n % multiple == 0]
  for n in possible:
    if step_bytes(spec, stage, n, devices) <= memory_bytes:
      return n
  if not possible:
    raise ValueError(
      f'stage of length {stage.seq_len}: got {stage.batch_size} rows for {devices} devices, wants as many for each that its '
      f'tokens divide by {multiple}'
    )
  raise ValueError(too_little(spec, stage, step_bytes(spec, stage, possible[-1], devices), memory_bytes))


def _place(spec: ExperimentSpec, stage: StageSpec) -> int:
  """Index of a stage, whatever its batch became: no two start at the same share."""
  return [s.step_share_start for s in spec.curriculum.stages].index(stage.step_share_start)


def too_little(spec: ExperimentSpec, stage: StageSpec, need_bytes: int, memory_bytes: int) -> str:
  """The line for a stage of which not even the smallest part, which needs `need_bytes`, fits."""
  place = _place(spec, stage)
  wishes = ['a smaller model', '--config.training.gpu_memory_gb raised']
  if spec.training.recompute == 'none':
    wishes.insert(0, '--config.training.recompute=blocks')
  return (
    f'stage {place + 1} (length {stage.seq_len}): its smallest part needs about {need_bytes / 1e9:.1f} GB, got '
    f'{memory_bytes / 1e9:.1f} GB: no batch fits; wants {", ".join(wishes[:-1])} or {wishes[-1]}, or '
    f'--config.curriculum.stages[{place}].seq_len lowered'
  )


def split_line(spec: ExperimentSpec, stage: StageSpec, parts: int, memory_bytes: int, devices: int = 1) -> str:
  """What to tell about a stage whose rows go through in parts: the need, what would fit whole, and how to ask for it."""
  place = _place(spec, stage)
  whole = devices * largest_batch(spec, stage, memory_bytes, devices)
  override = f'--config.curriculum.stages[{place}].batch_size={whole}'
  return (
    f'stage {place + 1} (length {stage.seq_len}): {stage.batch_size} rows need about '
    f'{step_bytes(spec, stage, 1, devices) / 1e9:.1f} GB, got {memory_bytes / 1e9:.1f} GB; they go through in {parts} parts'
    + (f'; at most {whole} rows would go through whole: {override}' if whole else '')
  )


def largest_batch(spec: ExperimentSpec, stage: StageSpec, memory_bytes: int, devices: int = 1) -> int:
  """The most rows of a stage's length that go through one of the devices in one part, by the estimate; 0 where none does."""
  multiple = 16 // math.gcd(16, stage.seq_len) if spec.precision.matmul == 'fp8' else 1

  def fits(n: int) -> bool:
    return step_bytes(spec, dataclasses.replace(stage, batch_size=devices * n * multiple), 1, devices) <= memory_bytes

  high = 1
  while fits(high):
    high *= 2
  return multiple * (bisect.bisect_left(range(high + 1), True, 1, key=lambda n: not fits(n)) - 1)


def step_memory(spec: ExperimentSpec, stage: StageSpec, parts: int = 1, devices: int = 1) -> MemoryEstimate:
  """The estimate for a step whose rows go through in `parts` equal parts."""
  tokens = stage.tokens_per_step // devices // parts
  memory = estimate(spec.model_of(stage), spec.precision, tokens, stage.seq_len, spec.training.recompute)
  owners = devices if spec.training.shard_optimizer else 1
  free = memory.gradients_bytes + memory.activations_bytes + memory.workspace_bytes + memory.vocab_loss_bytes
  return dataclasses.replace(
    memory,
    parameters_bytes=4 * spec.model.parameter_count(),  # also of the blocks that do not run yet
    optimizer_bytes=optimizer_bytes(spec, owners),
    gather_bytes=max(0, gather_bytes(spec, owners) - free),
  )


def step_bytes(spec: ExperimentSpec, stage: StageSpec, parts: int = 1, devices: int = 1) -> int:
  """All of `step_memory`."""
  return step_memory(spec, stage, parts, devices).total_bytes


def checkpoint_bytes(spec: ExperimentSpec) -> int:
  """Bytes of one checkpoint at most (they are compressed): weights, the optimizer's state, and FP8's amaxes."""
  amaxes = 12 * spec.model.n_layers * (spec.precision.fp8_amax_history_steps + 1) if spec.precision.matmul == 'fp8' else 0
  return 4 * spec.model.parameter_count() + optimizer_bytes(spec) + 4 * amaxes
