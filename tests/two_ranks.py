"""One PPO update on a rank's part of a rollout; test_ranks.py starts it under torchrun and alone.

two_ranks.py OUT_FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch

import ppo_continuous_single_file as ppo

STEPS, ENVS = 12, 4
OPTIONS = ppo.PPOOptions(
    num_envs=ENVS, num_steps=STEPS, num_minibatches=3, update_epochs=2, learning_rate=1e-2, target_kl=1e9
)
IMAGES = gym.spaces.Box(0, 255, (1, 36, 36), np.uint8)


def rollout() -> tuple[ppo.Rollout, torch.Tensor, torch.Tensor]:
    """A made-up rollout of all environments, advantages and returns; ``observations`` (STEPS, ENVS, ...)."""
    generator = torch.Generator().manual_seed(5)
    shape = (STEPS, ENVS)

    def random(*extra: int) -> torch.Tensor:
        return torch.randn(*shape, *extra, generator=generator)

    made = ppo.Rollout(
        observations=torch.randint(0, 255, (*shape, *IMAGES.shape), generator=generator, dtype=torch.uint8),
        actions=random(2),
        log_probs=-2.0 + 0.1 * random(),
        rewards=random(),
        dones=torch.zeros(shape),
        values=random(),
        next_observation=torch.zeros(ENVS, *IMAGES.shape, dtype=torch.uint8),
        next_done=torch.zeros(ENVS),
    )
    return made, 3.0 * random() + torch.arange(ENVS), random()


def part(tensor: torch.Tensor, ranks: ppo.Ranks) -> torch.Tensor:
    """A rank's environments."""
    share = ENVS // ranks.world_size
    return tensor[:, ranks.rank * share : (ranks.rank + 1) * share]


def main() -> None:
    ranks = ppo.Ranks.of_torchrun()
    with ppo.joined(ranks, torch.device("cpu")):
        whole, advantages, returns = rollout()
        names = ("observations", "actions", "log_probs", "rewards", "dones", "values")
        mine = ppo.Rollout(
            **{name: part(getattr(whole, name), ranks) for name in names},
            next_observation=whole.next_observation,
            next_done=whole.next_done,
        )
        torch.manual_seed(1)
        agent = ppo.Agent(IMAGES, gym.spaces.Box(-1, 1, (2,), np.float32))
        optimizer = torch.optim.Adam(agent.parameters(), lr=OPTIONS.learning_rate)
        torch.manual_seed(2)
        if ranks.world_size == 1:
            torch.randperm = of_two_ranks
        losses = ppo.update(agent, optimizer, mine, part(advantages, ranks), part(returns, ranks), OPTIONS, ranks)
    torch.save({"agent": agent.state_dict(), "losses": losses}, Path(sys.argv[1]) / f"{ranks.world_size}-{ranks.rank}")


def of_two_ranks(count: int, device: torch.device, draw: object = torch.randperm) -> torch.Tensor:
    """The order in which one process sees what two ranks see, minibatch by minibatch, when both draw the same order."""
    local = draw(count // 2)  # type: ignore[operator]
    step, env = local // (ENVS // 2), local % (ENVS // 2)
    of_ranks = [step * ENVS + env + rank * (ENVS // 2) for rank in (0, 1)]
    size = OPTIONS.minibatch_size // 2
    return torch.cat([part for pair in zip(*(each.split(size) for each in of_ranks), strict=True) for part in pair])


if __name__ == "__main__":
    main()
