"""ultra with one saving off: GPT-2's tokenizer.

Command:  python -m yxanul.main --config=experiments/ultra_no_superbpe.py:source=PATH
Hardware: one Hopper GPU (H100, H200); gpu=rtx4090 sets the 24 GB table
Expected: 1.768 bits per byte after 56.6M tokens in 124 s on one H200, batch=0.125 (records/2026-11-30_ablate)

Variants: `gpu`, `source`, `budget_tokens`.
"""

from ml_collections import ConfigDict

from experiments import baseline_gpt2, ultra


def without(config: ConfigDict) -> ConfigDict:
  config.data.tokenizer = baseline_gpt2.get_config().data.tokenizer
  config.model.vocab_size = baseline_gpt2.get_config().model.vocab_size
  return config


def get_config(arg: str | None = None) -> ConfigDict:
  config = without(ultra.get_config(arg))
  config.name = 'ultra_no_superbpe'
  return config
