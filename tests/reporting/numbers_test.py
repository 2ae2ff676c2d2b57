"""Numbers as people read them."""

import pytest

from yxanul.reporting import numbers


@pytest.mark.parametrize(
  ('value', 'text'),
  [(None, '–'), (12, '12'), (4096, '4,096'), (65_536, '65.5k'), (999_600, '1M'), (2_610_000_000, '2.61B'), (3e15, '3.00e+15')],
)
def test_count(value, text):
  assert numbers.count(value) == text


@pytest.mark.parametrize(
  ('value', 'text'),
  [(None, '–'), (512, '512 B'), (999.6, '1 kB'), (55_555, '55.6 kB'), (79_201_942_784, '79.2 GB'), (2.5e15, '2.5e+03 TB')],
)
def test_byte_size(value, text):
  assert numbers.byte_size(value) == text


@pytest.mark.parametrize(
  ('value', 'text'),
  [
    (None, '–'),
    (float('inf'), '–'),
    (59.4, '59 s'),
    (59.6, '1:00 min'),
    (158, '2:38 min'),
    (3599.7, '1:00 h'),
    (324_000, '3.8 days'),
  ],
)
def test_duration(value, text):
  assert numbers.duration(value) == text


@pytest.mark.parametrize(
  ('value', 'text'), [(None, '–'), (6e-4, '6e-4'), (0.0012727, '1.27e-3'), (0.0, '0'), (float('nan'), 'nan'), (12.5, '1.25e1')]
)
def test_rate(value, text):
  assert numbers.rate(value) == text


@pytest.mark.parametrize(('share', 'text'), [(None, '–'), (0, '0 %'), (0.175, '17.5 %'), (0.1, '10 %'), (1, '100 %')])
def test_percent(share, text):
  assert numbers.percent(share) == text


@pytest.mark.parametrize(
  ('value', 'text'), [(None, '–'), (0.004, '$0.00'), (52.1, '$52.10'), (999.996, '$1,000'), (1234.5, '$1,234')]
)
def test_dollars(value, text):
  assert numbers.dollars(value) == text


def test_whole_percent_keeps_its_zeros():
  assert numbers.percent(0.9999, 0) == '100 %'


def test_decimals():
  assert [numbers.decimals(v, 2) for v in (None, 1.005, float('nan'))] == ['–', '1.00', 'nan']
