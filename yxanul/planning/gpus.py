"""The cards a plan is made for, and who rents them out.

Peak FLOP/s stand in `flops.PEAK_FLOPS`, by the name that torch gives a card. Memory and its bandwidth are the datasheets':
'NVIDIA H200 Tensor Core GPU' (141 GB, 4.8 TB/s), 'NVIDIA H100 Tensor Core GPU', SXM (80 GB, 3.35 TB/s; NVLink 900 GB/s),
'NVIDIA A100 Tensor Core GPU' (40 GB, 1,555 GB/s; 80 GB SXM, 2,039 GB/s; NVLink 600 GB/s), and 'NVIDIA Ada GPU Architecture'
whitepaper, appendix A (RTX 4090: 24 GB, 1,008 GB/s; no NVLink, so two of them meet over PCIe 4.0, 32 GB/s each way).
"""

import dataclasses
import difflib
import re

from yxanul.planning import flops


@dataclasses.dataclass(frozen=True)
class Gpu:
  """One card. Every rate is a peak."""

  key: str
  name: str
  pattern: str  # of the name that torch gives it; other form factors of the same chip are other cards
  memory_bytes: int
  bytes_per_second: float  # of its memory
  link_bytes_per_second: float  # to another card of the same host, one way

  def peak_flops(self, matmul_format: str) -> float | None:
    """FLOP/s in fp8 | bf16 | tf32 | fp32; None where the card does not have the format."""
    return flops.peak_flops(self.name, matmul_format)


GPUS = {
  gpu.key: gpu
  for gpu in (
    Gpu('rtx4090', 'RTX 4090', r'RTX 4090$', 24 * 10**9, 1.008e12, 32e9),
    Gpu('a100-40', 'A100 40GB', r'A100-SXM4-40GB', 40 * 10**9, 1.555e12, 300e9),
    Gpu('a100-80', 'A100 80GB', r'A100-SXM4-80GB', 80 * 10**9, 2.039e12, 300e9),
    Gpu('h100', 'H100', r'H100(?! PCIe| NVL)', 80 * 10**9, 3.35e12, 450e9),
    Gpu('h200', 'H200', r'H200(?! NVL)', 141 * 10**9, 4.8e12, 450e9),
  )
}
MEASURED = 'h200'  # the card whose measurements the achieved shares come from


@dataclasses.dataclass(frozen=True)
class Offer:
  """A machine by the hour, at the mission's price, and the hours that the mission claims three epochs take on it."""

  provider: str
  gpu: str
  devices: int
  dollars_per_hour: float  # of the whole machine
  claimed_hours: float | None = None
  claimed_dollars: float | None = None


OFFERS = (
  Offer('own', 'rtx4090', 1, 0.0, 6.0, 0.0),
  Offer('Vast.ai', 'a100-40', 1, 1.50, 22.0, 33.0),
  Offer('RunPod', 'a100-80', 1, 2.99, 14.0, 42.0),
  Offer('Lambda', 'h100', 1, 5.99, 9.0, 54.0),
  Offer('cluster', 'h100', 8, 48.0, 1.1, 53.0),
)


def gpu(key: str) -> Gpu:
  """The card of that key.

  Raises:
    ValueError: there is none; the line lists those there are.
  """
  if key not in GPUS:
    near = difflib.get_close_matches(key, GPUS, n=1)
    hint = f' (did you mean {near[0]!r}?)' if near else ''
    raise ValueError(f'--gpu: got {key!r}, wants one of {", ".join(GPUS)}{hint}')
  return GPUS[key]


def fitting(memory_gb: float) -> str:
  """The key of the smallest card with this much memory; of the measured one for 0, which sets no limit."""
  return next((key for key, card in GPUS.items() if 0 < memory_gb * 1e9 <= card.memory_bytes), MEASURED)


def by_name(device_name: str) -> Gpu | None:
  """The card that torch calls so, None where there is no plan for it."""
  return next((card for card in GPUS.values() if re.search(card.pattern, device_name)), None)
