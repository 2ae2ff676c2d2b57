"""All five savings at once: SuperBPE, FP8, length curriculum, fused steps, the largest batches.

Command:  python -m yxanul.main --config=experiments/ultra.py:gpu=h100 --config.data.source=HuggingFaceFW/fineweb-edu
Hardware: one Hopper GPU (H100, H200); gpu=rtx4090 sets the 24 GB table
Expected: 435k tokens/s over the schedule on one H200 (records/2026-11-29_bench-ultra); 1.863 bits per byte after 19M tokens in
          55 s of training (records/2026-11-22_ultra-run), with an earlier order of the text; gpu=h200,batch=0.125: 1.874 after
          51M in 122 s; each alone, another start of the projection (ultra_head:projection_std=0.088) 1.742 and another
          curriculum (ultra_curriculum:shape=timeline) 1.793 (records/2026-11-30_ablate). Not yet run to its whole budget.

Variants, as `ultra.py:key=value,...`: `gpu` sets the memory class and with it the batch (24 GB: 1x, 80 GB: 2x, 141 GB: 4x),
`source` the text (a path or a hub name), `budget_tokens` the length of the run, `batch` multiplies the batch of every stage
(a short run wants more and smaller steps: 0.25).
"""

from ml_collections import ConfigDict

from yxanul.config.convert import default_config
from yxanul.config.variants import choose, parse_variant

# Batch against the 24 GB class, and the memory the run may fill. A 40 GB card runs the 24 GB table.
MEMORY_CLASSES = {
  'rtx4090': (1, 24),
  'a100-40': (1, 40),
  'a100-80': (2, 80),
  'h100': (2, 80),
  'h200': (4, 141),
}


def stage(seq_len: int, batch_size: int, lr_scale: float, grad_clip: float, step_share_start: float) -> ConfigDict:
  return ConfigDict(
    dict(
      seq_len=seq_len,
      batch_size=batch_size,
      reference_batch_size=batch_size,
      lr_scale=lr_scale,
      grad_clip=grad_clip,
      step_share_start=step_share_start,
      mask_documents=False,
      window=0,
      n_layers=0,
    )
  )


def stages(batch_multiple: float) -> tuple[ConfigDict, ...]:
  table = (
    #     length  batch  lr    clip  starts at
    stage(8, 8192, 0.30, 0.5, 0.0),
    stage(16, 8192, 0.40, 0.5, 0.010),
    stage(32, 4096, 0.50, 0.7, 0.025),
    stage(64, 2048, 0.60, 0.8, 0.050),
    stage(128, 1024, 0.75, 0.9, 0.100),
    stage(256, 512, 0.85, 1.0, 0.175),
    stage(512, 256, 0.95, 1.0, 0.275),
    stage(768, 256, 1.00, 1.0, 0.400),
    stage(1536, 128, 1.00, 1.0, 0.550),
    stage(2048, 64, 1.00, 1.0, 0.700),
  )
  for row in table:
    row.batch_size = int(row.batch_size * batch_multiple)
  return table


def get_config(arg: str | None = None) -> ConfigDict:
  variant = parse_variant(arg, gpu='rtx4090', source='', budget_tokens=2_610_000_000, batch=1.0)
  multiple, memory_gb = choose(variant['gpu'], MEMORY_CLASSES, 'gpu')

  config = default_config()
  config.name = 'ultra'

  config.model.vocab_size = 200_005
  config.model.d_model = 768
  config.model.n_layers = 28
  config.model.n_heads = 12
  config.model.n_kv_heads = 2
  config.model.head_dim = 64
  config.model.d_hidden = 2048
  config.model.embedding_rank = 128

  config.precision.matmul = 'fp8'
  config.precision.fp8_recipe = 'delayed'
  config.precision.fp8_amax_history_steps = 1024
  config.precision.fp8_margin = 0

  config.data.source = variant['source']
  config.data.min_score = 3.5
  config.data.min_document_tokens = 1000
  config.data.tokenizer.vocab_size = 200_000
  config.data.tokenizer.transition_size = 80_000

  config.curriculum.budget_tokens = variant['budget_tokens']
  config.curriculum.stages = stages(multiple * variant['batch'])

  config.optimizer.peak_lr = 6e-4
  config.optimizer.warmup_share = 0.01
  config.optimizer.final_lr_share = 0.1

  config.training.execution = 'graph'
  config.training.gpu_memory_gb = float(memory_gb)
  return config
