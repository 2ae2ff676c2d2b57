"""Measures how fast an experiment trains on this device: each of its stages, and the whole schedule.

Command: python -m yxanul.tools.bench --config=experiments/ultra.py:gpu=h200,source=PATH --workdir=runs/bench --json=bench.json
`--against=bf16` runs everything again with BF16 linears and gives the ratios; `--peers` times a plain GPT-2 124M beside it;
`--what=loader` measures the loader alone; `--what=gradients --only=10 --steps=200` compares gradients with FP32's, before and
after 200 steps of stage 10. How the figures are come by: yxanul/training/benchmark.py and benchmark_gradients.py.

Command: torchrun --standalone --nproc_per_node=2 -m yxanul.tools.bench --what=scaling \
  --config=experiments/ultra.py:gpu=h200,source=PATH --workdir=runs/bench --json=scaling.json
How much faster several GPUs are than one, stage by stage, at as many times the batch: every GPU by itself first, then all
together, both without the profiler (yxanul/training/benchmark_scaling.py). The JSON has the figures of the record `scaling`.

Command: python -m yxanul.tools.bench --what=attention-short --json=attention-short.json
One kernel by itself at the shapes of ultra, or of --config's model: ours, every peer that runs here, and the floor computed
from a copy's bandwidth or a product's rate, measured in the same run (yxanul/kernels/bench). Takes neither data nor workdir.

Every stage takes 3 + steps + 1 + profile_steps steps: at gpu=h200's batches and 400,000 tokens/s a quarter of an hour, and
`--against` another nine minutes; `--what=scaling` takes twelve. --steps, --profile_steps and --only=1,5,10 shorten it. The JSON
file is written anew after every stage, so that what is cut short is not lost. Nothing stays in the workdir but the prepared
data.
"""

import dataclasses
import difflib
import functools
import platform
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags

from yxanul.config import cli, convert, json_flag, registry
from yxanul.config.model_spec import ModelSpec
from yxanul.config.spec import ExperimentSpec

_WORKDIR = flags.DEFINE_string('workdir', None, 'Prepare the data in WORKDIR/data, where a run in WORKDIR looks for it.')
_WHAT = flags.DEFINE_string('what', 'stages', 'What to measure: stages, scaling, loader, gradients, or a kernel.')
_TOKENS = flags.DEFINE_integer('tokens', 131_072, 'How many tokens a kernel by itself works on.', lower_bound=1)
_STEPS = flags.DEFINE_integer('steps', 20, 'Timed steps of every stage, after three that are not.', lower_bound=1)
_PROFILE_STEPS = flags.DEFINE_integer('profile_steps', 50, 'Steps of every stage under the profiler; 0: none.', lower_bound=0)
_ONLY = flags.DEFINE_list('only', [], 'These stages alone, such as 1,5,10.')
_AGAINST = flags.DEFINE_enum('against', None, ['bf16', 'fp32'], 'Measure again with linears in this format, and compare.')
_PEERS = flags.DEFINE_bool('peers', False, 'Time a plain GPT-2 124M too: FP32 and TF32 eager, BF16 as a graph.')
flags.adopt_module_key_flags(cli)
flags.adopt_module_key_flags(json_flag)

Result = dict[str, Any]
_AGAINST_PROFILE_STEPS = 10  # what its parts are beside ours; the share of the clock is asked of ours


class _Report:
  """Where lines, tables and the JSON go: from the first process alone."""

  def __init__(self, processes: Any, write: Callable[[Result], None]):
    from rich.console import Console

    self.processes, self._write = processes, write
    self.console = Console(quiet=not processes.first)

  def line(self, text: str) -> None:
    self.console.print(text, highlight=False, markup=False, soft_wrap=True)

  def table(self, table: Any) -> None:
    from yxanul.reporting import tables

    if self.processes.first:
      tables.print_table(table, self.console)

  def save(self, result: Result) -> None:
    if self.processes.first:
      self._write(result)


def _chosen_stages(spec: ExperimentSpec) -> list[int]:
  last = len(spec.curriculum.stages)
  for text in _ONLY.value:
    if not text.isdecimal() or not 1 <= int(text) <= last:
      raise ValueError(f'--only: got {text!r}, wants stages between 1 and {last}, such as --only=1,{last}')
  return sorted({int(text) for text in _ONLY.value}) or list(range(1, last + 1))


def _prepared(spec: ExperimentSpec, report: _Report):
  from yxanul.data import prepare
  from yxanul.reporting.phases import Phases

  with Phases(report.console) as phases:
    return prepare.prepare(spec.data, spec.data.directory or Path(_WORKDIR.value) / 'data', phases)


def _envelope(what: str, capabilities: Any) -> Result:
  return {
    'what': what,
    'command': shlex.join(['python', '-m', 'yxanul.tools.bench', *sys.argv[1:]]),
    'hardware': capabilities.name,
    'versions': {'python': platform.python_version(), **dict(capabilities.versions)},
  }


def _stages(spec: ExperimentSpec, stages: list[int], report: _Report) -> Result:
  """Each stage's step, the schedule; the same in another format; the peers."""
  from yxanul.kernels.capabilities import detect
  from yxanul.reporting import bench_tables
  from yxanul.training import benchmark

  capabilities = detect()
  if _PEERS.value and capabilities.device == 'cpu':
    raise ValueError('--peers: wants a GPU; a step of GPT-2 124M over 64 rows of 1024 tokens takes a CPU many minutes')
  prepared = _prepared(spec, report)
  effort = benchmark.Effort(steps=_STEPS.value, profile_steps=_PROFILE_STEPS.value)
  result = _envelope(f'bench-{spec.name}', capabilities)
  result |= {'n': effort.steps, 'clock': 'CUDA events' if capabilities.device == 'cuda' else "the host's perf_counter, no GPU"}

  def save(measured: Result) -> None:
    result.update(figures=benchmark.figures(measured), **measured)
    report.save(result)

  measured = benchmark.measure(spec, stages, prepared, capabilities, effort, report.line, save, report.processes)
  report.table(bench_tables.stage_table(measured))
  if parts := bench_tables.parts_table(measured):
    report.table(parts)
  if measured['peak_bytes']:
    held, reserved = (measured[f'{kind}_bytes'] / 1e9 for kind in ('peak', 'reserved'))
    report.line(f'peak memory over all of it, warming included: {held:.2f} GB in tensors, {reserved:.2f} GB reserved')
  report.line(f'clock: {result["clock"]}; {capabilities.name}; ready after {measured["warm_seconds"]:.1f} s')
  if _AGAINST.value:
    _against(spec, measured, prepared, capabilities, effort, result, report)
  if _PEERS.value:
    _peers(spec, prepared, capabilities, effort, result, report)
  return result


def _against(spec, measured: Result, prepared, capabilities, effort, result: Result, report: _Report) -> None:
  from yxanul.reporting import bench_tables
  from yxanul.training import benchmark

  other = dataclasses.replace(spec, precision=dataclasses.replace(spec.precision, matmul=_AGAINST.value))
  effort = dataclasses.replace(effort, profile_steps=min(effort.profile_steps, _AGAINST_PROFILE_STEPS))
  stages = [row['stage'] for row in measured['stages']]
  report.line(f'now with {_AGAINST.value} linears')
  theirs = benchmark.attempt(
    f'--against={_AGAINST.value}',
    lambda: benchmark.measure(other, stages, prepared, capabilities, effort, report.line),
    report.line,
  )
  result['against'] = {'format': _AGAINST.value, **theirs}
  if 'error' not in theirs:
    result['against']['ratios'] = ratios = benchmark.ratios(measured, theirs)
    report.table(bench_tables.stage_table(theirs))
    if parts := bench_tables.parts_table(theirs):
      report.table(parts)
    names = measured['precision'], theirs['precision']
    report.table(bench_tables.against_table(ratios, names))
    if ratios['complete']:
      result['figures']['_over_'.join(names)] = {'value': ratios['schedule'], 'unit': 'times'}
  report.save(result)


def _peers(spec: ExperimentSpec, prepared, capabilities, effort, result: Result, report: _Report) -> None:
  from yxanul.reporting import bench_tables
  from yxanul.training import benchmark, benchmark_peers

  baseline = convert.from_config(registry.load(str(registry.experiments_folder() / 'baseline_gpt2.py')))
  training = dataclasses.replace(baseline.training, gpu_memory_gb=spec.training.gpu_memory_gb)
  baseline = dataclasses.replace(baseline, training=training)
  result['peers'] = []
  for name in benchmark_peers.PEERS:
    row = benchmark.attempt(
      f'GPT-2, {name}',
      lambda name=name: benchmark_peers.measure_peer(
        baseline, name, benchmark_peers.ROWS, prepared, capabilities, effort, report.line
      ),
      report.line,
    )
    result['peers'].append({'peer': name, **row})
    if 'ms' in row:
      key = f'peer_{name.replace(" ", "_")}_tokens_per_second'
      result['figures'][key] = {'value': row['tokens_per_second'], 'unit': 'tokens/s'}
    report.save(result)
  report.table(bench_tables.peers_table(result['peers']))


def _scaling(spec: ExperimentSpec, stages: list[int], report: _Report) -> Result:
  """Several processes beside one."""
  from yxanul.kernels.capabilities import detect
  from yxanul.reporting import bench_tables
  from yxanul.training import benchmark, benchmark_scaling

  processes, capabilities = report.processes, detect()
  if processes.world == 1:
    raise ValueError(
      '--what=scaling: wants several processes: torchrun --standalone --nproc_per_node=2 -m yxanul.tools.bench ...'
    )
  effort = benchmark.Effort(steps=_STEPS.value, profile_steps=0)
  prepared = _prepared(spec, report)
  envelope = _envelope('scaling', capabilities) | {'n': effort.steps}
  envelope['command'] = envelope['command'].replace('python', f'torchrun --standalone --nproc_per_node={processes.world}', 1)
  envelope['hardware'] = f'{processes.world} x {capabilities.name}'
  save = lambda measured: report.save(envelope | measured)  # noqa: E731
  measured = benchmark_scaling.measure(spec, stages, prepared, capabilities, effort, processes, report.line, save)
  report.table(bench_tables.against_table(measured['ratios'], (f'{processes.world} together', 'one')))
  return envelope | measured


def _loader(spec: ExperimentSpec, stages: list[int], report: _Report) -> Result:
  """The loader alone, feeding steps that take no time: two seconds of every stage's shape."""
  from yxanul.data.batches_bench import loader_benchmark
  from yxanul.data.stream import Stream
  from yxanul.kernels.capabilities import detect
  from yxanul.reporting import bench_tables
  from yxanul.training.curriculum import Curriculum

  capabilities = detect()
  curriculum = Curriculum(spec)
  stream = Stream(_prepared(spec, report).train, spec.seed, curriculum.rows)
  chosen = [curriculum.stages[number - 1] for number in stages]
  shapes = [(stage.start_tokens, stage.spec.batch_size, stage.spec.seq_len) for stage in chosen]
  measured = loader_benchmark(stream, shapes, device=capabilities.device)
  rows = [{'stage': number, **row} for number, row in zip(stages, measured, strict=True)]
  report.table(bench_tables.loader_table(rows))
  slowest = min(row['tokens_per_second'] for row in rows)
  figures = {'tokens_per_second_min': {'value': slowest, 'unit': 'tokens/s'}}
  return {**_envelope('loader', capabilities), 'n': 1, 'figures': figures, 'stages': rows}


def _gradients(spec: ExperimentSpec, stages: list[int], report: _Report) -> Result:
  """Gradients in FP8 and BF16 against FP32's, and the FP8 engine's against the reference, before and after --steps steps."""
  from yxanul.kernels.capabilities import detect
  from yxanul.reporting import bench_tables
  from yxanul.training import benchmark_gradients

  capabilities = detect()
  prepared = _prepared(spec, report)
  measured = benchmark_gradients.measure(spec, stages[-1], _STEPS.value, prepared, capabilities, report.line)
  report.table(bench_tables.gradients_table(measured))
  for moment in measured['moments']:
    name, cosine = moment['worst_layer'].values()
    report.line(f'after {moment["steps"]} steps: worst layer {name}, cosine {cosine:.4f}; all zero: {moment["zero"] or "none"}')
  return {**_envelope('gradients', capabilities), 'figures': benchmark_gradients.figures(measured), **measured}


BENCHMARKS: dict[str, Callable[[ExperimentSpec, list[int], _Report], Result]] = {
  'stages': _stages,
  'scaling': _scaling,
  'loader': _loader,
  'gradients': _gradients,
}


KERNELS = ('vocab-loss', 'attention-short', 'attention-long', 'casts', 'optimizer', 'inheritance')


def _kernel(model: ModelSpec, report: _Report) -> Result:
  import torch

  from yxanul.kernels.capabilities import detect
  from yxanul.reporting import bench_tables
  from yxanul.training import benchmark_isolated

  capabilities = detect()
  envelope, device = _envelope(f'kernel-{_WHAT.value}', capabilities), torch.device(capabilities.device)
  save = lambda measured: report.save(envelope | measured)  # noqa: E731
  measured = benchmark_isolated.measure_kernel(_WHAT.value, model, _TOKENS.value, device, save, report.line)
  report.table(bench_tables.kernel_table(_WHAT.value, measured))
  for line in bench_tables.kernel_notes(measured, capabilities.name):
    report.line(line)
  return envelope | measured


def main() -> None:
  if _WHAT.value not in (*BENCHMARKS, *KERNELS):
    near = difflib.get_close_matches(_WHAT.value, (*BENCHMARKS, *KERNELS), n=1)
    hint = f' (did you mean {near[0]!r}?)' if near else ''
    raise ValueError(f'--what: got {_WHAT.value!r}, wants one of {", ".join((*BENCHMARKS, *KERNELS))}{hint}')
  # Whatever needs torch is imported later: it takes seconds, and no mistake in a flag should wait for it.
  measure = _kernel_benchmark() if _WHAT.value in KERNELS else _experiment_benchmark()
  with json_flag.output() as write:
    from yxanul.training.distributed import join

    with join() as processes:
      report = _Report(processes, write)
      report.save(measure(report))


def _kernel_benchmark() -> Callable[[_Report], Result]:
  return functools.partial(_kernel, cli.spec()[1].model if flags.FLAGS['config'].present else ModelSpec())


def _experiment_benchmark() -> Callable[[_Report], Result]:
  spec = cli.spec()[1]
  stages = _chosen_stages(spec)
  if not spec.data.directory and not _WORKDIR.value:
    raise ValueError('--workdir: missing, wants the folder for the prepared data (or config.data.directory)')
  return functools.partial(BENCHMARKS[_WHAT.value], spec, stages)


if __name__ == '__main__':
  cli.run(main)
