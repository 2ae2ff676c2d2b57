"""Batches of selected documents, and worker processes that take them while their results come back in order."""

import itertools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import numpy as np

from yxanul.config.spec import DataSpec
from yxanul.data import sources
from yxanul.data.prepare_select import TRAIN, VALIDATION, read
from yxanul.data.sources_document import Document, Problem

BATCH_BYTES = 1024 * 1024
BATCH_DOCUMENTS = 4096
IN_PROCESS_BYTES = 8 * 1024 * 1024  # below it, starting workers takes longer than the work


class Batch(NamedTuple):
  """Documents to work on, and where reading stood behind them."""

  documents: list[Document]
  numbers: list[int]  # of each document, its place in the decisions
  is_held_out: np.ndarray  # it is of a validation source of its own
  part: int
  cursor: tuple
  read: int

  @property
  def texts(self) -> list[str]:
    return [document.text for document in self.documents]


def batches(parts: list[sources.Source], spec: DataSpec, decisions: np.ndarray, state: dict) -> Iterator[Batch]:
  """The documents to keep from where `state` stands, about BATCH_BYTES at a time; the last batch may have none.

  Raises:
    ValueError: there are more or fewer documents than decisions.
  """

  def ignore(_: Problem) -> None:
    """Selecting has counted it."""

  number, begun = state['read'], (state['part'], state['cursor'])
  part, cursor = begun
  size, documents, numbers, held_out = 0, [], [], []
  for part, document in read(parts, spec, *begun, ignore):
    if number == len(decisions):
      number += 1
      break
    cursor = document.after
    if decisions[number] in (TRAIN, VALIDATION):
      size += len(document.text)
      documents.append(document)
      numbers.append(number)
      held_out.append(part < len(parts) - 1)
    number += 1
    if size >= BATCH_BYTES or len(documents) >= BATCH_DOCUMENTS:
      yield Batch(documents, numbers, np.array(held_out), part, cursor, number)
      size, documents, numbers, held_out = 0, [], [], []
  if number != len(decisions):
    raise ValueError(f'{spec.source}: not the {len(decisions)} documents that were there a moment ago; did the files change?')
  yield Batch(documents, numbers, np.array(held_out, bool), part, cursor, number)


def work(
  todo: Iterator[Batch], function: Callable, start: Callable, arguments: tuple, total_bytes: int, workers: int
) -> Iterator[tuple[Batch, Any]]:
  """(batch, function(texts of the batch)), in the order of the batches.

  Args:
    todo: the batches.
    function: at the top level of a module, so that another process finds it.
    start: called once with `arguments` in every process that will call `function`.
    total_bytes: of text in all batches; a little of it is worked on here.
    workers: how many processes; 0: as many as cores.

  Raises:
    ChildProcessError: a worker was killed.
  """
  if total_bytes < IN_PROCESS_BYTES:
    start(*arguments)
    for batch in todo:
      yield batch, function(batch.texts)
    return
  workers = workers or len(os.sched_getaffinity(0))
  context = multiprocessing.get_context('spawn')
  pool = ProcessPoolExecutor(workers, context, _start_worker, (start, arguments))
  try:
    waiting: deque = deque()
    for batch in itertools.chain(todo, [None] * (2 * workers + 2)):
      if batch is not None:
        waiting.append((batch, pool.submit(function, batch.texts)))
      if waiting and (batch is None or len(waiting) == 2 * workers + 2):
        done, future = waiting.popleft()
        yield done, future.result()
  except BrokenProcessPool:
    raise ChildProcessError(
      f'a worker process was killed, out of memory perhaps (config.data.workers={workers}); the same command goes on from here'
    ) from None
  finally:
    pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(start: Callable, arguments: tuple) -> None:
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops the work
  os.environ['TOKENIZERS_PARALLELISM'] = 'false'  # one process a core is what keeps the cores busy
  parent = multiprocessing.parent_process()

  def leave_with_parent() -> None:
    # A worker whose parent was killed would wait for work for ever: it holds both ends of the queue itself.
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)

  threading.Thread(target=leave_with_parent, daemon=True).start()
  os.nice(1)  # reading for the workers comes before their work
  start(*arguments)
