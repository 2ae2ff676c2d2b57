"""The command line of tools.evaluate: how much of a text is scored, and flags that would do nothing."""

import json

import pytest

from tests import tiny


def run(*arguments: str) -> tuple[int, str, str]:
  return tiny.finish(tiny.start('tools.evaluate', *arguments))


def test_all_of_a_source_is_scored_unless_said_otherwise(trained_run, tmp_path):
  path = tmp_path / 'a.jsonl'
  text = 'The value of the object is the name of the class. ' * 10
  path.write_text((json.dumps({'text': text}) + '\n') * 100)
  limit = json.loads((trained_run / 'config.json').read_text())['evaluation']['max_tokens']
  status, output, errors = run(f'--model={trained_run}', f'--source={path}', '--json=-')
  assert status == 0, errors
  whole = json.loads(output)[-1]
  assert whole['bytes'] == 100 * len(text)
  assert whole['tokens'] > limit
  status, output, errors = run(f'--model={trained_run}', f'--source={path}', '--json=-', '--max_tokens=1000')
  assert status == 0, errors
  assert json.loads(output)[-1]['tokens'] <= 1000


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--limit=3'], '--limit: means nothing without --tasks'),
    (['--shots=0'], '--shots: means nothing without --tasks'),
    (['--tasks=a', '--stride=3'], '--stride: means nothing with --tasks'),
    (['--tasks=a', '--source=b'], '--source: means nothing with --tasks'),
  ],
)
def test_flags_that_would_do_nothing_are_refused(arguments, message):
  assert run('--model=x', *arguments) == (2, '', f'error: {message}\n')
