from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from kart_rewards import reward_term
from kart_rewards.errors import KartRewardsError
from kart_rewards.rewards import (
    REFERENCE_TERMS,
    Checkpoint,
    EpisodeRewards,
    RewardTerm,
    as_term,
    backwards,
    hits_wall,
    make_transform,
    parse_weights,
    rates,
    terrain,
    time,
    unweighted,
    wall,
    with_weights,
)
from kart_rewards.testing import score, snapshot

FINISHED = {"laps": 133}


def numpy_takes_an_array_for_a_number() -> bool:
    """Whether NumPy converts an array of one value to a number, as older versions do."""
    try:
        return float(np.zeros(1)) == 0
    except TypeError:
        return False


@pytest.mark.parametrize(
    ("values", "paid"),
    [
        ({"collision": 1, "speed": 599}, 1),
        ({"collision": 1, "speed": 600}, 0),
        ({"collision": 255, "speed": -200}, 1),
        ({"collision": 0, "speed": 0}, 0),
        ({"collision": 1, "speed": 0, **FINISHED}, 0),
    ],
)
def test_wall_charges_slow_touches(values: dict[str, int], paid: float) -> None:
    assert wall(snapshot(**values)) == paid


@pytest.mark.parametrize(
    ("values", "paid"),
    [
        ({"surface": 0x54, "current_frame": 30}, 1),
        ({"surface": 0x40, "current_frame": 30}, 0),
        ({"surface": 0x1E, "current_frame": 30}, 1),  # the start line
        ({"surface": 0x54, "current_frame": 29}, 0),
        ({"surface": 0x54, "current_frame": 31}, 0),
        ({"surface": 0x54, "current_frame": 0}, 0),
        ({"surface": 0x54, "current_frame": 65520}, 1),
        ({"surface": 0x54, "current_frame": 30, **FINISHED}, 0),
    ],
)
def test_terrain_charges_other_surfaces_on_every_30th_frame(values: dict[str, int], paid: float) -> None:
    assert terrain(snapshot(**values)) == paid


@pytest.mark.parametrize(
    ("values", "paid"),
    [
        ({"speed": 700, "current_frame": 60}, 1),
        ({"speed": 701, "current_frame": 60}, 0.5),
        ({"speed": -300, "current_frame": 60}, 1),
        ({"speed": 700, "current_frame": 0}, 0),
        ({"speed": 700, "current_frame": 61}, 0),
        ({"speed": 700, "current_frame": 60, **FINISHED}, 0),
    ],
)
def test_time_charges_half_at_high_speed(values: dict[str, int], paid: float) -> None:
    assert time(snapshot(**values)) == paid


@pytest.mark.parametrize(
    ("values", "paid"),
    [
        ({"backward": 0x10, "current_frame": 6}, 1),
        ({"backward": 0x10, "current_frame": 0}, 1),  # unlike terrain and time, frame 0 counts
        ({"backward": 0x10, "current_frame": 7}, 0),
        ({"backward": 0x00, "current_frame": 6}, 0),
        ({"backward": 0x11, "current_frame": 6}, 0),
        ({"backward": 0x10, "current_frame": 6, **FINISHED}, 0),
    ],
)
def test_backwards_charges_every_6th_frame(values: dict[str, int], paid: float) -> None:
    assert backwards(snapshot(**values)) == paid


def test_checkpoint_pays_each_progress_once() -> None:
    term = Checkpoint()
    steps = [
        (127, 29, 0),  # on the grid: progress -1, the best so far
        (127, 28, 0),  # away from the line
        (127, 29, 0),
        (128, 0, 1),  # over the line: lap -1 -> 0, progress 0
        (127, 29, 0),  # back over the line
        (128, 0, 0),  # and forward again: progress 0 was paid before
        (128, 1, 1),
        (128, 3, 1),  # two checkpoints at once pay 1
        (128, 2, 0),
        (128, 3, 0),
        (128, 4, 1),
        (129, 0, 1),
        (133, 0, 0),  # the finish
    ]
    for laps, checkpoint, paid in steps:
        assert term(snapshot(laps=laps, checkpoint=checkpoint)) == paid, (laps, checkpoint)


def test_the_wrap_of_current_frame_is_not_paid() -> None:
    frames = [65533, 65534, 65535, 0, 1, 2]
    assert score([snapshot(current_frame=frame, surface=0x54) for frame in frames], REFERENCE_TERMS) == {
        "wall": 0,
        "checkpoint": 0,
        "terrain": 0,
        "time": 0,
        "backwards": 0,
    }


def test_terms_are_called_with_the_reset_frame_but_it_is_not_paid() -> None:
    ahead = snapshot(laps=128, checkpoint=5, collision=1, current_frame=30)
    paid = score([ahead, ahead._replace(collision=0, current_frame=31)], REFERENCE_TERMS)
    assert paid == {"wall": 0, "checkpoint": 0, "terrain": 0, "time": 0, "backwards": 0}


def test_the_reference_weights_are_those_of_the_original() -> None:
    weights = {term.name: term.weight for term in map(as_term, REFERENCE_TERMS)}
    assert weights == {"wall": -10, "checkpoint": 300, "terrain": -15, "time": -1, "backwards": -2}


def test_a_marked_function_can_be_called_as_before() -> None:
    @reward_term(weight=0.02)
    def top_speed(ram: Any) -> float:
        """Pay for speed. Much of it."""
        return float(ram.speed > 900)

    assert top_speed(snapshot(speed=901)) == 1.0
    term = as_term(top_speed)
    assert (term.name, term.weight, term.summary) == ("top_speed", 0.02, "Pay for speed. Much of it.")
    assert "test_rewards.py:" in term.where


def test_classes_are_named_in_snake_case_and_remember_one_episode() -> None:
    @reward_term(weight=-5.0)
    class LeftTheRoad:
        def __init__(self) -> None:
            self.on_road = True

        def __call__(self, ram: Any) -> float:
            left = self.on_road and ram.surface != 0x40
            self.on_road = ram.surface == 0x40
            return float(left)

    off_and_on = [snapshot(surface=surface) for surface in (0x40, 0x54, 0x54, 0x40, 0x5A)]
    assert score(off_and_on, [LeftTheRoad]) == {"left_the_road": -10.0}
    assert score(off_and_on, [LeftTheRoad]) == {"left_the_road": -10.0}  # a new episode has a new memory


def test_a_term_may_take_the_previous_snapshot() -> None:
    def gained_speed(ram: Any, previous: Any) -> float:
        return ram.speed - previous.speed

    trace = [snapshot(speed=speed) for speed in (5, 5, 8, 2)]
    assert score(trace, [gained_speed]) == {"gained_speed": -3.0}


def test_sums_and_counts_are_kept_per_term() -> None:
    def always(ram: Any) -> float:
        return 2

    def never(ram: Any) -> bool:
        return False

    rewards = EpisodeRewards(with_weights([as_term(always), as_term(never)], {"always": 0.5}, "test"))
    assert [rewards(snapshot()), rewards(snapshot())] == [1.0, 1.0]
    assert rewards.step == {"always": 2.0, "never": 0.0}
    rewards.start_step()
    assert rewards.step == {"always": 0.0, "never": 0.0}
    assert rewards.episode_summary() == {
        "sum": {"always": 2.0, "never": 0.0},
        "transformed": {"always": 2.0, "never": 0.0},
        "share": {"always": 1.0, "never": 0.0},
        "count": {"always": 2, "never": 0},
        "unpaid": {},
    }


def test_a_term_of_weight_0_is_measured_and_not_paid() -> None:
    def speed(ram: Any) -> float:
        return float(ram.speed)

    terms = with_weights([as_term(speed), RewardTerm("hits", hits_wall, -2)], {"speed": 0}, "test")
    rewards = EpisodeRewards(terms)
    assert [rewards(snapshot(speed=speed, collision=1)) for speed in (100, 0, 50)] == [-2.0, -2.0, -2.0]
    summary = rewards.episode_summary()
    assert summary["sum"] == {"speed": 0.0, "hits": -6.0}
    assert summary["count"] == {"speed": 2, "hits": 3}
    assert summary["unpaid"] == {"speed": 150.0}
    assert unweighted(summary, terms) == {"speed": 150.0, "hits": 3.0}


def test_rates_do_not_depend_on_the_length_of_an_episode() -> None:
    short = rates({"wall": -20.0}, {"wall": 2.0}, seconds=30.0, laps=2.0)
    assert short == {
        "rewards_per_minute": {"wall": -40.0},
        "values_per_minute": {"wall": 4.0},
        "rewards_per_lap": {"wall": -10.0},
    }
    assert rates({"wall": -40.0}, {"wall": 4.0}, seconds=60.0, laps=4.0) == short
    assert "rewards_per_lap" not in rates({"wall": -20.0}, {"wall": 2.0}, seconds=30.0, laps=0.9)


def test_transformed_sums_add_up_to_the_return() -> None:
    rewards = EpisodeRewards([as_term(term) for term in REFERENCE_TERMS], make_transform("sign"))
    frames = [
        snapshot(current_frame=30, surface=0x54, laps=128, checkpoint=0),  # +300 -15 -1
        snapshot(current_frame=60, collision=1),  # -10 -1
        snapshot(current_frame=61),
    ]
    assert [rewards(ram) for ram in frames] == [1.0, -1.0, 0.0]
    summary = rewards.episode_summary()
    assert summary["sum"] == {"wall": -10, "checkpoint": 300, "terrain": -15, "time": -2, "backwards": 0}
    assert summary["transformed"] == pytest.approx(
        {"wall": -10 / 11, "checkpoint": 300 / 284, "terrain": -15 / 284, "time": -1 / 284 - 1 / 11, "backwards": 0}
    )
    assert sum(summary["transformed"].values()) == pytest.approx(0.0)
    assert sum(map(abs, summary["share"].values())) == pytest.approx(1.0)
    assert summary["share"]["checkpoint"] > 0 > summary["share"]["wall"]


@pytest.mark.parametrize("value", [Decimal("0.5"), Fraction(1, 2), np.float16(0.5), np.int8(5), True])
def test_every_real_number_is_a_value(value: Any) -> None:
    def odd(ram: Any) -> Any:
        return value

    rewards = EpisodeRewards([RewardTerm("odd", odd, 300.0)])
    assert rewards(snapshot()) == 300.0 * float(value)


def test_a_value_that_is_too_large_with_its_weight_is_reported() -> None:
    def large(ram: Any) -> float:
        return 9.0

    with pytest.raises(KartRewardsError, match=r"'large' .* returned 9.0, which times its weight 1e\+308 is too large"):
        EpisodeRewards([RewardTerm("large", large, 1e308)])(snapshot())


def test_weights_are_by_name() -> None:
    with pytest.raises(KartRewardsError, match="weights are by the names of terms"):
        with_weights([as_term(wall)], {wall: 5.0}, "reward weights")  # type: ignore[dict-item]
    assert repr(RewardTerm("wall", wall, np.float64(1)).weight) == repr(RewardTerm("wall", wall, 1).weight) == "1.0"


def test_a_scale_of_0_is_refused() -> None:
    with pytest.raises(KartRewardsError, match="a reward scale of 0 pays the agent nothing"):
        make_transform("scale", 0.0)


@pytest.mark.parametrize(
    "value",
    [
        *(float("nan"), float("inf"), None, "5", "", [], [1.0], {}, 0j, 1j, np.ones(1), np.zeros(2), 10**400),
        pytest.param(
            np.zeros(1), marks=pytest.mark.skipif(numpy_takes_an_array_for_a_number(), reason="here it is a number, 0")
        ),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_value_that_is_not_a_finite_number_is_reported_with_term_line_and_snapshot(value: Any) -> None:
    def odd(ram: Any) -> Any:
        return value

    with pytest.raises(KartRewardsError) as error:
        EpisodeRewards([as_term(wall), as_term(odd)])(snapshot(speed=77))
    message = str(error.value)
    assert f"returned {value!r}, not a finite number" in message
    assert "'odd'" in message
    assert "test_rewards.py:" in message
    assert "speed=77" in message


def test_a_term_that_raises_is_reported_with_line_and_snapshot() -> None:
    def divides(ram: Any) -> float:
        return 1 / (ram.speed - 77)  # this line

    with pytest.raises(KartRewardsError) as error:
        EpisodeRewards([as_term(divides)])(snapshot(speed=77))
    message = str(error.value)
    assert "'divides'" in message
    assert "raised ZeroDivisionError: division by zero" in message
    assert "# this line" in message
    assert "speed=77" in message


def test_numpy_numbers_and_bools_are_valid_values() -> None:
    numpy = pytest.importorskip("numpy")
    values = iter([True, numpy.float32(1), numpy.int64(1), numpy.bool_(True), 1])

    def count(ram: Any) -> Any:
        return next(values)

    assert score([snapshot()] * 5, [count]) == {"count": 4.0}


def test_numbers_of_other_libraries_become_floats() -> None:
    numpy = pytest.importorskip("numpy")

    def half(ram: Any) -> Any:
        return numpy.float16(60000)

    rewards = EpisodeRewards([as_term(half)])
    assert type(rewards(snapshot())) is float
    assert rewards(snapshot()) == 60000.0
    assert rewards.episode_summary()["sum"] == {"half": 120000.0}  # in float16 this would be infinite


def test_terms_that_cancel_pay_exactly_zero() -> None:
    def tenth(ram: Any) -> float:
        return 0.1

    def fifth(ram: Any) -> float:
        return 0.2

    def minus(ram: Any) -> float:
        return -0.3

    rewards = EpisodeRewards([as_term(term) for term in (tenth, fifth, minus)], make_transform("sign"))
    assert rewards(snapshot()) == 0.0
    assert set(rewards.episode_summary()["transformed"].values()) == {0.0}


def test_the_decorator_works_without_parentheses() -> None:
    @reward_term
    def bare(ram: Any) -> float:
        return 1.0

    assert (as_term(bare).name, as_term(bare).weight) == ("bare", 1.0)


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), "a", None, True, 10**400, 10**5000], ids=type)
def test_a_weight_that_is_not_a_finite_number_is_reported(weight: Any) -> None:
    with pytest.raises(KartRewardsError, match=r"test_rewards\.py:\d+: the weight of 'odd' must be a finite number"):

        @reward_term(weight=weight)
        def odd(ram: Any) -> float:
            return 1.0


def test_each_transform_converts_a_reward() -> None:
    assert [make_transform("sign")(reward) for reward in (-0.1, 0.0, 300.0)] == [-1.0, 0.0, 1.0]
    assert make_transform("scale", 0.5)(-3.0) == -1.5
    assert make_transform("none")(-3.0) == -3.0
    with pytest.raises(KartRewardsError, match="unknown reward transform 'cube'"):
        make_transform("cube")


def test_weights_are_parsed_from_name_equals_number() -> None:
    assert parse_weights(["wall=-5", "top_speed=0.02", "time=1e-3"]) == {"wall": -5, "top_speed": 0.02, "time": 0.001}
    for bad in ("wall", "wall=", "wall=much", "=5"):
        with pytest.raises(KartRewardsError, match="is not NAME=NUMBER"):
            parse_weights([bad])
    assert parse_weights(["wall=-5", "wall=-5.0"]) == {"wall": -5}
    with pytest.raises(KartRewardsError, match=r"'wall' has two weights, -5\.0 and -6\.0"):
        parse_weights(["wall=-5", "wall=-6"])
    assert math.isnan(parse_weights(["wall=nan"])["wall"])  # Term refuses it, with the right message


def test_unknown_terms_and_bad_weights_are_reported() -> None:
    terms = [as_term(term) for term in REFERENCE_TERMS]
    with pytest.raises(KartRewardsError, match="no reward term 'wal' in this run; there are wall, checkpoint"):
        with_weights(terms, {"wal": 1}, "test")
    for weight in (float("nan"), float("inf"), "5", True, 10**400):
        with pytest.raises(KartRewardsError, match="must be a finite number"):
            with_weights(terms, {"wall": weight}, "test")  # type: ignore[dict-item]
