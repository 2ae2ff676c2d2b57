"""tools.compare from outside: two small experiments with two seeds; then folders of finished runs; then mistakes."""

import json
import shutil

import pytest

from tests import tiny
from tests.study.toy import write_family


def compare(*arguments):
  return tiny.finish(tiny.start('tools.compare', *arguments), timeout=300)


BLIND = """\"\"\"A rate of nothing.\"\"\"

from experiments import strong_ultra
from tests.study.toy import shrink


def get_config(arg=None):
  config = shrink(strong_ultra.get_config(arg))
  config.name, config.optimizer.peak_lr = 'blind', 1e-9
  return config
"""


@pytest.fixture(scope='module')
def done(tmp_path_factory):
  """The same experiment, once as it is and once blind."""
  folder = tmp_path_factory.mktemp('compare')
  sees = write_family(folder, 'strong_ultra')
  (folder / 'blind.py').write_text(BLIND)
  status, output, errors = compare(
    f'{folder / "blind.py"}:rows=32', sees, '--seeds=2', f'--workdir={folder / "runs"}', '--json=-',
    '--set=model.n_layers=1', '--set=curriculum.budget_tokens=8_000', '--set=curriculum.stages[0].lr_scale=1.0',
  )  # fmt: skip
  assert status == 0, errors
  return folder, errors, json.loads(output)  # and nothing but the JSON, whatever the runs print


def test_pairs_are_trained_and_a_clear_difference_is_called_one(done):
  folder, shown, result = done
  a, b = 'blind-rows=32', 'strong_ultra'
  assert (result['a'], result['b'], result['n']) == (a, b, 2)
  assert [pair['seed'] for pair in result['pairs']] == [0, 1]
  assert all(pair['difference'] < 0 < pair['speedup'] for pair in result['pairs'])
  # As many tokens of one tokenizer each: what counts is where they ended.
  assert result['where'] == 'at their ends, after equal text'
  assert result['difference']['mean'] == pytest.approx(sum(pair['final_difference'] for pair in result['pairs']) / 2)
  # Two seeds: the interval is wide, and the verdict follows it.
  assert ('no verdict' in result['verdict']) is (result['difference']['low'] <= 0 <= result['difference']['high'])
  assert result['verdict'] in shown
  page = folder / 'runs' / f'{a}-{b}' / 'index.html'
  assert result['verdict'].split(':')[0] in page.read_text()
  assert (page.parent / 'held_out_bpb_over_seconds.png').exists()
  for seed in (0, 1):
    config = json.loads((folder / 'runs' / 'as-configured' / b / f'seed{seed}' / 'config.json').read_text())
    assert (config['seed'], config['model']['n_layers'], config['curriculum']['budget_tokens']) == (seed, 1, 8_000)


def test_folders_of_finished_runs_compare_without_training(done, tmp_path):
  folder, _, result = done
  runs = folder / 'runs' / 'as-configured'
  status, output, errors = compare(
    runs / result['a'], runs / result['b'], f'--workdir={tmp_path}', f'--json={tmp_path / "x.json"}'
  )
  assert status == 0, errors
  assert result['verdict'] in output
  again = json.loads((tmp_path / 'x.json').read_text())
  assert again['pairs'] == result['pairs']
  one = runs / result['b'] / 'seed0'
  status, output, errors = compare(one, runs / result['a'], f'--workdir={tmp_path}')
  assert status == 0, errors
  assert 'no verdict: one pair of runs has no interval' in output


def test_an_unfinished_run_is_named(done, tmp_path):
  folder, _, result = done
  copy = tmp_path / 'copy'
  shutil.copytree(folder / 'runs' / 'as-configured' / result['a'] / 'seed0', copy)
  (copy / 'result.json').unlink()
  status, _, errors = compare(copy, copy)
  assert status == 2
  assert f'{copy}: is not finished' in errors


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ([], 'A B: got 0 of them'),
    (['experiments/ultra.py', 'experiments/ultar.py'], 'no such experiment; nearest: experiments/ultra'),
    (['experiments/ultra.py', '/nowhere'], 'wants two experiments or two folders of runs, not one of each'),
    (['/nowhere', '/elsewhere'], '/nowhere: neither an experiment'),
    (['experiments/ultra.py', 'experiments/ultra.py'], 'the same experiment twice'),
    (['experiments/ultra.py', 'experiments/ultra_muon.py', '--set=model.n_layer=3'], "did you mean 'n_layers'?"),
    (['experiments/ultra.py', 'experiments/ultra_muon.py', '--set=model.n_layers=x'], "got 'x', wants a whole number"),
  ],
  ids=['nothing', 'typo', 'mixed', 'nowhere', 'twice', 'field', 'value'],
)
def test_a_mistake_is_one_line_and_status_2(arguments, message, tmp_path):
  status, _, errors = compare(*arguments, f'--workdir={tmp_path / "runs"}')
  assert status == 2
  assert message in errors
  assert errors.strip().count('\n') == 0
  assert not (tmp_path / 'runs').exists()
