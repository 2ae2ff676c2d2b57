"""What the project set out from, claim by claim, beside what arithmetic and the plan say.

Two kinds of check: a claim's own arithmetic (does 60,000 tokens/s for 6 hours make three epochs?), and a claim against the
plan (does the batch fit?). A claim holds when it is within `TOLERANCE` of what was computed. Speeds and qualities are not
settled here: those are for records.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from yxanul.config.spec import ExperimentSpec
from yxanul.planning import memory
from yxanul.planning.gpus import OFFERS

Row = dict[str, Any]

TOLERANCE = 0.03
EPOCHS, EPOCH_TOKENS = 3, 2.61e9
GPT2_TOKENS = 4.1e9  # of the same text
PHASE_TOKENS = {'Warmup': 200e6, 'Foundation': 400e6, 'Building': 800e6, 'Mastery': 1.2e9}
GPT2_CHARACTERS_PER_TOKEN, SUPERBPE_CHARACTERS_PER_TOKEN = 4.488, 7.184
GAINS = (1.6, 2.0, 3.0, 1.2, 1.3)
SMALL_CARD_BYTES = 24e9
CARDS = {1: SMALL_CARD_BYTES, 2: 80e9, 4: 141e9}  # times the table of batches, and the card that is to take it


def checks(spec: ExperimentSpec, plan: Row, rates: Mapping[str, float]) -> list[Row]:
  """Every claim: 'claim', 'how' it was computed, 'claimed', 'computed', 'unit', 'holds'.

  Args:
    rates: tokens/s of other plans: 'bf16', the same without FP8, and 'h100'.
  """
  return [*_text(), *_speed(plan, rates), *_money(), *_memory(spec), *_timeline(plan), *_size(spec)]


def _check(claim: str, how: str, claimed: float, computed: float, unit: str) -> Row:
  holds = abs(computed - claimed) <= TOLERANCE * abs(claimed)
  return {'claim': claim, 'how': how, 'claimed': claimed, 'computed': computed, 'unit': unit, 'holds': holds}


def _text() -> list[Row]:
  ratio = GPT2_CHARACTERS_PER_TOKEN / SUPERBPE_CHARACTERS_PER_TOKEN
  return [
    _check('SuperBPE takes 37.5 % fewer tokens', '1 - 4.488 / 7.184', 0.375, 1 - ratio, 'share'),
    _check('4.1B GPT-2 tokens become 2.61B', '4.1B x 4.488 / 7.184', EPOCH_TOKENS, GPT2_TOKENS * ratio, 'tokens'),
  ]


def _speed(plan: Row, rates: Mapping[str, float]) -> list[Row]:
  product = 1.0
  for gain in GAINS:
    product *= gain
  whole, hours = EPOCHS * EPOCH_TOKENS, 3600.0
  h100 = _check('H100: at least 250,000 tokens/s', 'plan of gpu=h100', 250e3, rates['h100'], 'tokens/s')
  return [
    _check('the five savings make 15 times', '1.6 x 2.0 x 3.0 x 1.2 x 1.3', 15.0, product, 'times'),
    _check('15 times is 90 h against 6 h', '90 / 6', 15.0, 90 / 6, 'times'),
    _check('RTX 4090: 3 epochs at 60k tokens/s in 6 h', '60,000 x 6 x 3,600', whole, 60_000 * 6 * hours, 'tokens'),
    _check('GPT-2: 3 epochs at 5k tokens/s in 90 h', '5,000 x 90 x 3,600', EPOCHS * GPT2_TOKENS, 5_000 * 90 * hours, 'tokens'),
    _check(
      'FP8: 2.0 times the throughput',
      f'plan of {plan["gpu"]}',
      2.0,
      plan['total']['tokens_per_second'] / rates['bf16'],
      'times',
    ),
    h100 | {'holds': h100['holds'] or h100['computed'] > h100['claimed']},
    _check('H100: an epoch at 250k tokens/s in 2.9 h', '2.61B / 250,000 / 3,600', 2.9, EPOCH_TOKENS / 250e3 / hours, 'hours'),
  ]


def _money() -> list[Row]:
  rows = [_check('H100: $52 for all of it', '3 x 2.9 x 5.99', 52.0, 3 * 2.9 * 5.99, 'dollars')]
  for offer in OFFERS:
    if offer.dollars_per_hour:
      how = f'{offer.claimed_hours:g} x {offer.dollars_per_hour:g}'
      dollars = offer.claimed_hours * offer.dollars_per_hour
      rows.append(_check(f'{offer.provider}: ${offer.claimed_dollars:g}', how, offer.claimed_dollars, dollars, 'dollars'))
  return rows


def _memory(spec: ExperimentSpec) -> list[Row]:
  parameters = spec.model.parameter_count()
  first = spec.curriculum.stages[0]
  tokens = first.reference_tokens_per_step
  needs = memory.estimate(spec.model, spec.precision, tokens, first.seq_len, spec.training.recompute)
  fixed = needs.parameters_bytes + needs.weight_copies_bytes + needs.gradients_bytes + needs.optimizer_bytes
  return [
    # Its megabytes are 2^20 bytes.
    _check('model in FP8: 187 MB', 'a byte a parameter', 187 * 2**20, float(parameters), 'bytes'),
    _check('optimizer: 1,873 MB', 'two moments in FP32', 1873 * 2**20, float(needs.optimizer_bytes), 'bytes'),
    _check('model, optimizer, overhead: 3,060 MB', 'weights, copies, gradients, moments', 3060e6, float(fixed), 'bytes'),
    _check('free for batches on 24 GB: 20,940 MB', '24 GB less those', 20_940e6, SMALL_CARD_BYTES - fixed, 'bytes'),
    _fits(f'batch {first.reference_batch_size:,} at length {first.seq_len} fits in 24 GB', needs.total_bytes, SMALL_CARD_BYTES),
    *(_table_fits(spec, multiple, limit) for multiple, limit in CARDS.items()),
  ]


def _table_fits(spec: ExperimentSpec, multiple: int, limit_bytes: float) -> Row:
  """Whether the table of batches, times `multiple`, goes through whole."""
  needs = {}
  for stage in spec.curriculum.stages:
    tokens = multiple * stage.reference_tokens_per_step
    estimate = memory.estimate(spec.model, spec.precision, tokens, stage.seq_len, spec.training.recompute)
    needs[stage.seq_len] = estimate.total_bytes
  tightest = max(needs, key=needs.get)
  batches = 'the table of batches' if multiple == 1 else f'{multiple} times those batches'
  claim = f'{batches} fits in {limit_bytes / 1e9:g} GB (most at length {tightest})'
  return _fits(claim, needs[tightest], limit_bytes)


def _fits(claim: str, needs_bytes: float, limit_bytes: float) -> Row:
  row = _check(claim, 'the estimate for one part', limit_bytes, needs_bytes, 'bytes')
  return row | {'holds': needs_bytes <= limit_bytes}


def _timeline(plan: Row) -> list[Row]:
  rows = [
    _check('the phases are an epoch of 2.61B', '200M + 400M + 800M + 1.2B', EPOCH_TOKENS, sum(PHASE_TOKENS.values()), 'tokens')
  ]
  total = plan['total']['tokens']
  for phase in plan['phases']:
    claimed = PHASE_TOKENS[phase['phase']] / EPOCH_TOKENS * total
    low, high = phase['lengths']
    rows.append(
      _check(f'{phase["phase"]} ({low} to {high})', 'tokens by the table of steps', claimed, float(phase['tokens']), 'tokens')
    )
  return rows


def _size(spec: ExperimentSpec) -> list[Row]:
  parameters = spec.model.parameter_count()
  return [
    _check('196,398,464 parameters', 'closed form', 196_398_464.0, float(parameters), 'parameters'),
    _check('13.2 tokens a parameter', '2.61B / 197M', 13.2, EPOCH_TOKENS / 197e6, 'ratio'),
  ]


def implied(offers: Sequence[Row]) -> list[Row]:
  """The offers with three epochs on them: ours, and the tokens/s that the claimed hours imply."""
  return [row | _three_epochs(row) for row in offers]


def _three_epochs(offer: Row) -> Row:
  tokens, rate, claimed_hours = EPOCHS * EPOCH_TOKENS, offer['tokens_per_second'], offer['claimed_hours']
  hours = rate and tokens / rate / 3600
  return {
    'hours_3_epochs': hours,
    'dollars_3_epochs': hours and hours * offer['dollars_per_hour'],
    'claimed_tokens_per_second': claimed_hours and tokens / claimed_hours / 3600,
  }
