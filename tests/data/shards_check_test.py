"""A file that was right is not read at every start, and one that changed is, however it changed."""

import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from tests.data.small_shards import make_shards
from yxanul.data import shards, shards_check
from yxanul.data.shards_check import STAMPS, Recheck

N_FILES = 8  # two shards of four arrays


@pytest.fixture
def folder(tmp_path):
  make_shards(tmp_path, [5, 6, 7], shard_tokens=7)
  return tmp_path / 'train'


@pytest.fixture
def read(monkeypatch):
  """The files that are read, by name; files need no time to settle."""
  names, sha256 = [], shards_check.sha256

  def counted(path):
    names.append(path.name)
    return sha256(path)

  monkeypatch.setattr(shards_check, 'sha256', counted)
  monkeypatch.setattr(shards_check, '_SETTLED_SECONDS', 0.0)
  return names


def flip(path):
  """Changes a bit, and lets a tick of the file system's clock pass before."""
  time.sleep(0.02)
  data = bytearray(path.read_bytes())
  data[-1] ^= 1
  path.write_bytes(data)


def restored(path, change):
  """The change, and the time of the last one put back behind it."""
  status = path.stat()
  change(path)
  os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replaced(path):
  """Another file with the time of the first."""
  other = path.with_suffix('.other')
  shutil.copy2(path, other)
  restored(other, flip)
  os.replace(other, path)


def test_what_was_right_passes_unread(folder, read):
  assert shards.open(folder, verify=True).unread == []
  assert len(read) == N_FILES
  found = shards.open(folder, verify=True)
  assert len(read) == N_FILES
  assert sorted(path.name for path, _ in found.unread) == sorted(read)


def time_put_back(path):
  restored(path, flip)


@pytest.mark.parametrize('change', [flip, time_put_back, replaced])
def test_what_changed_is_read_and_refused(folder, read, change):
  shards.open(folder, verify=True)
  change(folder / '00001.tokens.npy')
  for _ in range(2):
    with pytest.raises(ValueError, match=r'00001.tokens.npy: SHA-256 [0-9a-f]{64}, the manifest says [0-9a-f]{64}$'):
      shards.open(folder, verify=True)
  assert read[N_FILES:] == ['00001.tokens.npy'] * 2


def test_another_hash_in_the_manifest_is_not_what_the_stamp_is_for(folder, read):
  shards.open(folder, verify=True)
  manifest = json.loads((folder / 'manifest.json').read_text())
  manifest['shards'][0]['files']['bytes']['sha256'] = '0' * 64
  (folder / 'manifest.json').write_text(json.dumps(manifest))
  with pytest.raises(ValueError, match=r'00000.bytes.npy: SHA-256 [0-9a-f]{64}, the manifest says 0{64}$'):
    shards.open(folder, verify=True)


def test_a_file_that_has_just_changed_gets_no_stamp(folder, read, monkeypatch):
  monkeypatch.setattr(shards_check, '_SETTLED_SECONDS', 60.0)
  for _ in range(2):
    assert shards.open(folder, verify=True).unread == []
  assert len(read) == 2 * N_FILES


@pytest.mark.parametrize('text', ['', '[]', '{"00000.tokens.npy": 3}', '\udcff'], ids=repr)
def test_stamps_that_cannot_be_read_are_none(folder, read, text):
  shards.open(folder, verify=True)
  (folder / STAMPS).write_bytes(text.encode(errors='surrogateescape'))
  shards.open(folder, verify=True)
  assert len(read) == 2 * N_FILES
  assert len(shards.open(folder, verify=True).unread) == N_FILES


def test_where_no_stamp_can_be_written_all_is_read(folder, read):
  (folder / STAMPS).mkdir()
  for _ in range(2):
    assert shards.open(folder, verify=True).unread == []
  assert len(read) == 2 * N_FILES


def rechecked(folder, change):
  """A `Recheck` of the folder with `change` made behind it, and what it makes of ten batches, the first after all is read."""
  found = shards.open(folder, verify=True)
  assert len(found.unread) == N_FILES
  recheck = Recheck(found.unread)
  change(folder / '00001.tokens.npy')

  def batches():
    for thread in threading.enumerate():
      if thread.name == 'recheck':
        thread.join()
    yield from range(10)

  return recheck, recheck.behind(batches())


def unnoticed(path):
  """A flipped bit, as if nothing had happened to the file."""
  stamps = json.loads((path.parent / STAMPS).read_text())
  flip(path)
  stamps[path.name] = shards_check._stamp(path, stamps[path.name][0])
  (path.parent / STAMPS).write_text(json.dumps(stamps))


def test_what_a_disk_forgot_is_found_behind_the_training(folder, read):
  shards.open(folder, verify=True)
  unnoticed(folder / '00001.tokens.npy')
  recheck, steps = rechecked(folder, lambda path: None)
  for ask in (lambda: next(steps), recheck.judge):
    with pytest.raises(ValueError, match=r'00001.tokens.npy: SHA-256 .* nobody changed it, a failing disk'):
      ask()
  with pytest.raises(ValueError, match=r'00001.tokens.npy: SHA-256'):
    shards.open(folder, verify=True)
  assert list(Recheck([]).behind(range(3))) == [0, 1, 2]


def test_it_is_told_where_nothing_can_be_written_too(folder, read, monkeypatch):
  shards.open(folder, verify=True)
  unnoticed(folder / '00001.tokens.npy')

  def refuse(*_, **__):
    raise OSError(30, 'Read-only file system')

  monkeypatch.setattr(Path, 'unlink', refuse)
  with pytest.raises(ValueError, match='a failing disk'):
    next(rechecked(folder, lambda path: None)[1])


def test_what_was_edited_after_the_start_is_no_failing_disk(folder, read):
  shards.open(folder, verify=True)
  with pytest.raises(ValueError, match=r'00001.tokens.npy: SHA-256 .* it was changed after the start'):
    next(rechecked(folder, flip)[1])


def test_what_cannot_be_read_again_ends_nothing(folder, read):
  shards.open(folder, verify=True)
  assert list(rechecked(folder, lambda path: path.unlink())[1]) == list(range(10))
  assert len(read) == 2 * N_FILES
