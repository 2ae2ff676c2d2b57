"""Bits per byte of a trained model on any text, or its figures on tasks of lm-evaluation-harness.

Command: python -m yxanul.tools.evaluate --model=runs/quickstart [--source='texts/*.parquet'] [--seq_len=192 --stride=64]
         python -m yxanul.tools.evaluate --model=runs/quickstart --tasks=hellaswag,arc_easy [--limit=100]
--model is the workdir of a run, or a folder that tools.export wrote. --source takes what data.source takes; without it, the
run's own held-out text is scored, and with no other flag that gives the run's own figure again. Of --source all is scored, of a
hub name as much as the run evaluates; --max_tokens says otherwise. Tasks need the extra `eval`.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from absl import flags
from rich.console import Console

from yxanul.config import cli, json_flag

_MODEL = flags.DEFINE_string('model', None, 'The workdir of a run, or a folder that tools.export wrote.')
_SOURCE = flags.DEFINE_string('source', '', 'Files, a folder, a glob or a hub name; none: what the run held out.')
_SEQ_LEN = flags.DEFINE_integer('seq_len', 0, 'Tokens of a row; 0: as the run evaluates.', lower_bound=0)
_STRIDE = flags.DEFINE_integer('stride', 0, 'Tokens between the starts of two rows; 0: rows side by side.', lower_bound=0)
_MAX_TOKENS = flags.DEFINE_integer(
  'max_tokens', None, '0: all of the text; not given: all of --source, else as the run evaluates.', lower_bound=0
)
_TASKS = flags.DEFINE_list('tasks', [], 'Tasks of lm-evaluation-harness instead, apart by commas.')
_LIMIT = flags.DEFINE_integer('limit', None, 'Examples of each task, at most.', lower_bound=1)
_SHOTS = flags.DEFINE_integer(
  'shots', None, 'Worked examples before each question; not given: as the task says.', lower_bound=0
)
flags.adopt_module_key_flags(json_flag)

_OF_TEXT, _OF_TASKS = ('source', 'seq_len', 'stride', 'max_tokens'), ('limit', 'shots')


def _refuse_idle_flags() -> None:
  names, how = (_OF_TEXT, 'with') if _TASKS.value else (_OF_TASKS, 'without')
  if idle := [name for name in names if flags.FLAGS[name].present]:
    raise ValueError(f'--{idle[0]}: means nothing {how} --tasks')


def _tasks(model, write: Callable) -> None:
  try:
    from yxanul.inference.harness import run_tasks
  except ImportError as error:
    raise ValueError(f"--tasks: needs lm-eval, pip install '.[eval]' ({error})") from None
  figures, table, n_long = run_tasks(model, _TASKS.value, _LIMIT.value, _SHOTS.value)
  if n_long:
    print(f'{n_long} continuations longer than the window of {model.window} tokens, scored in rows', file=sys.stderr)
  write(figures)
  print(table)


def _text(model, folder: Path, write: Callable) -> None:
  from yxanul.data import shards, sources
  from yxanul.inference.evaluate import ALL, evaluate, read_source, tokenize
  from yxanul.inference.model import data_directory
  from yxanul.reporting import tables
  from yxanul.reporting.phases import Phases

  rule = model.experiment.evaluation
  if _MAX_TOKENS.value is not None:
    limit, max_bytes = _MAX_TOKENS.value or ALL, None
  elif _SOURCE.value and not sources.is_hub_name(_SOURCE.value):
    limit, max_bytes = ALL, None
  else:
    limit, max_bytes = rule.max_tokens, rule.max_bytes or None
    if _SOURCE.value:
      print(f'{_SOURCE.value}: its first {limit:,} tokens at most; --max_tokens=0 scores all of it', file=sys.stderr)
  if _SOURCE.value:
    documents = tokenize(read_source(_SOURCE.value, model.experiment.data), model.tokenizer, limit)
  elif (folder / 'checkpoints').is_dir():
    documents = shards.open(data_directory(model.experiment, folder) / 'validation', model.tokenizer)
  else:
    raise ValueError('--source: missing, and an exported folder holds no text of its own')
  with Phases(Console(stderr=True)) as phases:
    rows = evaluate(model, documents, _SEQ_LEN.value or rule.seq_len, _STRIDE.value or None, limit, max_bytes, phases)
  write(rows)
  tables.print_table(tables.evaluation_table(rows))


def main() -> None:
  if not _MODEL.value:
    raise ValueError('--model: missing, wants the workdir of a run, or a folder that tools.export wrote')
  _refuse_idle_flags()
  with json_flag.output() as write:
    from yxanul.inference.load import load

    folder = Path(_MODEL.value)
    model = load(folder)
    if _TASKS.value:
      _tasks(model, write)
    else:
      _text(model, folder, write)


if __name__ == '__main__':
  cli.run(main)
