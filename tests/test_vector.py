"""Parallel environments give the same results as a single one, for all numbers of groups and processes."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from functools import cache, partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from training_runs import forked_children

from kart_rewards import KartEnv, KartRewardsError, make_env
from kart_rewards.training.vector import EnvGroups

GAME = "HomebrewKart-Snes"
STEPS = 40
NUM_ENVS = 5
DRIVES = np.random.default_rng(1).integers(0, 4, (STEPS, NUM_ENVS))


def driving(**options: Any) -> Callable[[], gym.Env]:
    return partial(make_env, GAME, action_mode="driving", **options)


def play(envs: EnvGroups) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Plays DRIVES; the groups step in turns, as in training. Returns the observations and rewards of each step."""
    observations = [envs.reset(seed=1)]
    rewards = []
    for step in range(STEPS):
        observation, reward = np.zeros_like(observations[0]), np.zeros(envs.num_envs)
        for group, part in enumerate(envs.groups):
            envs.send(group, DRIVES[step, part])
        for group, part in enumerate(envs.groups):
            outcome = envs.recv(group)
            observation[part], reward[part] = outcome.observations, outcome.rewards
        observations.append(observation)
        rewards.append(reward)
    return observations, rewards


@pytest.mark.parametrize(("groups", "processes"), [(1, 1), (2, 2), (2, 5), (3, 2), (9, 9)])
def test_environments_play_as_if_alone_for_all_numbers_of_groups_and_processes(groups: int, processes: int) -> None:
    with closing(EnvGroups([driving(random_start_steps=20)] * NUM_ENVS, groups, processes)) as envs:
        observations, rewards = play(envs)
    for i in range(NUM_ENVS):
        for step, (observation, reward) in enumerate(played_alone(i)):
            assert np.array_equal(observation, observations[step][i])
            assert step == 0 or reward == rewards[step - 1][i]


@cache
def played_alone(i: int) -> list[tuple[np.ndarray, float]]:
    """Plays one environment's actions of DRIVES. Returns its observation and reward after the reset and each step."""
    with closing(make_env(GAME, action_mode="driving", random_start_steps=20)) as env:
        played = [(env.reset(seed=1 + i)[0], 0.0)]
        for step in range(STEPS):
            observation, reward, terminated, truncated, _ = env.step(int(DRIVES[step, i]))
            assert not (terminated or truncated)
            played.append((observation, float(reward)))
    return played


@pytest.mark.parametrize(("num_envs", "processes"), [(2, 2), (3, 2), (6, 2), (5, 4)])
def test_the_environments_are_divided_equally_among_the_processes(num_envs: int, processes: int) -> None:
    with closing(EnvGroups([make_with_process_id] * num_envs, groups=2, processes=processes)) as envs:
        in_process = Counter(envs.call("get_process_id"))
    assert len(in_process) == processes
    assert max(in_process.values()) - min(in_process.values()) <= 1


class WithProcessId(gym.Wrapper):
    def get_process_id(self) -> int:
        return os.getpid()


def make_with_process_id() -> gym.Env:
    return WithProcessId(make_env(GAME))


def test_each_process_has_environments_of_each_group() -> None:
    with closing(EnvGroups([driving()] * NUM_ENVS, groups=2, processes=2)) as envs:
        assert envs.groups == [slice(0, 3), slice(3, 5)]
        assert len(forked_children(os.getpid())) == envs.num_processes == 2
        envs.reset(seed=1)
        before = envs.seconds()
        for group in (0, 1):
            envs.send(group, [0] * (3 - group))
            envs.recv(group)
        worked = [after["processor"] - then["processor"] for then, after in zip(before, envs.seconds(), strict=True)]
    assert all(seconds > 0.001 for seconds in worked), "each process emulated at least one step"
    assert forked_children(os.getpid()) == [], "close ends the processes"


def test_the_end_of_an_episode_gives_its_last_and_the_next_first_observation() -> None:
    limits = (3, 99)
    with closing(EnvGroups([driving(max_episode_steps=limit) for limit in limits], processes=2)) as envs:
        first = envs.reset(seed=1)
        for step in range(1, 4):
            envs.send(0, [0, 0])
            outcome = envs.recv(0)
            assert outcome.truncated.tolist() == [step == 3, False]
        assert not outcome.terminated.any()
        ((i, (final, info)),) = outcome.finals.items()
        assert i == 0
        assert info["episode_rewards"]["sum"].keys() == {"wall", "checkpoint", "terrain", "time", "backwards"}
        assert np.array_equal(outcome.observations[0], first[0]), "the first of the next episode"
        assert np.array_equal(final, outcome.observations[1]), "the other environment continues from the same state"
        assert not np.array_equal(final, first[0])


def test_a_killed_process_is_detected_at_once() -> None:
    with closing(EnvGroups([driving()] * NUM_ENVS, processes=2)) as envs:
        envs.reset(seed=1)
        os.kill(process_ids()[1], signal.SIGKILL)
        began = time.monotonic()
        with pytest.raises(KartRewardsError, match=r"ended unexpectedly: number 1 \(killed by signal 9\)"):
            play(envs)
        assert time.monotonic() - began < 5


def process_ids() -> list[int]:
    return sorted(child.pid for child in forked_children(os.getpid()))


class OnlyHere:
    """Makes an environment in the test's process, and fails in others."""

    def __init__(self) -> None:
        self.process = os.getpid()

    def __call__(self) -> gym.Env:
        if os.getpid() != self.process:
            raise KartRewardsError("not in this process")
        return make_env(GAME)


def test_an_environment_that_can_not_be_made_is_reported_and_no_process_is_left() -> None:
    with pytest.raises(KartRewardsError, match="not in this process"):
        EnvGroups([OnlyHere()] * 2, processes=2)
    assert forked_children(os.getpid()) == []


def test_errors_of_environments_are_raised_in_the_caller() -> None:
    def too_fast(ram: Any) -> float:
        raise ValueError("too fast")

    with closing(EnvGroups([driving(rewards=[too_fast])])) as envs, pytest.raises(KartRewardsError, match="too fast"):
        envs.reset(seed=1)

    class Broken(KartEnv):
        def step(self, action: Any) -> Any:
            raise ZeroDivisionError("a bug")

    with closing(EnvGroups([lambda: Broken(GAME)])) as envs:
        envs.reset(seed=1)
        envs.send(0, [[0.0]])
        with pytest.raises(RuntimeError, match=r"(?s)Traceback.*ZeroDivisionError: a bug"):
            envs.recv(0)
