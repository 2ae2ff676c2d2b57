"""What the benchmark computes, by hand; and that it times real steps, whatever part of it fails."""

import ast
import dataclasses
import re
from pathlib import Path

import pytest

from tests import tiny
from yxanul.data.prepare import prepare
from yxanul.kernels.capabilities import Capabilities
from yxanul.planning import flops
from yxanul.training import benchmark, benchmark_peers
from yxanul.training.benchmark import Effort, attempt, figures, measure, narrowed, ratios, schedule
from yxanul.training.benchmark_kernels import PARTS, RULES, Kernel, covered_ns, part_of, summarize
from yxanul.training.curriculum import Curriculum, token_shares
from yxanul.training.distributed import PeerLost

CPU = Capabilities('cpu', 'CPU', memory_bytes=8 * 10**9)
SHORT = Effort(steps=2, warmup_steps=1, profile_steps=2)
KERNELS = Path(benchmark.__file__).resolve().parents[1] / 'kernels'


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  return prepare(tiny.spec().data, tmp_path_factory.mktemp('data'))


# --- kernels


@pytest.mark.parametrize(
  ('name', 'part'),
  [
    ('nvjet_qqtst_192x192_128x4_2x1_v_bz_coopA_TNT', 'linears'),
    ('nvjet_tst_128x256_64x4_2x1_v_bz_coopA_NNT', 'linears'),
    ('sm90_xmma_gemm_e4m3bf16_e4m3f32_f32_tn_n_tilesize128x128x128_execute_kernel__5x_cublas', 'linears'),
    ('void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16, float, true>(...)', 'linears'),
    ('aten::mm', 'linears'),
    ('cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_6_64x64x64', 'attention'),
    ('void cudnn::fusion::compute_dot_do_o_specialized<true, __nv_bfloat16>', 'attention'),
    ('void pytorch_flash::flash_fwd_splitkv_kernel<pytorch_flash::Flash_fwd_kernel_traits<64>>', 'attention'),
    ('fmha_cutlassF_f32_aligned_64x64_rf_sm80(PyTorchMemEffAttention::AttentionKernel<float>::Params)', 'attention'),
    ('transformer_engine::detail::cast_transpose_optimized_kernel(__nv_bfloat16 const*)', 'casts'),
    ('void transformer_engine::dispatch::fp8::kernel::cast_fp8_1D_kernel<false, __nv_bfloat16>', 'casts'),
    ('void transformer_engine::normalization::rmsnorm_fwd_tuned_kernel<Traits<__nv_bfloat16, __nv_fp8_e4m3>>', 'casts'),
    ('void transformer_engine::gated_act_kernel<8, float, silu<float, float>, __nv_bfloat16, __nv_bfloat16>', 'casts'),
    ('void transformer_engine::normalization::rmsnorm_bwd_finalize_tuned_kernel<Traits<__nv_bfloat16>>', 'elementwise'),
    (
      'void at::native::unrolled_elementwise_kernel<at::native::bfloat16_copy_kernel_cuda(at::Iter&)::{lambda(float)#1}>',
      'casts',
    ),
    ('triton_poi_fused_add_clamp_div_lerp_mul_pow_sqrt_where_3', 'optimizer'),
    (
      'void at::native::(anonymous namespace)::multi_tensor_apply_kernel<at::native::LpNormFunctor<float, (NormType)1>>',
      'optimizer',
    ),
    ('triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_0', 'elementwise'),
    ('_rotate_kernel', 'attention'),
    ('_turn_back_cast_kernel', 'casts'),
    (
      'void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>, std::array<char*, 3ul> >',
      'elementwise',
    ),
    ('void at::native::(anonymous namespace)::sum_and_scatter<float, long>(long const*)', 'embedding'),
    ('void at_cuda_detail::cub::DeviceRadixSortOnesweepKernel<Policy, false, long>', 'embedding'),
    ('void at::native::vectorized_gather_kernel<16, int>(char*, char*, int*, int)', 'embedding'),
    ('Memcpy HtoD (Pinned -> Device)', None),
    ('somebody_elses_kernel', None),
  ],
)
def test_a_kernel_belongs_to_a_part(name, part):
  assert part_of(name) == part


def jit_kernels(module: str) -> list[str]:
  """Names of the functions in `kernels/MODULE.py` that are launched."""
  functions = [node for node in ast.parse((KERNELS / f'{module}.py').read_text()).body if isinstance(node, ast.FunctionDef)]
  launched = [f for f in functions if f.name.endswith('_kernel') or f.name.startswith('attention_')]
  return [f.name for f in launched if any('jit' in ast.unparse(d) for d in f.decorator_list)]


def test_our_own_kernels_are_known():
  losses = [name for module in ('vocab_loss_triton', 'vocab_loss_hopper') for name in jit_kernels(module)]
  assert len(losses) == 4
  assert {part_of(name) for name in losses} == {'loss'}
  assert {part_of(name) for name in jit_kernels('fp8_rope')} == {'casts'}
  casts = jit_kernels('fp8_casts')
  assert {part_of(name) for name in casts} == {'casts', 'elementwise'}
  assert [name for name in casts if part_of(name) == 'elementwise'] == ['_norm_backward_kernel']


def test_attention_is_told_from_the_loss():
  modules = ('attention_short_kernels', 'attention_rope', 'attention_long_kernels', 'attention_long_gradients')
  names = [name for module in modules for name in jit_kernels(module)]
  assert len(names) == 8
  assert {part_of(name) for name in names} == {'attention'}


def test_rules_name_parts():
  assert {part for part, _ in RULES} | {'rest'} == set(PARTS)
  assert all(re.compile(pattern) for _, pattern in RULES)


def test_covered_time_counts_overlap_once():
  kernels = [Kernel('b', 50, 10), Kernel('a', 0, 10), Kernel('inside', 2, 3), Kernel('over', 8, 10), Kernel('touches', 18, 2)]
  assert covered_ns(kernels) == 20 + 10
  assert covered_ns([]) == 0


def test_a_summary_adds_up():
  """Two steps, 100 ns from first to last: 60 ns kernels, a copy of 20 ns of which 10 lie under a kernel."""
  records = [
    Kernel('nvjet_1', 1000, 30),
    Kernel('Memcpy DtoD', 1020, 20),
    Kernel('nvjet_1', 1060, 20),
    Kernel('odd_one', 1090, 10),
  ]
  result = summarize(records, 2, on_gpu=True)
  assert result['wall_ms'] == pytest.approx(50e-6)
  assert result['gpu_busy'] == pytest.approx(0.6)
  assert result['gpu_busy_with_copies'] == pytest.approx(0.7)
  assert result['idle_ms'] == pytest.approx(15e-6)
  assert result['parts_ms']['linears'] == pytest.approx(25e-6)
  assert result['parts_ms']['rest'] == pytest.approx(15e-6)
  assert result['unknown_ms'] == pytest.approx({'Memcpy DtoD': 10e-6, 'odd_one': 5e-6})
  assert result['kernels'][0] == {'name': 'nvjet_1', 'part': 'linears', 'ms': 25e-6, 'calls': 1.0}
  assert summarize(records, 2, on_gpu=False)['gpu_busy'] is None
  with pytest.raises(RuntimeError, match='no kernels'):
    summarize([], 2, on_gpu=True)


# --- the schedule


def row(stage: int, share: float, ms: float, busy: float | None = 0.9, **more) -> dict:
  fields = {'stage': stage, 'token_share': share, 'seq_len': 8 * stage, 'n_layers': 2, 'tokens_per_step': 1000, 'ms': ms}
  fields |= {'ms_p10': 0.9 * ms, 'ms_p90': 1.1 * ms, 'bytes_per_token': 2.0 * stage, 'tokens_per_second': 1e6 / ms}
  return {**fields, 'profile': {'gpu_busy': busy}, **more}


def test_the_schedule_is_its_tokens_over_its_time():
  """1,000 tokens in 10 ms for a quarter of the tokens, in 40 ms for the rest: 4000 tokens take 10 + 120 ms."""
  model = tiny.spec().model
  result = schedule([row(1, 0.25, 10, busy=0.5, n_layers=1), row(2, 0.75, 40, busy=1.0)], model, 1e12, n_stages=2)
  assert result['complete']
  assert result['tokens_per_second'] == pytest.approx(4000 / 0.130)
  assert result['tokens_per_second_p10'] == pytest.approx(4000 / 0.143)
  assert result['bytes_per_second'] == pytest.approx((1000 * 2 + 3000 * 4) / 0.130)
  assert result['gpu_busy'] == pytest.approx((10 * 0.5 + 120) / 130)
  operations = 1000 * flops.flops_per_token(dataclasses.replace(model, n_layers=1), 8) + 3000 * flops.flops_per_token(model, 16)
  assert result['mfu'] == pytest.approx(operations / 0.130 / 1e12)


def test_a_stage_that_is_missing_makes_it_incomplete():
  model = tiny.spec().model
  failed = {'stage': 2, 'token_share': 0.75, 'error': 'RuntimeError: no'}
  result = schedule([row(1, 0.25, 10, busy=None), failed], model, None, n_stages=2)
  assert not result['complete']
  assert result['stages'] == [1]
  assert result['tokens_per_second'] == pytest.approx(1e5)
  assert result['mfu'] is None
  assert result['gpu_busy'] is None
  assert schedule([failed], model, None, n_stages=2) is None
  memory = {'peak_bytes': 20, 'reserved_bytes': 40}
  names = figures({**memory, 'schedule': result, 'stages': [row(1, 0.25, 10), failed]})
  assert set(names) == {'tokens_per_second_8', 'peak_gb', 'reserved_gb'}  # nothing in it claims to be the schedule's


def test_ratios_and_figures():
  model = tiny.spec().model
  runs = []
  for factor in (1, 2):
    rows = [row(1, 0.25, 10 * factor), row(2, 0.75, 40 * factor)]
    runs.append({'peak_bytes': 20, 'reserved_bytes': 40, 'stages': rows, 'schedule': schedule(rows, model, 1e12, n_stages=2)})
  result = ratios(*runs)
  assert result['schedule'] == pytest.approx(2.0)
  assert result['complete']
  assert [pair['ratio'] for pair in result['stages']] == pytest.approx([2.0, 2.0])
  found = figures(runs[0])
  assert found['tokens_per_second_16']['value'] == pytest.approx(25_000)
  assert found['tokens_per_second_16']['spread'] == pytest.approx(25_000 * (1 / 0.9 - 1 / 1.1))
  assert found['peak_gb'] == {'value': 20e-9, 'unit': 'GB'}
  runs[1]['stages'][1] = {'stage': 2, 'token_share': 0.75, 'error': 'no'}
  result = ratios(*runs)
  assert (result['schedule'], result['complete'], len(result['stages'])) == (None, False, 1)


def test_chosen_stages_stay_as_they_are():
  spec = tiny.spec()
  few = Curriculum(narrowed(spec, [3, 10])).stages
  whole = Curriculum(spec).stages
  for a, b in zip(few, (whole[2], whole[9]), strict=True):
    assert (a.spec.seq_len, a.spec.batch_size, a.lr_factor) == (b.spec.seq_len, b.spec.batch_size, b.lr_factor)


def test_what_fails_is_told_in_a_line():
  told = []

  def fail():
    raise RuntimeError('CUDA error\nmore of it')

  assert attempt('profiler', fail, told.append) == {'error': 'RuntimeError: CUDA error'}
  assert told == ['profiler: failed, RuntimeError: CUDA error']


def test_a_process_that_is_gone_ends_the_benchmark():
  def lose():
    raise PeerLost('another process is gone')

  with pytest.raises(PeerLost):
    attempt('stage 1', lose, pytest.fail)


# --- real steps


def test_real_steps_are_timed(prepared):
  spec, told, saved = tiny.spec(**{f'curriculum__stages[{i}]__n_layers': 1 for i in range(3)}), [], []
  result = measure(spec, [2, 9], prepared, CPU, SHORT, told.append, lambda r: saved.append(len(r['stages'])))
  assert [r['stage'] for r in result['stages']] == [2, 9]
  shares = token_shares(spec.curriculum)
  for r, stage in zip(result['stages'], (spec.curriculum.stages[1], spec.curriculum.stages[8]), strict=True):
    assert (r['seq_len'], r['batch_size'], r['n']) == (stage.seq_len, stage.batch_size, 2)
    assert r['n_layers'] == (1 if r['stage'] == 2 else 2)
    assert r['token_share'] == shares[r['stage'] - 1]
    assert 0 < r['ms_p10'] <= r['ms'] <= r['ms_p90']
    assert r['tokens_per_second'] == pytest.approx(1e3 * stage.tokens_per_step / r['ms'])
    average = prepared.train.n_bytes / prepared.train.n_tokens
    assert r['bytes_per_token'] == pytest.approx(average, rel=0.25)
    assert 4 < r['loss'] < 7  # ln 512 = 6.2
    assert r['skipped_steps'] == 0
    assert (r['pieces'], r['attention']) == (1, 'sdpa')
    assert r['profile']['parts_ms']['linears'] > 0
    assert r['profile']['parts_ms']['attention'] > 0
    assert sum(r['profile']['parts_ms'].values()) < r['profile']['host_ms']
  assert saved[:2] == [1, 2]
  assert result['precision'] == 'fp32'
  assert result['slower_after_profiler'] > 0


def test_a_profiler_that_fails_loses_no_timing(prepared, monkeypatch):
  def broken(*_):
    raise RuntimeError('CUPTI is busy')

  monkeypatch.setattr(benchmark, 'profile_stage', broken)
  result = measure(tiny.spec(), [1], prepared, CPU, SHORT, lambda _: None)
  assert result['stages'][0]['profile'] == {'error': 'RuntimeError: CUPTI is busy'}
  assert result['schedule']['tokens_per_second'] > 0
  assert result['schedule']['gpu_busy'] is None


@pytest.mark.parametrize('name', list(benchmark_peers.PEERS))
def test_peers(prepared, name):
  """GPT-2 in small, with a vocabulary smaller than that of the text."""
  from yxanul.config import convert, registry

  config = registry.load(str(tiny.REPOSITORY / 'experiments' / 'baseline_gpt2.py'))
  small = {'vocab_size': 300, 'd_model': 32, 'n_layers': 2, 'n_heads': 2, 'n_kv_heads': 2, 'head_dim': 16, 'd_hidden': 64}
  config.model.update(small | {'max_positions': 32})
  config.data.tokenizer.update({'vocab_size': 299, 'transition_size': 299})
  config.evaluation.seq_len = 32
  config.curriculum.stages[0].seq_len = 32
  baseline = convert.from_config(config)
  result = benchmark_peers.measure_peer(baseline, name, 4, prepared, CPU, SHORT, lambda _: None)
  assert result['peer'] == name
  assert (result['batch_size'], result['seq_len'], result['n']) == (4, 32, 2)
  assert result['tokens_per_second'] > 0
  assert 5 < result['loss'] < 6.5  # ln 300 = 5.7
  assert result['engines']['linear'] == ('bf16' if name.startswith('bf16') else 'fp32')
  assert 'bytes_per_second' not in result


def test_a_stage_that_fails_loses_no_other(prepared, monkeypatch):
  whole = benchmark.measure_stage

  def broken(subject, stage, effort):
    if stage.spec.seq_len == 8:
      raise RuntimeError('out of memory')
    return whole(subject, stage, effort)

  monkeypatch.setattr(benchmark, 'measure_stage', broken)
  effort = dataclasses.replace(SHORT, profile_steps=0)
  result = measure(tiny.spec(), [1, 2], prepared, CPU, effort, lambda _: None)
  assert result['stages'][0]['error'] == 'RuntimeError: out of memory'
  assert result['stages'][1]['tokens_per_second'] > 0
  assert 'profile' not in result['stages'][1]
