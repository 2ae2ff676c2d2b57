"""A run that takes seconds: quickstart's data and stages with a model of a few thousand parameters."""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

from ml_collections.config_flags import config_path

from tests.forked import Program
from yxanul.config import registry
from yxanul.config.convert import from_config
from yxanul.config.spec import ExperimentSpec

REPOSITORY = Path(__file__).resolve().parent.parent
CLOCK_FIELDS = ('seconds', 'seconds_training', 'tokens_per_second', 'bytes_per_second', 'mfu')
FIELDS = {
  'model.vocab_size': 512,
  'data.tokenizer.vocab_size': 511,
  'data.tokenizer.transition_size': 400,
  'model.d_model': 32,
  'model.n_layers': 2,
  'model.n_heads': 4,
  'model.head_dim': 8,
  'model.d_hidden': 48,
  'model.embedding_rank': 16,
  'model.init_std': 0.1,
  'optimizer.inheritance': 0.0,  # tests that want it say so
  'curriculum.budget_tokens': 60_000,
  'training.threads': 1,
  'training.checkpoint_every_seconds': 0.5,
  'training.log_every_steps': 3,
  'evaluation.max_tokens': 4000,
  'sample.tokens': 8,
}


def flags(**more) -> list[str]:
  """The command-line overrides; keyword `a__b` is the field a.b."""
  fields = FIELDS | {name.replace('__', '.'): value for name, value in more.items()}
  return ['--config=experiments/quickstart.py', *(f'--config.{name}={value}' for name, value in fields.items())]


def spec(**more) -> ExperimentSpec:
  config = registry.load(str(REPOSITORY / 'experiments' / 'quickstart.py'))
  for name, value in (FIELDS | more).items():
    config_path.set_value(name.replace('__', '.'), config, value)
  return from_config(config)


def start(module: str, *arguments, environment: dict[str, str] | None = None) -> Program:
  """`python -m yxanul.MODULE` in a process of its own, forked; with `environment` instead of this process's."""
  return Program(f'yxanul.{module}', list(map(str, arguments)), REPOSITORY, environment_of(environment))


def start_afresh(module: str, *arguments, **more) -> subprocess.Popen:
  """The same from nothing, imports and all; `more` as subprocess.Popen takes it."""
  return subprocess.Popen(
    [sys.executable, '-m', f'yxanul.{module}', *map(str, arguments)],
    cwd=REPOSITORY,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env=environment_of(),
    **more,
  )


def environment_of(own: dict[str, str] | None = None) -> dict[str, str]:
  """`own`, or else this process's, in which the package is found from any folder."""
  return {**(os.environ if own is None else own), 'PYTHONPATH': str(REPOSITORY)}


def main(*arguments: str, **more) -> Program:
  """`python -m yxanul.main` in a process of its own."""
  return start('main', *arguments, **more)


def torchrun(processes: int, *arguments, options: tuple[str, ...] = ()) -> Program:
  """`torchrun --nproc_per_node=PROCESSES ARGUMENTS`; its workers start from nothing."""
  words = ['--standalone', f'--nproc_per_node={processes}', *options, *map(str, arguments)]
  return Program('torch.distributed.run', words, REPOSITORY, environment_of({**os.environ, 'OMP_NUM_THREADS': '1'}))


def tool(name: str, *arguments, **environment: str) -> subprocess.CompletedProcess:
  """What `python -m yxanul.tools.NAME` gave, with these variables in its environment."""
  process = start(f'tools.{name}', *arguments, environment=os.environ | environment)
  return subprocess.CompletedProcess(process.args, *finish(process, timeout=300))


def finish(process: subprocess.Popen | Program, timeout: float = 120) -> tuple[int, str, str]:
  """Exit status, standard output, standard error. What takes too long is killed, with all that it started."""
  try:
    output, errors = process.communicate(timeout=timeout)
  except subprocess.TimeoutExpired:
    for pid in family(process.pid):
      with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    raise
  return process.returncode, output, errors


def family(pid: int) -> list[int]:
  """A process and all that descend from it. No process group has them: torchrun gives each worker a session of its own."""
  children = []
  for path in Path(f'/proc/{pid}/task').glob('*/children'):
    with contextlib.suppress(OSError):  # one that ends just now
      children += map(int, path.read_text().split())
  return [pid, *(descendant for child in children for descendant in family(child))]


def metrics(workdir: Path) -> list[dict]:
  """The lines of metrics.jsonl without what a clock wrote."""
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  return [{k: v for k, v in line.items() if k not in CLOCK_FIELDS} for line in lines]


def apart(a: Path, b: Path, rel: float, **own: float) -> list[tuple]:
  """What the metrics of two runs differ in by more than `rel`, or by a metric's own: (line, name, a's, b's)."""
  lines = enumerate(zip(metrics(a), metrics(b), strict=True))
  both = [(i, name, x.get(name), y.get(name)) for i, (x, y) in lines for name in {**x, **y}]
  return [(i, name, x, y) for i, name, x, y in both if None in (x, y) or not math.isclose(x, y, rel_tol=own.get(name, rel))]


def arrays(workdir: Path) -> dict:
  """The leaves of the newest checkpoint, read without the model."""
  import orbax.checkpoint as ocp

  manager = ocp.CheckpointManager(workdir.resolve() / 'checkpoints', item_names=('state', 'host'))
  restored = manager.restore(manager.latest_step(), args=ocp.args.Composite(state=ocp.args.StandardRestore()))
  manager.close()
  return restored['state']


def same_arrays(a: Path, b: Path) -> bool:
  x, y = arrays(a), arrays(b)
  return x.keys() == y.keys() and all(
    (x[k].tobytes(), x[k].dtype, x[k].shape) == (y[k].tobytes(), y[k].dtype, y[k].shape) for k in x
  )
