"""GPT-2 124M as the mission defines its baseline: FP32, constant length, small batch, no tricks.

Command:  python -m yxanul.main --config=experiments/baseline_gpt2.py:source=PATH
Hardware: one GPU with 16 GB
Expected: 1.654 bits per byte after 22.4M tokens in 450 s on one H200 (1.652 to 1.657, three seeds), 1.391 after 59.8M in
          1,201 s (records/2026-12-01_ablate-best). Not yet run to its whole budget.

LayerNorm, GELU, learned positions, full multi-head attention, biases, an embedding table of full width tied to the head,
GPT-2's own tokenizer, rows of 1024 tokens in batches of 12. 6e-4 was the best of four rates for that batch, and a
warm-up over a tenth better than one over a hundredth, in BF16 and with an earlier order of the text
(records/2026-11-29_data-order). Variants: `source`, `budget_tokens`.
"""

from ml_collections import ConfigDict

from yxanul.config.convert import default_config
from yxanul.config.variants import parse_variant


def get_config(arg: str | None = None) -> ConfigDict:
  variant = parse_variant(arg, source='', budget_tokens=2_610_000_000)
  config = default_config()
  config.name = 'baseline_gpt2'

  config.model.vocab_size = 50_257
  config.model.d_model = 768
  config.model.n_layers = 12
  config.model.n_heads = 12
  config.model.n_kv_heads = 12
  config.model.head_dim = 64
  config.model.d_hidden = 3072
  config.model.norm = 'layernorm'
  config.model.activation = 'gelu'
  config.model.position = 'learned'
  config.model.max_positions = 1024
  config.model.bias = True
  config.model.embedding_rank = 0

  config.precision.matmul = 'fp32'

  config.data.source = variant['source']
  config.data.tokenizer.path = 'gpt2'
  config.data.tokenizer.vocab_size = 50_256
  config.data.tokenizer.transition_size = 50_256
  config.data.tokenizer.special_tokens = ('<|endoftext|>',)

  config.curriculum.budget_tokens = variant['budget_tokens']
  config.curriculum.stages[0].seq_len = 1024
  config.curriculum.stages[0].batch_size = 12
  config.curriculum.stages[0].reference_batch_size = 12

  config.optimizer.peak_lr = 6e-4
  config.optimizer.warmup_share = 0.1
  config.evaluation.seq_len = 1024
  config.training.execution = 'eager'
  return config
