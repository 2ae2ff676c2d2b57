"""report.html of a synthetic run: its figures and its escaping."""

import html.parser
import json
import re

import pytest

from yxanul.reporting import run_files
from yxanul.reporting.report import write_report

VOID = {'meta', 'br', 'hr', 'img', 'input', 'link'}


class Page(html.parser.HTMLParser):
  """Text, elements and attributes of a page; fails on elements that are closed in the wrong order."""

  def __init__(self, source: str):
    super().__init__(convert_charrefs=True)
    self.source, self.text, self.tags, self.attributes, self.open, self.tables = source, '', [], [], [], []
    self.feed(source)
    self.close()
    assert self.open == []

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += attrs
    if tag == 'tr':
      self.tables.append([])
    if tag in ('td', 'th'):
      self.tables[-1].append('')
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += attrs

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if 'style' not in self.open:
      self.text += data
    if self.open and self.open[-1] in ('td', 'th'):
      self.tables[-1][-1] += data


def page(workdir) -> Page:
  path = write_report(workdir)
  assert path == workdir / 'report.html'
  return Page(path.read_text(encoding='utf-8'))


def words(text: str) -> str:
  return ' '.join(text.split())


def test_the_headline_figures_are_the_results(make_run):
  workdir = make_run()
  result = json.loads((workdir / 'result.json').read_text())
  text = words(page(workdir).text)
  assert f'{result["val_bpb"]:.3f} bits per byte on 41,337 bytes of held-out text' in text
  assert f'this run {result["val_bpb"]:.3f} xz -9e 2.391 xz, given the training text 1.871' in text
  assert f'GPT-2-equivalent perplexity {result["ppl_gpt2_equivalent"]:,.0f}' in text
  assert 'parameters 1.23M 1,234,567 exactly' in text
  assert 'This is a toy' in text
  assert 'attention sdpa' in words(' '.join(' '.join(row) for row in page(workdir).tables))


def test_the_stage_table_agrees_with_the_log(make_run):
  workdir = make_run()
  run = run_files.read_run(workdir)
  rows = [row for row in page(workdir).tables if row and row[0] in {str(n) for n in range(1, 11)} | {'all'}]
  assert [row[0] for row in rows] == [*map(str, range(1, 11)), 'all']
  assert [int(row[1]) for row in rows[:-1]] == [8, 16, 32, 64, 96, 128, 192, 256, 384, 512]
  last = run.training[-1]
  assert rows[-1][3] == str(last['step'])
  assert sum(int(row[3]) for row in rows[:-1]) == last['step']
  assert rows[-1][6] == f'{last["tokens"] / last["seconds_training"] / 1000:.3g}k'
  # Of a whole stage, each line with the bytes that it stands for.
  stage = [line for line in run.training if line['stage'] == 10]
  start = max(line['bytes'] for line in run.training if line['stage'] == 9)
  sizes = [b['bytes'] - a for a, b in zip([start, *(line['bytes'] for line in stage)], stage, strict=False)]
  mean = sum(size * line['bpb_train'] for size, line in zip(sizes, stage, strict=True)) / sum(sizes)
  assert rows[9][8] == f'{mean:.3f}'
  assert rows[9][9] == f'{run.evaluations[-1]["val_bpb"]:.3f}'


def test_stage_rows_take_each_stages_own_steps_and_training_time(make_run):
  run = run_files.read_run(make_run())
  rows = run_files.stage_rows(run)
  for row in rows:
    assert row['tokens'] == row['steps'] * row['seq_len'] * row['batch_size']
    assert row['tokens_per_second'] == pytest.approx(30_000 / (1 + row['seq_len'] / 400))
    assert row['bytes_per_second'] == pytest.approx(4.2 * row['tokens_per_second'])
  assert sum(row['seconds'] for row in rows) == pytest.approx(run.training[-1]['seconds_training'])
  # Evaluations take 1.5 s each at the end of a stage: on the wall clock, the next stage starts after them.
  assert rows[3]['start_seconds'] == pytest.approx(sum(row['seconds'] for row in rows[:3]) + 3 * 1.5)


def test_text_of_the_run_is_escaped_and_nothing_is_loaded_or_executed(make_run):
  odd = 'The history of <script>alert("x")</script> & <img src=x onerror=alert(1)> {{ 7 * 7 }} \u202e\n\nplain'
  workdir = make_run(samples=odd)
  config = json.loads((workdir / 'config.json').read_text())
  config['name'] = '</title><script>alert(2)</script>'
  config['note'] = '<b>bold</b>'
  (workdir / 'config.json').write_text(json.dumps(config))
  found = page(workdir)
  assert '<script>alert("x")</script> & <img src=x onerror=alert(1)> {{ 7 * 7 }} \u202e\n\nplain' in found.text
  assert '</title><script>alert(2)</script>' in found.text
  assert '<b>bold</b>' in found.text
  assert 'script' not in found.tags
  assert 'img' not in found.tags
  assert 'link' not in found.tags
  assert not [name for name, _ in found.attributes if name in ('src', 'srcset') or name.startswith('on')]
  assert not [value for name, value in found.attributes if 'href' in name and not value.startswith('#')]
  assert not re.search(r'https?:|//[a-z]|@import|url\((?!#)', found.source)


def test_samples_stand_apart_and_their_prompts_out(make_run):
  found = page(
    make_run(samples='The history of it.\nNot The history of it.\n\n---\n\nOnce upon a time --- so\n\n---\n\nother\n')
  )
  assert found.tags.count('blockquote') == 3
  assert re.findall('<mark>(.*?)</mark>', found.source) == ['The history of', 'Once upon a time']
  assert 'The history of it.\nNot The history of it.' in found.text
  assert 'Once upon a time --- so' in found.text


def test_every_plot_is_there_marked_and_in_the_pages_own_colours(make_run):
  found = page(make_run())
  assert found.tags.count('svg') == 8
  labels = [value for name, value in found.attributes if name == 'aria-label' and 'over' in value]
  for title in ('Bits per byte over tokens', 'Bits per byte over time', 'Loss, nats a token over tokens'):
    assert title in labels
  assert 'var(--train)' in found.source
  assert '#a1b2' not in found.source
  names = re.findall(r' id="([^"]*)"', found.source)
  assert len(names) == len(set(names))
  assert set(re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', found.source)) <= {(n, '') for n in names} | {
    ('', n) for n in names
  }


def test_a_rollback_is_told(make_run):
  workdir = make_run()
  event = {'step': 1234, 'stage': 9, 'tokens': 1_000_000, 'event': 'rollback', 'to_step': 1200, 'tokens_rolled_back': 5000}
  with (workdir / 'metrics.jsonl').open('a') as log:
    log.write(json.dumps(event) + '\n')
  assert 'weights were taken back from step 1,234 to 1,200.' in words(page(workdir).text)


def test_an_unfinished_run_has_a_report(make_run):
  workdir = make_run(finished=False)
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  (workdir / 'metrics.jsonl').write_text('\n'.join(lines[:40]) + '\n' + lines[40][:25])  # a kill cut the line short
  (workdir / 'samples.txt').unlink()
  text = words(page(workdir).text)
  assert 'This run has not finished' in text
  assert 'Samples' not in text
  assert len(run_files.stage_rows(run_files.read_run(workdir))) < 10


def test_a_run_that_logged_nothing_and_one_that_diverged(make_run):
  workdir = make_run(finished=False)
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  (workdir / 'metrics.jsonl').unlink()
  assert 'it has logged no step yet' in page(workdir).text
  diverged = next(line for line in lines if 'loss' in line) | {'loss': None, 'bpb_train': None, 'grad_norm': None}
  (workdir / 'metrics.jsonl').write_text(json.dumps(diverged) + '\n')
  assert page(workdir).tags.count('svg') == 8


@pytest.mark.parametrize(
  ('name', 'content', 'problem'),
  [
    ('config.json', None, 'has no config.json'),
    ('config.json', '{', 'config.json: not readable as JSON'),
    ('result.json', 'nonsense', 'result.json: not readable as JSON'),
    ('metrics.jsonl', '{"a"\n{}\n', 'metrics.jsonl: line 1 is not readable as JSON'),
  ],
)
def test_a_broken_workdir_is_named_in_one_line(make_run, name, content, problem):
  workdir = make_run()
  (workdir / name).unlink()
  if content is not None:
    (workdir / name).write_text(content)
  with pytest.raises(ValueError, match=problem) as error:
    write_report(workdir)
  assert '\n' not in str(error.value)
  assert not (workdir / 'report.html').exists()
