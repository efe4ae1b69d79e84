"""``gymnasium.make_vec`` gives the results of Gymnasium's own SyncVectorEnv, in fewer processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import pytest
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import vector as vector_wrappers

from kart_rewards import KartEnv, KartRewardsError, ObservationConfig, reward_term
from kart_rewards.training.vector_env import KartVectorEnv

GAME = "HomebrewKart-Snes"
NAME = f"kart_rewards:{GAME}"
NUM_ENVS = 3
SMALL: dict[str, Any] = {"observation": ObservationConfig(size=(12, 12))}


class EndsEarly(gym.Wrapper):
    """Ends the episodes of some seeds early. ``info`` gains a text, an array, numbers of two types, and a rare key."""

    steps = 0
    limit = 3

    def reset(self, **arguments: Any) -> tuple[Any, dict[str, Any]]:
        self.steps = 0
        if arguments.get("seed") is not None:
            self.limit = 2 + arguments["seed"] % 3
        return self.env.reset(**arguments)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.steps += 1
        info["mixed"] = 0.5 if self.limit % 2 else 2
        info["array"] = np.arange(2) + self.steps
        info["rare"] = {"even": self.steps} if self.steps % 2 == 0 else {}
        info["text"] = f"step {self.steps}"
        return observation, reward, terminated or self.steps == self.limit, truncated, info


def make(mode: str = "NextStep", num_envs: int = NUM_ENVS, **options: Any) -> Any:
    return gym.make_vec(NAME, num_envs=num_envs, autoreset_mode=mode, **SMALL | options)


@pytest.mark.parametrize(
    ("mode", "processes", "options"),
    [
        ("NextStep", 2, {"action_mode": "driving", "random_start_steps": 5, "state": ["Level1", "Level2"]}),
        ("SameStep", 3, {"action_mode": "continuous", "sticky_actions": 0.25}),
        ("SameStep", 1, {"action_mode": "multi-discrete"}),
        ("Disabled", 2, {"action_mode": "driving"}),
    ],
)
def test_each_result_equals_that_of_gymnasiums_own_vector_environment(
    mode: str, processes: int, options: dict[str, Any]
) -> None:
    options |= {"max_episode_steps": 3, "render_mode": "rgb_array", "rewards": [clock]}
    reference: Any = gym.make_vec(
        NAME,
        num_envs=NUM_ENVS,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": mode},
        wrappers=[EndsEarly],
        **SMALL | options,
    )
    own_options = options | {"processes": processes, "env_wrappers": [EndsEarly]}
    with closing(reference), closing(make(mode, **own_options)) as envs:
        assert type(envs) is KartVectorEnv
        assert envs.num_processes == processes
        for name in ("observation_space", "action_space", "single_observation_space", "single_action_space"):
            assert getattr(envs, name) == getattr(reference, name)
        assert envs.metadata == reference.metadata
        assert envs.metadata["autoreset_mode"] is AutoresetMode(mode)
        assert same(envs.reset(seed=5), reference.reset(seed=5))
        envs.action_space.seed(1)
        ends = 0
        for step in range(10):
            actions = envs.action_space.sample()
            own, theirs = envs.step(actions), reference.step(actions)
            assert same(own, theirs), f"step {step}"
            assert same(envs.render(), reference.render())
            ended = own[2] | own[3]
            ends += ended.sum()
            if mode == "Disabled" and ended.any():
                with pytest.raises(gym.error.ResetNeeded, match="reset_mask"):
                    envs.step(actions)
                masks = [{"reset_mask": ended.copy()} for _ in range(2)]
                assert same(envs.reset(options=masks[0]), reference.reset(options=masks[1]))
        assert ends >= 6
        assert own[4]["race"]["wall_hits"].shape == own[4]["reward_terms"]["wall"].shape == (NUM_ENVS,)
        seeds = [7, None, 2]
        assert same(envs.reset(seed=seeds), reference.reset(seed=seeds))
        assert envs.np_random_seed[::2] == reference.np_random_seed[::2] == (7, 2)
        assert [one.integers(99) for one in envs.np_random] == [one.integers(99) for one in reference.np_random]


@reward_term
def clock(ram: Any) -> float:
    return float(ram.current_frame)


def same(one: Any, other: Any) -> bool:
    """Whether values have equal types, keys and elements."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (tuple, list)) or (isinstance(one, np.ndarray) and one.dtype == object):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    return bool(one == other)


@pytest.fixture(scope="module")
def envs() -> Iterator[Any]:
    """The tests that use it begin with a reset."""
    with closing(make(processes=2, action_mode="driving", max_episode_steps=3)) as envs:
        yield envs


def test_the_default_autoreset_is_gymnasiums_and_one_process_has_several_environments() -> None:
    envs: Any = gym.make_vec(NAME, num_envs=5, **SMALL)
    with closing(envs):
        assert envs.metadata["autoreset_mode"] is gym.vector.SyncVectorEnv([Still]).metadata["autoreset_mode"]
        assert envs.spec and envs.spec.kwargs["num_envs"] == 5
        assert envs.num_processes == min(5, len(psutil.Process().cpu_affinity()))
        observations, _ = envs.reset(options={"state": "Level2"})
        assert (observations == observations[0]).all(), "no random start, so all begin in the same way"
        assert envs.get_attr("states") == (["Level1"],) * 5
        with pytest.raises(KartRewardsError, match="Level9"):
            envs.reset(options={"state": "Level9"})
        assert np.array_equal(envs.reset(options={"state": "Level2"})[0], observations), "it goes on after an error"


class Still(gym.Env):
    observation_space = action_space = gym.spaces.Discrete(1)


def test_gymnasiums_wrappers_for_vector_environments_work() -> None:
    with closing(make(processes=2, action_mode="driving", max_episode_steps=3)) as envs:
        wrapped = vector_wrappers.RecordEpisodeStatistics(vector_wrappers.FlattenObservation(envs))
        assert wrapped.reset(seed=1)[0].shape == (NUM_ENVS, 4 * 12 * 12)
        returns = np.zeros(NUM_ENVS)
        for _ in range(3):
            _, rewards, _, truncations, infos = wrapped.step(np.array([0, 1, 2]))
            returns += rewards
        assert truncations.all()
        assert infos["episode"]["l"].tolist() == [3] * NUM_ENVS
        assert np.allclose(infos["episode"]["r"], returns)
        listed = vector_wrappers.DictInfoToList(envs).reset(seed=1)[1]
        assert [info["state"] for info in listed] == ["Level1"] * NUM_ENVS


def test_attributes_and_methods_of_environments_can_be_used(envs: Any) -> None:
    envs.reset(seed=1)
    assert envs.get_attr("frame_skip") == (4,) * NUM_ENVS
    assert envs.call("describe_drawing")[0] == "Frames that nobody sees are not drawn"
    envs.set_attr("sticky_actions", [0.0, 0.5, 0.25])
    assert envs.get_attr("sticky_actions") == (0.0, 0.5, 0.25)
    envs.set_attr("sticky_actions", 0.0)
    assert envs.get_attr("sticky_actions") == (0.0,) * NUM_ENVS
    with pytest.raises(AttributeError, match="no attribute 'wheels'"):
        envs.get_attr("wheels")
    with pytest.raises(KartRewardsError, match="the result of an environment can't be sent to the process that asked"):
        envs.get_attr("em")
    with pytest.raises(KartRewardsError, match="3 environments need as many values, not 2"):
        envs.set_attr("sticky_actions", [0.0, 0.5])


def test_arguments_that_are_not_valid_are_refused(envs: Any, tmp_path: Path) -> None:
    faults: list[tuple[dict[str, Any], str]] = [
        ({"process": 2}, "KartVectorEnv has no argument 'process'. Did you mean 'processes'?"),
        ({"frame_skp": 2}, "KartVectorEnv has no argument 'frame_skp'. Did you mean 'frame_skip'?"),
        ({"processes": 0}, "processes must be an integer, 1 or more, or None, not 0"),
        ({"num_envs": 0}, "num_envs must be an integer, 1 or more, not 0"),
        ({"mode": "NextStp"}, "unknown autoreset mode 'NextStp': it is one of NextStep, SameStep, Disabled. Did you"),
        ({"render_mode": "human"}, "render_mode='human' shows one environment: use gymnasium.make."),
        ({"frame_skip": 0}, "frame_skip must be an integer, 1 or more, not 0"),
        ({"env_wrappers": ["gymnasium.wrappers:Nothing"]}, "gymnasium.wrappers: has no function or class 'Nothing'"),
        ({"env_wrappers": [as_dict]}, "the observation space must be that of one array, such as Box or Discrete, not "),
    ]
    for options, message in faults:
        with pytest.raises(KartRewardsError) as raised:
            make(**options)
        assert str(raised.value).startswith(message)
    for refused in ({"wrappers": [EndsEarly]}, {"vector_kwargs": {"processes": 2}}):
        with pytest.raises(gym.error.Error, match=next(iter(refused))):
            make(**refused)
    for actions, message in (
        ([0, 1], r"the actions must have the shape \(3,\), with one action per environment, not \(2,\)"),
        ([0.0, 1.0, 0.5], "the actions must be of type int64, not float64"),
        ([0, 1, 9], "9"),
    ):
        envs.reset(seed=1)
        with pytest.raises(KartRewardsError, match=message):
            envs.step(np.array(actions))
    for keywords, message in (
        ({"seed": [1, 2]}, "3 environments need as many seeds, not 2"),
        ({"options": {"reset_mask": np.zeros(3, bool)}}, "reset_mask must be an array of type bool and shape"),
        ({"options": {"reset_mask": [True] * 3}}, "reset_mask must be an array of type bool and shape"),
    ):
        with pytest.raises(KartRewardsError, match=message):
            envs.reset(**keywords)


def as_dict(env: gym.Env) -> gym.Env:
    space = gym.spaces.Dict({"screen": env.observation_space})
    return gym.wrappers.TransformObservation(env, lambda observation: {"screen": observation}, space)


def test_no_process_is_left_after_close_or_without_it_and_a_closed_one_says_so() -> None:
    before = psutil.Process().children()
    envs = make(processes=2)
    with pytest.raises(gym.error.ResetNeeded):
        envs.step(envs.action_space.sample())
    assert len(psutil.Process().children()) >= len(before) + 2
    envs.close()
    assert {child.pid for child in psutil.Process().children()} <= {child.pid for child in before}
    with pytest.raises(gym.error.ClosedEnvironmentError):
        envs.reset()
    envs = make(processes=1)
    del envs
    assert {child.pid for child in psutil.Process().children()} <= {child.pid for child in before}


def test_after_ctrl_c_in_a_step_no_call_gets_the_results_of_the_step() -> None:
    with closing(make(num_envs=1, env_wrappers=[Interrupts])) as envs:
        envs.reset()
        with pytest.raises(KeyboardInterrupt):
            envs.step(envs.action_space.sample())
        with pytest.raises(gym.error.ClosedEnvironmentError, match="the call before was interrupted: make new ones"):
            envs.reset()


class Interrupts(gym.Wrapper):
    """Its step sends Ctrl-C to the process that waits for it."""

    def step(self, action: Any) -> Any:
        os.kill(os.getppid(), signal.SIGINT)
        time.sleep(1)
        return self.env.step(action)


def test_environments_that_can_not_share_an_emulator_have_a_process_each(capfd: pytest.CaptureFixture[str]) -> None:
    with closing(make(processes=1, num_envs=2, env_wrappers=[unshared])) as envs:
        assert envs.num_processes == 2
    assert f"{GAME}: each environment has a process of its own, because its clock is its own" in capfd.readouterr().out


def unshared(env: gym.Env) -> gym.Env:
    core: Any = env.unwrapped
    assert isinstance(core, KartEnv)
    core.sharing_fault = lambda: "its clock is its own"  # type: ignore[method-assign]
    return env
