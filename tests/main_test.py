"""The command line from outside: real processes, their exit status, and what they leave behind."""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from tests import tiny
from tests.faults import world
from tests.faults.memory import limit_memory
from yxanul.config.convert import to_dict
from yxanul.data import shards_check
from yxanul.inference.generate import Sampling, complete
from yxanul.inference.load import load
from yxanul.training.checkpoint import Checkpoints
from yxanul.training.state import flatten
from yxanul.training.workdir import begun, check_workdir


@pytest.fixture(scope='module')
def whole(trained_run) -> Path:
  """The workdir of an uninterrupted tiny run."""
  return trained_run


def test_a_run_leaves_what_it_promises(whole):
  config = json.loads((whole / 'config.json').read_text())
  assert config['model']['d_model'] == 32
  lines = [json.loads(line) for line in (whole / 'metrics.jsonl').read_text().splitlines()]
  training = [line for line in lines if 'loss' in line]
  fields = (
    'step stage seq_len tokens bytes loss bpb_train lr grad_norm tokens_per_second bytes_per_second mfu seconds '
    'seconds_training skipped_steps spike_steps'
  )
  assert all(list(line) == fields.split() for line in training)
  assert sorted({line['stage'] for line in training}) == list(range(1, 11))
  # Every stage is scored at its end, in rows of its own length; the last in those of the evaluation.
  ends = {line['stage']: line for line in lines if 'val_bpb' in line}
  stages = tiny.spec().curriculum.stages
  assert [ends[number]['eval_seq_len'] for number in range(1, 11)] == [stage.seq_len for stage in stages]
  last_steps = {line['stage']: line['step'] for line in training}
  assert {number: line['step'] for number, line in ends.items()} == last_steps
  assert all(b['tokens'] > a['tokens'] and b['seconds'] >= a['seconds'] for a, b in itertools.pairwise(training))
  assert all(1e2 < line['tokens_per_second'] < 1e6 for line in training)
  result = json.loads((whole / 'result.json').read_text())
  wanted = (
    'val_bpb ppl_gpt2_equivalent val_bytes xz_bpb xz_given_training_bpb parameters tokens bytes seconds seconds_training '
    'tokens_per_second stages engines resumed_from'
  )
  assert set(wanted.split()) <= result.keys()
  assert result['stages'] == 10
  assert result['resumed_from'] is None
  assert result['tokens'] == training[-1]['tokens']
  assert result['bytes'] == training[-1]['bytes']
  assert result['ppl_gpt2_equivalent'] == pytest.approx(2 ** (result['val_bpb'] * 4.488))
  assert result['parameters'] == tiny.spec().model.parameter_count()
  assert 0 < result['seconds_training'] + result['seconds_warming'] < result['seconds']
  # The marks that anybody can compute: xz on this Python's own prose. Versions of Python differ a little.
  assert result['xz_bpb'] == pytest.approx(2.39, abs=0.1)
  assert result['xz_given_training_bpb'] == pytest.approx(1.87, abs=0.15)
  assert len((whole / 'samples.txt').read_text().split('---')) == 3
  assert 'toy' in (whole / 'output.txt').read_text()
  report = (whole / 'report.html').read_text()
  assert 'toy' in report
  assert 'http://' not in report.replace('http://www.w3.org', '')


def test_it_learns(whole):
  evaluations = [json.loads(line) for line in (whole / 'metrics.jsonl').read_text().splitlines() if 'val_bpb' in line]
  assert evaluations[-1]['val_bpb'] < evaluations[0]['val_bpb'] - 0.1


def test_a_second_run_is_done_at_once_and_changes_nothing(whole, tmp_path):
  workdir = tmp_path / 'copy'
  shutil.copytree(whole, workdir)
  status, _, errors = tiny.finish(tiny.main(f'--workdir={workdir}', *tiny.flags()))
  assert status == 0, errors
  assert tiny.metrics(workdir) == tiny.metrics(whole)
  assert (
    json.loads((workdir / 'result.json').read_text())['val_bpb'] == json.loads((whole / 'result.json').read_text())['val_bpb']
  )


def test_killed_and_resumed_equals_uninterrupted(whole, tmp_path):
  """SIGKILL at a random step, twice; then to the end: the same parameters and metrics, bit for bit. tests/faults has more."""
  workdir = tmp_path / 'run'
  arguments = (f'--workdir={workdir}', *tiny.flags(data__directory=whole / 'data', training__checkpoint_every_seconds=0.2))
  total = len(tiny.metrics(whole))
  draw = random.Random(os.environ.get('YXANUL_KILL_SEED', ''))
  log = workdir / 'metrics.jsonl'
  for lines in sorted(draw.sample(range(1, total - 4), 2)):
    process = tiny.main(*arguments)
    while process.poll() is None and (not log.exists() or len(log.read_text().splitlines()) < lines):
      time.sleep(0.002)
    time.sleep(draw.random() * 0.05)
    process.kill()
    process.communicate()
  # From nothing, as the other was not: its strings have other hashes, and so its sets another order.
  status, _, errors = tiny.finish(tiny.start_afresh('main', *arguments))
  assert status == 0, errors
  assert tiny.same_arrays(workdir, whole)
  assert tiny.metrics(workdir) == tiny.metrics(whole)


def killed_when_all_is_saved() -> None:
  for thread in threading.enumerate():
    if thread.name == 'checkpoint':
      thread.join()
  os.kill(os.getpid(), signal.SIGKILL)


def test_a_kill_while_sampling_costs_no_result(whole, tmp_path):
  workdir, data = tmp_path / 'run', {'data__directory': str(whole / 'data')}
  status, output, _ = world.run(workdir, world.Event('sampling', 1, killed_when_all_is_saved), **data)
  assert status == -signal.SIGKILL, output
  result = (workdir / 'result.json').read_bytes()
  assert not (workdir / 'samples.txt').exists()
  status, output, _ = world.run(workdir, **data)
  assert status == 0, output
  assert (workdir / 'result.json').read_bytes() == result
  assert len((workdir / 'samples.txt').read_text().split('---')) == 3


def test_killed_and_resumed_in_fp8_equals_uninterrupted(whole, tmp_path):
  """Scales and the history of amaxes travel in the checkpoint: the same, in the recipe's reference on a CPU.

  And the moments of a table that inherits, which are of what its entries have of their own; and a block that joins late.
  """
  fields = {
    'data__directory': whole / 'data',
    'precision__matmul': 'fp8',
    'precision__fp8_engine': 'reference',
    'optimizer__inheritance': 0.7,
    **{f'curriculum__stages[{i}]__n_layers': 1 for i in range(6)},
    'curriculum__budget_tokens': 20_000,
    'training__checkpoint_every_seconds': 0.2,
  }
  undisturbed, workdir = tmp_path / 'undisturbed', tmp_path / 'run'
  assert tiny.finish(tiny.main(f'--workdir={undisturbed}', *tiny.flags(**fields)))[0] == 0
  arguments = (f'--workdir={workdir}', *tiny.flags(**fields))
  process, log = tiny.main(*arguments), workdir / 'metrics.jsonl'
  while process.poll() is None and (not log.exists() or len(log.read_text().splitlines()) < 8):
    time.sleep(0.002)
  process.kill()
  process.communicate()
  assert not (workdir / 'result.json').exists()
  status, output, errors = tiny.finish(tiny.main(*arguments))
  assert status == 0, errors
  assert 'going on from the checkpoint of step' in output
  assert tiny.same_arrays(workdir, undisturbed)
  assert tiny.metrics(workdir) == tiny.metrics(undisturbed)


def test_a_checkpoint_from_before_all_blocks_run_is_a_model_of_those_that_do(whole, tmp_path):
  fields = {f'curriculum__stages[{i}]__n_layers': 1 for i in range(9)}
  fields |= {'data__directory': whole / 'data', 'training__checkpoint_every_seconds': 0.2}
  workdir = tmp_path / 'run'
  process, log = tiny.main(f'--workdir={workdir}', *tiny.flags(**fields)), workdir / 'metrics.jsonl'
  while process.poll() is None and (not log.exists() or len(log.read_text().splitlines()) < 8):
    time.sleep(0.002)
  process.send_signal(signal.SIGTERM)
  _, output, errors = tiny.finish(process)
  assert 'everything is saved' in output + errors
  model = load(workdir)
  assert model.spec.n_layers == len(model.params['blocks.qkv.weight']) == 1
  assert complete(model, ['The object'], Sampling(tokens=5, temperature=0.0), [torch.Generator()]) != ['']
  status, output, errors = tiny.finish(tiny.main(f'--workdir={workdir}', *tiny.flags(**fields)))
  assert status == 0, errors
  assert load(workdir).spec.n_layers == 2


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_request_to_stop_saves_and_says_how_to_go_on(whole, tmp_path, number):
  workdir = tmp_path / 'run'
  arguments = (f'--workdir={workdir}', *tiny.flags(data__directory=whole / 'data', curriculum__budget_tokens=2_000_000))
  process = tiny.main(*arguments)
  log = workdir / 'metrics.jsonl'
  while process.poll() is None and (not log.exists() or len(log.read_text().splitlines()) < 5):
    time.sleep(0.01)
  started = time.perf_counter()
  process.send_signal(number)
  status, output, errors = tiny.finish(process)
  assert status == 75, errors
  assert time.perf_counter() - started < 10
  assert f'{number.name}: stopped, everything is saved; the same command goes on from here' in output
  checkpoints = Checkpoints(workdir / 'checkpoints', 2)
  last_logged = max(line['step'] for line in tiny.metrics(workdir))
  assert checkpoints.steps()[-1] >= last_logged
  checkpoints.close()


def test_one_process_at_a_time_trains_in_a_workdir(whole, tmp_path):
  workdir = tmp_path / 'run'
  arguments = (f'--workdir={workdir}', *tiny.flags(data__directory=whole / 'data', curriculum__budget_tokens=2_000_000))
  first = tiny.main(*arguments)
  try:
    while first.poll() is None and not (workdir / 'metrics.jsonl').exists():
      time.sleep(0.01)
    status, output, errors = tiny.finish(tiny.main(*arguments))
    assert (status, output, errors) == (2, '', f'error: --workdir={workdir}: another process is training here\n')
    assert first.poll() is None
  finally:
    first.kill()
    first.communicate()
  again = tiny.main(*arguments)
  lines = len(tiny.metrics(workdir))
  while again.poll() is None and len((workdir / 'metrics.jsonl').read_text().splitlines()) <= lines:
    time.sleep(0.01)
  again.send_signal(signal.SIGINT)
  status, _, errors = tiny.finish(again)
  assert status == 75, errors
  assert not (workdir / 'run.lock').exists()


def test_another_configuration_is_refused_with_the_fields_named(whole, tmp_path):
  before = {p: p.read_bytes() for p in whole.rglob('*') if p.is_file() and p.name != 'lock'}
  status, _, errors = tiny.finish(tiny.main(f'--workdir={whole}', *tiny.flags(seed=3, model__n_layers=3)))
  assert status == 2
  assert errors.strip().count('\n') == 0
  assert f'--workdir={whole}: holds a run of another configuration' in errors
  assert 'config.seed: 0 -> 3; config.model.n_layers: 2 -> 3; wants the same one, or another --workdir' in errors
  assert {p: p.read_bytes() for p in whole.rglob('*') if p.is_file() and p.name != 'lock'} == before


def test_text_that_changed_behind_the_file_systems_back_ends_the_run(whole, tmp_path):
  data = tmp_path / 'data'
  shutil.copytree(whole / 'data', data)
  tokens = data / 'train' / '00000.tokens.npy'
  changed = bytearray(tokens.read_bytes())
  changed[-4] ^= 1
  tokens.write_bytes(changed)
  for split in ('train', 'validation'):
    files = json.loads((data / split / 'manifest.json').read_text())['shards'][0]['files']
    paths = {data / split / f'00000.{kind}.npy': file['sha256'] for kind, file in files.items()}
    stamps = {path.name: shards_check._stamp(path, sha256) for path, sha256 in paths.items()}
    (data / split / shards_check.STAMPS).write_text(json.dumps(stamps))
  flags = tiny.flags(data__directory=data)
  status, _, errors = tiny.finish(tiny.main(f'--workdir={tmp_path / "run"}', *flags))
  assert status == 2
  assert (tmp_path / 'run' / 'checkpoints' / '0').exists()  # it was under way
  assert errors.strip().count('\n') == 0
  assert '00000.tokens.npy: SHA-256' in errors
  assert 'a failing disk' in errors


def test_a_truncated_checkpoint_falls_back_and_says_so(whole, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(whole, workdir)
  steps = sorted(int(p.name) for p in (workdir / 'checkpoints').iterdir() if p.name.isdigit())
  largest = max(
    (p for p in (workdir / 'checkpoints' / str(steps[-1])).rglob('*') if p.is_file()), key=lambda p: p.stat().st_size
  )
  largest.write_bytes(largest.read_bytes()[:100])
  status, output, errors = tiny.finish(tiny.main(f'--workdir={workdir}', *tiny.flags()))
  assert status == 0, errors
  assert f'checkpoint of step {steps[-1]} is not usable' in output
  assert 'Traceback' not in errors
  assert f'going on from the checkpoint of step {steps[-2]}' in output
  assert tiny.same_arrays(workdir, whole)
  assert tiny.metrics(workdir) == tiny.metrics(whole)


MISTAKES = [
  (['--config=experiments/quikstart.py'], r'no such experiment; nearest: experiments/quickstart.py'),
  (
    ['--config=experiments/quickstart.py', '--config.model.n_layer=3'],
    "config.model.n_layer: no such field; did you mean 'n_layers'?",
  ),
  (
    ['--config=experiments/quickstart.py', '--config.data.tokenizer.vocabsize=3'],
    "config.data.tokenizer.vocabsize: no such field; did you mean 'vocab_size'?",
  ),
  (
    ['--config=experiments/quickstart.py', '--config.curriculum.stages[2].seq=3'],
    "config.curriculum.stages[2].seq: no such field; did you mean 'seq_len'?",
  ),
  (
    ['--config=experiments/quickstart.py', '--config.curriculum.stages[12].seq_len=3'],
    "config.curriculum.stages: got '[12]', wants an index below 10",
  ),
  (['--config=experiments/quickstart.py', '--config.modle.n_layers=3'], "config.modle: no such field; did you mean 'model'?"),
  (
    ['--config=experiments/quickstart.py', '--config.model.n_layers=two'],
    "config.model.n_layers: got 'two', wants a whole number",
  ),
  (
    ['--config=experiments/quickstart.py', '--config.optimizer.peak_lr=-1'],
    'config.optimizer.peak_lr: got -1.0, wants a positive number',
  ),
  (['--config=experiments/ultra.py:gpu=h300'], "variant 'gpu' of the experiment: got 'h300', wants one of rtx4090"),
  (['--config=experiments/quickstart.py', '--config.data.source=/nowhere/*.parquet'], '/nowhere/*.parquet'),
  (['--config=experiments/quickstart.py', '--config.data.source='], 'config.data.source'),
  (['--config=experiments/quickstart.py', '--wrokdir=x'], "Unknown command line flag 'wrokdir'"),
  (['quickstart'], "'quickstart': not a flag"),
  ([], '--config: missing'),
]


@pytest.mark.parametrize(('arguments', 'message'), MISTAKES, ids=[' '.join(m[0])[-50:] or 'nothing' for m in MISTAKES])
def test_a_mistake_is_one_line_and_status_2(arguments, message, tmp_path):
  workdir = tmp_path / 'run'
  status, _, errors = tiny.finish(tiny.main(*arguments, f'--workdir={workdir}'))
  assert status == 2, errors
  assert errors.startswith('error: ')
  assert message in errors
  assert errors.strip().count('\n') == 0, errors
  assert not workdir.exists()


def test_a_config_of_another_program_is_named(tmp_path):
  (tmp_path / 'config.json').write_text('{"model_type": "llama"}')
  status, _, errors = tiny.finish(tiny.main(f'--workdir={tmp_path}', *tiny.flags()))
  assert (status, errors) == (2, f"error: --workdir={tmp_path}: config.json there is not a run's\n")


def test_a_workdir_that_cannot_be_written(tmp_path):
  target = tmp_path / 'file'
  target.write_text('kept')
  status, _, errors = tiny.finish(tiny.main(f'--workdir={target}', *tiny.flags()))
  assert status == 2
  assert f'--workdir={target}: is not a folder' in errors
  assert target.read_text() == 'kept'
  status, _, errors = tiny.finish(tiny.main('--workdir=/proc/run', *tiny.flags()))
  assert status == 2, errors
  assert errors.startswith('error: ')
  assert '/proc' in errors
  assert errors.strip().count('\n') == 0, errors


def test_text_that_is_not_utf8_is_named_with_its_offset(tmp_path):
  (tmp_path / 'bad.txt').write_bytes(b'good text ' * 10 + b'\xff\xfe' + b' more')
  arguments = tiny.flags(data__source=tmp_path / 'bad.txt')
  status, _, errors = tiny.finish(tiny.main(f'--workdir={tmp_path / "run"}', *arguments))
  assert status == 2, errors
  assert 'bad.txt' in errors
  assert '100' in errors
  assert errors.strip().count('\n') == 0, errors
  assert not (tmp_path / 'run').exists()


def test_listing_is_instant_and_imports_no_torch():
  code = (
    "import sys; sys.argv = ['main', '--list=json']\n"
    'import runpy\n'
    'try:\n  runpy.run_module("yxanul.main", run_name="__main__")\n'
    'except SystemExit as stop:\n  assert not stop.code, stop.code\n'
    'assert "torch" not in sys.modules'
  )
  done = subprocess.run([sys.executable, '-c', code], cwd=tiny.REPOSITORY, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  rows = json.loads(done.stdout)
  assert {'name', 'summary', 'parameters', 'tokens', 'hardware', 'path'} == rows[0].keys()
  assert any(row['name'] == 'ultra' and row['parameters'] == 196_398_464 for row in rows)


@pytest.mark.parametrize(('flag', 'start'), [('--list', 'experiment'), ('--help', 'Trains an experiment')])
def test_what_is_printed_may_be_cut_short(flag, start):
  done = subprocess.run(
    f'{sys.executable} -m yxanul.main {flag} | head -n 1; exit ${{PIPESTATUS[0]}}',
    shell=True,
    executable='/bin/bash',
    cwd=tiny.REPOSITORY,
    capture_output=True,
    text=True,
    check=False,
  )
  assert (done.returncode, done.stderr) == (0, '')
  assert done.stdout.startswith(start)


def test_a_start_that_failed_binds_nobody(whole, tmp_path):
  """The settings turn out wrong where the steps are made, after all that is prepared: the corrected command goes on."""
  workdir, fields = tmp_path / 'run', {'data__directory': str(whole / 'data')}
  too_little = world.Event('making the steps', 1, limit_memory, (10,))
  status, output, _ = world.run(workdir, too_little, seed=3, **fields)
  assert (status, 'cannot be split further' in output) == (2, True), output
  assert json.loads((workdir / 'config.json').read_text())['seed'] == 3  # what a report is made from
  status, output, _ = world.run(workdir, **fields)
  assert status == 0, output
  status, output, _ = world.run(workdir, seed=3, **fields)
  assert (status, 'config.seed: 0 -> 3' in output) == (2, True), output


def test_what_a_start_left_is_no_part_of_another_runs_curves(whole, tmp_path):
  """A start that was killed before its first checkpoint, then the same workdir with another rate."""
  workdir = tmp_path / 'run'
  (workdir / 'wandb').mkdir(parents=True)
  (workdir / 'wandb' / 'run_id').write_text('of-the-first')
  (workdir / 'config.json').write_text(json.dumps(to_dict(tiny.spec(seed=5))))
  (workdir / 'metrics.jsonl').write_text('{"step": 3, "loss": 99.0}\n')
  fields = {'data__directory': whole / 'data', 'curriculum__budget_tokens': 20_000}
  status, _, errors = tiny.finish(tiny.main(f'--workdir={workdir}', *tiny.flags(**fields)))
  assert status == 0, errors
  assert 99.0 not in [row.get('loss') for row in tiny.metrics(workdir)]
  assert not (workdir / 'wandb').exists()


def test_the_log_that_a_start_left_is_gone_before_another_run_begins(tmp_path):
  """Of the lines that it finds `MetricsLog` would take the first steps for logged, and keep them from the loggers."""
  (tmp_path / 'config.json').write_text(json.dumps(to_dict(tiny.spec(seed=5))))
  (tmp_path / 'metrics.jsonl').write_text('{"step": 3, "loss": 99.0}\n')
  with begun(tiny.spec(seed=6), tmp_path):
    assert [path.name for path in tmp_path.iterdir()] == ['config.json']


def test_a_start_that_was_killed_binds_nobody(tmp_path):
  workdir = tmp_path / 'run'
  process = tiny.main(f'--workdir={workdir}', *tiny.flags())
  while process.poll() is None and not (workdir / 'data').exists():
    time.sleep(0.002)
  process.kill()
  process.communicate()
  assert json.loads((workdir / 'config.json').read_text())['model']['d_model'] == 32
  check_workdir(tiny.spec(seed=3), workdir)
  (workdir / 'checkpoints' / '0').mkdir(parents=True)
  with pytest.raises(ValueError, match=r'config\.seed: 0 -> 3'):
    check_workdir(tiny.spec(seed=3), workdir)


def test_groups_that_do_not_fit_the_model_are_told_before_anything_is_prepared(tmp_path):
  source = tmp_path / 'text.txt'
  source.write_bytes(b'\xff')
  arguments = tiny.flags(data__source=source, **{'optimizer__groups[1]__optimizer': 'muon'})
  status, _, errors = tiny.finish(tiny.main(f'--workdir={tmp_path / "run"}', *arguments))
  assert status == 2
  assert "gives muon 'embedding.table', wants block matrices only" in errors
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  ('experiment', 'texts'),
  [
    # 5.09e-4 is 6e-4 x 0.6 x sqrt(2): stage 4 at twice the reference batch.
    ('ultra.py:gpu=h100', '196,398,464|16,384|131,072|262,144|cosine to 10%|betas 0.9 and 0.95|5.09e-4'),
    (
      'best.py',
      '196,398,464|32,768|betas 0.9 and 0.99|Muon: momentum 0.9 (Nesterov)|polar_express|rows normalized'
      '|inherit 0.7 of their parts|trapezoid to 0%',
    ),
  ],
)
def test_dry_run_shows_the_rule_and_writes_nothing(experiment, texts, tmp_path):
  arguments = (f'--config=experiments/{experiment}', '--dry_run', f'--workdir={tmp_path / "run"}')
  status, output, errors = tiny.finish(tiny.main(*arguments))
  assert status == 0, errors
  for text in texts.split('|'):
    assert text in output, text
  assert ('inherit' in output) == experiment.startswith('best')
  assert not (tmp_path / 'run').exists()


def test_states_flatten_to_the_paths_of_a_checkpoint(whole):
  from yxanul.optim.build import build
  from yxanul.training.state import init_state

  spec = tiny.spec()
  state = init_state(spec, build(spec.optimizer, spec.model), {}, torch.device('cpu'))
  assert flatten(state).keys() == tiny.arrays(whole).keys()
