from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from episode_results import OVER_THREE_SEEDS, RESULTS, result

from kart_rewards.evaluation import EpisodeResult, across_seeds, evaluation_score, summarise
from kart_rewards.evaluation.statistics import Interval, compare_seeds, interquartile_mean_interval


def test_statistics_by_course_and_policy() -> None:
    summary = summarise(RESULTS)
    assert {course: list(by_policy) for course, by_policy in summary.items()} == {
        "Level1": ["agent", "random"],
        "Level2": ["agent"],
    }
    assert summary["Level1"]["agent"] == {
        "episodes": 3,
        "finish_rate": 2 / 3,
        "best_lap_time_seconds": 10.0,  # laps: 10, 10, 10.5, 11, 12, 12, 13, 14
        "lower_quartile_lap_time_seconds": 10.375,
        "median_lap_time_seconds": 11.5,
        "upper_quartile_lap_time_seconds": 12.25,
        "best_race_time_seconds": 32.0,
        "lower_quartile_race_time_seconds": 33.0,
        "median_race_time_seconds": 34.0,
        "upper_quartile_race_time_seconds": 35.0,
        "median_off_road_seconds": 2.0,
        "median_wall_hits": 2.0,
        "median_length_seconds": 66.6,
        "lower_quartile_return": 70.0,
        "median_return": 90.0,
        "upper_quartile_return": 95.0,
    }
    never = summary["Level1"]["random"]
    assert never["finish_rate"] == 0.0
    assert {never[metric] for metric in never if "_time_" in metric} == {None}
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summarise([]) == {}


def test_rates_and_shares_of_terms_and_splits_of_laps() -> None:
    first = result(
        length_seconds=30.0, laps_driven=2.5, reward_sums={"wall": -20.0}, value_sums={"wall": 2.0},
        reward_shares={"wall": -1.0}, split_times_seconds=((1.0, 2.0), (3.0,)),
    )  # fmt: skip
    second = result(
        length_seconds=90.0, laps_driven=0.5, reward_sums={"wall": -40.0}, value_sums={"wall": 4.0},
        reward_shares={"wall": 0.0}, split_times_seconds=((5.0,),),
    )  # fmt: skip
    metrics = summarise([first, second])["Level1"]["agent"]
    assert metrics["rewards_per_minute/wall"] == -30.0, "over all episodes together"
    assert metrics["values_per_minute/wall"] == 3.0
    assert metrics["rewards_per_lap/wall"] == -20.0
    assert metrics["rewards_share/wall"] == -1.0, "in the second episode, no term paid"
    assert (metrics["split_1"], metrics["split_2"]) == (3.0, 2.0)
    assert "rewards_per_lap/wall" not in summarise([second])["Level1"]["agent"]


def test_statistics_over_training_seeds() -> None:
    statistics = across_seeds([summarise(results) for results in OVER_THREE_SEEDS])
    agent = statistics["Level1"]["agent"]
    assert agent["finish_rate"] == {
        "lower_quartile": 1 / 3,
        "median": 2 / 3,
        "upper_quartile": pytest.approx(5 / 6),
        "seeds": 3,
    }
    assert agent["best_race_time_seconds"] == {
        "lower_quartile": 33.0,
        "median": 34.0,
        "upper_quartile": 35.0,
        "seeds": 2,
    }
    assert json.loads(json.dumps(statistics, allow_nan=False)) == statistics


def score(*results: EpisodeResult) -> list[float]:
    return evaluation_score(summarise(results))


def test_an_agent_that_finishes_faster_is_better_even_if_its_return_is_lower() -> None:
    fast = result(laps=(10.0, 10.0, 10.0), episode_return=50.0)
    slow = result(laps=(12.0, 12.0, 12.0), episode_return=90.0)
    assert score(fast) > score(slow)
    assert score(fast, result(state="Level2", laps=(20.0,) * 3)) > score(slow, result(state="Level2", laps=(20.0,) * 3))


def test_an_agent_that_finishes_more_often_is_better_even_if_it_is_slower() -> None:
    fast, slow = result(laps=(10.0,) * 3, episode_return=90.0), result(laps=(20.0,) * 3, episode_return=50.0)
    assert score(slow, slow) > score(fast, result(laps=(9.0, 9.0), episode_return=90.0))
    assert score(slow, result(state="Level2", laps=(20.0,) * 3)) > score(fast, result(state="Level2"))


def test_agents_that_never_finish_are_compared_by_their_returns() -> None:
    assert score(result(episode_return=20.0)) > score(result(episode_return=10.0))
    finishes_once = [result(laps=(30.0,) * 3, episode_return=-5.0), result(state="Level2")]
    assert score(*finishes_once) > score(result(episode_return=100.0), result(state="Level2", episode_return=100.0))


def test_games_without_a_race_are_compared_by_their_returns() -> None:
    unknown: dict[str, Any] = {"finished": None, "laps_completed": None, "race_time_seconds": None}
    assert score(result(episode_return=2.0, **unknown)) > score(result(episode_return=1.0, **unknown))


def test_only_the_agents_episodes_count_for_its_score() -> None:
    agent, driver = result(laps=(12.0,) * 3), result("random", laps=(10.0,) * 3)
    assert score(agent, driver) == score(agent)
    assert evaluation_score(summarise([agent, driver]), "random") == score(result(laps=(10.0,) * 3))


# --- several seeds ----------------------------------------------------------------------------------------------------

RNG = np.random.default_rng(5)
OURS, THEIRS = RNG.normal(1, 1, (8, 1)), RNG.normal(0, 1, (8, 1))
RELIABLE = {
    "interquartile mean": (0.63098, 0.19210, 1.35607),
    "difference": (0.56445, -0.66746, 1.87287),
    "probability of improvement": (0.640625, 0.34375, 0.90625),
}
"""What rliable 1.2.0 computes for these values, with 5,000 samples."""


@pytest.mark.parametrize(
    ("of_rliable", "interval"),
    [
        ("interquartile mean", interquartile_mean_interval(OURS)),
        ("difference", compare_seeds(OURS, THEIRS).difference),
        ("probability of improvement", compare_seeds(OURS, THEIRS).larger),
    ],
)
def test_the_statistics_of_several_seeds_are_those_of_rliable(of_rliable: str, interval: Interval) -> None:
    value, low, high = RELIABLE[of_rliable]
    assert interval.value == pytest.approx(value, abs=1e-5)
    assert interval.low is not None and interval.high is not None
    assert interval.low < low and high < interval.high  # rliable does not expand the intervals of few seeds
    assert 1.1 < (interval.high - interval.low) / (high - low) < 1.4


def test_without_their_expansion_the_intervals_are_those_of_rliable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kart_rewards.evaluation.statistics._tail", lambda seeds, degrees: 0.025)
    compared = compare_seeds(OURS, THEIRS)
    results = (interquartile_mean_interval(OURS), compared.difference, compared.larger)
    for (_, low, high), interval in zip(RELIABLE.values(), results, strict=True):
        assert interval[1:] == pytest.approx((low, high), abs=0.08)  # both draw samples at random


def test_the_courses_of_a_seed_are_no_independent_samples() -> None:
    def width(scores: np.ndarray) -> float:
        interval = interquartile_mean_interval(scores)
        assert interval.low is not None and interval.high is not None
        return interval.high - interval.low

    alike, independent = np.repeat(OURS, 4, axis=1), RNG.normal(1, 1, (8, 4))
    assert width(alike) == pytest.approx(width(OURS))
    assert width(independent) < width(OURS)


@pytest.mark.parametrize(("seeds", "smallest"), [(1, 1.0), (2, 1 / 3), (3, 0.1), (4, 2 / 70), (5, 2 / 252)])
def test_few_seeds_can_not_have_a_small_p_value(seeds: int, smallest: float) -> None:
    scores = np.arange(2.0 * seeds)[:, None]
    compared = compare_seeds(scores[seeds:], scores[:seeds])
    assert compared.p_value == compared.smallest_p_value == pytest.approx(smallest)
    assert compared.larger.value == 1
    assert compared.difference.holds_zero == (seeds == 1)  # without an interval, nothing is shown


def test_equal_values_have_no_difference() -> None:
    compared = compare_seeds(np.ones((3, 2)), np.ones((3, 2)))
    assert compared.difference == (0, 0, 0)
    assert compared.larger == (0.5, 0.5, 0.5)
    assert compared.p_value == 1


def test_many_seeds_are_tested_by_random_divisions() -> None:
    near = compare_seeds(np.arange(20.0)[:, None], np.arange(20.0)[:, None] + 0.1)
    far = compare_seeds(np.arange(20.0)[:, None], np.arange(20.0)[:, None] + 30)
    assert near.p_value > 0.9
    assert 0 < far.p_value < 0.001
