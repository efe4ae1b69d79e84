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
from kart_rewards.rewards import REFERENCE_TERMS, wall
from kart_rewards.testing import ends_at, load_trace, score, score_episode, snapshot

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
    with pytest.raises(KartRewardsError, match="not 'race': did you mean load_trace"):
        function("race", [])
    for trace, what in (([], "an empty one"), ([1, 2], "1"), ([snapshot(), None], "None")):
        with pytest.raises(KartRewardsError, match=rf"^a trace must be a sequence of snapshots.* not {what}$"):
            function(trace, [])


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


def test_a_trace_of_version_0_1_is_still_read(tmp_path: Path) -> None:
    text = "speed,tiles,one\n-5,[1 -2 3],[8]\n900,[0 0 0],[0]\n"
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(text.encode()))
    trace = load_trace(tmp_path / "a.csv.gz")
    assert [frame._asdict() for frame in trace] == [
        {"speed": -5, "tiles": (1, -2, 3), "one": (8,)},
        {"speed": 900, "tiles": (0, 0, 0), "one": (0,)},
    ]


def test_terms_that_ask_for_buttons_and_actions_are_tested(tmp_path: Path) -> None:
    def hop(ram: Any, buttons: frozenset[str]) -> bool:
        return "L" in buttons

    class Steady:
        def __init__(self) -> None:
            self.last = None

        def __call__(self, ram: Any, action: Any) -> float:
            changed = self.last is not None and action != self.last
            self.last = action
            return -float(changed)

    trace = [snapshot()] * 4
    assert score(trace, hop, buttons=[{}, {"L"}, {"B", "L"}, {"B"}]) == {"hop": 2}
    assert score(trace, Steady, actions=[None, np.array([0.5]), [0.5], (0.25,)]) == {"steady": -1}
    assert ends_at(trace, hop, buttons=[{}, {}, {"L"}, {}]) == (2, "hop")
    assert score_episode(trace, [hop, Steady], buttons=[{"L"}] * 4, actions=[None, 1, 1, 0])[0] == {
        "hop": 3,
        "steady": -1,
    }
    for missing in (lambda: score(trace, hop), lambda: ends_at(trace, hop), lambda: score_episode(trace, hop)):
        with pytest.raises(KartRewardsError, match=r"'hop' \(.*test_testing\.py:\d+\) asks for 'buttons', which this"):
            missing()
    with pytest.raises(KartRewardsError, match="there are 1 actions for 4 frames: pass one per frame"):
        score(trace, Steady, actions=[1])
    for wrong in (["START"] * 4, "BBBB", [None, {"L"}, None, None]):
        with pytest.raises(KartRewardsError, match="buttons must be a list of sets of names"):
            score(trace, hop, buttons=wrong)
    with pytest.raises(KartRewardsError, match="buttons must be a list with one element per frame"):
        score(trace, hop, buttons=({"L"} for _ in trace))


def test_a_drive_has_buttons_and_actions() -> None:
    def throttle(ram: Any, buttons: frozenset[str], action: Any) -> bool:
        return "B" in buttons and bool(action and action[0])

    drive = load_trace("race")
    held = sum("B" in buttons for buttons in drive.buttons[1:])
    assert score(drive, throttle) == {"throttle": held}
    assert held > 2000


def test_bad_traces_are_reported(tmp_path: Path) -> None:
    with pytest.raises(KartRewardsError, match=r"nowhere: no such trace; the package has race, race-Level2, "):
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
