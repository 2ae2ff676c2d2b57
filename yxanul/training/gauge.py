"""What the GPU is doing, for people to look at."""

import time
from typing import Any

import torch

_EVERY_SECONDS = 1.0


class GpuGauge:
  """`gauge()`: 'gpu_memory_bytes' (reserved by this process), 'gpu_memory_total_bytes', 'gpu_busy' (share of the last moment).

  Empty on a CPU; 'gpu_busy' is None where NVML is not to be had (it comes with the package nvidia-ml-py). The card is asked
  at most once a second, and nothing waits for what it computes.
  """

  def __init__(self, device: torch.device):
    self._device = device
    self._asked_at = -_EVERY_SECONDS
    self._figures: dict[str, Any] = {}
    self._has_nvml = device.type == 'cuda' and _busy(device) is not None

  def __call__(self) -> dict[str, Any]:
    now = time.monotonic()
    if self._device.type == 'cuda' and now - self._asked_at >= _EVERY_SECONDS:
      self._asked_at = now
      self._figures = {
        'gpu_memory_bytes': torch.cuda.memory_reserved(self._device),
        'gpu_memory_total_bytes': torch.cuda.get_device_properties(self._device).total_memory,
        'gpu_busy': _busy(self._device) if self._has_nvml else None,
      }
    return self._figures


def _busy(device: torch.device) -> float | None:
  try:
    return torch.cuda.utilization(device) / 100
  except Exception:  # no package, no library, no such figure (MIG): NVML raises kinds of its own, and none may end a run
    return None
