"""Text from a model: one token after another, drawn from the softmax of its logits.

Shapes: P tokens so far, V vocabulary.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from yxanul.config.model_spec import ModelSpec
from yxanul.model import transformer
from yxanul.model.transformer import Numerics, Params


def draw(logits_V: Tensor, temperature: float, top_k: int, generator: torch.Generator) -> int:
  """One token from the `top_k` likeliest (0: from all) at `temperature` (0: the likeliest)."""
  if temperature == 0:
    return int(logits_V.argmax())
  logits_V = logits_V.float().cpu() / temperature
  if top_k and top_k < len(logits_V):
    least = logits_V.topk(top_k).values[-1]
    logits_V = logits_V.masked_fill(logits_V < least, -torch.inf)
  return int(torch.multinomial(logits_V.softmax(-1), 1, generator=generator))


@torch.no_grad()
def generate(
  params: Params,
  prompt: list[int],
  spec: ModelSpec,
  numerics: Numerics,
  *,
  tokens: int,
  end_of_text_id: int,
  window: int,
  temperature: float,
  top_k: int,
  generator: torch.Generator,
) -> Iterator[int]:
  """Yields up to `tokens` tokens that follow `prompt` in a document of its own; stops before the end-of-text.

  Args:
    prompt: token ids, without the end-of-text that every document starts after.
    window: the longest context the model was trained on; what lies further back is forgotten.
    generator: on the CPU; the same state gives the same text.
  """
  context = [end_of_text_id, *prompt]
  device = params['final_norm.weight'].device
  for _ in range(tokens):
    tokens_1P = torch.tensor([context[-window:]], device=device)
    x_1PD = transformer.hidden(params, tokens_1P, spec, numerics)
    x_1R = transformer.head_input(params, x_1PD[:, -1], spec)
    logits_V = (x_1R @ params['embedding.table'].to(x_1R.dtype).T)[0]
    token = draw(logits_V, temperature, top_k, generator)
    if token == end_of_text_id:
      return
    context.append(token)
    yield token
