from __future__ import annotations

import gzip
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kart_rewards.done import REFERENCE_RULES, race_finished
from kart_rewards.errors import KartRewardsError
from kart_rewards.race import RaceMetrics
from kart_rewards.ram import RamLayout, Variable
from kart_rewards.rewards import REFERENCE_TERMS, wall
from kart_rewards.testing import TRACES, ends_at, load_trace, save_trace, score, score_episode, snapshot

# The sum of each term over the recorded traces. They were computed once, to detect changes of the scoring.
GOLDEN = {
    "race": {"wall": 0, "checkpoint": 36000, "terrain": -45, "time": -51.5, "backwards": 0},
    "walls": {"wall": -310, "checkpoint": 1200, "terrain": -345, "time": -28.5, "backwards": 0},
    "reverse": {"wall": -140, "checkpoint": 0, "terrain": -150, "time": -20, "backwards": 0},
    "wander": {"wall": -300, "checkpoint": 1200, "terrain": -555, "time": -49.5, "backwards": -296},
}


def test_a_snapshot_is_the_start_of_a_race_with_some_values_replaced() -> None:
    ram = snapshot(speed=-5, kart_x=12)
    assert (ram.laps, ram.checkpoint, ram.speed, ram.kart_x, ram.kart_y) == (127, 29, -5, 12, 0)


def test_unknown_variables_and_values_outside_their_type_are_reported() -> None:
    with pytest.raises(KartRewardsError, match=r"no RAM variable 'sped'\. Did you mean 'speed'\?"):
        snapshot(sped=3)
    for values in ({"speed": 40_000}, {"speed": -40_000}, {"laps": 256}, {"laps": -1}, {"race_seconds": 10_000}):
        with pytest.raises(KartRewardsError, match="does not fit its type"):
            snapshot(**values)
    for value in (1.5, "3", None, float("nan")):
        with pytest.raises(KartRewardsError, match=r"speed=.* is not an integer"):
            snapshot(speed=value)  # type: ignore[arg-type]
    assert snapshot(collision=True, speed=np.int16(-5))[:] == snapshot(collision=1, speed=-5)  # type: ignore[arg-type]
    assert snapshot(speed=-32768, laps=255, race_seconds=9999).laps == 255


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_recorded_traces_have_their_golden_sums(name: str) -> None:
    assert score(load_trace(name), REFERENCE_TERMS) == GOLDEN[name]


def test_the_recorded_race_is_a_complete_race() -> None:
    trace = load_trace("race")
    assert ends_at(trace, REFERENCE_RULES) == (len(trace) - 1, "race_finished")
    assert ends_at(trace[:-1], REFERENCE_RULES) is None
    assert all((after.current_frame - ram.current_frame) % 65536 == 1 for ram, after in pairwise(trace))
    metrics = RaceMetrics(trace[0], 60.0)
    for ram in trace[1:]:
        metrics.update(ram)
    clock_seconds = trace[-1].race_minutes * 60 + trace[-1].race_seconds + trace[-1].race_centiseconds / 100
    assert metrics.summary()["race_time_seconds"] == pytest.approx(clock_seconds, abs=0.1)
    assert metrics.summary()["laps_completed"] == 5


def test_each_trace_of_the_package_has_golden_sums() -> None:
    assert sorted(path.name.removesuffix(".csv.gz") for path in TRACES.iterdir()) == sorted(GOLDEN)


def test_a_saved_trace_is_loaded_again_and_its_bytes_are_reproducible(tmp_path: Path) -> None:
    trace = [snapshot(speed=speed) for speed in (0, -5, 900)]
    for path in (tmp_path / "a.csv.gz", tmp_path / "new" / "b.csv.gz"):
        save_trace(path, trace)
        assert load_trace(path) == trace
    assert (tmp_path / "a.csv.gz").read_bytes() == (tmp_path / "new" / "b.csv.gz").read_bytes()
    assert load_trace(tmp_path / "a.csv.gz")[1].speed == -5


def test_a_trace_ends_after_its_first_frame_at_the_earliest() -> None:
    def always(ram: object) -> bool:
        return True

    assert ends_at([snapshot()] * 3, [always]) == (1, "always")
    assert ends_at([snapshot()], [always]) is None


def test_one_term_or_rule_needs_no_list() -> None:
    def fast(ram: Any) -> float:
        return float(ram.speed > 3)

    trace = [snapshot(), snapshot(speed=4)]
    assert score(trace, fast) == score(trace, [fast]) == {"fast": 1.0}

    def stop(ram: Any) -> bool:
        return bool(ram.speed > 3)

    assert ends_at(trace, stop) == ends_at(trace, [stop]) == (1, "stop")


@pytest.mark.parametrize("function", [score, ends_at])
def test_a_trace_is_a_sequence_of_snapshots(function: Any) -> None:
    with pytest.raises(KartRewardsError, match=r"^a trace must be a sequence of snapshots.* not a single snapshot$"):
        function(snapshot(), [])
    with pytest.raises(KartRewardsError, match=r"^a trace must be a sequence of snapshots.* not 3$"):
        function(3, [])


def test_an_episode_of_a_trace_ends_with_its_rule_as_in_the_environment() -> None:
    hit = snapshot(collision=1)
    trace = [hit, hit, snapshot(laps=133), hit]
    assert score_episode(trace, [wall, race_finished]) == ({"wall": -10.0}, (2, "race_finished"))
    assert score_episode(trace, [wall, race_finished], {"wall": -1}) == ({"wall": -1.0}, (2, "race_finished"))
    assert score_episode(trace, wall) == ({"wall": -20.0}, None)
    assert score_episode([snapshot(laps=133)] * 3, race_finished) == ({}, (1, "race_finished"))
    assert score_episode(load_trace("race"), [*REFERENCE_TERMS, *REFERENCE_RULES]) == (
        GOLDEN["race"],
        (len(load_trace("race")) - 1, "race_finished"),
    )
    with pytest.raises(KartRewardsError, match=r"^a trace must be a sequence of snapshots"):
        score_episode(snapshot(), wall)


def test_a_trace_may_hold_arrays(tmp_path: Path) -> None:
    layout = RamLayout(
        [Variable("speed", 0, "<s2"), Variable("tiles", 2, "<s2", count=3), Variable("one", 9, "|u1", count=1)]
    )
    trace = [layout.snapshot(speed=-5, tiles=(1, -2, 3), one=[8]), layout.snapshot()]
    save_trace(tmp_path / "a.csv.gz", trace)
    assert load_trace(tmp_path / "a.csv.gz") == trace
    assert load_trace(tmp_path / "a.csv.gz")[0].tiles[1] == -2


def test_bad_traces_are_reported(tmp_path: Path) -> None:
    with pytest.raises(KartRewardsError, match=r"nowhere\.csv\.gz: no such trace; the package has race, reverse"):
        load_trace("nowhere")
    for content in (
        b"plain",
        gzip.compress(b""),
        gzip.compress(b"a,b\n1\n"),
        gzip.compress(b"a,b\n1,x\n"),
        gzip.compress(b"a\n[1 x]"),
    ):
        path = tmp_path / "bad.csv.gz"
        path.write_bytes(content)
        with pytest.raises(KartRewardsError, match="is not a trace"):
            load_trace(path)


def test_the_module_imports_neither_the_emulator_nor_torch() -> None:
    code = "import sys, kart_rewards.testing; print('stable_retro' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
