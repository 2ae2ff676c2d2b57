"""README's main job, whole: what it promises of the result."""

import json
import re
import resource

from tests import tiny
from tests.samples import copied_share, known_share
from yxanul.data import python_docs
from yxanul.inference.generate import Sampling, complete, streams
from yxanul.inference.load import load


def test_quickstart_learns_english_and_says_that_it_is_a_toy(tmp_path):
  workdir = tmp_path / 'run'
  status, output, errors = tiny.finish(
    tiny.start_afresh('main', '--config=experiments/quickstart.py', f'--workdir={workdir}'), timeout=900
  )
  assert status == 0, errors
  assert 'This is a toy' in output
  result = json.loads((workdir / 'result.json').read_text())
  assert result['val_bpb'] < result['xz_bpb']
  assert result['stages'] == 10
  # Kilobytes, of the largest process that this one has waited for.
  assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 2e6

  documents = python_docs.read()
  training = '\n'.join(text for _, text, held_out in documents if not held_out)
  samples = (workdir / 'samples.txt').read_text()
  assert known_share(samples, training) >= 0.9
  assert copied_share(samples, training) <= 0.5
  assert result['val_bytes'] == sum(len(text.encode()) for _, text, held_out in documents if held_out)

  # README's example of a prompt that ends inside the superword " can be".
  model = load(workdir)
  assert b' can be' in model.tokenizer.entries
  (more,) = complete(model, ['The object can b'], Sampling(tokens=3, temperature=0.0), streams(0, 1))
  assert re.match(r'e\b', more)  # and not 'bec', as the prompt's tokens go on


def test_the_measures_of_a_sample_measure():
  training = 'the quick brown fox jumps over the lazy dog and runs far away'
  assert known_share('the quick red fox', training) == 0.75
  assert copied_share('the quick brown fox jumps over the lazy cat sat', training) == 0.8
  assert copied_share('the quick brown cat jumps over the lazy dog', training) == 0.0
