from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Categorical

from kart_rewards.training.distributions import MultiCategorical

PROBABILITIES = torch.tensor([[0.5, 0.5, 0.1, 0.2, 0.7], [0.9, 0.1, 0.25, 0.5, 0.25]])
SIZES = [2, 3]


def distribution(shift: float = 0.0) -> MultiCategorical:
    return MultiCategorical(PROBABILITIES.log() + shift, SIZES)


def test_log_probabilities_of_the_choices_add_up() -> None:
    log_probs = distribution().log_prob(torch.tensor([[1, 2], [0, 0]]))
    assert log_probs.tolist() == pytest.approx([math.log(0.5 * 0.7), math.log(0.9 * 0.25)])


def test_entropies_of_the_choices_add_up() -> None:
    def entropy(*probabilities: float) -> float:
        return -sum(p * math.log(p) for p in probabilities)

    assert distribution().entropy().tolist() == pytest.approx(
        [entropy(0.5, 0.5) + entropy(0.1, 0.2, 0.7), entropy(0.9, 0.1) + entropy(0.25, 0.5, 0.25)]
    )


def test_logits_need_not_be_normalised() -> None:
    action = torch.tensor([[1, 2], [0, 0]])
    assert torch.allclose(distribution(shift=3.0).log_prob(action), distribution().log_prob(action))


def test_the_mode_is_the_most_probable_choice_of_each() -> None:
    mode = MultiCategorical(torch.tensor([[0.0, 1.0, 5.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0, 5.0]]), SIZES).mode
    assert mode.dtype == torch.int64
    assert mode.tolist() == [[1, 0], [0, 2]]


def test_samples_are_as_frequent_as_they_are_probable() -> None:
    torch.manual_seed(1)
    samples = torch.stack([distribution().sample() for _ in range(2000)])
    assert samples.dtype == torch.int64
    assert samples.shape == (2000, 2, 2)
    for row in (0, 1):
        for choice, part in enumerate(PROBABILITIES[row].split(SIZES)):
            rates = torch.bincount(samples[:, row, choice], minlength=len(part)) / 2000
            assert torch.allclose(rates, part, atol=0.04)


def test_the_choices_are_independent() -> None:
    torch.manual_seed(1)
    logits = torch.zeros(1, 4)
    samples = torch.stack([MultiCategorical(logits, [2, 2]).sample()[0] for _ in range(2000)])
    assert (samples[:, 0] == samples[:, 1]).float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_one_choice_is_pytorchs_own_distribution() -> None:
    logits, action = torch.randn(4, 5), torch.tensor([0, 4, 2, 1])
    alone, wrapped = Categorical(logits=logits), MultiCategorical(logits, [5])
    assert torch.equal(wrapped.log_prob(action[:, None]), alone.log_prob(action))
    assert torch.equal(wrapped.entropy(), alone.entropy())
    assert torch.equal(wrapped.mode[:, 0], alone.mode)
