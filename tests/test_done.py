from __future__ import annotations

from typing import Any

import pytest

from kart_rewards.done import EpisodeDone, WallHits, as_rule, done_rule, episode_calls, race_finished
from kart_rewards.errors import KartRewardsError
from kart_rewards.rewards import as_term, reward_term
from kart_rewards.scenario import Scoring
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
    assert done(snapshot(laps=133)) == as_rule(race_finished)


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
    assert [done(CLEAR) for _ in range(10)] == [None] * 9 + [as_rule(Stopped)]


@pytest.mark.parametrize("value", [None, "no", float("nan"), [True]], ids=repr)
def test_a_rule_that_returns_neither_a_bool_nor_an_integer_is_named(value: Any) -> None:
    def forgetful(ram: Any) -> Any:
        return value

    with pytest.raises(KartRewardsError, match=r"'forgetful' .*test_done.py:\d+.* neither True nor False"):
        EpisodeDone([as_rule(forgetful)])(CLEAR)


def test_numpy_bools_and_integers_are_valid_values_of_a_rule() -> None:
    numpy = pytest.importorskip("numpy")
    for value, ends in (
        (numpy.bool_(True), True),
        (numpy.bool_(False), False),
        (numpy.int64(1), True),
        (1, True),
        (0, False),
    ):

        def rule(ram: Any, value: Any = value) -> Any:
            return value

        assert bool(EpisodeDone([as_rule(rule)])(CLEAR)) is ends


def test_the_decorator_works_without_parentheses() -> None:
    @done_rule
    def bare(ram: Any) -> bool:
        return True

    assert EpisodeDone([as_rule(bare)])(CLEAR) == as_rule(bare)


def test_a_rule_that_raises_is_named() -> None:
    def broken(ram: Any) -> bool:
        return ram.altitude > 3

    with pytest.raises(KartRewardsError, match=r"'broken' .*test_done.py:\d+.* no RAM variable 'altitude'"):
        EpisodeDone([as_rule(broken)])(CLEAR)


@done_rule(truncates=True)
def slow(ram: Any) -> bool:
    return bool(ram.speed < 100)


@done_rule(name="turned", truncates=True)
def backward(ram: Any) -> bool:
    return bool(ram.backward)


def test_a_rule_that_terminates_comes_before_one_that_truncates() -> None:
    for order in ((slow, backward, race_finished), (race_finished, slow, backward), (slow, race_finished, backward)):
        done = EpisodeDone([as_rule(rule) for rule in order])

        def ended(done: EpisodeDone = done, **values: int) -> tuple[str, bool] | None:
            rule = done(snapshot(**values))
            return (rule.name, rule.truncates) if rule else None

        assert ended(speed=500) is None
        assert ended(speed=500, backward=16) == ("turned", True)
        assert ended(speed=0, backward=16) == ("slow", True), "the first of several that truncate"
        assert ended(speed=0, laps=133) == ("race_finished", False)


def test_whether_a_rule_truncates_is_checked_shown_and_part_of_the_fingerprint() -> None:
    def of(definition: Any, truncates: bool) -> Scoring:
        return Scoring([], [as_rule(done_rule(name="rule", truncates=truncates)(definition))])

    cut, end = of(lambda ram: ram.speed > 3, True), of(lambda ram: ram.speed > 3, False)
    assert cut.fingerprints() != end.fingerprints()
    assert cut.fingerprints()["rule rule"].startswith("truncates, code ")
    assert end.fingerprints()["rule rule"].startswith("code "), "as in checkpoints of earlier versions"
    assert (cut.table().split(), end.table().split()) == (["rule", "truncates"], ["rule", "ends"])
    with pytest.raises(
        KartRewardsError, match=r"test_done\.py:\d+: truncates of 'odd' must be True or False, not 'no'"
    ):
        done_rule(name="odd", truncates="no")(lambda ram: True)  # type: ignore[call-overload]


@reward_term(weight=-2)
@done_rule(truncates=True)
class Stuck:
    """Charge standing still; the third frame of it in sequence is the last one."""

    def __init__(self) -> None:
        self.calls = self.frames = 0

    def __call__(self, ram: Any, previous: Any) -> tuple[float, bool]:
        self.calls += 1
        self.frames = self.frames + 1 if ram.speed == previous.speed == 0 else 0
        return float(self.frames > 0), self.frames >= 3


def test_a_class_that_is_a_term_and_a_rule_is_called_once_per_frame_and_resumes_bit_for_bit() -> None:
    def fresh() -> Any:
        return episode_calls([as_term(Stuck)], [as_rule(race_finished), as_rule(Stuck)])

    def frame(calls: Any, speed: int) -> tuple[float, str | None]:
        reward, rule = calls[0](snapshot(speed=speed)), calls[1](snapshot(speed=speed))
        return reward, rule.name if rule else None

    speeds, expected = [9, 0, 0, 9, 0, 0, 0, 0], [0, 0, -2, 0, 0, -2, -2, -2]
    ends = [None] * 7 + ["stuck"]
    calls = fresh()
    for i, speed in enumerate(speeds):
        state = [part.get_state() for part in calls]
        assert state[0]["calls"]["memories"]["stuck"]["dict"][0] == ["calls", i], "once per frame"
        assert "stuck" not in state[1]["memories"], "the instance is saved once"
        calls = fresh()  # as after a resume
        for part, saved in zip(calls, state, strict=True):
            part.set_state(saved)
        assert frame(calls, speed) == (expected[i], ends[i])


def test_a_class_that_is_a_term_and_a_rule_can_be_one_of_them() -> None:
    trace = [snapshot(speed=0)] * 4
    rewards, done = episode_calls([as_term(Stuck)], [as_rule(race_finished)])
    assert [(rewards(ram), done(ram)) for ram in trace] == [(-2, None)] * 4
    rewards, done = episode_calls([], [as_rule(Stuck)])
    assert [(rewards(ram), done(ram)) for ram in trace] == [(0, None)] * 2 + [(0, as_rule(Stuck))] * 2
    assert done.get_state()["memories"].keys() == {"stuck"}
    rewards, done = episode_calls([as_term(Stuck).with_weight(0)], [as_rule(Stuck)])
    assert [(rewards(ram), done(ram)) for ram in trace] == [(0, None)] * 2 + [(0, as_rule(Stuck))] * 2


@pytest.mark.parametrize("value", [1.0, None, [1.0, False], (1.0,), (1.0, False, 3)], ids=repr)
def test_a_class_that_is_a_term_and_a_rule_must_return_a_pair(value: Any) -> None:
    @reward_term
    @done_rule
    class Both:
        def __call__(self, ram: Any) -> Any:
            return value

    message = (
        r"'both' \(.*test_done\.py:\d+\) returned .*It is a reward term and a done rule, so .*: return value, done"
    )
    for calls in (episode_calls([as_term(Both)], [as_rule(Both)])[0], episode_calls([], [as_rule(Both)])[1]):
        with pytest.raises(KartRewardsError, match=message):
            calls(CLEAR)


def test_the_values_of_a_pair_are_checked_like_others() -> None:
    @reward_term
    @done_rule
    class Both:
        def __call__(self, ram: Any) -> Any:
            return (None, "no") if ram.speed else (1.0, "no")

    rewards, done = episode_calls([as_term(Both)], [as_rule(Both)])
    assert rewards(CLEAR) == 1
    with pytest.raises(KartRewardsError, match=r"'both' .* returned 'no', neither True nor False"):
        done(CLEAR)
    with pytest.raises(KartRewardsError, match=r"'both' .* returned None, not a finite number"):
        rewards(snapshot(speed=1))


def test_a_class_with_one_mark_that_returns_a_pair_gets_a_hint() -> None:
    class Pair:
        def __call__(self, ram: Any) -> Any:
            return 1.0, True

    for calls in (EpisodeDone([as_rule(Pair)]), episode_calls([as_term(Pair)], [])[0]):
        with pytest.raises(KartRewardsError, match=r"returned \(1\.0, True\), .*\. Only a class with both marks, @rew"):
            calls(CLEAR)
