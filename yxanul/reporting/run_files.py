"""What a run left in its workdir, read back: the one place that knows these files' form on the reading side."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

from yxanul.config.convert import completed, is_saved

Line = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class RunFiles:
  """`config.json`, `metrics.jsonl`, `result.json` and `samples.txt` of one workdir; the last three as far as they exist."""

  workdir: Path
  config: dict[str, Any]
  training: list[Line]  # lines with 'loss'
  evaluations: list[Line]  # lines with 'val_bpb'
  rollbacks: list[Line]  # lines with 'to_step'
  result: dict[str, Any] | None  # None: the run has not finished
  samples: str | None


def _read_json(path: Path) -> Any:
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except (UnicodeDecodeError, json.JSONDecodeError) as error:
    raise ValueError(f'{path}: not readable as JSON ({error})') from None


def _read_lines(path: Path) -> list[Line]:
  """The objects of a JSONL file. A last line that a kill cut short is left out; any other broken line is an error."""
  lines = path.read_bytes().split(b'\n')
  objects = []
  for number, line in enumerate(lines, start=1):
    if not line:
      continue
    try:
      record = json.loads(line)
      if not isinstance(record, dict):
        raise ValueError(f'{type(record).__name__}, wants an object')
      objects.append(record)
    except ValueError as error:
      if number == len(lines):
        break
      raise ValueError(f'{path}: line {number} is not readable as JSON ({error})') from None
  return objects


def read_run(workdir: Path) -> RunFiles:
  """Reads a workdir, finished or not.

  Raises:
    ValueError: it is not the workdir of a run, or a file in it is broken; one line that names it.
  """
  if not (workdir / 'config.json').is_file():
    raise ValueError(f'{workdir}: not the workdir of a run, it has no config.json')
  config = _read_json(workdir / 'config.json')
  if not is_saved(config):
    raise ValueError(f"{workdir}: not the workdir of a run, config.json there is not a run's")
  metrics, result, samples = (workdir / name for name in ('metrics.jsonl', 'result.json', 'samples.txt'))
  lines = _read_lines(metrics) if metrics.is_file() else []
  return RunFiles(
    workdir=workdir,
    config=completed(config),  # so that runs from before a field and after it are alike
    training=[line for line in lines if 'loss' in line],
    evaluations=[line for line in lines if 'val_bpb' in line],
    rollbacks=[line for line in lines if 'to_step' in line],
    result=_read_json(result) if result.is_file() else None,
    samples=samples.read_text(encoding='utf-8') if samples.is_file() else None,
  )


def stage_rows(run: RunFiles) -> list[dict[str, Any]]:
  """What each stage that has begun came to, from the log alone.

  Keys: 'stage', 'seq_len', 'n_layers', 'batch_size', 'start_tokens', 'start_seconds' (wall), 'steps', 'tokens', 'bytes',
  'seconds' (of training), 'tokens_per_second' and 'bytes_per_second' over the whole stage, 'bpb_train' (over all its bytes),
  'val_bpb' and 'eval_seq_len' (its last evaluation; None without one).
  """
  rows = []
  before = {'step': 0, 'tokens': 0, 'bytes': 0, 'seconds': 0.0, 'seconds_training': 0.0}
  for number, stage in enumerate(run.config['curriculum']['stages'], start=1):
    training = [line for line in run.training if line['stage'] == number]
    evaluations = [line for line in run.evaluations if line['stage'] == number]
    if not training:
      continue
    last = training[-1]
    seconds = last['seconds_training'] - before['seconds_training']
    tokens, n_bytes = last['tokens'] - before['tokens'], last['bytes'] - before['bytes']
    rows.append(
      {
        'stage': number,
        'seq_len': stage['seq_len'],
        'n_layers': stage['n_layers'] or run.config['model']['n_layers'],
        'batch_size': stage['batch_size'],
        'start_tokens': before['tokens'],
        'start_seconds': before['seconds'],
        'steps': last['step'] - before['step'],
        'tokens': tokens,
        'bytes': n_bytes,
        'seconds': seconds,
        'tokens_per_second': tokens / seconds if seconds > 0 else None,
        'bytes_per_second': n_bytes / seconds if seconds > 0 else None,
        'bpb_train': _mean_bpb(training, before['bytes']),
        'val_bpb': evaluations[-1]['val_bpb'] if evaluations else None,
        'eval_seq_len': evaluations[-1]['eval_seq_len'] if evaluations else None,
      }
    )
    ends = [last, *evaluations[-1:]]
    before = {**last, 'seconds': max(end['seconds'] for end in ends)}
  return rows


def _mean_bpb(lines: list[Line], bytes_before: int) -> float | None:
  """Of the log lines of a stage, each with the bytes it stands for."""
  sizes = [b - a for a, b in itertools.pairwise([bytes_before, *(line['bytes'] for line in lines)])]
  known = [(size, line['bpb_train']) for size, line in zip(sizes, lines, strict=True) if size and line['bpb_train'] is not None]
  return sum(size * bpb for size, bpb in known) / sum(size for size, _ in known) if known else None
