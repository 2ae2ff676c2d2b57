"""The model as EleutherAI's lm-evaluation-harness wants it (extra `eval`): strings in, log-likelihoods and strings out.

Its own adapters score the tokens of a continuation after the tokens of its context, as if both ended where a token does. With
superwords they often do not, so here all is scored by bytes (`boundary`): "The answer is" + " the" counts every way in which a
document may go on with these bytes, also inside the token " the end".
"""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from lm_eval.utils import make_table

from yxanul.inference.generate import Sampling, complete, streams
from yxanul.inference.likelihood import Likelihood
from yxanul.inference.model import Model

_REQUESTS_AT_ONCE = 16  # each keeps a row of the vocabulary for every way in which its two texts may end
_NEW_TOKENS = 256  # where a task does not say


class Harness(LM):
  """Plug it in as `lm_eval.simple_evaluate(model=Harness(model), tasks=[...])`."""

  def __init__(self, model: Model):
    super().__init__()
    self._model, self.likelihood = model, Likelihood(model)

  def loglikelihood(self, requests) -> list[tuple[float, bool]]:
    return self._answer('loglikelihood', requests, lambda some: self.likelihood.continuations(some))

  def loglikelihood_rolling(self, requests) -> list[float]:
    return self._answer('loglikelihood_rolling', requests, lambda some: self.likelihood.rolling([text for (text,) in some]))

  def generate_until(self, requests) -> list[str]:
    def generate(some: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
      found = []
      for sampling, group in itertools.groupby(some, key=lambda arguments: _sampling(arguments[1])):
        prompts = [prompt for prompt, _ in group]
        found += complete(self._model, prompts, sampling, streams(0, len(prompts)))
      return found

    return self._answer('generate_until', requests, generate)

  def _answer(self, kind: str, requests, answer) -> list:
    answers = []
    for at in range(0, len(requests), _REQUESTS_AT_ONCE):
      some = requests[at : at + _REQUESTS_AT_ONCE]
      found = answer([request.args for request in some])
      for request, one in zip(some, found, strict=True):
        self.cache_hook.add_partial(kind, request.args, one)
      answers += found
    return answers


def _sampling(arguments: dict[str, Any]) -> Sampling:
  until = arguments.get('until') or ()
  sampling = Sampling(
    tokens=arguments.get('max_gen_toks', _NEW_TOKENS),
    temperature=0.0,
    stop=(until,) if isinstance(until, str) else tuple(stop for stop in until if stop),
  )
  if not arguments.get('do_sample') or arguments.get('temperature') == 0:
    return sampling
  given = {name: arguments[name] for name in ('temperature', 'top_k', 'top_p') if arguments.get(name) is not None}
  return dataclasses.replace(sampling, **{'temperature': 1.0} | given)


def run_tasks(model: Model, tasks: Sequence[str | dict], examples: int | None, shots: int | None) -> tuple[dict, str, int]:
  """Figures of the harness's tasks, by task, its table of them, and how many continuations were longer than the window.

  Args:
    examples: of each task, at most.
    shots: worked examples before each question; None: what the task says.

  Raises:
    ValueError: the harness has no such task.
  """
  names = [task for task in tasks if isinstance(task, str)]
  manager = TaskManager(include_defaults=bool(names))  # reading what its thousands are called takes seconds
  for name in names:
    if not manager.match_tasks([name]) and not Path(name).is_file():
      raise ValueError(f'--tasks: got {name!r}, wants tasks that lm-eval has, or YAML files (`lm-eval ls tasks` lists them)')
  harness = Harness(model)
  found = lm_eval.simple_evaluate(
    model=harness,
    tasks=list(tasks),
    task_manager=manager,
    limit=examples,
    num_fewshot=shots,
    bootstrap_iters=1000,
    log_samples=False,
  )
  return found['results'], make_table(found), harness.likelihood.n_long
