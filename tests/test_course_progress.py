"""The scenario course_progress of HomebrewKart and HomebrewKartPlus: what its term pays."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from kart_rewards.drivers import centrelines
from kart_rewards.evaluation.courses import reference_drive
from kart_rewards.imports import import_source
from kart_rewards.integrations import find_game
from kart_rewards.ram import RamLayout, load_json
from kart_rewards.scenario import load_scoring
from kart_rewards.testing import load_trace, score, score_episode

GAMES = ("HomebrewKart-Snes", "HomebrewKartPlus-Snes")
PAID_FOR_A_CHECKPOINT = 300


def folder(game: str) -> Path:
    return find_game(game).folder


def course_progress(game: str = GAMES[0]) -> Any:
    return import_source(folder(game) / "course_progress.py").CourseProgress


def checkpoints_paid(trace: Any) -> float:
    return score(trace, course_progress())["course_progress"] / PAID_FOR_A_CHECKPOINT


def rises(trace: Any) -> list[float]:
    """What each frame of a trace pays, in checkpoints."""
    term = course_progress()()
    return [term(ram) for ram in trace]


@pytest.mark.parametrize("level", range(1, 6))
def test_a_race_pays_each_checkpoint_of_its_five_laps(level: int) -> None:
    race = load_trace("race" if level == 1 else f"race-Level{level}")
    on_the_grid, last = race[0], race[-1]
    assert last.laps == 133
    assert checkpoints_paid(race) == pytest.approx(
        5 * on_the_grid.num_checkpoints, abs=0.6
    )  # from the grid to the line


def test_each_frame_pays_a_small_part_of_a_checkpoint() -> None:
    paid = rises(load_trace("race"))
    assert 0 < max(paid) < 0.2
    assert sum(part > 0 for part in paid) > 0.95 * len(paid)


def test_a_lap_over_a_short_cut_pays_the_checkpoints_of_the_road_that_it_replaces() -> None:
    race = load_trace(reference_drive(folder(GAMES[0]), "Level4"))
    assert sum(ram.surface == 0x54 for ram in race) > 60  # dirt
    assert checkpoints_paid(race) == pytest.approx(5 * 30, abs=0.6)


@pytest.mark.parametrize("behaviour", ["reverse", "standing"])
def test_driving_backwards_and_standing_still_pay_nothing(behaviour: str) -> None:
    assert checkpoints_paid(load_trace(behaviour)) == 0


def test_a_way_that_was_driven_back_is_not_paid_again() -> None:
    race = list(load_trace("race"))
    over_the_line = next(i for i, ram in enumerate(race) if ram.laps == 128) + 60
    forward = race[:over_the_line]
    again = [*forward, *reversed(forward), *forward, *race[over_the_line : over_the_line + 60]]
    assert checkpoints_paid(again) == pytest.approx(checkpoints_paid(race[: over_the_line + 60]), abs=1e-9)


def test_a_start_in_the_middle_of_a_race_pays_nothing_at_once() -> None:
    assert rises(load_trace("race")[1000:])[0] == 0


def test_frames_after_the_finish_pay_nothing() -> None:
    race = list(load_trace("race"))
    assert rises([race[-2], race[-1], race[-1]])[1:] == [0, 0]


def test_the_end_of_the_race_is_a_truncation() -> None:
    race = list(load_trace("race"))
    module = import_source(folder(GAMES[0]) / "course_progress.py")
    assert score_episode(race, [module.race_over])[1] == (len(race) - 1, "race_over")
    [rule] = [each for each in load_scoring(folder(GAMES[0]) / "course_progress.json").done if each.name == "race_over"]
    assert rule.truncates


@pytest.mark.parametrize("game", GAMES)
def test_on_each_course_the_place_rises_along_the_middle_of_the_road_by_the_checkpoints_of_a_lap(game: str) -> None:
    module = import_source(folder(game) / "course_progress.py")
    layout = RamLayout.from_file(folder(game) / "data.json")
    lines = centrelines(folder(game) / "courses.json")
    courses = load_json(folder(game) / "courses.json")["courses"]
    assert len(courses) == {GAMES[0]: 5, GAMES[1]: 33}[game]
    for course in courses:
        line, count = lines[course["state"]], course["num_checkpoints"]
        places = [
            module.place(
                layout.snapshot(
                    course=course["index"], num_checkpoints=count, laps=128, checkpoint=int(i * count / len(line)),
                    kart_x=round(4 * x), kart_y=round(4 * y),
                )
            )
            for i, (x, y) in enumerate(line)
        ]  # fmt: skip
        assert places[0] == pytest.approx(0, abs=0.1)
        assert places[-1] == pytest.approx(count, abs=0.2)
        assert all(after > before for before, after in pairwise(places)), course["state"]


def test_both_games_have_the_same_scenario_and_it_replaces_checkpoint() -> None:
    for name in ("course_progress.json", "course_progress.py"):
        assert (folder(GAMES[0]) / name).read_bytes() == (folder(GAMES[1]) / name).read_bytes()
    weights = {}
    for scenario in ("scenario.json", "course_progress.json"):
        scoring = load_scoring(folder(GAMES[0]) / scenario)
        weights[scenario] = {term.name: term.weight for term in scoring.terms}
    reference = weights["scenario.json"]
    assert weights["course_progress.json"] == {
        "course_progress" if name == "checkpoint" else name: weight for name, weight in reference.items()
    }
