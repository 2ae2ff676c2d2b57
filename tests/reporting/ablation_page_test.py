"""The tables of an ablation, as a reader sees them."""

import io

from rich.console import Console

from tests.study.ablation_test import BPB, TIMES, WHOLE
from tests.study.pairs_test import run
from yxanul.reporting import ablation_page
from yxanul.study import ablation


def test_a_factor_stands_beside_its_two_parts():
  """Four times the text a second, half of it wasted; the product of factors and what was not measured have no parts."""
  wasteful = {'baseline_fp8': {0: run([t / 2 for t in TIMES], BPB, tokens_per_second=400)}}
  runs = {name: seeds for name, seeds in (WHOLE | wasteful).items() if name != 'ultra_no_fp8'}
  result = ablation.result({16: runs}, 'ultra', 16) | {'parts': [], 'tuning': []}
  shown = Console(file=io.StringIO(), width=200)
  shown.print(*ablation_page.command_line_tables(result)[:2])
  lines = {line.split()[0]: line.split() for line in shown.file.getvalue().splitlines() if line.strip()}
  assert ' '.join(lines['saving']) == 'saving claimed alone text/s use of it in the stack text/s use of it'
  assert lines['fp8'][:8] == ['fp8', '2×', '2.00×', '4.00×', '0.50×', '–', '–', '–']
  assert lines['product'][3:5] == ['–', '–']
