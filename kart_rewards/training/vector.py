"""Vector environment: parallel environments in a few processes, divided into groups.

* ``EnvGroups`` - the environments: ``send`` actions to a group, ``recv`` the results
* ``Outcome`` - the results of one step of a group

While one group steps, the agent computes the actions of another. With one process per core and environments of two
groups in each process, no core waits for the agent. The environments of a process use its emulator in turns. The arrays
are in shared memory.

This class is used instead of Gymnasium's ``AsyncVectorEnv``, which has one process per environment and no groups,
because it is faster: ``python benchmarks/speed.py`` compares them.

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

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector.utils import CloudpickleWrapper

from kart_rewards.errors import KartRewardsError
from kart_rewards.notices import notice
from kart_rewards.training.processes import Children, attempt, core_by_core, on_core, serve_parent
from kart_rewards.training.timing import processor_seconds

LastStep = tuple[np.ndarray, dict[str, Any]]
"""The last observation and ``info`` of an episode."""


@dataclass(frozen=True)
class Outcome:
    """The results of one step of a group, in the order of its environments.

    The arrays are views of shared memory: the next ``send`` to the group overwrites them.

    Args:
        observations: Shape (environments, ...). If an episode ended, it is the first observation of the next episode.
        rewards: float64, shape (environments,).
        terminated: bool, shape (environments,).
        truncated: bool, shape (environments,).
        finals: Index in the group -> last observation and ``info``, for each environment whose episode ended.
    """

    observations: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    finals: dict[int, LastStep]


class EnvGroups:
    """Parallel environments with equal spaces. When an episode ends, the next one begins automatically.

    Call ``recv`` for the groups in the order of ``send``. Call the other methods only while no group is in a step.
    After an error, call ``close`` and nothing else. ``close`` must always be called.

    Args:
        makers: Functions that make one environment each. The first one is also called in this process, for the spaces;
            that environment is closed at once.
        groups: The number of groups, of about equal size.
        processes: The maximum number of processes. If a process has several environments, they must be ``KartEnv`` of
            one game. If sharing an emulator would be wrong or slow, each environment has a process of its own, and a
            notice is printed.

    Attributes:
        num_envs: Number of environments.
        groups: The environments of each group, as slices of the range of all environments.
        rows: The shared memory: a structured array with the fields ``observation``, ``action``, ``reward``,
            ``terminated`` and ``truncated``, one row per environment.
        single_observation_space: The observation space of one environment.
        single_action_space: The action space of one environment.
        drawing: A sentence that says which frames are drawn; an empty text if the environments are no ``KartEnv``.

    Raises:
        KartRewardsError: An environment raised this error, or a process ended unexpectedly; all methods raise it, too.
            Or a space is not that of one array.
        RuntimeError: An environment raised another exception; the message contains the traceback. All methods raise
            it, too.
    """

    def __init__(self, makers: Sequence[Callable[[], gym.Env]], groups: int = 1, processes: int = 1) -> None:
        with closing(makers[0]()) as env:
            self.single_observation_space, self.single_action_space = env.observation_space, env.action_space
            self.drawing: str = getattr(env.unwrapped, "describe_drawing", str)()
            processes = _number_of_processes(env.unwrapped, len(makers), processes)
        observation, action = self.single_observation_space, self.single_action_space
        for what, space in (("observation", observation), ("action", action)):
            if space.dtype is None or space.shape is None:
                raise KartRewardsError(
                    f"the {what} space must be that of one array, such as Box or Discrete, not {space}: flatten it, "
                    "for example with gymnasium.wrappers.FlattenObservation"
                )
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
        self.rows = np.frombuffer(memory, row)
        self._change_core: Callable[[], None] = _stay
        self._is_asking = False
        self._envs_of: dict[Connection, list[list[int]]] = {}  # by group
        try:
            for process in range(min(processes, len(makers))):
                envs = [[i for i in part if i % processes == process] for part in parts]
                made = {i: CloudpickleWrapper(makers[i]) for part in envs for i in part}
                self._envs_of[self._children.start(_serve, made, envs, memory, row)] = envs
            for connection in self._envs_of:
                self._receive(connection)
        except BaseException:
            self.close()
            raise

    @property
    def num_processes(self) -> int:
        """The number of processes."""
        return len(self._envs_of)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> np.ndarray:
        """Begins an episode in each environment.

        Args:
            seed: The seed of the first environment; environment i gets ``seed + i``. None sets no seeds.
            options: The options of each environment's ``reset``.

        Returns:
            The observations, shape (environments, ...).
        """
        self.ask(_reset, seed, options)
        return self.rows["observation"].copy()

    def send(self, group: int, actions: Any) -> None:
        """Begins a step in the environments of a group.

        Args:
            group: The index of the group.
            actions: One action per environment of the group, shape (environments, ...).
        """
        self.rows["action"][self.groups[group]] = actions
        for connection, envs in self._envs_of.items():
            if envs[group]:
                self._send(connection, group)
        self._change_core()

    def recv(self, group: int) -> Outcome:
        """Waits for the end of a group's step, and returns its results.

        Args:
            group: The index of the group.
        """
        part = self.groups[group]
        finals: dict[int, LastStep] = {}
        for connection, envs in self._envs_of.items():
            if envs[group]:
                finals |= self._receive(connection)
        rows = self.rows[part]
        finals = {i - part.start: finals[i] for i in sorted(finals)}
        return Outcome(rows["observation"], rows["reward"], rows["terminated"], rows["truncated"], finals)

    @contextmanager
    def sharing_cores(self, trainers: int = 1) -> Iterator[None]:
        """Moves this thread to another core after each ``send``, if each core has a busy process.

        See ``kart_rewards.training.processes.core_by_core`` for the reason.

        Args:
            trainers: Number of training processes on this machine. Each has as many environment processes as this one.
        """
        try:
            with core_by_core(self.num_processes * trainers) as self._change_core:
                yield
        finally:
            self._change_core = _stay

    def call(self, name: str, *args: Any) -> list[Any]:
        """Calls a method of each environment.

        Args:
            name: The name of the method.
            args: Its arguments; they must be picklable.

        Returns:
            The results, in the order of the environments.
        """
        results: dict[int, Any] = {}
        for part in self.ask(_call, name, args):
            results |= part
        return [results[i] for i in range(self.num_envs)]

    def seconds(self) -> list[dict[str, float]]:
        """Returns the time that each process has used so far, in seconds.

        Returns:
            For each process: part -> seconds. The parts are those of ``KartEnv.step_seconds``, summed over the
            environments of the process, and those of ``kart_rewards.training.timing.processor_seconds``.
        """
        return self.ask(_seconds)

    def close(self) -> None:
        """Kills the processes, even during a step."""
        self._children.close()

    def ask(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Calls a function in each process.

        Args:
            function: A function of a module. Its first arguments are the process's environments, index -> environment,
                and ``rows``.
            args: Its other arguments; they must be picklable.

        Returns:
            The results, in the order of the processes.
        """
        self.begin_asking(function, *args)
        return self.answers()

    def begin_asking(self, function: Callable[..., Any], *args: Any) -> None:
        """Begins a call of a function in each process; see ``ask``. ``answers`` must be called next.

        Raises:
            ClosedEnvironmentError: The environments are closed; or the call before was interrupted, such as by Ctrl-C:
                the answers to it would be read as answers to this one, so the environments are closed now.
        """
        if self._is_asking:
            self.close()
        if not self._children.processes:
            raise gym.error.ClosedEnvironmentError(
                "the environments are closed, or the call before was interrupted: make new ones"
            )
        self._is_asking = True
        for connection in self._envs_of:
            self._send(connection, (function, args))

    def answers(self) -> list[Any]:
        """Waits for the results of ``begin_asking``, and returns them.

        After an error that an environment raised, other calls are still possible.
        """
        answers = [self._answer(connection) for connection in self._envs_of]
        self._is_asking = False
        for error, _ in answers:
            if error:
                raise error
        return [result for _, result in answers]

    def _send(self, connection: Connection, what: Any) -> None:
        try:
            connection.send(what)
        except ConnectionError:
            raise self._ended() from None

    def _receive(self, connection: Connection) -> Any:
        error, result = self._answer(connection)
        if error:
            raise error
        return result

    def _answer(self, connection: Connection) -> tuple[Exception | None, Any]:
        """Waits for an answer, and returns its error and its result; one of them is None."""
        try:
            answer: tuple[Exception | None, Any] = connection.recv()
        except (EOFError, ConnectionError):
            raise self._ended() from None
        return answer

    def _ended(self) -> KartRewardsError:
        ended = self._children.ended(timeout_seconds=5)
        listed = ", ".join(f"number {number} ({how})" for number, how in ended.items())
        return KartRewardsError(f"an environment's process ended unexpectedly: {listed or 'which one is not known'}")


def _number_of_processes(env: Any, num_envs: int, processes: int) -> int:
    """Returns how many processes may have environments like this one.

    Args:
        env: One of the environments, without its wrappers.
        num_envs: Number of environments.
        processes: How many processes there would be if environments can share an emulator.
    """
    if num_envs <= processes:
        return processes
    reason = getattr(env, "slow_turns", str)() or getattr(env, "sharing_fault", str)()
    if reason:
        notice(f"{env.game.name}: each environment has a process of its own, because {reason}")
    return num_envs if reason else processes


def _stay() -> None:
    """Leaves the thread on the core that it is on."""


def _serve(
    connection: Connection,
    makers: dict[int, Callable[[], gym.Env]],
    groups: list[list[int]],
    memory: Any,
    row_type: np.dtype,
) -> None:
    """Runs in a child process: makes environments and executes requests until the connection closes.

    Args:
        connection: The connection to the parent. A request is the index of a group to step, or a function and its
            arguments. The answer is what ``attempt`` returns.
        makers: Index of the environment -> function that makes it.
        groups: The environments of this process in each group.
        memory: The shared memory of all rows.
        row_type: The dtype of a row: observation, action and results of one environment.
    """
    serve_parent()
    rows = np.frombuffer(memory, row_type)
    error, envs = attempt(lambda: {i: make() for i, make in makers.items()})
    with suppress(EOFError, ConnectionError):
        connection.send((error, None))
        while envs:
            # With one group, all processes begin at the same time. With several, another one is always busy.
            with on_core(min(envs)) if len(groups) == 1 else nullcontext():
                asked = connection.recv()
            function, args = (_step, groups[asked]) if isinstance(asked, int) else asked
            answer = attempt(function, envs, rows, *args)
            try:
                connection.send(answer)
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                text = f"the result of an environment can't be sent to the process that asked for it: {error}"
                connection.send((KartRewardsError(text), None))


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
    return {name: sum(part[name] for part in parts) for name in parts[0]} | processor_seconds()
