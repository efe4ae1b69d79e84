"""benchmarks/reference_laps.py: the committed replays drive the times that they contain; faults are reported."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import load_module

from kart_rewards.drives import load_drive
from kart_rewards.errors import KartRewardsError
from kart_rewards.evaluation.courses import reference_drive
from kart_rewards.integrations import find_game
from kart_rewards.race import RaceMetrics

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "reference_laps.py"


laps = load_module(SCRIPT)
REPLAYS = [laps.replay_path(course) for course in laps.COURSES]


def tampered(tmp_path: Path, **changes: Any) -> Path:
    """Returns a copy of Level1's replay with some fields changed."""
    path = tmp_path / "replay.json"
    path.write_text(json.dumps(json.loads(REPLAYS[0].read_text()) | changes))
    return path


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem, marks=() if path.stem == "Level1" else pytest.mark.slow) for path in REPLAYS],
)
def test_a_replay_drives_the_times_that_it_contains(path: Path) -> None:
    race = laps.verify(path)
    summary, claims = race.summary(), json.loads(path.read_text())
    assert summary["laps_completed"] == 5
    assert summary["best_lap_time_seconds"] == pytest.approx(claims["lap_time_seconds"], abs=0.001)
    assert summary["race_time_seconds"] == pytest.approx(claims["race_time_seconds"], abs=0.001)


@pytest.mark.parametrize("path", REPLAYS, ids=lambda path: path.stem)
def test_each_replay_is_of_this_rom_and_its_laps_add_up(path: Path) -> None:
    replay = laps.load_replay(path)
    assert replay["rom_sha1"] in find_game(laps.GAME).rom_hashes()
    assert path.stem == replay["state"]
    assert len(replay["lap_frames"]) == 5 and sum(replay["lap_frames"]) == len(replay["inputs"])


@pytest.mark.parametrize("path", REPLAYS, ids=lambda path: path.stem)
def test_the_recorded_drive_of_a_replay_has_its_inputs_and_times(path: Path) -> None:
    replay, drive = laps.load_replay(path), load_drive(reference_drive(find_game(laps.GAME).folder, path.stem))
    race = RaceMetrics(drive[0], drive.info.frames_per_second)
    for ram in drive[1:]:
        race.update(ram)
    assert list(drive.buttons[1:]) == list(replay["inputs"])
    assert laps.times(race) == {name: replay[name] for name in laps.TIMES}


@pytest.mark.slow
def test_the_drives_of_the_game_are_recorded_from_the_replays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "drives" / "Level1.drive"
    monkeypatch.setattr(laps, "reference_drive", lambda folder, state: path)
    laps.record(("Level1",))
    assert capsys.readouterr().out == f"wrote {path}, {path.stat().st_size} bytes\n"
    recorded, committed = load_drive(path), load_drive(reference_drive(find_game(laps.GAME).folder, "Level1"))
    assert recorded.columns.keys() == committed.columns.keys()
    assert all((column == committed.columns[name]).all() for name, column in recorded.columns.items())
    assert (recorded.masks == committed.masks).all()
    assert recorded.info.fingerprints == committed.info.fingerprints
    assert path.stat().st_size < 50_000, "a race is a small file"
    assert (recorded.info.ended_by, recorded.outcome) == ("race_finished", "finished in 44.66 s")
    with pytest.raises(KartRewardsError, match="unknown course 'Level9'"):
        laps.record(("Level9",))


@pytest.mark.slow
def test_inputs_that_drive_another_race_are_reported(tmp_path: Path) -> None:
    inputs = json.loads(REPLAYS[0].read_text())["inputs"]
    with pytest.raises(KartRewardsError, match=r"its inputs drive .*, but it contains"):
        laps.verify(tampered(tmp_path, inputs=[*inputs[:3], [5, "B LEFT"], *inputs[3:]]))


@pytest.mark.slow
def test_times_that_the_inputs_do_not_drive_are_reported(tmp_path: Path) -> None:
    with pytest.raises(KartRewardsError, match=r"its inputs drive .*, but it contains .*'lap_time_seconds': 1\.0"):
        laps.verify(tampered(tmp_path, lap_time_seconds=1.0))


def test_a_replay_of_another_rom_is_reported(tmp_path: Path) -> None:
    with pytest.raises(KartRewardsError, match="was driven with the ROM abc, but HomebrewKart-Snes has"):
        laps.verify(tampered(tmp_path, rom_sha1="abc"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": [[3, "B JUMP"]]}, "is not a replay of a race: its inputs have buttons other than"),
        ({"inputs": [[3, "START"]]}, "is not a replay of a race: its inputs have buttons other than"),
        ({"inputs": [[10**12, "B"]]}, "is not a replay of a race: its inputs are not for 1 to"),
        ({"inputs": [[-5, "B"]]}, "is not a replay of a race: its inputs are not for 1 to"),
        ({"inputs": "B"}, "is not a replay of a race"),
        ({"inputs": [["B", 3]]}, "is not a replay of a race"),
        ({"state": "Level9"}, "is not a replay of a race: there is no course 'Level9'"),
    ],
)
def test_a_damaged_replay_is_reported(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(KartRewardsError, match=message):
        laps.verify(tampered(tmp_path, **changes))


def test_an_incomplete_replay_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "replay.json"
    path.write_bytes(REPLAYS[0].read_bytes()[:1000])
    with pytest.raises(KartRewardsError, match="is not JSON"):
        laps.verify(path)
    path.write_text("{}")
    with pytest.raises(KartRewardsError, match="is not a replay of a race: it has no 'state'"):
        laps.verify(path)
    with pytest.raises(KartRewardsError, match="can't be read"):
        laps.verify(tmp_path / "none.json")


def test_a_saved_replay_is_loaded_with_the_same_frames(tmp_path: Path) -> None:
    replay = laps.load_replay(REPLAYS[0])
    facts = {name: value for name, value in replay.items() if name != "inputs"}
    laps.save_replay(tmp_path / "copy.json", facts, replay["inputs"])
    assert laps.load_replay(tmp_path / "copy.json") == replay


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "--course", "Level9"], "unknown course 'Level9': it is one of Level1"),
        (["search", "--minutes", "-1"], "--minutes -1.0 must be 0 or more"),
        (["verify", "Level9"], "unknown course 'Level9'"),
    ],
)
def test_a_mistake_ends_with_one_message(arguments: list[str], message: str) -> None:
    done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and message in done.stderr and "Traceback" not in done.stderr


# --- the search -------------------------------------------------------------------------------------------------------


@pytest.fixture
def search() -> Iterator[Any]:
    """Returns a search on Level1."""
    env = laps.make_env("Level1")
    yield laps.Search(env, laps.Course("Level1"), seed=1)
    env.close()


def test_a_search_can_return_to_a_place(search: Any) -> None:
    driver = laps.LineDriver(search.course, [0.0] * laps.KNOTS, 50.0, 0.045)
    first = search.play(search.grid, lambda _, *now: driver(*now), 200)
    assert first.places[-1].distance > 200
    second = search.play(first.places[3], lambda t, *_: first.inputs[3 * laps.STRIDE + t], 200 - 3 * laps.STRIDE)
    assert second.places[-1].kart == first.places[-1].kart


def test_a_change_is_kept_only_if_it_is_better(search: Any) -> None:
    driver = laps.LineDriver(search.course, [0.0] * laps.KNOTS, 50.0, 0.045)
    bend = search.play(search.grid, lambda _, *now: driver(*now), 300).places[-1]
    plan = search.play(bend, lambda _, *now: driver(*now), laps.HORIZON)
    scores = [search.score(plan.places[-1], driver)]
    for _ in range(15):
        plan = search.better(plan, driver)
        assert len(plan.inputs) == laps.HORIZON and len(plan.places) == laps.HORIZON // laps.STRIDE + 1
        scores.append(search.score(plan.places[-1], driver))
    assert scores == sorted(scores) and scores[-1] > scores[0]


def test_the_distance_increases_over_the_line(search: Any) -> None:
    course, distance = search.course, 0.0
    for k in range(2 * course.count + 1):
        distance = course.advance(distance, *course.points[k % course.count])
    assert distance == pytest.approx(2 * course.length)
    assert search.grid.distance == pytest.approx(-40, abs=laps.SPACING)


def test_a_short_cut_is_shorter_and_skips_no_part_of_the_lap() -> None:
    road, cut = laps.Course("Level4"), laps.Course("Level4", (0, 1))
    assert cut.length < road.length - 300
    steps = [after - before for before, after in zip(cut.laps, cut.laps[1:], strict=False)]
    assert min(steps) > 0 and max(steps) < 0.01
