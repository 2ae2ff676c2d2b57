"""ultra's own architecture as well as it is trained today: BF16, compiled and captured, AdamW, rows of 2048 in batches of 16.

Command:  python -m yxanul.main --config=experiments/strong_ultra.py:source=PATH,lr=2.4e-3,budget_tokens=34.8e6
Hardware: one GPU with BF16 (Ampere and later); rows go through in parts where the memory is small
Result:   1.829 bits per byte after 123 s on one H200 at 2.4e-3, where ultra with an eighth of its batches and a rate that
          nobody chose comes to 1.874; at 4.8e-3 1.938, at 1.2e-3 and 6e-4 worse after 30 s (one seed each;
          records/2026-11-30_ablate)

What FP8, the curriculum and the largest batches have to beat on the same model and tokenizer. A step has as many tokens
as one of strong_gpt2, by analogy; no other was tried. The rate that it has by default is ultra's, for long runs; `tools.ablate
--rates` tries others.
Variants: `lr`, `rows`, `beta2` (of AdamW), `gpu`, `source`, `budget_tokens`.
"""

from ml_collections import ConfigDict

from experiments import ultra_no_curriculum
from yxanul.config.variants import parse_variant


def get_config(arg: str | None = None) -> ConfigDict:
  variant = parse_variant(arg, gpu='rtx4090', source='', budget_tokens=2_610_000_000, lr=6e-4, rows=16, beta2=0.95)
  lr, rows, beta2 = (variant.pop(key) for key in ('lr', 'rows', 'beta2'))
  config = ultra_no_curriculum.get_config(','.join(f'{key}={value}' for key, value in variant.items()))
  config.name = 'strong_ultra'
  config.precision.matmul = 'bf16'
  config.optimizer.peak_lr, config.optimizer.beta2 = lr, beta2
  config.optimizer.warmup_share = 0.1  # as the GPT-2 baselines have it
  config.curriculum.stages[0].batch_size = rows
  config.curriculum.stages[0].reference_batch_size = rows
  return config
