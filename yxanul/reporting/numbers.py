"""How numbers are written for people: short, with their unit."""

import math


def count(value: float | None) -> str:
  """12, 4,096, 65.5k, 2.61M, 197M, 4.1B: three digits from ten thousand on; '–' for None."""
  if value is None:
    return '–'
  if not math.isfinite(value):
    return str(value)
  if abs(value) < 10_000:
    return f'{value:,.0f}'
  for unit, size in (('k', 1e3), ('M', 1e6), ('B', 1e9), ('T', 1e12)):
    scaled = value / size
    if abs(scaled) < 999.5:
      return f'{scaled:.3g}{unit}'
  return f'{value:.2e}'


_BYTE_UNITS = (('B', 1.0), ('kB', 1e3), ('MB', 1e6), ('GB', 1e9), ('TB', 1e12))


def byte_unit(value: float) -> tuple[str, float]:
  """The unit in which a size has one to three digits before the point, and its bytes."""
  return next((unit, size) for unit, size in _BYTE_UNITS if abs(value) < 999.5 * size or unit == 'TB')


def byte_size(value: float | None) -> str:
  """512 B, 65.5 kB, 2.61 GB: decimal units, as disks and the mission count; '–' for None."""
  if value is None:
    return '–'
  if not math.isfinite(value):
    return f'{value} B'
  unit, size = byte_unit(value)
  return f'{value / size:.3g} {unit}'


def duration(seconds: float | None) -> str:
  """8 s, 1:05 min, 2:03 h (hours and minutes), 3.2 days; '–' for None."""
  if seconds is None or not math.isfinite(seconds):
    return '–'
  whole = round(seconds)
  if whole < 60:
    return f'{whole} s'
  if whole < 3600:
    return f'{whole // 60}:{whole % 60:02d} min'
  if whole < 48 * 3600:
    minutes = round(seconds / 60)
    return f'{minutes // 60}:{minutes % 60:02d} h'
  return f'{seconds / 86400:.1f} days'


def dollars(value: float | None) -> str:
  """$0.42, $52.10, $1,234; '–' for None."""
  if value is None:
    return '–'
  return f'${value:,.2f}' if value < 999.995 else f'${value:,.0f}'


def decimals(value: float | None, places: int) -> str:
  """A number with fixed decimals; '–' for None. NaN and infinities keep their names."""
  return '–' if value is None else f'{value:.{places}f}'


def rate(value: float | None) -> str:
  """A learning rate or another small number, to three digits: 6e-4, 1.27e-3; '–' for None."""
  if value is None:
    return '–'
  if value == 0 or not math.isfinite(value):
    return f'{value:g}'
  mantissa, exponent = f'{value:.2e}'.split('e')
  return f'{float(mantissa):g}e{int(exponent)}'


def percent(share: float | None, places: int = 1) -> str:
  """0.175 as '17.5 %'; whole numbers without decimals; '–' for None."""
  if share is None:
    return '–'
  text = f'{100 * share:.{places}f}'
  return f'{text.rstrip("0").rstrip(".") if "." in text else text} %'
