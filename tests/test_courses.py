"""Courses: maps with the marks of terms, split times and reference laps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from kart_rewards.drives import SHIPPED, load_drive
from kart_rewards.errors import KartRewardsError
from kart_rewards.evaluation.courses import (
    _COLOURS,
    COURSES_FILE,
    REFERENCE_FILE,
    Course,
    Marks,
    draw_map,
    find_courses,
    reference_laps,
    split_times,
)
from kart_rewards.integrations import INTEGRATIONS

ROOT = Path(__file__).parent.parent
GAME = INTEGRATIONS / "HomebrewKart-Snes"


# ----------------------------------------------------------------------------------------------------------------- map
def info(place: tuple[int, int], **counts: int) -> dict[str, Any]:
    return {"ram": {"kart_x": place[0], "kart_y": place[1]}, "episode_rewards": {"count": counts}}


def test_a_term_is_marked_where_the_number_of_its_frames_grew() -> None:
    marks = Marks()
    for step in (info((4, 8), wall=0, time=0), info((12, 8), wall=2, time=0), info((16, 8), wall=2, time=1)):
        marks.step(step)
    assert marks.path == [(4, 8), (12, 8), (16, 8)]
    assert marks.fired == {"wall": [(12, 8)], "time": [(16, 8)]}


def test_a_game_without_positions_has_no_marks() -> None:
    marks = Marks()
    marks.step({"ram": {"score": 1}, "episode_rewards": {"count": {"score": 1}}})
    assert (marks.path, marks.fired) == ([], {})


def coloured(picture: np.ndarray, colour: tuple[int, int, int]) -> list[tuple[int, int]]:
    """Returns the middle (x, y) of each area of a colour, from left to right."""
    mask = (picture == colour).all(axis=-1).astype(np.uint8)
    _, _, _, centres = cv2.connectedComponentsWithStats(mask)
    return sorted((round(x), round(y)) for x, y in centres[1:])


def test_each_term_that_fired_has_a_map_with_marks_in_its_colour() -> None:
    square = Course([[100, 100], [500, 100], [500, 500], [100, 500]], 40)
    marks = Marks(
        [(400, 400), (2000, 400)], {"first": [(400, 400)] * 3, "never": [], "both": [(400, 400), (2000, 2000)]}
    )
    picture = draw_map(square, [marks], "a title", {"first": "3 steps", "never": "none", "both": "2 steps"})
    assert picture.shape[1] == 600
    legend, mark = coloured(picture, _COLOURS[0])
    assert legend[0] < mark[0] < 60, "the first map is at the left; its corner is at the top left"
    assert coloured(picture, _COLOURS[1]) == []
    other_legend, at_left, at_right = coloured(picture, _COLOURS[2])
    assert other_legend[1] == legend[1]
    assert at_left == pytest.approx((mark[0] + 300, mark[1]), abs=1), "the second map is beside the first one"
    assert at_right[0] - at_left[0] == pytest.approx(at_right[1] - at_left[1], abs=2)
    assert 200 < at_right[0] - at_left[0] < 280


@pytest.mark.parametrize("state", ["Level1", "Level2", "Level3", "Level4", "Level5"])
def test_the_road_of_each_course_of_the_game_is_on_its_map(state: str) -> None:
    course = find_courses(GAME)[state]
    assert course.road_width > 50
    start = tuple(round(4 * number) for number in course.centreline[0])
    picture = draw_map(course, [Marks([start], {"wall": [start]})], state, {"wall": "1 step"})  # type: ignore[list-item]
    road = (picture[:, :300] == (52, 57, 70)).all(axis=-1).mean()
    assert 0.1 < road < 0.6
    assert 250 < picture.shape[0] < 450


def test_a_game_without_files_of_courses_has_neither_maps_nor_reference_laps(tmp_path: Path) -> None:
    assert find_courses(tmp_path) == {}
    assert reference_laps(tmp_path) == {}


def test_damaged_files_of_courses_are_reported(tmp_path: Path) -> None:
    (tmp_path / COURSES_FILE).write_text('{"courses": [{"state": "Level1"}]}')
    with pytest.raises(KartRewardsError, match=r"courses\.json: is not"):
        find_courses(tmp_path)
    for laps in ("[1]", '{"Level1": "fast"}', '{"Level1": 0}'):
        (tmp_path / REFERENCE_FILE).write_text(f'{{"lap_time_seconds": {laps}}}')
        with pytest.raises(KartRewardsError, match=r"reference_laps\.json: is not"):
            reference_laps(tmp_path)


# --------------------------------------------------------------------------------------------------------------- times
def test_the_reference_laps_are_those_of_the_benchmark() -> None:
    replays = [json.loads(path.read_text()) for path in sorted((ROOT / "benchmarks" / "reference_laps").iterdir())]
    assert reference_laps(GAME) == {replay["state"]: replay["lap_time_seconds"] for replay in replays}


@pytest.mark.parametrize("name", ["race", "race-Level3"])
def test_the_last_split_of_a_lap_is_its_lap_time(name: str) -> None:
    drive = load_drive(SHIPPED / f"{name}.drive")
    race = drive.info.race
    assert race
    laps = split_times(drive)
    assert [len(times) for times in laps] == [4] * 5
    assert all(list(times) == sorted(times) for times in laps)
    assert sum(times[-1] for times in laps[:5]) == pytest.approx(race["race_time_seconds"])
    assert min(times[-1] for times in laps[:5]) == pytest.approx(race["best_lap_time_seconds"])
    quarter = laps[2][3] / 4
    assert all(
        0.5 * quarter < later - before < 2 * quarter for before, later in zip(laps[2], laps[2][1:], strict=False)
    )


def test_a_drive_that_ends_in_a_lap_has_the_splits_that_it_reached() -> None:
    drive = load_drive(SHIPPED / "wander-Level5.drive")
    [[first]] = split_times(drive)
    frame = round(first * drive.info.frames_per_second) - (len(drive.lead) - 1)
    assert drive.columns["num_checkpoints"][0] == 28
    assert drive.columns["checkpoint"][[frame - 1, frame]].tolist() == [6, 7]
    assert split_times(load_drive(SHIPPED / "reverse.drive")) == ()


def test_a_drive_without_a_race_has_no_splits() -> None:
    drive = load_drive(SHIPPED / "race.drive")
    object.__setattr__(drive.info, "race", None)
    assert split_times(drive) == ()
