"""The GPT-2 baseline with two key/value heads for its twelve query heads, for what grouped-query attention costs in quality.

Command:  python -m yxanul.tools.compare experiments/baseline_gpt2.py experiments/part_gqa.py --seconds=120
          --set=data.source=PATH
Hardware: one GPU with 16 GB
Expected: 1.977 bits per byte after 5.5M tokens in 120 s on one H200, baseline_gpt2 1.966: 0.87 times as soon, of it 0.92 in
          speed; one seed, which does not tell the rest from chance (records/2026-11-30_ablate)

The mission says that it saves 75 % of the key/value cache; from 12 to 2 heads it is 1 - 2/12, 83 %, by arithmetic.
Variants: `source`, `budget_tokens`.
"""

from ml_collections import ConfigDict

from experiments import baseline_gpt2


def get_config(arg: str | None = None) -> ConfigDict:
  config = baseline_gpt2.get_config(arg)
  config.name = 'part_gqa'
  config.model.n_kv_heads = 2
  return config
