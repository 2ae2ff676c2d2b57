"""Every kind of file, read from any cursor; and what happens to what cannot be read."""

import gzip
import json
import lzma

import pyarrow
import pyarrow.parquet
import pytest

from yxanul.config.spec import DataSpec
from yxanul.data import sources, sources_files
from yxanul.data.sources_document import START

TEXTS = [f'Document {i} — “naïve” 日本 \U0001f680\n\nSecond paragraph.' for i in range(40)]


def write_lines(path, texts=TEXTS):
  data = ''.join(json.dumps({'text': text, 'score': i / 2}) + '\n' for i, text in enumerate(texts)).encode()
  if path.suffix == '.gz':
    data = gzip.compress(data[:999]) + gzip.compress(data[999:])  # two members, as `cat` makes them
  elif path.suffix == '.xz':
    data = lzma.compress(data)
  elif path.suffix == '.zst':
    data = pyarrow.compress(data[:999], 'zstd', asbytes=True) + pyarrow.compress(data[999:], 'zstd', asbytes=True)
  path.write_bytes(data)


def write_parquet(path, texts=TEXTS, group=7, **columns):
  table = pyarrow.table({'text': texts, 'score': [i / 2 for i in range(len(texts))], **columns})
  pyarrow.parquet.write_table(table, path, row_group_size=group)


def read(source, report=None, start=START, **fields):
  found = sources.find(str(source))
  arguments = {} if report is None else {'report': report}
  return list(sources.documents(found, DataSpec(**fields), start, **arguments))


def problems_of(source, **fields):
  """(texts read, problems met) when problems are skipped."""
  problems = []
  texts = [document.text for document in read(source, problems.append, **fields)]
  return texts, [str(problem) for problem in problems]


@pytest.mark.parametrize('name', ['a.jsonl', 'a.jsonl.gz', 'a.jsonl.zst', 'a.json.xz', 'a.parquet'])
def test_reads_every_kind_and_goes_on_from_every_cursor(tmp_path, name):
  (write_parquet if name.endswith('parquet') else write_lines)(tmp_path / name)
  documents = read(tmp_path / name)
  assert [d.text for d in documents] == TEXTS
  assert [d.score for d in documents] == [i / 2 for i in range(40)]
  assert {d.source for d in documents} == {'a'}
  for i in (0, 5, 6, 7, 20, 39):
    assert read(tmp_path / name, start=documents[i].after) == documents[i + 1 :]


def test_a_folder_is_all_of_its_files_in_the_order_of_their_paths(tmp_path):
  for folder in ('b', 'a', '.hidden'):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / 'text.txt').write_text(f'in {folder}')
    (tmp_path / folder / 'image.png').write_bytes(b'\x89PNG')
  write_lines(tmp_path / 'b' / 'a.jsonl')
  documents = read(tmp_path)
  assert [d.text for d in documents] == ['in a', *TEXTS, 'in b']
  assert [d.source for d in documents] == ['a', *['b'] * 41]
  assert read(tmp_path, start=documents[20].after) == documents[21:]
  assert [d.text for d in read(tmp_path / '*' / '*.txt')] == ['in a', 'in b']


@pytest.mark.parametrize('suffix', ['', '.gz', '.xz'])
def test_a_long_text_file_is_cut_at_blank_lines(tmp_path, suffix):
  text = ''.join(f'Paragraph {i}: ' + 'wörd ' * (i % 300) + '\n\n' for i in range(1500))
  write = {'': bytes, '.gz': gzip.compress, '.xz': lzma.compress}[suffix]
  (tmp_path / f'a.txt{suffix}').write_bytes(write(text.encode()))
  documents = read(tmp_path)
  assert ''.join(d.text for d in documents) == text
  assert len(documents) == pytest.approx(len(text.encode()) / sources_files.PIECE_BYTES, rel=0.1)
  assert all(d.text.endswith('\n\n') and len(d.text.encode()) <= sources_files.PIECE_BYTES for d in documents)
  for i in range(len(documents)):
    assert read(tmp_path, start=documents[i].after) == documents[i + 1 :]


def test_text_without_any_line_is_cut_between_characters(tmp_path):
  (tmp_path / 'a.txt').write_text('x' + '日' * 100_000)
  assert ''.join(d.text for d in read(tmp_path)) == 'x' + '日' * 100_000


def test_columns_are_named_by_the_configuration(tmp_path):
  write_parquet(tmp_path / 'a.parquet', body=TEXTS[::-1], origin=['web'] * 40, lang=['en'] * 40, n=list(range(40)))
  fields = {'text_column': 'body', 'source_column': 'origin', 'language_column': 'lang', 'token_count_column': 'n'}
  documents = read(tmp_path, **fields)
  assert [(d.text, d.source, d.language, d.token_count) for d in documents] == [
    (text, 'web', 'en', i) for i, text in enumerate(TEXTS[::-1])
  ]


@pytest.mark.parametrize(
  ('source', 'message'),
  [
    ('', r"^config.data.source: missing, wants a path, a glob, a hub name \(OWNER/NAME\) or 'python-docs'$"),
    ('/no/such/file.jsonl', r"^config.data.source: '/no/such/file.jsonl' does not exist"),
    ('no-such-folder', r"^config.data.source: 'no-such-folder' does not exist"),
    ('FOLDER', r"^config.data.source: '.*' holds no file to read, wants one of .parquet, .jsonl"),
    ('FOLDER/*.parquet', r"^config.data.source: '.*' holds no file to read"),
    ('FOLDER/image.png', r"^config.data.source: '.*' holds no file to read"),
  ],
)
def test_a_missing_or_empty_source_is_named(tmp_path, source, message):
  (tmp_path / 'image.png').write_bytes(b'\x89PNG')
  with pytest.raises(ValueError, match=message) as error:
    read(source.replace('FOLDER', str(tmp_path)))
  assert '\n' not in str(error.value)


def test_a_hub_name_is_told_from_a_path(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'owner' / 'here').mkdir(parents=True)
  hub = ('HuggingFaceFW/fineweb-edu', 'HuggingFaceFW/fineweb-edu:sample-10BT', 'owner/name:config@refs/pr/1')
  assert all(map(sources.is_hub_name, hub))
  assert not any(map(sources.is_hub_name, ('owner/here', 'owner/a.parquet', '/a/b', './a', 'a/b/c', 'a', 'python-docs', 'a/*')))


def bad_files(folder):
  """name -> (text of the problem, texts that can still be read)."""
  lines = [json.dumps({'text': text}).encode() for text in TEXTS]
  offset = sum(len(line) + 1 for line in lines[:2])
  (folder / 'utf8.jsonl').write_bytes(b'\n'.join([*lines[:2], b'{"text": "caf\xe9"}', *lines[3:]]))
  yield 'utf8.jsonl', f'utf8.jsonl, byte {offset + 13}: not UTF-8 (invalid continuation byte), line 3', TEXTS[:2] + TEXTS[3:]
  (folder / 'line.jsonl').write_bytes(b'\n'.join([*lines[:2], b'{"text": ', *lines[3:]]))
  yield 'line.jsonl', 'line.jsonl, line 3: not JSON (Expecting value, column 10)', TEXTS[:2] + TEXTS[3:]
  (folder / 'list.jsonl').write_bytes(b'\n'.join([lines[0], b'[1]', lines[2]]))
  yield 'list.jsonl', "list.jsonl, line 2: a JSON list, wants an object with column 'text'", [TEXTS[0], TEXTS[2]]
  (folder / 'column.jsonl').write_bytes(b'\n'.join([lines[0], b'{"txt": "a", "b": 1}', lines[2]]))
  yield 'column.jsonl', "column.jsonl, line 2: no column 'text' (data.text_column); it has 'txt', 'b'", [TEXTS[0], TEXTS[2]]
  (folder / 'type.jsonl').write_bytes(b'\n'.join([lines[0], b'{"text": 5}', lines[2]]))
  yield 'type.jsonl', "type.jsonl, line 2: column 'text' holds int, wants text", [TEXTS[0], TEXTS[2]]
  (folder / 'score.jsonl').write_bytes(b'\n'.join([lines[0], b'{"text": "a", "score": "high"}', lines[2]]))
  yield 'score.jsonl', "score.jsonl, line 2: column 'score' holds 'high', wants a number", [TEXTS[0], TEXTS[2]]
  (folder / 'surrogate.jsonl').write_bytes(b'\n'.join([lines[0], b'{"text": "a\\ud800"}', lines[2]]))
  yield 'surrogate.jsonl', 'surrogate.jsonl, line 2: not valid Unicode (surrogates not allowed)', [TEXTS[0], TEXTS[2]]
  (folder / 'cut.jsonl.gz').write_bytes(gzip.compress(b'\n'.join(lines))[:-20])
  yield 'cut.jsonl.gz', 'cannot be read (Compressed file ended before the end-of-stream marker', None
  (folder / 'cut.jsonl.xz').write_bytes(lzma.compress(b'\n'.join(lines))[:-20])
  yield 'cut.jsonl.xz', 'cannot be read (Compressed file ended before the end-of-stream marker', None
  (folder / 'cut.jsonl.zst').write_bytes(pyarrow.compress(b'\n'.join(lines), 'zstd', asbytes=True)[:-20])
  yield 'cut.jsonl.zst', 'cut.jsonl.zst, byte', None
  (folder / 'not.jsonl.gz').write_bytes(b'plain')
  yield 'not.jsonl.gz', 'not.jsonl.gz, byte 0: cannot be read (Not a gzipped file', []
  (folder / 'links').mkdir()
  (folder / 'links' / 'gone.txt').symlink_to(folder / 'nowhere')
  yield 'links', 'gone.txt, byte 0: cannot be read (No such file or directory)', []
  (folder / 'utf8.txt').write_bytes(b'a' * 70_000 + b'\xff' + b'b' * 200_000)
  yield 'utf8.txt', 'utf8.txt, byte 70000: not UTF-8 (invalid start byte)', None
  (folder / 'not.parquet').write_bytes(b'PAR1 is not all that it takes')
  yield 'not.parquet', 'not.parquet: not a readable parquet file', []
  pyarrow.parquet.write_table(pyarrow.table({'body': TEXTS}), folder / 'column.parquet')
  yield 'column.parquet', "column.parquet: no column 'text' (data.text_column); it has 'body'", []
  storage = pyarrow.array([b'fine', b'caf\xe9', b'fine too'])
  broken = pyarrow.Array.from_buffers(pyarrow.string(), 3, storage.buffers())
  pyarrow.parquet.write_table(pyarrow.table({'text': broken}), folder / 'utf8.parquet')
  yield 'utf8.parquet', 'utf8.parquet, row 1, byte 3: not UTF-8 (unexpected end of data)', ['fine', 'fine too']


@pytest.fixture
def bad(tmp_path):
  return tmp_path, list(bad_files(tmp_path))


def test_what_cannot_be_read_stops_in_one_line(bad):
  folder, cases = bad
  for name, message, _ in cases:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole line is compared
      read(folder / name)
    assert message in str(error.value)
    assert '\n' not in str(error.value)


def test_what_cannot_be_read_is_skipped_and_named(bad):
  folder, cases = bad
  for name, message, expected in cases:
    texts, [problem] = problems_of(folder / name)
    assert message in problem
    if expected is not None:
      assert texts == expected


def test_a_corrupt_row_group_is_skipped_and_the_others_read(tmp_path):
  path = tmp_path / 'a.parquet'
  texts = [f'{i}: {"abc" * i}' for i in range(1000)]
  pyarrow.parquet.write_table(
    pyarrow.table({'text': texts}), path, row_group_size=250, compression='zstd', write_page_checksum=True
  )
  metadata = pyarrow.parquet.ParquetFile(path).metadata
  column = metadata.row_group(1).column(0)
  data = bytearray(path.read_bytes())
  middle = column.data_page_offset + column.total_compressed_size // 2
  data[middle] ^= 0xFF
  path.write_bytes(data)
  found, [problem] = problems_of(path)
  assert found == texts[:250] + texts[500:]
  assert problem.startswith(f'{path}, row group 1: cannot be read from row 250 to 500 (')
  documents = read(path, lambda _: None)
  assert [d.text for d in read(path, lambda _: None, start=documents[249].after)] == texts[500:]
  with pytest.raises(ValueError, match='row group 1: cannot be read'):
    read(path)


def test_null_text_is_an_empty_document(tmp_path):
  write_parquet(tmp_path / 'a.parquet', ['a', None, 'b'])
  assert [d.text for d in read(tmp_path)] == ['a', '', 'b']
