"""How much of a sample is words, and how much of it is copied."""

import re


def words(text: str) -> list[str]:
  return re.findall(r"[A-Za-z']+", text.lower())


def known_share(sample: str, training: str) -> float:
  """The share of the sample's words that occur in the training text."""
  known = set(words(training))
  found = words(sample)
  return sum(word in known for word in found) / len(found)


def copied_share(sample: str, training: str, run: int = 8) -> float:
  """The share of the sample's words that lie in a run of `run` words that the training text has too."""
  source, found = words(training), words(sample)
  runs = {tuple(source[i : i + run]) for i in range(len(source) - run + 1)}
  copied = set()
  for i in range(len(found) - run + 1):
    if tuple(found[i : i + run]) in runs:
      copied.update(range(i, i + run))
  return len(copied) / len(found)
