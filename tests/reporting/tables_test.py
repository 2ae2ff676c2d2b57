"""Tables: no figure is ever cut, whatever the width, and the sums are the sums."""

import io

import pytest
from rich.console import Console
from rich.text import Text

from yxanul.reporting import tables

EXPERIMENTS = [
  {'name': 'quickstart', 'summary': 'Three minutes, [bold]a toy[/bold]', 'parameters': 1_300_000, 'tokens': 2_000_000}
  | {'hardware': '2 CPU cores'},
  {'name': 'ultra', 'summary': 'The mission. ' * 12, 'parameters': 196_398_464, 'tokens': 2_610_000_000, 'hardware': 'one GPU'},
]
STAGES = [
  {'stage': i + 1, 'seq_len': 8 << i, 'batch_size': 8192 >> i, 'tokens_per_step': 131_072, 'steps': 10_000 + i}
  | {'tokens': 1_310_720_000 + i, 'lr_scale': 0.35, 'lr': 2.15e-4, 'grad_clip': 0.5, 'share_start': 0.175}
  | {'parts': 4, 'memory_bytes': 79_201_942_784, 'n_layers': 28}
  for i in range(10)
]
GROWING = [row | {'n_layers': 10 if row['stage'] < 10 else 28} for row in STAGES]
PARAMETERS = [
  {'name': 'blocks.attention_out.weight', 'shape': (28, 768, 768), 'parameters': 16_515_072, 'optimizer': 'adamw'}
  | {'weight_decay': 0.1, 'lr_multiplier': 1.0},
  {
    'name': 'final_norm.weight',
    'shape': (768,),
    'parameters': 768,
    'optimizer': 'adamw',
    'weight_decay': 0.0,
    'lr_multiplier': 0.5,
  },
]


def printed(table, width: int | None = None) -> str:
  """What a pipe receives, or a terminal of that width."""
  console = Console(file=io.StringIO(), force_terminal=width is not None, width=width)
  tables.print_table(table, console)
  text = Text.from_ansi(console.file.getvalue()).plain
  assert text.endswith('\n\n')  # so that two tables do not run together
  return text.removesuffix('\n')


def test_a_pipe_gets_each_row_on_one_line_whole():
  lines = printed(tables.registry_table(EXPERIMENTS)).splitlines()
  assert len(lines) == 2 + len(EXPERIMENTS)
  assert lines[3].split('one GPU')[1].strip() == EXPERIMENTS[1]['summary'].strip()
  assert '[bold]a toy[/bold]' in lines[2]
  assert '196M' in lines[3]
  assert '2.61B' in lines[3]


@pytest.mark.parametrize('width', [30, 60, 80, 200])
def test_no_figure_is_cut_on_a_terminal(width):
  """Where a row does not fit it goes on below, its stage again before it."""
  lines = printed(tables.stage_table(STAGES), width).splitlines()
  assert max(map(len, lines)) <= width
  assert lines.count('Curriculum'.ljust(len(lines[0]))) == 1
  assert sum(line.strip() == 'continued' for line in lines) == {30: 3, 60: 1}.get(width, 0)
  for i, row in enumerate(STAGES):
    parts = [line.split() for line in lines if line.strip().startswith(f'{row["stage"]} ')]
    assert all(part[0] == str(i + 1) for part in parts)
    assert [str(i + 1), *(figure for part in parts for figure in part[1:])] == [
      str(i + 1),
      f'{8 << i:,}',
      f'{8192 >> i:,}',
      '131,072',
      f'{10_000 + i:,}',
      '1.31B',
      '17.5',
      '%',
      '0.35',
      '2.15e-4',
      '0.5',
      '4',
      '79.2',
      'GB',
    ]


def test_blocks_are_shown_where_their_number_changes():
  assert 'blocks' not in printed(tables.stage_table(STAGES))
  lines = printed(tables.stage_table(GROWING)).splitlines()
  assert lines[2].split()[:3] == ['stage', 'length', 'blocks']
  assert [line.split()[2] for line in lines[4:14]] == ['10'] * 9 + ['28']


def test_the_stage_table_fits_eighty_columns_and_sums_up():
  lines = printed(tables.stage_table(STAGES), 80).splitlines()
  assert max(len(line.rstrip()) for line in lines) <= 80
  assert lines[-1].split()[-3:] == ['all', '100,045', '13.1B']


def test_the_registry_wraps_prose_to_the_terminal_but_no_figure():
  text = printed(tables.registry_table(EXPERIMENTS), 80)
  assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
  narrow = printed(tables.registry_table(EXPERIMENTS), 30)
  for word in ('quickstart', 'ultra', '196M', '2.61B', '2 CPU cores'):
    assert word in narrow


def test_parameters_are_summed_exactly():
  lines = printed(tables.parameter_table(PARAMETERS)).splitlines()
  assert '28 × 768 × 768' in lines[-4]
  assert lines[-1].split() == ['all', '16,515,840']
