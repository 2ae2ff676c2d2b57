"""A synthetic run: the files that training leaves behind, without training."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from yxanul.config.convert import to_dict
from yxanul.config.curriculum_spec import CurriculumSpec, StageSpec
from yxanul.config.spec import EvaluationSpec, ExperimentSpec

SHARES = (0, 0.01, 0.025, 0.05, 0.1, 0.175, 0.275, 0.4, 0.55, 0.7)
LENGTHS = (8, 16, 32, 64, 96, 128, 192, 256, 384, 512)


def spec(note: str = 'This is a toy: it shows that everything works, not what the model can do.') -> ExperimentSpec:
  stages = tuple(
    StageSpec(seq_len=length, batch_size=4096 // length, reference_batch_size=4096 // length, step_share_start=share)
    for length, share in zip(LENGTHS, SHARES, strict=True)
  )
  curriculum = CurriculumSpec(budget_tokens=2_000_000, stages=stages)
  evaluation = EvaluationSpec(seq_len=512)
  return dataclasses.replace(ExperimentSpec(name='quickstart', note=note), curriculum=curriculum, evaluation=evaluation)


def write_run(workdir: Path, *, finished: bool = True, samples: str = 'The list is a mapping of the object.\n') -> Path:
  """Writes config.json, metrics.jsonl, samples.txt and, when finished, result.json."""
  experiment = spec()
  workdir.mkdir(parents=True, exist_ok=True)
  (workdir / 'config.json').write_text(json.dumps(to_dict(experiment)))
  lines = []
  seconds = training = tokens = 0.0
  step = 0
  budget = experiment.curriculum.budget_tokens
  for number, (stage, share, end) in enumerate(
    zip(experiment.curriculum.stages, SHARES, [*SHARES[1:], 1.0], strict=True), start=1
  ):
    speed = 30_000 / (1 + stage.seq_len / 400)
    n_steps = max(1, round((end - share) * budget / stage.tokens_per_step))
    for i in range(n_steps):
      step, tokens = step + 1, tokens + stage.tokens_per_step
      seconds, training = seconds + stage.tokens_per_step / speed, training + stage.tokens_per_step / speed
      if step % 5 and i + 1 < n_steps:
        continue
      wiggle = 0.03 * math.sin(step * 1.7) + 0.02 * math.sin(step * 0.61)
      bpb = 2.05 + 2.6 * math.exp(-tokens / 90_000) + 0.5 * math.exp(-tokens / 900_000) + wiggle
      lines.append(
        {'step': step, 'stage': number, 'seq_len': stage.seq_len, 'tokens': tokens, 'bytes': 4.2 * tokens, 'loss': bpb * 2.91}
        | {'bpb_train': bpb, 'lr': 2e-3 * math.cos(1.4 * tokens / budget), 'grad_norm': 0.4 + abs(wiggle) * 8}
        | {'tokens_per_second': speed, 'bytes_per_second': 4.2 * speed, 'mfu': None, 'seconds': seconds}
        | {'seconds_training': training, 'skipped_steps': 0}
      )
    seconds += 1.5
    lines.append(
      {
        'step': step,
        'stage': number,
        'seq_len': stage.seq_len,
        'tokens': tokens,
        'val_bpb': bpb + 0.12,
        'val_loss': (bpb + 0.12) * 2.91,
      }
      | {'val_bytes': 41_337, 'eval_seq_len': stage.seq_len, 'seconds': seconds, 'seconds_training': training}
    )
  (workdir / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
  (workdir / 'samples.txt').write_text(samples)
  if finished:
    val_bpb = lines[-1]['val_bpb']
    result = {'val_bpb': val_bpb, 'ppl_gpt2_equivalent': 2 ** (val_bpb * 4.488), 'val_bytes': 41_337, 'xz_bpb': 2.391}
    result |= {
      'xz_given_training_bpb': 1.871,
      'parameters': 1_234_567,
      'tokens': tokens,
      'bytes': 4.2 * tokens,
      'seconds': seconds,
    }
    result |= {'seconds_training': training, 'tokens_per_second': tokens / training, 'stages': 10, 'resumed_from': None}
    result |= {'engines': {'attention': 'sdpa', 'vocab_loss': 'chunked', 'linears': 'fp32'}, 'hardware': '2 CPU cores'}
    result |= {'versions': {'python': '3.11.7', 'torch': '2.13.0+cpu', 'yxanul': '0.1.0'}}
    (workdir / 'result.json').write_text(json.dumps(result))
  return workdir


@pytest.fixture
def make_run(tmp_path):
  """A function that writes a synthetic run into a fresh folder; see `write_run`."""
  return lambda **kind: write_run(tmp_path / 'run', **kind)
