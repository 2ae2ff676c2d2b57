"""What a run will do, as rows of plain values: its stages and its parameters."""

import math
from typing import Any

from yxanul.config.groups import optimizer_groups
from yxanul.config.spec import ExperimentSpec
from yxanul.planning import memory
from yxanul.planning.flops import flops_per_token
from yxanul.training.curriculum import Curriculum, token_shares


def stage_rows(spec: ExperimentSpec, curriculum: Curriculum) -> list[dict[str, Any]]:
  """One row a stage, as `reporting.tables.stage_table` takes them."""
  shares = token_shares(spec.curriculum)
  rows = []
  limit = int(memory.USABLE_SHARE * spec.training.gpu_memory_gb * 1e9)
  for stage in curriculum.stages:
    parts = memory.pieces(spec, stage.spec, limit) if limit else 1
    rows.append(
      {
        'stage': stage.number,
        'seq_len': stage.spec.seq_len,
        'n_layers': spec.model_of(stage.spec).n_layers,
        'batch_size': stage.spec.batch_size,
        'tokens_per_step': stage.spec.tokens_per_step,
        'steps': stage.n_steps,
        'tokens': stage.end_tokens - stage.start_tokens,
        'flops_per_token': flops_per_token(spec.model_of(stage.spec), stage.spec.seq_len),
        'share_start': sum(shares[: stage.index]),
        'lr_scale': stage.spec.lr_scale,
        'lr': spec.optimizer.peak_lr * stage.lr_factor,
        'grad_clip': stage.spec.grad_clip,
        'parts': parts,
        'memory_bytes': memory.step_bytes(spec, stage.spec, parts),
      }
    )
  return rows


def parameter_rows(spec: ExperimentSpec) -> list[dict[str, Any]]:
  """One row a parameter tensor, as `reporting.tables.parameter_table` takes them."""
  shapes = spec.model.parameter_shapes()
  groups = optimizer_groups(spec.optimizer, spec.model)
  return [
    {
      'name': name,
      'shape': shape,
      'parameters': math.prod(shape),
      'optimizer': groups[name].optimizer,
      'weight_decay': groups[name].weight_decay,
      'lr_multiplier': groups[name].lr_multiplier,
    }
    for name, shape in shapes.items()
  ]
