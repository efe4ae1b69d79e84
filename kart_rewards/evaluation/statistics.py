"""Statistics of episodes.

* ``summarise`` - statistics by course and policy
* ``across_seeds`` - statistics over several agents, each trained with another seed
* ``evaluation_score`` - compares two evaluations of an agent
* ``Metrics``, ``Summary``, ``SeedStatistics`` - the types of the results
* ``TERM_PREFIX`` - a part of the names of the metrics of reward terms

Spread is the interquartile range: the middle half of the values lies between the values at 25 % and at 75 %. Lap times
are those of all completed laps, including the laps of episodes that did not finish. Race times are those of finished
episodes. Times are in seconds of the console, and start at the start state.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from kart_rewards.evaluation.episodes import EpisodeResult
from kart_rewards.rewards import rates

Metrics = dict[str, Any]
"""Metric -> value."""
Summary = dict[str, dict[str, Metrics]]
"""Course -> policy -> metric -> value."""
TERM_PREFIX = "rewards/"
"""Beginning of the names of metrics of reward terms, after the statistic."""
SeedStatistics = dict[str, dict[str, dict[str, Metrics]]]
"""Course -> policy -> metric -> statistic -> value."""


def summarise(episodes: Iterable[EpisodeResult]) -> Summary:
    """Returns statistics by course and policy, ready for JSON.

    Returns:
        Course -> policy -> metric -> number. A metric without any value is None. The metrics are ``episodes``,
        ``finish_rate``, ``best_``, ``lower_quartile_``, ``median_`` and ``upper_quartile_`` of ``lap_time_seconds`` and
        ``race_time_seconds``, ``median_off_road_seconds``, ``median_wall_hits``, ``median_length_seconds``,
        ``lower_quartile_``, ``median_`` and ``upper_quartile_return``, and ``median_rewards/TERM`` for each reward
        term: the weighted sum over an episode.

        For each reward term there are also ``rewards_per_minute/TERM``, ``rewards_per_lap/TERM`` and
        ``values_per_minute/TERM``, over all episodes together (see ``kart_rewards.rewards.rates``), and
        ``rewards_share/TERM``, the mean over the episodes. ``split_1`` to ``split_4`` are the median times from the
        start of a lap to each quarter of its checkpoints, over all laps that reached it.
    """
    groups: dict[str, dict[str, list[EpisodeResult]]] = {}
    for episode in episodes:
        groups.setdefault(episode.state, {}).setdefault(episode.policy, []).append(episode)
    return {
        course: {policy: _metrics(played) for policy, played in by_policy.items()}
        for course, by_policy in groups.items()
    }


def _metrics(episodes: list[EpisodeResult]) -> Metrics:
    finished = _known(episode.finished for episode in episodes)
    laps = [seconds for episode in episodes for seconds in episode.lap_times_seconds or ()]
    races = _known(episode.race_time_seconds for episode in episodes)
    terms = {term: [episode.reward_sums[term] for episode in episodes] for term in episodes[0].reward_sums}
    return {
        "episodes": len(episodes),
        "finish_rate": sum(finished) / len(finished) if finished else None,
        "best_lap_time_seconds": min(laps, default=None),
        **_median_and_quartiles(laps, "_lap_time_seconds"),
        "best_race_time_seconds": min(races, default=None),
        **_median_and_quartiles(races, "_race_time_seconds"),
        "median_off_road_seconds": _percentile(_known(episode.off_road_seconds for episode in episodes), 50),
        "median_wall_hits": _percentile(_known(episode.wall_hits for episode in episodes), 50),
        "median_length_seconds": _percentile([episode.length_seconds for episode in episodes], 50),
        **_median_and_quartiles([episode.episode_return for episode in episodes], "_return"),
        **{f"median_{TERM_PREFIX}{term}": _percentile(sums, 50) for term, sums in terms.items()},
        **_rates(episodes),
        **{
            f"rewards_share/{term}": sum(episode.reward_shares[term] for episode in episodes) / len(episodes)
            for term in episodes[0].reward_shares
        },
        **{f"split_{part}": _percentile(times, 50) for part, times in _splits(episodes).items()},
    }


def _rates(episodes: list[EpisodeResult]) -> Metrics:
    """Returns the rates of all terms in all episodes together."""

    def totals(by_episode: list[dict[str, float]]) -> dict[str, float]:
        return {term: sum(sums[term] for sums in by_episode) for term in episodes[0].value_sums}

    sums, values = (totals([getattr(each, kind) for each in episodes]) for kind in ("reward_sums", "value_sums"))
    laps = sum(_known(each.laps_driven for each in episodes))
    groups = rates(sums, values, sum(each.length_seconds for each in episodes), laps)
    return {f"{group}/{term}": rate for group, by_term in groups.items() for term, rate in by_term.items()}


def _splits(episodes: list[EpisodeResult]) -> dict[int, list[float]]:
    splits: dict[int, list[float]] = {}
    for episode in episodes:
        for times in episode.split_times_seconds:
            for part, seconds in enumerate(times, 1):
                splits.setdefault(part, []).append(seconds)
    return splits


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _percentile(values: Sequence[float], percent: float) -> float | None:
    return float(np.percentile(values, percent)) if values else None


def _median_and_quartiles(values: Sequence[float], suffix: str = "") -> Metrics:
    parts = {"lower_quartile": 25, "median": 50, "upper_quartile": 75}
    return {f"{part}{suffix}": _percentile(values, percent) for part, percent in parts.items()}


def across_seeds(summaries: Sequence[Summary]) -> SeedStatistics:
    """Returns statistics over several agents, each trained with another seed.

    Args:
        summaries: The result of ``summarise`` for each agent.

    Returns:
        Course -> policy -> metric -> ``lower_quartile``, ``median``, ``upper_quartile`` and ``seeds``. ``seeds`` is the
        number of agents that have a value: an agent that never finished a race has no race time.
    """
    values: dict[str, dict[str, dict[str, list[float]]]] = {}
    for summary in summaries:
        for course, by_policy in summary.items():
            for policy, metrics in by_policy.items():
                of_policy = values.setdefault(course, {}).setdefault(policy, {})
                for metric, value in metrics.items():
                    of_policy.setdefault(metric, []).extend(_known([value]))
    return {
        course: {
            policy: {metric: {**_median_and_quartiles(known), "seeds": len(known)} for metric, known in metrics.items()}
            for policy, metrics in by_policy.items()
        }
        for course, by_policy in values.items()
    }


def evaluation_score(summary: Summary, policy: str = "agent") -> list[float]:
    """Returns the score of an evaluation. The better of two evaluations has the larger score, compared as lists.

    Args:
        summary: The result of ``summarise``.
        policy: The label of the agent in it.

    Returns:
        The finish rate, the negative median race time in seconds, and the median return, each as the mean over the
        courses. The race time of a course that was never finished counts as infinite.

    Example:
        >>> def summary(seconds):
        ...     metrics = {"finish_rate": 1.0, "median_race_time_seconds": seconds, "median_return": 90.0}
        ...     return {"Level1": {"agent": metrics}}
        >>> evaluation_score(summary(seconds=50.0)) > evaluation_score(summary(seconds=60.0))
        True
    """
    courses = [by_policy[policy] for by_policy in summary.values()]
    rate = [metrics["finish_rate"] or 0.0 for metrics in courses]
    seconds = [metrics["median_race_time_seconds"] or math.inf for metrics in courses]
    returns = [metrics["median_return"] for metrics in courses]
    return [float(np.mean(rate)), -float(np.mean(seconds)), float(np.mean(returns))]
