"""A trained model as a folder for others, and back.

Two forms. The one that `transformers` loads with no code of ours (`hugging_face`): Llama or GPT-2, embeddings multiplied out.
And the factorized one, our own parameters as they are: 0.79 GB at ultra's size instead of 1.30.

Round trip: the factorized form gives back every parameter bit for bit. The other one gives back every parameter of the blocks
and norms bit for bit, and a table of full width in place of the factorized one, which is the product rounded to FP32; logits
differ by rounding alone, and exporting what was read writes the same tensors again.
"""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from yxanul.config.convert import from_saved, to_dict
from yxanul.config.spec import ExperimentSpec
from yxanul.data import tokenizer as tokenizers
from yxanul.inference import hugging_face
from yxanul.inference.card import model_card
from yxanul.inference.model import Model, on_device, read_config

FACTORIZED = 'yxanul'  # model_type of the form that only we read
DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16}


def export(model: Model, folder: Path, result: dict[str, Any], factorized: bool = False, dtype: str = 'float32') -> None:
  """Writes config, weights, tokenizer, generation settings and model card.

  Args:
    folder: made if missing, and may hold an earlier export.
    result: what `measured` gives, for the card; {} where there is nothing.
    dtype: of the weights, one of DTYPES.

  Raises:
    ValueError: transformers has no such architecture; the folder holds something else.
  """
  if not _is_free(folder):
    raise ValueError(f'--output={folder}: holds something else, wants a folder that is new, empty or an earlier export')
  spec, end = model.spec, model.tokenizer.end_of_text_id
  if factorized:
    config, tensors = {'model_type': FACTORIZED, 'architectures': ['Yxanul']}, model.params
  else:
    config, tensors = hugging_face.config(spec, end), hugging_face.to_theirs(model.params, spec)
  config |= {
    'dtype': dtype,
    'torch_dtype': dtype,
    'yxanul': {'experiment': to_dict(_public(model.experiment)), 'result': result},
  }
  folder.mkdir(parents=True, exist_ok=True)
  save_file(
    {name: x.to('cpu', DTYPES[dtype]).contiguous() for name, x in tensors.items()},
    folder / 'model.safetensors',
    {'format': 'pt'},
  )
  model.tokenizer.save(folder)
  _write(folder / 'tokenizer_config.json', _tokenizer_config(model))
  _write(folder / 'generation_config.json', _generation_config(model))
  card = model_card(model, result, factorized, dtype, sum(x.numel() for x in tensors.values()))
  (folder / 'README.md').write_text(card, encoding='utf-8')
  _write(folder / 'config.json', config)
  shutil.copymode(folder / 'config.json', folder / 'model.safetensors')  # which the library keeps from all but the owner


def measured(folder: Path, model: Model) -> dict[str, Any]:
  """The figures of the run in a workdir, or of the one that an export came from.

  Of a run that is not over: `finished` False, and the step and tokens of the checkpoint that `model` was loaded from.
  """
  path = folder / 'result.json'
  if path.exists():
    return json.loads(path.read_text(encoding='utf-8'))
  if model.checkpoint is not None:
    step, tokens = model.checkpoint
    return {'finished': False, 'step': step, 'tokens': tokens}
  return read_config(folder).get('yxanul', {}).get('result', {})


def read_export(folder: Path) -> Model:
  """The model of a folder that `export` wrote, on the device that is there, its weights in FP32.

  Raises:
    ValueError: it is not one, or a file is missing or broken.
  """
  config = read_config(folder)
  if not (_is_export(config) and 'experiment' in config['yxanul'] and 'model_type' in config):
    raise ValueError(f'--model={folder}: neither the workdir of a run nor a folder that tools.export wrote')
  experiment = from_saved(config['yxanul']['experiment'])
  try:
    tensors = {name: x.float() for name, x in load_file(folder / 'model.safetensors').items()}
  except Exception as error:  # the library has an exception of its own for a broken file
    raise ValueError(f'{folder / "model.safetensors"}: {" ".join(str(error).split())}') from None
  if config['model_type'] != FACTORIZED:
    experiment = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, embedding_rank=0))
    tensors = hugging_face.to_ours(tensors, experiment.model)
  return on_device(experiment, tensors, tokenizers.load(folder))


def _is_export(config: Any) -> bool:
  return isinstance(config, dict) and isinstance(config.get('yxanul'), dict)


def _is_free(folder: Path) -> bool:
  """Whether writing there loses nothing but an earlier export."""
  if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
    return True
  try:
    return _is_export(read_config(folder))
  except ValueError:
    return False


def _public(experiment: ExperimentSpec) -> ExperimentSpec:
  """Without the paths of the machine that it was trained on."""
  data = experiment.data
  data = dataclasses.replace(
    data, source='', validation_source='', directory='', tokenizer=dataclasses.replace(data.tokenizer, path='')
  )
  return dataclasses.replace(experiment, data=data)


def _tokenizer_config(model: Model) -> dict[str, Any]:
  end = model.tokenizer.end_of_text
  return {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'bos_token': end,
    'eos_token': end,
    'pad_token': end,
    'unk_token': None,
    'add_prefix_space': False,
    'clean_up_tokenization_spaces': False,
    'split_special_tokens': True,  # their spelling in a text is text, as it was in training
    'padding_side': 'left',
    'model_max_length': model.window,
  }


def _generation_config(model: Model) -> dict[str, Any]:
  sample, end = model.experiment.sample, model.tokenizer.end_of_text_id
  config: dict[str, Any] = {'bos_token_id': end, 'eos_token_id': end, 'pad_token_id': end}
  if sample.temperature == 0:
    return config | {'do_sample': False}
  return config | {'do_sample': True, 'temperature': sample.temperature, 'top_k': sample.top_k}


def _write(path: Path, value: Any) -> None:
  path.write_text(json.dumps(value, indent=2) + '\n', encoding='utf-8')
