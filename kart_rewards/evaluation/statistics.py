"""Statistics of episodes.

* ``summarise`` - statistics by course and policy
* ``across_seeds`` - statistics over several agents, each trained with another seed
* ``evaluation_score`` - compares two evaluations of an agent
* ``interquartile_mean``, ``interquartile_mean_interval`` - the mean over the middle half of several seeds
* ``compare_seeds`` - compares agents of two kinds, each trained with several seeds
* ``Interval``, ``Comparison`` - the results
* ``Metrics``, ``Summary``, ``SeedStatistics`` - the types of the results
* ``TERM_PREFIX`` - a part of the names of the metrics of reward terms

Spread is the interquartile range: the middle half of the values lies between the values at 25 % and at 75 %. Lap times
are those of all completed laps, including the laps of episodes that did not finish. Race times are those of finished
episodes. Times are in seconds of the console, and start at the start state.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

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
        ``rewards_share/TERM``, the mean over the episodes in which any term paid. ``split_1`` to ``split_4`` are the
        median times from the start of a lap to each quarter of its checkpoints, over all laps that reached it.
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
        **{f"rewards_share/{term}": share for term, share in mean_shares(episodes).items()},
        **{f"split_{part}": _percentile(times, 50) for part, times in _splits(episodes).items()},
    }


def mean_shares(episodes: Sequence[EpisodeResult]) -> dict[str, float]:
    """Returns the mean share of each term, over the episodes in which any term paid or charged."""
    paid = [each.reward_shares for each in episodes if any(each.reward_shares.values())]
    return {term: sum(each[term] for each in paid) / (len(paid) or 1) for term in episodes[0].reward_shares}


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
        ...     metrics = {"finish_rate": 1.0, "median_race_time_seconds": seconds, "median_length_seconds": seconds}
        ...     metrics["median_return"] = 90.0
        ...     return {"Level1": {"agent": metrics}}
        >>> evaluation_score(summary(seconds=50.0)) > evaluation_score(summary(seconds=60.0))
        True
    """
    courses = [by_policy[policy] for by_policy in summary.values()]
    rate = [metrics["finish_rate"] or 0.0 for metrics in courses]
    # A race that begins at a state in the middle of it has no race time.
    lengths = [metrics["median_length_seconds"] if metrics["finish_rate"] else math.inf for metrics in courses]
    times = [metrics["median_race_time_seconds"] for metrics in courses]
    seconds = [time or length for time, length in zip(times, lengths, strict=True)]
    returns = [metrics["median_return"] for metrics in courses]
    return [float(np.mean(rate)), -float(np.mean(seconds)), float(np.mean(returns))]


BOOTSTRAP_SAMPLES = 5000
"""Number of samples of a bootstrap interval."""
_MOST_PERMUTATIONS = 20_000


class Interval(NamedTuple):
    """An estimate with its 95 % interval.

    Args:
        value: The estimate.
        low, high: The interval, by a bootstrap over seeds; wider for few seeds. None: there are fewer than two seeds.
    """

    value: float
    low: float | None
    high: float | None

    @property
    def holds_zero(self) -> bool:
        """Whether 0 lies in the interval. True if there is no interval."""
        return self.low is None or self.high is None or self.low <= 0.0 <= self.high


class Comparison(NamedTuple):
    """A comparison of agents of two kinds.

    Args:
        difference: The difference of the interquartile means.
        larger: The probability that a run of the first kind has a larger value than a run of the second kind; equal
            values count half. It is the mean over the courses.
        p_value: Two-sided, of a permutation test of the means over the seeds.
        smallest_p_value: The smallest p-value that so few seeds can have.
    """

    difference: Interval
    larger: Interval
    p_value: float
    smallest_p_value: float


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """Returns the mean over the middle half of the seeds, averaged over the courses.

    A quarter of the seeds, rounded down, is left out at each end, on each course. So it is the mean over fewer than
    four seeds.

    Args:
        scores: Shape (..., seeds, courses).

    Returns:
        Shape (...).

    Example:
        >>> float(interquartile_mean(np.array([[1.0], [2.0], [3.0], [100.0]])))
        2.5
    """
    seeds = scores.shape[-2]
    cut = seeds // 4
    middle = np.sort(scores, axis=-2)[..., cut : seeds - cut, :]
    return np.asarray(middle.mean(axis=(-2, -1)))


def interquartile_mean_interval(scores: np.ndarray) -> Interval:
    """Returns the interquartile mean, with its bootstrap interval.

    The seeds are resampled. All values of a seed stay together: its courses and episodes are no independent samples.

    Args:
        scores: Shape (seeds, courses).
    """
    [chosen] = _resampled(len(scores))
    return _interval(interquartile_mean(scores), interquartile_mean(scores[chosen]), len(scores))


def compare_seeds(scores: np.ndarray, reference: np.ndarray) -> Comparison:
    """Compares agents of two kinds, by a bootstrap that is stratified by the kind, and by a permutation test.

    Args:
        scores: Shape (seeds, courses).
        reference: The same of the other kind.

    Example:
        >>> better = compare_seeds(np.array([[5.0], [6.0], [7.0]]), np.array([[1.0], [2.0], [3.0]]))
        >>> better.difference.value, better.difference.holds_zero, better.larger.value, better.p_value
        (4.0, False, 1.0, 0.1)
    """
    seeds, others = len(scores), len(reference)
    first, second = _resampled(seeds, others)
    differences = interquartile_mean(scores[first]) - interquartile_mean(reference[second])
    ours, theirs = scores[:, None], reference[None]
    wins = ((ours > theirs) + 0.5 * (ours == theirs)).mean(axis=-1)  # (seeds, others)
    samples = wins[first[:, :, None], second[:, None, :]].mean(axis=(1, 2))
    difference = interquartile_mean(scores) - interquartile_mean(reference)
    return Comparison(
        _interval(difference, differences, seeds, others),
        _interval(wins.mean(), samples, seeds, others),
        _permutation_test(scores, reference),
        min((2 if seeds == others else 1) / math.comb(seeds + others, seeds), 1.0),
    )


def _resampled(*sizes: int) -> list[np.ndarray]:
    """Returns indices that draw as many seeds as there are, with replacement: shape (samples, seeds) for each size."""
    rng = np.random.default_rng(0)
    return [rng.integers(size, size=(BOOTSTRAP_SAMPLES, size)) for size in sizes]


def _interval(value: Any, samples: np.ndarray, *seeds: int) -> Interval:
    """Returns an interval from bootstrap samples over one kind of agents, or two. ``seeds`` are their numbers."""
    if min(seeds) < 2:
        return Interval(float(value), None, None)
    tail = 100 * _tail(min(seeds), sum(seeds) - len(seeds))
    low, high = np.percentile(samples, (tail, 100 - tail))
    return Interval(float(value), float(low), float(high))


def _tail(seeds: int, degrees: int) -> float:
    """Returns the probability below a 95 % interval of a bootstrap over few seeds.

    2.5 % would give intervals that are too narrow. They are expanded as Student's t expands those of a normal
    distribution (Hesterberg, 2015, https://arxiv.org/abs/1411.5279, section 5.4). The quantile of t is Cornish and
    Fisher's expansion.
    """
    normal = NormalDist()
    z = normal.inv_cdf(0.975)
    t = z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
    return normal.cdf(-math.sqrt(seeds / (seeds - 1)) * t)


def _permutation_test(scores: np.ndarray, reference: np.ndarray) -> float:
    """Returns how often a random division of all seeds has a difference of means at least as large as the real one."""
    together, seeds = np.concatenate([scores, reference]), len(scores)
    places = len(together)
    if math.comb(places, seeds) <= _MOST_PERMUTATIONS:
        chosen = np.array(list(itertools.combinations(range(places), seeds)))
    else:
        rng = np.random.default_rng(0)
        chosen = np.argsort(rng.random((_MOST_PERMUTATIONS, places)), axis=1)[:, :seeds]
        chosen[0] = np.arange(seeds)  # the real division
    is_first = np.zeros((len(chosen), places), bool)
    np.put_along_axis(is_first, chosen, True, axis=1)
    others = np.nonzero(~is_first)[1].reshape(len(chosen), -1)
    sizes = np.abs(together[chosen].mean(axis=(1, 2)) - together[others].mean(axis=(1, 2)))
    real = abs(float(scores.mean() - reference.mean()))
    return float((sizes >= real - 1e-9 * np.abs(together).max()).mean())
