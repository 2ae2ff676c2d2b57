"""What the model is and in which formats it computes; parameter counts in closed form. Imports no torch."""

import dataclasses

from yxanul.config.checks import one_of, require


@dataclasses.dataclass(frozen=True)
class ModelSpec:
  """A decoder-only transformer. Two families share it: Llama-like (`ultra`) and GPT-2 (`baseline_gpt2`)."""

  vocab_size: int = 200_005  # entries of the tokenizer, its special tokens included
  d_model: int = 768
  n_layers: int = 28
  n_heads: int = 12
  n_kv_heads: int = 2  # grouped-query attention (arXiv 2305.13245); n_heads means plain multi-head attention
  head_dim: int = 64
  d_hidden: int = 2048  # width inside the MLP
  norm: str = 'rmsnorm'  # rmsnorm | layernorm
  norm_eps: float = 1e-5
  activation: str = 'swiglu'  # swiglu | gelu
  position: str = 'rope'  # rope | learned
  rope_theta: float = 10_000.0
  max_positions: int = 4096
  bias: bool = False
  embedding_rank: int = 128  # 0: the table is vocab_size x d_model; r: vocab_size x r times r x d_model
  init_std: float = 0.02
  table_std: float = 0.0  # of the vocabulary table's initialization; 0: init_std
  projection_std: float = 0.0  # of the factorized table's projection; 0: init_std
  input_scale: float = 1.0  # times the token embeddings on their way into the residual stream; the head is not scaled
  logit_softcap: float = 0.0  # c: logits become c tanh(logit / c), as in Gemma 2 (arXiv 2408.00118); 0: they stay as they are

  def __post_init__(self):
    for name in ('vocab_size', 'd_model', 'n_layers', 'n_heads', 'n_kv_heads', 'head_dim', 'd_hidden', 'max_positions'):
      require(getattr(self, name) >= 1, f'model.{name}', getattr(self, name), 'at least 1')
    require(self.vocab_size >= 2, 'model.vocab_size', self.vocab_size, 'at least 2')
    require(self.n_heads % self.n_kv_heads == 0, 'model.n_kv_heads', self.n_kv_heads, f'a divisor of n_heads={self.n_heads}')
    require(self.head_dim % 2 == 0, 'model.head_dim', self.head_dim, 'an even number (rotary pairs)')
    require(self.embedding_rank >= 0, 'model.embedding_rank', self.embedding_rank, '0 (not factorized) or a positive rank')
    require(self.init_std > 0, 'model.init_std', self.init_std, 'a positive number')
    for name in ('table_std', 'projection_std'):
      require(getattr(self, name) >= 0, f'model.{name}', getattr(self, name), 'a positive number, or 0 for init_std')
    require(self.input_scale > 0, 'model.input_scale', self.input_scale, 'a positive number')
    require(self.logit_softcap >= 0, 'model.logit_softcap', self.logit_softcap, 'a positive number, or 0 for none')
    require(self.norm_eps > 0, 'model.norm_eps', self.norm_eps, 'a positive number')
    require(self.rope_theta > 0, 'model.rope_theta', self.rope_theta, 'a positive number')
    one_of(self.norm, ('rmsnorm', 'layernorm'), 'model.norm')
    one_of(self.activation, ('swiglu', 'gelu'), 'model.activation')
    one_of(self.position, ('rope', 'learned'), 'model.position')

  @property
  def d_query(self) -> int:
    return self.n_heads * self.head_dim

  @property
  def d_kv(self) -> int:
    return self.n_kv_heads * self.head_dim

  @property
  def d_qkv(self) -> int:
    return self.d_query + 2 * self.d_kv

  @property
  def d_up(self) -> int:
    """Output width of the first MLP linear: gate and up side by side under SwiGLU."""
    return 2 * self.d_hidden if self.activation == 'swiglu' else self.d_hidden

  @property
  def head_width(self) -> int:
    """Width of what meets the vocabulary table."""
    return self.embedding_rank or self.d_model

  def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
    """Every parameter's name and shape, in the order of the forward pass. Block parameters are stacked over layers.

    Linear weights are stored (out, in). `blocks.qkv` holds query, key, value rows; `blocks.gate_up` gate, then up.
    """
    n, d = self.n_layers, self.d_model
    up = 'gate_up' if self.activation == 'swiglu' else 'up'
    shapes: dict[str, tuple[int, ...]] = {}
    if self.embedding_rank:
      shapes['embedding.table'] = (self.vocab_size, self.embedding_rank)
      shapes['embedding.projection'] = (self.embedding_rank, d)
    else:
      shapes['embedding.table'] = (self.vocab_size, d)
    if self.position == 'learned':
      shapes['embedding.position'] = (self.max_positions, d)

    def add_norm(name: str, lead: tuple[int, ...]) -> None:
      shapes[f'{name}.weight'] = (*lead, d)
      if self.norm == 'layernorm':
        shapes[f'{name}.bias'] = (*lead, d)

    def add_linear(name: str, d_out: int, d_in: int) -> None:
      shapes[f'blocks.{name}.weight'] = (n, d_out, d_in)
      if self.bias:
        shapes[f'blocks.{name}.bias'] = (n, d_out)

    add_norm('blocks.attention_norm', (n,))
    add_linear('qkv', self.d_qkv, d)
    add_linear('attention_out', d, self.d_query)
    add_norm('blocks.mlp_norm', (n,))
    add_linear(up, self.d_up, d)
    add_linear('down', d, self.d_hidden)
    add_norm('final_norm', ())
    return shapes

  def packed_rows(self) -> dict[str, tuple[int, ...]]:
    """The rows of every block matrix by the linears that are packed in it: one number where it is one linear."""
    rows = {name: (shape[1],) for name, shape in self.parameter_shapes().items() if len(shape) == 3}
    rows['blocks.qkv.weight'] = (self.d_query, self.d_kv, self.d_kv)
    if self.activation == 'swiglu':
      rows['blocks.gate_up.weight'] = (self.d_hidden, self.d_hidden)
    return rows

  def parameter_count(self) -> int:
    """Closed form of the number of parameters (the tied head counts once)."""
    d = self.d_model
    embedding = self.embedding_rank * (self.vocab_size + d) if self.embedding_rank else self.vocab_size * d
    embedding += self.max_positions * d if self.position == 'learned' else 0
    norm = d * (2 if self.norm == 'layernorm' else 1)
    block = d * self.d_qkv + d * self.d_query + d * self.d_up + d * self.d_hidden + 2 * norm
    block += (self.d_qkv + d + self.d_up + d) if self.bias else 0
    return embedding + self.n_layers * block + norm


ATTENTION_ENGINES = ('auto', 'cudnn', 'flash', 'flash_attn', 'sdpa')
VOCAB_LOSS_ENGINES = ('auto', 'triton', 'chunked', 'reference')
LINEARS = ('qkv', 'attention_out', 'up', 'down')


@dataclasses.dataclass(frozen=True)
class PrecisionSpec:
  """What is computed in which format, and by which engine. There is no autocast: this is all of it."""

  matmul: str = 'fp8'  # format of the block linears: fp8 | bf16 | fp32; activations follow (bf16 under fp8)
  fp8_engine: str = 'auto'  # auto | te | torch | reference
  fp8_recipe: str = 'delayed'  # delayed | current
  fp8_linears: tuple[str, ...] = LINEARS  # the others stay in bf16; embeddings, head and norms always do
  fp8_amax_history_steps: int = 1024
  fp8_margin: int = 0
  fp8_evaluation: bool = False  # evaluate in FP8 too, with the scales as training left them; off: in bf16
  # auto (measured for each stage on a GPU) | cudnn, flash or sdpa (torch's) | flash_attn (the package)
  attention_engine: str = 'auto'
  vocab_loss_engine: str = 'auto'  # auto | triton | chunked | reference
  tf32: bool = False  # let fp32 matrix products on a GPU use TF32

  def __post_init__(self):
    one_of(self.matmul, ('fp8', 'bf16', 'fp32'), 'precision.matmul')
    one_of(self.fp8_engine, ('auto', 'te', 'torch', 'reference'), 'precision.fp8_engine')
    one_of(self.fp8_recipe, ('delayed', 'current'), 'precision.fp8_recipe')
    one_of(self.attention_engine, ATTENTION_ENGINES, 'precision.attention_engine')
    one_of(self.vocab_loss_engine, VOCAB_LOSS_ENGINES, 'precision.vocab_loss_engine')
    require(self.fp8_margin >= 0, 'precision.fp8_margin', self.fp8_margin, 'at least 0')
    for name in self.fp8_linears:
      one_of(name, LINEARS, 'precision.fp8_linears')
    require(self.fp8_amax_history_steps >= 1, 'precision.fp8_amax_history_steps', self.fp8_amax_history_steps, 'at least 1')
