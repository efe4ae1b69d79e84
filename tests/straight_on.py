"""A loader of agents without a network: they drive straight on. For tests of the commands that load agents.

An agent's file holds JSON: arguments of ``TrainedAgent``.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

from kart_rewards.env import KartEnv
from kart_rewards.evaluation import Policy, TrainedAgent

LOADER = "straight_on:load_agent"
ENVIRONMENT = {"PYTHONPATH": str(Path(__file__).parent)}
"""Where a command finds the loader."""


def save_agent(path: Path, **arguments: Any) -> Path:
    """Writes an agent's file. Episodes are truncated after two seconds, unless the arguments say otherwise."""
    options = {"game": "HomebrewKart-Snes", "action_mode": "all"}
    path.write_text(json.dumps({"env_options": options, "max_episode_frames": 120, **arguments}))
    return path


def make_policy(deterministic: bool, env: KartEnv, state: str, seed: int) -> Policy:
    """Holds the throttle. A sampled policy holds it in a fifth of the steps."""
    rng = np.random.default_rng(seed)

    def policy(env: KartEnv, observation: np.ndarray) -> list[bool]:
        throttle = deterministic or rng.random() < 0.2
        return [throttle and button == "B" for button in env.buttons]

    return policy


def load_agent(path: Path) -> TrainedAgent:
    """Loads an agent that ``save_agent`` wrote."""
    return TrainedAgent(
        path, lambda deterministic: functools.partial(make_policy, deterministic), **json.loads(path.read_text())
    )


def load_nothing(path: Path) -> dict[str, Any]:
    """A loader that does not return an agent."""
    return {}
