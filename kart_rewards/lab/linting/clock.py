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
    file = _schedstat(os.getpid(), threading.get_native_id())
    if file is None:
        return perf_counter()
    waited = _waited(file)
    while True:
        now, before, waited = perf_counter(), waited, _waited(file)
        if waited == before:  # else it waited in between, and the time would go backwards
            return now - waited


def _waited(file: int) -> float:
    """Returns the seconds for which a thread waited for a processor."""
    return int(os.pread(file, 100, 0).split()[1]) / 1e9  # after the nanoseconds on a processor


@functools.cache
def _schedstat(process: int, thread: int) -> int | None:
    """Returns the open file of a thread's scheduler statistics; None if the system has none."""
    try:
        return os.open(f"/proc/{process}/task/{thread}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
