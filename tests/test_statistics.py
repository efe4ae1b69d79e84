from __future__ import annotations

import json
from typing import Any

import pytest
from episode_results import OVER_THREE_SEEDS, RESULTS, result

from kart_rewards.evaluation import EpisodeResult, across_seeds, evaluation_score, summarise


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
    assert metrics["rewards_share/wall"] == -0.5
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
