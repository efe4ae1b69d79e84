from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
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


@pytest.fixture
def others() -> Iterator[None]:
    """Three other programs work on the same processor core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    programs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3)]
    time.sleep(0.3)  # until they work
    yield
    for program in programs:
        program.kill()
        program.wait()
    os.sched_setaffinity(0, cores)


needs_schedstat = pytest.mark.skipif(
    not Path("/proc/self/schedstat").exists(), reason="the system does not count the waiting time"
)


@needs_schedstat
def test_the_work_of_other_programs_does_not_count(others: None) -> None:
    wall, own = time.perf_counter(), clock()
    busy(0.1)
    wall, own = time.perf_counter() - wall, clock() - own
    assert wall > 0.2, "the others were in the way"
    assert 0.1 <= own < 0.7 * wall


@needs_schedstat
def test_the_clock_does_not_go_backwards(others: None) -> None:
    end, now, backwards = time.monotonic() + 3, clock(), 0.0
    while time.monotonic() < end:
        before, now = now, clock()
        backwards = min(backwards, now - before)
    assert backwards > -1e-6
