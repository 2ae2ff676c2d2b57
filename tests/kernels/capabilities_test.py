"""Each card's engines, without the card."""

import dataclasses
import importlib.metadata
import importlib.util
import itertools
import os
import sys
import types
from pathlib import Path

import pytest

from yxanul.config.model_spec import ATTENTION_ENGINES, VOCAB_LOSS_ENGINES, PrecisionSpec
from yxanul.kernels import capabilities
from yxanul.kernels.capabilities import (
  Capabilities,
  choose_engines,
  detect,
)

ALL = (('torch', '2.11.0'), ('transformer_engine', '2.20.2'), ('triton', '3.6.0'), ('flash_attn', '2.8.3'))
ABSENT = tuple((name, 'ModuleNotFoundError: no such module') for name in ('transformer_engine', 'triton', 'flash_attn'))
CARDS = {75: 'T4', 80: 'A100', 89: 'RTX 4090', 90: 'H200', 100: 'B200', 120: 'RTX 5090'}
CPU = Capabilities('cpu', 'CPU', versions=ALL[:1], missing=ABSENT)


def card(sm: int, libraries: bool = True) -> Capabilities:
  return Capabilities(
    device='cuda',
    name=CARDS[sm],
    compute_capability=(sm // 10, sm % 10),
    memory_bytes=24 * 2**30,
    versions=ALL if libraries else ALL[:1],
    missing=() if libraries else ABSENT,
  )


@pytest.mark.parametrize(
  ('sm', 'libraries', 'linear', 'attention', 'vocab_loss'),
  [
    (75, True, 'fp32', 'sdpa', 'chunked'),
    (80, True, 'bf16', 'flash', 'triton'),
    (80, False, 'bf16', 'flash', 'chunked'),
    (89, True, 'torch', 'flash', 'triton'),
    (89, False, 'torch', 'flash', 'chunked'),
    (90, True, 'te', 'cudnn', 'triton'),
    (90, False, 'torch', 'cudnn', 'chunked'),
    (100, True, 'te', 'cudnn', 'triton'),
    (100, False, 'torch', 'cudnn', 'chunked'),
    (120, True, 'te', 'cudnn', 'triton'),
    (120, False, 'torch', 'cudnn', 'chunked'),
  ],
)
def test_what_ultra_gets_on_each_card(sm, libraries, linear, attention, vocab_loss):
  engines = choose_engines(card(sm, libraries), PrecisionSpec())
  assert (engines.linear, engines.attention, engines.vocab_loss) == (linear, attention, vocab_loss)


def test_a_cpu_gets_fp32_and_says_why_and_the_reference_only_by_name():
  engines = choose_engines(CPU, PrecisionSpec())
  assert (engines.linear, engines.attention, engines.vocab_loss) == ('fp32', 'sdpa', 'chunked')
  assert len(engines.notes) == 1
  assert 'no GPU' in engines.notes[0]
  assert 'reference' in engines.notes[0]
  assert choose_engines(CPU, PrecisionSpec(fp8_engine='reference')).linear == 'reference'
  assert choose_engines(CPU, PrecisionSpec(fp8_engine='reference')).notes == ()
  assert choose_engines(CPU, PrecisionSpec(matmul='bf16')).linear == 'bf16'


@pytest.mark.parametrize(
  ('capabilities', 'precision', 'word'),
  [
    (card(80), PrecisionSpec(), 'A100 (sm_80) has no FP8'),
    (card(80), PrecisionSpec(fp8_engine='te'), 'A100 (sm_80) has no FP8'),
    (card(75), PrecisionSpec(matmul='bf16'), 'T4 (sm_75) has no BF16'),
    (card(90, libraries=False), PrecisionSpec(), 'transformer_engine does not load (ModuleNotFoundError: no such module)'),
    (card(89, libraries=False), PrecisionSpec(fp8_engine='te'), 'transformer_engine does not load'),
    (card(90, libraries=False), PrecisionSpec(fp8_engine='torch', attention_engine='flash_attn'), 'flash_attn does not load'),
    (card(90, libraries=False), PrecisionSpec(fp8_engine='torch', vocab_loss_engine='triton'), 'triton does not load'),
    (card(90), PrecisionSpec(matmul='fp32', attention_engine='cudnn'), 'activations are fp32'),
    (CPU, PrecisionSpec(matmul='fp32', vocab_loss_engine='triton'), 'no GPU'),
  ],
)
def test_a_wish_that_cannot_be_met_is_one_line(capabilities, precision, word):
  notes = choose_engines(capabilities, precision).notes
  assert sum(word in note for note in notes) == 1
  assert not any('\n' in note for note in notes)


def test_a_wish_that_can_be_met_is_met():
  precision = PrecisionSpec(fp8_engine='torch', attention_engine='sdpa', vocab_loss_engine='chunked')
  engines = choose_engines(card(90), precision)
  assert (engines.linear, engines.attention, engines.vocab_loss, engines.notes) == ('torch', 'sdpa', 'chunked', ())
  assert choose_engines(card(89), PrecisionSpec(fp8_engine='te')).linear == 'te'
  assert choose_engines(card(90), PrecisionSpec(vocab_loss_engine='reference')).vocab_loss == 'reference'


def test_a_cudnn_of_another_version_is_named():
  found = dataclasses.replace(card(90), missing=(('cudnn', 'cuDNN version incompatibility: built for 9.19, found 9.14'),))
  engines = choose_engines(found, PrecisionSpec())
  assert engines.attention == 'cudnn'
  assert 'cuDNN that torch was not built for (cuDNN version incompatibility: built for 9.19' in engines.notes[0]


def test_every_wish_on_every_device_gives_an_engine_that_can_run_there():
  devices = [CPU, *(card(sm, libraries) for sm in CARDS for libraries in (True, False))]
  wishes = itertools.product(
    ('fp8', 'bf16', 'fp32'), ('auto', 'te', 'torch', 'reference'), ATTENTION_ENGINES, VOCAB_LOSS_ENGINES
  )
  for matmul, fp8_engine, attention, vocab_loss in wishes:
    precision = PrecisionSpec(matmul=matmul, fp8_engine=fp8_engine, attention_engine=attention, vocab_loss_engine=vocab_loss)
    for device in devices:
      engines = choose_engines(device, precision)
      assert engines.linear in ('te', 'torch', 'reference', 'bf16', 'fp32')
      assert engines.linear != 'te' or (device.has('transformer_engine') and device.compute_capability >= (8, 9))
      assert engines.linear != 'torch' or device.compute_capability >= (8, 9)
      assert engines.attention != 'flash_attn' or device.has('flash_attn')
      assert engines.attention != 'flash' or device.compute_capability >= (8, 0)
      assert engines.attention != 'cudnn' or device.compute_capability >= (8, 0)
      assert engines.vocab_loss != 'triton' or device.has('triton')
      assert engines == choose_engines(dataclasses.replace(device), precision)


def test_the_triton_loss_takes_narrow_heads_only():
  assert choose_engines(card(90), PrecisionSpec(), head_width=768).vocab_loss == 'chunked'
  assert choose_engines(card(90), PrecisionSpec(), head_width=64).vocab_loss == 'triton'
  (note,) = choose_engines(card(90), PrecisionSpec(vocab_loss_engine='triton'), head_width=768).notes
  assert 'got 768' in note


@pytest.mark.parametrize(('field', 'hint'), [('attention_engine', 'cudnn'), ('vocab_loss_engine', 'triton')])
def test_an_unknown_engine_is_refused_with_a_hint(field, hint):
  with pytest.raises(ValueError, match=f'did you mean {hint!r}'):
    PrecisionSpec(**{field: hint + 'n'})


def test_detect_describes_this_machine():
  capabilities = detect()
  assert capabilities.has('torch')
  told = {name for name, _ in (*capabilities.versions, *capabilities.missing)}
  assert told - {'cuda', 'cudnn'} == {name for name, _ in ALL}
  choose_engines(capabilities, PrecisionSpec())


def test_the_cudnn_that_came_with_torch_is_loaded_whole_unless_somebody_named_another(monkeypatch, tmp_path):
  names = ['libcudnn.so.9', 'libcudnn_graph.so.9', 'libcudnn_heuristic.so.9']
  (tmp_path / 'lib').mkdir()
  for name in names:
    (tmp_path / 'lib' / name).touch()
  requires, loaded = ['filelock', "nvidia-cudnn-cu13==9.19.0.56; platform_system == 'Linux'"], []
  monkeypatch.setattr(importlib.metadata, 'requires', {'torch': requires}.get)
  found = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)])
  monkeypatch.setattr(importlib.util, 'find_spec', {'nvidia': found, 'nvidia.cudnn': found}.get)
  monkeypatch.setattr(capabilities.ctypes, 'CDLL', lambda path, mode: loaded.append(Path(path).name))
  monkeypatch.setenv('CUDNN_HOME', '/own')
  capabilities._share_cudnn()
  assert (os.environ['CUDNN_HOME'], loaded) == ('/own', [])
  monkeypatch.delenv('CUDNN_HOME')
  capabilities._share_cudnn()
  assert (os.environ['CUDNN_HOME'], loaded) == (str(tmp_path), names)
  monkeypatch.delenv('CUDNN_HOME')
  requires.pop()  # a torch that runs on the system's, beside another's copy
  capabilities._share_cudnn()
  assert 'CUDNN_HOME' not in os.environ


def install(folder, module, source='', version=None):
  """A package of one file, with what pip would leave beside it."""
  path = folder / f'{module.replace(".", "/")}.py'
  path.parent.mkdir(parents=True, exist_ok=True)
  for package in path.relative_to(folder).parents[:-1]:
    (folder / package / '__init__.py').touch()
  path.write_text(source)
  if version:
    top = module.partition('.')[0]
    info = folder / f'stands_in_for_{top}-{version}.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: stands-in-for-{top}\nVersion: {version}\n')
    (info / 'top_level.txt').write_text(f'{top}\n')


@pytest.mark.parametrize(
  ('module', 'version'),
  [('flash_attn_interface', '3.0.0'), ('flash_attn.cute', '4.0.0'), ('flash_attn', '2.8.3'), ('flash_attn_interface', None)],
)
def test_flash_attn_counts_under_each_of_its_names(module, version, tmp_path, monkeypatch):
  install(tmp_path, module, version=version)
  monkeypatch.syspath_prepend(tmp_path)
  for name in capabilities._LIBRARIES['flash_attn']:
    monkeypatch.delitem(sys.modules, name, raising=False)
  assert capabilities._load(capabilities._LIBRARIES['flash_attn']) == (version or 'unknown', '')
  for name in capabilities._LIBRARIES['flash_attn']:
    sys.modules.pop(name, None)


@pytest.mark.parametrize(
  ('source', 'why'),
  [
    ("raise ImportError('libcudnn.so.9: undefined symbol: x\\nand more')", 'ImportError: libcudnn.so.9: undefined symbol: x'),
    ('raise SystemError', 'SystemError'),
    ('import nothing_of_this_name', "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
  ],
)
def test_what_does_not_load_is_missing_and_says_why(source, why, tmp_path, monkeypatch):
  install(tmp_path, 'stands_in.engine', source, '1.0')
  monkeypatch.syspath_prepend(tmp_path)
  assert capabilities._load(('stands_in.engine',)) == ('', why)
  sys.modules.pop('stands_in', None)
