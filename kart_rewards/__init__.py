"""Rewards scripted in Python for emulated games.

* ``reward_term``, ``done_rule`` - mark a function or class of yours
* ``make_env`` - a Gymnasium environment that scores with them
* ``RamLayout``, ``RamSnapshot`` - typed RAM
* ``KartRewardsError`` - bad input, told in one message

Importing this package registers every game under ``integrations/`` with Gymnasium. It imports no emulator.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import gymnasium as gym

from kart_rewards.defaults import DEFAULT_FRAME_SKIP, default_max_episode_steps
from kart_rewards.done import done_rule
from kart_rewards.errors import KartRewardsError
from kart_rewards.integrations import list_games
from kart_rewards.ram import RamLayout, RamSnapshot
from kart_rewards.rewards import reward_term

if TYPE_CHECKING:
    from kart_rewards.env import KartEnv, make_env
    from kart_rewards.env.observations import ObservationConfig

__all__ = [
    "KartEnv",
    "KartRewardsError",
    "ObservationConfig",
    "RamLayout",
    "RamSnapshot",
    "done_rule",
    "make_env",
    "reward_term",
]

for _name in list_games():
    with suppress(gym.error.Error):  # a folder whose name Gymnasium refuses must not spoil the import of all others
        if _name not in gym.registry:
            gym.register(
                _name,
                "kart_rewards.env:KartEnv",
                max_episode_steps=default_max_episode_steps(DEFAULT_FRAME_SKIP),
                kwargs={"game": _name},
            )


def __getattr__(name: str) -> Any:
    """Imports what needs the emulator only when it is asked for."""
    if name in ("KartEnv", "make_env"):
        from kart_rewards import env

        return getattr(env, name)
    if name == "ObservationConfig":
        from kart_rewards.env.observations import ObservationConfig

        return ObservationConfig
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
