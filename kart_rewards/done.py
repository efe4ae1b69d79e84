"""Done rules: they decide when an episode terminates.

* ``done_rule`` - marks a function or class as a done rule
* ``race_finished``, ``WallHits`` - the reference rules
* ``DoneRule`` - a rule with its name
* ``EpisodeDone`` - applies a list of rules to one episode
* ``as_rule`` - returns the ``DoneRule`` of a function or class

A rule is called once per emulated frame, after the frame is scored, and returns whether the episode is over. This
module imports no emulator.

Example:
    >>> @done_rule()
    ... def fell_in_water(ram):
    ...     return ram.surface == 0x22
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kart_rewards.race import finished
from kart_rewards.rewards import hits_wall
from kart_rewards.scripting import Script, ScriptCalls, as_script, mark, name_of


@dataclass(frozen=True)
class DoneRule(Script):
    """A rule that ends an episode when its value is true. See ``Script`` for the arguments."""


def done_rule(name: Any = None) -> Any:
    """Marks a function or class as a done rule. This decorator returns it unchanged.

    Args:
        name: The rule's name. By default it is the function's name, or the class's name in snake case.

    Raises:
        KartRewardsError: See ``Script``.
    """

    if callable(name) or hasattr(name, "__get__"):  # @done_rule, without parentheses
        return done_rule()(name)

    def decorate(definition: Any) -> Any:
        return mark(definition, DoneRule(name or name_of(definition), definition))

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

    Attributes:
        calls: The calls of the rules.

    Raises:
        KartRewardsError: A class can't be instantiated.
    """

    def __init__(self, rules: list[DoneRule]) -> None:
        self.calls = ScriptCalls(rules)
        self.get_state = self.calls.get_state
        self.set_state = self.calls.set_state

    def __call__(self, ram: Any) -> str | None:
        """Applies the rules to one emulated frame.

        Args:
            ram: The frame's ``RamSnapshot``.

        Returns:
            The name of the first rule that ends the episode on this frame, or None.

        Raises:
            KartRewardsError: A rule raised an exception, or its value is not a bool or an integer. The message names
                the rule, its file and line, and the snapshot.
        """
        for i, stop in enumerate(self.calls.values(ram)):
            if stop is False:
                continue
            if stop is not True and not (
                isinstance(stop, int) or (str(getattr(stop, "dtype", "")) == "bool" and stop.ndim == 0)
            ):
                raise self.calls.failure(i, ram, f"returned {stop!r}, neither True nor False")
            if stop:
                return self.calls.scripts[i].name
        return None
