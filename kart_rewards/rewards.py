"""Reward terms, their weights, and their sum.

* ``reward_term`` - marks a function or class as a reward term
* ``wall``, ``Checkpoint``, ``terrain``, ``time``, ``backwards`` - the reference terms
* ``RewardTerm`` - a term with its weight
* ``EpisodeRewards`` - the terms at work on one episode
* ``make_transform`` - what the agent is given of a frame's reward

A term is called once per emulated frame and returns its unweighted value. This module knows nothing of emulators.

Example:
    >>> @reward_term(weight=0.02)
    ... def top_speed(ram):
    ...     return float(ram.speed > 900)
"""

from __future__ import annotations

import copy
import math
import numbers
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kart_rewards.errors import KartRewardsError
from kart_rewards.race import FACING_BACKWARD, ROAD, finished, progress
from kart_rewards.scripting import Script, ScriptCalls, as_script, mark, name_of


def _is_finite_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class RewardTerm(Script):
    """A reward term and what one unit of it is worth."""

    weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not _is_finite_number(self.weight):
            raise KartRewardsError(
                f"{self.where}: the weight of {self.name!r} must be a finite number, not {self.weight!r}"
            )

    def weighing(self, weight: float) -> RewardTerm:
        """Returns the same term with another weight; where it is defined, and its fingerprint, are not read again."""
        term = copy.copy(self)
        object.__setattr__(term, "weight", weight)
        return term


def reward_term(weight: Any = 1.0, name: str | None = None) -> Any:
    """Marks a function or class as a reward term; it stays callable as it is.

    Args:
        weight: What the term's value is multiplied by, unless a scenario or the command line says otherwise.
        name: How to call the term. By default the function's name, or the class's in snake case.
    """

    if callable(weight):  # @reward_term, without parentheses
        return reward_term()(weight)

    def decorate(definition: Any) -> Any:
        return mark(definition, RewardTerm(name or name_of(definition), definition, weight))

    return decorate


# The reference terms: the rules of the original system, which scored every emulated frame. After the finish they pay 0.

WALL_HIT_BELOW_SPEED = 600  # a touch at more than this is a graze
PACE_PERIOD_FRAMES = 30  # terrain and time are paid on every 30th value of current_frame
BRISK_SPEED = 700
BACKWARDS_PERIOD_FRAMES = 6

ROUNDING = 1e-12  # a sum this small beside its parts is what is left of parts that cancel


def hits_wall(ram: Any) -> bool:
    """Whether the kart touches a wall at less than 600: what the wall term charges and the early stop counts."""
    return ram.collision != 0 and ram.speed < WALL_HIT_BELOW_SPEED


def _on_pace_frame(ram: Any) -> bool:
    return ram.current_frame % PACE_PERIOD_FRAMES == 0 and ram.current_frame != 0


@reward_term(weight=-10)
def wall(ram: Any) -> float:
    """Charge every frame on which the kart touches a wall at a speed below 600."""
    return float(hits_wall(ram) and not finished(ram))


@reward_term(weight=300)
class Checkpoint:
    """Pay each checkpoint once, when progress exceeds the best so far."""

    def __init__(self) -> None:
        self.best_progress = -1

    def __call__(self, ram: Any) -> float:
        if progress(ram) <= self.best_progress or finished(ram):
            return 0.0
        self.best_progress = progress(ram)
        return 1.0


@reward_term(weight=-15)
def terrain(ram: Any) -> float:
    """Charge being on anything but road, twice a second."""
    return float(ram.surface != ROAD and _on_pace_frame(ram) and not finished(ram))


@reward_term(weight=-1)
def time(ram: Any) -> float:
    """Charge time twice a second: 1, or half of that above speed 700."""
    if not _on_pace_frame(ram) or finished(ram):
        return 0.0
    return 0.5 if ram.speed > BRISK_SPEED else 1.0


@reward_term(weight=-2)
def backwards(ram: Any) -> float:
    """Charge facing the wrong way, ten times a second."""
    return float(
        ram.backward == FACING_BACKWARD and ram.current_frame % BACKWARDS_PERIOD_FRAMES == 0 and not finished(ram)
    )


REFERENCE_TERMS = (wall, Checkpoint, terrain, time, backwards)


def as_term(definition: Any) -> RewardTerm:
    """Returns the ``RewardTerm`` of a function or class that ``reward_term`` marked, or of a plain one, with weight 1.

    Raises:
        KartRewardsError: It is neither.
    """
    return as_script(definition, RewardTerm, "reward term")


def with_weights(terms: Iterable[RewardTerm], weights: Mapping[str, float | None], source: str) -> list[RewardTerm]:
    """Returns the terms with some weights replaced.

    Args:
        terms: All terms there are.
        weights: Name -> weight; None keeps the term's own.
        source: Who asks, for the error message.

    Raises:
        KartRewardsError: A name is no term's, or a weight is no finite number.
    """
    terms = list(terms)
    unknown = sorted(set(weights) - {term.name for term in terms})
    if unknown:
        known = ", ".join(term.name for term in terms)
        raise KartRewardsError(f"{source}: there is no reward term {unknown[0]!r} in this run; there are {known}")
    for name, weight in weights.items():
        if weight is not None and not _is_finite_number(weight):
            raise KartRewardsError(f"{source}: the weight of {name!r} must be a finite number, not {weight!r}")
    chosen = {name: float(weight) for name, weight in weights.items() if weight is not None}
    return [term.weighing(chosen.get(term.name, term.weight)) for term in terms]


def parse_weights(arguments: Iterable[str]) -> dict[str, float]:
    """Parses ``wall=-5 top_speed=0.02`` as the command line has it.

    Raises:
        KartRewardsError: An argument is not NAME=NUMBER.
    """
    weights = {}
    for argument in arguments:
        match = re.fullmatch(r"(\w+)=(.+)", argument)
        try:
            weights[match[1]] = float(match[2])  # type: ignore[index]
        except (TypeError, ValueError):
            raise KartRewardsError(f"--reward-weights: {argument!r} is not NAME=NUMBER, such as wall=-5") from None
    return weights


class EpisodeRewards:
    """The reward terms at work on one episode.

    What the transform makes of a frame's reward is put down to the terms in proportion to what they paid, so that the
    sums after the transform add up to the episode's return, as the sums before it add up to the plain reward.

    Args:
        terms: The terms; those that are classes are instantiated.
        transform: What the agent is given of a frame's reward, a pure function. By default all of it.

    Attributes:
        step: Term -> weighted sum since ``start_step``, before the transform.
        sums: Term -> weighted sum over the episode, before the transform.
        transformed: The same, after the transform.
        counts: Term -> frames of the episode on which its value was not 0.
    """

    def __init__(self, terms: list[RewardTerm], transform: Callable[[float], float] = float) -> None:
        self._calls = ScriptCalls(terms)
        self._weights = {term.name: term.weight for term in terms}
        self._transform = transform
        self._no_reward = transform(0.0)
        self.discard()

    def discard(self) -> None:
        """Throws away what was scored so far; the terms keep what they saw."""
        self.sums = dict.fromkeys(self._weights, 0.0)
        self.transformed = dict.fromkeys(self._weights, 0.0)
        self.counts = dict.fromkeys(self._weights, 0)
        self.start_step()

    def start_step(self) -> None:
        """Begins the next agent step."""
        self.step = dict.fromkeys(self._weights, 0.0)

    def __call__(self, ram: Any) -> float:
        """Scores one emulated frame.

        Returns:
            What the transform makes of the weighted sum of all terms.

        Raises:
            KartRewardsError: A term raised, or its value is no finite number. Names the term, its file and line, and
                the snapshot.
        """
        values = self._calls.values(ram)
        paid = []
        plain = size = 0.0
        try:
            if not math.hypot(*values):  # all are 0, as on most frames; raises for what is no number
                return self._no_reward
            for (name, weight), value in zip(self._weights.items(), values):  # noqa: B905 - equally many
                weighted = float(weight * value)  # raises for what is no number
                if value:
                    paid.append((name, weighted))
                    plain += weighted
                    size += abs(weighted)
            finite = math.isfinite(size)
        except (TypeError, ValueError, OverflowError):
            finite = False
        if not finite:
            raise self._not_finite(values, ram)
        if abs(plain) < ROUNDING * size:  # terms that cancel leave a rounding error, of which `sign` would make a unit
            plain = 0.0
        reward = self._transform(plain)
        factor = reward / plain if plain else 0.0
        for name, weighted in paid:
            self.step[name] += weighted
            self.sums[name] += weighted
            self.transformed[name] += weighted * factor
            self.counts[name] += 1
        return reward

    def _not_finite(self, values: list[Any], ram: Any) -> KartRewardsError:
        for i, (weight, value) in enumerate(zip(self._weights.values(), values, strict=True)):
            try:
                finite = math.isfinite(float(weight * value))
            except (TypeError, ValueError, OverflowError):
                finite = False
            if not finite:
                return self._calls.failure(i, ram, f"returned {value!r}, not a finite number")
        return KartRewardsError(f"the reward terms' sum overflows on {ram!r}")

    def get_state(self) -> dict[str, Any]:
        """Returns what the episode's rewards depend on and have come to, as plain values for ``set_state``."""
        return {
            "calls": self._calls.get_state(),
            "step": dict(self.step),
            "sums": dict(self.sums),
            "transformed": dict(self.transformed),
            "counts": dict(self.counts),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes back what ``get_state`` returned.

        Raises:
            KartRewardsError: It is of another version of this package.
        """
        self._calls.set_state(state["calls"])
        try:
            self.step, self.sums = dict(state["step"]), dict(state["sums"])
            self.transformed, self.counts = dict(state["transformed"]), dict(state["counts"])
        except TypeError:
            raise KartRewardsError(
                "the saved rewards are of another version of kart_rewards: go on with that one, or begin anew"
            ) from None

    def episode_summary(self) -> dict[str, dict[str, float]]:
        """What each term did over the episode: four tables by term.

        Returns:
            ``sum`` and ``transformed`` as above; ``share``: what the term gave or took (negative) as a part of all that
            the terms gave and took, after the transform; ``count``: the frames on which it paid.
        """
        everything = sum(map(abs, self.transformed.values())) or 1.0
        return {
            "sum": dict(self.sums),
            "transformed": dict(self.transformed),
            "share": {name: paid / everything for name, paid in self.transformed.items()},
            "count": dict(self.counts),
        }


def make_transform(kind: str, scale: float = 1.0) -> Callable[[float], float]:
    """Returns what turns one emulated frame's reward into what the agent is given of it.

    Args:
        kind: ``sign`` (-1, 0 or 1, as the original), ``scale`` (times ``scale``) or ``none``.
        scale: The factor of ``scale``.

    Raises:
        KartRewardsError: The kind is none of these, or the scale no finite number.
    """
    if not _is_finite_number(scale):
        raise KartRewardsError(f"the reward scale must be a finite number, not {scale!r}")
    if kind == "sign":
        return lambda reward: float((reward > 0) - (reward < 0))
    if kind == "scale":
        return lambda reward: reward * scale
    if kind == "none":
        return lambda reward: reward
    raise KartRewardsError(f"unknown reward transform {kind!r}: it is one of sign, scale, none")
