"""The English prose that every CPython carries (`pydoc_data.topics`), as a corpus that needs no network.

Topics are read in the order of their names and every paragraph that occurred before is dropped, white space normalised,
so that no paragraph of a held-out topic can occur in training. A topic is held out when the SHA-256 of its name, read as
a big-endian number, divides by ten. The text follows the Python version: 373 KB on 3.11.
"""

import hashlib
import re
from pydoc_data.topics import topics

HELD_OUT_ONE_IN = 10


def is_held_out(topic: str) -> bool:
  return int.from_bytes(hashlib.sha256(topic.encode()).digest(), 'big') % HELD_OUT_ONE_IN == 0


def paragraphs(text: str) -> list[str]:
  """The blocks of a text between blank lines, as they stand."""
  return [block.strip('\n') for block in re.split(r'\n[ \t]*\n', text) if block.strip()]


def normalize(paragraph: str) -> str:
  return ' '.join(paragraph.split())


def read() -> list[tuple[str, str, bool]]:
  """(topic, text, held out) of every topic with something new to say, ordered by name."""
  seen: set[str] = set()
  documents = []
  for topic in sorted(topics):
    kept = []
    for paragraph in paragraphs(topics[topic]):
      if (key := normalize(paragraph)) not in seen:
        seen.add(key)
        kept.append(paragraph)
    if kept:
      documents.append((topic, '\n\n'.join(kept) + '\n', is_held_out(topic)))
  return documents
