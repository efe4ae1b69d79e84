"""Environments side by side in a few processes, in groups: while one group steps, the agent answers another.

* ``EnvGroups`` - ``send`` actions to a group, ``recv`` what came of them
* ``Outcome`` - what came of them

With a process for each core, whose environments take turns at its emulator, and environments of two groups in each, no
core waits for the agent. Arrays lie in shared memory. ``python benchmarks/speed.py`` compares with Gymnasium's
``AsyncVectorEnv``, which has a process for each environment.

Example:
    >>> from functools import partial
    >>> from kart_rewards import make_env
    >>> envs = EnvGroups([partial(make_env, "HomebrewKart-Snes", action_mode="driving")] * 4, groups=2, processes=2)
    >>> envs.reset(seed=1).shape
    (4, 4, 84, 84)
    >>> for group in (0, 1):
    ...     envs.send(group, [0, 2])
    >>> [envs.recv(group).rewards.shape for group in (0, 1)]
    [(2,), (2,)]
    >>> envs.close()
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import gymnasium as gym
import numpy as np

from kart_rewards.errors import KartRewardsError
from kart_rewards.training.processes import Children, attempt, serve_parent

LastStep = tuple[np.ndarray, dict[str, Any]]
"""An episode's last observation and info."""


@dataclass(frozen=True)
class Outcome:
    """What came of a step of one group, in the order of its environments. The next ``send`` writes over its arrays.

    Args:
        observations: Of those whose episode ended, the next episode's first; shape (environments, ...).
        rewards: float64, shape (environments,).
        terminated: bool, likewise.
        truncated: bool, likewise.
        finals: The last observation and info of those whose episode ended, by their place in the group.
    """

    observations: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    finals: dict[int, LastStep]


class EnvGroups:
    """Environments with equal spaces, in processes of their own. An episode that ends is followed by the next.

    The first is also made, and closed, in this process, to learn the spaces. Groups answer ``recv`` in the order of
    ``send``; everything else is for when no group is at a step. After an error only ``close`` is left, which ends the
    processes and must be called.

    Args:
        makers: Each makes one environment; picklable where processes are not forked.
        groups: How many groups, of about the same size. Each steps by itself.
        processes: How many processes, if there are as many environments. Several environments in one need to be
            ``KartEnv`` of one game.

    Attributes:
        num_envs: How many environments there are.
        groups: The environments of each group, as slices of all.
        single_observation_space: Of one environment.
        single_action_space: Of one environment.

    Raises:
        KartRewardsError: An environment raised one, or its process has ended; here and in every method.
        RuntimeError: An environment raised anything else; its traceback is in the message.
    """

    def __init__(self, makers: Sequence[Callable[[], gym.Env]], groups: int = 1, processes: int = 1) -> None:
        env = makers[0]()
        self.single_observation_space, self.single_action_space = env.observation_space, env.action_space
        env.close()
        observation, action = self.single_observation_space, self.single_action_space
        row = np.dtype(
            [
                ("observation", observation.dtype, observation.shape),
                ("action", action.dtype, action.shape),
                ("reward", np.float64),
                ("terminated", bool),
                ("truncated", bool),
            ],
            align=True,
        )
        self.num_envs = len(makers)
        parts = [part.tolist() for part in np.array_split(range(len(makers)), groups) if part.size]
        self.groups = [slice(part[0], part[-1] + 1) for part in parts]
        self._children = Children()
        memory = self._children.context.RawArray("b", len(makers) * row.itemsize)
        self._rows = np.frombuffer(memory, row)
        self._envs_of: dict[Connection, list[list[int]]] = {}  # by group
        try:
            for process in range(min(processes, len(makers))):
                envs = [[i for i in part if i % processes == process] for part in parts]
                made = {i: makers[i] for part in envs for i in part}
                self._envs_of[self._children.start(_serve, made, envs, memory, row)] = envs
            for connection in self._envs_of:
                self._receive(connection)
        except BaseException:
            self.close()
            raise

    @property
    def num_processes(self) -> int:
        """How many processes the environments are in."""
        return len(self._envs_of)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> np.ndarray:
        """Begins an episode in each environment; the seed of environment i is ``seed + i``.

        Returns:
            The observations, shape (environments, ...).
        """
        self._ask_all(_reset, seed, options)
        return self._rows["observation"].copy()

    def send(self, group: int, actions: Any) -> None:
        """Has the environments of a group begin a step.

        Args:
            group: Its number.
            actions: One for each of its environments, shape (environments, ...).
        """
        self._rows["action"][self.groups[group]] = actions
        for connection, envs in self._envs_of.items():
            if envs[group]:
                self._send(connection, group)

    def recv(self, group: int) -> Outcome:
        """Waits until a group's step is done."""
        part = self.groups[group]
        finals: dict[int, LastStep] = {}
        for connection, envs in self._envs_of.items():
            if envs[group]:
                finals |= self._receive(connection)
        rows = self._rows[part]
        finals = {i - part.start: finals[i] for i in sorted(finals)}
        return Outcome(rows["observation"], rows["reward"], rows["terminated"], rows["truncated"], finals)

    def call(self, name: str, *args: Any) -> list[Any]:
        """Calls a method of each environment."""
        results: dict[int, Any] = {}
        for part in self._ask_all(_call, name, args):
            results |= part
        return [results[i] for i in range(self.num_envs)]

    def seconds(self) -> list[dict[str, float]]:
        """Returns ``KartEnv.step_seconds`` of each process, and as ``processor`` what it has had of a core so far."""
        return self._ask_all(_seconds)

    def close(self) -> None:
        """Ends the processes, whatever they are doing."""
        self._children.close()

    def _ask_all(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        for connection in self._envs_of:
            self._send(connection, (function, args))
        return [self._receive(connection) for connection in self._envs_of]

    def _send(self, connection: Connection, what: Any) -> None:
        try:
            connection.send(what)
        except ConnectionError:
            raise self._ended() from None

    def _receive(self, connection: Connection) -> Any:
        try:
            error, result = connection.recv()
        except (EOFError, ConnectionError):
            raise self._ended() from None
        if error:
            raise error
        return result

    def _ended(self) -> KartRewardsError:
        ended = self._children.ended(timeout_seconds=5)
        listed = ", ".join(f"number {number} ({how})" for number, how in ended.items())
        return KartRewardsError(f"an environment's process ended unexpectedly: {listed or 'which one is not known'}")


def _serve(
    connection: Connection,
    makers: dict[int, Callable[[], gym.Env]],
    groups: list[list[int]],
    memory: Any,
    row_type: np.dtype,
) -> None:
    """Makes environments, by their numbers, and does what is asked of them, until there is nobody to ask."""
    serve_parent()
    rows = np.frombuffer(memory, row_type)
    error, envs = attempt(lambda: {i: make() for i, make in makers.items()})
    with suppress(EOFError, ConnectionError):
        connection.send((error, None))
        while envs:
            asked = connection.recv()
            function, args = (_step, groups[asked]) if isinstance(asked, int) else asked
            connection.send(attempt(function, envs, rows, *args))


def _step(envs: dict[int, gym.Env], rows: np.ndarray, *group: int) -> dict[int, LastStep]:
    finals = {}
    for i in group:
        row = rows[i]
        observation, row["reward"], row["terminated"], row["truncated"], info = envs[i].step(row["action"])
        if row["terminated"] or row["truncated"]:
            finals[i] = observation, info
            observation, _ = envs[i].reset()
        row["observation"] = observation
    return finals


def _reset(envs: dict[int, gym.Env], rows: np.ndarray, seed: int | None, options: dict[str, Any] | None) -> None:
    for i, env in envs.items():
        rows[i]["observation"], _ = env.reset(seed=None if seed is None else seed + i, options=options)


def _call(envs: dict[int, gym.Env], rows: np.ndarray, name: str, args: tuple[Any, ...]) -> dict[int, Any]:
    return {i: env.get_wrapper_attr(name)(*args) for i, env in envs.items()}


def _seconds(envs: dict[int, gym.Env], rows: np.ndarray) -> dict[str, float]:
    parts = [env.get_wrapper_attr("step_seconds") for env in envs.values()]
    return {name: sum(part[name] for part in parts) for name in parts[0]} | {"processor": time.process_time()}
