"""Exported folders, loaded by transformers with no code of ours, and read back."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import pre_tokenizers

from tests import tiny
from tests.inference import small
from tests.inference.generate_test import GPT2
from yxanul.data import tokenizer as tokenizers
from yxanul.data.python_docs import read as prose
from yxanul.inference import hugging_face
from yxanul.inference.card import splits
from yxanul.inference.export import export, measured, read_export
from yxanul.inference.generate import Sampling, complete, streams
from yxanul.inference.load import load
from yxanul.model import transformer

RESULT = {'val_bpb': 1.2345, 'tokens': 1000, 'hardware': 'CPU', 'versions': {'torch': '2.13'}}
TEXTS = ['By the way, 1234567 x² of the\n\n  end.', ' \u00a0\u3000é日本', "I'm <|endoftext|> here", 'a: b\r\n\tc', '\x00\x7f']
FAMILIES = {
  'llama': {},
  'llama-biased': {'model__bias': True},
  'llama-scaled': {'model__input_scale': 4.0},
  'llama-whole-table': {'model__embedding_rank': 0},
  'gpt2': GPT2,
  'gpt2-whole-table': GPT2 | {'model__embedding_rank': 0},
}


@pytest.fixture(scope='module', params=FAMILIES)
def model(request, trained_run):
  """Of each family, with the tokenizer of the tiny run, norms and biases that would be missed."""
  one = small.model(load(trained_run).tokenizer, std=0.1, **FAMILIES[request.param])
  generator = torch.Generator().manual_seed(5)
  params = {name: p + 0.1 * torch.randn(p.shape, generator=generator) for name, p in one.params.items()}
  return dataclasses.replace(one, params=params)


def tokens() -> torch.Tensor:
  return torch.randint(0, 511, (2, 50), generator=torch.Generator().manual_seed(1))


def logits(model) -> torch.Tensor:
  return transformer.apply(model.params, tokens(), model.spec, model.numerics)


def run_example(folder: Path) -> str:
  """What the Python on the card of an exported folder prints, its only change the name of the folder."""
  code = (folder / 'README.md').read_text().split('```python\n')[1].split('```')[0].replace('FOLDER', str(folder))
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  return done.stdout


def same(a: dict, b: dict) -> bool:
  return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


@torch.no_grad()
def test_transformers_loads_it_and_computes_the_same(model, tmp_path):
  transformers = pytest.importorskip('transformers')
  export(model, tmp_path, RESULT)
  theirs, loading = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
  assert not any(loading.values()), loading
  assert type(theirs).__module__.startswith('transformers.models.')
  assert not list(tmp_path.glob('*.py'))
  assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1  # who may read one may read all
  ours = logits(model)
  assert ours.abs().max() > 0.5
  torch.testing.assert_close(theirs.eval()(tokens()).logits, ours, atol=1e-4, rtol=0)
  assert theirs.generation_config.eos_token_id == model.tokenizer.end_of_text_id


@torch.no_grad()
def test_transformers_writes_the_same_text_as_we_do(trained_run, tmp_path):
  transformers = pytest.importorskip('transformers')
  model = load(trained_run)
  export(model, tmp_path, measured(trained_run, model))
  theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
  (text,) = complete(model, [''], Sampling(tokens=20, temperature=0), streams(0, 1))
  begin = torch.tensor([[tokenizer.bos_token_id]])
  found = theirs.generate(begin, max_new_tokens=20, do_sample=False)[0, 1:]
  assert tokenizer.decode(found, skip_special_tokens=True) == text
  card = (tmp_path / 'README.md').read_text()
  assert f'{json.loads((trained_run / "result.json").read_text())["val_bpb"]:.4f}' in card
  assert 'Not finished' not in card
  assert run_example(tmp_path).startswith('The history of')


def test_the_tokenizer_encodes_as_ours_does(trained_run, tmp_path):
  transformers = pytest.importorskip('transformers')
  model = load(trained_run)
  export(model, tmp_path, {})
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  assert isinstance(theirs, transformers.PreTrainedTokenizerFast)
  texts = TEXTS + [text for _, text, held_out in prose() if held_out]
  for text, ids in zip(texts, model.tokenizer.encode_batch(texts), strict=True):
    assert theirs(text)['input_ids'] == ids.tolist()
    assert theirs.decode(ids.tolist()) == text
  assert theirs.eos_token_id == theirs.bos_token_id == model.tokenizer.end_of_text_id
  assert len(theirs) == model.tokenizer.vocab_size


def test_factorized_comes_back_bit_for_bit(model, tmp_path):
  export(model, tmp_path, RESULT, factorized=True)
  again = read_export(tmp_path)
  assert same(again.params, model.params)
  assert again.spec == model.spec
  assert again.tokenizer.fingerprint == model.tokenizer.fingerprint
  assert measured(tmp_path, again) == RESULT


def test_multiplied_out_comes_back_within_rounding(model, tmp_path):
  export(model, tmp_path / 'a', RESULT)
  again = load(tmp_path / 'a')
  blocks = {name for name in model.params if not name.startswith('embedding.')}
  assert same({n: again.params[n] for n in blocks}, {n: model.params[n] for n in blocks})
  assert torch.equal(again.params['embedding.table'], hugging_face.multiplied_out(model.params, model.spec))
  assert again.spec == dataclasses.replace(model.spec, embedding_rank=0)
  torch.testing.assert_close(logits(again), logits(model), atol=1e-4, rtol=0)
  export(again, tmp_path / 'b', RESULT)
  first, second = (hugging_face.to_theirs(one.params, one.spec) for one in (again, load(tmp_path / 'b')))
  assert same(first, second)
  assert (tmp_path / 'a' / 'model.safetensors').read_bytes() == (tmp_path / 'b' / 'model.safetensors').read_bytes()


def test_what_is_published_names_no_path_of_this_machine(trained_run, tmp_path):
  model = load(trained_run)
  data = dataclasses.replace(model.experiment.data, source='/home/me/secret', directory='/home/me/data')
  export(
    dataclasses.replace(model, experiment=dataclasses.replace(model.experiment, data=data)), tmp_path, {}, dtype='bfloat16'
  )
  assert not any(b'/home/me' in path.read_bytes() for path in tmp_path.iterdir())
  assert load(tmp_path).params['final_norm.weight'].dtype == torch.float32


def test_only_an_earlier_export_is_overwritten(trained_run, tmp_path):
  model = load(trained_run)
  data = tmp_path / 'data'
  shutil.copytree(trained_run / 'data', data)
  kept = {path: path.read_bytes() for path in data.rglob('*') if path.is_file()}
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine' / 'README.md').write_text('mine')
  (tmp_path / 'file').write_text('mine')
  for folder in (data, data / 'tokenizer', tmp_path / 'mine', tmp_path / 'file'):
    with pytest.raises(ValueError, match='holds something else'):
      export(model, folder, {})
  assert kept == {path: path.read_bytes() for path in data.rglob('*') if path.is_file()}
  assert [path.read_text() for path in (tmp_path / 'mine').iterdir()] == ['mine']
  (tmp_path / 'empty').mkdir()
  for _ in range(2):
    export(model, tmp_path / 'empty', {})


def test_mistakes_are_named(model, tmp_path, trained_run):
  mixed = dataclasses.replace(model.spec, activation='gelu' if model.spec.activation == 'swiglu' else 'swiglu')
  wrong = dataclasses.replace(model, experiment=dataclasses.replace(model.experiment, model=mixed))
  with pytest.raises(ValueError, match=r'model.activation=.*--factorized keeps any'):
    export(wrong, tmp_path / 'x', {})
  with pytest.raises(ValueError, match='holds something else'):
    export(model, trained_run, {})
  with pytest.raises(ValueError, match=r'no config.json'):
    load(tmp_path / 'x')
  export(model, tmp_path / 'y', {})
  (tmp_path / 'y' / 'model.safetensors').write_bytes(b'\x08' + bytes(7) + b'{"a": 1}')
  with pytest.raises(ValueError, match=r'model\.safetensors: '):
    load(tmp_path / 'y')
  for config in ('{"model_type": "llama"}', '{"model_type": "llama", "yxanul": {}}', '{"yxanul": []}'):
    (tmp_path / 'y' / 'config.json').write_text(config)
    with pytest.raises(ValueError, match='neither the workdir of a run nor a folder'):
      load(tmp_path / 'y')
  (tmp_path / 'y' / 'config.json').write_text('[]')
  with pytest.raises(ValueError, match='not a JSON object'):
    load(tmp_path / 'y')


def test_the_card_knows_which_splits_llama_cpp_has():
  entries = {character: i for i, character in enumerate('ab')}
  ways = {
    'superbpe': tokenizers.superword_splits(),
    'gpt-2': pre_tokenizers.ByteLevel(add_prefix_space=False),
    None: tokenizers.word_splits(),
  }
  for name, way in ways.items():
    assert splits(tokenizers.build(entries, [], way, small.SPECIAL)) == name


def test_llama_cpp_converts_it_by_the_cards_command(trained_run, tmp_path):
  """Needs a checkout of llama.cpp (its converter is in no package) named by LLAMA_CPP, and its requirements."""
  checkout = os.environ.get('LLAMA_CPP')
  if not checkout:
    pytest.skip('LLAMA_CPP names a checkout of llama.cpp; no wheel holds its converter')
  gguf = pytest.importorskip('gguf')
  model = load(trained_run)
  export(model, tmp_path, {})
  command = (tmp_path / 'README.md').read_text().split('```bash\n')[-1].split('```')[0]
  command = command.replace('FOLDER', str(tmp_path)).replace('model.gguf', str(tmp_path / 'model.gguf'))
  path = os.pathsep.join([checkout, os.environ.get('PYTHONPATH', '')])
  done = subprocess.run(
    command, shell=True, capture_output=True, text=True, check=False, cwd=checkout, env=os.environ | {'PYTHONPATH': path}
  )
  assert done.returncode == 0, done.stderr
  reader = gguf.GGUFReader(tmp_path / 'model.gguf')
  found = {tensor.name: tensor for tensor in reader.tensors}
  assert reader.get_field('tokenizer.ggml.pre').contents() == 'superbpe'
  assert reader.get_field('llama.attention.head_count_kv').contents() == model.spec.n_kv_heads
  assert len(found) == 2 + 9 * model.spec.n_layers
  table = torch.from_numpy(found['token_embd.weight'].data.copy()).float()
  assert table.shape == (model.spec.vocab_size, model.spec.d_model)


def test_the_tools_do_all_of_it(trained_run, tmp_path):
  def run(tool: str, *arguments: str) -> tuple[int, str, str]:
    return tiny.finish(tiny.start(f'tools.{tool}', *arguments))

  exported, unfinished = str(tmp_path / 'exported'), tmp_path / 'unfinished'
  for name in ('checkpoints', 'data'):
    shutil.copytree(trained_run / name, unfinished / name)
  shutil.copy(trained_run / 'config.json', unfinished)
  status, output, errors = run('export', f'--model={unfinished}', f'--output={exported}', '--factorized')
  assert (status, 'README.md there' in output) == (0, True), errors
  step, n_tokens = load(trained_run).checkpoint
  assert n_tokens == json.loads((trained_run / 'result.json').read_text())['tokens']
  note = f'Not finished: the checkpoint of step {step:,}, after {n_tokens:,} tokens.'
  assert output.endswith(f'{note}\n')
  assert f'**{note}**' in (tmp_path / 'exported' / 'README.md').read_text()
  assert measured(Path(exported), load(Path(exported)))['finished'] is False  # an export of the export says so too
  run_example(Path(exported))
  status, _, errors = run('generate', '--model=')
  assert (status, errors.startswith('error: --model: missing')) == (2, True), errors
  status, output, errors = run('generate', f'--model={exported}', '--prompt=The th', '--tokens=12', '--seed=3', '--top_p=0.9')
  sampling = Sampling(tokens=12, top_p=0.9)
  assert (status, output) == (0, 'The th' + complete(load(trained_run), ['The th'], sampling, streams(3, 1))[0] + '\n'), errors
  status, output, errors = run('evaluate', f'--model={trained_run}', '--json=-', '--stride=96')
  assert status == 0, errors
  assert json.loads(output)[-1]['source'] == 'all'


def test_prompts_are_read_from_the_terminal(trained_run):
  """A line is a prompt; an empty one lets the last text go on."""
  command = [
    sys.executable,
    '-m',
    'yxanul.tools.generate',
    f'--model={trained_run}',
    '--tokens=6',
    '--seed=5',
    '--temperature=1',
  ]
  root = Path(tokenizers.__file__).parents[2]
  done = subprocess.run(command, input='The th\n\nIf\n', capture_output=True, text=True, check=False, cwd=root)
  assert done.returncode == 0, done.stderr
  model, sampling = load(trained_run), Sampling(tokens=6, temperature=1.0)
  texts, text = [], ''
  for number, typed in enumerate(['The th', '', 'If']):
    text = typed or text
    text += complete(model, [text], sampling, streams(5 + number, 1))[0]
    texts.append(text)
  assert done.stdout == ''.join(f'{text}\n' for text in texts)


def test_a_person_at_the_terminal_is_told_what_to_type():
  code = 'import sys; sys.stdin.isatty = lambda: True; from yxanul.tools import generate; print(list(generate._typed()))'
  root = Path(tokenizers.__file__).parents[2]
  done = subprocess.run([sys.executable, '-c', code], input='The\n', capture_output=True, text=True, check=True, cwd=root)
  assert done.stderr.startswith('a line is a prompt')
  assert done.stdout == "> > \n['The']\n"
