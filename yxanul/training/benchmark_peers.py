"""What else trains on the same device: a plain GPT-2 124M through our own step, in the formats people use, for comparison."""

import dataclasses

import numpy as np
import torch

from yxanul.config.spec import ExperimentSpec
from yxanul.data.prepare import Prepared
from yxanul.data.shards import Shards
from yxanul.data.stream import Stream
from yxanul.kernels.capabilities import Capabilities, choose_engines
from yxanul.optim.build import build
from yxanul.planning import flops, memory
from yxanul.training.benchmark import Effort, Row, Subject, Tell, measure_stage, release
from yxanul.training.curriculum import Curriculum
from yxanul.training.graphs import StepCache
from yxanul.training.state import init_state
from yxanul.training.step import Text, make_train_step, matmul_format
from yxanul.training.trainer import set_up_torch

# Name: precision, execution; what is changed in experiments/baseline_gpt2.py.
PEERS = {
  'fp32 eager': ({'matmul': 'fp32', 'tf32': False}, 'eager'),
  'tf32 eager': ({'matmul': 'fp32', 'tf32': True}, 'eager'),
  'bf16 graph': ({'matmul': 'bf16', 'tf32': False}, 'graph'),
}
ROWS = 64  # of 1024 tokens
_USABLE_SHARE = 0.8  # of the memory, by the planner's estimate: eager steps keep more than it counts


class _Folded(Stream):
  """A stream with its tokens brought into another vocabulary's range: the text is lost, the work is the same."""

  def __init__(self, shards: Shards, row_tokens: int, vocab_size: int):
    super().__init__(shards, 0, [(0, row_tokens)])
    self._vocab_size = vocab_size

  def read(self, position: int, n_rows: int, row_tokens: int) -> np.ndarray:
    return super().read(position, n_rows, row_tokens) % self._vocab_size


def measure_peer(
  baseline: ExperimentSpec, name: str, rows: int, prepared: Prepared, capabilities: Capabilities, effort: Effort, tell: Tell
) -> Row:
  """Times `baseline` in the precision and execution that PEERS[name] says, with `rows` rows a step.

  Its tokenizer need not be there: it sees the prepared tokens modulo its vocabulary, so bytes mean nothing here.
  """
  precision, execution = PEERS[name]
  stage = dataclasses.replace(baseline.curriculum.stages[0], batch_size=rows, reference_batch_size=rows)
  spec = dataclasses.replace(
    baseline,
    curriculum=dataclasses.replace(baseline.curriculum, stages=(stage,)),
    precision=dataclasses.replace(baseline.precision, **precision),
    training=dataclasses.replace(baseline.training, execution=execution),
  )
  engines = choose_engines(capabilities, spec.precision, spec.model.head_width)
  device, curriculum = set_up_torch(spec, capabilities), Curriculum(spec)
  release(device)
  pieces = 1
  if device.type == 'cuda':
    limit = min(spec.training.gpu_memory_gb * 1e9 or capabilities.memory_bytes, capabilities.memory_bytes)
    pieces = memory.pieces(spec, stage, int(_USABLE_SHARE * limit))
  text = Text(spec.model.vocab_size - 1, torch.zeros(spec.model.vocab_size, dtype=torch.int32, device=device))
  optimizer = build(spec.optimizer, spec.model)

  def make(stage, compiled, reduction):
    return make_train_step(spec, stage.spec, optimizer, engines, text, pieces, compiled, reduction)

  subject = Subject(
    spec=spec,
    curriculum=curriculum,
    engines=engines,
    device=device,
    peak_flops=flops.peak_flops(capabilities.name, matmul_format(engines, spec.precision)),
    stream=_Folded(prepared.train, stage.seq_len, spec.model.vocab_size),
    pieces=[pieces],
    attention=[engines.attention],
    step=StepCache(make, execution, device),
    state=init_state(spec, optimizer, {}, device),
  )
  first = torch.from_numpy(subject.stream.read(0, stage.batch_size, stage.seq_len)).to(device)
  subject.step.warm(curriculum.stages, subject.state, lambda _: first, tell)
  row = measure_stage(subject, curriculum.stages[0], effort)
  del row['bytes_per_token'], row['bytes_per_second']
  row |= {'peak_bytes': subject.peak_bytes, 'reserved_bytes': subject.reserved_bytes}
  tell(f'GPT-2, {name}: {row["ms"]:.2f} ms a step, {row["tokens_per_second"]:,.0f} tokens/s')
  return {'peer': name, 'engines': dataclasses.asdict(engines), 'execution': execution, **row}
