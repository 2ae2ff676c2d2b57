"""best with one saving off: GPT-2's tokenizer, so a smaller table, and more tokens for the same text.

Command:  python -m yxanul.main --config=experiments/best_no_superbpe.py:source=PATH,budget_tokens=11.2e6
Hardware: one Hopper GPU (H100, H200); gpu=rtx4090 lets it fill 24 GB
Expected: 1.484 bits per byte after 30 s and 1.264 after 102 s on one H200 (records/2026-11-30_ablate)

Variants: best's.
"""

from ml_collections import ConfigDict

from experiments import best, ultra_no_superbpe


def get_config(arg: str | None = None) -> ConfigDict:
  config = ultra_no_superbpe.without(best.get_config(arg))
  config.name = 'best_no_superbpe'
  return config
