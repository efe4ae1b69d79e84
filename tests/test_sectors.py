"""Where time is lost: the sectors of laps beside the reference lap of each course, as numbers and as a figure."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from episode_results import result

from kart_rewards.drives import SHIPPED, Drive, load_drive
from kart_rewards.env.core import fingerprints_of
from kart_rewards.errors import KartRewardsError
from kart_rewards.evaluation.courses import checkpoint_times, find_courses, reference_drive, reference_laps
from kart_rewards.evaluation.sectors import ReferenceLap, draw_time_lost, reference_lap, time_lost
from kart_rewards.integrations import INTEGRATIONS

ROOT = Path(__file__).parent.parent
GAME = INTEGRATIONS / "HomebrewKart-Snes"
COURSES = ("Level1", "Level2", "Level3", "Level4", "Level5")


def lap_of(*sectors: float) -> ReferenceLap:
    return ReferenceLap(np.array(sectors), np.zeros((0, 2)), np.zeros(0, np.int64), np.zeros(0, np.int64))


# ------------------------------------------------------------------------------------------------------ reference laps
@pytest.mark.parametrize("state", COURSES)
def test_the_reference_drive_of_each_course_is_the_race_of_the_benchmark(state: str) -> None:
    replay = json.loads((ROOT / "benchmarks" / "reference_laps" / f"{state}.json").read_text())
    drive = load_drive(reference_drive(GAME, state))
    assert (drive.info.game, drive.info.state, drive.start) == ("HomebrewKart-Snes", state, b"")
    assert drive.info.fingerprints["ROM"] == fingerprints_of(GAME / "rom.sfc")["ROM"], "record it again"
    held = [" ".join(sorted(buttons)) for buttons in drive.buttons[1:]]
    assert held == [" ".join(sorted(buttons.split())) for count, buttons in replay["inputs"] for _ in range(count)]
    assert [round(1000 * lap[-1]) for lap in checkpoint_times(drive) if lap[-1]] == [
        round(1000 * frames / drive.info.frames_per_second) for frames in replay["lap_frames"]
    ]


@pytest.mark.parametrize("state", COURSES)
def test_the_sectors_of_the_reference_lap_add_up_to_its_time(state: str) -> None:
    lap = reference_lap(GAME, state)
    assert lap
    assert lap.sectors.sum() == pytest.approx(reference_laps(GAME)[state], abs=0.001)
    assert (lap.sectors > 0.1).all()
    assert len(lap.path) == len(lap.sector_of) == len(lap.frames)
    drive = load_drive(reference_drive(GAME, state))
    assert drive.columns["checkpoint"][lap.frames].tolist() == lap.sector_of.tolist()
    assert len({*drive.columns["laps"][lap.frames].tolist()}) == 1
    assert np.abs(np.diff(lap.path, axis=0)).max() < 8, "pixels per frame"


def test_a_lap_with_a_standing_start_is_the_reference_only_if_there_is_no_other() -> None:
    drive = load_drive(SHIPPED / "race.drive")
    first_crossing_of_lap_2 = int(np.flatnonzero(drive.columns["laps"] == 129)[0])
    lap = ReferenceLap.of(cut(drive, first_crossing_of_lap_2 + 1))
    assert lap
    assert lap.sectors.sum() == pytest.approx(first_crossing_of_lap_2 / drive.info.frames_per_second)
    assert lap.frames[0] == 0
    assert ReferenceLap.of(cut(drive, first_crossing_of_lap_2)) is None, "it has no complete lap"
    assert ReferenceLap.of(replace(drive, columns={"speed": drive.columns["speed"]})) is None


def test_the_first_lap_of_a_random_start_has_only_the_frames_of_the_drive() -> None:
    drive = load_drive(SHIPPED / "race.drive")
    first = cut(drive, int(np.flatnonzero(drive.columns["laps"] == 129)[0]) + 1)
    lap, later = ReferenceLap.of(first), ReferenceLap.of(replace(first, lead=np.zeros(31, np.uint32)))
    assert lap and later
    assert later.sectors.sum() - lap.sectors.sum() == pytest.approx(30 / drive.info.frames_per_second)
    assert later.frames.tolist() == lap.frames.tolist()
    assert later.sector_of.tolist() == lap.sector_of.tolist()


def cut(drive: Drive, frames: int) -> Drive:
    """Returns the first frames of a drive of one frame per step."""
    return replace(
        drive,
        columns={name: column[:frames] for name, column in drive.columns.items()},
        **{name: getattr(drive, name)[: frames - 1] for name in ("masks", "step_frames", "actions", "rewards")},
    )


def test_a_game_without_reference_drives_has_no_reference_lap(tmp_path: Path) -> None:
    assert reference_lap(tmp_path, "Level1") is None
    path = reference_drive(tmp_path, "some/folder/Level1.state")
    assert path == tmp_path / "reference_drives" / "Level1.drive"
    path.parent.mkdir()
    path.write_bytes(b"nothing")
    with pytest.raises(KartRewardsError, match=r"Level1\.drive: is not a drive"):
        reference_lap(tmp_path, "Level1")


# ----------------------------------------------------------------------------------------------------------- time lost
def lost(*episodes: tuple[tuple[float | None, ...], ...], reference: ReferenceLap) -> list[float | None]:
    results = [result(checkpoint_times_seconds=laps) for laps in episodes]
    return time_lost(results, {"Level1": reference}).get("Level1", {}).get("agent", [])


def test_the_time_lost_in_a_sector_is_the_median_over_all_laps() -> None:
    reference = lap_of(1.0, 2.0, 3.0)
    laps = ((9.0, 11.0, 14.5), (1.5, 3.5, 6.5), (1.1, 3.2, 6.4))
    assert lost(laps, reference=reference) == pytest.approx([0.3, 0.0, 0.2])
    assert lost(laps, ((9.0,), (9.0, 99.0)), reference=reference) == pytest.approx([0.5, 0.05, 0.2])


def test_the_first_sector_of_the_first_lap_does_not_count() -> None:
    assert lost(((9.0, 11.5),), reference=lap_of(1.0, 2.0, 3.0)) == [None, pytest.approx(0.5), None]


def test_an_episode_without_sectors_has_no_time_lost() -> None:
    reference = lap_of(1.0, 2.0)
    assert lost((), reference=reference) == lost(((9.0,),), reference=reference) == []
    assert time_lost([result(checkpoint_times_seconds=((9.0, 11.0),))], {}) == {}
    assert lost(((None, None, 4.0, 6.0),), reference=lap_of(1.0, 2.0, 1.0, 1.5)) == [None, None, None, 0.5], "mid-race"


def test_a_race_of_the_scripted_driver_loses_what_its_lap_is_slower() -> None:
    drive = load_drive(SHIPPED / "race.drive")
    reference = reference_lap(GAME, "Level1")
    assert reference and drive.info.race
    seconds = lost(checkpoint_times(drive), reference=reference)
    slower = drive.info.race["best_lap_time_seconds"] - reference_laps(GAME)["Level1"]
    assert sum(each or 0 for each in seconds) == pytest.approx(slower, abs=0.05)
    own = lost(checkpoint_times(load_drive(reference_drive(GAME, "Level1"))), reference=reference)
    assert all(each is not None and abs(each) < 0.1 for each in own)


# -------------------------------------------------------------------------------------------------------------- figure
def picture(*arguments: Any) -> np.ndarray:
    decoded = cv2.imdecode(np.frombuffer(draw_time_lost(*arguments), np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)


def test_the_figure_shows_slow_sectors_in_red_on_the_map_and_as_bars() -> None:
    reference = reference_lap(GAME, "Level3")
    assert reference
    seconds: list[float | None] = [0.0] * 29 + [None]
    seconds[20] = 0.5
    drawn = picture(seconds, reference, "a title", find_courses(GAME)["Level3"])
    assert 300 < drawn.shape[0] < 500 and 700 < drawn.shape[1] < 900
    red = (drawn[..., 0].astype(int) - drawn[..., 1] > 110) & (drawn[..., 2] < 90)
    on_map, bars = red[:, :310].sum(), red[180:, 400:].sum()
    assert on_map > 30 and bars > 500
    assert (drawn[:, :310] == 150).all(axis=-1).mean() > 0.1, "the road"


def test_a_game_without_positions_has_the_figure_without_the_map() -> None:
    seconds = [0.1, None, -0.05]
    drawn = picture(seconds, lap_of(1.0, 2.0, 3.0), "a title")
    assert (drawn[60:300] < 60).all(axis=-1).sum(axis=0).argmax() < 200, "the axes begin at the left"
