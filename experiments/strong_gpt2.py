"""GPT-2 124M as well as it is trained today: BF16, compiled and captured, AdamW, rows of 1024 tokens in batches of 32.

Command:  python -m yxanul.main --config=experiments/strong_gpt2.py:source=PATH,budget_tokens=63.5e6
Hardware: one GPU with BF16 (Ampere and later); rows go through in parts where the memory is small
Expected: 504k to 516k tokens/s on one H200; 1.357 bits per byte after 64M tokens in 125 s; 1.170 after 238M in 464 s
          (three seeds, records/2026-12-01_ablate-best), 1.178 at a rate of 6e-4 (records/2026-11-30_ablate)

What the savings have to beat besides the mission's own baseline. Batches of 128 rows, at 1.2e-3 and with an earlier order of
the text, ended at 1.177 after 466 s but were behind for 400 s: at 1.657 after 86 s, 32 rows at 6e-4 after 58, at 1.2e-3 after
51. Of learning rates for 32 rows, 1.2e-3 ended 0.037 below 6e-4 after 125 s and 0.008 after 464, and 2.4e-3 ended 0.040 above
it after 126 s; `tools.ablate --rates` tries others.
Variants: `lr`, `rows`, `beta2` (of AdamW), `source`, `budget_tokens`.
"""

from ml_collections import ConfigDict

from experiments import baseline_gpt2
from yxanul.config.variants import parse_variant


def get_config(arg: str | None = None) -> ConfigDict:
  variant = parse_variant(arg, source='', budget_tokens=2_610_000_000, lr=1.2e-3, rows=32, beta2=0.95)
  lr, rows, beta2 = (variant.pop(key) for key in ('lr', 'rows', 'beta2'))
  config = baseline_gpt2.get_config(','.join(f'{key}={value}' for key, value in variant.items()))
  config.name = 'strong_gpt2'
  config.precision.matmul = 'bf16'
  config.training.execution = 'graph'
  config.optimizer.peak_lr, config.optimizer.beta2 = lr, beta2
  config.curriculum.stages[0].batch_size = rows
  config.curriculum.stages[0].reference_batch_size = rows
  return config
