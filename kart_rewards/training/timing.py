"""Where the time of training goes.

* ``Stopwatch`` - wall-clock seconds by stage
* ``processor_seconds`` - the time that a process ran, and the time that it waited for a processor core
* ``split_of_a_step`` - milliseconds per agent step, from the emulator to the update
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path


class Stopwatch:
    """Adds up the wall-clock seconds of each stage.

    Example:
        >>> stopwatch = Stopwatch()
        >>> with stopwatch("update"):
        ...     pass
        >>> list(stopwatch.seconds)
        ['update']
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Times the body of the ``with`` statement."""
        began = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - began


def processor_seconds() -> dict[str, float]:
    """Returns the time of this process so far, in seconds.

    Returns:
        ``processor``: the time on a processor core. ``queued``: the time that this thread was ready to run, but waited
        for a core; only where Linux reports it.
    """
    seconds = {"processor": time.process_time()}
    with suppress(OSError, ValueError):
        ran, queued, _ = map(int, Path("/proc/thread-self/schedstat").read_text().split())
        if ran:  # otherwise this kernel does not count
            seconds["queued"] = queued / 1e9
    return seconds


def split_of_a_step(
    stages: Mapping[str, float], seconds_by_process: Sequence[Mapping[str, float]], steps: int
) -> dict[str, float]:
    """Splits the wall-clock time of a training step.

    During a rollout, as many cores are at work as there are processes with environments, and the policy shares one of
    them. Therefore one second of one of n cores counts as 1/n seconds.

    Args:
        stages: Seconds of the stages ``rollout``, ``policy`` (a part of the rollout) and ``update``.
        seconds_by_process: What each process with environments did in that time, see ``EnvGroups.seconds``.
        steps: Agent steps in that time.

    Returns:
        Milliseconds per agent step, by TensorBoard name without ``time/``. ``emulator``, ``scoring`` and
        ``observation`` share out all the processor time of the environments, that of resets included. ``scoring`` also
        includes the time in which a term waits, for example in ``sleep``, where Linux reports it. ``transfer`` is
        the rest of the rollout: communication between processes, and cores that wait. It can be negative where the
        policy has a core or a GPU of its own.
    """
    cores = len(seconds_by_process)
    split = {"emulator": 0.0, "scoring": 0.0, "observation": 0.0}
    for seconds in seconds_by_process:
        stepping = {part: seconds[part] for part in split}  # wall-clock time, which includes turns of the policy
        asleep = sum(stepping.values()) - seconds["processor"] - seconds.get("queued", math.inf)
        asleep = min(max(asleep, 0.0), stepping["scoring"])  # the emulator and the observation never wait
        stepping["scoring"] -= asleep
        for part in split:
            split[part] += stepping[part] / sum(stepping.values()) * seconds["processor"] / cores
        split["scoring"] += asleep / cores
    split["policy"] = stages["policy"] / cores
    split["transfer"] = stages["rollout"] - sum(split.values())
    split["update"] = stages["update"]
    return {f"{part}_ms_per_step": 1000 * seconds / steps for part, seconds in split.items()}
