"""The score of one episode.

* ``EpisodeScore`` - applies reward terms, done rules and race metrics to the frames of an episode

``KartEnv`` and ``ScriptRewards`` score with this class, so they pay the same for the same frames.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kart_rewards.done import DoneRule, episode_calls
from kart_rewards.race import METRIC_VARIABLES, RaceMetrics
from kart_rewards.scenario import Scoring
from kart_rewards.scripting import from_plain, to_plain


class EpisodeScore:
    """Scores one episode frame by frame.

    Args:
        scoring: The terms and rules.
        ram: The ``RamSnapshot`` of the episode's first frame. Terms and rules are called with it, but it is not paid.
        transform: Converts a frame's weighted sum to the reward. See ``kart_rewards.rewards.make_transform``.
        frames_per_second: The console's frame rate, for the race clock.
        start_frames: The number of frames that the race clock includes before the first frame.
        buttons: The names of the buttons that are held on the first frame.
        start: The snapshot before the random start. None: there was none.

    Attributes:
        ram: The snapshot of the latest frame.
        rewards: The ``EpisodeRewards``.
        done: The ``EpisodeDone``.
        race: The ``RaceMetrics``; None if the game does not have their variables.
        ended_by: The ``DoneRule`` that ended the episode on the latest frame, or None.

    Raises:
        KartRewardsError: A term or rule failed.
    """

    def __init__(
        self,
        scoring: Scoring,
        ram: Any,
        transform: Callable[[float], float],
        frames_per_second: float,
        start_frames: int = 0,
        buttons: frozenset[str] = frozenset(),
        start: Any = None,
    ) -> None:
        self.ram = ram
        self.rewards, self.done = episode_calls(scoring.terms, scoring.done, transform)
        self.rewards(ram, buttons)
        self.done(ram, buttons)
        self.rewards.discard()
        self.ended_by: DoneRule | None = None
        is_race = all(isinstance(getattr(ram, name, None), int) for name in METRIC_VARIABLES)  # an array is a tuple
        self.race = RaceMetrics(ram, frames_per_second, start, start_frames) if is_race else None

    def start_step(self) -> None:
        """Begins the next agent step: ``info`` sums the terms from here on."""
        self.rewards.start_step()

    def __call__(self, ram: Any, buttons: frozenset[str] = frozenset(), action: Any = None) -> float:
        """Scores the next frame. ``ended_by`` says whether it ends the episode.

        Args:
            ram, buttons, action: The frame; see ``ScriptCalls.values``.

        Returns:
            The reward: the weighted sum of all terms, transformed.

        Raises:
            KartRewardsError: A term or rule failed.
        """
        self.ram = ram
        reward = self.rewards(ram, buttons, action)
        if self.race:
            self.race.update(ram)
        self.ended_by = self.done(ram, buttons, action)
        return reward

    @property
    def terminated(self) -> bool:
        """Whether the latest frame is the end of the episode, as a part of the task."""
        return self.ended_by is not None and not self.ended_by.truncates

    @property
    def truncated(self) -> bool:
        """Whether a done rule truncated the episode on the latest frame."""
        return self.ended_by is not None and self.ended_by.truncates

    def info(self) -> dict[str, Any]:
        """Returns the entries of a step's ``info``: see ``KartEnv``."""
        info: dict[str, Any] = {
            "reward_terms": self.rewards.step,
            "episode_rewards": self.rewards.episode_summary(),
            "ram": self.ram._asdict(),
        }
        if self.race:
            info["race"] = self.race.summary()
        if self.ended_by:
            info["done_rule"] = self.ended_by.name
        return info

    def get_state(self) -> dict[str, Any]:
        """Returns the memory of all terms and rules, the sums and the race metrics, as plain values for ``set_state``.

        Raises:
            KartRewardsError: The memory of a term or rule can't be saved. See ``ScriptCalls.get_state``.
        """
        return {
            "rewards": self.rewards.get_state(),
            "done": self.done.get_state(),
            "race": to_plain(self.race.get_state()) if self.race else None,
            "unpaid": dict(self.rewards.unpaid),
        }

    def set_state(self, state: dict[str, Any], ram: Any) -> None:
        """Restores a state that ``get_state`` returned.

        Args:
            state: The state.
            ram: The latest frame's snapshot.

        Raises:
            KartRewardsError: Another version of this package saved the state.
            LookupError, TypeError, ValueError: The state is damaged.
        """
        race, own_race = from_plain(state["race"]), self.race.get_state() if self.race else None
        if isinstance(race, dict):  # an older version saved less
            race = {"laps_completed": len(race["lap_frames"]), "_laps_at_start": 0.0} | race
        if not (_has_form_of(state["rewards"], self.rewards.get_state()) and _has_form_of(race, own_race)):
            raise ValueError("its rewards or race metrics have another form")
        self.ram = ram
        self.rewards.set_state(state["rewards"])
        self.done.set_state(state["done"])
        unpaid = state.get("unpaid", {})  # of an older version there is none, and other weights have other terms
        self.rewards.unpaid |= {name: float(unpaid[name]) for name in self.rewards.unpaid if name in unpaid}
        if self.race:
            self.race.set_state(race, ram)


def _has_form_of(value: Any, example: Any) -> bool:
    """Whether a nested value has the keys and types of an example. The memory of scripts, ``calls``, may differ."""
    if isinstance(example, dict):
        return (
            isinstance(value, dict)
            and value.keys() == example.keys()
            and all(key == "calls" or _has_form_of(value[key], item) for key, item in example.items())
        )
    if isinstance(example, list):  # of numbers
        return isinstance(value, list) and all(type(item) in (int, float) for item in value)
    numbers = (int, float)
    return type(value) is type(example) or (type(value) in numbers and type(example) in numbers)
