"""Where the time of a step goes: what a profiler recorded, by part, by name, and as a share of the wall clock.

On a GPU a record is a kernel or a copy; on the host it is an operation without those that it called, and nothing is said about
the wall clock.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch

# Part and pattern, searched for in the kernel's name without regard to case; the first that is found decides. Names that no
# rule knows are 'rest' and are listed in the result, so that this table can be mended. Long names hold others' words
# (attention by cutlass, products of FP8), so the order is from special to general.
RULES = (
  ('loss', r'^_forward_kernel|^_table_gradient_kernel|^_chunkedloss|logsumexp|nll_loss|cunn_softmax|cross_entropy'),
  ('attention', r'^_rotate_kernel|sdpa|fmha|flash|attention|attn|scaled_dot_product|dot_do_o|convert_dq|softmax_warp'),
  ('linears', r'gemm|gemv|nvjet|cublas|cutlass|split_?k|^triton_tem.*mm|^aten::(add|b|_scaled_)?mm$'),
  # With the norms and activations that are fused into them: a kernel that writes FP8 is a cast.
  ('casts', r'_cast_kernel|cast_transpose|cast_fp8|quantize|transpose_(optimized|general)|fp8|float8|amax_kernel'),
  ('casts', r'transformer_engine.*(unary|gated)|float\w*_copy_kernel'),
  # The global norm, and AdamW as torch.compile and eager torch name it.
  ('optimizer', r'multi_tensor|foreach|lpnorm|lerp|adam|^triton_for_'),
  # Rows looked up, and their gradients added to the table: sorted by row, then summed.
  ('embedding', r'embedding|index_?select|gather_kernel|sum_and_scatter|grad_weight|segment|radixsort|cub::|thrust'),
  ('elementwise', r'norm|^triton_|at::native|at_cuda|^aten::|^autograd::|backward0$'),
)
PARTS = ('linears', 'casts', 'attention', 'loss', 'optimizer', 'embedding', 'elementwise', 'rest')
_LISTED = 40  # kernels of a stage, the longest


class Kernel(NamedTuple):
  """One record of the profiler."""

  name: str
  start_ns: int
  ns: int

  @property
  def is_copy(self) -> bool:
    return self.name.startswith(('Memcpy', 'Memset'))


def part_of(name: str) -> str | None:
  """The part that a kernel belongs to, None where no rule knows its name."""
  return next((part for part, pattern in RULES if re.search(pattern, name, re.IGNORECASE)), None)


def covered_ns(kernels: Iterable[Kernel]) -> int:
  """Nanoseconds in which at least one of them ran."""
  total, end = 0, 0
  for _, start, ns in sorted(kernels, key=lambda kernel: kernel.start_ns):
    total += max(0, start + ns - max(start, end))
    end = max(end, start + ns)
  return total


def recorded(profiler: torch.profiler.profile, on_gpu: bool) -> list[Kernel]:
  """What a profiler that has stopped holds."""
  if not on_gpu:
    return [Kernel(e.name, int(1e3 * e.time_range.start), int(1e3 * e.self_cpu_time_total)) for e in profiler.events()]
  # As Kineto has them: torch's own list of events takes seconds for what ten steps launch.
  events, gpu = profiler.profiler.kineto_results.events(), torch.autograd.DeviceType.CUDA
  return [
    Kernel(e.name(), e.start_ns(), e.duration_ns()) for e in events if e.device_type() == gpu and not e.is_user_annotation()
  ]


def summarize(records: Sequence[Kernel], n_steps: int, on_gpu: bool) -> dict[str, Any]:
  """Of `n_steps` steps, in ms a step: the parts, the names that no rule knows, the longest kernels.

  On a GPU also the wall clock, from the first record's start to the last one's end; the part of it in which nothing ran; and
  the shares of it that kernels ('gpu_busy'), and kernels or copies, cover.

  Raises:
    RuntimeError: there are no records.
  """
  if not records:
    raise RuntimeError('the profiler recorded no kernels')
  ns, calls = Counter(), Counter()
  for record in records:
    ns[record.name] += record.ns
    calls[record.name] += 1
  parts = {name: part_of(name) for name in ns}
  parts_ns = Counter()
  for name, total in ns.items():
    parts_ns[parts[name] or 'rest'] += total
  step = 1e6 * n_steps
  wall = kernels_ns = everything_ns = None
  if on_gpu:
    wall = max(r.start_ns + r.ns for r in records) - min(r.start_ns for r in records)
    kernels_ns, everything_ns = covered_ns(r for r in records if not r.is_copy), covered_ns(records)
  return {
    'steps': n_steps,
    'wall_ms': wall / step if on_gpu else None,
    'idle_ms': (wall - everything_ns) / step if on_gpu else None,
    'gpu_busy': kernels_ns / wall if on_gpu else None,
    'gpu_busy_with_copies': everything_ns / wall if on_gpu else None,
    'parts_ms': {part: parts_ns[part] / step for part in PARTS},
    'unknown_ms': {name: total / step for name, total in ns.most_common() if parts[name] is None},
    'kernels': [
      {'name': name[:200], 'part': parts[name] or 'rest', 'ms': total / step, 'calls': calls[name] / n_steps}
      for name, total in ns.most_common(_LISTED)
    ],
  }
