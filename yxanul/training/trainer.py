"""A run's moving parts put together for one device: state, text, steps, and the choices made at warm-up."""

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from yxanul.config.spec import ExperimentSpec
from yxanul.data.batches import Loader, Stream
from yxanul.data.prepare import Prepared
from yxanul.kernels import attention, fp8
from yxanul.kernels.capabilities import Capabilities, Engines
from yxanul.optim.build import build
from yxanul.planning import memory
from yxanul.training.curriculum import Curriculum, Stage
from yxanul.training.graphs import StepCache
from yxanul.training.state import init_state
from yxanul.training.step import Text, calibrate, is_fp8, make_train_step


def set_up_torch(spec: ExperimentSpec, capabilities: Capabilities) -> torch.device:
  """Caches, threads, determinism, TF32 and the memory limit; these are process-wide. Returns the device."""
  # Where compiled kernels outlive a reboot, and so a run that starts again need not compile them again.
  cache = Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser() / 'yxanul'
  os.environ.setdefault('TORCHINDUCTOR_CACHE_DIR', str(cache / 'inductor'))
  os.environ.setdefault('TRITON_CACHE_DIR', str(cache / 'triton'))
  if spec.training.threads:
    torch.set_num_threads(spec.training.threads)
  if spec.training.deterministic:
    os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
  torch.use_deterministic_algorithms(spec.training.deterministic)
  torch.backends.cuda.matmul.fp32_precision = 'tf32' if spec.precision.tf32 else 'ieee'
  if capabilities.device == 'cuda' and spec.training.gpu_memory_gb:
    torch.cuda.set_per_process_memory_fraction(min(1.0, spec.training.gpu_memory_gb * 1e9 / capabilities.memory_bytes))
  return torch.device(capabilities.device)


class Trainer:
  """`state` and what moves it. Nothing here reads a clock or writes a file.

  Raises:
    ValueError: a stage does not fit into the memory; the tokenizer or the groups do not fit the model.
  """

  def __init__(
    self,
    spec: ExperimentSpec,
    curriculum: Curriculum,
    capabilities: Capabilities,
    engines: Engines,
    device: torch.device,
    prepared: Prepared,
  ):
    self.spec, self.curriculum, self.device = spec, curriculum, device
    self.engines = engines
    self.text = Text(prepared.tokenizer.end_of_text_id, torch.from_numpy(prepared.tokenizer.token_bytes).to(device))
    self.optimizer = build(spec.optimizer, spec.model)
    fp8_state = fp8.init(spec.model, spec.precision, device) if is_fp8(engines) else {}
    self.state = init_state(spec, self.optimizer, fp8_state, device)
    self._stream = Stream(prepared.train, spec.seed)
    self._pieces = [self._pieces_of(stage, capabilities) for stage in curriculum.stages]
    self._attention = [engines.attention] * len(curriculum.stages)
    self._measures_attention = capabilities.has('triton') and spec.precision.attention_engine == 'auto'
    self.step: StepCache | None = None

  def _pieces_of(self, stage: Stage, capabilities: Capabilities) -> int:
    if capabilities.device != 'cuda':
      return 1
    limit = self.spec.training.gpu_memory_gb * 1e9 or capabilities.memory_bytes
    return memory.pieces(self.spec, stage.spec, int(memory.USABLE_SHARE * min(limit, capabilities.memory_bytes)))

  def choices(self) -> dict[str, Any]:
    """What was chosen for this device; it belongs in the checkpoint, or a resumed run would not be the same."""
    engines = {name: value for name, value in dataclasses.asdict(self.engines).items() if name != 'notes'}
    return {'engines': engines, 'pieces': self._pieces, 'attention': self._attention}

  def choose(self, choices: dict[str, Any]) -> None:
    """Takes the choices of a checkpoint instead."""
    self.engines = dataclasses.replace(self.engines, **choices['engines'])
    self._pieces, self._attention = choices['pieces'], choices['attention']
    self._measures_attention = False

  def warm(self, position: int, calibrate_first: bool, tell: Callable[[str], None]) -> None:
    """Makes the steps: calibrates the FP8 scales of a new run, and captures the graphs of the stages from `position` on."""
    if calibrate_first and is_fp8(self.engines):
      first = self.curriculum.stages[0]
      # Calibration runs without FP8 and unfused, which keeps some three times as much: parts a quarter as large.
      rows = first.spec.batch_size
      parts = next((n for n in range(4 * self._pieces[0], rows) if rows % n == 0), rows)
      self.state = calibrate(self.state, self._tokens(first, 0), first.spec, self.spec, self.engines, self.text, parts)
    if self._measures_attention and self.engines.linear != 'fp32':
      self._attention = [self._fastest_attention(stage, tell) for stage in self.curriculum.stages]

    def make(stage: Stage, compiled: bool):
      engines = dataclasses.replace(self.engines, attention=self._attention[stage.index])
      return make_train_step(self.spec, stage.spec, self.optimizer, engines, self.text, self._pieces[stage.index], compiled)

    self.step = StepCache(make, self.spec.training.execution, self.device)
    left = [stage for stage in self.curriculum.stages if stage.end_tokens > position]
    self.step.warm(left, self.state, lambda stage: self._tokens(stage, stage.start_tokens), tell)

  def _fastest_attention(self, stage: Stage, tell: Callable[[str], None]) -> str:
    candidates = ['flash', 'sdpa', *(['cudnn'] if stage.spec.seq_len >= attention.CUDNN_SHORTEST else [])]
    if attention.supports_short(stage.spec.seq_len, self.spec.model.head_dim, self.device):
      candidates.append('short')
    taken = attention.fastest(self.spec.model, stage.spec.seq_len, candidates, self.device)
    times = ', '.join(f'{engine} {ms:.2f} ms' for engine, ms in taken.items())
    tell(f'stage {stage.number}: attention over 32,768 tokens in rows of {stage.spec.seq_len}: {times}')
    return next(iter(taken))

  def _tokens(self, stage: Stage, position: int) -> torch.Tensor:
    return torch.from_numpy(self._stream.read(position, stage.spec.tokens_per_step)).to(self.device)

  def batches(self, position: int) -> Iterator[torch.Tensor]:
    """The tokens of every step from `position` on; pinned on the host where the device is a GPU, read ahead of time."""
    plan = ((stage.spec.batch_size, stage.spec.seq_len) for stage in self._stages_from(position))
    with Loader(self._stream, position, plan, self.device) as loader:
      for tokens, _ in loader:
        yield tokens if self.step.captured else tokens.to(self.device, non_blocking=True)

  def _stages_from(self, position: int) -> Iterator[Stage]:
    """The stage of every step that is left."""
    while position < self.curriculum.total_tokens:
      stage = self.curriculum.lookup(position)
      yield stage
      position += stage.spec.tokens_per_step
