"""Done rules: they decide when an episode terminates.

* ``done_rule`` - marks a function or class as a done rule
* ``race_finished``, ``WallHits`` - the reference rules
* ``DoneRule`` - a rule with its name
* ``EpisodeDone`` - applies a list of rules to one episode
* ``episode_calls`` - the terms and the rules of one episode, with one instance of each class that is both
* ``as_rule`` - returns the ``DoneRule`` of a function or class

A rule is called once per emulated frame, after the frame is scored, and returns whether the episode is over. This
module imports no emulator.

Example:
    >>> @done_rule()
    ... def fell_in_water(ram):
    ...     return ram.surface == 0x22

A class may be a reward term, too. Its calls return both values:

    >>> from kart_rewards.rewards import reward_term
    >>> @reward_term(weight=-1)
    ... @done_rule(truncates=True)
    ... class Stuck:
    ...     def __init__(self):
    ...         self.frames = 0
    ...
    ...     def __call__(self, ram):
    ...         self.frames = self.frames + 1 if ram.speed == 0 else 0
    ...         return self.frames > 0, self.frames >= 300
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Any, ClassVar, overload

from kart_rewards.errors import KartRewardsError
from kart_rewards.race import finished
from kart_rewards.ram import shown
from kart_rewards.rewards import EpisodeRewards, RewardTerm, hits_wall
from kart_rewards.scripting import Definition, Script, ScriptCalls, as_script, mark, name_of, pair_hint


@dataclass(frozen=True)
class DoneRule(Script):
    """A rule that ends an episode when its value is true.

    Args:
        name, definition: See ``Script``.
        truncates: Whether the end is a truncation, as at a step limit: the episode could have gone on. The value of the
            final observation then counts as future reward. False: the end is part of the task.

    Raises:
        KartRewardsError: See ``Script``; or ``truncates`` is not a bool.
    """

    place_in_pair: ClassVar[int] = 1

    truncates: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.truncates, bool):
            raise KartRewardsError(
                f"{self.where}: truncates of {self.name!r} must be True or False, not {shown(self.truncates)}"
            )


@overload
def done_rule(name: Definition, truncates: bool = False) -> Definition: ...
@overload
def done_rule(name: str | None = None, truncates: bool = False) -> Callable[[Definition], Definition]: ...
def done_rule(name: Any = None, truncates: bool = False) -> Any:
    """Marks a function or class as a done rule. This decorator returns it unchanged.

    Args:
        name: The rule's name. By default it is the function's name, or the class's name in snake case.
        truncates: Whether the end is a truncation. See ``DoneRule``.

    Raises:
        KartRewardsError: See ``DoneRule``.
    """

    if callable(name) or hasattr(name, "__get__"):  # @done_rule, without parentheses
        return done_rule()(name)

    def decorate(definition: Any) -> Any:
        return mark(definition, DoneRule(name or name_of(definition), definition, truncates))

    return decorate


@done_rule()
def race_finished(ram: Any) -> bool:
    """All five laps are done."""
    return finished(ram)


@done_rule()
class WallHits:
    """Early stop: the seventh frame with a wall hit.

    This is the original's rule. The count of hits returns to 0 after every 601st call. A hit on the 601st call counts
    before the reset, so it can be the seventh.
    """

    MOST_HITS = 6
    WINDOW_CALLS = 600

    def __init__(self) -> None:
        self.hits = 0
        self.calls = 0

    def __call__(self, ram: Any) -> bool:
        self.hits += hits_wall(ram)
        self.calls += 1
        stop = self.hits > self.MOST_HITS
        if self.calls > self.WINDOW_CALLS:
            self.hits = self.calls = 0
        return stop


REFERENCE_RULES = (race_finished, WallHits)


def as_rule(definition: Any) -> DoneRule:
    """Returns the ``DoneRule`` of a function or class, with or without a mark.

    Raises:
        KartRewardsError: The definition is not a function or class, or it is not a valid rule.
    """
    return as_script(definition, DoneRule, "done rule")


class EpisodeDone:
    """Applies a list of done rules to one episode.

    Args:
        rules: The rules. Each class is instantiated.
        rewards: The rewards of the episode; see ``episode_calls``. On each frame, call them first. None: no class is
            also a term.

    Attributes:
        calls: The calls of the rules.

    Raises:
        KartRewardsError: A class can't be instantiated.
    """

    def __init__(self, rules: list[DoneRule], rewards: EpisodeRewards | None = None) -> None:
        self.calls = ScriptCalls(rules, rewards.calls if rewards else None)
        self.get_state = self.calls.get_state
        self.set_state = self.calls.set_state
        self._rules = rules

    def __call__(self, ram: Any, buttons: frozenset[str] = frozenset(), action: Any = None) -> DoneRule | None:
        """Applies the rules to one emulated frame.

        Args:
            ram, buttons, action: The frame; see ``ScriptCalls.values``.

        Returns:
            The first rule that ends the episode on this frame, or None. A rule that truncates it counts only if no
            other rule ends it on the same frame.

        Raises:
            KartRewardsError: A rule raised an exception, or its value is not a bool or an integer. The message names
                the rule, its file and line, and the snapshot.
        """
        truncating = None
        for i, stop in enumerate(self.calls.values(ram, buttons, action)):
            if stop is False:
                continue
            if stop is not True and not (
                isinstance(stop, Integral) or (str(getattr(stop, "dtype", "")) == "bool" and stop.ndim == 0)
            ):
                raise self.calls.failure(i, ram, f"returned {stop!r}, neither True nor False{pair_hint(stop)}")
            if stop:
                if not self._rules[i].truncates:
                    return self._rules[i]
                truncating = truncating or self._rules[i]
        return truncating


def episode_calls(
    terms: list[RewardTerm], rules: list[DoneRule], transform: Callable[[float], float] = float
) -> tuple[EpisodeRewards, EpisodeDone]:
    """Returns the rewards and the end of one episode. A class that is a term and a rule has one instance for both.

    On each frame, call the rewards first: they call this instance, and the rules use the second value that it returned.

    Args:
        terms: The reward terms.
        rules: The done rules.
        transform: See ``EpisodeRewards``.

    Raises:
        KartRewardsError: A class can't be instantiated.
    """
    rewards = EpisodeRewards(terms, transform)
    return rewards, EpisodeDone(rules, rewards)
