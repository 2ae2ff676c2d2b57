"""Whatever is typed behind --config: a whole spec, or one line that says what is wrong."""

from unittest import mock

import pytest
from absl import flags
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict, config_flags

from tests.mutations import one_line
from yxanul.config import cli, registry
from yxanul.config.convert import from_config, to_config, to_dict


def flattened(config, prefix=''):
  if isinstance(config, ConfigDict):
    for name in config:
      yield from flattened(config[name], f'{prefix}.{name}' if prefix else name)
  elif isinstance(config, tuple) and config and isinstance(config[0], ConfigDict):
    for i, item in enumerate(config):
      yield from flattened(item, f'{prefix}[{i}]')
  else:
    yield prefix


FIELDS = sorted(flattened(registry.load(str(registry.experiments_folder() / 'quickstart.py'))))
NUMBERS = st.one_of(st.integers(-(2**70), 2**70), st.floats(), st.integers(-2, 600)).map(str)
TEXTS = st.one_of(
  st.text(max_size=12),
  st.sampled_from(('', 'true', 'None', '()', "('a',)", '(1, 2)', '[1', 'cosine', 'adamw', '*', '"')),
)
VALUE = st.one_of(
  *(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
  *(st.lists(st.integers()), st.dictionaries(st.text(), st.none())),
)
FIELD = st.one_of(st.sampled_from(FIELDS), st.text('abcdemn._[]0123456789\\/="\'', max_size=14))
EXPERIMENT = st.one_of(
  st.sampled_from(('quickstart.py', 'ultra.py', 'ultra.py:gpu=h100', 'baseline_gpt2.py')),
  st.text('abqultrgpu.py:=,0123456789', max_size=16).map('ultra.py:{}'.format),
  st.text(max_size=12),
)


def parse(argv):
  """What `--config` and its overrides come to, with flags of its own for each call."""
  values = flags.FlagValues()
  config = config_flags.DEFINE_config_file('config', lock_config=True, flag_values=values)
  with mock.patch.object(flags, 'FLAGS', values), mock.patch.object(cli, '_CONFIG', config):
    cli._parse(argv)
    return cli.spec()[1]


@settings(max_examples=400, deadline=None)
@given(EXPERIMENT, st.lists(st.tuples(FIELD, st.one_of(NUMBERS, TEXTS)), max_size=3))
def test_any_override_is_a_spec_or_one_line(experiment, overrides):
  argv = ['main', f'--config={registry.experiments_folder()}/{experiment}', *(f'--config.{f}={v}' for f, v in overrides)]
  spec = one_line(lambda: parse(argv), ValueError, flags.Error, OSError)
  if spec is None:
    return
  assert from_config(to_config(spec)) == spec
  fields = dict(overrides)
  for field in ('seed', 'model.n_layers', 'training.log_every_steps'):
    if field in fields:
      value = to_dict(spec)
      for name in field.split('.'):
        value = value[name]
      assert value == int(fields[field])


@pytest.mark.parametrize('name', ['quickstart.py', 'ultra.py:gpu=h100'])
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_value_of_any_type_is_a_spec_or_one_line(name, data):
  config = to_dict(from_config(registry.load(str(registry.experiments_folder() / name))))
  for field in data.draw(st.lists(st.sampled_from(FIELDS), max_size=3)):
    owner = config
    *path, last = [part for part in field.replace('[', '.').replace(']', '').split('.') if part]
    for part in path:
      owner = owner[int(part)] if part.isdigit() else owner[part]
    owner[last] = data.draw(VALUE)
  spec = one_line(lambda: from_config(config))
  assert spec is None or from_config(to_config(spec)) == spec
