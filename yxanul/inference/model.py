"""A trained model that is ready to be asked."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yxanul.config.model_spec import ModelSpec
from yxanul.config.spec import ExperimentSpec
from yxanul.data.tokenizer import Tokenizer
from yxanul.kernels.capabilities import Engines, choose_engines, detect
from yxanul.model.transformer import Numerics, Params
from yxanul.training.step import plain_numerics


@dataclasses.dataclass(frozen=True)
class Model:
  """What every function of this layer takes. Nothing runs in FP8: there is no state for its scales."""

  experiment: ExperimentSpec
  params: Params
  tokenizer: Tokenizer
  engines: Engines
  checkpoint: tuple[int, int] | None = None  # steps and tokens trained, where it was read from a run's checkpoint

  @property
  def spec(self) -> ModelSpec:
    return self.experiment.model

  @property
  def any_length(self) -> Engines:
    """The engines for rows of any length: other attention was chosen for the lengths of training."""
    return dataclasses.replace(self.engines, attention='sdpa')

  @functools.cached_property
  def numerics(self) -> Numerics:
    return plain_numerics(self.experiment, self.any_length)

  @functools.cached_property
  def undrawable_V(self) -> Tensor:
    """True for what is no text: special tokens but the end-of-text, and rows of the table that the tokenizer lacks."""
    drawable_V = torch.zeros(self.spec.vocab_size, dtype=torch.bool)
    drawable_V[: self.tokenizer.vocab_size] = torch.from_numpy(self.tokenizer.token_bytes > 0)
    drawable_V[self.tokenizer.end_of_text_id] = True
    return ~drawable_V.to(self.device)

  @property
  def window(self) -> int:
    """The longest context in tokens that it was trained on."""
    return self.experiment.curriculum.stages[-1].context

  @property
  def device(self) -> torch.device:
    return self.params['final_norm.weight'].device


def data_directory(experiment: ExperimentSpec, workdir: Path) -> Path:
  """Where a run's tokenizer and shards are."""
  return Path(experiment.data.directory) if experiment.data.directory else workdir / 'data'


def read_config(folder: Path) -> dict[str, Any]:
  """The config.json of a folder.

  Raises:
    ValueError: in one line: there is none, or it is no JSON object.
  """
  path = folder / 'config.json'
  try:
    config = json.loads(path.read_text(encoding='utf-8'))
  except (FileNotFoundError, NotADirectoryError):
    wants = 'the workdir of a run, or a folder that tools.export wrote'
    raise ValueError(f'--model={folder}: holds no model (no config.json), wants {wants}') from None
  except ValueError as error:
    raise ValueError(f'{path}: not readable as JSON ({error})') from None
  if not isinstance(config, dict):
    raise ValueError(f'{path}: not a JSON object')
  return config


def on_device(experiment: ExperimentSpec, params: Params, tokenizer: Tokenizer) -> Model:
  """The model on the GPU where there is one, with the engines that its precision gets there."""
  capabilities = detect()
  engines = choose_engines(capabilities, experiment.precision, experiment.model.head_width)
  if experiment.training.threads:
    torch.set_num_threads(experiment.training.threads)
  return Model(experiment, {name: p.to(capabilities.device) for name, p in params.items()}, tokenizer, engines)
