"""A trained model from wherever it was kept."""

import dataclasses
from pathlib import Path

from yxanul.config.convert import from_saved
from yxanul.data import tokenizer as tokenizers
from yxanul.inference.export import read_export
from yxanul.inference.model import Model, data_directory, on_device, read_config
from yxanul.training.checkpoint import read_params


def load(folder: Path) -> Model:
  """The newest sound checkpoint of a run, or a folder that `export` wrote, on the device that is there.

  Raises:
    ValueError: in one line: the folder holds neither, or what it holds is broken.
  """
  config = read_config(folder)
  if 'curriculum' not in config:
    return read_export(folder)
  experiment = from_saved(config)
  params, host, _ = read_params(folder / 'checkpoints', experiment.model.parameter_shapes())
  model = on_device(experiment, params, tokenizers.load(data_directory(experiment, folder) / 'tokenizer'))
  progress = host['progress']
  return dataclasses.replace(model, checkpoint=(progress['step'], progress['tokens']))
