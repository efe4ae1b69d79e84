"""The environment under Stable-Baselines3, as many users will first meet it."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env

from kart_rewards import KartEnv, ObservationConfig
from kart_rewards.env.actions import ACTION_MODES

GAME = "HomebrewKart-Snes"


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
