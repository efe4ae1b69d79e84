"""Reward terms: their weights, their weighted sum, and the transform of the sum.

* ``reward_term`` - marks a function or class as a reward term
* ``wall``, ``Checkpoint``, ``terrain``, ``time``, ``backwards`` - the reference terms
* ``RewardTerm`` - a term with its weight
* ``EpisodeRewards`` - scores one episode with a list of terms
* ``unweighted``, ``rates`` - sums of an episode without weights, and by minute and by lap
* ``make_transform`` - returns the function that converts a frame's weighted sum to the agent's reward
* ``as_term``, ``with_weights``, ``parse_weights`` - terms and weights from the user's input

A term is called once per emulated frame and returns its unweighted value. This module imports no emulator.

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
from typing import Any, overload

from kart_rewards.errors import KartRewardsError, did_you_mean
from kart_rewards.race import FACING_BACKWARD, ROAD, finished, progress
from kart_rewards.ram import shown
from kart_rewards.scripting import Definition, Script, ScriptCalls, as_script, mark, name_of, pair_hint


def _is_finite_number(value: Any) -> bool:
    try:
        return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # 10**400
        return False


@dataclass(frozen=True)
class RewardTerm(Script):
    """A reward term.

    Args:
        name, definition: See ``Script``.
        weight: The factor of the term's value in a frame's reward.

    Raises:
        KartRewardsError: See ``Script``; or the weight is not a finite number.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not _is_finite_number(self.weight):
            raise KartRewardsError(
                f"{self.where}: the weight of {self.name!r} must be a finite number, not {shown(self.weight)}"
            )
        object.__setattr__(self, "weight", float(self.weight))

    def with_weight(self, weight: float) -> RewardTerm:
        """Returns a copy with another weight. It keeps ``where`` and ``fingerprint``: the file may have changed."""
        term = copy.copy(self)
        object.__setattr__(term, "weight", weight)
        return term


@overload
def reward_term(weight: Definition, name: None = None) -> Definition: ...
@overload
def reward_term(weight: float = 1.0, name: str | None = None) -> Callable[[Definition], Definition]: ...
def reward_term(weight: Any = 1.0, name: str | None = None) -> Any:
    """Marks a function or class as a reward term. This decorator returns it unchanged.

    Args:
        weight: The factor of the term's value. A scenario or the command line can replace it.
        name: The term's name. By default it is the function's name, or the class's name in snake case.

    Raises:
        KartRewardsError: See ``RewardTerm``.
    """

    if callable(weight) or hasattr(weight, "__get__"):  # @reward_term, without parentheses
        return reward_term()(weight)

    def decorate(definition: Any) -> Any:
        return mark(definition, RewardTerm(name or name_of(definition), definition, weight))

    return decorate


# The reference terms: the rules of the original system, which scored each emulated frame. After the finish they pay 0.

WALL_HIT_BELOW_SPEED = 600  # the original ignores a touch at this speed or more
PACE_PERIOD_FRAMES = 30  # terrain and time pay on every 30th value of current_frame
BRISK_SPEED = 700
BACKWARDS_PERIOD_FRAMES = 6

ROUNDING = 1e-12  # the largest rounding error of a sum, relative to the sum of the absolute values


def hits_wall(ram: Any) -> bool:
    """Whether the kart touches a wall at a speed below 600. The wall term and the early stop use this condition."""
    return ram.collision != 0 and ram.speed < WALL_HIT_BELOW_SPEED


def _on_pace_frame(ram: Any) -> bool:
    return ram.current_frame % PACE_PERIOD_FRAMES == 0 and ram.current_frame != 0


@reward_term(weight=-10)
def wall(ram: Any) -> float:
    """Charge every frame on which the kart touches a wall at a speed below 600."""
    return float(hits_wall(ram) and not finished(ram))


@reward_term(weight=300)
class Checkpoint:
    """Pay each checkpoint once, when progress exceeds the best progress so far."""

    def __init__(self) -> None:
        self.best_progress = -1

    def __call__(self, ram: Any) -> float:
        if progress(ram) <= self.best_progress or finished(ram):
            return 0.0
        self.best_progress = progress(ram)
        return 1.0


@reward_term(weight=-15)
def terrain(ram: Any) -> float:
    """Charge any surface except road, twice per second."""
    return float(ram.surface != ROAD and _on_pace_frame(ram) and not finished(ram))


@reward_term(weight=-1)
def time(ram: Any) -> float:
    """Charge time twice per second: 1, or 0.5 at a speed above 700."""
    if not _on_pace_frame(ram) or finished(ram):
        return 0.0
    return 0.5 if ram.speed > BRISK_SPEED else 1.0


@reward_term(weight=-2)
def backwards(ram: Any) -> float:
    """Charge facing the wrong way, ten times per second."""
    return float(
        ram.backward == FACING_BACKWARD and ram.current_frame % BACKWARDS_PERIOD_FRAMES == 0 and not finished(ram)
    )


REFERENCE_TERMS = (wall, Checkpoint, terrain, time, backwards)


def as_term(definition: Any) -> RewardTerm:
    """Returns the ``RewardTerm`` of a function or class. A function or class without a mark gets weight 1.

    Raises:
        KartRewardsError: The definition is not a function or class, or it is not a valid term.
    """
    return as_script(definition, RewardTerm, "reward term")


def with_weights(terms: Iterable[RewardTerm], weights: Mapping[str, float | None], source: str) -> list[RewardTerm]:
    """Returns the terms with some weights replaced.

    Args:
        terms: All terms of the run.
        weights: Name -> weight. None keeps the term's own weight.
        source: The origin of the weights, for error messages.

    Raises:
        KartRewardsError: A name is not the name of a term, or a weight is not a finite number.
    """
    terms = list(terms)
    for name in weights:
        if not isinstance(name, str):
            raise KartRewardsError(
                f'{source}: weights are by the names of terms, such as {{"wall": -50}}: not by {name!r}'
            )
    unknown = sorted(set(weights) - {term.name for term in terms})
    if unknown:
        known = ", ".join(term.name for term in terms)
        hint = did_you_mean(unknown[0], (term.name for term in terms))
        raise KartRewardsError(
            f"{source}: there is no reward term {shown(unknown[0])} in this run; there are {known or 'none'}.{hint}"
        )
    for name, weight in weights.items():
        if weight is not None and not _is_finite_number(weight):
            raise KartRewardsError(f"{source}: the weight of {name!r} must be a finite number, not {shown(weight)}")
    chosen = {name: float(weight) for name, weight in weights.items() if weight is not None}
    return [term.with_weight(chosen.get(term.name, term.weight)) for term in terms]


def parse_weights(arguments: Iterable[str]) -> dict[str, float]:
    """Parses the values of ``--reward-weights``, such as ``["wall=-5", "top_speed=0.02"]``.

    Returns:
        Name -> weight.

    Raises:
        KartRewardsError: An argument is not NAME=NUMBER, or a name is repeated with another number.
    """
    weights: dict[str, float] = {}
    for argument in arguments:
        match = re.fullmatch(r"(\w+)=(.+)", argument)
        try:
            name, weight = match[1], float(match[2])  # type: ignore[index]
        except (TypeError, ValueError):
            raise KartRewardsError(f"--reward-weights: {shown(argument)} is not NAME=NUMBER, such as wall=-5") from None
        if name in weights and weights[name] != weight:
            raise KartRewardsError(f"--reward-weights: {shown(name)} has two weights, {weights[name]} and {weight}")
        weights[name] = weight
    return weights


class EpisodeRewards:
    """Scores one episode with a list of reward terms.

    The transformed reward of a frame is divided among the terms in proportion to their weighted values. Therefore
    ``transformed`` sums to the episode's return, and ``sums`` sums to the return before the transform.

    Args:
        terms: The terms. Each class is instantiated.
        transform: Converts a frame's weighted sum to the agent's reward. It must be a pure function. The default keeps
            the weighted sum.

    Attributes:
        calls: The calls of the terms.
        step: Term -> weighted sum since ``start_step``, before the transform.
        sums: Term -> weighted sum over the episode, before the transform.
        transformed: Term -> weighted sum over the episode, after the transform.
        counts: Term -> number of the episode's frames on which its value was not 0.
        unpaid: Term of weight 0 -> sum of its values over the episode: such a term is measured, but not paid.

    Raises:
        KartRewardsError: A class can't be instantiated.
    """

    def __init__(self, terms: list[RewardTerm], transform: Callable[[float], float] = float) -> None:
        self.calls = ScriptCalls(terms)
        self._weights = {term.name: term.weight for term in terms}
        self._transform = transform
        self._no_reward = transform(0.0)
        self.discard()

    def discard(self) -> None:
        """Resets all sums and counts to 0. The terms keep their memory."""
        self.sums = dict.fromkeys(self._weights, 0.0)
        self.transformed = dict.fromkeys(self._weights, 0.0)
        self.counts = dict.fromkeys(self._weights, 0)
        self.unpaid = {name: 0.0 for name, weight in self._weights.items() if not weight}
        self.start_step()

    def start_step(self) -> None:
        """Begins the next agent step: resets ``step`` to 0."""
        self.step = dict.fromkeys(self._weights, 0.0)

    def __call__(self, ram: Any, buttons: frozenset[str] = frozenset(), action: Any = None) -> float:
        """Scores one emulated frame.

        Args:
            ram, buttons, action: The frame; see ``ScriptCalls.values``.

        Returns:
            The weighted sum of all terms, transformed.

        Raises:
            KartRewardsError: A term raised an exception, or its value is not a finite number. The message names the
                term, its file and line, and the snapshot.
        """
        values = self.calls.values(ram, buttons, action)
        paid = []
        plain = size = 0.0
        try:
            if not math.hypot(*values):  # all are 0, as on most frames; raises if one is not a real number
                return self._no_reward
            for (name, weight), value in zip(self._weights.items(), values):  # noqa: B905 - equally many
                weighted = weight * float(value)
                if value:
                    if getattr(value, "ndim", 0):  # older versions of NumPy take an array of one value for a number
                        raise TypeError
                    paid.append((name, weighted))
                    plain += weighted
                    size += abs(weighted)
            finite = math.isfinite(size)
        except (TypeError, ValueError, OverflowError):
            finite = False
        if not finite:
            raise self.not_finite(values, ram)
        if abs(plain) < ROUNDING * size:  # the terms cancel: the transform `sign` must not turn a rounding error into 1
            plain = 0.0
        reward = self._transform(plain)
        factor = reward / plain if plain else 0.0
        for name, weighted in paid:
            self.step[name] += weighted
            self.sums[name] += weighted
            self.transformed[name] += weighted * factor
            self.counts[name] += 1
        if self.unpaid:
            for name, value in zip(self._weights, values):  # noqa: B905 - equally many
                if name in self.unpaid:
                    self.unpaid[name] += float(value)
        return reward

    def not_finite(self, values: list[Any], ram: Any) -> KartRewardsError:
        """Returns the error for a frame on which a term's value is not a finite number.

        Args:
            values: The value of each term.
            ram: The snapshot.
        """
        for i, (weight, value) in enumerate(zip(self._weights.values(), values, strict=True)):
            try:
                finite = math.isfinite(math.hypot(value)) and not getattr(value, "ndim", 0)
            except (TypeError, ValueError, OverflowError):
                finite = False
            if not finite:
                hint = ": does each path return a value?" if value is None else pair_hint(value)
                return self.calls.failure(i, ram, f"returned {value!r}, not a finite number{hint}")
            if not math.isfinite(weight * float(value)):
                return self.calls.failure(i, ram, f"returned {value!r}, which times its weight {weight:g} is too large")
        return KartRewardsError(f"the reward terms' sum overflows on {ram!r}")

    def get_state(self) -> dict[str, Any]:
        """Returns the memory of all terms and all sums and counts but ``unpaid``, as plain values for ``set_state``.

        Raises:
            KartRewardsError: See ``ScriptCalls.get_state``.
        """
        return {
            "calls": self.calls.get_state(),
            "step": dict(self.step),
            "sums": dict(self.sums),
            "transformed": dict(self.transformed),
            "counts": dict(self.counts),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores a state that ``get_state`` returned.

        Raises:
            KartRewardsError: Another version of this package saved the state.
        """
        self.calls.set_state(state["calls"])
        try:
            self.step, self.sums = dict(state["step"]), dict(state["sums"])
            self.transformed, self.counts = dict(state["transformed"]), dict(state["counts"])
        except TypeError:
            raise KartRewardsError(
                "another version of kart_rewards saved these rewards: continue with that version, or start a new run"
            ) from None

    def episode_summary(self) -> dict[str, dict[str, float]]:
        """Returns five tables of the episode so far. Each table maps a term to a number.

        Returns:
            ``sum``: weighted sum before the transform. ``transformed``: weighted sum after the transform. ``share``:
            the transformed sum, divided by the sum of the absolute transformed sums of all terms; -1 to 1. ``count``:
            number of frames on which the term's value was not 0. ``unpaid``: the sum of the values, only of terms of
            weight 0.
        """
        everything = sum(map(abs, self.transformed.values())) or 1.0
        return {
            "sum": dict(self.sums),
            "transformed": dict(self.transformed),
            "share": {name: paid / everything for name, paid in self.transformed.items()},
            "count": dict(self.counts),
            "unpaid": dict(self.unpaid),
        }


def unweighted(summary: Mapping[str, Mapping[str, float]], terms: Iterable[RewardTerm]) -> dict[str, float]:
    """Returns the sum of the values of each term, which does not depend on its weight.

    Args:
        summary: The result of ``EpisodeRewards.episode_summary``.
        terms: The terms of the episode.
    """
    sums, unpaid = summary["sum"], summary["unpaid"]
    return {
        term.name: sums[term.name] / term.weight + 0.0 if term.weight else unpaid[term.name]  # + 0.0: not -0.0
        for term in terms
    }


def rates(
    sums: Mapping[str, float], values: Mapping[str, float], seconds: float, laps: float
) -> dict[str, dict[str, float]]:
    """Returns what the terms paid by minute and by lap. These numbers compare episodes of different length.

    Args:
        sums: Term -> weighted sum over one or more episodes.
        values: Term -> unweighted sum; see ``unweighted``.
        seconds: Duration of the episodes.
        laps: Number of laps that were driven in them. Below 1, there are no numbers by lap.

    Returns:
        Group -> term -> number. The groups are ``rewards_per_minute`` and ``rewards_per_lap``, weighted, and
        ``values_per_minute``, unweighted: it also measures terms of weight 0, and compares runs with other weights.

    Example:
        >>> rates({"wall": -20.0}, {"wall": 2.0}, seconds=30.0, laps=0.5)
        {'rewards_per_minute': {'wall': -40.0}, 'values_per_minute': {'wall': 4.0}}
    """
    groups = [("rewards_per_minute", sums, seconds / 60), ("values_per_minute", values, seconds / 60)]
    groups += [("rewards_per_lap", sums, laps)] if laps >= 1 else []
    return {group: {name: total / by for name, total in totals.items()} for group, totals, by in groups}


def make_transform(kind: str, scale: float = 1.0) -> Callable[[float], float]:
    """Returns the function that converts one emulated frame's weighted sum to the agent's reward.

    Args:
        kind: ``sign`` (-1, 0 or 1, as in the original), ``scale`` (multiplies by ``scale``) or ``none``.
        scale: The factor of the kind ``scale``.

    Raises:
        KartRewardsError: The kind is unknown, or the scale is 0 or not a finite number.
    """
    if not _is_finite_number(scale):
        raise KartRewardsError(f"the reward scale must be a finite number, not {shown(scale)}")
    if kind == "scale" and not scale:
        raise KartRewardsError("a reward scale of 0 pays the agent nothing, whatever it does")
    if kind == "sign":
        return lambda reward: float((reward > 0) - (reward < 0))
    if kind == "scale":
        return lambda reward: reward * scale
    if kind == "none":
        return lambda reward: reward
    raise KartRewardsError(f"unknown reward transform {kind!r}: it is one of sign, scale, none")
