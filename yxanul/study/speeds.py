"""Seconds to tokens: a budget of training time becomes a budget of tokens before the run begins.

The experiment's whole schedule is timed on this device, a few steps of every stage, and tokens = seconds x tokens/s. So the run
is an ordinary one, exact and resumable, and its learning rate reaches its end with its last step. (Rejected: progress by the
clock. Two runs would never be the same, and a resumed one not even itself.) What a run then really took is in its own result,
and curves are drawn over that.

A speed is measured once, kept beside the runs, and shared by all members that differ in nothing that takes time: rates,
initial values, seeds. So variants of a rate have the same tokens, and cost no timing.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from yxanul.config.convert import to_dict
from yxanul.config.groups import assign_groups
from yxanul.config.spec import ExperimentSpec
from yxanul.data import prepare as preparation
from yxanul.data.prepare_journal import write_atomically
from yxanul.kernels.capabilities import detect, driver
from yxanul.study.apart import Apart
from yxanul.study.members import Member
from yxanul.training import benchmark

_EFFORT = benchmark.Effort(steps=3, warmup_steps=1, profile_steps=0)
# What a step takes does not depend on these.
_START_AND_CONSTANTS = ('init_std', 'table_std', 'projection_std', 'input_scale', 'norm_eps', 'rope_theta')
_RATE_AND_CLIP = ('lr_scale', 'grad_clip')
_EXECUTION = ('execution', 'deterministic', 'threads', 'recompute', 'shard_optimizer', 'gpu_memory_gb')
_UPDATE = ('nesterov', 'polynomial', 'newton_schulz_steps', 'row_normalization')


def speed(member: Member, workdir: Path, apart: Apart, tell: Callable[[str], None]) -> float:
  """Tokens/s of the member's whole schedule on this device: from WORKDIR/speeds, or measured and kept there.

  Raises:
    Stopped: on request; what was measured is lost.
    ValueError: the member could not be timed.
  """
  folder, decides = workdir / 'speeds', deciding(member.spec)
  card = (driver() or {}).get('name')  # of another one, a speed says nothing
  folder.mkdir(parents=True, exist_ok=True)
  for path in sorted(folder.glob('*.json')):
    measured = json.loads(path.read_text())
    if measured.get('decided_by') == decides and card in (None, measured['hardware']):
      return measured['tokens_per_second']
  tell(f'{member.name}: timing its stages, to know how many tokens its seconds are')
  path = folder / f'{member.folder}.json'
  if apart.call(measure_speed, member.spec, path):
    raise ValueError(f'{member.name}: could not be timed; the lines above say why')
  measured = json.loads(path.read_text())
  tell(f'{member.name}: {measured["tokens_per_second"]:,.0f} tokens/s on {measured["hardware"]}')
  return measured['tokens_per_second']


def deciding(spec: ExperimentSpec) -> dict[str, Any]:
  """What a speed depends on, as JSON has it. A field that the model or a stage gets later counts until it is named above."""
  plain = to_dict(spec)
  groups = assign_groups(spec.model.parameter_shapes(), spec.optimizer.groups)
  muon = any(group.optimizer == 'muon' for group in groups.values())
  decides = {
    'model': _without(plain['model'], _START_AND_CONSTANTS),
    'precision': plain['precision'],
    'stages': [_stage(stage) for stage in plain['curriculum']['stages']],
    'batch_size': spec.curriculum.batch_size,
    'optimizers': [group.optimizer for group in groups.values()],
    'muon': {name: plain['optimizer']['muon'][name] for name in _UPDATE} if muon else None,
    'z_loss': spec.optimizer.z_loss > 0,
    'training': {name: plain['training'][name] for name in _EXECUTION},
  }
  if spec.optimizer.inheritance:  # named where it is, so that speeds measured before there was such a thing still count
    decides['inheritance'] = True
  return json.loads(json.dumps(decides))


def _stage(stage: dict[str, Any]) -> dict[str, Any]:
  # All blocks are not named: so speeds from before a stage could run a part of them still count.
  return _without(stage, (*_RATE_AND_CLIP, *([] if stage['n_layers'] else ['n_layers'])))


def _without(values: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
  return {name: value for name, value in values.items() if name not in names}


def measure_speed(spec: ExperimentSpec, path: Path) -> None:
  """Times every stage and writes `path`; meant for a process of its own."""
  told: list[str] = []
  capabilities = detect()
  prepared = preparation.prepare(spec.data, Path(spec.data.directory), lambda *_: None)
  stages = range(1, len(spec.curriculum.stages) + 1)
  measured = benchmark.measure(spec, stages, prepared, capabilities, _EFFORT, told.append)
  schedule = measured['schedule']
  if schedule is None or not schedule['complete']:
    raise ValueError('; '.join(row['error'] for row in measured['stages'] if 'error' in row))
  record = {
    'tokens_per_second': schedule['tokens_per_second'],
    'hardware': capabilities.name,
    'seconds_warming': measured['warm_seconds'],
    'stages': [{key: row[key] for key in ('stage', 'seq_len', 'tokens_per_step', 'ms', 'n')} for row in measured['stages']],
    'decided_by': deciding(spec),
  }
  write_atomically(path, json.dumps(record, indent=1) + '\n')
