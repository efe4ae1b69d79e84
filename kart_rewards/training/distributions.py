"""Distributions that PyTorch does not have.

* ``MultiCategorical`` - several independent categorical choices
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Categorical


class MultiCategorical:
    """Independent categorical choices, one for each entry of a ``MultiDiscrete`` action.

    Args:
        logits: Unnormalised log-probabilities of all choices, float32, shape (batch, sum of sizes).
        sizes: How many options each choice has.
    """

    def __init__(self, logits: Tensor, sizes: list[int]) -> None:
        self.parts = [Categorical(logits=part) for part in logits.split(sizes, dim=-1)]

    def sample(self) -> Tensor:
        """Returns random actions, int64, shape (batch, number of choices)."""
        return torch.stack([part.sample() for part in self.parts], dim=-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """Returns the log-probability of each action, shape (batch,)."""
        chosen = action.unbind(dim=-1)
        return torch.stack([part.log_prob(choice) for part, choice in zip(self.parts, chosen, strict=True)]).sum(0)

    def entropy(self) -> Tensor:
        """Returns the entropy of the joint distribution, shape (batch,)."""
        return torch.stack([part.entropy() for part in self.parts]).sum(0)

    @property
    def mode(self) -> Tensor:
        """The most probable actions, int64, shape (batch, number of choices)."""
        return torch.stack([part.mode for part in self.parts], dim=-1)
