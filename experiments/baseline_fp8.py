"""The GPT-2 baseline with one saving on: FP8 block linears.

Command:  python -m yxanul.main --config=experiments/baseline_fp8.py:source=PATH,budget_tokens=21.4e6
Hardware: one GPU with FP8 (Ada, Hopper, Blackwell) and 16 GB
Expected: 1.673 bits per byte after 121 s on one H200 (records/2026-11-30_ablate); not yet run to its whole budget

Activations between the linears become BF16 with it, as FP8 training has them.
Variants: `source`, `budget_tokens`.
"""

from ml_collections import ConfigDict

from experiments import baseline_gpt2


def get_config(arg: str | None = None) -> ConfigDict:
  config = baseline_gpt2.get_config(arg)
  config.name = 'baseline_fp8'
  config.precision.matmul = 'fp8'
  return config
