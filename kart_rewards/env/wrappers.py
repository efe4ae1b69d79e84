"""Wrappers of one's own around the environments of a run.

* ``make_wrapped`` - makes a ``KartEnv`` and applies wrappers to it
* ``has_memory``, ``wrapped_observation`` - what resuming a run needs to know about wrappers

A wrapper is a function or class that takes an environment and returns one, such as a ``gymnasium.Wrapper``. On a
command line it has a name, ``MODULE:NAME`` or ``FILE.py:NAME``. Each process that plays imports it by this name.

Example:
    >>> env = make_wrapped({"game": "HomebrewKart-Snes", "wrappers": ["gymnasium.wrappers:FlattenObservation"]})
    >>> env.observation_space.shape, env.unwrapped.game.name
    ((28224,), 'HomebrewKart-Snes')
    >>> env.close()
"""

from __future__ import annotations

import dis
from collections.abc import Mapping
from types import BuiltinFunctionType, FunctionType
from typing import Any

import gymnasium as gym
import numpy as np

from kart_rewards.env.kart_env import KartEnv
from kart_rewards.errors import KartRewardsError
from kart_rewards.imports import describe, load_function


def make_wrapped(options: Mapping[str, Any]) -> gym.Env[Any, Any]:
    """Makes an environment and applies wrappers to it.

    Args:
        options: The arguments of ``KartEnv`` by name. ``wrappers``, if it is there, has the names of the wrappers, the
            innermost first.

    Returns:
        The environment. Its ``unwrapped`` is the ``KartEnv``.

    Raises:
        KartRewardsError: See ``KartEnv``; or a wrapper can't be imported, fails, or returns no environment.
    """
    own = dict(options)
    makers = [(name, load_function(name, "wrapper")) for name in own.pop("wrappers", ())]
    core = KartEnv(**own)
    env: Any = core
    try:
        for name, maker in makers:
            try:
                env = maker(env)
            except Exception as error:
                raise KartRewardsError(f"the wrapper {name} {describe(error)}") from error
            if not isinstance(env, gym.Env) or env.unwrapped is not core:
                raise KartRewardsError(f"the wrapper {name} returned {env!r}: it must return the environment, wrapped")
    except BaseException:
        core.close()  # otherwise a reference to the exception keeps the process's only emulator alive
        raise
    return env


def has_memory(env: gym.Env[Any, Any]) -> bool:
    """Whether a wrapper may have a memory.

    It has none if it only converts observations, actions or rewards, keeps nothing but constants, and sets no attribute
    after its ``__init__``.
    """
    while isinstance(env, gym.Wrapper):
        own = [value for name, value in vars(env).items() if name not in _ATTRIBUTES_OF_WRAPPERS]
        if (
            not isinstance(env, _CONVERTERS)
            or not all(isinstance(value, _CONSTANTS) for value in own)
            or any(map(_sets_attributes, type(env).__mro__[: type(env).__mro__.index(gym.Wrapper)]))
        ):
            return True
        env = env.env
    return False


_CONVERTERS = (gym.ObservationWrapper, gym.ActionWrapper, gym.RewardWrapper)
_ATTRIBUTES_OF_WRAPPERS = ("env", "_action_space", "_observation_space", "_metadata", "_cached_spec", "_saved_kwargs")
_CONSTANTS = (int, float, str, bytes, tuple, type(None), type, FunctionType, BuiltinFunctionType, np.generic, gym.Space)


def _sets_attributes(kind: type) -> bool:
    functions = (function for name, function in vars(kind).items() if name != "__init__")
    codes = (function.__code__ for function in functions if isinstance(function, FunctionType))
    return any(instruction.opname == "STORE_ATTR" for code in codes for instruction in dis.get_instructions(code))


def wrapped_observation(env: gym.Env[Any, Any], observation: Any) -> Any:
    """Returns the observation of the ``KartEnv`` as the observation wrappers around it change it."""
    if not isinstance(env, gym.Wrapper):
        return observation
    observation = wrapped_observation(env.env, observation)
    return env.observation(observation) if isinstance(env, gym.ObservationWrapper) else observation
