"""All faults, with how often each is tried and what surviving means."""

import dataclasses
import random
from collections.abc import Callable

from tests.faults.damage import cut_file, file_size_limit, flipped_bit, full_disk, missing_file, read_only_disk
from tests.faults.memory import out_of_memory
from tests.faults.processes import fewer_after_a_kill, kill_one_of_several, stop_one_of_several
from tests.faults.steps import bad_step, every_step_bad
from tests.faults.stops import hangs, kill_run, kill_saves, preemption_file, second_signal, stop_at, stop_while_importing
from tests.faults.world import MOMENTS, World


@dataclasses.dataclass(frozen=True)
class Fault:
  attempt: Callable[[random.Random, World], None]
  tries: int  # for the record
  quick: int  # in the default test suite
  survival: str  # what surviving means


AGAIN = 'exit status 75; the same command ends with the bits and the log of an undisturbed run'
FALLS_BACK = 'told; the state that comes back is one that was saved, bit for bit'
ALL_END = 'the other says so and ends'
SEVERAL = {
  'SIGKILL to one of two processes, twice': Fault(
    kill_one_of_several, 5, 1, f'{ALL_END}; restarted by torchrun and by hand, both end as undisturbed, bit for bit'
  ),
  'SIGKILL to one of two processes; one goes on': Fault(
    fewer_after_a_kill, 5, 1, f'{ALL_END}; the log is that of the undisturbed two, to the rounding of sums'
  ),
  'SIGTERM to one of two processes': Fault(stop_one_of_several, 5, 1, f'both save; {AGAIN} (torchrun turns 75 into 1)'),
}
FAULTS = {
  'SIGKILL while saving': Fault(kill_saves, 200, 20, 'what was on disk is there, bit for bit, and nothing half'),
  'a flipped bit in a checkpoint': Fault(flipped_bit, 100, 10, FALLS_BACK),
  'a file of a checkpoint is gone': Fault(missing_file, 30, 5, FALLS_BACK),
  'a file of a checkpoint is cut short': Fault(cut_file, 30, 5, FALLS_BACK),
  **{f'SIGTERM or SIGINT while {moment}': Fault(stop_at(moment), 10, 1, AGAIN) for moment in MOMENTS},
  'SIGTERM or SIGINT while importing': Fault(stop_while_importing, 10, 1, 'exit status 75 and one line'),
  'what is under way does not end in time': Fault(hangs, 10, 1, f'ended by the clock; {AGAIN}'),
  'a second signal': Fault(second_signal, 10, 1, 'ends at once; the same command ends as an undisturbed run'),
  'a notice of pre-emption': Fault(preemption_file, 10, 1, AGAIN),
  'SIGKILL at two moments of a run': Fault(kill_run, 10, 3, 'the same command ends as an undisturbed run, bit for bit'),
  'a full disk': Fault(full_disk, 5, 1, 'told; training goes on and saves when it can; else exit status 74'),
  'a disk that becomes read-only': Fault(read_only_disk, 5, 1, 'told; training goes on and saves when it can; else 74'),
  'a limit on the size of files': Fault(file_size_limit, 10, 1, 'told; the checkpoint before stands'),
  'a step that is not finite': Fault(bad_step(1e38, False), 10, 1, 'one step skipped, nothing else changed'),
  'a loss spike': Fault(bad_step(-60.0, False, 2), 10, 1, 'one step skipped, nothing else changed'),
  'parameters that are not finite': Fault(bad_step(float('nan'), True), 10, 1, 'back to the last good checkpoint, and on'),
  'parameters that are not finite, again and again': Fault(
    every_step_bad, 10, 1, 'gives up with one line; the same command without the fault ends as an undisturbed run'
  ),
  'parameters that went astray': Fault(bad_step(-60.0, True, 2), 10, 1, 'back to the last good checkpoint, and on'),
  'a stage does not fit into the memory': Fault(
    out_of_memory, 10, 1, 'goes through in parts, the same to the rounding of sums; kept over a stop, to the bit'
  ),
  **SEVERAL,
}


def few(name: str, world: World) -> None:
  """As often as the default test suite tries a fault."""
  for number in range(FAULTS[name].quick):
    FAULTS[name].attempt(random.Random(f'{name} {number}'), world)


def many(name: str, world: World, tries: int) -> list[str]:
  """Tries a fault again and again; what was lost, in words."""
  lost = []
  for number in range(tries):
    try:
      FAULTS[name].attempt(random.Random(f'{name} {number}'), world)
    except Exception as error:
      lost.append(f'try {number}: {error!r}')
  return lost
