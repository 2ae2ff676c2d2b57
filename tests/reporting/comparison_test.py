"""Several runs on one page: their final figures, their differences, and one picture a plot."""

import json

import pytest

from tests.reporting.conftest import write_run
from yxanul.reporting import comparison
from yxanul.reporting.comparison import final_figures, target_bpb, write_comparison
from yxanul.reporting.run_files import read_run


@pytest.fixture
def pair(tmp_path):
  """Two runs, the second twice as fast, 0.25 bpb better, in BF16 and with other prompts."""
  first, second = (write_run(tmp_path / name) for name in ('slow', 'fast'))
  lines = [json.loads(line) for line in (second / 'metrics.jsonl').read_text().splitlines()]
  for line in lines:
    line['seconds_training'] /= 2
    if 'val_bpb' in line:
      line['val_bpb'] -= 0.25
  (second / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
  config = json.loads((second / 'config.json').read_text())
  config['precision']['matmul'] = 'bf16'
  config['sample']['prompts'] = ['<b>']
  (second / 'config.json').write_text(json.dumps(config))
  return first, second


def test_time_to_a_target_runs_between_evaluations(pair):
  run = read_run(pair[0])
  a, b = run.evaluations[3], run.evaluations[4]
  middle = (a['val_bpb'] + b['val_bpb']) / 2
  for key in ('tokens', 'seconds_training'):
    assert comparison.reach(run, middle, key) == pytest.approx((a[key] + b[key]) / 2)
    assert comparison.reach(run, a['val_bpb'], key) == a[key]
  assert comparison.reach(run, 0.1, 'tokens') is None
  assert comparison.reach(run, 100.0, 'tokens') == run.evaluations[0]['tokens']


def test_final_figures_measure_the_others_by_the_first(pair):
  runs = [read_run(workdir) for workdir in pair]
  first, second = comparison.final_figures(runs)
  assert first['speedup'] is None
  assert second['val_bpb_difference'] == pytest.approx(-0.25)
  # The target is the first's best; the second is there earlier, and twice as fast besides.
  target = min(line['val_bpb'] for line in runs[0].evaluations)
  assert comparison.target_bpb(runs) == target
  assert first['target_seconds'] == comparison.reach(runs[0], target, 'seconds_training')
  assert second['speedup'] == first['target_seconds'] / second['target_seconds'] > 2
  assert second['tokens_per_second'] == pytest.approx(2 * first['tokens_per_second'])


def test_the_page_names_what_differs_and_has_a_picture_of_every_plot(pair, tmp_path):
  path = write_comparison(pair, tmp_path / 'out')
  assert path == tmp_path / 'out' / 'index.html'
  html = path.read_text()
  names = {'precision.matmul', 'sample.prompts'}
  assert {field for field, _ in comparison.differing([read_run(w) for w in pair])} >= names
  for text in ('precision.matmul', 'bf16', '&lt;b&gt;', 'slow, fast', 'var(--run-2)', '-0.2500'):
    assert text in html
  assert '<b>' not in html
  assert '#a1b2' not in html
  pictures = sorted(tmp_path.glob('out/*.png'))
  assert len(pictures) == html.count('<svg') == 7
  assert all(picture.read_bytes().startswith(b'\x89PNG') for picture in pictures)


def test_runs_that_just_began_and_one_that_diverged_compare_too(pair, tmp_path):
  (pair[0] / 'metrics.jsonl').unlink()
  (pair[0] / 'result.json').unlink()
  lines = [json.loads(line) for line in (pair[1] / 'metrics.jsonl').read_text().splitlines()]
  nothing = {'loss': None, 'bpb_train': None, 'val_bpb': None}
  lines = [line | {k: v for k, v in nothing.items() if k in line} for line in lines]
  (pair[1] / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
  assert 'not finished' in write_comparison(pair, tmp_path / 'out').read_text()


def test_runs_of_one_name_are_told_apart_and_too_many_are_refused(tmp_path):
  runs = [write_run(tmp_path / name / 'run') for name in 'ab']
  assert 'a/run, b/run' in write_comparison(runs, tmp_path / 'out').read_text()
  with pytest.raises(ValueError, match='named twice'):
    write_comparison([runs[0], runs[0]], tmp_path / 'out')
  with pytest.raises(ValueError, match='at most 8'):
    write_comparison(runs * 5, tmp_path / 'out')


def test_runs_scored_on_different_text_are_not_measured_by_one_another(pair, tmp_path):
  lines = [json.loads(line) for line in (pair[1] / 'metrics.jsonl').read_text().splitlines()]
  lines = [line | ({'val_bytes': 7} if 'val_bytes' in line else {}) for line in lines]
  assert 'different held-out text' not in write_comparison(pair, tmp_path / 'same').read_text()
  (pair[1] / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
  runs = [read_run(workdir) for workdir in pair]
  assert target_bpb(runs) is None
  assert [row['val_bpb_difference'] for row in final_figures(runs)] == [None, None]
  assert 'different held-out text' in write_comparison(pair, tmp_path / 'out').read_text()
