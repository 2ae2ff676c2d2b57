"""Specs refuse what cannot be, and name the field, what it got and what it wants."""

import dataclasses
import json

import pytest
from ml_collections import ConfigDict

from yxanul.config import registry
from yxanul.config.convert import deciding_differences, default_config, differing_fields, from_config, to_config, to_dict
from yxanul.config.spec import ExperimentSpec
from yxanul.config.variants import parse_variant


def test_default_config_and_spec_are_one_list_of_fields():
  spec = from_config(default_config())
  assert spec == ExperimentSpec(name='default')
  assert from_config(to_config(spec)) == spec
  assert json.loads(json.dumps(to_dict(spec)))['model']['d_model'] == 768


def test_specs_are_frozen():
  with pytest.raises(dataclasses.FrozenInstanceError):
    from_config(default_config()).model.d_model = 1


# Where, the wrong value, and what the one line must say.
WRONG = [
  ('model.d_model', 0, r'config\.model\.d_model: got 0, wants at least 1'),
  ('model.d_model', 'wide', r"config\.model\.d_model: got 'wide', wants a whole number"),
  ('model.d_model', 768.0, r'config\.model\.d_model: got 768\.0, wants a whole number'),
  ('model.bias', 1, r'config\.model\.bias: got 1, wants true or false'),
  ('model.norm', 'rmsnrom', r"config\.model\.norm: got 'rmsnrom', wants .*did you mean 'rmsnorm'"),
  ('model.n_kv_heads', 5, r'config\.model\.n_kv_heads: got 5, wants a divisor of n_heads=12'),
  ('model.vocab_size', 1000, r'config\.model\.vocab_size: got 1000, wants 200005'),
  ('model.max_positions', 1024, r'config\.model\.max_positions: got 1024, wants at least the longest row, 2048'),
  ('optimizer.peak_lr', float('nan'), r'config\.optimizer\.peak_lr: got nan, wants a finite number'),
  ('sample.temperature', float('inf'), r'config\.sample\.temperature: got inf, wants a finite number'),
  ('optimizer.peak_lr', -1.0, r'config\.optimizer\.peak_lr: got -1\.0, wants a positive'),
  ('optimizer.beta2', 1.0, r'config\.optimizer\.beta2: got 1\.0'),
  ('data.validation_fraction', 0.0, r'config\.data\.validation_fraction: got 0\.0'),
  ('data.tokenizer.transition_size', 300_000, r'config\.data\.tokenizer\.transition_size: got 300000, wants between'),
  ('data.on_error', 'ignore', r'config\.data\.on_error: got .ignore., wants one of stop, skip'),
  ('optimizer.muon.momentum', 1.0, r'config\.optimizer\.muon\.momentum: got 1\.0, wants at least 0 and less than 1'),
  ('optimizer.muon.polynomial', 'quntic', r"config\.optimizer\.muon\.polynomial: got 'quntic', .*did you mean 'quintic'"),
  ('optimizer.muon.newton_schulz_steps', 0, r'config\.optimizer\.muon\.newton_schulz_steps: got 0, wants at least 1'),
  ('optimizer.inheritance', 1.0, r'config\.optimizer\.inheritance: got 1\.0, wants at least 0 and less than 1'),
  ('optimizer.z_loss', -1.0, r'config\.optimizer\.z_loss: got -1\.0, wants at least 0'),
  ('model.table_std', -1.0, r'config\.model\.table_std: got -1\.0, wants a positive number, or 0'),
  ('model.input_scale', 0.0, r'config\.model\.input_scale: got 0\.0, wants a positive number'),
  ('curriculum.budget_tokens', 0, r'config\.curriculum\.budget_tokens: got 0'),
  ('training.checkpoints_kept', 1, r'config\.training\.checkpoints_kept: got 1, wants at least 2'),
  ('seed', -1, r'config\.seed: got -1'),
  ('model.d_modle', 5, r"config\.model\.d_modle: no such field; did you mean 'd_model'"),
  ('data.tokenizer.vocab', 5, r"config\.data\.tokenizer\.vocab: no such field; did you mean 'vocab_size'"),
]


@pytest.mark.parametrize(('field', 'value', 'message'), WRONG, ids=[f'{w[0]}={w[1]}' for w in WRONG])
def test_a_wrong_value_is_one_line_that_names_it(field, value, message):
  config = to_dict(ExperimentSpec(name='x'))
  *path, last = field.split('.')
  inner = config
  for name in path:
    inner = inner[name]
  inner[last] = value
  with pytest.raises(ValueError, match=message) as error:
    from_config(config)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda s: s[1].update(seq_len=4), r'stages\[1\]\.seq_len: got 4, wants at least the 8 of the stage before'),
    (lambda s: s[2].update(step_share_start=0.005), r'stages\[2\]\.step_share_start: got 0\.005, wants between the 0\.01'),
    (lambda s: s[0].update(step_share_start=0.1), r'stages\[0\]\.step_share_start: got 0\.1, wants exactly 0'),
    (
      lambda s: s[0].update(batch_size=8191),
      r'stages\[0\]\.batch_size: got 8191, wants a batch whose tokens a step .65528. divide by 16',
    ),
    (lambda s: s[3].update(grad_clip=0.0), r'stages\[3\]\.grad_clip: got 0\.0, wants a positive'),
  ],
)
def test_stages_must_make_a_curriculum(change, message):
  config = registry.load(str(registry.experiments_folder() / 'ultra.py'))
  from_config(config)
  change(config.curriculum.stages)
  with pytest.raises(ValueError, match=message):
    from_config(config)


def test_fp8_needs_widths_of_sixteen():
  config = registry.load(str(registry.experiments_folder() / 'ultra.py'))
  config.model.d_hidden = 2040
  with pytest.raises(ValueError, match=r'config\.model\.d_hidden: got 2040, wants a linear width divisible by 16'):
    from_config(config)
  config.precision.matmul = 'bf16'
  assert from_config(config).model.d_hidden == 2040


def test_a_table_that_inherits_has_halves():
  config = registry.load(str(registry.experiments_folder() / 'ultra.py'))
  config.model.embedding_rank = 127
  from_config(config)
  config.optimizer.inheritance = 0.7
  wants = r'0 where rows of the token table have no halves \(127\)'
  with pytest.raises(ValueError, match=rf'config\.optimizer\.inheritance: got 0\.7, wants {wants}'):
    from_config(config)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'schedule': 'trapezoid', 'decay_share': 0.0}, r'optimizer\.decay_share: got 0\.0, wants more than 0, and at most 0\.99'),
    ({'schedule': 'trapezoid', 'decay_share': 0.995}, r'optimizer\.decay_share: got 0\.995, wants more than 0, and at most'),
    ({'muon.polynomial': 'polar_express', 'muon.newton_schulz_steps': 4}, r'newton_schulz_steps: got 4, wants 5, as polar'),
  ],
)
def test_optimizer_fields_must_fit_together(fields, message):
  config = default_config()
  config.optimizer.update_from_flattened_dict(fields)
  with pytest.raises(ValueError, match=message):
    from_config(config)


def test_stages_of_one_length_may_follow_one_another():
  config = registry.load(str(registry.experiments_folder() / 'ultra.py'))
  config.curriculum.stages[1].seq_len = 8
  assert from_config(config).curriculum.stages[1].seq_len == 8


def test_a_missing_field_is_named():
  config = default_config()
  del config['seed']
  with pytest.raises(ValueError, match=r'config\.seed: got None, wants a value: the field is missing'):
    from_config(config)


def test_differing_fields_names_both_values():
  a, b = to_dict(ExperimentSpec(name='x')), to_dict(ExperimentSpec(name='x', seed=3))
  b['model']['d_model'] = 512
  assert differing_fields(a, b) == ['seed: 0 -> 3', 'model.d_model: 768 -> 512']
  # What comes back from JSON has lists for tuples.
  assert differing_fields(json.loads(json.dumps(a)), a) == []


def test_a_field_that_is_newer_than_the_run_has_its_default():
  now = to_dict(ExperimentSpec(name='x'))
  before = json.loads(json.dumps(now))
  del before['training']['spike_deviations'], before['sample'], before['curriculum']['stages'][0]['window']
  before['data']['workers'] = 7
  assert deciding_differences(before, now) == []
  now['training']['spike_deviations'] = 5.0
  assert deciding_differences(before, now) == ['training.spike_deviations: 10.0 -> 5.0']


def test_variants_are_typed():
  assert parse_variant('gpu=h100,n=2.6e9,x=true', gpu='a', n=1, x=False) == {'gpu': 'h100', 'n': 2_600_000_000, 'x': True}
  assert parse_variant(None, gpu='a') == {'gpu': 'a'}
  for arg, message in [
    ('gpx=1', "variant 'gpx'.*did you mean 'gpu'"),
    ('n=1.5', "variant 'n'.*got '1.5', wants a whole number"),
    ('gpu', "variant 'gpu'.*got '', wants a text"),
    ('x=nan', "variant 'x'.*got 'nan', wants a number"),
  ]:
    with pytest.raises(ValueError, match=message):
      parse_variant(arg, gpu='a', n=1, x=1.0)


def test_a_short_run_takes_smaller_batches_and_the_rate_knows():
  whole, quarter = (from_config(registry.load(f'experiments/ultra.py:gpu=h200{more}')) for more in ('', ',batch=0.25'))
  for a, b in zip(whole.curriculum.stages, quarter.curriculum.stages, strict=True):
    assert dataclasses.replace(b, batch_size=4 * b.batch_size) == a


def test_every_experiment_is_valid_and_documented():
  entries = {entry.name: entry for entry in registry.entries()}
  assert entries['ultra'].parameters == 196_398_464
  assert entries['baseline_gpt2'].parameters == 124_439_808
  for saving in ('superbpe', 'fp8', 'curriculum', 'fused', 'batch'):
    assert f'baseline_{saving}' in entries
    assert f'ultra_no_{saving}' in entries
  for entry in entries.values():
    assert entry.summary.endswith('.')
    assert entry.hardware
    assert isinstance(registry.load(entry.path), ConfigDict)
    assert from_config(registry.load(entry.path)).name == entry.name


@pytest.mark.parametrize('saving', ['superbpe', 'fp8', 'curriculum', 'fused', 'batch'])
def test_a_saving_changes_its_own_fields_only(saving):
  """Alone over the baseline, or off from ultra: the fields that differ are that saving's."""
  fields = {
    'superbpe': ('model.vocab_size', 'data.tokenizer'),
    'fp8': ('precision.matmul',),
    'curriculum': ('curriculum.stages', 'model.max_positions'),
    'fused': ('training.execution',),
    'batch': ('curriculum.stages',),
  }[saving]
  for a, b in [('baseline_gpt2', f'baseline_{saving}'), ('ultra', f'ultra_no_{saving}')]:
    configs = [to_dict(from_config(registry.load(str(registry.experiments_folder() / f'{name}.py')))) for name in (a, b)]
    differing = [line for line in differing_fields(*configs) if not line.startswith('name:')]
    assert differing
    assert all(line.startswith(fields) for line in differing), differing
