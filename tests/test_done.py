from __future__ import annotations

from typing import Any

import pytest

from kart_rewards.done import EpisodeDone, WallHits, as_rule, done_rule, race_finished
from kart_rewards.errors import KartRewardsError
from kart_rewards.testing import snapshot

HIT = snapshot(collision=1, speed=100)
CLEAR = snapshot()


@pytest.mark.parametrize(("laps", "over"), [(127, False), (128, False), (132, False), (133, True), (134, True)])
def test_a_race_is_finished_after_five_laps(laps: int, over: bool) -> None:
    assert race_finished(snapshot(laps=laps)) is over


def test_the_seventh_wall_hit_ends_the_episode() -> None:
    rule = WallHits()
    assert [rule(HIT) for _ in range(7)] == [False] * 6 + [True]


def test_fast_touches_and_slow_driving_are_not_wall_hits() -> None:
    rule = WallHits()
    assert not any(rule(snapshot(collision=1, speed=600)) for _ in range(50))
    assert not any(rule(snapshot(collision=0, speed=0)) for _ in range(50))


@pytest.mark.parametrize(
    ("clear_calls_before_the_seventh", "stops"),
    [(593, True), (594, True), (595, False)],
    ids=["600th call", "601st call", "602nd call"],
)
def test_the_hits_are_reset_after_the_601st_call(clear_calls_before_the_seventh: int, stops: bool) -> None:
    rule = WallHits()
    for ram in [HIT] * 6 + [CLEAR] * clear_calls_before_the_seventh:
        assert not rule(ram)
    assert rule(HIT) is stops


def test_a_new_window_needs_seven_hits_again() -> None:
    rule = WallHits()
    for ram in [HIT] * 6 + [CLEAR] * 595:
        assert not rule(ram)
    assert (rule.hits, rule.calls) == (0, 0)
    assert [rule(HIT) for _ in range(7)] == [False] * 6 + [True]


def test_the_first_true_rule_is_named() -> None:
    done = EpisodeDone([as_rule(race_finished), as_rule(WallHits)])
    assert done(CLEAR) is None
    assert done(snapshot(laps=133)) == "race_finished"


def test_a_user_can_define_a_rule_with_a_memory() -> None:
    @done_rule()
    class Stopped:
        """Ten frames without moving."""

        def __init__(self) -> None:
            self.frames = 0

        def __call__(self, ram: Any, previous: Any) -> bool:
            self.frames = self.frames + 1 if ram.speed == previous.speed == 0 else 0
            return self.frames >= 10

    done = EpisodeDone([as_rule(Stopped)])
    assert [done(CLEAR) for _ in range(10)] == [None] * 9 + ["stopped"]


@pytest.mark.parametrize("value", [None, "no", float("nan"), [True]], ids=repr)
def test_a_rule_that_returns_neither_a_bool_nor_an_integer_is_named(value: Any) -> None:
    def forgetful(ram: Any) -> Any:
        return value

    with pytest.raises(KartRewardsError, match=r"'forgetful' .*test_done.py:\d+.* neither True nor False"):
        EpisodeDone([as_rule(forgetful)])(CLEAR)


def test_numpy_bools_and_integers_are_valid_values_of_a_rule() -> None:
    numpy = pytest.importorskip("numpy")
    for value, ends in ((numpy.bool_(True), True), (numpy.bool_(False), False), (1, True), (0, False)):

        def rule(ram: Any, value: Any = value) -> Any:
            return value

        assert bool(EpisodeDone([as_rule(rule)])(CLEAR)) is ends


def test_the_decorator_works_without_parentheses() -> None:
    @done_rule
    def bare(ram: Any) -> bool:
        return True

    assert EpisodeDone([as_rule(bare)])(CLEAR) == "bare"


def test_a_rule_that_raises_is_named() -> None:
    def broken(ram: Any) -> bool:
        return ram.altitude > 3

    with pytest.raises(KartRewardsError, match=r"'broken' .*test_done.py:\d+.* no RAM variable 'altitude'"):
        EpisodeDone([as_rule(broken)])(CLEAR)
