from __future__ import annotations

import time

import pytest

from kart_rewards.training import timing
from kart_rewards.training.timing import Stopwatch, processor_seconds, split_of_a_step


def test_a_stopwatch_adds_up_the_seconds_of_each_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 3.0, 10.0, 10.5, 20.0])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    stopwatch = Stopwatch()
    with stopwatch("rollout"), stopwatch("policy"):  # from 0 to 10, and from 1 to 3
        pass
    with stopwatch("rollout"):  # from 10.5 to 20
        pass
    assert stopwatch.seconds == {"rollout": 19.5, "policy": 2.0}


def test_a_stage_that_never_ran_took_no_time() -> None:
    assert Stopwatch().seconds["update"] == 0.0


def test_the_split_of_one_process() -> None:
    """The processor time, 6 of the steps' 8 seconds, is divided in the proportion of the steps' parts."""
    stages = {"rollout": 12.0, "policy": 3.0, "update": 5.0}
    process = {"emulator": 4.0, "scoring": 2.0, "observation": 2.0, "processor": 6.0}
    assert split_of_a_step(stages, [process], steps=1000) == pytest.approx(
        {
            "emulator_ms_per_step": 3.0,
            "scoring_ms_per_step": 1.5,
            "observation_ms_per_step": 1.5,
            "policy_ms_per_step": 3.0,
            "transfer_ms_per_step": 3.0,
            "update_ms_per_step": 5.0,
        }
    )


def test_a_second_of_one_of_several_cores_counts_as_a_part_of_a_second() -> None:
    stages = {"rollout": 10.0, "policy": 2.0, "update": 5.0}
    processes = [
        {"emulator": 4.0, "scoring": 2.0, "observation": 2.0, "processor": 8.0},
        {"emulator": 6.0, "scoring": 1.0, "observation": 1.0, "processor": 4.0},
    ]
    split = split_of_a_step(stages, processes, steps=1000)
    assert split == pytest.approx(
        {
            "emulator_ms_per_step": (4.0 + 3.0) / 2,
            "scoring_ms_per_step": (2.0 + 0.5) / 2,
            "observation_ms_per_step": (2.0 + 0.5) / 2,
            "policy_ms_per_step": 1.0,
            "transfer_ms_per_step": 10.0 - 7.0,
            "update_ms_per_step": 5.0,
        }
    )
    assert sum(split.values()) == pytest.approx(10.0 + 5.0), "the parts are all the wall-clock time"


def test_cores_that_are_always_busy_leave_no_time_for_the_transfer() -> None:
    cores, seconds = 4, 10.0
    process = {"emulator": 5.0, "scoring": 2.0, "observation": 1.0, "processor": 8.0}
    split = split_of_a_step({"rollout": seconds, "policy": 8.0, "update": 1.0}, [process] * cores, steps=100)
    assert split["transfer_ms_per_step"] == pytest.approx(0.0)


def test_a_term_that_waits_counts_as_scoring() -> None:
    """Of the 8 seconds in the steps, 3 were on a core, 1 was spent in the queue for it, and 4 asleep."""
    process = {"emulator": 2.0, "scoring": 5.0, "observation": 1.0, "processor": 3.0, "queued": 1.0}
    split = split_of_a_step({"rollout": 9.0, "policy": 0.5, "update": 0.0}, [process], steps=1000)
    assert split == pytest.approx(
        {
            "emulator_ms_per_step": 2.0 / 4 * 3,
            "scoring_ms_per_step": 1.0 / 4 * 3 + 4,
            "observation_ms_per_step": 1.0 / 4 * 3,
            "policy_ms_per_step": 0.5,
            "transfer_ms_per_step": 9.0 - 3 - 4 - 0.5,
            "update_ms_per_step": 0.0,
        }
    )
    busy = process | {"scoring": 1.0, "queued": 2.0}
    split = split_of_a_step({"rollout": 4.0, "policy": 0.0, "update": 0.0}, [busy], steps=1000)
    assert split["scoring_ms_per_step"] == pytest.approx(1.0 / 4 * 3), "a process in the queue does not sleep"


@pytest.mark.skipif("queued" not in processor_seconds(), reason="this system does not report the queue for the cores")
def test_sleep_is_time_neither_on_a_core_nor_in_the_queue() -> None:
    before = processor_seconds()
    time.sleep(0.3)
    after = processor_seconds()
    assert sum(after.values()) - sum(before.values()) < 0.2
