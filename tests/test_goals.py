from __future__ import annotations

import pytest

from kart_rewards.errors import KartRewardsError
from kart_rewards.lab.goals import Goal
from kart_rewards.race import RaceMetrics
from kart_rewards.testing import snapshot

NAMES = snapshot()._fields


def test_the_goal_of_a_kart_race_is_the_finish_and_checkpoints_are_the_way() -> None:
    goal = Goal(None, NAMES)
    assert goal.known
    assert goal.is_number
    start, later, end = snapshot(), snapshot(laps=129, checkpoint=3, num_checkpoints=30), snapshot(laps=133)
    assert goal.value(later, None) == 33
    assert not goal.reached(later, goal.value(later, None))
    assert goal.reached(end, goal.value(end, None))
    assert goal.value(start, None) < goal.value(later, None)


def test_a_condition_is_reached_when_it_is_true() -> None:
    goal = Goal("laps >= 129 and speed > 5", NAMES)
    assert not goal.is_number
    values = [goal.value(snapshot(laps=129, speed=speed), None) for speed in (5, 6)]
    assert values == [0.0, 1.0]
    assert [goal.reached(snapshot(), value) for value in values] == [False, True]


def test_a_number_may_use_the_race_metrics_and_is_never_reached() -> None:
    goal = Goal("laps_completed * 100 - wall_hits", NAMES)
    race = RaceMetrics(snapshot(), 60.0)
    race.update(snapshot(laps=129, collision=1))
    assert goal.is_number
    assert goal.value(snapshot(), race) == 99
    assert not goal.reached(snapshot(), 99)


def test_another_game_has_no_goal_of_its_own() -> None:
    assert not Goal(None, ("score", "lives")).known
    assert Goal("score", ("score", "lives")).is_number
    with pytest.raises(KartRewardsError, match="names no RAM variable 'wall_hits'"):
        Goal("wall_hits", ("score", "lives"))


def test_a_number_that_is_too_large_is_reported() -> None:
    goal = Goal("*".join(["speed"] * 120), NAMES)
    with pytest.raises(KartRewardsError, match="is too large for a number"):
        goal.value(snapshot(speed=900), None)
