"""The tokenizer's command line: from a folder of text to a tokenizer and its table, and mistakes in one line."""

import functools
import json
import re
from pathlib import Path

import pytest

from tests import tiny
from yxanul.data import python_docs, tokenizer

run = functools.partial(tiny.tool, 'tokenizer', '--config=experiments/quickstart.py')


@pytest.fixture(scope='module')
def corpus(tmp_path_factory) -> Path:
  folder = tmp_path_factory.mktemp('corpus')
  paragraphs = list(dict.fromkeys(p for _, text, _ in python_docs.read() for p in python_docs.paragraphs(text)))
  for name, part in (('long', paragraphs[::2]), ('short', paragraphs[1::2])):
    (folder / f'{name}.jsonl').write_text(''.join(json.dumps({'text': text, 'source': name}) + '\n' for text in part))
  return folder


def test_trains_compares_and_is_used_again(corpus, tmp_path):
  sizes = ('--config.data.validation_fraction=0.2', '--config.data.tokenizer.vocab_size=1000', '--config.model.vocab_size=1001')
  common = (f'--config.data.source={corpus}', '--config.data.tokenizer.transition_size=600', *sizes)
  first = run(*common, f'--output={tmp_path / "a"}')
  assert first.returncode == 0, first.stderr
  plain = ('--config.data.tokenizer.transition_size=1000', f'--compare=mine={tmp_path / "a"},again={tmp_path / "a"}')
  second = run(*common, f'--output={tmp_path / "b"}', *plain)
  assert second.returncode == 0, second.stderr
  assert tokenizer.load(tmp_path / 'a').vocab_size == tokenizer.load(tmp_path / 'b').vocab_size == 1001
  assert {path.name.split('-')[0] for path in (tmp_path / 'b').iterdir()} == {
    'comparison.json', 'tokenizer.json', 'tokenizer_config.json', 'trained',
  }  # fmt: skip

  counts = json.loads((tmp_path / 'b' / 'comparison.json').read_text())['counts']
  assert set(counts) == {'bytes', 'characters', 'BPE', 'mine', 'again'}
  assert set(counts['bytes']) == {'long', 'short'}
  assert counts['mine'] == counts['again']
  total = {name: sum(by_source.values()) for name, by_source in counts.items()}
  assert total['mine'] < total['BPE'] < total['characters'] < total['bytes']
  shown = re.search(r'all .*?([\d.]+) +([\d.]+) +([\d.]+)', second.stdout)
  assert [float(x) for x in shown.groups()] == pytest.approx(
    [total['bytes'] / total[n] for n in ('BPE', 'mine', 'again')], abs=1e-3
  )
  assert f'{total["mine"]:,}' in second.stdout

  rerun = run(*common, f'--output={tmp_path / "a"}')
  assert rerun.returncode == 0, rerun.stderr
  assert json.loads((tmp_path / 'a' / 'comparison.json').read_text())['counts']['SuperBPE'] == counts['mine']


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ((), '--output: missing'),
    (('--output=OUT', '--config.data.source=nowhere'), "config.data.source: 'nowhere' does not exist"),
    (('--output=OUT', '--compare=gpt2'), "--compare: got 'gpt2', wants NAME=PATH"),
    (('--output=OUT', '--config.data.tokenizer.vocab_sise=4'), "did you mean 'vocab_size'"),
  ],
)
def test_mistakes_are_one_line_and_write_nothing(tmp_path, arguments, message):
  result = run(*(argument.replace('OUT', str(tmp_path / 'out')) for argument in arguments))
  assert result.returncode == 2
  assert message in result.stderr
  assert len(result.stderr.splitlines()) == 1
  assert not (tmp_path / 'out').exists()


def test_too_many_entries_for_the_text(tmp_path):
  sizes = ('--config.data.tokenizer.vocab_size=300000', '--config.model.vocab_size=300001')
  result = run(f'--output={tmp_path}', *sizes)
  assert result.returncode == 2
  assert re.fullmatch(r'error: config.data.tokenizer.vocab_size: got 300000, wants at most the \d+ entries .*\n', result.stderr)
