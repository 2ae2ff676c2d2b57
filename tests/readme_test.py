"""Every command of README: run as written at toy size, or, where it wants a GPU, a container or somebody's cloud, parsed.

HOW says which is which. What is `run` runs in one folder, in README's order, as a newcomer would; toy sizes are appended as
overrides; the first command of each program starts from nothing, the others are forked from a server that has imported what
they need. What is `small` runs beside experiments of the same names made small (tests/study/toy.py). What is `parsed` must get
through the program's own flags and make a valid experiment, and goes no further. Of other people's programs (`shell`) the
syntax is checked, and what of ours they start is parsed.
"""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import tiny
from tests.forked import Program
from tests.study.toy import write_family
from yxanul.data import python_docs

README = (tiny.REPOSITORY / 'README.md').read_text()
TOY = [flag for flag in tiny.flags() if not flag.startswith('--config=')]
TOY_ULTRA = [
  '--config.model.vocab_size=517',
  '--config.data.tokenizer.vocab_size=512',
  '--config.data.tokenizer.transition_size=400',
]
TOY_ULTRA += ['--config.data.validation_fraction=0.1']


# The first pattern that a command begins with decides; then what is appended to run it small.
HOW: tuple[tuple[str, str, list[str]], ...] = (
  (r'python -m yxanul\.main --config=experiments/quickstart\.py', 'run', TOY),
  (r'python -m yxanul\.main .*(--list|--dry_run)', 'run', []),
  (r'python -m yxanul\.main --config=experiments/(ultra|best)\.py', 'parsed', []),  # a GPU, or months
  (r'python -m yxanul\.tools\.(plan|report) ', 'run', []),
  (r'python -m yxanul\.tools\.doctor$', 'run', []),
  (r'python -m yxanul\.tools\.doctor --config=experiments/quickstart\.py', 'run', [*TOY, '--steps=2']),
  (r'python -m yxanul\.tools\.doctor --config=experiments/ultra\.py', 'parsed', []),  # steps of ultra
  (r'python -m yxanul\.tools\.(prepare|tokenizer) ', 'run', TOY_ULTRA),
  (r'python -m yxanul\.tools\.(evaluate|generate|export) ', 'run', []),
  (r'python -m yxanul\.tools\.bench --config=', 'small', ['--nopeers', '--steps=1', '--profile_steps=0', '--only=1,3']),
  (r'python -m yxanul\.tools\.bench --what=', 'run', ['--tokens=64']),
  (r'python -m yxanul\.tools\.ablate .*--only=best ', 'small', ['--seconds=2', '--seeds=1']),  # its last stage is short
  (r'python -m yxanul\.tools\.ablate .*--only=', 'small', ['--seconds=0.3', '--seeds=1']),
  (r'python -m yxanul\.tools\.ablate ', 'small', ['--seconds=0.3', '--only=ultra']),
  (r'python -m yxanul\.tools\.compare ', 'small', ['--seconds=0.3', '--seeds=1', '--set=data.validation_fraction=0.1']),
  (r'torchrun ', 'parsed', []),  # GPUs
  (r'python -m pytest$', 'shell', []),  # this suite
  (r'(PIP_CONSTRAINT=.* )?pip install (--no-build-isolation )?-e ', 'extras', []),
  (r'python third_party/nvidia_pins\.py ', 'shell', []),  # NVIDIA's image
  (r'(docker|vastai) ', 'shell', []),
)


def commands() -> list[str]:
  """One line each, without its comment, parts of a && chain apart, in README's order; the same one twice only once."""
  blocks = re.findall(r'^```bash\n(.*?)^```', README, re.MULTILINE | re.DOTALL)
  lines = '\n'.join(blocks).replace('\\\n', ' ').splitlines()
  plain = (re.sub(r'\s+# .*', '', line).strip() for line in lines)
  parts = (part.strip() for line in plain for part in line.split('&&'))
  return list(dict.fromkeys(re.sub(r'\s+', ' ', part) for part in parts if part))


def how(command: str) -> tuple[str, list[str]]:
  return next(((kind, more) for pattern, kind, more in HOW if re.match(pattern, command)), ('unknown', []))


def first_of_each_program() -> set[str]:
  """Of what is run, the command that a program comes first in: it starts from nothing, the others are forked."""
  found = {}
  for command in commands():
    if how(command)[0] in ('run', 'small'):
      found.setdefault(command.split()[2], command)
  return set(found.values())


@pytest.fixture(scope='module')
def clone(tmp_path_factory) -> Path:
  """A folder like a fresh clone's, with texts of one's own in it."""
  folder = tmp_path_factory.mktemp('clone')
  for name in ('experiments', 'third_party', 'yxanul'):
    (folder / name).symlink_to(tiny.REPOSITORY / name)
  write_texts(folder / 'texts')
  return folder


@pytest.fixture(scope='module')
def small(tmp_path_factory) -> Path:
  """A folder with small experiments of the real names, and text where README says PATH."""
  folder = tmp_path_factory.mktemp('small')
  write_family(folder / 'experiments', 'ultra', 'ultra_muon', 'best', 'baseline_gpt2', 'strong_gpt2')
  write_texts(folder / 'PATH')
  return folder


def write_texts(folder: Path) -> None:
  folder.mkdir()
  texts = [text for _, text, _ in python_docs.read()]
  for i in range(2):
    pq.write_table(pa.table({'text': texts[i::2]}), folder / f'part-{i}.parquet')


def execute(arguments: list[str], folder: Path) -> subprocess.CompletedProcess:
  environment = tiny.environment_of()
  return subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False)


def execute_forked(module: str, arguments: list[str], folder: Path) -> subprocess.CompletedProcess:
  """`python -m MODULE ARGUMENTS` without the seconds of its imports."""
  process = Program(module, arguments, folder, tiny.environment_of())
  return subprocess.CompletedProcess(process.args, *tiny.finish(process, timeout=300))


PARSE = """
import importlib, sys
module, sys.argv = sys.argv[1], sys.argv[1:]
importlib.import_module(module)
from yxanul.config import cli, registry
for argument in cli._parse(sys.argv)[1:]:
  registry.load(argument)
if any(argument.startswith('--config=') for argument in sys.argv):
  cli.spec()
"""


def parse(words: list[str], folder: Path) -> None:
  """`python -m MODULE FLAGS`, torchrun before it or not: the module's own flags take them, their experiment is valid."""
  if words[0] == 'torchrun':
    from torch.distributed.run import get_args_parser

    launch = get_args_parser().parse_args(words[1:])
    words = ['python', '-m', launch.training_script, *launch.training_script_args]
  assert words[:2] == ['python', '-m'], words
  done = execute([sys.executable, '-c', PARSE, *words[2:]], folder)
  assert done.returncode == 0, done.stderr


def extras(words: list[str]) -> None:
  wanted = re.fullmatch(r'\.(?:\[(.*)\])?', words[words.index('-e') + 1]).group(1)
  setup = (tiny.REPOSITORY / 'setup.py').read_text()
  for name in filter(None, (wanted or '').split(',')):
    assert f"'{name}': [" in setup, f'setup.py has no extra {name}'


@pytest.mark.parametrize('command', commands(), ids=lambda command: f'{how(command)[0]}: {command[:90]}')
def test_readme(command, clone, request):
  kind, more = how(command)
  assert kind != 'unknown', f'HOW does not say how to test {command}'
  words = shlex.split(command)
  if kind in ('run', 'small'):
    folder = clone if kind == 'run' else request.getfixturevalue('small')
    if command in first_of_each_program():
      done = execute([sys.executable, *words[1:], *more], folder)
    else:
      assert words[:2] == ['python', '-m'], words
      done = execute_forked(words[2], [*words[3:], *more], folder)
    assert done.returncode == 0, done.stderr
  elif kind == 'parsed':
    parse(words, clone)
  elif kind == 'extras':
    extras(words)
  else:
    done = execute(['bash', '-n', '-c', command], clone)
    assert done.returncode == 0, done.stderr
    if 'python -m yxanul' in command:
      parse(words[words.index('python') :], clone)


def test_what_is_compiled_against_torch_is_installed_after_it_and_sees_it():
  """An isolated build has no torch, which the setup.py of Transformer Engine's torch part and of flash-attn import."""
  setup = (tiny.REPOSITORY / 'setup.py').read_text()
  assert 'flash-attn' not in setup  # torch has a flash attention of its own
  steps = "pip install -e . && pip install --no-build-isolation -e '.[gpu]'\n"
  assert steps in README
  assert README.count('[gpu]') == README.count("--no-build-isolation -e '.[gpu]'")
  skypilot = tiny.REPOSITORY / 'third_party' / 'skypilot.yaml'
  assert not skypilot.exists() or steps in skypilot.read_text()


def test_the_python_that_readme_shows_runs(clone):
  """On what the commands above left: the exported model, in transformers alone."""
  if not (clone / 'exported').exists():
    pytest.skip('needs the folder that the export command writes, run together with it')
  for block in re.findall(r'^```python\n(.*?)^```', README, re.MULTILINE | re.DOTALL):
    done = execute([sys.executable, '-c', block], clone)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('A class definition')


def test_the_files_and_extras_that_readme_names_exist():
  for name in re.findall(r'`((?:yxanul|experiments|third_party|tests)/[\w/.-]+)`', README):
    assert (tiny.REPOSITORY / name).exists(), name
  for group in re.findall(r"`pip install -e '(\.\[.*?\])'`", README):
    extras(['-e', group])
  for name in re.findall(r'extra `(\w+)`', README):
    extras(['-e', f'.[{name}]'])
  for picture in re.findall(r'<img src="(.*?)"', README):
    assert (tiny.REPOSITORY / picture).exists(), picture
  for record in re.findall(r'`(\d{4}-\d\d-\d\d_[\w-]+)`', README):
    assert (tiny.REPOSITORY / 'experiments' / 'records' / record / 'record.json').exists(), record


@pytest.mark.parametrize(
  ('record', 'figure', 'form'),
  [
    ('ablate-best', 'baseline_bpb_450s', 'eager | {:.3f} | 450 s |'),
    ('ablate-best', 'seconds_to_baseline_bpb_450s', '| 450 s | {:.1f} s |'),
    ('ablate-best', 'speedup_vs_fp32_baseline_450s', '| 5.1 s | **{:.0f}** |'),
    ('ablate-best', 'speedup_vs_fp32_baseline_450s_compiling_from_cache', '**88** | {:.0f} |'),
    ('ablate-best', 'speedup_vs_fp32_baseline_450s_nothing_cached', '**88** | 19 | {:.1f} |'),
    ('ablate-best', 'speedup_vs_fp32_baseline_450s_low', 'seeds: {:.0f} to 90 and 3.38'),
    ('ablate-best', 'speedup_vs_fp32_baseline_450s_high', 'seeds: 86 to {:.0f} and 3.38'),
    ('ablate-best', 'best_bpb_30s', 'ends at {:.3f} and is 98'),
    ('ablate-best', 'speedup_vs_fp32_baseline_450s_in_30s', 'and is {:.0f}, 64 and'),
    ('ablate-best', 'speedup_vs_fp32_baseline_1200s_in_30s', 'and is 98, {:.0f} and'),
    ('ablate-best', 'speedup_vs_strong_baseline_120s_in_30s', '98, 64 and {:.1f} times as soon'),
    ('ablate-best', 'baseline_bpb_1200s', '| {:.3f} | 1,201 s |'),
    ('ablate-best', 'seconds_to_baseline_bpb_1200s', '| 1,201 s | {:.1f} s |'),
    ('ablate-best', 'speedup_vs_fp32_baseline_1200s', '| 25.8 s | **{:.0f}** |'),
    ('ablate-best', 'speedup_vs_fp32_baseline_1200s_compiling_from_cache', '**47** | {:.0f} |'),
    ('ablate-best', 'speedup_vs_fp32_baseline_1200s_nothing_cached', '**47** | 27 | {:.1f} |'),
    ('ablate-best', 'strong_bpb_120s', '| {:.3f} | 125 s |'),
    ('ablate-best', 'strong_seconds_120s', '| 1.357 | {:.0f} s |'),
    ('ablate-best', 'best_seconds_to_strong_bpb_120s', '| 125 s | {:.1f} s |'),
    ('ablate-best', 'speedup_vs_strong_baseline_120s', '| 35.2 s | **{:.1f}** |'),
    ('ablate-best', 'speedup_vs_strong_baseline_120s_compiling_from_cache', '**3.6** | {:.1f} |'),
    ('ablate-best', 'speedup_vs_strong_baseline_120s_nothing_cached', '**3.6** | 2.5 | {:.2f} |'),
    ('ablate-best', 'strong_bpb_450s', '| {:.3f} | 464 s |'),
    ('ablate-best', 'strong_seconds_450s', '| 1.170 | {:.0f} s |'),
    ('ablate-best', 'best_seconds_to_strong_bpb_450s', '| 464 s | {:.0f} s |'),
    ('ablate-best', 'speedup_vs_strong_baseline_450s', '| 135 s | **{:.1f}** |'),
    ('ablate-best', 'speedup_vs_strong_baseline_450s_compiling_from_cache', '**3.4** | {:.1f} |'),
    ('ablate-best', 'speedup_vs_strong_baseline_450s_nothing_cached', '**3.4** | 3.0 | {:.1f} |'),
    ('ablate-best', 'speedup_vs_strong_baseline_450s_low', '90 and {:.2f} to 3.47'),
    ('ablate-best', 'speedup_vs_strong_baseline_450s_high', '90 and 3.38 to {:.2f}'),
    ('ablate-best', 'strong_less_best_bpb_450s', 'lower by {:.3f}'),
    ('ablate-best', 'best_seconds_147s', 'its runs are of {:.0f} s'),
    ('ablate-best', 'best_bpb_147s', '150 s and end at {:.3f}'),
    ('ablate-best', 'speedup_vs_strong_baseline_450s_at_the_end_of_best', 'it is still {:.1f} times as soon'),
    ('ablate', 'two_kv_heads_factor_120s', 'slower to equal quality, {:.2f} times as soon'),
    ('ablate', 'two_kv_heads_text_rate_120s', 'as soon, of it {:.2f} in speed; RMSNorm'),
    ('ablate', 'rmsnorm_swiglu_factor_120s', 'SwiGLU make it {:.2f} times as soon'),
    ('ablate', 'ultra_bpb_120s', "{:.3f} by `ultra`'s ten stages"),
    ('ablate', 'ultra_token_timeline_bpb_120s', 'bits per byte | **{:.3f}** by the token timeline, 54'),
    ('ablate', 'ultra_projection_bpb_120s', '120 s, bits per byte | {:.3f}, 2.98'),
    ('ablate', 'ultra_projection_bpb_120s', '0.088, `ultra` ends at {:.3f}, lower'),
    ('ablate', 'ultra_projection_factor_120s', '1.742, {:.2f} times as soon as `ultra`; with'),
    ('ablate', 'ultra_other_start_bpb_120s', 'some of it back: {:.3f}. In'),
    ('ablate', 'ultra_other_start_and_timeline_bpb_120s', 'the token timeline at the full rate **{:.3f}**, 3.09'),
    ('ablate', 'ultra_other_start_and_timeline_bpb_120s', 'timeline at the full rate `ultra` ends at {:.3f} ('),
    ('ablate', 'ultra_token_timeline_bpb_120s', '(`shape=timeline`) | **{:.3f}** |'),
    ('ablate', 'ultra_token_timeline_at_the_full_rate_bpb_120s', '| **1.793** | {:.3f} |'),
    ('ablate', 'ultra_late_bpb_120s', '(`late`) | {:.3f} |'),
    ('ablate', 'ultra_late_at_the_full_rate_bpb_120s', '| 1.843 | {:.3f} |'),
    ('ablate', 'ultra_bpb_120s', 'as in `ultra` | {:.3f} |'),
    ('ablate', 'ultra_ten_at_the_full_rate_bpb_120s', '| 1.874 | {:.3f} |'),
    ('ablate', 'ultra_from_32_bpb_120s', '(`from32`) | {:.3f} |'),
    ('ablate', 'ultra_from_32_at_the_full_rate_bpb_120s', '| 1.882 | {:.3f} |'),
    ('ablate', 'ultra_no_curriculum_bpb_120s', '(`ultra_no_curriculum`) | – | {:.3f} |'),
    ('ablate', 'ultra_windows_bpb_120s', '(`window`) | {:.3f} |'),
    ('ablate', 'ultra_windows_at_the_full_rate_bpb_120s', '| 2.063 | {:.3f} |'),
    ('small-curricula', 'bpb_timeline', '| 1.814 | {:.3f} |'),
    ('small-curricula', 'bpb_timeline_full_rate', '| 2.347 | **{:.3f}** |'),
    ('small-curricula', 'bpb_late', '| 1.851 | {:.3f} |'),
    ('small-curricula', 'bpb_late_full_rate', '1.851 | 2.347 | {:.3f} |'),
    ('small-curricula', 'bpb_ten', '| 1.852 | {:.3f} |'),
    ('small-curricula', 'bpb_ten_full_rate', '| 1.852 | 2.343 | {:.3f} |'),
    ('small-curricula', 'bpb_from32', '| 1.875 | {:.3f} |'),
    ('small-curricula', 'bpb_from32_full_rate', '| 1.875 | 2.337 | {:.3f} |'),
    ('small-curricula', 'bpb_constant', '| 1.922 | – | {:.3f} |'),
    ('small-curricula', 'bpb_window', '| 2.048 | {:.3f} |'),
    ('small-curricula', 'bpb_window_full_rate', '| 2.048 | 2.364 | {:.3f} |'),
    ('ablate', 'ultra_other_start_and_timeline_factor_120s', '**1.733**, {:.2f} times as soon as'),
    ('ablate', 'ultra_other_start_and_timeline_speedup_vs_fp32_baseline_120s', 'and {:.1f} times as soon as GPT-2 in FP32 to'),
    ('ablate', 'token_timeline_factor_over_constant_120s', '{:.2f} times as soon as rows of 2,048 alone'),
    ('ablate', 'ultra_no_curriculum_bpb_120s', '2,048 alone, which end at {:.3f} (claimed'),
    ('ablate-best', 'half_of_the_tokens_through_all_blocks_bpb_450s', '`best` ends at {:.3f}, no better'),
    ('ablate', 'all_blocks_from_256_bpb_450s', 'no better than the {:.3f} of all blocks throughout with plain'),
    ('ablate', 'ultra_speedup_vs_fp32_baseline_120s', 'claimed, does not: in two minutes it is {:.1f} times as soon as'),
    ('ablate', 'ultra_other_start_and_timeline_speedup_vs_fp32_baseline_120s', '`): {:.1f} times as soon as GPT-2 in FP32, so'),
    ('ablate', 'strong_ultra_bpb_120s', 'AdamW, is weaker: {:.3f} after'),
    ('ablate', 'strong_ultra_bpb_120s', 'at the best of the rates tried, ends lower: {:.3f}'),
    ('ablate', 'ultra_bpb_120s', 'own rate was not tuned, has {:.3f}'),
    ('ablate', 'flash_attention_times_as_fast', 'flash attention {:.1f} times as fast'),
    ('ablate', 'flash_attention_times_less_memory', 'in {:.1f} times less memory'),
    ('ablate', 'factor_over_all_blocks_from_256_30s', 'was worth {:.2f} times after 30 s'),
    ('ablate', 'factor_over_all_blocks_from_256_100s', 'after 30 s and {:.2f} after 100, before'),
    ('ablate', 'ten_blocks_alone_bpb_100s', 'with ten blocks alone (87M parameters) at {:.3f}'),
    ('ablate', 'best_bpb_100s', '`best` then ended at {:.3f} after 102'),
    ('ablate', 'best_seconds_100s', '`best` then ended at 1.214 after {:.0f} s'),
    ('ablate', 'ultra_speedup_vs_fp32_baseline_120s', '{:.1f} times as soon where GPT-2 ends'),
    ('ablate', 'ultra_text_rate_over_baseline_120s', '{:.1f} times as much text a second'),
    ('ablate', 'ultra_text_to_equal_quality_over_baseline_120s', 'needs {:.1f} times as much'),
    ('ablate', 'factor_fp8_alone', 'between the linears, {:.1f} (claimed 2.0)'),
    ('ablate', 'factor_fused_alone', 'fused steps {:.2f}, of it 1.08'),
    ('ablate', 'factor_curriculum_alone', 'curriculum {:.2f} (3.0)'),
    ('ablate', 'factor_superbpe_alone', 'SuperBPE {:.2f} (1.6)'),
    ('ablate', 'factor_batch_alone', 'largest batches {:.2f} (1.3)'),
    ('ablate', 'fused_text_rate_alone', 'of it {:.2f} in speed (1.2)'),
    ('ablate', 'factor_curriculum_in_stack', '| curriculum {:.2f}, of it'),
    ('ablate', 'curriculum_text_rate_in_stack', 'of it {:.2f} in speed; FP8'),
    ('ablate', 'fp8_text_rate_in_stack', 'of it {:.2f}; fused'),
    ('ablate', 'fused_text_rate_in_stack', 'of it {:.2f}; SuperBPE'),
    ('ablate', 'factor_fp8_in_stack', '; FP8 {:.2f}, of it'),
    ('ablate', 'factor_fused_in_stack', '; fused steps {:.2f}, of it'),
    ('ablate', 'factor_superbpe_in_stack', '; SuperBPE {:.2f}; an eighth'),
    ('ablate', 'factor_batch_in_stack', 'of the largest batches {:.2f}; one seed'),
    ('ablate', 'inheritance_factor_30s', 'a depth to grow, is worth {:.2f} times after 30 s'),
    ('ablate', 'inheritance_factor_100s', 'after 30 s, {:.2f} after 100 and'),
    ('ablate', 'inheritance_factor_450s', '{:.2f} after 450, which one seed'),
    ('kernel-vocab-loss', 'ms', '{:.0f} ms and 0.37 GB'),
    ('kernel-vocab-loss', 'peer_cce_ms', 'cut-cross-entropy {:.0f} ms'),
    ('kernel-vocab-loss', 'peer_cce_exact_ms', 'or {:.0f} with all gradients'),
    ('quickstart', 'val_bpb', '{:.3f} bits per byte'),
    ('quickstart', 'xz_bpb', 'needs {:.3f}'),
    ('quickstart', 'seconds', 'after {:.0f} s'),
    ('quickstart', 'xz_given_training_bpb', 'or {:.3f} when'),
    ('bench-ultra', 'tokens_per_second', '{:,.0f} tokens/s'),
    ('bench-ultra', 'fp8_over_bf16', '{:.2f} times as fast'),
    ('fp8-quality', 'bpb_fp8', '{:.4f} against'),
    ('fp8-quality', 'bpb_bf16', 'against {:.4f}'),
    ('faults', 'tries', '{} tries, nothing lost'),
    ('tokenizer', 'train_minutes', '{:.1f} minutes'),
    ('tokenizer', 'superbpe_bytes_per_token', '{:.2f} bytes a token'),
    ('tokenizer', 'gpt2_bytes_per_token', 'GPT-2 {:.2f}'),
    ('tokenizer', 'bpe_bytes_per_token', 'plain BPE {:.2f}'),
  ],
)
def test_the_figures_that_readme_tells_are_the_records(record, figure, form):
  records = (tiny.REPOSITORY / 'experiments' / 'records' / name for name in re.findall(rf'`([\d-]+_{record})`', README))
  figures = next(f for r in records if figure in (f := json.loads((r / 'record.json').read_text())['figures']))
  assert form.format(figures[figure]['value']) in ' '.join(README.split())


def test_the_first_table_says_which_aims_are_met():
  rows = re.findall(r'\| \*\*([\d.]+)\*\* \| ([\d.]+) \| ([\d.]+) \| (\d+): (\w+), (\w+), (\w+) \|', README)
  assert len(rows) == 4
  for *factors, aim, training, cached, cold in rows:
    assert [training, cached, cold] == ['met' if float(factor) >= int(aim) else 'missed' for factor in factors]


@pytest.mark.parametrize(
  ('record', 'lengths', 'peer', 'pattern'),
  [
    ('short', ('_8', '_32', '_256'), 'cudnn', r'\| ([\d., ]+) times as fast as cuDNN \|'),
    ('long', ('_512', '_1536', '_2048'), 'cudnn_compiled', r'\| ([\d., ]+) times as fast as cuDNN, rotation'),
  ],
)
def test_attention_is_as_many_times_as_fast_as_its_record_says(record, lengths, peer, pattern):
  path = tiny.REPOSITORY / f'experiments/records/2026-11-29_kernel-attention-{record}/record.json'
  figures = json.loads(path.read_text())['figures']
  ours, theirs = ([figures[f'{name}{length}']['value'] for length in lengths] for name in ('ms', f'peer_{peer}_ms'))
  times = re.search(pattern, README).group(1).split(', ')
  assert [float(n) for n in times] == [pytest.approx(a / b, rel=0.01) for a, b in zip(theirs, ours, strict=True)]


def test_the_fields_that_readme_names_exist():
  from yxanul.config import cli
  from yxanul.config.convert import default_config

  for field in re.findall(r'--config\.([\w.\[\]]+)', README):
    cli._check_field(default_config(), field)
