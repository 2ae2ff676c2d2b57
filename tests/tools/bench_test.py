"""python -m yxanul.tools.bench: its tables and JSON, what it leaves behind, and one line for a mistake."""

import functools
import json
from pathlib import Path

import pytest

from tests import tiny

bench = functools.partial(tiny.tool, 'bench')


@pytest.fixture(scope='module')
def workdir(tmp_path_factory) -> Path:
  return tmp_path_factory.mktemp('bench') / 'work'


def test_stages_against_another_format(workdir, tmp_path):
  path = tmp_path / 'bench.json'
  short = ('--steps=2', '--profile_steps=2', '--only=1,10')
  done = bench(*tiny.flags(), f'--workdir={workdir}', *short, '--against=bf16', f'--json={path}')
  assert done.returncode == 0, done.stderr
  for words in ('quickstart, fp32 linears', 'quickstart, bf16 linears', 'ms a step by part', 'fp32 against bf16', 'no GPU'):
    assert words in done.stdout
  assert [p.name for p in workdir.iterdir()] == ['data']
  result = json.loads(path.read_text())
  assert result['what'] == 'bench-quickstart'
  assert result['command'].startswith('python -m yxanul.tools.bench --config=experiments/quickstart.py')
  assert result['hardware'] == 'CPU'
  assert result['n'] == 2
  assert 'torch' in result['versions']
  assert 'perf_counter' in result['clock']
  assert set(result['figures']) == {'tokens_per_second_8', 'tokens_per_second_192'}  # two stages are not the schedule
  assert [row['stage'] for row in result['stages']] == [1, 10]
  against = result['against']
  assert (result['precision'], against['precision']) == ('fp32', 'bf16')
  ratio = result['stages'][1]['tokens_per_second'] / against['stages'][1]['tokens_per_second']
  assert against['ratios']['stages'][1]['ratio'] == pytest.approx(ratio)


def test_two_processes_beside_one_are_the_record_of_scaling(workdir, tmp_path):
  path = tmp_path / 'scaling.json'
  arguments = ('-m', 'yxanul.tools.bench', '--what=scaling', *tiny.flags(), '--steps=2')
  status, output, errors = tiny.finish(tiny.torchrun(2, *arguments, f'--workdir={workdir}', f'--json={path}'), timeout=300)
  assert status == 0, errors
  assert output.count('2 together against one') == 1
  result = json.loads(path.read_text())
  assert (result['what'], result['hardware'], result['n']) == ('scaling', '2 x CPU', 2)
  assert result['command'].startswith('torchrun --standalone --nproc_per_node=2 -m yxanul.tools.bench --what=scaling')
  assert (result['together']['processes'], result['alone']['processes']) == (2, 1)
  rates = []
  for two, one, row in zip(result['together']['stages'], result['alone']['stages'], result['ratios']['stages'], strict=True):
    assert two['tokens_per_step'] == 2 * one['tokens_per_step']
    assert row['ratio'] == pytest.approx(two['tokens_per_second'] / one['tokens_per_second'])
    rates += [row['ratio']] if row['seq_len'] >= 64 else []
  assert len(result['figures']) == 11
  assert result['figures']['two_gpu_speedup_min']['value'] == min(rates) > 0


def test_the_loader_as_json_on_standard_output(workdir):
  done = bench(*tiny.flags(), f'--workdir={workdir}', '--what=loader', '--only=3', '--json=-')
  assert done.returncode == 0, done.stderr
  result = json.loads(done.stdout)
  assert 'Loader' in done.stderr
  assert result['what'] == 'loader'
  (row,) = result['stages']
  assert (row['stage'], row['seq_len']) == (3, 16)
  assert result['figures']['tokens_per_second_min']['value'] == row['tokens_per_second'] > 1e4


def test_a_kernel_by_itself_takes_neither_data_nor_workdir(tmp_path):
  path = tmp_path / 'kernel.json'
  done = bench(*tiny.flags(), '--what=vocab-loss', '--tokens=256', f'--json={path}')
  assert done.returncode == 0, done.stderr
  assert 'vocab-loss, 256 tokens' in done.stdout
  result = json.loads(path.read_text())
  assert result['what'] == 'kernel-vocab-loss'
  assert result['hardware'] == 'CPU'
  assert [row['key'] for row in result['rows']] == ['64', '256']
  assert result['figures']['ms']['value'] == result['rows'][1]['subjects']['ours']['ms'] > 0
  assert result['figures']['floor_ms_64']['value'] == result['rows'][0]['floor_ms'] > 0


@pytest.mark.parametrize(
  ('arguments', 'problem'),
  [
    (['--workdir=x'], 'error: --config: missing, wants experiments/NAME.py'),
    (
      [*tiny.flags(), '--workdir=x', '--what=stage'],
      "error: --what: got 'stage', wants one of stages, scaling, loader, gradients, vocab-loss, attention-short, "
      "attention-long, casts, optimizer, inheritance (did you mean 'stages'?)",
    ),
    ([*tiny.flags(), '--workdir=x', '--only=1,11'], "error: --only: got '11', wants stages between 1 and 10"),
    ([*tiny.flags(), '--workdir=x', '--only=one'], "error: --only: got 'one', wants stages between 1 and 10"),
    ([*tiny.flags(), '--workdir=x', '--steps=0'], 'error: flag --steps=0: 0 is not a positive integer'),
    ([*tiny.flags()], 'error: --workdir: missing, wants the folder for the prepared data'),
    ([*tiny.flags(), '--workdir=x', '--peers'], 'error: --peers: wants a GPU'),
    ([*tiny.flags(), '--workdir=x', '--what=scaling'], 'error: --what=scaling: wants several processes: torchrun'),
  ],
)
def test_a_mistake_is_one_line_and_status_2(arguments, problem, tmp_path):
  done = bench(*(f'--workdir={tmp_path / "x"}' if a == '--workdir=x' else a for a in arguments))
  assert (done.returncode, done.stdout) == (2, '')
  assert done.stderr.startswith(problem)
  assert len(done.stderr.strip().splitlines()) == 1
  assert not (tmp_path / 'x').exists()
