"""Random damage to files, drawn by hypothesis: bytes, and JSON that is still JSON."""

import copy
import random
from collections.abc import Callable
from typing import Any

STRANGE = (
  None,
  True,
  -1,
  0,
  1,
  2**63,
  10**30,
  -0.5,
  float('inf'),
  '',
  'x',
  '../..',
  '\ud800',
  [],
  [[]],
  {},
  {'a': 1},
  [1, 'b', None],
)


def bytes_of(rng: random.Random, data: bytes) -> bytes:
  """`data` with one to three changes: bits flipped, pieces cut out, doubled, inserted or exchanged, the end lost."""
  for _ in range(rng.randint(1, 3)):
    a, b = sorted(rng.randint(0, len(data)) for _ in range(2))
    b = min(b, a + rng.choice((1, 4, 50, len(data))))
    kind = rng.randrange(5)
    if kind == 0 and a < len(data):
      data = data[:a] + bytes([data[a] ^ 1 << rng.randrange(8)]) + data[a + 1 :]
    elif kind == 1:
      data = data[:a] + data[b:]
    elif kind == 2:
      data = data[:b] + data[a:b] + data[b:]
    elif kind == 3:
      data = data[:a] + rng.choice((b'\x00', b'\xff\xfe', b'"', b'{', b']', b'\n', b'\\ud800', b'1e999')) + data[b:]
    else:
      data = data[:a]
  return data


def json_of(rng: random.Random, tree: Any) -> Any:
  """`tree` with one or two values anywhere in it replaced, dropped, doubled or renamed."""
  tree = copy.deepcopy(tree)
  for _ in range(rng.randint(1, 2)):
    places = list(_places(tree))
    if not places:
      return copy.deepcopy(rng.choice(STRANGE))
    owner, key = rng.choice(places)
    kind = rng.randrange(4)
    if kind == 0:
      del owner[key]
    elif kind == 1 and isinstance(owner, dict):
      owner[f'{key}x'] = owner.pop(key)
    elif kind == 1:
      owner.insert(key, copy.deepcopy(owner[key]))
    elif kind == 2 and isinstance(owner[key], int | float) and not isinstance(owner[key], bool):
      owner[key] = rng.choice((owner[key] + 1, -owner[key], owner[key] * 2, str(owner[key]), float(owner[key])))
    else:
      owner[key] = copy.deepcopy(rng.choice(STRANGE))  # or the next change would be made to STRANGE itself
  return tree


def _places(tree: Any):
  items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
  for key, value in items:
    yield tree, key
    yield from _places(value)


def one_line(call: Callable[[], Any], *errors: type[Exception]) -> Any:
  """What `call` returns; None when it raises one of the errors (ValueError unless others are named), which has to say why."""
  kinds = errors or (ValueError,)
  try:
    return call()
  except kinds as error:
    said = str(error)
  assert said.strip()
  assert len(said) < 1000, said
  return None
