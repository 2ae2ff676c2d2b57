"""A stage that does not fit into the memory is made smaller at warm-up, and the choice is kept."""

import dataclasses
import json
import math
import re
import sys

import pytest
import torch

from tests import forked, tiny
from tests.faults.memory import limit_memory
from tests.training.step_test import clone
from yxanul.config import registry
from yxanul.config.convert import from_config
from yxanul.data.prepare import prepare
from yxanul.kernels import attention_choice
from yxanul.kernels.attention_choice import Trials
from yxanul.kernels.capabilities import Capabilities, choose_engines
from yxanul.optim import inherit
from yxanul.optim.transform import Hyper
from yxanul.planning import memory
from yxanul.training import trainer as trainer_lib
from yxanul.training.curriculum import Curriculum, largest_batches, smaller_batch, token_shares
from yxanul.training.distributed import Processes, is_out_of_memory
from yxanul.training.state import flatten
from yxanul.training.trainer import Trainer, curriculum_for, usable_bytes

CPU, LIMIT = torch.device('cpu'), 192  # tokens that a step may hold at one time; a batch has 384


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  return prepare(tiny.spec().data, tmp_path_factory.mktemp('data'))


def build(prepared, spec, memory_bytes=8 * 10**9) -> Trainer:
  capabilities = Capabilities('cpu', 'CPU', memory_bytes=memory_bytes)
  curriculum = curriculum_for(spec, capabilities)
  return Trainer(spec, curriculum, capabilities, choose_engines(capabilities, spec.precision), CPU, prepared)


@pytest.fixture
def small_memory(monkeypatch):
  limit_memory(LIMIT, monkeypatch.setattr)


def first_step(trainer, index):
  stage = trainer.curriculum.stages[index]
  tokens = next(iter(trainer.batches(stage.start_tokens)))
  return trainer.step(stage, clone(trainer.state), tokens, 1e-3, 1.0)


def lineage(parts, entry, side):
  """The entry and the ancestors of one half of its row."""
  while entry >= 0:
    yield entry
    entry = int(parts[entry, side])


def test_entries_inherit_by_the_tokenizers_merges(prepared):
  """What one row's gradient moves: the rows that have, on a side, an ancestor in common with it; no other."""
  spec = tiny.spec(optimizer__inheritance=0.7)
  trainer, parts = build(prepared, spec), torch.from_numpy(prepared.tokenizer.parts)
  drawn = build(prepared, tiny.spec()).state.params['embedding.table']
  torch.testing.assert_close(trainer.state.params['embedding.table'], inherit.start(drawn, parts, 0.7))
  entry = int(parts.max())  # the last one that is a part of another
  gradients = {name: torch.zeros_like(p) for name, p in trainer.state.params.items()}
  gradients['embedding.table'][entry] = 1.0
  one = torch.tensor(1.0)
  updates, _ = trainer.optimizer.update(gradients, trainer.state.opt_state, trainer.state.params, Hyper(one, one, one, one))
  for side, half in enumerate(updates['embedding.table'].chunk(2, 1)):
    own = set(lineage(parts, entry, side))
    related = [i for i in range(len(parts)) if own & set(lineage(parts, i, side))]
    assert 1 < len(related) < len(parts) / 2
    assert half.ne(0).any(1).nonzero().flatten().tolist() == related


def test_rows_that_no_entry_has_inherit_nothing(prepared):
  parts = torch.from_numpy(prepared.tokenizer.parts)
  padded = trainer_lib._parts(prepared.tokenizer, len(parts) + 2)
  assert torch.equal(padded[:-2], parts)
  assert padded[-2:].tolist() == [[-1, -1]] * 2


@pytest.mark.parametrize('precision', [{}, {'precision__matmul': 'fp8', 'precision__fp8_engine': 'reference'}], ids=['32', '8'])
def test_a_stage_out_of_memory_goes_through_in_parts(prepared, small_memory, precision):
  spec, told = tiny.spec(**precision), []
  trainer = build(prepared, spec)
  before = flatten(clone(trainer.state))
  trainer.warm(0, calibrate_first=True, tell=told.append)
  assert trainer.choices()['pieces'] == [2] * 8 + [3, 2]  # three rows do not go into two parts
  override = '--config.curriculum.stages[0].batch_size=24'
  line = 'stage 1 (length 8): out of memory with 48 rows at once; splitting them into 2 parts; to avoid splitting: '
  calibrated = [said for said in told if re.fullmatch(r'FP8 scales calibrated in \d+\.\d s', said)]
  assert calibrated == told[: bool(precision)]
  assert told[len(calibrated)] == line + override
  assert len(told) == 10 + len(calibrated)
  after = flatten(trainer.state)
  assert all(torch.equal(leaf, after[path]) for path, leaf in before.items() if not path.startswith('fp8_state'))
  if precision:
    assert not torch.equal(before['fp8_state/scale'], after['fp8_state/scale'])
  # A resumed run takes the parts from the checkpoint, and is told of no trouble.
  resumed, told = build(prepared, spec), []
  resumed.choose(trainer.choices())
  resumed.state = clone(trainer.state)
  resumed.warm(0, calibrate_first=False, tell=told.append)
  assert all('out of memory' not in line for line in told)
  assert resumed.choices() == trainer.choices()
  (a, m), (b, n) = first_step(trainer, 9), first_step(resumed, 9)
  assert torch.equal(m.loss, n.loss)
  assert all(torch.equal(leaf, flatten(b)[path]) for path, leaf in flatten(a).items())


def test_an_engine_that_is_not_here_is_replaced_by_one_that_is(prepared):
  spec = tiny.spec(precision__matmul='fp8', precision__fp8_engine='reference')
  trainer = build(prepared, spec)
  choices = trainer.choices()
  assert trainer.choose(choices) == []
  assert 'in another order' in trainer.choose({name: of for name, of in choices.items() if name != 'order'})[0]
  elsewhere = {**choices, 'engines': {**choices['engines'], 'linear': 'te'}}
  assert trainer.choose(elsewhere) == ['linears ran through te before the checkpoint and run through reference here']
  assert trainer.engines.linear == 'reference'


def test_what_a_gpu_chose_is_replaced_where_there_is_none(prepared):
  trainer, told = build(prepared, tiny.spec(precision__matmul='bf16')), []
  choices = trainer.choices()
  gpu = {**choices['engines'], 'attention': 'cudnn', 'vocab_loss': 'triton'}
  elsewhere = {**choices, 'engines': gpu, 'attention': ['short'] * 8 + ['grouped', 'sdpa']}
  assert trainer.choose(elsewhere) == [
    'the vocabulary loss ran through triton before the checkpoint and runs through chunked here',
    'attention of stages 1, 2, 3, 4, 5, 6, 7, 8 ran through short before the checkpoint and runs through sdpa here',
    'attention of stage 9 ran through grouped before the checkpoint and runs through sdpa here',
  ]
  assert trainer.choices() == choices
  assert elsewhere['attention'][0] == 'short'  # what was read stays as it was
  trainer.warm(0, calibrate_first=False, tell=told.append)
  assert told == []


def test_a_gpu_takes_what_it_can(prepared, monkeypatch):
  ada = Capabilities('cuda', 'x', (8, 9), 8 * 10**9, (('triton', '3.6.0'),))
  monkeypatch.setattr(attention_choice, 'candidates', lambda *_: ['sdpa', 'flash', 'short'])
  masked = {'curriculum__stages[3]__window': 4}
  trainer = build(prepared, tiny.spec(precision__matmul='bf16', **masked))
  trainer._capabilities, trainer.device = ada, torch.device('cuda')
  choices = trainer.choices()
  engines = {'linear': 'bf16', 'attention': 'flash', 'vocab_loss': 'triton'}
  elsewhere = {**choices, 'engines': engines, 'attention': ['short', 'flash'] * 5}
  assert trainer.choose(elsewhere) == []
  attention = ['short', 'flash', 'short', 'sdpa', *['short', 'flash'] * 3]  # a mask is what sdpa alone takes
  assert trainer.choices() == {**elsewhere, 'attention': attention}
  monkeypatch.setattr(attention_choice, 'candidates', lambda *_: ['sdpa', 'flash'])
  line = 'attention of stages 1, 3, 5, 7, 9 ran through short before the checkpoint and runs through flash here'
  assert trainer.choose(elsewhere) == [line]
  assert trainer.choices()['attention'] == ['flash'] * 3 + ['sdpa'] + ['flash'] * 6


def test_a_checkpoints_attention_is_kept_where_it_is_right(prepared, monkeypatch):
  tried = []

  def attempt(model, seq_len, engines, device):
    tried.append((seq_len, engines))
    return Trials({'sdpa': 2.0}, {'short': 0.7}) if 'short' in engines else Trials({'flash': 3.0, 'sdpa': 2.0}, {})

  monkeypatch.setattr(attention_choice, 'attempt', attempt)
  trainer, told = build(prepared, tiny.spec(precision__matmul='bf16')), []
  trainer.choose(trainer.choices())
  trainer._measures_attention, trainer._attention = True, ['short'] * 7 + ['short', 'flash', 'sdpa']
  position = trainer.curriculum.stages[7].start_tokens
  trainer.warm(position, calibrate_first=False, tell=told.append)
  lengths = [stage.spec.seq_len for stage in trainer.curriculum.stages]
  assert tried == [(lengths[7], ['sdpa', 'short']), (lengths[8], ['sdpa', 'flash'])]
  assert trainer.choices()['attention'][7:] == ['sdpa', 'flash', 'sdpa']
  assert told[0] == f'attention in rows of {lengths[7]}: short is left out, as it is off by 0.7 here; please report it'
  assert re.fullmatch(r'attention tried in \d+\.\d s', told[1])
  assert len(told) == 2


def test_attention_is_tried_once_a_length_and_never_under_a_mask(prepared, monkeypatch):
  """A mask is what only one engine takes, so there is nothing to choose."""
  tried = []

  def attempt(model, seq_len, engines, device):
    tried.append(seq_len)
    return Trials({'math': 1.0, 'sdpa': 2.0}, {})

  monkeypatch.setattr(attention_choice, 'attempt', attempt)
  lengths = [8, 8, 16, 16, 16, 32, 32, 32, 64, 64]
  more = {f'curriculum__stages[{i}]__seq_len': length for i, length in enumerate(lengths)}
  more |= {'curriculum__stages[2]__window': 8, 'curriculum__stages[4]__mask_documents': True}
  trainer = build(prepared, tiny.spec(precision__matmul='bf16', **more))
  trainer._measures_attention = True
  trainer.warm(0, calibrate_first=False, tell=lambda _: None)
  assert tried == [8, 16, 32, 64]
  assert trainer.choices()['attention'] == ['math', 'math', 'sdpa', 'math', 'sdpa', *['math'] * 5]


def test_a_run_whose_stages_all_have_masks_tells_of_no_trials(prepared):
  more = {f'curriculum__stages[{i}]__mask_documents': True for i in range(10)}
  trainer, told = build(prepared, tiny.spec(precision__matmul='bf16', **more)), []
  trainer._measures_attention = True
  trainer.warm(0, calibrate_first=False, tell=told.append)
  assert told == []


@dataclasses.dataclass(frozen=True)
class Peers(Processes):
  """The first of several, whose others say what stands here."""

  others: tuple = ()

  def from_each(self, value):
    return json.loads(json.dumps([value, *self.others]))


def test_attention_that_is_off_on_any_card_is_left_out(prepared, monkeypatch):
  """This process finds nothing wrong, and its own display is the one that is read."""
  monkeypatch.setattr(attention_choice, 'candidates', lambda *_: ['sdpa', 'short'])
  monkeypatch.setattr(attention_choice, 'attempt', lambda *_: Trials({'short': 1.0, 'sdpa': 2.0}, {}))
  trainer, told = build(prepared, tiny.spec()), []
  assert trainer._fastest_attention(trainer.curriculum.stages[0], told.append) == 'short'
  trainer.processes = Peers(others=([{'sdpa': 1.0}, {'short': float('inf')}],))
  assert trainer._fastest_attention(trainer.curriculum.stages[0], told.append) == 'sdpa'
  assert told[-1] == 'attention in rows of 8: short is left out, as it is off by inf here; please report it'


def test_a_single_row_that_does_not_fit_is_one_line(prepared, monkeypatch):
  limit_memory(100, monkeypatch.setattr)
  with pytest.raises(ValueError, match=r'stage 9 \(length 128\): out of memory with 1 rows at a time.*recompute=blocks'):
    build(prepared, tiny.spec()).warm(0, calibrate_first=False, tell=lambda _: None)


def test_the_largest_batch_is_the_one_that_fits(prepared, small_memory):
  """The estimate knows nothing of LIMIT: warm-up finds it out, in steps of a 16th."""
  spec, told = tiny.spec(curriculum__batch_size='max', curriculum__budget_tokens=200_000), []
  trainer = build(prepared, spec)
  planned = trainer.curriculum.batches
  trainer.warm(0, calibrate_first=False, tell=told.append)
  choices = trainer.choices()
  assert choices['pieces'] == [1] * 10
  for stage, rows in zip(trainer.curriculum.stages, planned, strict=True):
    tokens = stage.spec.tokens_per_step
    if rows * stage.spec.seq_len <= LIMIT:
      assert stage.spec.batch_size == rows
    else:
      assert tokens <= LIMIT < tokens + max(tokens / 16, stage.spec.seq_len)
  assert any('out of memory with' in line for line in told)
  # The rate follows the batch that was chosen.
  stage = trainer.curriculum.stages[-1]
  factor = math.sqrt(stage.spec.batch_size / stage.spec.reference_batch_size)
  assert stage.lr_factor == pytest.approx(stage.spec.lr_scale * factor)
  # A resumed run keeps it, though its own plan would be another.
  resumed = build(prepared, spec)
  assert resumed.curriculum.batches != choices['batches']
  resumed.choose(choices)
  resumed.warm(0, calibrate_first=False, tell=lambda line: pytest.fail(line))
  assert resumed.curriculum.batches == choices['batches'] == trainer.curriculum.batches
  first = resumed.curriculum.stages[0].spec
  assert next(iter(resumed.batches(0))).shape == (first.batch_size, first.seq_len + 1)
  # And the order of the text: stages begin where those batches made them begin.
  for stage in resumed.curriculum.stages:
    position = stage.start_tokens
    texts = [t.stream().read(position, stage.spec.batch_size, stage.spec.seq_len) for t in (trainer, resumed)]
    assert (texts[0] == texts[1]).all(), stage.number
  assert trainer.stream().rows == tuple(trainer.curriculum.rows)


@pytest.mark.parametrize('devices', [1, 3])
@pytest.mark.parametrize('matmul', ['fp32', 'fp8'])
def test_planned_batches_fill_the_memory_and_leave_steps(matmul, devices):
  spec = tiny.spec(precision__matmul=matmul, curriculum__batch_size='max', curriculum__budget_tokens=20_000_000)
  limit = memory.step_bytes(spec, dataclasses.replace(spec.curriculum.stages[9], batch_size=50))
  batches = largest_batches(spec, limit, devices)
  shares = token_shares(spec.curriculum)
  for stage, rows, share in zip(spec.curriculum.stages, batches, shares, strict=True):
    now, most = dataclasses.replace(stage, batch_size=rows), memory.largest_batch(spec, stage, limit)
    assert rows % devices == 0
    assert matmul == 'fp32' or now.tokens_per_step // devices % 16 == 0
    own = rows // devices
    assert own <= most
    steps = share * 20_000_000 / now.tokens_per_step
    assert own > most * 15 / 16 - 1 or steps < 9
    assert steps >= 8
    assert 0 < smaller_batch(spec, now, devices) < rows
  assert Curriculum(spec, batches).batches == batches
  with pytest.raises(ValueError, match=r'stage 1 \(length 8\): its smallest part needs about'):
    largest_batches(spec, 1000, devices)


def test_planned_batches_are_the_same_with_the_optimizers_state_divided():
  config = registry.load(str(tiny.REPOSITORY / 'experiments' / 'ultra.py'))
  config.curriculum.batch_size = 'max'
  spec = from_config(config)
  divided = dataclasses.replace(spec, training=dataclasses.replace(spec.training, shard_optimizer=True))
  stage, limit = spec.curriculum.stages[9], 20 * 10**9
  assert memory.largest_batch(divided, stage, limit, 8) > memory.largest_batch(spec, stage, limit, 8)
  assert largest_batches(divided, limit, 8) == largest_batches(spec, limit, 8)


def test_fp8_on_a_card_without_it_is_planned_as_the_bf16_that_runs():
  config = registry.load(str(tiny.REPOSITORY / 'experiments' / 'ultra.py'))
  config.curriculum.batch_size = 'max'
  fp8 = from_config(config)
  bf16 = dataclasses.replace(fp8, precision=dataclasses.replace(fp8.precision, matmul='bf16'))
  a100, h100 = (Capabilities('cuda', 'x', cc, 80 * 10**9, (('triton', '3.6.0'),)) for cc in ((8, 0), (9, 0)))
  planned = curriculum_for(fp8, a100).batches
  assert planned == curriculum_for(bf16, a100).batches
  assert all(a < b for a, b in zip(planned, curriculum_for(fp8, h100).batches, strict=True))


def test_a_cpu_has_the_machines_memory(prepared):
  spec = tiny.spec(training__gpu_memory_gb=24.0)
  assert usable_bytes(spec, Capabilities('cpu', memory_bytes=10**9)) == int(0.85 * 10**9)
  spec = tiny.spec()
  need = memory.step_bytes(spec, spec.curriculum.stages[9])
  trainer, told = build(prepared, spec, int((need - 1) / 0.85)), []
  assert trainer.choices()['pieces'][9] == 2
  trainer.warm(0, calibrate_first=False, tell=told.append)
  assert 'stage 10 (length 192): 2 rows need about' in told[-1]
  assert '--config.curriculum.stages[9].batch_size=1' in told[-1]


def set_up(deterministic: bool) -> None:
  trainer_lib.set_up_torch(tiny.spec(training__deterministic=deterministic), Capabilities('cpu'))
  assert torch.are_deterministic_algorithms_enabled() is deterministic
  assert 'torch._dynamo' not in sys.modules


@pytest.mark.parametrize('deterministic', [True, False])
def test_setting_up_imports_no_compiler_where_nothing_is_compiled(deterministic):
  process = forked.context().Process(target=set_up, args=(deterministic,))
  process.start()
  process.join()
  assert process.exitcode == 0


def test_what_counts_as_out_of_memory():
  assert is_out_of_memory(torch.OutOfMemoryError('x'))
  assert is_out_of_memory(RuntimeError('Triton Error [CUDA]: out of memory'))
  assert not is_out_of_memory(RuntimeError('CUDA error: an illegal memory access was encountered'))
  failed = RuntimeError('capture failed')
  failed.__context__ = torch.OutOfMemoryError('x')
  assert is_out_of_memory(failed)
