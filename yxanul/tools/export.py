"""A trained model as a Hugging Face folder: weights, config, tokenizer, generation settings, model card.

Command: python -m yxanul.tools.export --model=runs/quickstart --output=exported [--factorized] [--dtype=bfloat16]
`AutoModelForCausalLM.from_pretrained` loads it as Llama or GPT-2; with --factorized it keeps the small form that
tools.generate and tools.evaluate read. The card says how to go on to llama.cpp.
"""

from pathlib import Path

from absl import flags

from yxanul.config import cli
from yxanul.reporting import numbers

_MODEL = flags.DEFINE_string('model', None, 'The workdir of a run, or a folder that tools.export wrote.')
_OUTPUT = flags.DEFINE_string('output', None, 'The folder to write.')
_FACTORIZED = flags.DEFINE_bool('factorized', False, 'Keep the factorized embeddings, in a form that only Yxanul reads.')
_DTYPE = flags.DEFINE_enum('dtype', 'float32', ['float32', 'bfloat16'], 'Of the weights in the file.')


def main() -> None:
  if not _MODEL.value:
    raise ValueError('--model: missing, wants the workdir of a run, or a folder that tools.export wrote')
  if not _OUTPUT.value:
    raise ValueError('--output: missing, wants the folder to write')
  from yxanul.inference.card import unfinished
  from yxanul.inference.export import export, measured
  from yxanul.inference.load import load

  folder, output = Path(_MODEL.value), Path(_OUTPUT.value)
  model = load(folder)
  result = measured(folder, model)
  export(model, output, result, _FACTORIZED.value, _DTYPE.value)
  size = (output / 'model.safetensors').stat().st_size
  print(f'{output}: {numbers.byte_size(size)} of weights; README.md there says how to load them')
  if _FACTORIZED.value and not model.spec.embedding_rank:
    print('the embeddings are not factorized here, or were multiplied out by an export before: nothing is saved')
  if note := unfinished(result):
    print(note)


if __name__ == '__main__':
  cli.run(main)
