"""Stable-Baselines3: its ``VecEnv``, with the environments in a few processes.

* ``KartVecEnv`` - a ``VecEnv`` in the place of ``SubprocVecEnv``

It needs Stable-Baselines3: ``pip install stable-baselines3``

Example:
    >>> from stable_baselines3.common.env_util import make_vec_env
    >>> envs = make_vec_env("kart_rewards:HomebrewKart-Snes", n_envs=3, seed=1, vec_env_cls=KartVecEnv)
    >>> envs.reset().shape
    (3, 4, 84, 84)
    >>> envs.close()
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import gymnasium as gym
import numpy as np

from kart_rewards.training.vector_env import ParallelEnvs

try:
    from stable_baselines3.common.env_util import is_wrapped
    from stable_baselines3.common.vec_env import VecEnv
except ModuleNotFoundError as error:
    raise ImportError("kart_rewards.training.sb3 needs Stable-Baselines3: pip install stable-baselines3") from error


class KartVecEnv(VecEnv):
    """Several environments of one game, as Stable-Baselines3's ``VecEnv``.

    Pass it to Stable-Baselines3's ``make_vec_env`` as ``vec_env_cls``, in the place of ``SubprocVecEnv``: the results
    are the same. The environments of a process use its emulator in turns, so there is one process per processor core,
    not one per environment.

    Args:
        env_fns: Functions that make one environment each.
        processes: The maximum number of processes, over which the environments are distributed equally. None: one per
            processor core; or one per environment, if they can't share an emulator.

    Raises:
        KartRewardsError: An environment can't be made, or ``processes`` is not valid.
    """

    def __init__(self, env_fns: list[Callable[[], gym.Env]], processes: int | None = None) -> None:
        self._envs = ParallelEnvs(env_fns, processes)
        super().__init__(len(env_fns), self._envs.single_observation_space, self._envs.single_action_space)

    def reset(self) -> np.ndarray:
        """Begins an episode in each environment, with the seeds of ``seed`` and the options of ``set_options``."""
        options = [each or None for each in self._options]
        infos = self._envs.begin_episodes(self._seeds, options, range(self.num_envs))
        self.reset_infos = list(infos.values())
        self._reset_seeds()
        self._reset_options()
        observations: np.ndarray = self._envs.rows["observation"].copy()
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        """Begins a step in each environment."""
        self._envs.begin_step(actions)

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Waits for the end of the step.

        Returns:
            The observations, the rewards (float32), whether each episode ended, and the ``info`` of each environment.
            If an episode ended, the observation is the first of the next one, and ``info["terminal_observation"]`` is
            the last one.
        """
        rows, infos = self._envs.rows, []
        steps = self._envs.end_step()
        truncated = rows["truncated"] & ~rows["terminated"]
        for i, (info, last) in enumerate(steps):
            if last:
                self.reset_infos[i] = info
                info = last[1] | {"terminal_observation": last[0]}
            infos.append(info | {"TimeLimit.truncated": bool(truncated[i])})
        done = rows["terminated"] | rows["truncated"]
        return rows["observation"].copy(), rows["reward"].astype(np.float32), done, infos

    def close(self) -> None:
        """Kills the processes."""
        self._envs.close()

    def get_images(self) -> list[np.ndarray | None]:
        """Returns the screen of each environment; None without the render mode ``rgb_array``."""
        return self._envs.read("render")

    def has_attr(self, attr_name: str) -> bool:
        """Returns whether all environments have an attribute."""
        return self._envs.have(attr_name)

    def get_attr(self, attr_name: str, indices: int | Iterable[int] | None = None) -> list[Any]:
        """Returns an attribute of environments. It must be picklable, and not a method: see ``env_method``."""
        which: Any = self._get_indices(indices)
        return self._envs.read(attr_name, which=which, may_call=False)

    def set_attr(self, attr_name: str, value: Any, indices: int | Iterable[int] | None = None) -> None:
        """Sets an attribute of environments to one value."""
        self._envs.write(attr_name, dict.fromkeys(self._get_indices(indices), value))

    def env_method(
        self, method_name: str, *method_args: Any, indices: int | Iterable[int] | None = None, **method_kwargs: Any
    ) -> list[Any]:
        """Calls a method of environments, and returns the results. They must be picklable."""
        which: Any = self._get_indices(indices)
        return self._envs.read(method_name, *method_args, which=which, keywords=method_kwargs)

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper], indices: int | Iterable[int] | None = None
    ) -> list[bool]:
        """Returns whether environments have a wrapper of this class."""
        wrapped = {i: is_it for part in self._envs.ask(_are_wrapped, wrapper_class) for i, is_it in part.items()}
        return [wrapped[i] for i in self._get_indices(indices)]


def _are_wrapped(envs: dict[int, gym.Env], rows: np.ndarray, wrapper_class: type[gym.Wrapper]) -> dict[int, bool]:
    return {i: is_wrapped(env, wrapper_class) for i, env in envs.items()}
