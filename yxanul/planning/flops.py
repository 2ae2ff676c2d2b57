"""Training FLOPs per token, in closed form, and the peak rates of GPUs: together they give model-FLOPs utilization.

A multiply-accumulate counts as two FLOPs. Every matrix product of the forward pass has two of the same size in the
backward pass (gradient of its input, gradient of its weight), hence 2 x 3 = 6 FLOPs a token for every weight that takes
part in one (PaLM, arXiv 2204.02311, appendix B). What an implementation recomputes does not count: the figure belongs to
the model, not to the way it was run.
"""

from yxanul.config.model_spec import ModelSpec

_TERA = 1e12

# Dense peak FLOP/s with FP32 accumulation (the vendor's headline figures assume 2:4 sparsity: twice these on tensor
# cores). The first key found in the name that torch.cuda.get_device_name() returns wins, so the special form factors
# stand before the general name. tf32 and fp32 matter for the FP32 baseline.
# H100, H200: 'NVIDIA H100 Tensor Core GPU' and 'NVIDIA H200 Tensor Core GPU' datasheets. A100: 'NVIDIA A100 Tensor Core
# GPU' datasheet; it has no FP8. RTX 4090: 'NVIDIA Ada GPU Architecture' whitepaper, appendix A, at its boost clock.
PEAK_FLOPS: dict[str, dict[str, float]] = {
  'H100 PCIe': {'fp8': 1513 * _TERA, 'bf16': 756 * _TERA, 'tf32': 378 * _TERA, 'fp32': 51 * _TERA},
  'H100 NVL': {'fp8': 1671 * _TERA, 'bf16': 835 * _TERA, 'tf32': 418 * _TERA, 'fp32': 60 * _TERA},
  'H200 NVL': {'fp8': 1671 * _TERA, 'bf16': 835 * _TERA, 'tf32': 418 * _TERA, 'fp32': 60 * _TERA},
  'H100': {'fp8': 1979 * _TERA, 'bf16': 989 * _TERA, 'tf32': 495 * _TERA, 'fp32': 67 * _TERA},
  'H200': {'fp8': 1979 * _TERA, 'bf16': 989 * _TERA, 'tf32': 495 * _TERA, 'fp32': 67 * _TERA},
  'A100': {'bf16': 312 * _TERA, 'tf32': 156 * _TERA, 'fp32': 19.5 * _TERA},
  'RTX 4090 Laptop': {},  # another chip under the same name
  'RTX 4090 D': {},
  'RTX 4090': {'fp8': 330 * _TERA, 'bf16': 165 * _TERA, 'tf32': 82.6 * _TERA, 'fp32': 82.6 * _TERA},
}


def peak_flops(device_name: str, matmul_format: str) -> float | None:
  """Dense peak FLOP/s of a device in a format (fp8 | bf16 | tf32 | fp32), or None where it is not known.

  A CPU has no entry: its utilization is left out (null in the metrics) instead of invented.
  """
  for name, peaks in PEAK_FLOPS.items():
    if name.lower() in device_name.lower():
      return peaks.get(matmul_format)
  return None


def matmul_parameters(model: ModelSpec) -> int:
  """Weights that a token meets in a matrix product; those it meets twice (the tied ones) count as often as they multiply.

  The four linears of every block; the head, at the cost of the whole vocabulary although its table is tied to the
  embedding's; and, when the embedding is factorized, its projection twice: once on the way in, once (transposed) on the
  way out. Looking up a row of the table multiplies nothing.
  """
  d = model.d_model
  block = d * (model.d_qkv + model.d_query + model.d_up + model.d_hidden)
  if model.embedding_rank:
    head = model.vocab_size * model.embedding_rank + 2 * model.embedding_rank * d
  else:
    head = model.vocab_size * d
  return model.n_layers * block + head


def flops_per_token(model: ModelSpec, seq_len: int) -> float:
  """Forward and backward FLOPs for one trained token in rows of `seq_len` tokens.

  6 x matmul_parameters + 6 x n_layers x d_query x seq_len. The second term is attention: scores and their product with
  the values take 2 x 2 x d_query x seq_len forward and three times that with the backward pass, 12 x d_query x seq_len,
  of which the causal mask leaves half. Document masks would leave less; that is not taken off. Grouped-query attention
  changes nothing here: every query head still meets every earlier key.

  Raises:
    ValueError: `seq_len` is not positive.
  """
  if seq_len < 1:
    raise ValueError(f'seq_len: got {seq_len}, wants at least 1 token')
  return 6.0 * matmul_parameters(model) + 6.0 * model.n_layers * model.d_query * seq_len


def mfu(model: ModelSpec, seq_len: int, tokens_per_second: float, peak: float | None) -> float | None:
  """Model-FLOPs utilization, a share of `peak` FLOP/s (of all devices together), or None where the peak is not known.

  Under FP8 the peak is the FP8 one although the head and attention run in BF16: the figure is then pessimistic.
  """
  return None if peak is None else flops_per_token(model, seq_len) * tokens_per_second / peak
