"""The samples of a run: every prompt of the configuration, continued."""

from pathlib import Path

import torch

from yxanul.data.prepare_journal import write_atomically
from yxanul.inference.generate import Sampling, complete, streams
from yxanul.inference.model import Model


def write_samples(path: Path, model: Model, stream: torch.Generator) -> None:
  """Writes `path`: the continuations, each with its prompt, apart by a line of dashes."""
  spec = model.experiment.sample
  sampling = Sampling(spec.tokens, spec.temperature, spec.top_k)
  draws = streams(stream.initial_seed(), len(spec.prompts))
  texts = complete(model, spec.prompts, sampling, draws)
  write_atomically(path, '\n\n---\n\n'.join(map(str.__add__, spec.prompts, texts)) + '\n')
