"""Who is compared: agents and scripted drivers.

* ``Contestant`` - a policy maker, its label and its environment
* ``drivers`` - who an agent is compared with: the scripted drivers ``random``, ``full-throttle`` and ``reference``
* ``DriverPolicy`` - a driver of ``kart_rewards.drivers`` as a policy
* ``left_out`` - a message about courses that contestants can't play
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kart_rewards.drivers import CentrelineDriver, Driver, RandomDriver, centreline, centrelines, full_throttle
from kart_rewards.env import KartEnv
from kart_rewards.env.observations import ObservationConfig
from kart_rewards.evaluation.courses import COURSES_FILE
from kart_rewards.evaluation.episodes import Policy, PolicyMaker
from kart_rewards.integrations import find_game
from kart_rewards.race import is_kart_race
from kart_rewards.ram import RamLayout


@dataclass(frozen=True)
class Contestant:
    """A policy maker with a label, and the environment it plays in.

    Args:
        label: Its name in tables.
        make_policy: Makes the policy of each episode.
        env_options: The arguments of ``KartEnv`` by name, including ``game``.
        courses: The start states that it can play. None: all.
        steps: Agent steps that it had trained, if it is an agent; for the drives.
    """

    label: str
    make_policy: PolicyMaker
    env_options: Mapping[str, Any]
    courses: Sequence[str] | None = None
    steps: int | None = None

    def plays(self, state: str) -> bool:
        """Returns whether it can play this course."""
        return self.courses is None or state in self.courses


class DriverPolicy:
    """Plays as a driver of ``kart_rewards.drivers``, in an environment with ``action_mode="all"``.

    Args:
        driver: The driver.
    """

    def __init__(self, driver: Driver) -> None:
        self.driver = driver

    def __call__(self, env: KartEnv, observation: np.ndarray) -> list[bool]:
        held = self.driver(env.ram)
        return [button in held for button in env.buttons]


def _make_random(env: KartEnv, state: str, seed: int) -> Policy:
    return DriverPolicy(RandomDriver(seed))


def _make_random_actions(env: KartEnv, state: str, seed: int) -> Policy:
    space = copy.deepcopy(env.action_space)
    space.seed(seed)
    return lambda env, observation: space.sample()


def _make_full_throttle(env: KartEnv, state: str, seed: int) -> Policy:
    return DriverPolicy(full_throttle)


def _make_reference(env: KartEnv, state: str, seed: int) -> Policy:
    return DriverPolicy(CentrelineDriver(centreline(state, env.game.folder / COURSES_FILE)))


def drivers(env_options: Mapping[str, Any]) -> list[Contestant]:
    """Returns the scripted drivers to compare an agent with: ``random``, ``full-throttle`` and ``reference``.

    They read the RAM and choose buttons on each emulated frame. The reference driver follows the middle of the road. It
    can play the courses that ``courses.json`` in the game's folder describes.

    In a game that is no kart race, there is only ``random``: random actions in the agent's environment.

    Args:
        env_options: The arguments of ``KartEnv`` by name, including ``game``, as for the agent's environment.

    Raises:
        KartRewardsError: The game is unknown, or its ``courses.json`` is damaged.

    Example:
        >>> [contestant.label for contestant in drivers({"game": "HomebrewKart-Snes"})]
        ['random', 'full-throttle', 'reference']
    """
    game = find_game(env_options["game"], env_options.get("integrations"))
    if not is_kart_race(RamLayout.from_file(game.json_path(env_options.get("info", "data"))).names):
        return [Contestant("random", _make_random_actions, env_options)]
    frame_by_frame = {"action_mode": "all", "frame_skip": 1, "observation": ObservationConfig.raw()}
    options = {**env_options, **frame_by_frame}
    options.pop("wrappers", None)  # they are made for the agent
    courses = game.folder / COURSES_FILE
    known = list(centrelines(courses)) if courses.is_file() else []
    return [
        Contestant("random", _make_random, options),
        Contestant("full-throttle", _make_full_throttle, options),
        Contestant("reference", _make_reference, options, known),
    ]


def left_out(contestants: Iterable[Contestant], states: Sequence[str]) -> str:
    """Returns one line per contestant that can't play some of the courses. Empty if all can play all."""
    lines = []
    for contestant in contestants:
        missing = [state for state in states if not contestant.plays(state)]
        if missing:
            game = contestant.env_options["game"]
            lines.append(
                f"left out: {contestant.label} on {', '.join(missing)}: {game} has no {COURSES_FILE} entry for "
                f"{'this course' if len(missing) == 1 else 'these courses'}"
            )
    return "\n".join(lines)
