"""Several processes that train one agent together, started by torchrun.

* ``Ranks`` - this process among all, and what they compute together
* ``joined`` - connects them
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from kart_rewards.errors import KartRewardsError
from kart_rewards.training.processes import processor_count


@dataclass(frozen=True)
class Ranks:
    """The processes that train one agent together under torchrun. Each has an equal share of the environments.

    A run without torchrun is rank 0 of 1. Then every method returns what it was given.

    Args:
        rank: This process's number among all processes of all machines. It decides seeds; rank 0 logs and saves.
        world_size: How many processes there are.
        local_rank: This process's number on its machine. It decides the GPU.
        local_world_size: How many processes there are on its machine.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @classmethod
    def from_torchrun(cls) -> Ranks:
        """Reads the environment variables that torchrun sets: RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE."""
        return cls(**{item.name: int(os.environ.get(item.name.upper(), str(item.default))) for item in fields(cls)})

    def check_shares(self, totals: Mapping[str, int]) -> None:
        """Checks that the ranks can share the work equally.

        Args:
            totals: What is shared -> how much of it there is over all ranks.

        Raises:
            KartRewardsError: A total is not a multiple of the number of ranks.
        """
        for name, total in totals.items():
            if total % self.world_size:
                raise KartRewardsError(
                    f"{name}, {total}, can't be shared equally by {self.world_size} processes: change --num-envs, "
                    "--num-steps or --num-minibatches"
                )

    def processors(self) -> int:
        """Returns how many processor cores this rank has."""
        return max(processor_count() // self.local_world_size, 1)

    def share(self, total: int) -> int:
        """Returns this rank's part of a total over all ranks."""
        return total // self.world_size

    def mean(self, tensor: Tensor) -> Tensor:
        """Returns the mean over the ranks, the same on each."""
        if self.world_size > 1:
            tensor = tensor.clone()
            with _explaining_lost_ranks():
                torch.distributed.all_reduce(tensor)
            tensor /= self.world_size
        return tensor

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces each gradient by its mean over the ranks."""
        if self.world_size > 1:
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            mean = self.mean(torch.cat([gradient.flatten() for gradient in gradients]))
            for gradient, part in zip(gradients, mean.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def gather(self, item: Any) -> list[Any]:
        """Returns the items of all ranks, in the order of the ranks, on every rank."""
        items = [item]
        if self.world_size > 1:
            items = [None] * self.world_size
            with _explaining_lost_ranks():
                torch.distributed.all_gather_object(items, item)
        return items

    def agree(self, agent: nn.Module, steps: int) -> None:
        """Gives every rank the weights of rank 0: on different processors the same seed may give different weights.

        Raises:
            KartRewardsError: The ranks have not done the same number of steps.
        """
        if len(set(self.gather(steps))) > 1:
            raise KartRewardsError("the ranks are at different steps: every machine needs the checkpoint to resume")
        if self.world_size > 1:
            for parameter in agent.parameters():
                torch.distributed.broadcast(parameter.data, 0)


@contextmanager
def _explaining_lost_ranks() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise KartRewardsError(f"another process of this run has ended; its own message says why ({reason})") from None


@contextmanager
def joined(ranks: Ranks, device: torch.device) -> Iterator[None]:
    """Connects this process with the other ranks, if there are any, for the body of the ``with`` statement."""
    if ranks.world_size == 1:
        yield
        return
    # The ranks wait while rank 0 evaluates. A rank that dies is detected by its closed connection, or by torchrun.
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(days=1))
    yield
    torch.distributed.destroy_process_group()  # after an error this could wait for ranks that wait for this one
