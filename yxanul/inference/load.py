"""A trained model from wherever it was kept."""

import dataclasses
from pathlib import Path

from yxanul.config.convert import from_saved
from yxanul.config.spec import ExperimentSpec
from yxanul.data import tokenizer as tokenizers
from yxanul.inference.export import read_export
from yxanul.inference.model import Model, data_directory, on_device, read_config
from yxanul.model.transformer import Params
from yxanul.training import depth
from yxanul.training.checkpoint import read_params
from yxanul.training.curriculum import Curriculum


def load(folder: Path) -> Model:
  """The newest sound checkpoint of a run, or a folder that `export` wrote, on the device that is there.

  Of a checkpoint from a stage that runs a part of the blocks, the model with those: the others have not been trained.

  Raises:
    ValueError: in one line: the folder holds neither, or what it holds is broken.
  """
  config = read_config(folder)
  if 'curriculum' not in config:
    return read_export(folder)
  experiment = from_saved(config)
  params, host, _ = read_params(folder / 'checkpoints', experiment.model.parameter_shapes())
  progress = host['progress']
  stage = Curriculum(experiment, host['choices']['batches']).lookup(max(progress['tokens'] - 1, 0)).spec
  experiment, params = _as_trained(experiment, params, experiment.model_of(stage).n_layers)
  model = on_device(experiment, params, tokenizers.load(data_directory(experiment, folder) / 'tokenizer'))
  return dataclasses.replace(model, checkpoint=(progress['step'], progress['tokens']))


def _as_trained(experiment: ExperimentSpec, params: Params, n_layers: int) -> tuple[ExperimentSpec, Params]:
  if n_layers == experiment.model.n_layers:
    return experiment, params
  stages = tuple(dataclasses.replace(stage, n_layers=0) for stage in experiment.curriculum.stages)
  small = dataclasses.replace(
    experiment,
    model=dataclasses.replace(experiment.model, n_layers=n_layers),
    curriculum=dataclasses.replace(experiment.curriculum, stages=stages),
  )
  return small, depth.first(params, n_layers)
