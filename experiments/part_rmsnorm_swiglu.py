"""The GPT-2 baseline with RMSNorm and SwiGLU, for the claim that the two are worth 15 %.

Command:  python -m yxanul.tools.compare experiments/baseline_gpt2.py experiments/part_rmsnorm_swiglu.py --seconds=120
          --set=data.source=PATH
Hardware: one GPU with 16 GB
Expected: 1.964 bits per byte after 5.8M tokens in 120 s on one H200, baseline_gpt2 1.966: 1.03 times as soon, one seed
          (records/2026-11-30_ablate)

The hidden width is two thirds of GELU's, so that the three matrices of SwiGLU weigh what the two had weighed.
Variants: `source`, `budget_tokens`.
"""

from ml_collections import ConfigDict

from experiments import baseline_gpt2


def get_config(arg: str | None = None) -> ConfigDict:
  config = baseline_gpt2.get_config(arg)
  config.name = 'part_rmsnorm_swiglu'
  config.model.norm = 'rmsnorm'
  config.model.activation = 'swiglu'
  config.model.d_hidden = config.model.d_hidden * 2 // 3
  return config
