"""Text from a trained model.

Command: python -m yxanul.tools.generate --model=runs/quickstart --prompt='The history of'
--model is the workdir of a run, or a folder that tools.export wrote. Several --prompt go through the model as one batch;
without any, prompts are read from the terminal, a line each, and an empty line lets the last text go on.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from absl import flags

from yxanul.config import cli

_MODEL = flags.DEFINE_string('model', None, 'The workdir of a run, or a folder that tools.export wrote.')
_PROMPT = flags.DEFINE_multi_string('prompt', [], 'What the text begins with; may be given several times.')
_TOKENS = flags.DEFINE_integer('tokens', 128, 'Tokens at most, of each text.', lower_bound=1)
_TEMPERATURE = flags.DEFINE_float('temperature', 0.8, '0: always the likeliest token.', lower_bound=0.0)
_TOP_K = flags.DEFINE_integer('top_k', 0, 'Draw from the likeliest k tokens; 0: from all.', lower_bound=0)
_TOP_P = flags.DEFINE_float(
  'top_p', 1.0, 'Draw from the likeliest tokens that hold this share.', lower_bound=0.0, upper_bound=1.0
)
_SEED = flags.DEFINE_integer('seed', 0, 'The same seed gives the same texts.', lower_bound=0, upper_bound=2**63 - 1)
_STOP = flags.DEFINE_multi_string('stop', [], 'End before this string; may be given several times.')


def _typed() -> Iterator[str]:
  """Prompts as they are typed, until the end of the input."""
  asks = sys.stdin.isatty()
  if asks:
    print('a line is a prompt, an empty one lets the last text go on; Ctrl-C ends a text, Ctrl-D all', file=sys.stderr)
  while True:
    try:
      yield input('> ' if asks else '')
    except (EOFError, KeyboardInterrupt):
      if asks:
        print()  # what comes next in the terminal stands on a line of its own
      return


def main() -> None:
  if not _MODEL.value:
    raise ValueError('--model: missing, wants the workdir of a run, or a folder that tools.export wrote')
  if '' in _STOP.value:
    raise ValueError("--stop: got '', wants at least one character")
  from yxanul.inference.generate import Generator, Sampling, streams
  from yxanul.inference.load import load

  sampling = Sampling(_TOKENS.value, _TEMPERATURE.value, _TOP_K.value, _TOP_P.value, tuple(_STOP.value))
  generator = Generator(load(Path(_MODEL.value)))

  def tell(prompt: str, stream) -> str:
    text = prompt
    print(prompt, end='', flush=True)
    try:
      for _, more in generator([prompt], sampling, [stream]):
        text += more
        print(more, end='', flush=True)
    except KeyboardInterrupt:  # ends this text, not the session
      pass
    print()
    return text

  if len(_PROMPT.value) == 1:
    tell(_PROMPT.value[0], streams(_SEED.value, 1)[0])
  elif _PROMPT.value:
    texts = list(_PROMPT.value)
    for i, more in generator(texts.copy(), sampling, streams(_SEED.value, len(texts))):
      texts[i] += more
    print('\n\n---\n\n'.join(texts))
  else:
    text = ''
    for number, typed in enumerate(_typed()):
      text = tell(typed or text, streams(_SEED.value + number, 1)[0])


if __name__ == '__main__':
  cli.run(main)
