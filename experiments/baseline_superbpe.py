"""The GPT-2 baseline with one saving on: SuperBPE tokens.

Command:  python -m yxanul.main --config=experiments/baseline_superbpe.py:source=PATH,budget_tokens=3.0e6
Hardware: one GPU with 16 GB
Expected: 2.045 bits per byte after 121 s on one H200 (records/2026-11-30_ablate); not yet run to its whole budget

The table keeps its full width, so 200,005 entries cost 115M parameters more than GPT-2's; the blocks are the same.
Variants: `source`, `budget_tokens`.
"""

from ml_collections import ConfigDict

from experiments import baseline_gpt2, ultra


def get_config(arg: str | None = None) -> ConfigDict:
  config = baseline_gpt2.get_config(arg)
  config.name = 'baseline_superbpe'
  config.data.tokenizer = ultra.get_config().data.tokenizer
  config.model.vocab_size = ultra.get_config().model.vocab_size
  return config
