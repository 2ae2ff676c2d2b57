"""What this machine can run, and which engine each kernel therefore gets.

`detect` looks; `choose_engines` is a pure function of what it saw and of the configuration, so that every card's choice is
tested without the card. A wish that cannot be met gives the next engine and one line that says so.
"""

import ctypes
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch

from yxanul.config.model_spec import PrecisionSpec

# What has to import for a library to count: one of these modules. Version 3 of flash-attn is a package of its own, and 4 lies
# in the folder of version 2.
_LIBRARIES = {
  'transformer_engine': ('transformer_engine.pytorch',),
  'triton': ('triton',),
  'flash_attn': ('flash_attn_interface', 'flash_attn.cute', 'flash_attn'),
}
# What pip is told where one is missing. Both are compiled against the torch that is there, which isolated builds do not see.
INSTALL = {
  'torch for CUDA': "pip install 'torch>=2.11,<2.14' --index-url https://download.pytorch.org/whl/cu130",
  'transformer_engine': "pip install --no-build-isolation 'transformer-engine[pytorch]>=2.9'",
  'triton': 'pip install triton',
  'flash_attn': "pip install --no-build-isolation 'flash-attn>=2.7'",
  # The copy that came with torch in front of the system's.
  'cudnn': "export LD_LIBRARY_PATH=$(python -c 'import nvidia.cudnn as c; print(c.__path__[0])')/lib:$LD_LIBRARY_PATH",
}


@dataclasses.dataclass(frozen=True)
class Capabilities:
  """One device and the libraries that load beside it."""

  device: str  # cuda | cpu
  name: str = ''
  compute_capability: tuple[int, int] = (0, 0)  # (9, 0) is Hopper; (0, 0) on a CPU
  memory_bytes: int = 0  # of the device; on a CPU the machine's, or what its control group leaves
  versions: tuple[tuple[str, str], ...] = ()  # of libraries that load
  missing: tuple[tuple[str, str], ...] = ()  # libraries that do not, and why

  def has(self, library: str) -> bool:
    return library in dict(self.versions)


@dataclasses.dataclass(frozen=True)
class Engines:
  """The engine of each kernel; `notes` holds one line for every wish that was not met."""

  linear: str  # te | torch | reference | bf16 | fp32
  attention: str  # cudnn | flash | flash_attn | sdpa, where none is measured for each stage (attention_choice, with our own)
  vocab_loss: str  # triton | chunked | reference
  notes: tuple[str, ...] = ()


def detect() -> Capabilities:
  """Looks at the current CUDA device, or the CPU where there is none. Importing the libraries takes seconds on a GPU."""
  versions, missing = [('torch', torch.__version__)], []
  if not torch.cuda.is_available():
    missing = [(library, 'needs a GPU') for library in _LIBRARIES]
    return Capabilities('cpu', 'CPU', memory_bytes=_host_bytes(), versions=tuple(versions), missing=tuple(missing))
  _share_cudnn()
  for library, modules in _LIBRARIES.items():
    version, why = _load(modules)
    (missing if why else versions).append((library, why or version))
  # Only now: asking for cuDNN's version loads torch's copy, and Transformer Engine fails where it was told of another.
  versions.append(('cuda', str(torch.version.cuda)))
  try:
    versions.append(('cudnn', str(torch.backends.cudnn.version())))
  except RuntimeError as error:  # torch refuses a copy older than it was built with; its attention runs all the same
    missing.append(('cudnn', str(error).split('.  ')[0].splitlines()[0]))
  properties = torch.cuda.get_device_properties(torch.cuda.current_device())
  return Capabilities(
    device='cuda',
    name=properties.name,
    compute_capability=(properties.major, properties.minor),
    memory_bytes=properties.total_memory,
    versions=tuple(versions),
    missing=tuple(missing),
  )


def _load(modules: Sequence[str]) -> tuple[str, str]:
  """The version of the first of the modules that imports, or why the last does not."""
  why = ''
  for module in modules:
    try:
      importlib.import_module(module)
    except Exception as error:  # a library built for another torch or CUDA fails in any way it likes
      lines = str(error).strip().splitlines()
      why = f'{type(error).__name__}: {lines[0]}' if lines else type(error).__name__
      continue
    distributions = importlib.metadata.packages_distributions().get(module.partition('.')[0], ())
    found = dict.fromkeys(importlib.metadata.version(name) for name in distributions)
    return ', '.join(found) or 'unknown', ''
  return '', why


def _share_cudnn() -> None:
  """Loads all of the cuDNN that came with torch, before Transformer Engine loads parts of the system's beside it.

  Its extension asks the system for libraries by name, and so do torch's own copies of them: what is loaded first serves both.
  A mixture of two versions does not import, or worse, it does.
  """
  brings_it = any(line.startswith('nvidia-cudnn') for line in importlib.metadata.requires('torch') or ())
  found = brings_it and importlib.util.find_spec('nvidia') and importlib.util.find_spec('nvidia.cudnn')
  if not found or not found.submodule_search_locations or 'CUDNN_HOME' in os.environ:
    return
  home = Path(next(iter(found.submodule_search_locations)))
  for library in sorted(home.glob('lib/libcudnn*.so.*')):
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
  os.environ['CUDNN_HOME'] = str(home)


def driver() -> dict[str, str] | None:
  """The first NVIDIA card and its driver, as nvidia-smi tells them whatever torch can use; None where it tells nothing."""
  if shutil.which('nvidia-smi') is None:
    return None
  query = ['nvidia-smi', '--query-gpu=name,driver_version,memory.total', '--format=csv,noheader']
  told = subprocess.run(query, capture_output=True, text=True, check=False, timeout=60)
  if told.returncode or not told.stdout.strip():
    return None
  return dict(zip(('name', 'driver', 'memory'), map(str.strip, told.stdout.splitlines()[0].split(',')), strict=True))


def _host_bytes() -> int:
  machine = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  # A container's limit, under either version of control groups; one that has none says 'max', or a number past any machine.
  limits = (Path('/sys/fs/cgroup', name) for name in ('memory.max', 'memory/memory.limit_in_bytes'))
  texts = [path.read_text().strip() for path in limits if path.is_file()]
  return min([machine, *(int(text) for text in texts if text.isdecimal())])


def choose_engines(capabilities: Capabilities, precision: PrecisionSpec, head_width: int = 128) -> Engines:
  """The engines that run `precision` on a device with these capabilities.

  Args:
    head_width: of what meets the vocabulary table: embedding_rank, or d_model where the table is not factorized.

  Raises:
    ValueError: `attention_engine` or `vocab_loss_engine` names no engine.
  """
  linear, linear_notes = _linear(capabilities, precision)
  attention, attention_notes = _attention(capabilities, precision.attention_engine, linear)
  vocab_loss, vocab_loss_notes = _vocab_loss(capabilities, precision.vocab_loss_engine, linear, head_width)
  return Engines(linear, attention, vocab_loss, (*linear_notes, *attention_notes, *vocab_loss_notes))


def _linear(c: Capabilities, precision: PrecisionSpec) -> tuple[str, list[str]]:
  if precision.matmul == 'fp32':
    return 'fp32', []
  if precision.matmul == 'fp8':
    if precision.fp8_engine == 'reference':
      return 'reference', []
    if c.compute_capability >= (8, 9):
      return _fp8_linear(c, precision.fp8_engine)
  if c.device == 'cpu':
    if precision.matmul == 'bf16':
      return 'bf16', []
    return 'fp32', ["linears run in fp32, not fp8: no GPU (fp8_engine='reference' runs the FP8 recipe on a CPU, slowly)"]
  sm = _sm(c)
  if c.compute_capability >= (8, 0):
    if precision.matmul == 'bf16':
      return 'bf16', []
    return 'bf16', [f'linears run in bf16, not fp8: {c.name} ({sm}) has no FP8 tensor cores (sm_89 and later do)']
  return 'fp32', [f'linears run in fp32, not {precision.matmul}: {c.name} ({sm}) has no BF16 tensor cores (sm_80 and later do)']


def _fp8_linear(c: Capabilities, wish: str) -> tuple[str, list[str]]:
  has_te = c.has('transformer_engine')
  # Ada has no fast path in Transformer Engine that torch lacks, and torch is there anyway.
  wants_te = wish == 'te' or (wish == 'auto' and c.compute_capability >= (9, 0))
  if not wants_te:
    return 'torch', []
  return ('te', []) if has_te else ('torch', [f'fp8 linears run through torch._scaled_mm: {_absence(c, "transformer_engine")}'])


def _attention(c: Capabilities, wish: str, linear: str) -> tuple[str, list[str]]:
  # These kernels take 16-bit inputs only; what follows the linears' format are the activations.
  obstacles = dict.fromkeys(('cudnn', 'flash', 'flash_attn'), '')
  if c.device == 'cpu':
    obstacles = dict.fromkeys(obstacles, 'no GPU')
  elif linear == 'fp32':
    obstacles = dict.fromkeys(obstacles, 'activations are fp32')
  elif c.compute_capability < (8, 0):
    obstacles = dict.fromkeys(obstacles, f'needs sm_80, got {_sm(c)}')
  elif not c.has('flash_attn'):
    obstacles['flash_attn'] = _absence(c, 'flash_attn')
  obstacles['sdpa'] = ''
  # cuDNN is the faster from Hopper on (measured on an H200, length 2048: 4.2 ms against flash 2's 6.8).
  order = ('cudnn', 'flash', 'sdpa') if c.compute_capability >= (9, 0) else ('flash', 'sdpa')
  best = next(engine for engine in order if not obstacles[engine])
  notes = []
  if best == 'cudnn' and 'cudnn' in dict(c.missing) and wish in ('auto', 'cudnn'):
    notes.append(f'attention runs through a cuDNN that torch was not built for ({dict(c.missing)["cudnn"]})')
  if wish in ('auto', best):
    return best, notes
  return (best, [f'attention runs through {best}, not {wish}: {obstacles[wish]}']) if obstacles[wish] else (wish, [])


def _vocab_loss(c: Capabilities, wish: str, linear: str, width: int) -> tuple[str, list[str]]:
  obstacle = ''
  if c.device == 'cpu':
    obstacle = 'no GPU'
  elif linear == 'fp32':
    obstacle = 'activations are fp32'
  elif c.compute_capability < (8, 0):
    obstacle = f'needs sm_80, got {_sm(c)}'
  elif not c.has('triton'):
    obstacle = _absence(c, 'triton')
  elif width not in (16, 32, 64, 128):
    obstacle = f'needs 16, 32, 64 or 128 columns in front of the head, got {width}'
  if wish == 'auto' and not obstacle:
    return 'triton', []
  if wish == 'auto' and (c.device == 'cpu' or linear == 'fp32'):
    return 'chunked', []  # as everybody expects there
  if obstacle and wish in ('auto', 'triton'):
    return 'chunked', [f'vocabulary loss runs in chunks, not through triton: {obstacle}']
  return wish, []


def _sm(c: Capabilities) -> str:
  return f'sm_{c.compute_capability[0]}{c.compute_capability[1]}'


def _absence(c: Capabilities, library: str) -> str:
  return f'{library} does not load ({dict(c.missing).get(library, "not looked for")})'
