"""The GPT-2 baseline with one saving on: each step fused and captured as one graph.

Command:  python -m yxanul.main --config=experiments/baseline_fused.py:source=PATH,budget_tokens=6.4e6
Hardware: one GPU with 16 GB
Expected: 1.951 bits per byte after 120 s on one H200 (records/2026-11-30_ablate); not yet run to its whole budget

The mission credits NVIDIA's container with 1.2x; what a container can give is this: the same maths
without a launch an operation.
Variants: `source`, `budget_tokens`.
"""

from ml_collections import ConfigDict

from experiments import baseline_gpt2


def get_config(arg: str | None = None) -> ConfigDict:
  config = baseline_gpt2.get_config(arg)
  config.name = 'baseline_fused'
  config.training.execution = 'graph'
  return config
