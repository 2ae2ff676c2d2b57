"""A family of experiments that trains in seconds: the real files, made small.

`write_family(folder)` puts a file beside each of the real ones' names, which loads it and shrinks what it says; so the tools
are tested on the family's own configurations, from the command line.
"""

from pathlib import Path

from ml_collections import ConfigDict

SHRUNK = '''"""{name}, small."""

from experiments import {name}
from tests.study.toy import shrink


def get_config(arg=None):
  return shrink({name}.get_config(arg))
'''
LENGTHS = {8: 8, 16: 12, 32: 16, 64: 24, 128: 32, 256: 48, 512: 64, 768: 64, 1024: 64, 1536: 64, 2048: 96}


def shrink(config: ConfigDict) -> ConfigDict:
  """Widths, lengths, batches and vocabulary small; what tells the experiments apart stays."""
  model, data = config.model, config.data
  model.n_kv_heads = 2 if model.n_kv_heads == 2 else 4
  model.d_model, model.n_layers, model.n_heads, model.head_dim = 32, 2, 4, 8
  model.d_hidden = 64 if model.activation == 'swiglu' else 96
  model.embedding_rank = 16 if model.embedding_rank else 0
  model.init_std, model.max_positions, model.vocab_size = 0.1, 96, 512
  data.source, data.min_score, data.min_document_tokens = 'python-docs', 0.0, 0
  data.tokenizer.transition_size = 511 if data.tokenizer.path else 400
  data.tokenizer.path, data.tokenizer.vocab_size, data.tokenizer.special_tokens = '', 511, ('<|endoftext|>',)
  if len(config.curriculum.stages) == 10:  # three have steps enough in a fraction of a second
    config.curriculum.stages = tuple(config.curriculum.stages[i] for i in (0, 5, 9))
  for stage in config.curriculum.stages:
    rows = max(1, round(384 * stage.batch_size / stage.reference_batch_size) // LENGTHS[stage.seq_len])
    stage.reference_batch_size = max(1, 384 // LENGTHS[stage.seq_len])
    stage.batch_size = rows
    stage.window = LENGTHS.get(stage.window, 0)
    stage.seq_len = LENGTHS[stage.seq_len]
    stage.n_layers = min(stage.n_layers, 1)  # of the two
  config.curriculum.budget_tokens = 40_000
  config.optimizer.peak_lr = 3e-3
  config.precision.matmul = 'fp32'
  config.training.threads, config.training.log_every_steps = 1, 20
  config.evaluation.seq_len, config.evaluation.batch_size = min(config.evaluation.seq_len, 96), 8
  config.evaluation.every_share, config.evaluation.max_bytes = 0.25, 8000
  config.sample.tokens = 4
  return config


def write_family(folder: Path, *names: str) -> Path:
  """Files for these experiments; the path of the last."""
  folder.mkdir(parents=True, exist_ok=True)
  for name in names:
    (folder / f'{name}.py').write_text(SHRUNK.format(name=name))
  return folder / f'{names[-1]}.py'
