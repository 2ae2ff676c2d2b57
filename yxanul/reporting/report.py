"""report.html: one page that shows a run, self-contained, readable offline, on a phone and on a desk, by day and by night."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from yxanul.reporting import numbers, page, plots, tables
from yxanul.reporting.run_files import RunFiles, read_run, stage_rows

_STAGE_COLUMNS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
  ('stage', 'stage', str),
  ('seq_len', 'length', '{:,}'.format),
  ('batch_size', 'batch', '{:,}'.format),
  ('steps', 'steps', '{:,}'.format),
  ('tokens', 'tokens', numbers.count),
  ('seconds', 'training time', numbers.duration),
  ('tokens_per_second', 'tokens/s', numbers.count),
  ('bytes_per_second', 'text/s', numbers.byte_size),
  ('bpb_train', 'training bpb', lambda v: numbers.decimals(v, 3)),
  ('val_bpb', 'held-out bpb', lambda v: numbers.decimals(v, 3)),
  ('eval_seq_len', 'scored at length', numbers.count),
)
_DIGIT_SHARE = 0.027  # of a strip: what a digit needs on a phone


def write_report(workdir: Path) -> Path:
  """Writes WORKDIR/report.html from config.json, metrics.jsonl, result.json and samples.txt, the last three if they exist.

  Returns:
    The path of the page.

  Raises:
    ValueError: `workdir` is not the workdir of a run, or one of these files is broken; one line that names it.
  """
  run = read_run(Path(workdir))
  path = run.workdir / 'report.html'
  fresh = path.with_suffix('.html.tmp')  # a reader, or a kill, must never meet half a page
  try:
    html = render(run)
  except (LookupError, TypeError, AttributeError, ArithmeticError, ValueError) as error:
    # The page reads some hundred fields of files that anything may have happened to: one answer for all of them.
    raise ValueError(f'{workdir}: its config, log or result is not what a run writes ({error!r:.200})') from error
  fresh.write_text(html, encoding='utf-8')
  os.replace(fresh, path)
  return path


def render(run: RunFiles) -> str:
  """The whole page as HTML. Text from the run (names, notes, samples, settings) is escaped."""
  stages = stage_rows(run)
  columns = tables.with_blocks(_STAGE_COLUMNS, stages)
  return page.TEMPLATE.render(
    css=Markup(page.CSS),
    name=run.config['name'],
    note=run.config['note'],
    unfinished=_unfinished(run),
    headline=_headline(run),
    marks=_marks(run),
    tiles=_tiles(run),
    strips=_strips(run, stages),
    stage_headings=[heading for _, heading, _ in columns],
    stages=[[write(row[key]) for key, _, write in columns] for row in stages],
    stage_total=_stage_total(stages, columns),
    has_evaluations=bool(run.evaluations),
    learning_note=_learning_note(run),
    learning=_learning_plots(run, stages),
    speed=_speed_plots(stages),
    optimizer=_optimizer_plots(run, stages),
    samples=_samples(run),
    facts=_facts(run),
    config=_config_groups(run.config),
  )


# --- figures ---------------------------------------------------------------------------------------------------------


def _unfinished(run: RunFiles) -> str:
  if run.result is not None:
    return ''
  if not run.training:
    return 'This run has not finished: it has logged no step yet.'
  last, budget = run.training[-1], run.config['curriculum']['budget_tokens']
  done = numbers.percent(min(1.0, last['tokens'] / budget), 0)
  return f'This run has not finished: {done} of its tokens are trained, up to step {last["step"]:,}.'


def _headline(run: RunFiles) -> dict[str, str]:
  if run.result is not None:
    n_bytes = f'{run.result["val_bytes"]:,}'
    return {
      'value': numbers.decimals(run.result['val_bpb'], 3),
      'caption': f'on {n_bytes} bytes of held-out text; fewer is better',
    }
  if run.evaluations:
    last = run.evaluations[-1]
    caption = f'on held-out text after {numbers.count(last["tokens"])} tokens; fewer is better'
    return {'value': numbers.decimals(last['val_bpb'], 3), 'caption': caption}
  return {'value': '–', 'caption': 'not evaluated yet'}


def _marks(run: RunFiles) -> list[dict[str, Any]]:
  """This run's bits per byte beside what xz needs, as bars from zero."""
  names = {'val_bpb': 'this run', 'xz_bpb': 'xz -9e', 'xz_given_training_bpb': 'xz, given the training text'}
  values = {name: run.result[key] for key, name in names.items() if run.result and run.result.get(key) is not None}
  if len(values) < 2:
    return []
  longest = max(values.values())
  return [{'name': k, 'value': f'{v:.3f}', 'percent': f'{100 * v / longest:.2f}'} for k, v in values.items()]


def _tiles(run: RunFiles) -> list[dict[str, str]]:
  result = run.result
  if result is None:
    if not run.training:
      return [{'name': 'token budget', 'value': numbers.count(run.config['curriculum']['budget_tokens']), 'more': ''}]
    last = run.training[-1]
    return [
      {'name': 'tokens', 'value': numbers.count(last['tokens']), 'more': f'{numbers.byte_size(last["bytes"])} of text'},
      {'name': 'time', 'value': numbers.duration(last['seconds']), 'more': 'so far'},
      {'name': 'training loss', 'value': numbers.decimals(last['loss'], 3), 'more': 'nats a token, last line logged'},
    ]
  training = numbers.duration(result['seconds_training'])
  per_second = result['bytes'] / result['seconds_training'] if result['seconds_training'] else None
  return [
    {
      'name': 'GPT-2-equivalent perplexity',
      'value': numbers.count(result['ppl_gpt2_equivalent']),
      'more': '2^(4.488 × bits per byte): what a token of GPT-2’s tokenizer would show',
    },
    {'name': 'parameters', 'value': numbers.count(result['parameters']), 'more': f'{result["parameters"]:,} exactly'},
    {'name': 'tokens', 'value': numbers.count(result['tokens']), 'more': f'{numbers.byte_size(result["bytes"])} of text'},
    {'name': 'time', 'value': numbers.duration(result['seconds']), 'more': f'{training} of it in training steps'},
    {
      'name': 'tokens a second',
      'value': numbers.count(result['tokens_per_second']),
      'more': f'{numbers.byte_size(per_second)} of text a second',
    },
  ]


def _strips(run: RunFiles, stages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """How tokens and training time are divided among the stages."""
  n_stages = len(run.config['curriculum']['stages'])
  strips = []
  for name, key in (('tokens', 'tokens'), ('time', 'seconds')):
    total = sum(stage[key] for stage in stages) or 1
    parts = []
    for stage in stages:
      share, label, depth = stage[key] / total, f'{stage["seq_len"]:,}', round(18 + 82 * stage['stage'] / n_stages)
      shown = label if share >= _DIGIT_SHARE * len(label) else ''
      parts.append({'share': f'{share:.5f}', 'depth': depth, 'deep': depth > 72, 'label': shown})
    strips.append({'name': name, 'parts': parts})
  return strips


def _stage_total(stages: Sequence[Mapping[str, Any]], columns: Sequence[tuple[str, str, Callable[[Any], str]]]) -> list[str]:
  sums = {key: sum(stage[key] for stage in stages) for key in ('steps', 'tokens', 'bytes', 'seconds')}
  sums['tokens_per_second'] = sums['tokens'] / sums['seconds'] if sums['seconds'] else None
  sums['bytes_per_second'] = sums['bytes'] / sums['seconds'] if sums['seconds'] else None
  return ['all'] + [write(sums[key]) if key in sums else '' for key, _, write in columns[1:]]


# --- plots -----------------------------------------------------------------------------------------------------------


def _learning_note(run: RunFiles) -> str:
  note = 'Tinted bands are stages, with the length of their rows above them.'
  if len({line['eval_seq_len'] for line in run.evaluations}) > 1:
    longest = run.evaluations[-1]['eval_seq_len']
    note += f' Held-out text is scored in rows of the length being trained, the last time in rows of {longest:,}.'
  if run.rollbacks:
    steps = ', '.join(f'{line["step"]:,} to {line["to_step"]:,}' for line in run.rollbacks)
    note += f' After steps that had to be skipped, weights were taken back from step {steps}.'
  return note


def _learning_plots(run: RunFiles, stages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  if not run.training:
    return []
  marks = {mark['name']: float(mark['value']) for mark in _marks(run)[1:]}
  found = []
  for x, over in (('tokens', 'tokens'), ('seconds', 'time')):
    for y, held, title in (('bpb_train', 'val_bpb', 'Bits per byte'), ('loss', 'val_loss', 'Loss, nats a token')):
      svg = plots.curve(
        run.training,
        stages,
        x,
        y,
        f'{title} over {over}',
        held_out=(run.evaluations, held),
        marks=marks if y == 'bpb_train' else None,
      )
      found.append({'title': f'{title} over {over}', 'svg': Markup(svg)})
  return found


def _speed_plots(stages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  if not stages:
    return []
  unit, size = numbers.byte_unit(max(stage['bytes_per_second'] or 0 for stage in stages))
  tokens = plots.stage_bars(stages, 'tokens_per_second', 'Tokens a second by stage', numbers.count)
  text = plots.stage_bars(stages, 'bytes_per_second', 'Bytes of text a second by stage', lambda v: f'{v / size:.3g}')
  return [
    {'title': 'Tokens a second', 'caption': 'by stage', 'svg': Markup(tokens)},
    {'title': 'Text a second', 'caption': f'by stage, in {unit} of UTF-8', 'svg': Markup(text)},
  ]


def _optimizer_plots(run: RunFiles, stages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  if not run.training:
    return []
  rate = plots.curve(run.training, stages, 'tokens', 'lr', 'Learning rate over tokens', write=numbers.rate, from_zero=True)
  norm = plots.curve(run.training, stages, 'tokens', 'grad_norm', 'Gradient norm over tokens', log=True)
  skipped = run.training[-1]['skipped_steps']
  return [
    {'title': 'Learning rate', 'caption': 'schedule times the stage’s own scale', 'svg': Markup(rate)},
    {
      'title': 'Gradient norm',
      'caption': f'before clipping, logarithmic; {skipped or "no"} step{"" if skipped == 1 else "s"} skipped',
      'svg': Markup(norm),
    },
  ]


# --- text ------------------------------------------------------------------------------------------------------------


def _samples(run: RunFiles) -> list[list[dict[str, Any]]]:
  """Every sample of samples.txt (they are apart by lines of three dashes) in parts: the prompt it starts with, and the rest."""
  prompts = sorted((p.strip() for p in run.config['sample']['prompts'] if p.strip()), key=len, reverse=True)
  found = []
  for text in re.split(r'^---$', run.samples or '', flags=re.MULTILINE):
    text = text.strip()
    prompt = next((p for p in prompts if text.startswith(p)), '')
    parts = [{'text': prompt, 'prompt': True}, {'text': text[len(prompt) :], 'prompt': False}]
    if text:
      found.append([part for part in parts if part['text']])
  return found


def _facts(run: RunFiles) -> list[dict[str, Any]]:
  if run.result is None:
    return []
  resumed = run.result['resumed_from']
  session = [
    ('hardware', run.result['hardware']),
    ('resumed from step', 'not resumed' if resumed is None else f'{resumed:,}'),
    ('stages', run.result['stages']),
  ]
  return [
    {'name': 'Session', 'rows': session},
    {'name': 'Engines', 'rows': list(run.result['engines'].items())},
    {'name': 'Versions', 'rows': list(run.result['versions'].items())},
  ]


def _config_groups(config: Mapping[str, Any]) -> list[dict[str, Any]]:
  """The configuration as one table a section, nested names dotted, a list of records as one line each."""
  plain = {k: v for k, v in config.items() if not isinstance(v, Mapping)}
  groups = {'experiment': plain} | {k: v for k, v in config.items() if isinstance(v, Mapping)}
  return [{'name': name, 'rows': list(_flat(value, ''))} for name, value in groups.items()]


def _flat(value: Any, name: str):
  if isinstance(value, Mapping):
    for key, inner in value.items():
      yield from _flat(inner, f'{name}.{key}' if name else key)
  elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
    for i, item in enumerate(value):
      yield f'{name}[{i}]', ', '.join(f'{k} {_scalar(v)}' for k, v in item.items())
  else:
    yield name, _scalar(value)


def _scalar(value: Any) -> str:
  if isinstance(value, list):
    return ', '.join(_scalar(item) for item in value)
  if isinstance(value, str):
    return repr(value) if not value or value != value.strip() else value
  return {True: 'true', False: 'false'}[value] if isinstance(value, bool) else str(value)
