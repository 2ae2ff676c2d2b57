"""The live display on a forced terminal, and plain lines elsewhere."""

import io

import pytest
from rich.console import Console

from yxanul.reporting.display import Display

STAGES = [{'stage': i + 1, 'seq_len': 8 << i, 'batch_size': 64, 'lr': 1e-3} for i in range(3)]


def metrics(step: int, stage: int, **changes):
  line = {'step': step, 'stage': stage, 'seq_len': 8, 'tokens': step * 1000, 'bytes': step * 4000, 'loss': 5.25}
  line |= {'bpb_train': 2.125, 'lr': 6e-4, 'grad_norm': 0.5, 'tokens_per_second': 12_345.0, 'bytes_per_second': 55_555.0}
  line |= {'mfu': None, 'seconds': step * 0.5, 'seconds_training': step * 0.4, 'skipped_steps': 0}
  return line | changes


EVALUATION = {'step': 20, 'stage': 2, 'tokens': 20_000, 'seconds': 10.0, 'seconds_training': 8.0, 'eval_seq_len': 64}
EVALUATION |= {'val_bpb': 2.34567, 'val_loss': 5.0}


def test_plain_lines_are_ascii_and_say_everything():
  lines = []
  console = Console(file=io.StringIO(), force_terminal=False)
  with Display(STAGES, 100_000, log=lines.append, console=console) as display:
    display.message('this is a [bold]toy[/bold]')
    display.update(metrics(10, 1))
    display.update(metrics(20, 1, mfu=0.251, skipped_steps=2))
    display.evaluation(EVALUATION)
    display.update(metrics(30, 2))
  assert console.file.getvalue() == ''
  assert lines[0] == 'this is a [bold]toy[/bold]'
  assert lines[1] == 'stage 1 of 3: length 8, batch 64, peak learning rate 1e-3'
  figures = ('loss 5.2500', 'bpb 2.1250', 'tokens/s 12.3k', 'text/s 55.6 kB', 'lr 6e-4', 'gradient 0.5', '7 s left')
  assert lines[2].split('  ') == ['step 10', 'stage 1/3', '10k tokens (10 %)', *figures]
  assert 'mfu 25.1 %' in lines[3]
  assert 'skipped 2' in lines[3]
  assert lines[4] == 'held out: 2.3457 bpb after 20k tokens (stage 2, step 20, 10 s)'
  assert lines[5].startswith('stage 2 of 3: length 16')
  assert all(line.isascii() for line in lines)


def test_a_stage_tells_its_blocks_where_their_number_changes():
  lines = []
  rows = [row | {'n_layers': n} for row, n in zip(STAGES, (10, 10, 28), strict=True)]
  with Display(rows, 100_000, log=lines.append, console=Console(file=io.StringIO(), force_terminal=False)) as display:
    display.update(metrics(10, 1))
  assert lines[0] == 'stage 1 of 3: length 8, batch 64, 10 blocks, peak learning rate 1e-3'


def test_plain_lines_go_to_the_consoles_file_by_default():
  console = Console(file=io.StringIO(), force_terminal=False, width=20)
  with Display(STAGES, 100_000, console=console) as display:
    display.update(metrics(10, 1))
  assert len(console.file.getvalue().splitlines()) == 2  # not wrapped to the console's width


def test_a_dumb_terminal_gets_plain_lines():
  console = Console(file=io.StringIO(), force_terminal=True, _environ={'TERM': 'dumb'})
  with Display(STAGES, 100_000, console=console) as display:
    display.update(metrics(10, 1))
  assert '\x1b' not in console.file.getvalue()


def screen(width: int, steps: list[dict], evaluation: dict | None = None) -> str:
  """What a terminal of that width has received, escape sequences and all."""
  console = Console(
    file=io.StringIO(), force_terminal=True, width=width, height=30, _environ={'TERM': 'xterm'}, color_system=None
  )
  lines = []
  with Display(STAGES, 100_000, log=lines.append, console=console) as display:
    display.message('this is a [bold]toy[/bold]')
    for line in steps:
      display.update(line)
    if evaluation:
      display.evaluation(evaluation)
  assert lines == []
  return console.file.getvalue()


def test_the_terminal_shows_a_bar_the_figures_and_the_lines_that_stay():
  text = screen(140, [metrics(10, 1), metrics(20, 2), metrics(30, 2)], EVALUATION)
  last = text[text.rindex('stage 2/3') :]
  assert 'this is a [bold]toy[/bold]' in text
  assert 'stage 2 of 3: length 16, batch 64' in text
  assert 'held out: 2.3457 bpb' in text
  for part in ('length 16', '━', '30 %', '35 s left', 'loss 5.2500', 'bpb 2.1250', 'held out 2.3457', '12.3k', '55.6 kB'):
    assert part in last


OUTLOOK = {
  'evaluation_tokens': 40_000,
  'checkpoint_seconds': 125.0,
  'gpu_memory_bytes': 92.1e9,
  'gpu_memory_total_bytes': 141e9,
}


def test_money_gpu_and_what_comes_next_stand_under_the_figures():
  console = Console(
    file=io.StringIO(), force_terminal=True, width=140, height=30, _environ={'TERM': 'xterm'}, color_system=None
  )
  with Display(STAGES, 100_000, price_per_hour=3600.0, console=console) as display:
    assert display.is_live
    display.update(metrics(20, 1), OUTLOOK | {'gpu_busy': 0.993})
    display.update(metrics(30, 1), OUTLOOK | {'gpu_busy': 0.993})
    display.evaluation(EVALUATION)
    text = console.file.getvalue()
    display.update(metrics(100, 1), OUTLOOK | {'gpu_busy': 0.993})
  over = console.file.getvalue()
  assert 'GPU 99 %' in over[over.rindex('stage 1/3') :]
  assert 'next evaluation' not in over[over.rindex('stage 1/3') :]
  last = text[text.rindex('stage 1/3') :]
  # 10,000 tokens in 5 s: 35 s to the end of 100,000, 5 s to the evaluation; a dollar a second.
  for part in ('memory 92.1 GB of 141 GB', 'GPU 99 %', 'spent $15.00 of about $50.00', 'next evaluation in 5 s', '2:05 min'):
    assert part in last
  assert 'held out 2.3457' in last  # as soon as it is known


def test_plain_lines_tell_money_and_gpu_too_and_only_what_is_known():
  lines = []
  with Display(STAGES, 100_000, price_per_hour=2.5, log=lines.append, console=Console(file=io.StringIO())) as display:
    assert not display.is_live
    display.update(metrics(10, 1, seconds=1440.0), OUTLOOK | {'gpu_busy': None})
    display.update(metrics(20, 1, seconds=1440.0))
  assert 'memory 92.1 GB of 141 GB  spent $1.00 of about $1.01' in lines[1]
  assert 'GPU' not in lines[1]
  assert 'memory' not in lines[2]


@pytest.mark.parametrize('width', [40, 80])
def test_a_narrow_terminal_breaks_no_figure(width):
  text = screen(width, [metrics(30, 2)], EVALUATION)
  for part in ('loss 5.2500', 'tokens/s 12.3k', 'text/s 55.6 kB', 'gradient 0.5'):
    assert part in text[text.rindex('stage 2/3') :]


def test_time_left_weighs_later_stages_by_their_work():
  work = ((10_000, 1.0), (20_000, 1.5), (30_000, 4.0))
  rows = [row | {'tokens': n, 'flops_per_token': flops} for row, (n, flops) in zip(STAGES, work, strict=True)]
  display = Display(rows, 60_000, log=lambda line: None, console=Console(file=io.StringIO(), force_terminal=False))
  display.update(metrics(2, 1))
  display.update(metrics(4, 1))  # 2,000 tokens in a second
  assert display.seconds_left() == pytest.approx((6_000 + 20_000 * 1.5 + 30_000 * 4.0) / 2_000)
  display.update(metrics(20, 2))
  display.update(metrics(22, 2))
  assert display.seconds_left() == pytest.approx((8_000 + 30_000 * 4.0 / 1.5) / 2_000)
  display.update(metrics(60, 3))
  assert display.seconds_left() == 0


def test_time_left_follows_the_clock_of_the_current_stage_and_of_a_resumed_run():
  display = Display(STAGES, 100_000, log=lambda line: None, console=Console(file=io.StringIO(), force_terminal=False))
  assert display.seconds_left() is None
  display.update(metrics(50, 1, seconds=1000.0))  # resumed: the first line says little about the pace
  assert display.seconds_left() == pytest.approx(50_000 / 12_345)
  display.update(metrics(60, 1, seconds=1020.0))
  assert display.seconds_left() == pytest.approx(40_000 * 20 / 10_000)
  display.update(metrics(70, 2, seconds=1030.0))
  display.update(metrics(80, 2, seconds=1031.0))  # a faster stage
  assert display.seconds_left() == pytest.approx(2.0)
  display.update(metrics(101, 3))
  assert display.seconds_left() == 0
