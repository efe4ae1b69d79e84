from __future__ import annotations

from types import SimpleNamespace

import pytest

from kart_rewards.race import RaceMetrics, finished, lap, laps_driven, progress
from kart_rewards.testing import snapshot


def test_lap_and_progress() -> None:
    grid = snapshot()
    assert (lap(grid), progress(grid), finished(grid)) == (-1, -1, False)
    over_the_line = snapshot(laps=128, checkpoint=0)
    assert (lap(over_the_line), progress(over_the_line)) == (0, 0)
    assert progress(snapshot(laps=130, checkpoint=7)) == 67
    assert finished(snapshot(laps=133))


@pytest.mark.parametrize(
    ("values", "driven"),
    [
        ({"laps": 127, "checkpoint": 29}, 0.0),  # the grid
        ({"laps": 128, "checkpoint": 15}, 0.5),
        ({"laps": 131, "checkpoint": 6}, 3.2),
        ({"laps": 133, "checkpoint": 0}, 5.0),
    ],
)
def test_a_part_of_a_lap_is_counted_by_its_checkpoints(values: dict[str, int], driven: float) -> None:
    assert laps_driven(snapshot(num_checkpoints=30, **values)) == pytest.approx(driven)


def test_without_checkpoints_only_complete_laps_are_driven() -> None:
    assert laps_driven(snapshot(laps=130, checkpoint=3, num_checkpoints=0)) == 2.0
    assert laps_driven(SimpleNamespace(laps=130)) == 2.0


@pytest.mark.parametrize(
    ("start", "later", "driven"),
    [
        ((127, 29), [(128, 0), (129, 0), (130, 0), (131, 0), (130, 29)], 3.0),  # back over the line
        ((130, 15), [(130, 15)], 0.0),
        ((130, 15), [(130, 21)], 0.2),
        ((130, 15), [(130, 29), (131, 0), (131, 3)], 0.6),
        ((130, 15), [(130, 12)], 0.0),
    ],
)
def test_an_episode_has_driven_its_own_laps_only(
    start: tuple[int, int], later: list[tuple[int, int]], driven: float
) -> None:
    metrics = RaceMetrics(snapshot(laps=start[0], checkpoint=start[1], num_checkpoints=30), frames_per_second=60.0)
    for laps, checkpoint in later:
        metrics.update(snapshot(laps=laps, checkpoint=checkpoint, num_checkpoints=30))
    assert metrics.summary()["laps_driven"] == pytest.approx(driven)


def test_a_random_start_that_passes_checkpoints_belongs_to_the_first_lap() -> None:
    metrics = RaceMetrics(snapshot(laps=128, checkpoint=3), 60.0, start=snapshot(), frames=240)
    for _ in range(60):
        metrics.update(snapshot(laps=128, checkpoint=3))
    metrics.update(snapshot(laps=129))
    assert metrics.lap_frames == [301]


def play(*frames: tuple[int, dict[str, int]]) -> RaceMetrics:
    """Returns the metrics of (number of frames, values) in sequence, at 60 frames per second."""
    metrics = RaceMetrics(snapshot(), frames_per_second=60.0)
    for count, values in frames:
        for _ in range(count):
            metrics.update(snapshot(**values))
    return metrics


def test_an_unfinished_race_has_no_times() -> None:
    summary = play((10, {}), (10, {"laps": 128})).summary()
    assert (summary["laps_completed"], summary["finished"]) == (0, False)
    assert not [name for name in summary if "time" in name]


def test_the_first_lap_begins_at_the_start_and_the_others_at_the_line() -> None:
    laps = [(60, {"laps": 127})] + [(120, {"laps": laps}) for laps in range(128, 133)] + [(1, {"laps": 133})]
    metrics = play(*laps)
    assert metrics.lap_frames == [181, 120, 120, 120, 120]
    summary = metrics.summary()
    assert (summary["laps_completed"], summary["finished"]) == (5, True)
    assert summary["best_lap_time_seconds"] == 2.0
    assert summary["race_time_seconds"] == pytest.approx(661 / 60)
    assert summary["lap_time_seconds"] == pytest.approx(661 / 60 / 5)


@pytest.mark.parametrize(("laps", "checkpoint"), [(128, 7), (129, 0), (131, 20)])
def test_a_start_in_the_middle_of_a_race_has_no_time_for_its_first_lap(laps: int, checkpoint: int) -> None:
    metrics = RaceMetrics(snapshot(laps=laps, checkpoint=checkpoint), frames_per_second=60.0)
    for after in range(laps + 1, 134):
        for _ in range(120):
            metrics.update(snapshot(laps=after))
    summary = metrics.summary()
    assert metrics.lap_frames == [120] * (133 - laps - 1)
    assert (summary["laps_completed"], summary["finished"]) == (133 - laps, True)
    assert "race_time_seconds" not in summary
    state, resumed = metrics.get_state(), RaceMetrics(snapshot(), frames_per_second=60.0)
    resumed.set_state(state, metrics.ram)
    assert resumed.summary() == summary


def test_driving_back_and_forth_over_the_line_completes_no_lap() -> None:
    shuttle = [(5, {"laps": laps}) for laps in (127, 128, 127, 128, 127, 128)]
    assert play(*shuttle).summary()["laps_completed"] == 0
    assert play((5, {"laps": 129}), (5, {"laps": 128}), (5, {"laps": 129})).summary()["laps_completed"] == 1


def test_a_contact_of_several_frames_is_one_wall_hit() -> None:
    touches = play((3, {"collision": 1}), (2, {}), (9, {"collision": 1}))
    assert touches.summary()["wall_hits"] == 2


@pytest.mark.parametrize(
    ("surface", "seconds"),
    [(0x40, 0), (0x1E, 0), (0x16, 0), (0x18, 0), (0x54, 1), (0x5A, 1), (0x20, 1), (0x22, 1), (0x80, 1)],
)
def test_time_on_surfaces_outside_the_course_is_off_road_time(surface: int, seconds: float) -> None:
    assert play((60, {"surface": surface})).summary()["off_road_seconds"] == seconds
