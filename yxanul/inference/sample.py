"""The samples of a run: every prompt of the configuration, continued."""

from pathlib import Path

from yxanul.config.spec import ExperimentSpec
from yxanul.data.tokenizer import Tokenizer
from yxanul.inference.generate import generate
from yxanul.model.transformer import Numerics
from yxanul.training.state import TrainState, generator


def write_samples(path: Path, state: TrainState, spec: ExperimentSpec, numerics: Numerics, tokenizer: Tokenizer) -> None:
  """Writes `path`: the continuations, each with its prompt, apart by a line of dashes. Draws from the state's stream."""
  draws = generator(state.rng)
  texts = []
  for prompt in spec.sample.prompts:
    tokens = generate(
      state.params,
      tokenizer.encode_batch([prompt])[0].tolist(),
      spec.model,
      numerics,
      tokens=spec.sample.tokens,
      end_of_text_id=tokenizer.end_of_text_id,
      window=spec.curriculum.stages[-1].seq_len,
      temperature=spec.sample.temperature,
      top_k=spec.sample.top_k,
      generator=draws,
    )
    texts.append(prompt + tokenizer.decode(list(tokens)))
  path.write_text('\n\n---\n\n'.join(texts) + '\n')
