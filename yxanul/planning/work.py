"""What a training step has to do, by part: FLOPs in which format, and bytes to and from the card's memory.

FLOPs are the model's (`flops.flops_per_token`): the parts' FLOPs sum to it, and what a kernel computes twice lowers the share
of the peak that it achieves. Only recomputed blocks (`training.recompute`) count again, because the experiment asks for them.

Bytes are those of the fused kernels, each tensor once in and once out. Per token and block (a: bytes of an activation):

| part        | kernels                                                                                            |
|-------------|----------------------------------------------------------------------------------------------------|
| casts       | whatever writes FP8, both the matrix and its transpose: residual addition and norm in one,           |
|             | attention's output, SwiGLU; the four gradients                                                       |
| attention   | the packed projection and its gradient, the output and its gradient                                  |
| elementwise | the norms' backward passes, rotations where attention's kernel does not rotate;                       |
|             | without FP8 also the norms' and the activation's forward passes and the activation's backward pass   |

Once a part of the batch: the weights' copies are made, and gradients summed; once a step, AdamW, or Muon, whose products count
as linears.
"""

import dataclasses
import math

from yxanul.config.curriculum_spec import StageSpec
from yxanul.config.groups import optimizer_groups
from yxanul.config.model_spec import LINEARS
from yxanul.config.spec import ExperimentSpec
from yxanul.planning import memory

PARTS = ('linears', 'casts', 'attention', 'loss', 'optimizer', 'elementwise', 'exchange', 'gaps')
ROTATING_ENGINE = 'short'  # of attention: its kernel rotates, and takes and gives the packed projection


@dataclasses.dataclass(frozen=True)
class Work:
  """One kind of work of one step on one device."""

  flops: dict[str, float] = dataclasses.field(default_factory=dict)  # by format
  bytes: float = 0.0


def base_format(spec: ExperimentSpec) -> str:
  """The format of every matrix product that is not an FP8 linear's: attention's, the head's."""
  if spec.precision.matmul == 'fp32':
    return 'tf32' if spec.precision.tf32 else 'fp32'
  return 'bf16'


def activation_bytes(spec: ExperimentSpec) -> int:
  return 4 if spec.precision.matmul == 'fp32' else 2


def step_work(spec: ExperimentSpec, stage: StageSpec, parts: int, attention: str, devices: int = 1) -> dict[str, Work]:
  """The work of one step on one of `devices`, by part of the step (exchange and gaps are `speed`'s).

  Args:
    parts: into which a device's rows are split.
    attention: engine; under 'short' rotations cost nothing of their own.
  """
  model, precision, base = spec.model_of(stage), spec.precision, base_format(spec)
  a, d, tokens = activation_bytes(spec), model.d_model, stage.tokens_per_step // devices
  fp8 = set(precision.fp8_linears) if precision.matmul == 'fp8' else set()
  again = spec.training.recompute == 'blocks'  # the blocks' forward passes run twice
  passes = 4 / 3 if again else 1.0

  widths = {
    'qkv': (d, model.d_qkv),
    'attention_out': (model.d_query, d),
    'up': (d, model.d_up),
    'down': (model.d_hidden, d),
  }
  weights = {name: width_in * width_out for name, (width_in, width_out) in widths.items()}
  block_tokens = model.n_layers * tokens
  linears = {base: 6.0 * tokens * 2 * model.embedding_rank * d}
  for name in LINEARS:
    kind = 'fp8' if name in fp8 else base
    linears[kind] = linears.get(kind, 0.0) + passes * 6.0 * block_tokens * weights[name]

  owners = devices if spec.training.shard_optimizer else 1  # each updates its share; of the one that has most
  own = memory.owned_parameters(spec, owners) if owners > 1 else model.parameter_count()
  linears[base] += _orthogonalization_flops(spec, math.ceil(model.n_layers / owners))
  # Of a divided optimizer: its slices into one buffer, everyone's received, and the others' copied out.
  sent = memory.sent_parameters(spec, owners)
  gather = 8 * sent + 4 * owners * sent + 8 * (model.parameter_count() - own) if owners > 1 else 0
  forward, backward = _cast_bytes(spec, fp8, a)
  plain_forward, plain_backward = _elementwise_bytes(spec, fp8, a, rotates=attention != ROTATING_ENGINE)
  fp8_weights = model.n_layers * sum(weights[name] for name in fp8)
  other_weights = model.parameter_count() - fp8_weights if precision.matmul != 'fp32' else 0
  return {
    'linears': Work(linears),
    'casts': Work(bytes=block_tokens * ((1 + again) * forward + backward) + parts * 6 * fp8_weights),
    'attention': Work(
      {base: passes * 6.0 * block_tokens * model.d_query * stage.seq_len},
      block_tokens * a * ((4 if again else 3) * model.d_qkv + (3 if again else 2) * model.d_query),
    ),
    'loss': Work({base: 6.0 * tokens * model.vocab_size * model.head_width}),
    # Parameters, gradients and two moments in, parameters and moments out; the norm of all gradients before.
    'optimizer': Work(bytes=4.0 * model.parameter_count() + 28.0 * own + gather),
    'elementwise': Work(
      bytes=block_tokens * ((1 + again) * plain_forward + plain_backward)
      + parts * 6 * other_weights
      + (parts - 1) * 12 * model.parameter_count()
    ),
  }


def _orthogonalization_flops(spec: ExperimentSpec, layers: int) -> float:
  """Of Muon's Newton-Schulz over the block matrices that it moves, of so many layers; a step of it is three products."""
  groups = optimizer_groups(spec.optimizer, spec.model)
  flops = 0.0
  for name, rows in spec.model.packed_rows().items():
    if groups[name].optimizer == 'muon':
      width = spec.model.parameter_shapes()[name][-1]
      for n in rows:
        short, long = sorted((n, width))
        flops += layers * (4.0 * short**2 * long + 2.0 * short**3)
  return spec.optimizer.muon.newton_schulz_steps * flops


def _cast_bytes(spec: ExperimentSpec, fp8: set[str], a: int) -> tuple[int, int]:
  """Bytes of the kernels that write FP8, per token and block: forward, backward."""
  model = spec.model
  d = model.d_model
  forward = {
    'qkv': (3 * a + 2) * d,  # the stream and what is added to it in, their sum and its cast out
    'attention_out': (a + 2) * model.d_query,
    'up': (3 * a + 2) * d,
    'down': a * model.d_up + 2 * model.d_hidden,
  }
  backward = {
    'qkv': (a + 2) * model.d_qkv,
    'attention_out': (a + 2) * d,
    'up': a * (model.d_hidden + model.d_up) + 2 * model.d_up,
    'down': (a + 2) * d,
  }
  return sum(forward[name] for name in fp8), sum(backward[name] for name in fp8)


def _elementwise_bytes(spec: ExperimentSpec, fp8: set[str], a: int, rotates: bool) -> tuple[int, int]:
  """Bytes of the other elementwise kernels, per token and block: forward, backward."""
  model = spec.model
  d = model.d_model
  forward = sum(4 * a * d for name in ('qkv', 'up') if name not in fp8)  # norms, residual additions within
  backward = 2 * 4 * a * d  # norms: gradient, input and residual in, gradient out
  if 'down' not in fp8:
    forward += a * (model.d_up + model.d_hidden)
  if 'up' not in fp8:
    backward += a * (model.d_hidden + 2 * model.d_up)
  if rotates:  # the packed projection is turned and split, its gradient turned back and gathered (by the cast, in FP8)
    forward += 2 * a * model.d_qkv
    backward += 0 if 'qkv' in fp8 else 2 * a * model.d_qkv
  return forward, backward
