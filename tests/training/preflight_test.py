"""The pre-flight's findings: disks, data against the budget, stages that fail, and a bench off the plan."""

import dataclasses
from types import SimpleNamespace

from tests import tiny
from yxanul.config import convert, registry
from yxanul.kernels.capabilities import Capabilities, detect
from yxanul.planning import memory
from yxanul.training import preflight

H200 = Capabilities('cuda', 'NVIDIA H200', (9, 0), 150 * 10**9)


def levels(found) -> list[str]:
  return [finding.level for finding in found]


def test_the_disk_needs_room_for_one_checkpoint_more_than_are_kept(tmp_path):
  spec = tiny.spec()
  needs = 3 * memory.checkpoint_bytes(spec)
  assert levels(preflight.check_disk(spec, tmp_path, tmp_path, True, lambda _: needs)) == ['ok']
  (finding,) = preflight.check_disk(spec, tmp_path / 'not' / 'yet', tmp_path, True, lambda _: needs - 1)
  assert finding.level == 'problem'
  assert finding.text.startswith(f'{tmp_path / "not" / "yet"}: 0.00 GB free, 3 checkpoints')


def test_text_that_is_not_prepared_shares_the_disk_with_the_checkpoints(tmp_path):
  text = tmp_path / 'text.txt'
  text.write_text('x' * 4000)
  spec = tiny.spec(data__source=str(text))
  checkpoints, shards = 3 * memory.checkpoint_bytes(spec), 4000 * 2 // 4
  assert levels(preflight.check_disk(spec, tmp_path, tmp_path, False, lambda _: checkpoints + shards)) == ['ok', 'ok']
  assert levels(preflight.check_disk(spec, tmp_path, tmp_path, False, lambda _: checkpoints + shards - 1)) == ['problem'] * 2
  from_the_hub = tiny.spec(data__source='owner/name')
  _, finding = preflight.check_disk(from_the_hub, tmp_path, tmp_path, False, lambda _: 10**9)
  assert 'preparing the text: about 0.00 GB' in finding.text


def test_a_checkpoint_holds_weights_and_moments():
  spec = tiny.spec()
  assert memory.checkpoint_bytes(spec) == 12 * spec.model.parameter_count()
  fp8 = dataclasses.replace(spec, precision=dataclasses.replace(spec.precision, matmul='fp8'), curriculum=spec.curriculum)
  assert memory.checkpoint_bytes(fp8) - memory.checkpoint_bytes(spec) == 4 * (1024 + 1) * 2 * 4 * 3


def test_what_no_cpu_finishes_is_told_before_its_text_is_fetched():
  ultra, gpu = convert.from_config(registry.load('experiments/ultra.py')), Capabilities('cuda', 'NVIDIA H200')
  (finding,) = preflight.check_device(ultra, Capabilities('cpu', 'CPU'))
  assert (finding.level, finding.text.startswith('no GPU'), finding.text.endswith('40 days')) == ('problem', True, True)
  *first, last = ultra.curriculum.stages
  stages = (*(dataclasses.replace(stage, n_layers=1) for stage in first), last)
  grows = dataclasses.replace(ultra, curriculum=dataclasses.replace(ultra.curriculum, stages=stages))
  (finding,) = preflight.check_device(grows, Capabilities('cpu', 'CPU'))
  assert int(finding.text.split()[-2]) < 20
  assert not list(preflight.check_device(ultra, gpu))
  assert not list(preflight.check_device(tiny.spec(), Capabilities('cpu', 'CPU')))


def corpus(tokens: int):
  return SimpleNamespace(train=SimpleNamespace(n_tokens=tokens), validation=SimpleNamespace(n_tokens=10))


def test_a_budget_of_many_epochs_is_warned_of():
  spec = tiny.spec(curriculum__budget_tokens=60_000)
  assert preflight.check_data(spec, corpus(15_000)).level == 'ok'
  finding = preflight.check_data(spec, corpus(10_000))
  assert finding.level == 'warning'
  assert '10,000 tokens to train on' in finding.text
  assert '6.00 epochs' in finding.text


def measured(rows) -> dict:
  return {'experiment': 'x', 'stages': rows, 'schedule': {'complete': True, 'tokens_per_second': 1.0}}


def row(stage, planned, **more):
  found = {'stage': planned['stage'], 'seq_len': stage.seq_len, 'tokens_per_step': stage.tokens_per_step, 'pieces': 1, 'n': 20}
  found |= {'ms': 1.0, 'tokens_per_second': planned['tokens_per_second'], 'peak_bytes': planned['memory_bytes']}
  return found | {'loss': 6.0, 'skipped_steps': 0} | more


def test_each_stage_is_judged_by_its_loss_its_skips_and_the_plan(monkeypatch):
  spec = tiny.spec()
  stages = spec.curriculum.stages
  planned = preflight.plan.make(spec, [(stage, 1) for stage in stages], preflight.gpus.gpu('h200'))['stages']
  rows = [row(stage, p) for stage, p in zip(stages, planned, strict=True)]
  rows[1] = {'stage': 2, 'token_share': 0.1, 'error': 'OutOfMemoryError: no room'}
  rows[2]['loss'] = float('nan')
  rows[3]['skipped_steps'] = 20
  rows[4]['skipped_steps'] = 1
  rows[5]['tokens_per_second'] *= 0.8
  rows[6]['peak_bytes'] *= 1.2
  rows[7]['tokens_per_second'] *= 1.5  # faster and smaller than planned is no matter
  rows[8]['peak_bytes'] *= 0.5
  monkeypatch.setattr(preflight.benchmark, 'measure', lambda *_: measured(rows))
  result, found = preflight.check_steps(spec, corpus(1), H200, 20, print)
  assert [finding.text for finding in found if finding.level == 'problem'] == [
    'stage 2: OutOfMemoryError: no room',
    'stage 3, length 16: the loss is nan',
    'stage 4, length 24: 20 of 20 steps skipped, not finite',
  ]
  warnings = [finding.text for finding in found if finding.level == 'warning']
  assert warnings[0] == 'stage 5, length 32: 1 of 20 steps skipped, not finite'
  assert warnings[1] == 'stage 6, length 48: 20% slower than planned'
  assert warnings[2].startswith('stage 7, length 64: 20% more memory than planned')
  assert len(warnings) == 3
  assert len(result['check']['stages']) == 9


def test_batches_that_warming_made_smaller_are_not_compared(monkeypatch):
  spec = tiny.spec()
  stages = spec.curriculum.stages
  rows = [row(stage, {'stage': i, 'tokens_per_second': 1.0, 'memory_bytes': 1}) for i, stage in enumerate(stages, 1)]
  for found in rows:
    found['tokens_per_step'] //= 2
  monkeypatch.setattr(preflight.benchmark, 'measure', lambda *_: measured(rows))
  result, found = preflight.check_steps(spec, corpus(1), H200, 20, print)
  assert result['check'] is None
  assert levels(found) == ['ok'] * 10 + ['warning']


def test_a_card_without_a_plan_is_told(monkeypatch):
  stages = tiny.spec().curriculum.stages
  rows = [row(stage, {'stage': i, 'tokens_per_second': 1.0, 'memory_bytes': 1}) for i, stage in enumerate(stages, 1)]
  monkeypatch.setattr(preflight.benchmark, 'measure', lambda *_: measured(rows))
  card = dataclasses.replace(H200, name='NVIDIA T4')
  result, found = preflight.check_steps(tiny.spec(), corpus(1), card, 20, print)
  assert result['check'] is None
  assert levels(found) == ['ok'] * 10 + ['warning']
  assert found[-1].text == 'no plan for NVIDIA T4: speed and memory not compared'


def test_nothing_runs_where_the_first_step_cannot_be_made(monkeypatch):
  def refuse(*_):
    raise ValueError('stage of length 8: needs about 9.0 GB')

  monkeypatch.setattr(preflight.benchmark, 'measure', refuse)
  result, (finding,) = preflight.check_steps(tiny.spec(), corpus(1), detect(), 20, print)
  assert finding.level == 'problem'
  assert 'needs about 9.0 GB' in finding.text
  assert result == {'error': 'ValueError: stage of length 8: needs about 9.0 GB'}
