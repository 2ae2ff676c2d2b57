"""best with one saving off: GPT-2's tokenizer, so a smaller table, and more tokens for the same text.

Command:  python -m yxanul.main --config=experiments/best_no_superbpe.py:source=PATH
Hardware: one Hopper GPU (H100, H200); gpu=rtx4090 lets it fill 24 GB
Expected: with lengths=256-512-1024-2048,layers=all,last_share=0,inheritance=0,table_lr=2.5, and rows=false,
          polynomial=quintic,decay_share=0.6,input_scale=150, 1.484 bits per byte after 31 s of training on one H200, 1.264
          after 40.6M tokens in 102 s (records/2026-11-30_ablate). As it is: not yet run.

Variants: best's.
"""

from ml_collections import ConfigDict

from experiments import best, ultra_no_superbpe


def get_config(arg: str | None = None) -> ConfigDict:
  config = ultra_no_superbpe.without(best.get_config(arg))
  config.name = 'best_no_superbpe'
  return config
