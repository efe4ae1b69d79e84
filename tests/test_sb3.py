"""The environment with Stable-Baselines3, and its agents in ``kart-rewards watch`` and ``evaluate``."""

from __future__ import annotations

import inspect
import json
import os
import pickle
import runpy
import sys
from pathlib import Path
from typing import Any

import command_line
import forks
import gymnasium as gym
import imageio.v2 as imageio
import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor
from training_runs import COMMAND, run_here

from kart_rewards import KartEnv, KartRewardsError, ObservationConfig
from kart_rewards.env.actions import ACTION_MODES
from kart_rewards.training.sb3 import KartVecEnv

GAME = "HomebrewKart-Snes"
EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mode", ACTION_MODES)
def test_the_checker_passes(mode: str) -> None:
    env = KartEnv(GAME, action_mode=mode)
    try:
        check_env(env, skip_render_check=True)
    finally:
        env.close()


@pytest.mark.parametrize("mode", ["continuous", "driving", "multi-discrete"])
def test_its_ppo_trains(mode: str) -> None:
    env = KartEnv(GAME, action_mode=mode, observation=ObservationConfig(size=(36, 36)))
    try:
        model = PPO("CnnPolicy", env, n_steps=32, batch_size=32, n_epochs=1, seed=1)
        before = {name: value.clone() for name, value in model.policy.state_dict().items()}
        model.learn(64)
        assert model.num_timesteps == 64
        assert any((value != before[name]).any() for name, value in model.policy.state_dict().items())
    finally:
        env.close()


SMALL: dict[str, Any] = {"action_mode": "driving", "observation": ObservationConfig(size=(36, 36))}


def vec_env(cls: Any, **options: Any) -> Any:
    """Makes three environments with SB3's own function."""
    env_kwargs = SMALL | {"max_episode_steps": 4}
    return make_vec_env(f"kart_rewards:{GAME}", n_envs=3, seed=1, vec_env_cls=cls, env_kwargs=env_kwargs, **options)


def test_the_vec_env_gives_the_results_of_its_own() -> None:
    own, reference = vec_env(KartVecEnv, vec_env_kwargs={"processes": 2}), vec_env(DummyVecEnv)
    try:
        assert (own.observation_space, own.action_space) == (reference.observation_space, reference.action_space)
        options = [{"state": f"Level{level}"} for level in (1, 2, 3)]
        own.set_options(options)
        reference.set_options(options)
        assert np.array_equal(own.reset(), reference.reset())
        assert own.reset_infos == reference.reset_infos
        own.action_space.seed(1)
        for step in range(1, 10):
            actions = np.array([own.action_space.sample() for _ in range(3)])
            (*results, infos), (*expected, expected_infos) = own.step(actions), reference.step(actions)
            for result, wanted in zip(results, expected, strict=True):
                assert np.array_equal(result, wanted)
                assert result.dtype == wanted.dtype
            for info, expected_info in zip(infos, expected_infos, strict=True):
                assert info["TimeLimit.truncated"] == ("terminal_observation" in info) == (step % 4 == 0)
                for each in (info, expected_info):
                    each.get("episode", {}).pop("t", None)  # the time of day
                    each["terminal_observation"] = each.get("terminal_observation", np.zeros(0)).tolist()
                assert info == expected_info
            assert own.reset_infos == reference.reset_infos
        assert np.array_equal(own.render(), reference.render())
    finally:
        own.close()
        reference.close()


def test_its_ppo_trains_on_the_vec_env_within_its_monitor() -> None:
    envs = VecMonitor(KartVecEnv([lambda: gym.make(f"kart_rewards:{GAME}", max_episode_steps=4, **SMALL)] * 3))
    try:
        model = PPO("CnnPolicy", envs, n_steps=16, batch_size=48, n_epochs=1, seed=1)
        before = {name: value.clone() for name, value in model.policy.state_dict().items()}
        model.learn(48)
        assert any((value != before[name]).any() for name, value in model.policy.state_dict().items())
        assert [episode["l"] for episode in model.ep_info_buffer or ()] == [4] * 12
    finally:
        envs.close()


def test_attributes_methods_and_monitors_of_environments_of_the_vec_env(tmp_path: Path) -> None:
    envs = vec_env(KartVecEnv, monitor_dir=str(tmp_path), vec_env_kwargs={"processes": 2})
    try:
        assert envs.env_is_wrapped(Monitor) == [True] * 3
        assert envs.env_is_wrapped(DummyVecEnv, indices=1) == [False]
        envs.set_attr("sticky_actions", 0.5, indices=[0, 2])
        assert envs.get_attr("sticky_actions") == [0.5, 0.0, 0.5]
        assert envs.get_attr("sticky_actions", indices=[1, 0]) == [0.0, 0.5]
        assert envs.env_method("get_wrapper_attr", "frame_skip", indices=2) == [4]
        assert envs.env_method("get_wrapper_attr", name="frame_skip") == [4, 4, 4]
        assert envs.has_attr("frame_skip")
        assert not envs.has_attr("wheels")
        with pytest.raises(
            KartRewardsError, match="describe_drawing is a method of the environments, not an attribute"
        ):
            envs.get_attr("describe_drawing")
        with pytest.raises(IndexError, match="there is no environment 3: there are 3, and the first one is 0"):
            envs.get_attr("frame_skip", indices=3)
        envs.reset()
        for _ in range(4):
            envs.step(np.zeros(3, int))
        with pytest.raises(KartRewardsError, match="the actions must have the shape"):
            envs.step(np.zeros(2, int))
    finally:
        envs.close()
    rows = [(tmp_path / f"{i}.monitor.csv").read_text().splitlines() for i in range(3)]
    assert [[line.split(",")[1] for line in lines[1:]] for lines in rows] == [["l", "4"]] * 3, "of one episode each"


def test_its_absence_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "stable_baselines3.common.env_util", None)
    with pytest.raises(
        ImportError, match=r"kart_rewards\.training\.sb3 needs Stable-Baselines3: pip install stable-base"
    ):
        runpy.run_path(inspect.getfile(KartVecEnv))


@pytest.mark.slow
def test_rl_zoo_trains_on_the_vec_env(tmp_path: Path) -> None:
    (tmp_path / "ppo.yml").write_text(
        f"{GAME}:\n  {{policy: CnnPolicy, n_timesteps: 32, n_envs: 2, n_steps: 16, batch_size: 32, n_epochs: 1}}\n"
    )
    (tmp_path / "zoo.py").write_text(
        "from rl_zoo3.exp_manager import ExperimentManager\n"
        "from rl_zoo3.train import train\n"
        "from kart_rewards.training.sb3 import KartVecEnv\n"
        "ExperimentManager.default_vec_env_cls = KartVecEnv\n"
        "train()\n"
    )
    options = ["--env", GAME, "--gym-packages", "kart_rewards", "-conf", "ppo.yml", "--device", "cpu", "--seed", "1"]
    done = forks.run([sys.executable, "zoo.py", *options], forks.TRAINING, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    logs = tmp_path / "logs" / "ppo" / f"{GAME}_1"
    assert {path.name for path in logs.glob("*.*")} >= {f"{GAME}.zip", "0.monitor.csv", "1.monitor.csv"}


def test_an_environment_can_be_pickled() -> None:
    env = KartEnv(GAME, action_mode="driving", frame_skip=2, rewards=["kart_rewards.rewards"])
    copied = pickle.dumps(env)
    first = env.reset(seed=3)[0]
    env.close()
    again = pickle.loads(copied)  # noqa: S301 - pickled above
    try:
        assert np.array_equal(again.reset(seed=3)[0], first)
        assert again.frame_skip == 2
    finally:
        again.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An agent that the example has trained for two rollouts."""
    path = tmp_path_factory.mktemp("sb3") / "model.zip"
    run_here(EXAMPLES / "sb3_agent.py", path, "--timesteps", 256)
    return path


def test_its_agent_can_be_watched(model: Path, tmp_path: Path) -> None:
    video, loader = tmp_path / "drive.mp4", f"{EXAMPLES / 'sb3_agent.py'}:load_agent"
    done = run_here(COMMAND, "watch", model, "--loader", loader, "--output", video, "--seconds", "1", "--scale", "1")
    assert "Level1, seed 1: 0 laps, ended by the time limit, return " in done.stdout
    frames = [np.asarray(frame, int) for frame in imageio.get_reader(video).iter_data()]
    assert len(frames) == 60 + 90, "one second, and the last picture for a second and a half more"
    assert np.abs(frames[59][:, :256] - frames[0][:, :256]).mean() > 1, "the kart drives"


@pytest.mark.slow
def test_its_agent_can_be_evaluated(model: Path, tmp_path: Path) -> None:
    (tmp_path / "short.py").write_text(
        "import dataclasses\n"
        "import sb3_agent\n"
        "def load_agent(path):\n"
        "    return dataclasses.replace(sb3_agent.load_agent(path), max_episode_frames=240)\n"
    )
    done = command_line.run(
        "evaluate",
        model,
        *("--loader", "short:load_agent", "--eval-episodes", "2", "--eval-states", "Level2"),
        folder=tmp_path,
        environment={"PYTHONPATH": os.pathsep.join([str(EXAMPLES), str(EXAMPLES.parent)])},
        modules=forks.TRAINING,
    )
    assert done.returncode == 0, done.stderr
    assert f"{model}: HomebrewKart-Snes, 256 steps with seed 1" in done.stdout
    report: dict[str, Any] = json.loads((model.parent / "evaluation.json").read_text())
    [agent] = report["agents"]
    assert list(agent["summary"]) == ["Level2"]
    played: dict[str, list[Any]] = {}
    for episode in agent["episodes"]:
        played.setdefault(episode["policy"], []).append(episode)
    assert list(played) == ["agent, deterministic", "agent, sampled", "random", "full-throttle", "reference"]
    assert [episode["length_steps"] for episode in played["agent, sampled"]] == [60, 60]
    sums = [[episode["reward_sums"] for episode in played[f"agent, {way}"]] for way in ("deterministic", "sampled")]
    assert sums[0] != sums[1], "sampled actions differ from the most probable ones"


def test_a_file_that_is_not_its_agent_is_reported(tmp_path: Path) -> None:
    (tmp_path / "model.zip").write_text("nothing")
    loader = f"{EXAMPLES / 'sb3_agent.py'}:load_agent"
    done = command_line.run("watch", "model.zip", "--loader", loader, "--output", "drive.mp4", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: model.zip: {loader} can't load this agent: it raised ValueError: ")
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["model.zip"]
