"""The time that code takes, also on a busy machine.

* ``clock`` - the seconds of ``perf_counter`` without those for which this thread waited for a processor
"""

from __future__ import annotations

import functools
import os
import threading
from time import perf_counter


def clock() -> float:
    """Returns the seconds of ``perf_counter`` without those for which this thread waited for a processor.

    Time in which code sleeps or waits for a file counts, but not the work of other programs. Linux counts the waiting
    time. On other systems, this is ``perf_counter``.
    """
    waited = 0.0
    file = _schedstat(os.getpid(), threading.get_native_id())
    if file is not None:
        waited = int(os.pread(file, 100, 0).split()[1]) / 1e9  # after the nanoseconds on a processor
    return perf_counter() - waited


@functools.cache
def _schedstat(process: int, thread: int) -> int | None:
    """Returns the open file of a thread's scheduler statistics; None if the system has none."""
    try:
        return os.open(f"/proc/{process}/task/{thread}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
