"""The memory estimate: each part against an independent count."""

import dataclasses

import pytest

from yxanul.config.curriculum_spec import CurriculumSpec, StageSpec
from yxanul.config.model_spec import ModelSpec, PrecisionSpec
from yxanul.config.spec import ExperimentSpec
from yxanul.kernels import capabilities, vocab_loss, vocab_loss_compiled
from yxanul.planning import memory

ULTRA = ModelSpec()
FP8, BF16, FP32 = PrecisionSpec(), PrecisionSpec(matmul='bf16'), PrecisionSpec(matmul='fp32')


def test_parameters_gradients_and_moments_are_four_words_a_parameter():
  parts = memory.estimate(ULTRA, FP32, 1024, 512)
  assert parts.parameters_bytes == parts.gradients_bytes == 4 * 196_398_464
  assert parts.optimizer_bytes == 8 * 196_398_464
  assert parts.total_bytes == sum(dataclasses.astuple(parts))


def test_weight_copies_hold_every_matrix_and_no_norm():
  matrices = ULTRA.parameter_count() - (2 * 28 + 1) * 768
  assert memory.weight_copies_bytes(ULTRA, BF16) == 2 * matrices
  in_fp8 = 28 * 6_094_848  # a byte each: the transpose that the backward pass reads
  assert memory.weight_copies_bytes(ULTRA, FP8) == 2 * matrices - in_fp8
  assert memory.weight_copies_bytes(ULTRA, FP32) == 0
  plain = dataclasses.replace(ULTRA, embedding_rank=0)
  assert memory.weight_copies_bytes(plain, BF16) == 2 * (28 * 6_094_848 + 200_005 * 768)


def test_what_a_block_keeps_in_bf16_counted_by_hand():
  saved = memory.saved_bytes_per_token(ULTRA, BF16, 512)
  ends = saved.pop('ends')
  stream, normed, qkvo, gate_up, hidden = 2 * 768, 2 * 768, 2 * (768 + 128 + 128 + 768), 2 * 4096, 2 * 2048
  assert sum(saved.values()) == 2 * (stream + 4) + 2 * normed + qkvo + 12 * 4 + gate_up + hidden
  assert ends == 8 + 8 + 2 * 128 + (2 * 768 + 4) + 2 * 768 + 2 * 128 + 4


def test_fp8_keeps_linear_inputs_in_a_byte_and_only_the_chosen_linears():
  some = PrecisionSpec(fp8_linears=('up', 'down'))
  fp8, part, bf16 = (memory.saved_bytes_per_token(ULTRA, p, 512) for p in (FP8, some, BF16))
  assert fp8['down'] == part['down'] == bf16['down'] // 2 == 2048
  assert (fp8['qkv'], part['qkv'], bf16['qkv']) == (768, 1536, 1536)
  assert (fp8['attention_out'], part['attention_out'], bf16['attention_out']) == (768, 0, 0)
  assert fp8['activation'] == bf16['activation'] == 2 * 4096


def test_rows_of_attentions_own_kernel_keep_the_packed_projection_alone():
  short, long, fp32 = (memory.saved_bytes_per_token(ULTRA, p, n)['attention'] for p, n in ((FP8, 256), (FP8, 257), (FP32, 256)))
  assert short == 2 * 1024
  assert long == 2 * (768 + 128 + 128 + 768) + 12 * 4
  assert fp32 == 2 * long - 12 * 4


def test_activations_grow_with_tokens_and_the_logits_stop_at_a_chunk():
  one, two = (memory.estimate(ULTRA, FP8, tokens, 512) for tokens in (4096, 8192))
  assert two.activations_bytes == 2 * one.activations_bytes
  assert two.workspace_bytes == 2 * one.workspace_bytes
  assert two.vocab_loss_bytes - one.vocab_loss_bytes == 4096 * 128 * 2  # the gradient of the head's input, no logits
  with pytest.raises(ValueError, match='tokens: got 0'):
    memory.estimate(ULTRA, FP8, 0, 512)


def test_recomputed_blocks_keep_their_inputs_and_one_block_at_a_time():
  whole, blocks = (memory.estimate(ULTRA, FP8, 4096, 512, recompute) for recompute in ('none', 'blocks'))
  saved = memory.saved_bytes_per_token(ULTRA, FP8, 512)
  ends = saved.pop('ends')
  assert blocks.activations_bytes == 4096 * (28 * 2 * 2 * 768 + sum(saved.values()) + ends)
  assert whole.total_bytes - blocks.total_bytes == whole.activations_bytes - blocks.activations_bytes


def test_logits_are_counted_in_chunks_of_the_kernels_size():
  assert memory.VOCAB_CHUNK_BYTES == vocab_loss_compiled.CHUNK_BYTES >= vocab_loss.CHUNK_BYTES
  gradients = 100 * 128 * 2 + 200_005 * 128 * 4
  assert memory.vocab_loss_bytes(ULTRA, BF16, 100) == gradients  # its kernels keep the logits on the chip
  wide = dataclasses.replace(ULTRA, embedding_rank=256)
  assert memory.vocab_loss_bytes(wide, BF16, 100) == 100 * 200_005 * (4 + 2) + 2 * gradients
  # Where it is compiled, a chunk's logits and their gradient stand side by side, in FP32 as well.
  assert memory.vocab_loss_bytes(ULTRA, FP32, 1000) == 1000 * 200_005 * (4 + 4) + 1000 * 128 * 4 + 200_005 * 128 * 4
  assert memory.vocab_loss_bytes(ULTRA, FP32, 10**6) < 2 * 2**30 + 10**6 * 128 * 4 + 200_005 * 128 * 4


def test_logits_stay_on_the_chip_where_the_kernel_for_it_is_chosen():
  versions = (('torch', '2.11.0'), ('triton', '3.6.0'))
  card = capabilities.Capabilities('cuda', 'NVIDIA H200', (9, 0), 141 * 10**9, versions)
  for width in (8, *memory.FUSED_LOSS_WIDTHS, 256, 768):
    chosen = capabilities.choose_engines(card, BF16, width).vocab_loss
    assert (chosen == 'triton') == (width in memory.FUSED_LOSS_WIDTHS), width


def test_rows_go_through_in_as_few_parts_as_fit():
  stage = StageSpec(seq_len=2048, batch_size=64)
  spec = ExperimentSpec(name='x', curriculum=CurriculumSpec(stages=(stage,)))
  whole = memory.step_bytes(spec, stage)
  assert memory.pieces(spec, stage, whole) == 1
  assert memory.pieces(spec, stage, whole - 1) == 2
  assert memory.step_bytes(spec, stage, 2) < whole
  assert memory.largest_batch(spec, stage, whole) == 64
  assert memory.largest_batch(spec, stage, whole - 1) == 63
  assert memory.largest_batch(spec, stage, int(1e9)) == 0
  assert memory.pieces(spec, stage, whole, devices=2) == 1
  for limit in (60e9, 40e9, 20e9):
    parts = memory.pieces(spec, stage, int(limit))
    assert stage.batch_size % parts == 0
    assert memory.step_bytes(spec, stage, parts) <= limit < memory.step_bytes(spec, stage, parts // 2)
  with pytest.raises(
    ValueError,
    match=r'stage 1 \(length 2048\): its smallest part needs about 4\.\d GB, got 1.0 GB: no batch fits; wants '
    r'--config.training.recompute=blocks, .*--config.training.gpu_memory_gb raised, or --config.curriculum.stages\[0\].seq_len',
  ):
    memory.pieces(spec, stage, int(1e9))


def test_the_largest_batch_keeps_fp8_its_sixteen_tokens():
  stage = StageSpec(seq_len=24, batch_size=2)
  spec = ExperimentSpec(name='x', curriculum=CurriculumSpec(stages=(stage,)))
  rows = memory.largest_batch(spec, stage, int(20e9))
  assert rows % 2 == 0  # 48 tokens
  assert memory.step_bytes(spec, dataclasses.replace(stage, batch_size=rows)) <= 20e9
  assert memory.step_bytes(spec, dataclasses.replace(stage, batch_size=rows + 2)) > 20e9


def test_a_split_stage_is_told_with_the_batch_that_would_fit_whole():
  stages = (StageSpec(seq_len=512, batch_size=256), StageSpec(seq_len=2048, batch_size=128, step_share_start=0.5))
  spec = ExperimentSpec(name='x', curriculum=CurriculumSpec(stages=stages))
  grown = dataclasses.replace(stages[1], batch_size=256)  # as a run may have chosen
  whole = memory.step_bytes(spec, dataclasses.replace(grown, batch_size=64))
  line = memory.split_line(spec, grown, 2, whole, devices=2)
  needs = memory.step_bytes(spec, grown, 1, devices=2) / 1e9
  assert line == (
    f'stage 2 (length 2048): 256 rows need about {needs:.1f} GB, got {whole / 1e9:.1f} GB; they go through in 2 parts; at most '
    '128 rows would go through whole: --config.curriculum.stages[1].batch_size=128'
  )
