"""The environment with Stable-Baselines3, and its agents in ``kart-rewards watch`` and ``evaluate``."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import command_line
import forks
import imageio.v2 as imageio
import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env
from training_runs import run_here

from kart_rewards import KartEnv, ObservationConfig
from kart_rewards.env.actions import ACTION_MODES

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
        model = PPO("CnnPolicy", env, n_steps=128, batch_size=64, n_epochs=1, seed=1)
        before = {name: value.clone() for name, value in model.policy.state_dict().items()}
        model.learn(256)
        assert model.num_timesteps == 256
        assert any((value != before[name]).any() for name, value in model.policy.state_dict().items())
    finally:
        env.close()


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
    done = command_line.run(
        *("watch", model, "--loader", loader, "--output", video, "--seconds", "1", "--scale", "1"),
        folder=tmp_path,
        modules=forks.TRAINING,
    )
    assert done.returncode == 0, done.stderr
    assert "Level1, seed 1: 0 laps, ended by the time limit, return " in done.stdout
    frames = [np.asarray(frame, int) for frame in imageio.get_reader(video).iter_data()]
    assert len(frames) == 60 + 90, "one second, and the last picture for a second and a half more"
    assert np.abs(frames[59][:, :256] - frames[0][:, :256]).mean() > 1, "the kart drives"


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
