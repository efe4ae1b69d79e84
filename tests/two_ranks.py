"""One PPO update on a rank's part of a rollout, and what ranks compute together.

``test_ranks.py`` starts it as two ranks and alone: two_ranks.py OUT_FOLDER. Each process writes a file there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

import ppo_continuous_single_file as ppo
from kart_rewards.errors import KartRewardsError
from kart_rewards.training.ranks import Ranks, joined

STEPS, ENVS = 12, 4
OPTIONS = ppo.PPOOptions(
    num_envs=ENVS, num_steps=STEPS, num_minibatches=3, update_epochs=2, learning_rate=1e-2, target_kl=1e9
)
IMAGES = gym.spaces.Box(0, 255, (1, 36, 36), np.uint8)


def rollout() -> tuple[ppo.Rollout, torch.Tensor, torch.Tensor]:
    """Returns an invented rollout of all environments, its advantages and its returns."""
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


def part(tensor: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """Returns the part of a rank's environments."""
    share = ENVS // ranks.world_size
    return tensor[:, ranks.rank * share : (ranks.rank + 1) * share]


def main() -> None:
    ranks = Ranks.from_torchrun()
    with joined(ranks, torch.device("cpu")):
        complete, advantages, returns = rollout()
        names = ("observations", "actions", "log_probs", "rewards", "dones", "values")
        mine = ppo.Rollout(
            **{name: part(getattr(complete, name), ranks) for name in names},
            next_observation=complete.next_observation,
            next_done=complete.next_done,
        )
        torch.manual_seed(1)
        agent = ppo.Agent(IMAGES, gym.spaces.Box(-1, 1, (2,), np.float32))
        optimizer = torch.optim.Adam(agent.parameters(), lr=OPTIONS.learning_rate)
        torch.manual_seed(2)
        if ranks.world_size == 1:
            torch.randperm = of_two_ranks  # type: ignore[assignment]
        losses = ppo.update(agent, optimizer, mine, part(advantages, ranks), part(returns, ranks), OPTIONS, ranks)
        results = {"agent": agent.state_dict(), "losses": losses, **together(ranks)}
    torch.save(results, Path(sys.argv[1]) / f"{ranks.world_size}-{ranks.rank}")


def together(ranks: Ranks) -> dict[str, Any]:
    """Returns the results of each method of ``Ranks`` that needs all ranks."""
    numbers = torch.tensor([1.0, 10.0]) * (ranks.rank + 1)
    torch.manual_seed(ranks.rank)
    layer = torch.nn.Linear(2, 1)
    ranks.agree(layer, steps=7)
    layer.weight.grad = numbers[None].clone()
    layer.bias.grad = None
    ranks.average_gradients(layer.parameters())
    try:
        ranks.agree(layer, steps=ranks.rank)
        refused = ""
    except KartRewardsError as error:
        refused = str(error)
    return {
        "gathered": ranks.gather({"rank": ranks.rank}),
        "mean": ranks.mean(numbers),
        "numbers": numbers,
        "weight": layer.weight.detach(),
        "gradient": layer.weight.grad,
        "refused": refused,
    }


def of_two_ranks(
    count: int, device: torch.device, permutation: Callable[..., torch.Tensor] = torch.randperm
) -> torch.Tensor:
    """Returns an order by which one process has the same minibatches as two ranks, which both use the same order."""
    local = permutation(count // 2)
    step, env = local // (ENVS // 2), local % (ENVS // 2)
    of_ranks = [step * ENVS + env + rank * (ENVS // 2) for rank in (0, 1)]
    size = OPTIONS.minibatch_size // 2
    return torch.cat([part for pair in zip(*(each.split(size) for each in of_ranks), strict=True) for part in pair])


if __name__ == "__main__":
    main()
