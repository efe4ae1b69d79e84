"""Ghosts: which drives can be one, and what the chase of a real drive after another shows."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kart_rewards.drives import SHIPPED, Drive, load_drive
from kart_rewards.errors import KartRewardsError
from kart_rewards.evaluation.courses import CourseMap, find_courses, positions, reference_drive
from kart_rewards.integrations import Game, find_game
from kart_rewards.look.ghost import Chase, Ghost, load_ghost
from kart_rewards.splits import splits_of

OWN, GHOST = (255, 214, 64), (80, 175, 255)


@pytest.fixture(scope="module")
def game() -> Game:
    return find_game("HomebrewKart-Snes")


def chase(drive: Drive, ghost: Ghost | None, frames: int | None = None) -> Chase:
    """Returns the chase after the first frames of a drive, or all."""
    snapshots = list(drive)[:frames]
    followed = Chase(snapshots[0], 0, drive.info.frames_per_second, ghost)
    for ram in snapshots[1:]:
        followed.update(ram)
    return followed


# ------------------------------------------------------------------------------------------------------------- loading
def test_a_ghost_is_the_reference_a_file_or_a_drive_of_the_package(game: Game) -> None:
    reference = load_ghost("reference", game, "Level3")
    assert (reference.info.driver, reference.info.state) == ("reference", "Level3")
    assert load_ghost("race-Level3", game, "Level3").info.driver == "race"
    assert load_ghost(str(SHIPPED / "race.drive"), game, str(game.folder / "Level1.state")).info.state == "Level1"


def saved(folder: Path, drive: Drive) -> str:
    path = folder / "other.drive"
    drive.save(path)
    return str(path)


def test_a_drive_that_does_not_fit_is_refused(game: Game, tmp_path: Path) -> None:
    race = load_drive(SHIPPED / "race.drive")
    with pytest.raises(KartRewardsError, match=r"race\.drive: is a drive on Level1, and the agent drives on Level2: "):
        load_ghost("race", game, "Level2")
    foreign = saved(tmp_path, replace(race, info=replace(race.info, game="MarioKart-Snes")))
    with pytest.raises(KartRewardsError, match="is a drive in MarioKart-Snes, and the agent plays HomebrewKart-Snes"):
        load_ghost(foreign, game, "Level1")
    columns = {name: column for name, column in race.columns.items() if name != "checkpoint"}
    with pytest.raises(KartRewardsError, match="has no checkpoints, by which"):
        load_ghost(saved(tmp_path, replace(race, columns=columns)), game, "Level1")
    with pytest.raises(KartRewardsError, match=r"^rase: no such drive\. Did you mean 'race'"):
        load_ghost("rase", game, "Level1")
    with pytest.raises(KartRewardsError, match=r"pyproject\.toml: is not a drive"):
        load_ghost(str(Path(__file__).parent.parent / "pyproject.toml"), game, "Level1")


def test_a_game_without_a_reference_drive_says_so(game: Game) -> None:
    missing = re.escape(str(reference_drive(game.folder, "Level9")))
    with pytest.raises(KartRewardsError, match=f"^{missing}: no such drive: HomebrewKart-Snes has no reference drive"):
        load_ghost("reference", game, "Level9")


def test_a_ghost_of_another_rom_is_refused_by_its_number_of_checkpoints(game: Game) -> None:
    race = load_drive(SHIPPED / "race.drive")
    ghost = Ghost(load_ghost("race", game, "Level1"), game)
    with pytest.raises(KartRewardsError, match="race: its course has 24 checkpoints, and the agent's 30: "):
        Chase(race[0]._replace(num_checkpoints=30), 0, 60.0, ghost)


# --------------------------------------------------------------------------------------------------------------- chase
def test_the_delta_is_the_difference_of_the_times_at_the_checkpoint(game: Game) -> None:
    drive = load_drive(SHIPPED / "race.drive")
    ghost = Ghost(load_ghost("reference", game, "Level1"), game)
    own, other = splits_of(drive), ghost.splits
    assert own
    for frames in (300, 900, 2000, len(drive)):
        followed = chase(drive, ghost, frames)
        progress = len(followed.splits.reached) - 1
        behind = ((own.reached[progress] or 0) - (other.reached[progress] or 0)) / drive.info.frames_per_second
        assert followed.behind == pytest.approx(behind)
        assert followed.lines()[-1].split() == ["behind", "ghost", "(s)", f"{behind:+.2f}"]
    assert drive.info.race
    finish = drive.info.race["race_time_seconds"] - (other.reached[-1] or 0) / ghost.frames_per_second
    assert followed.behind == pytest.approx(finish)
    assert finish > 3, "the scripted driver is slower than the reference"


def test_the_reference_is_ahead_of_a_slower_ghost(game: Game) -> None:
    reference = load_drive(reference_drive(game.folder, "Level1"))
    followed = chase(reference, Ghost(load_ghost("race", game, "Level1"), game))
    assert followed.behind is not None and followed.behind < -3


def test_the_lines_show_the_latest_split_of_the_lap() -> None:
    drive = load_drive(SHIPPED / "race.drive")
    assert chase(drive, None, 2).lines() == ["split (s)".ljust(40)]
    splits = splits_of(drive)
    assert splits
    for progress, label in (
        (0, "split 0/24 (s)"),
        (1, "split 1/24 (s)"),
        (24, "split 24/24 (s)"),
        (30, "split 6/24 (s)"),
    ):
        frame = splits.reached[progress]
        assert frame is not None
        lap_start = 0 if progress <= 24 else splits.reached[24] or 0
        seconds = f"{(frame - lap_start) / drive.info.frames_per_second:.2f}"
        [line] = chase(drive, None, frame + 1).lines()
        assert line == f"{label:<18}  {seconds:>20}"


def test_beyond_the_end_of_a_ghost_there_is_no_delta_and_it_stays_there(game: Game) -> None:
    drive = load_drive(SHIPPED / "race.drive")
    ghost = Ghost(load_ghost("wander-Level1", game, "Level1"), game)
    followed = chase(drive, ghost)
    assert followed.behind is None
    assert followed.lines()[-1].split() == ["behind", "ghost", "(s)"]
    places = positions(load_drive(SHIPPED / "wander-Level1.drive"))
    assert places is not None
    assert ghost.place(1000.0).tolist() == places[-1].tolist()
    assert ghost.place(0.0).tolist() == places[0].tolist()
    assert followed.picture() is not None


def test_a_ghost_with_a_random_start_is_on_the_same_clock(game: Game) -> None:
    drive = load_drive(SHIPPED / "race.drive")
    later = Ghost(replace(drive, lead=np.zeros(31, np.uint32)), game)
    places = positions(drive)
    assert places is not None
    rate = drive.info.frames_per_second
    assert later.place(20 / rate).tolist() == places[0].tolist(), "the random start is not recorded"
    assert later.place(130 / rate).tolist() == places[100].tolist()
    assert chase(drive, later).behind == pytest.approx(-30 / rate)


# ----------------------------------------------------------------------------------------------------------------- map
def centre(picture: np.ndarray, colour: tuple[int, int, int]) -> tuple[float, float]:
    """Returns the middle (x, y) of the pixels of a colour on the map."""
    rows, columns = np.nonzero((picture[:336] == colour).all(axis=-1))
    assert len(rows) > 20
    return float(columns.mean()), float(rows.mean())


@pytest.mark.parametrize("frames", [500, 1500])
def test_the_map_shows_the_agent_and_the_ghost_where_they_are(game: Game, frames: int) -> None:
    drive, reference = load_drive(SHIPPED / "race-Level3.drive"), load_ghost("reference", game, "Level3")
    followed = chase(drive, Ghost(reference, game), frames)
    picture = followed.picture()
    assert picture is not None
    assert picture.shape == (672, 336, 3)
    course = CourseMap(find_courses(game.folder)["Level3"], 336)
    for of, colour in ((drive, OWN), (reference, GHOST)):
        places = positions(of)
        assert places is not None
        [[x, y]] = course.placed(places[frames - 1]) / 16
        assert centre(picture, colour) == pytest.approx((x, y), abs=1.0)
    assert (picture[460:] == (255, 110, 100)).all(axis=-1).sum() > 20, "the curve of the seconds behind"


def test_without_positions_there_is_the_delta_alone(game: Game) -> None:
    drive, reference = load_drive(SHIPPED / "race.drive"), load_ghost("reference", game, "Level1")

    def without_positions(of: Drive) -> Drive:
        return replace(of, columns={name: column for name, column in of.columns.items() if name != "kart_x"})

    for agent, ghost in ((without_positions(drive), reference), (drive, without_positions(reference))):
        followed = chase(agent, Ghost(ghost, game), 900)
        assert followed.picture() is None
        assert followed.behind is not None
    assert chase(drive, None, 900).picture() is None, "without a ghost there is no map"


def test_a_game_that_describes_no_courses_has_the_line_of_the_ghost_as_its_map(game: Game, own_game: Path) -> None:
    (own_game / "HomebrewKart-Snes" / "courses.json").unlink()
    own = find_game("HomebrewKart-Snes", own_game)
    ghost = Ghost(load_ghost("reference", own, "Level1"), own)
    assert ghost.course
    assert len(ghost.course.centreline) > 2000
    picture = chase(load_drive(SHIPPED / "race.drive"), ghost, 500).picture()
    assert picture is not None
    assert centre(picture, OWN) != centre(picture, GHOST)
