from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kart_rewards.lab.linting.clock import clock


def busy(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_sleep_and_work_count() -> None:
    began = clock()
    time.sleep(0.05)
    busy(0.05)
    assert clock() - began >= 0.09  # a busy system counts a little of the sleep as waiting


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="the system does not count the waiting time")
def test_the_work_of_other_programs_does_not_count() -> None:
    cores = os.sched_getaffinity(0)
    core = {min(cores)}
    os.sched_setaffinity(0, core)
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3)]
    try:
        time.sleep(0.3)  # until they work
        wall, own = time.perf_counter(), clock()
        busy(0.1)
        wall, own = time.perf_counter() - wall, clock() - own
    finally:
        for other in others:
            other.kill()
            other.wait()
        os.sched_setaffinity(0, cores)
    assert wall > 0.2, "the others were in the way"
    assert 0.1 <= own < 0.7 * wall
