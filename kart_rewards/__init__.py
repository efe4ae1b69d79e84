"""Rewards scripted in Python for emulated games.

* ``reward_term``, ``done_rule`` - mark a function or class as a reward term or a done rule
* ``make_env``, ``KartEnv`` - Gymnasium environments that score with reward terms and done rules
* ``ScriptRewards`` - a wrapper that scores an environment of stable-retro's in the same way
* ``ObservationConfig`` - the options of an environment's observations
* ``RamLayout``, ``RamSnapshot`` - typed RAM
* ``KartRewardsError`` - the exception for bad input

Importing this package registers all games that ``kart_rewards.integrations`` finds with Gymnasium, under the names of
their folders. It does not import the emulator.
"""

from __future__ import annotations

import signal
import sys

if "".join(sys.argv[:1]).endswith("kart-rewards") or "-m kart_rewards " in " ".join([*sys.orig_argv, ""]):
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports ends the program without a traceback

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from kart_rewards.defaults import DEFAULT_FRAME_SKIP, default_max_episode_steps
from kart_rewards.done import done_rule
from kart_rewards.errors import KartRewardsError
from kart_rewards.integrations import list_games
from kart_rewards.ram import RamLayout, RamSnapshot
from kart_rewards.rewards import reward_term

if TYPE_CHECKING:
    from kart_rewards.env import KartEnv, ScriptRewards, make_env
    from kart_rewards.env.observations import ObservationConfig

__all__ = [
    "KartEnv",
    "KartRewardsError",
    "ObservationConfig",
    "RamLayout",
    "RamSnapshot",
    "ScriptRewards",
    "done_rule",
    "make_env",
    "reward_term",
]

for _name in list_games():
    with suppress(gym.error.Error):  # Gymnasium refuses the names of some folders; the other games are still registered
        if _name not in gym.registry:  # gym.register would compare each of a thousand games with all others
            gym.registry[_name] = EnvSpec(
                _name,
                "kart_rewards.env:KartEnv",
                max_episode_steps=default_max_episode_steps(DEFAULT_FRAME_SKIP),
                disable_env_checker=True,  # it would check each step, which the tests do
                kwargs={"game": _name},
                vector_entry_point="kart_rewards.training.vector_env:KartVectorEnv",
            )


def __getattr__(name: str) -> Any:
    """Imports the names that need the emulator only when they are used."""
    try:
        if name in ("KartEnv", "ScriptRewards", "make_env"):
            from kart_rewards import env

            return getattr(env, name)
        if name == "ObservationConfig":
            from kart_rewards.env.observations import ObservationConfig

            return ObservationConfig
    except AttributeError as error:  # of an import below: Python would only report that it "cannot import name"
        raise ImportError(
            f"kart_rewards.{name} can't be imported: {error}. If a file of yours has the name of a Python module, such "
            "as glob.py, rename it"
        ) from error
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
