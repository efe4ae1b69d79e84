"""Gymnasium's vector environment: all environments step together, in a few processes.

* ``KartVectorEnv`` - what ``gymnasium.make_vec`` makes of a game of this package
* ``ParallelEnvs`` - environments that return the ``info`` of each step, in all autoreset modes of Gymnasium

The environments of a process use its emulator in turns, so there is one process per processor core, not one per
environment as in Gymnasium's ``AsyncVectorEnv``. The results are those of Gymnasium's ``SyncVectorEnv``.

Example:
    >>> import gymnasium as gym
    >>> envs = gym.make_vec("kart_rewards:HomebrewKart-Snes", num_envs=3, action_mode="driving")
    >>> observations, infos = envs.reset(seed=1)
    >>> observations, rewards, terminations, truncations, infos = envs.step(envs.action_space.sample())
    >>> observations.shape, infos["reward_terms"]["time"].shape, infos["race"]["laps_completed"].tolist()
    ((3, 4, 84, 84), (3,), [0, 0, 0])
    >>> envs.close()
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from kart_rewards.env import KartEnv, make_env
from kart_rewards.errors import KartRewardsError, did_you_mean
from kart_rewards.imports import load_function
from kart_rewards.training.processes import processor_count
from kart_rewards.training.vector import EnvGroups, LastStep

StepInfo = tuple[dict[str, Any], LastStep | None]
"""The ``info`` of a step. If the environment was reset in the same step: that of the reset, and the episode's end."""


class ParallelEnvs(EnvGroups):
    """Parallel environments that all step at the same time and return the ``info`` of each step.

    Args:
        makers: See ``EnvGroups``.
        processes: The maximum number of processes. None: one per processor core.
        autoreset: When an environment whose episode ended is reset.
    """

    def __init__(
        self,
        makers: Sequence[Callable[[], gym.Env]],
        processes: int | None = None,
        autoreset: AutoresetMode = AutoresetMode.SAME_STEP,
    ) -> None:
        if not (processes is None or (_is_integer(processes) and processes >= 1)):
            raise KartRewardsError(f"processes must be an integer, 1 or more, or None, not {processes!r}")
        super().__init__(makers, processes=processes or processor_count())
        self.autoreset = autoreset

    def begin_episodes(
        self, seeds: Sequence[int | None], options: Sequence[dict[str, Any] | None], which: Collection[int]
    ) -> dict[int, dict[str, Any]]:
        """Begins an episode in some environments. ``rows`` has the observations then.

        Args:
            seeds: The seed for each environment.
            options: The options of ``reset`` for each environment.
            which: The environments that are reset.

        Returns:
            Environment -> ``info``.
        """
        return self._of_all(self.ask(_begin_episodes, seeds, options, which))

    def begin_step(self, actions: np.ndarray) -> None:
        """Begins a step in each environment. ``end_step`` must be called next.

        Args:
            actions: One action per environment, shape (environments, ...).

        Raises:
            KartRewardsError: They have another shape, or a type that can't be converted without loss.
        """
        actions, wanted = np.asarray(actions), self.rows["action"]
        if actions.shape != wanted.shape:
            raise KartRewardsError(
                f"the actions must have the shape {wanted.shape}, with one action per environment, not {actions.shape}"
            )
        if not np.can_cast(actions.dtype, wanted.dtype, "same_kind"):
            raise KartRewardsError(f"the actions must be of type {wanted.dtype}, not {actions.dtype}")
        wanted[:] = actions
        self.begin_asking(_step, self.autoreset)

    def end_step(self) -> list[StepInfo]:
        """Waits for the end of the step. ``rows`` has its results then."""
        return list(self._of_all(self.answers()).values())

    def read(
        self,
        name: str,
        *args: Any,
        which: Collection[int] | None = None,
        keywords: Mapping[str, Any] | None = None,
        may_call: bool = True,
    ) -> list[Any]:
        """Returns an attribute of environments, or the results of a method.

        Args:
            name: The name of the attribute or method. Wrappers are searched, too.
            args: Arguments for a method.
            which: The environments. None: all.
            keywords: Keyword arguments for a method.
            may_call: Whether it may be a method.

        Raises:
            AttributeError: An environment has no such attribute.
            KartRewardsError: A value is not picklable, or a method must not be called.
        """
        which = self._which(which)
        if not self.have(name, which):
            raise AttributeError(f"the environments have no attribute {name!r}")
        values = self._of_all(self.ask(_read, name, args, dict(keywords or {}), which, may_call))
        return [values[i] for i in which]

    def write(self, name: str, values: Mapping[int, Any]) -> None:
        """Sets an attribute of environments.

        Args:
            name: The name of the attribute.
            values: Environment -> value.
        """
        self._which(values)
        self.ask(_write, name, values)

    def have(self, name: str, which: Collection[int] | None = None) -> bool:
        """Whether environments have an attribute or method. Wrappers are searched, too.

        Args:
            name: Its name.
            which: The environments. None: all.
        """
        return all(self._of_all(self.ask(_has, name, self._which(which))).values())

    def _which(self, which: Collection[int] | None) -> Collection[int]:
        which = range(self.num_envs) if which is None else list(which)
        for i in which:
            if not (_is_integer(i) and 0 <= i < self.num_envs):
                raise IndexError(f"there is no environment {i!r}: there are {self.num_envs}, and the first one is 0")
        return which

    @staticmethod
    def _of_all(parts: list[dict[int, Any]]) -> dict[int, Any]:
        """Returns the results of all processes, in the order of the environments."""
        return dict(sorted(item for part in parts for item in part.items()))


class KartVectorEnv(gym.vector.VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """Several environments of one game, as Gymnasium's vector environment.

    Observations, rewards, ends of episodes, seeds and ``infos`` are those of Gymnasium's ``SyncVectorEnv`` with the
    same environments. ``infos`` has the entries of ``KartEnv``'s ``info``: each number is an array with one element per
    environment, and an array with an underscore before its name says which elements are set.

    ``gymnasium.make_vec`` passes its keyword arguments on. It refuses ``vector_kwargs`` and ``wrappers`` for classes
    like this one, so ``processes``, ``autoreset_mode`` and ``env_wrappers`` are keyword arguments like the others.

    After an error of a step, call ``reset``. ``close`` must always be called.

    Args:
        game: The game's folder name.
        num_envs: Number of environments.
        processes: The maximum number of processes, over which the environments are distributed equally. None: one per
            processor core; or one per environment, if they can't share an emulator.
        autoreset_mode: When an environment is reset whose episode ended. Gymnasium's names are ``NextStep``, its
            default: the next step ignores the action, and returns the new episode's first observation; ``SameStep``:
            the same step returns it, and ``infos["final_obs"]`` and ``infos["final_info"]`` have the last ones;
            ``Disabled``: ``reset`` with ``options={"reset_mask": ...}`` does it.
        env_wrappers: Functions or classes that wrap each environment, the innermost first, or their names
            ``MODULE:NAME``.
        max_episode_steps: Agent steps until an episode is truncated.
        options: The other arguments of ``make_env``.

    Attributes:
        num_envs: Number of environments.
        num_processes: Number of processes.
        single_observation_space, single_action_space: The spaces of one environment.
        observation_space, action_space: The spaces of all.

    Raises:
        KartRewardsError: See ``make_env``; or an argument is not valid.
    """

    def __init__(
        self,
        game: str,
        num_envs: int = 1,
        *,
        processes: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        env_wrappers: Sequence[Callable[[gym.Env], gym.Env] | str] = (),
        max_episode_steps: int | None = None,
        **options: Any,
    ) -> None:
        known = [name for of in (KartVectorEnv, make_env, KartEnv) for name in inspect.signature(of).parameters]
        for unknown in options.keys() - known:
            raise KartRewardsError(f"KartVectorEnv has no argument {unknown!r}.{did_you_mean(unknown, known)}")
        if not (_is_integer(num_envs) and num_envs >= 1):
            raise KartRewardsError(f"num_envs must be an integer, 1 or more, not {num_envs!r}")
        modes = [mode.value for mode in AutoresetMode]
        if not isinstance(autoreset_mode, AutoresetMode) and autoreset_mode not in modes:
            hint = did_you_mean(str(autoreset_mode), modes)
            raise KartRewardsError(f"unknown autoreset mode {autoreset_mode!r}: it is one of {', '.join(modes)}.{hint}")
        if options.get("render_mode") == "human":
            raise KartRewardsError(
                "render_mode='human' shows one environment: use gymnasium.make. Several environments can be rendered "
                "with render_mode='rgb_array'"
            )
        options |= {"game": game, "max_episode_steps": max_episode_steps}
        maker = partial(_make, options, list(env_wrappers))
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self._envs = ParallelEnvs([maker] * num_envs, processes, self.autoreset_mode)
        self.num_envs, self.num_processes = num_envs, self._envs.num_processes
        self.render_mode = options.get("render_mode")
        self.metadata = {**self._envs.read("metadata", which=[0])[0], "autoreset_mode": self.autoreset_mode}
        self.single_observation_space = self._envs.single_observation_space
        self.single_action_space = self._envs.single_action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._has_begun = np.zeros(num_envs, bool)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begins an episode in each environment.

        Args:
            seed: The seed of the first environment; environment i gets ``seed + i``. Or a list of all seeds.
            options: The options of each environment's ``reset``; see ``KartEnv``. ``reset_mask``, bool, shape
                (environments,), says which ones are reset; the others go on.

        Returns:
            The observations, shape (environments, ...), and ``infos``.
        """
        seeds = [seed + i for i in range(self.num_envs)] if _is_integer(seed) else seed  # type: ignore[operator]
        seeds = [None] * self.num_envs if seeds is None else list(seeds)  # type: ignore[arg-type]
        if len(seeds) != self.num_envs:
            raise KartRewardsError(f"{self.num_envs} environments need as many seeds, not {len(seeds)}")
        options = dict(options or {})
        mask = options.pop("reset_mask", np.ones(self.num_envs, bool))
        is_mask = isinstance(mask, np.ndarray) and mask.dtype == bool and mask.shape == (self.num_envs,) and mask.any()
        if not is_mask:
            raise KartRewardsError(
                f"reset_mask must be an array of type bool and shape ({self.num_envs},), with one True or more, not "
                f"{mask!r}"
            )
        infos = self._envs.begin_episodes(seeds, [options or None] * self.num_envs, np.flatnonzero(mask).tolist())
        self._has_begun |= mask
        return self._envs.rows["observation"].copy(), self._batch(infos)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Steps each environment.

        Args:
            actions: An element of ``action_space``.

        Returns:
            The observations, the rewards (float64), whether each episode is terminated and whether it is truncated
            (bool), all of shape (environments, ...), and ``infos``.

        Raises:
            KartRewardsError: An action is not valid, or a term or rule failed.
        """
        rows = self._envs.rows
        if not self._has_begun.all():
            raise gym.error.ResetNeeded("Call reset before step")
        if self.autoreset_mode is AutoresetMode.DISABLED and (rows["terminated"] | rows["truncated"]).any():
            raise gym.error.ResetNeeded("Call reset with a reset_mask of the environments whose episode ended")
        self._envs.begin_step(actions)
        steps = self._envs.end_step()
        infos = self._batch({i: info for i, (info, _) in enumerate(steps)})
        for i, (_, last) in enumerate(steps):
            if last:
                infos = self._add_info(infos, {"final_obs": last[0], "final_info": last[1]}, i)
        results = (rows[name].copy() for name in ("observation", "reward", "terminated", "truncated"))
        return *results, infos  # type: ignore[return-value]

    def render(self) -> tuple[Any, ...]:
        """Returns the screen of each environment in ``rgb_array`` mode, uint8, shape (height, width, 3)."""
        return self.call("render")

    def call(self, name: str, *args: Any, **keywords: Any) -> tuple[Any, ...]:
        """Returns the results of a method of each environment, or an attribute of each."""
        return tuple(self._envs.read(name, *args, keywords=keywords))

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """Returns an attribute of each environment."""
        return self.call(name)

    def set_attr(self, name: str, values: Any) -> None:
        """Sets an attribute of each environment.

        Args:
            name: The name of the attribute.
            values: A list or tuple with one value per environment, or one value for all.
        """
        if not isinstance(values, (list, tuple)):
            values = [values] * self.num_envs
        if len(values) != self.num_envs:
            raise KartRewardsError(f"{self.num_envs} environments need as many values, not {len(values)}")
        self._envs.write(name, dict(enumerate(values)))

    @property  # type: ignore[misc]  # without a setter, as in Gymnasium's own vector environments
    def np_random(self) -> Any:
        """The random generator of each environment; a copy."""
        return self.get_attr("np_random")

    @property
    def np_random_seed(self) -> Any:
        """The seed of each environment."""
        return self.get_attr("np_random_seed")

    def close_extras(self, **_: Any) -> None:
        """Kills the processes."""
        self._envs.close()

    def __del__(self) -> None:
        if hasattr(self, "_envs"):
            self._envs.close()

    def _batch(self, infos: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
        """Returns what ``_add_info`` makes of the ``info`` of several environments, but faster.

        Args:
            infos: Environment -> ``info``.
        """
        first, *others = infos.values()
        names = list(first)
        if len(infos) < self.num_envs or any(list(info) != names for info in others):
            return self._add_one_by_one(infos)
        batch: dict[str, Any] = {}
        for name, values in zip(names, zip(*(info.values() for info in infos.values()), strict=True), strict=True):
            kind, *other_kinds = set(map(type, values))
            if other_kinds or kind not in (dict, bool, int, float):
                batch |= self._add_one_by_one({i: {name: value} for i, value in zip(infos, values, strict=True)})
                continue
            batch[name] = self._batch(dict(zip(infos, values, strict=True))) if kind is dict else np.array(values, kind)
            batch[f"_{name}"] = np.ones(self.num_envs, bool)
        return batch

    def _add_one_by_one(self, infos: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = {}
        for i, info in infos.items():
            batch = self._add_info(batch, info, i)
        return batch


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _make(options: Mapping[str, Any], wrappers: Sequence[Callable[[gym.Env], gym.Env] | str]) -> gym.Env:
    """Makes one environment with its wrappers."""
    core = env = make_env(**options)
    try:
        for wrapper in wrappers:
            env = (load_function(wrapper, "wrapper") if isinstance(wrapper, str) else wrapper)(env)
    except BaseException:
        core.close()  # otherwise a reference to the exception keeps the process's only emulator alive
        raise
    return env


# The functions from here on are called in the processes of the environments; see ``EnvGroups.ask``.


def _begin_episodes(
    envs: dict[int, gym.Env],
    rows: np.ndarray,
    seeds: Sequence[int | None],
    options: Sequence[dict[str, Any] | None],
    which: Collection[int],
) -> dict[int, dict[str, Any]]:
    infos = {}
    for i in envs.keys() & which:
        rows[i]["observation"], infos[i] = envs[i].reset(seed=seeds[i], options=options[i])
        rows[i]["terminated"] = rows[i]["truncated"] = False
    return infos


def _step(envs: dict[int, gym.Env], rows: np.ndarray, mode: AutoresetMode) -> dict[int, StepInfo]:
    steps: dict[int, StepInfo] = {}
    for i, env in envs.items():
        row, last = rows[i], None
        if mode is AutoresetMode.NEXT_STEP and (row["terminated"] or row["truncated"]):
            observation, info = env.reset()
            row["reward"], row["terminated"], row["truncated"] = 0.0, False, False
        else:
            observation, row["reward"], row["terminated"], row["truncated"], info = env.step(row["action"])
            if mode is AutoresetMode.SAME_STEP and (row["terminated"] or row["truncated"]):
                last = observation, info
                observation, info = env.reset()
        row["observation"] = observation
        steps[i] = info, last
    return steps


def _has(envs: dict[int, gym.Env], rows: np.ndarray, name: str, which: Collection[int]) -> dict[int, bool]:
    return {i: envs[i].has_wrapper_attr(name) for i in envs.keys() & which}


def _read(
    envs: dict[int, gym.Env],
    rows: np.ndarray,
    name: str,
    args: tuple[Any, ...],
    keywords: dict[str, Any],
    which: Collection[int],
    may_call: bool,
) -> dict[int, Any]:
    found = {i: envs[i].get_wrapper_attr(name) for i in envs.keys() & which}
    if not may_call and any(map(callable, found.values())):
        raise KartRewardsError(f"{name} is a method of the environments, not an attribute")
    return {i: value(*args, **keywords) if callable(value) else value for i, value in found.items()}


def _write(envs: dict[int, gym.Env], rows: np.ndarray, name: str, values: Mapping[int, Any]) -> None:
    for i in envs.keys() & values:
        envs[i].set_wrapper_attr(name, values[i])
