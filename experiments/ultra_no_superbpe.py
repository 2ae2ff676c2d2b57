"""ultra with one saving off: GPT-2's tokenizer.

Command:  python -m yxanul.main --config=experiments/ultra_no_superbpe.py:source=PATH,gpu=h200,batch=0.125,budget_tokens=56.6e6
Hardware: one Hopper GPU (H100, H200); gpu=rtx4090 sets the 24 GB table
Expected: gpu=h200,batch=0.125: 1.768 bits per byte after 124 s on one H200 (records/2026-11-30_ablate). Not yet run to its
          whole budget.

Variants: `gpu`, `source`, `budget_tokens`, `batch`, as in ultra.
"""

from ml_collections import ConfigDict

from experiments import baseline_gpt2, ultra


def without(config: ConfigDict) -> ConfigDict:
  """Takes the saving off an experiment, in place."""
  config.data.tokenizer = baseline_gpt2.get_config().data.tokenizer
  config.model.vocab_size = baseline_gpt2.get_config().model.vocab_size
  return config


def get_config(arg: str | None = None) -> ConfigDict:
  config = without(ultra.get_config(arg))
  config.name = 'ultra_no_superbpe'
  return config
