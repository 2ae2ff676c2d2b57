"""The model card of an exported folder: what was trained, what was measured, how to load it."""

from typing import Any

from tokenizers import pre_tokenizers

from yxanul.data.tokenizer import Tokenizer, superword_splits
from yxanul.inference.model import Model

_PROBE = "By the way,  it's 1234567 x² of\n\n the 'end'"  # each way to split cuts it otherwise

_FIGURES = (
  ('val_bpb', 'bits per byte of held-out text', '{:.4f}'),
  ('ppl_gpt2_equivalent', 'the same as the perplexity of a GPT-2 token', '{:,.2f}'),
  ('xz_bpb', 'bits per byte of `xz -9e` on that text', '{:.4f}'),
  ('tokens', 'tokens trained on', '{:,}'),
  ('bytes', 'bytes of text trained on', '{:,}'),
  ('seconds', 'seconds in all', '{:,.0f}'),
  ('seconds_training', 'seconds of training steps', '{:,.0f}'),
  ('tokens_per_second', 'tokens a second while training', '{:,.0f}'),
  ('hardware', 'hardware', '{}'),
)

_TRANSFORMERS = """```python
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained('FOLDER')
model = AutoModelForCausalLM.from_pretrained('FOLDER')
ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer('The history of').input_ids]])
print(tokenizer.decode(model.generate(ids, max_new_tokens=40)[0, 1:]))
```

Every document in training began behind the token {end} (id {end_id}); the tokenizer
does not add it, so the prompt gets it here."""

_LLAMA_CPP = """
### llama.cpp

Its converter knows tokenizers by a hash and not this one, so it has to be told how the tokenizer splits text. In a checkout of
llama.cpp (`pip install -r requirements.txt` there):

```bash
python -c "
import runpy, sys
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: '{splits}'
sys.argv[0] = 'convert_hf_to_gguf.py'
runpy.run_path(sys.argv[0], run_name='__main__')" FOLDER --outfile model.gguf
```
"""

_FACTORIZED = """```bash
python -m yxanul.tools.generate --model=FOLDER --prompt='The history of'
```

```python
from pathlib import Path

from yxanul.inference.load import load

model = load(Path('FOLDER'))  # model.params: the names and shapes of yxanul.config.model_spec.ModelSpec.parameter_shapes
```

`python -m yxanul.tools.export --model=FOLDER --output=OTHER` writes the form that transformers loads."""


def splits(tokenizer: Tokenizer) -> str | None:
  """llama.cpp's name of how the tokenizer splits text: 'superbpe', 'gpt-2', or None where it has no such splits."""
  known = {'superbpe': superword_splits(), 'gpt-2': pre_tokenizers.ByteLevel(add_prefix_space=False)}
  ours = tokenizer.inner.pre_tokenizer.pre_tokenize_str(_PROBE)
  return next((name for name, theirs in known.items() if theirs.pre_tokenize_str(_PROBE) == ours), None)


def unfinished(result: dict[str, Any]) -> str:
  """One line that says so where the run was not over, '' where it was or nothing is known of it."""
  if result.get('finished', True):
    return ''
  return f'Not finished: the checkpoint of step {result["step"]:,}, after {result["tokens"]:,} tokens.'


def model_card(model: Model, result: dict[str, Any], factorized: bool, dtype: str, n_stored: int) -> str:
  """README.md of the folder.

  Args:
    result: what `export.measured` gives, {} where there is nothing.
    n_stored: numbers in the weights file.
  """
  experiment, spec = model.experiment, model.spec
  described = (
    f'{spec.n_layers} layers of width {spec.d_model}, {spec.n_heads} query and {spec.n_kv_heads} key/value heads of '
    f'{spec.head_dim}, {spec.activation} of {spec.d_hidden}, {spec.norm}, {spec.position} positions'
  )
  table = f'embeddings of rank {spec.embedding_rank}, tied' if spec.embedding_rank else 'tied embeddings'
  lines = [
    '---',
    *([f'language: {experiment.data.language}'] if experiment.data.language else []),
    *([] if factorized else ['library_name: transformers']),
    'pipeline_tag: text-generation',
    'tags:',
    '- yxanul',
    '---',
    '',
    f'# {experiment.name}',
    '',
    *([experiment.note, ''] if experiment.note else []),
    f'A language model of {spec.parameter_count():,} parameters, trained from scratch: {described}; {table}. Vocabulary '
    f'{spec.vocab_size:,}; the longest context in training was {model.window:,} tokens. This folder holds {n_stored:,} '
    f'numbers in {dtype}'
    + (
      ', the parameters as they were trained.' if factorized or not spec.embedding_rank else ', the embeddings multiplied out.'
    ),
    '',
    'It is a base model: it continues text, follows no instructions, and what it writes is not checked by anybody.',
    '',
  ]
  if note := unfinished(result):
    lines += [f'**{note}**', '']
  found = [(what, form.format(result[name])) for name, what, form in _FIGURES if result.get(name) is not None]
  if found:
    lines += ['## Measured', '', '| what | figure |', '|---|---|', *(f'| {what} | {figure} |' for what, figure in found), '']
    versions = ', '.join(f'{name} {version}' for name, version in result.get('versions', {}).items())
    lines += [*([f'Versions: {versions}.', ''] if versions else [])]
  how = _FACTORIZED if factorized else _TRANSFORMERS
  lines += ['## Loading', '', how.replace('{end}', f'`{model.tokenizer.end_of_text}`')]
  text = '\n'.join(lines).replace('{end_id}', str(model.tokenizer.end_of_text_id)) + '\n'
  if not factorized and (name := splits(model.tokenizer)):
    text += _LLAMA_CPP.replace('{splits}', name)
  return text
