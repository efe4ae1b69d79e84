"""Split times at every checkpoint, of races that are typed by hand, of real drives, and beside the race metrics."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from kart_rewards.drives import SHIPPED, Drive, load_drive
from kart_rewards.race import RaceMetrics
from kart_rewards.splits import Splits, frames_before, has_checkpoints, splits_of
from kart_rewards.testing import snapshot

COUNT = 6


def splits(*places: tuple[int, int], start: tuple[int, int] = (127, COUNT - 1), frames: int = 0) -> Splits:
    """Returns the splits after frames with these values of ``laps`` and ``checkpoint``, on a course of six."""
    first, *others = (snapshot(laps=laps, checkpoint=at, num_checkpoints=COUNT) for laps, at in (start, *places))
    followed = Splits(first, frames)
    for ram in others:
        followed.update(ram)
    return followed


def driven(*laps: int) -> list[tuple[int, int]]:
    """Returns the places of complete laps: each checkpoint for one frame."""
    return [(lap, at) for lap in laps for at in range(COUNT)]


def test_each_checkpoint_has_the_frame_on_which_it_was_first_reached() -> None:
    race = splits((127, 5), (128, 0), (128, 0), (128, 1), (128, 2), (128, 2), (128, 3))
    assert race.reached == [2, 4, 5, 7]
    assert race.laps == [[4, 5, 7]], "an unfinished lap has the splits that it reached"


def test_the_last_split_of_a_lap_is_its_time_and_later_laps_start_at_the_line() -> None:
    race = splits(*driven(128, 129), (130, 0))
    assert race.laps == [[2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6]]


def test_a_lap_that_has_reached_nothing_is_missing() -> None:
    assert splits().laps == []
    assert splits((128, 0)).laps == [], "the first crossing of the line is no split"
    assert len(splits(*driven(128), (129, 0)).laps) == 1


def test_frames_before_the_first_snapshot_are_part_of_the_first_lap() -> None:
    assert splits(*driven(128), (129, 0), (129, 1), frames=40).laps == [[42, 43, 44, 45, 46, 47], [1]]


def test_driving_back_over_checkpoints_and_the_line_changes_nothing() -> None:
    shuttle = [(128, 0), (128, 1), (128, 0), (127, 5), (127, 4), (127, 5), (128, 0), (128, 1), (128, 2)]
    assert splits(*shuttle).reached == [1, 2, 9]
    over_a_new_lap = [*driven(128), (129, 0), (128, 5), (129, 0), (129, 1)]
    assert splits(*over_a_new_lap).laps == [[2, 3, 4, 5, 6, 7], [3]]


def test_a_lap_driven_backwards_from_the_grid_counts_nothing() -> None:
    backwards = [(127, at) for at in (4, 3, 2, 1, 0)] + [(126, at) for at in (5, 4, 3)]
    assert splits(*backwards).reached == []
    assert splits(*backwards, (126, 4), (126, 5), (127, 0), (127, 1)).reached == []


def test_checkpoints_that_the_game_counts_at_once_get_the_same_frame() -> None:
    assert splits((128, 0), (128, 1), (128, 4), (128, 5)).reached == [1, 2, 3, 3, 3, 4]
    assert splits(*driven(128)[:-2], (129, 0), (129, 1)).laps == [[2, 3, 4, 5, 5, 5], [1]], "the last two were missed"


def test_a_frame_between_the_changes_of_lap_and_checkpoint_reaches_no_lap() -> None:
    assert splits((127, 5), (128, 5), (128, 0), (128, 1)).reached == [3, 4], "the lap byte changes first"
    assert splits((127, 5), (127, 0), (128, 0), (128, 1)).reached == [3, 4], "the checkpoint changes first"
    back = [(128, 0), (128, 1), (128, 0), (128, 5), (127, 5), (128, 0), (128, 1), (128, 2)]
    assert splits(*back).reached == [1, 2, 8], "back over the line, and the checkpoint changes first"


def test_a_jump_that_lasts_counts_one_frame_later() -> None:
    assert splits((128, 0), (128, 5), (128, 5)).reached == [1, 3, 3, 3, 3, 3]


def test_after_the_finish_nothing_counts() -> None:
    race = splits(*driven(128, 129, 130, 131, 132), *driven(133, 134))
    assert [len(lap) for lap in race.laps] == [COUNT] * 5
    assert len(race.reached) == 5 * COUNT + 1


def test_checkpoints_before_a_start_in_mid_race_have_no_time() -> None:
    race = splits((129, 3), (129, 4), (129, 5), (130, 0), (130, 1), start=(129, 2))
    assert race.reached[: COUNT + 3] == [None] * (COUNT + 3)
    assert race.laps == [[None] * COUNT, [1]], "nobody knows when the first lap began"
    before_the_line = splits((129, 0), (129, 1), start=(128, 5))
    assert before_the_line.laps == [[None] * COUNT, [1]]
    behind_the_line = splits((129, 1), (129, 2), start=(129, 0))
    assert behind_the_line.laps == [[None, None]]


def test_checkpoints_count_from_the_frame_on_which_the_game_has_some() -> None:
    race = Splits(snapshot(laps=0, checkpoint=0, num_checkpoints=0))
    for laps, at, count in ((0, 0, 0), (127, 5, 6), (128, 0, 6), (128, 1, 6)):
        race.update(snapshot(laps=laps, checkpoint=at, num_checkpoints=count))
    assert (race.count, race.reached, race.laps) == (6, [3, 4], [[4]])


@pytest.mark.parametrize("name", ["race", "race-Level3", "race-Level5"])
def test_the_laps_of_a_real_race_are_those_of_the_race_metrics(name: str) -> None:
    drive = load_drive(SHIPPED / f"{name}.drive")
    metrics = RaceMetrics(drive[0], drive.info.frames_per_second)
    for ram in drive[1:]:
        metrics.update(ram)
    found = splits_of(drive)
    assert found
    assert [lap[-1] for lap in found.laps] == metrics.lap_frames
    assert {len(lap) for lap in found.laps} == {int(drive.columns["num_checkpoints"][0])}
    for lap in found.laps:
        assert lap == sorted(lap, key=lambda at: at or 0)


@pytest.mark.parametrize("kind", ["walls", "wander", "turning", "reverse", "standing"])
def test_the_splits_of_odd_drives_agree_with_a_slow_definition(kind: str) -> None:
    """The first frame of each progress is found anew, for every checkpoint, in the columns."""
    paths = sorted(SHIPPED.glob(f"{kind}*.drive"))
    assert len(paths) == 5
    for path in paths:
        drive = load_drive(path)
        columns = {name: drive.columns[name].astype(np.int64) for name in ("laps", "checkpoint", "num_checkpoints")}
        progress = columns["checkpoint"] + (columns["laps"] - 128) * columns["num_checkpoints"]
        frames = [int(np.flatnonzero(progress >= at)[0]) for at in range(int(progress.max()) + 1)]
        found = splits_of(drive)
        assert found
        assert found.reached == frames, path.name


def test_a_random_start_is_on_the_clock() -> None:
    drive = load_drive(SHIPPED / "race.drive")
    later = replace(drive, lead=np.zeros(31, np.uint32))
    assert (frames_before(drive), frames_before(later)) == (0, 30)
    first, shifted = splits_of(drive), splits_of(later)
    assert first and shifted
    assert shifted.laps[0][0] == (first.laps[0][0] or 0) + 30
    assert shifted.laps[1:] == first.laps[1:]


def test_games_without_checkpoints_have_no_splits() -> None:
    drive = load_drive(SHIPPED / "race.drive")
    assert has_checkpoints(drive[0])
    assert not has_checkpoints(drive[0]._replace(checkpoint=(1, 2)))
    assert not has_checkpoints(object())

    def with_columns(**columns: np.ndarray) -> Drive:
        return replace(drive, columns={**drive.columns, **columns})

    without = {name: column for name, column in drive.columns.items() if name != "checkpoint"}
    assert splits_of(replace(drive, columns=without)) is None
    assert splits_of(with_columns(num_checkpoints=np.zeros(len(drive), np.uint8))) is None
    assert splits_of(with_columns(checkpoint=np.zeros((len(drive), 2), np.uint8))) is None, "an array of another game"


def test_a_frame_costs_less_than_a_hundredth_of_an_emulated_one() -> None:
    drive = load_drive(SHIPPED / "race.drive")
    assert len(list(drive)) > 3000
    seconds = []
    for _ in range(3):
        begin = time.process_time()
        splits_of(drive)
        seconds.append(time.process_time() - begin)
    assert min(seconds) / len(drive) < 4e-6, "an emulated frame takes about 400 microseconds"
