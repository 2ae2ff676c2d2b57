"""Streaming from the hub, tested without one: `datasets` streams local files, and breaks off as a network does."""

import random

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from yxanul.config.spec import DataSpec
from yxanul.data import prepare, sources, sources_hub
from yxanul.data.prepare_select import silent

N = 1500
TEXTS = [f'Text {i} of many' for i in range(N)]
SCORES = [i % 7 * 0.75 for i in range(N)]


class Flaky:
  """A stream that raises after some rows; `failures` counts."""

  failures = 0

  def __init__(self, stream, rows_until_failure):
    self.stream, self.rows_until_failure = stream, rows_until_failure
    self.state_dict, self.load_state_dict = stream.state_dict, stream.load_state_dict

  def __iter__(self):
    for i, row in enumerate(self.stream):
      if i == self.rows_until_failure:
        Flaky.failures += 1
        raise ConnectionError('the hub hung up\nat once')
      yield row


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  folder = tmp_path_factory.mktemp('hub')
  for i in range(3):
    part = slice(i * 500, (i + 1) * 500)
    pyarrow.parquet.write_table(
      pyarrow.table({'text': TEXTS[part], 'score': SCORES[part], 'source': [f'dump{i}'] * 500}),
      folder / f'{i}.parquet',
      row_group_size=170,
    )
  return folder


@pytest.fixture
def hub(files, tmp_path, monkeypatch):
  """`hub(rows_until_failure)` makes the hub answer; the function says after how many rows each attempt breaks off."""
  data_files = sorted(map(str, files.glob('*.parquet')))

  def open_stream(dataset):
    stream = datasets.load_dataset(
      'parquet', data_files=data_files, split='train', streaming=True, cache_dir=str(tmp_path / 'cache')
    )
    return Flaky(stream, hub.rows_until_failure())

  def hub(rows_until_failure):
    hub.rows_until_failure = rows_until_failure
    return hub

  monkeypatch.setattr(sources_hub, 'open_stream', open_stream)
  monkeypatch.setattr(sources_hub, 'commit_of', lambda dataset: 'abc123')
  monkeypatch.setattr(sources_hub, '_LOOK_EVERY', 10)
  monkeypatch.setattr(sources_hub, 'PART_BYTES', 2000)
  hub.sleeps = []
  monkeypatch.setattr(sources_hub, '_sleep', hub.sleeps.append)
  return hub


def fetch(hub, folder, **fields):
  spec = DataSpec(source='owner/name', **fields)
  source = sources_hub.Fetched(folder, 'owner/name', spec, False).fetch(silent)
  return [d.text for d in sources.documents(source, spec)]


def test_a_stream_that_breaks_off_is_continued_where_it_stopped(hub, tmp_path):
  rng = random.Random(0)
  hub(lambda: rng.randint(0, 120))
  before = Flaky.failures
  assert fetch(hub, tmp_path / 'fetched') == TEXTS
  assert Flaky.failures - before == len(hub.sleeps) > 10
  assert hub.sleeps[0] == 1
  assert fetch(hub, tmp_path / 'fetched') == TEXTS  # nothing is opened again
  assert Flaky.failures - before == len(hub.sleeps)


def test_pauses_grow_until_it_gives_up_and_a_later_run_goes_on(hub, tmp_path):
  attempts = iter([700])
  hub(lambda: next(attempts, 0))
  with pytest.raises(ValueError, match=r"^config.data.source: 'owner/name': the stream broke off and 255 seconds") as error:
    fetch(hub, tmp_path / 'fetched')
  assert str(error.value).endswith('(ConnectionError: the hub hung up); the same command goes on from here')
  assert hub.sleeps == [1, 2, 4, 8, 16, 32, 64, 128]
  opened = []
  hub(lambda: opened.append(1) or 10**9)
  assert fetch(hub, tmp_path / 'fetched') == TEXTS
  assert len(opened) == 1
  with pytest.raises(ValueError, match=r"'owner/name' does not exist here, and the hub did not give it \(OSError: no such"):
    sources_hub.rows(lambda: (_ for _ in ()).throw(OSError('no such dataset')), None, "'owner/name'").__next__()


def test_a_process_that_dies_goes_on_behind_the_last_part(hub, tmp_path):
  rng = random.Random(3)
  deaths = 0

  class Death(BaseException):
    pass

  def progress(phase, done, total):
    if rng.random() < 0.05:
      raise Death

  hub(lambda: 10**9)
  spec = DataSpec(source='owner/name')
  while True:
    try:
      source = sources_hub.Fetched(tmp_path / 'fetched', 'owner/name', spec, False).fetch(progress)
      break
    except Death:
      deaths += 1
  assert deaths >= 3
  assert [d.text for d in sources.documents(source, spec)] == TEXTS


def test_prepares_a_hub_name_as_it_prepares_files(hub, files, tmp_path, make_spec):
  hub(lambda: 400)
  remote = prepare.prepare(make_spec('owner/name', min_score=3.5), tmp_path / 'remote')
  local = prepare.prepare(make_spec(files, min_score=3.5), tmp_path / 'local')
  assert remote.train.manifest['selection'] == local.train.manifest['selection']
  assert remote.train.manifest['selection']['score'] > 1000
  assert remote.train.manifest['shards'] == local.train.manifest['shards']
  assert remote.train.sources == local.train.sources == ('dump0', 'dump1', 'dump2')
  assert sorted(p.name for p in (tmp_path / 'remote').iterdir()) == ['prepare.json', 'tokenizer', 'train', 'validation']


def test_rows_that_cannot_be_read_stop_or_are_named(hub, tmp_path):
  hub(lambda: 10**9)
  with pytest.raises(ValueError, match=r"^owner/name, row 0: no column 'body' \(data.text_column\); it has 'text', 'score'"):
    fetch(hub, tmp_path / 'stop', text_column='body')
  fetched = sources_hub.Fetched(
    tmp_path / 'skip', 'owner/name', DataSpec(source='owner/name', text_column='body', on_error='skip'), False
  )
  assert fetched.fetch(silent).files == ()
  assert fetched.state['problems']['counts'] == {'row': N}


def test_other_filters_fetch_again(hub, tmp_path):
  hub(lambda: 10**9)
  assert len(fetch(hub, tmp_path / 'fetched', min_score=4.5)) == sum(s >= 4.5 for s in SCORES)
  assert fetch(hub, tmp_path / 'fetched') == TEXTS


@pytest.mark.parametrize(
  ('source', 'expected'),
  [
    ('a/b', ('a/b', None, None, 'train')),
    ('a/b:c-1@refs/pr/1#test', ('a/b', 'c-1', 'refs/pr/1', 'test')),
    ('a/b#validation', ('a/b', None, None, 'validation')),
  ],
)
def test_the_parts_of_a_hub_name(source, expected):
  assert sources.is_hub_name(source)
  assert sources_hub.parse(source) == sources_hub.Dataset(*expected)
