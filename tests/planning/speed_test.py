"""Work and the roofline: FLOPs that add up, shares that a fit finds again, and the fit that ships against its own record."""

import dataclasses
import json

import pytest

from tests import tiny
from yxanul.config import registry
from yxanul.config.convert import from_config
from yxanul.config.curriculum_spec import StageSpec
from yxanul.planning import flops, gpus, memory, speed
from yxanul.planning.work import step_work

H200 = gpus.gpu('h200')


def experiment(text: str):
  return from_config(registry.load(str(tiny.REPOSITORY / 'experiments' / text)))


ULTRA = experiment('ultra.py:gpu=h200')


@pytest.mark.parametrize('name', ['ultra.py', 'ultra_no_fp8.py', 'baseline_gpt2.py', 'quickstart.py'])
def test_the_flops_of_the_parts_are_the_models(name):
  spec = experiment(name)
  stage = spec.curriculum.stages[-1]
  work = step_work(spec, stage, 2, 'short')
  total = sum(n for part in work.values() for n in part.flops.values())
  assert total == pytest.approx(flops.flops_per_token(spec.model, stage.seq_len) * stage.tokens_per_step)
  assert work['casts'].bytes == 0 or spec.precision.matmul == 'fp8'


def test_recomputed_blocks_cost_another_forward_pass_of_their_linears():
  again = dataclasses.replace(ULTRA, training=dataclasses.replace(ULTRA.training, recompute='blocks'))
  stage = ULTRA.curriculum.stages[-1]
  once, twice = (step_work(spec, stage, 1, 'cudnn') for spec in (ULTRA, again))
  assert twice['linears'].flops['fp8'] == pytest.approx(4 / 3 * once['linears'].flops['fp8'])
  assert twice['loss'] == once['loss']
  assert twice['casts'].bytes > once['casts'].bytes


def test_blocks_that_do_not_run_cost_memory_alone():
  best = experiment('best.py:layers=7-all')
  seven = dataclasses.replace(best, model=dataclasses.replace(best.model, n_layers=7), curriculum=ULTRA.curriculum)
  stage, fit = best.curriculum.stages[0], speed.format_fit(speed.fitted(), 'fp8')
  assert best.model_of(stage) == seven.model
  assert step_work(best, stage, 2, 'short') == step_work(seven, stage, 2, 'short')
  mine, theirs, whole = (
    (speed.step_seconds(spec, of, 2, H200, fit), memory.step_memory(spec, of))
    for spec, of in ((best, stage), (seven, stage), (best, dataclasses.replace(stage, n_layers=0)))
  )
  assert mine[0] == theirs[0]
  assert 3 * sum(mine[0].values()) < 1.5 * sum(whole[0].values())
  kept = ('parameters_bytes', 'optimizer_bytes')
  for name, n_bytes in dataclasses.asdict(mine[1]).items():
    assert n_bytes == getattr(whole[1] if name in kept else theirs[1], name), name


def test_muon_keeps_one_moment_and_orthogonalizes_every_step():
  muon = dataclasses.replace(ULTRA.optimizer.groups[0], optimizer='muon')
  spec = dataclasses.replace(ULTRA, optimizer=dataclasses.replace(ULTRA.optimizer, groups=(muon, *ULTRA.optimizer.groups[1:])))
  stage, matrices = ULTRA.curriculum.stages[-1], 28 * 6_094_848
  square = 6.0 * 768**3  # query, and attention's output
  key_value = 4.0 * 128**2 * 768 + 2.0 * 128**3
  mlp = 4.0 * 768**2 * 2048 + 2.0 * 768**3
  extra = 5 * 28 * (2 * square + 2 * key_value + 3 * mlp)
  adamw_linears, muon_linears = (step_work(s, stage, 1, 'cudnn')['linears'].flops['bf16'] for s in (ULTRA, spec))
  assert muon_linears - adamw_linears == pytest.approx(extra)
  assert memory.optimizer_bytes(ULTRA) == 8 * 196_398_464
  assert memory.optimizer_bytes(spec) == 8 * 196_398_464 - 4 * matrices
  assert memory.step_memory(spec, stage).optimizer_bytes == memory.optimizer_bytes(spec)
  assert memory.checkpoint_bytes(ULTRA) - memory.checkpoint_bytes(spec) == 4 * matrices


def test_bytes_of_the_casts_counted_by_hand():
  stage = ULTRA.curriculum.stages[-1]
  forward = 2 * (3 * 2 + 2) * 768 + 4 * 768 + 2 * 4096 + 2 * 2048
  backward = 4 * 1024 + 4 * 768 + (2 * 2048 + 2 * 4096 + 2 * 4096) + 4 * 768
  weights = 28 * 6_094_848
  expected = stage.tokens_per_step * 28 * (forward + backward) + 4 * 6 * weights
  assert step_work(ULTRA, stage, 4, 'cudnn')['casts'].bytes == expected


def test_several_cards_share_the_tokens_and_exchange_their_gradients():
  stage, fit = ULTRA.curriculum.stages[-1], speed.format_fit(speed.fitted(), 'fp8')
  one, two = (speed.step_seconds(ULTRA, stage, 2, H200, fit, devices) for devices in (1, 2))
  assert (one['exchange'], two['exchange']) == (0, pytest.approx(4 * 196_398_464 / 450e9))
  assert two['attention'] == pytest.approx(one['attention'] / 2)
  assert two['optimizer'] == one['optimizer']


def test_a_sharded_optimizer_takes_a_share_of_its_memory_and_half_as_much_traffic_again():
  sharded = dataclasses.replace(ULTRA, training=dataclasses.replace(ULTRA.training, shard_optimizer=True))
  stage, fit = ULTRA.curriculum.stages[-1], speed.format_fit(speed.fitted(), 'fp8')
  blocks, table, rest = 28 * (6_094_848 + 2 * 768), 200_005 * 128, 128 * 768 + 768
  assert blocks + table + rest == 196_398_464
  own = blocks * 4 // 28 + 25_001 * 128 + rest // 8  # four of the layers, where eight processes cannot have the same
  assert memory.owned_parameters(ULTRA, 8) == own
  whole, share, alone = (memory.step_memory(*args) for args in ((ULTRA, stage, 1, 8), (sharded, stage, 1, 8), (sharded, stage)))
  assert share.optimizer_bytes == 8 * own
  assert whole.total_bytes - share.total_bytes == 8 * (196_398_464 - own)
  assert alone.optimizer_bytes == whole.optimizer_bytes == 8 * 196_398_464
  assert memory.checkpoint_bytes(sharded) == memory.checkpoint_bytes(ULTRA)
  rows = [memory.largest_batch(spec, stage, int(20e9), 8) for spec in (ULTRA, sharded)]
  assert rows[1] > rows[0]
  one, eight, before = (
    speed.step_seconds(spec, stage, 2, H200, fit, n) for spec, n in ((sharded, 1), (sharded, 8), (ULTRA, 8))
  )
  assert eight['exchange'] - before['exchange'] == pytest.approx(7 * 4 * own / 450e9)
  copies = 2 * 4 * own + 8 * 4 * own + 2 * 4 * (196_398_464 - own)  # into one buffer, received, the others' out again
  moved = 4 * 196_398_464 + 28 * own + copies
  assert eight['optimizer'] == pytest.approx(moved / (32 * 196_398_464) * before['optimizer'])
  assert one == speed.step_seconds(ULTRA, stage, 2, H200, fit)


def test_a_table_that_inherits_is_not_divided():
  inherits = dataclasses.replace(
    ULTRA,
    training=dataclasses.replace(ULTRA.training, shard_optimizer=True),
    optimizer=dataclasses.replace(ULTRA.optimizer, inheritance=0.7),
  )
  stage, table = ULTRA.curriculum.stages[-1], 200_005 * 128
  others = 28 * (6_094_848 + 2 * 768) // 2 + (128 * 768 + 768) // 2  # half of the layers, of the projection and the last norm
  assert memory.owned_parameters(inherits, 2) == others + table
  assert memory.step_memory(inherits, stage, 1, 2).optimizer_bytes == 8 * (others + table)
  assert memory.gather_bytes(inherits, 2) == 4 * 3 * others
  assert memory.optimizer_bytes(inherits) == memory.optimizer_bytes(ULTRA)
  fit = speed.format_fit(speed.fitted(), 'fp8')
  seconds, whole = (speed.step_seconds(spec, stage, 2, H200, fit, 2) for spec in (inherits, ULTRA))
  assert seconds['exchange'] - whole['exchange'] == pytest.approx(4 * others / 450e9)


def test_a_divided_state_counts_the_gathers_buffers_where_the_activations_left_less():
  sharded = dataclasses.replace(ULTRA, training=dataclasses.replace(ULTRA.training, shard_optimizer=True))
  buffers = 4 * (1 + 2) * 196_398_464 // 2 + 4 * 3 * 64  # 200,005 rows of the table: one has one more
  assert memory.gather_bytes(sharded, 2) == buffers
  small, large = (StageSpec(seq_len=512, batch_size=2 * rows) for rows in (1, 64))
  for stage in (small, large):
    whole, share = (memory.step_memory(spec, stage, 1, 2) for spec in (ULTRA, sharded))
    free = whole.gradients_bytes + whole.activations_bytes + whole.workspace_bytes + whole.vocab_loss_bytes
    assert share.total_bytes == whole.total_bytes - whole.optimizer_bytes + share.optimizer_bytes + max(0, buffers - free)
    assert (share.gather_bytes > 0) == (stage is small)
    assert whole.gather_bytes == 0


def test_of_more_processes_than_layers_each_still_takes_a_whole_matrix():
  muon = dataclasses.replace(ULTRA.optimizer.groups[0], optimizer='muon')
  spec = dataclasses.replace(
    ULTRA,
    optimizer=dataclasses.replace(ULTRA.optimizer, groups=(muon, *ULTRA.optimizer.groups[1:])),
    training=dataclasses.replace(ULTRA.training, shard_optimizer=True),
  )
  stage, products = ULTRA.curriculum.stages[-1], {}
  for devices in (1, 8, 28, 64):
    adamw, ours = (step_work(s, stage, 1, 'cudnn', devices)['linears'].flops['bf16'] for s in (ULTRA, spec))
    products[devices] = ours - adamw
  layer = pytest.approx(products[1] / 28)
  assert (products[8] / 4, products[28], products[64]) == (layer, layer, layer)


def benched(number: int, stage, fit, engine: str) -> dict:
  """A row as the bench writes it, of a card that achieves exactly these shares."""
  parts = {part: 1e3 * s for part, s in speed.step_seconds(ULTRA, stage, 4, H200, fit).items()}
  idle, _ = parts.pop('gaps'), parts.pop('exchange')
  parts |= {'elementwise': parts['elementwise'] - 3.0, 'embedding': 2.0, 'rest': 1.0}
  profile = {'parts_ms': parts, 'idle_ms': idle, 'wall_ms': sum(parts.values()) + idle}
  row = {'stage': number, 'seq_len': stage.seq_len, 'tokens_per_step': stage.tokens_per_step, 'pieces': 4}
  return row | {'attention': engine, 'profile': profile}


def test_a_fit_finds_the_shares_again():
  shares = {
    'linears': {'compute': 0.5, 'traffic': None},
    'casts': {'compute': None, 'traffic': 0.6},
    'attention_short': {'compute': 0.1, 'traffic': 0.8},
    'attention_cudnn': {'compute': 0.4, 'traffic': 0.2},
    'loss': {'compute': 0.7, 'traffic': None},
    'optimizer': {'compute': None, 'traffic': 0.9},
    'elementwise': {'compute': None, 'traffic': 0.75},
  }
  truth = {'shares': shares, 'attention_from': {'cudnn': 512, 'short': 8}, 'gap_seconds': 7e-5}
  rows = [benched(i, s, truth, 'short' if s.seq_len < 512 else 'cudnn') for i, s in enumerate(ULTRA.curriculum.stages, 1)]
  found = speed.fit_shares(ULTRA, rows, H200)
  assert found['attention_from'] == truth['attention_from']
  assert found['gap_seconds'] == pytest.approx(7e-5, rel=1e-3)
  assert set(found['shares']) == set(shares)
  for part, share in shares.items():
    for term, value in share.items():
      assert found['shares'][part][term] == (value and pytest.approx(value, rel=1e-3)), (part, term)


def test_no_part_is_fitted_faster_than_the_peak():
  assert speed._least_squares([(1.0, 0.0, 4.0)]) == (0.25, None)
  assert speed._least_squares([(1.0, 0.0, 0.5)]) == (None, None)  # twice the peak: nothing explains it
  assert speed._least_squares([(1.0, 1.0, 6.0), (2.0, 1.0, 8.0)]) == (0.5, 0.25)
  # Its best would be 1.9 and 0.8 times the ideal: the traffic is held at its peak, and the compute takes what is left.
  assert speed._least_squares([(1.0, 1.0, 2.7), (2.0, 1.0, 4.6)]) == (pytest.approx(1 / 1.78, rel=1e-3), 1.0)


def test_a_bench_of_something_else_is_refused():
  row = {'stage': 1, 'seq_len': 8, 'tokens_per_step': 64, 'pieces': 1, 'attention': 'short', 'profile': {'wall_ms': 1.0}}
  with pytest.raises(ValueError, match='the bench ran 64 tokens a step in rows of 8, which is no stage'):
    speed.fit_shares(ULTRA, [row], H200)
  with pytest.raises(ValueError, match='no profile of a GPU'):
    speed.fit_shares(ULTRA, [{'stage': 1, 'seq_len': 8}], H200)


def test_rows_take_the_attention_that_was_benched_from_the_nearest_shorter_length():
  fit = {'attention_from': {'short': 8, 'cudnn': 512}}
  assert [speed.attention_engine(fit, n) for n in (4, 8, 511, 512, 4096)] == ['short', 'short', 'short', 'cudnn', 'cudnn']


def test_the_fit_that_ships_meets_its_record_within_a_tenth_at_every_stage():
  fit = speed.fitted()
  bench = json.loads((tiny.REPOSITORY / fit['record']).read_text())
  for run in (bench, bench['against']):
    spec = experiment('ultra.py:gpu=h200,batch=0.25')
    spec = dataclasses.replace(spec, precision=dataclasses.replace(spec.precision, matmul=run['precision']))
    for row, stage in zip(run['stages'], spec.curriculum.stages, strict=True):
      seconds = speed.step_seconds(spec, stage, row['pieces'], H200, speed.format_fit(fit, run['precision']))
      assert 1e3 * sum(seconds.values()) == pytest.approx(row['ms'], rel=0.1), (run['precision'], row['seq_len'])


def test_memory_is_within_8_percent_of_the_recorded_peaks():
  bench = json.loads((tiny.REPOSITORY / speed.fitted()['record']).read_text())
  for run in (bench, bench['against']):
    spec = experiment('ultra.py:gpu=h200,batch=0.25')
    spec = dataclasses.replace(spec, precision=dataclasses.replace(spec.precision, matmul=run['precision']))
    for row, stage in zip(run['stages'], spec.curriculum.stages, strict=True):
      assert memory.step_bytes(spec, stage, row['pieces']) == pytest.approx(row['peak_bytes'], rel=0.08), row['seq_len']


@pytest.mark.parametrize(
  ('name', 'key'),
  [
    ('NVIDIA H200', 'h200'),
    ('NVIDIA H100 80GB HBM3', 'h100'),
    ('NVIDIA H100 PCIe', None),
    ('NVIDIA H200 NVL', None),
    ('NVIDIA A100-SXM4-40GB', 'a100-40'),
    ('NVIDIA A100-SXM4-80GB', 'a100-80'),
    ('NVIDIA GeForce RTX 4090', 'rtx4090'),
    ('NVIDIA GeForce RTX 4090 D', None),
    ('CPU', None),
  ],
)
def test_cards_by_the_name_that_torch_gives_them(name, key):
  card = gpus.by_name(name)
  assert (card and card.key) == key
  if card:
    assert card.peak_flops('bf16') == flops.peak_flops(name, 'bf16')


def test_the_smallest_card_for_a_limit():
  assert [gpus.fitting(gb) for gb in (0, 20.9, 24, 40, 80, 141)] == ['h200', 'rtx4090', 'rtx4090', 'a100-40', 'a100-80', 'h200']
