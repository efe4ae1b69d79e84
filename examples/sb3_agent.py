"""Stable-Baselines3 on HomebrewKart: trains an agent with its PPO, and loads it to be watched and evaluated.

    python examples/sb3_agent.py model.zip --timesteps 200000
    kart-rewards watch model.zip --loader examples/sb3_agent.py:load_agent
    kart-rewards evaluate model.zip --loader examples/sb3_agent.py:load_agent

It needs Stable-Baselines3: pip install stable-baselines3
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from stable_baselines3 import PPO

from kart_rewards import KartEnv, KartRewardsError, ObservationConfig, make_env
from kart_rewards.evaluation import Policy, TrainedAgent

ENV_OPTIONS: dict[str, Any] = {
    "game": "HomebrewKart-Snes",
    "state": ("Level1",),
    "action_mode": "driving",
    "observation": ObservationConfig(),
}


def train(path: Annotated[Path, tyro.conf.Positional], /, timesteps: int = 200_000, seed: int = 1) -> None:
    """Trains an agent with Stable-Baselines3's PPO, and saves it.

    Args:
        path: The file to write, such as model.zip.
        timesteps: Agent steps of the training.
        seed: Seed of the training.
    """
    env = make_env(**ENV_OPTIONS)
    model = PPO("CnnPolicy", env, n_steps=128, batch_size=64, n_epochs=4, seed=seed, verbose=1)
    model.learn(timesteps)
    model.save(path)
    env.close()


@functools.cache  # one model per process plays all its episodes
def load_model(path: Path) -> PPO:
    """Loads a model that ``train`` saved."""
    torch.set_num_threads(1)  # several processes play at the same time
    return PPO.load(path, device="cpu")


def make_policy(path: Path, deterministic: bool, env: KartEnv, state: str, seed: int) -> Policy:
    """Makes the policy of one episode: a function of environment and observation that returns an action."""
    model = load_model(path)
    model.set_random_seed(seed)

    def policy(env: KartEnv, observation: np.ndarray) -> Any:
        return model.predict(observation, deterministic=deterministic)[0]

    return policy


def load_agent(path: Path) -> TrainedAgent:
    """Loads an agent for ``kart-rewards watch`` and ``kart-rewards evaluate``."""
    model = load_model(path)
    return TrainedAgent(
        path=path,
        # A partial function can be pickled: each worker process of an evaluation loads the model itself.
        make_policy=lambda deterministic: functools.partial(make_policy, path, deterministic),
        env_options=ENV_OPTIONS,
        seed=model.seed,
        steps=model.num_timesteps,
    )


if __name__ == "__main__":
    try:
        tyro.cli(train)
    except KartRewardsError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
