"""A toy that shows the whole system on a laptop: the English prose that every CPython carries, through all ten stages.

Command:  python -m yxanul.main --config=experiments/quickstart.py --workdir=runs/quickstart
Hardware: two CPU cores, 2 GB of memory, 3 minutes
Expected: 1.94 bits per byte of held-out text (xz -9e: 2.39) after 143 s, 1 GB (records/2026-11-30_quickstart)

The architecture is ultra's (grouped-query attention, SwiGLU, RMSNorm, rotary positions, a factorized tied table) at a size
that two cores train in two minutes, in FP32. The curriculum has ultra's ten stages, learning-rate scales, clips and shares,
but the lengths end at 192 instead of 2048. As in best, an entry of the table learns with the two that it was merged from.
"""

from ml_collections import ConfigDict

from experiments import ultra
from yxanul.config.convert import default_config
from yxanul.config.variants import parse_variant

LENGTHS = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192)
TOKENS_PER_STEP = 384  # divides by every length


def get_config(arg: str | None = None) -> ConfigDict:
  parse_variant(arg)
  config = default_config()
  config.name = 'quickstart'
  config.note = 'This is a toy: a small model for a short while, to show that everything works. It will not know much.'

  config.model.vocab_size = 1024
  config.model.d_model = 192
  config.model.n_layers = 4
  config.model.n_heads = 6
  config.model.n_kv_heads = 2
  config.model.head_dim = 32
  config.model.d_hidden = 512
  config.model.embedding_rank = 96
  config.model.init_std = 0.06  # 0.02 is for width 768; narrow as this, tokens would drown in the first layer's output
  config.model.max_positions = 192

  config.precision.matmul = 'fp32'

  config.data.source = 'python-docs'
  config.data.tokenizer.vocab_size = 1023
  config.data.tokenizer.transition_size = 768
  config.data.tokenizer.special_tokens = ('<|endoftext|>',)

  config.curriculum.budget_tokens = 620_000
  config.curriculum.stages = ultra.stages(batch_multiple=1)
  for stage, seq_len in zip(config.curriculum.stages, LENGTHS, strict=True):
    stage.seq_len = seq_len
    stage.batch_size = stage.reference_batch_size = TOKENS_PER_STEP // seq_len

  config.optimizer.peak_lr = 2e-3
  config.optimizer.warmup_share = 0.02
  config.optimizer.inheritance = 0.7

  config.training.execution = 'eager'
  config.training.deterministic = True
  config.training.threads = 1  # steps this small gain little from a second thread, and lose sixfold when it is taken
  config.training.log_every_steps = 20
  config.training.checkpoint_every_seconds = 30.0

  config.evaluation.seq_len = 192
  config.evaluation.batch_size = 8
  config.evaluation.every_share = 0.2
  config.evaluation.max_tokens = 100_000
  config.evaluation.xz_mark = True

  config.sample.prompts = ('The', 'If the', 'A class definition')
  config.sample.tokens = 100
  config.sample.temperature = 0.05
  config.sample.top_k = 2
  return config
