"""Readers of local files: parquet, JSON lines and text, the last two also compressed (.gz, .zst, .xz).

Every reader starts at any cursor it once gave out and goes on exactly there. What it cannot read it hands to `report`,
which raises or counts, and goes on behind it: a line, a row, a row group, a piece of text or the rest of a file.
"""

import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from yxanul.config.spec import DataSpec
from yxanul.data.sources_document import Cursor, Document, Problem, Report, from_row, wanted_columns

PARQUET, JSON_LINES, TEXT = ('.parquet',), ('.jsonl', '.ndjson', '.json'), ('.txt', '.text')
COMPRESSED = ('.gz', '.zst', '.xz')
PIECE_BYTES = 64 * 1024  # a longer text file becomes several documents, cut at blank lines
_BATCH_BYTES = 4 * 1024 * 1024  # of parquet decoded at a time, about
_UNREADABLE = (OSError, EOFError, lzma.LZMAError, zlib.error)  # pyarrow's IO errors are OSErrors


def kind_of(path: Path) -> tuple[str, ...] | None:
  """PARQUET, JSON_LINES or TEXT by the suffix; None for anything else."""
  suffixes = path.suffixes
  if suffixes and suffixes[-1] in COMPRESSED:
    return next((kind for kind in (JSON_LINES, TEXT) if len(suffixes) > 1 and suffixes[-2] in kind), None)
  return next((kind for kind in (PARQUET, JSON_LINES, TEXT) if suffixes and suffixes[-1] in kind), None)


def read(path: Path, file: int, start: Cursor, spec: DataSpec, source: str, report: Report) -> Iterator[Document]:
  """The documents of one file from the cursor `start`; `file` is its number in the cursors."""
  reader = {PARQUET: _parquet, JSON_LINES: _json_lines, TEXT: _text}[kind_of(path)]
  return reader(path, file, start, spec, source, report)


def _why(error: BaseException) -> str:
  return str(getattr(error, 'strerror', None) or error).split('\n')[0] or type(error).__name__


def _open(path: Path) -> BinaryIO:
  if path.suffix == '.gz':
    return gzip.open(path)
  if path.suffix == '.xz':
    return lzma.open(path)
  if path.suffix == '.zst':
    import pyarrow

    return io.BufferedReader(pyarrow.input_stream(str(path), compression='zstd'), 1 << 20)
  return path.open('rb')


def _skip_to(stream: BinaryIO, offset: int) -> None:
  if offset and stream.seekable():
    stream.seek(offset)
    return
  while offset > 0:
    offset -= len(stream.read(min(offset, 1 << 20)))


def _json_lines(path: Path, file: int, start: Cursor, spec: DataSpec, source: str, report: Report) -> Iterator[Document]:
  _, offset, number = start
  try:
    with _open(path) as stream:
      _skip_to(stream, offset)
      for line in stream:
        begin, offset, number = offset, offset + len(line), number + 1
        if line.isspace():
          continue
        try:
          row = json.loads(line.decode().rstrip('\n'))
          if not isinstance(row, dict):
            raise ValueError(f'a JSON {type(row).__name__}, wants an object with column {spec.text_column!r}')
          document = from_row(row, spec, source, (file, offset, number))
          if b'\\u' in line:
            document.text.encode()  # a lone surrogate is no text
        except UnicodeDecodeError as error:
          report(Problem('encoding', f'{path}, byte {begin + error.start}', f'not UTF-8 ({error.reason}), line {number}'))
        except UnicodeEncodeError as error:
          report(Problem('encoding', f'{path}, line {number}', f'not valid Unicode ({error.reason})'))
        except json.JSONDecodeError as error:
          report(Problem('line', f'{path}, line {number}', f'not JSON ({error.msg}, column {error.colno})'))
        except ValueError as error:
          report(Problem('line', f'{path}, line {number}', str(error)))
        else:
          yield document
  except _UNREADABLE as error:
    report(Problem('file', f'{path}, byte {offset}', f'cannot be read ({_why(error)})'))


def _cut(block: bytes) -> int:
  """Where the first piece of `block` ends: behind a blank line, else a line, else a character."""
  for mark in (b'\n\n', b'\r\n\r\n', b'\n'):
    if (at := block.rfind(mark, PIECE_BYTES // 2, PIECE_BYTES)) >= 0:
      return at + len(mark)
  at = PIECE_BYTES
  while block[at] & 0xC0 == 0x80 and at > PIECE_BYTES - 4:
    at -= 1
  return at


def _text(path: Path, file: int, start: Cursor, spec: DataSpec, source: str, report: Report) -> Iterator[Document]:
  _, offset, number = start
  try:
    with _open(path) as stream:
      _skip_to(stream, offset)
      block = b''
      while True:
        block += stream.read(4 * PIECE_BYTES)
        if not block:
          return
        while block:
          size = len(block)
          if size > PIECE_BYTES:
            size = _cut(block)
          elif more := stream.read(4 * PIECE_BYTES):
            block += more
            continue
          piece, block = block[:size], block[size:]
          begin, offset, number = offset, offset + size, number + 1
          try:
            text = piece.decode()
          except UnicodeDecodeError as error:
            report(Problem('encoding', f'{path}, byte {begin + error.start}', f'not UTF-8 ({error.reason})'))
            continue
          yield Document(text, source, (file, offset, number))
  except _UNREADABLE as error:
    report(Problem('file', f'{path}, byte {offset}', f'cannot be read ({_why(error)})'))


def _parquet(path: Path, file: int, start: Cursor, spec: DataSpec, source: str, report: Report) -> Iterator[Document]:
  import pyarrow
  import pyarrow.parquet

  try:
    # No memory map: a file truncated while it is read would kill the process.
    table = pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20, page_checksum_verification=True)
  except (*_UNREADABLE, pyarrow.ArrowException) as error:
    report(Problem('file', str(path), f'not a readable parquet file ({_why(error)})'))
    return
  with table:
    names = [name for name in wanted_columns(spec) if name in table.schema_arrow.names]
    if spec.text_column not in names:
      have = ', '.join(map(repr, table.schema_arrow.names))
      report(Problem('file', str(path), f'no column {spec.text_column!r} (data.text_column); it has {have}'))
      return
    end = 0
    for group in range(table.num_row_groups):
      begin, end = end, end + table.metadata.row_group(group).num_rows
      if end <= start[2]:
        continue
      row = begin
      rows = max(1, _BATCH_BYTES * (end - begin) // max(table.metadata.row_group(group).total_byte_size, 1))
      try:
        for batch in table.iter_batches(rows, row_groups=[group], columns=names):
          if row + batch.num_rows > start[2]:
            skipped = max(start[2] - row, 0)
            yield from _batch_rows(batch.slice(skipped), f'{path}, row', row + skipped, file, spec, source, report)
          row += batch.num_rows
      except (*_UNREADABLE, pyarrow.ArrowException) as error:
        where = f'{path}, row group {group}'
        report(Problem('row_group', where, f'cannot be read from row {row} to {end} ({_why(error)})'))


def _batch_rows(batch, where: str, row: int, file: int, spec: DataSpec, source: str, report: Report) -> Iterator[Document]:
  """The documents of a record batch whose first row is number `row` of the file."""
  import pyarrow

  names = batch.schema.names
  columns = []
  for column in batch.columns:
    try:
      columns.append(column.to_pylist())
    except UnicodeDecodeError:  # some row of it: as bytes, each is judged alone
      columns.append(column.cast(pyarrow.large_binary()).to_pylist())
  for number, values in enumerate(zip(*columns, strict=True), start=row):
    try:
      values = [value.decode() if isinstance(value, bytes) else value for value in values]
      document = from_row(dict(zip(names, values, strict=True)), spec, source, (file, 0, number + 1))
    except UnicodeDecodeError as error:
      report(Problem('encoding', f'{where} {number}, byte {error.start}', f'not UTF-8 ({error.reason})'))
    except ValueError as error:
      report(Problem('row', f'{where} {number}', str(error)))
    else:
      yield document
