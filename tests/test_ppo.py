"""The training script: its stages in small cases, and the complete script through its command line."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from training_runs import (
    GAME,
    RESUME,
    ROOT,
    SMALL,
    TrainedRun,
    assert_refused,
    only_run,
    scalars,
    train_here,
)

import ppo_continuous_single_file as ppo
from kart_rewards.errors import KartRewardsError
from kart_rewards.evaluation.in_training import TorchPolicy
from kart_rewards.integrations import INTEGRATIONS
from kart_rewards.training.checkpoints import Checkpoint
from kart_rewards.training.ranks import Ranks
from kart_rewards.training.run import DivergedError, EndedEpisode
from kart_rewards.training.timing import Stopwatch
from kart_rewards.training.vector import EnvGroups

IMAGES = gym.spaces.Box(0, 255, (1, 36, 36), np.uint8)
COLOURS = gym.spaces.Box(0, 255, (36, 40, 3), np.uint8)
TWO_ACTIONS = gym.spaces.Discrete(2)


class Counter(gym.Env):
    """Shows the number of steps taken, pays ``reward``, and ends an episode after ``length`` steps."""

    def __init__(self, length: int, reward: float = 0.0, truncates: bool = False) -> None:
        self.observation_space = IMAGES
        self.action_space = TWO_ACTIONS
        self.length, self.reward, self.truncates = length, reward, truncates

    def reset(self, **_: Any) -> tuple[np.ndarray, dict[str, Any]]:
        self.steps = 0
        return self.observation(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        ended = self.steps == self.length
        return self.observation(), self.reward, ended and not self.truncates, ended and self.truncates, {}

    def observation(self) -> np.ndarray:
        return np.full(IMAGES.shape, self.steps, np.uint8)


class ValueIsBrightness(ppo.Agent):
    """An agent whose value of an observation is its first pixel."""

    def get_value(self, observation: torch.Tensor) -> torch.Tensor:
        return observation.flatten(1)[:, 0].float()


def play(*envs: gym.Env, num_steps: int, agent: ppo.Agent | None = None, groups: int = 1) -> ppo.Rollout:
    """Plays a rollout with a discount factor of 0.5."""
    with closing(EnvGroups([partial(_itself, env) for env in envs], groups)) as env_groups:
        rollout = ppo.Rollout.empty(env_groups, num_steps, torch.device("cpu"))
        rollout.next_observation = torch.as_tensor(env_groups.reset(seed=1))
        agent = agent or ValueIsBrightness(env_groups.single_observation_space, env_groups.single_action_space)
        ppo.collect(agent, env_groups, rollout, 0.5, Stopwatch())
    return rollout


def _itself(env: gym.Env) -> gym.Env:
    return env


# ------------------------------------------------------------------------------------------------------------- rollout
def test_a_truncated_episode_is_paid_the_value_of_its_real_final_observation() -> None:
    rollout = play(Counter(length=3, reward=1.0, truncates=True), num_steps=7)
    bootstrapped = 1.0 + 0.5 * 3  # the final observation shows 3, the one after the reset 0
    assert rollout.rewards[:, 0].tolist() == [1, 1, bootstrapped, 1, 1, bootstrapped, 1]
    assert rollout.dones[:, 0].tolist() == [0, 0, 0, 1, 0, 0, 1]


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_each_environment_is_paid_for_its_own_final_observation(groups: int) -> None:
    """The length of an environment's episodes is what its final observation shows."""
    lengths, steps = (2, 3, 4, 5, 7), 8
    envs = [Counter(length, reward=length, truncates=True) for length in lengths]
    rewards = play(*envs, num_steps=steps, groups=groups).rewards
    for env, length in enumerate(lengths):
        ends = [(step + 1) % length == 0 for step in range(steps)]
        assert rewards[:, env].tolist() == [length + 0.5 * length * end for end in ends], f"environment {env}"


def test_a_terminated_episode_is_paid_nothing_more() -> None:
    rollout = play(Counter(length=3, reward=1.0), num_steps=7)
    assert rollout.rewards[:, 0].tolist() == [1] * 7


def test_an_episode_that_terminates_at_the_step_limit_is_paid_nothing_more() -> None:
    class Both(Counter):
        def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
            observation, reward, ended, _, info = super().step(action)
            return observation, reward, ended, ended, info

    assert play(Both(length=3, reward=1.0), num_steps=4).rewards[:, 0].tolist() == [1] * 4


def test_autoreset_wastes_no_step() -> None:
    rollout = play(Counter(length=3), num_steps=7)
    assert rollout.observations[:, 0, 0, 0, 0].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert rollout.next_observation[0, 0, 0, 0] == 1


def test_each_environment_gets_the_action_that_is_recorded_for_it() -> None:
    class PaysTheAction(Counter):
        def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
            observation, _, terminated, truncated, info = super().step(action)
            return observation, float(action), terminated, truncated, info

    torch.manual_seed(1)
    rollout = play(*[PaysTheAction(length=99) for _ in range(5)], num_steps=8, groups=2)
    assert torch.equal(rollout.rewards, rollout.actions.float())
    assert 0 < rollout.rewards.mean() < 1


def test_collect_returns_the_last_info_of_each_episode_that_ended() -> None:
    class NamesItself(Counter):
        def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
            observation, reward, terminated, truncated, _ = super().step(action)
            return observation, reward, terminated, truncated, {"length": self.length, "steps": self.steps}

    with closing(EnvGroups([partial(NamesItself, length) for length in (3, 4)], groups=2)) as envs:
        rollout = ppo.Rollout.empty(envs, 7, torch.device("cpu"))
        rollout.next_observation = torch.as_tensor(envs.reset(seed=1))
        stopwatch = Stopwatch()
        agent = ppo.Agent(IMAGES, TWO_ACTIONS)
        ended = ppo.collect(agent, envs, rollout, 0.5, stopwatch)
    assert ended == [
        EndedEpisode(step=2, env=0, info={"length": 3, "steps": 3}),
        EndedEpisode(step=3, env=1, info={"length": 4, "steps": 4}),
        EndedEpisode(step=5, env=0, info={"length": 3, "steps": 3}),
    ]
    assert list(stopwatch.seconds) == ["policy"]


# ---------------------------------------------------------------------------------------------------------- advantages
def test_gae_against_the_sums_it_stands_for() -> None:
    generator = torch.Generator().manual_seed(1)
    steps, gamma, gae_lambda = 12, 0.9, 0.8
    rollout = play(Counter(length=99), num_steps=steps)
    rollout.rewards = torch.randn(steps, 1, generator=generator)
    rollout.values = torch.randn(steps, 1, generator=generator)
    rollout.dones = torch.zeros(steps, 1)
    rollout.dones[5] = 1.0
    rollout.next_done = torch.zeros(1)
    next_value = torch.randn(1, generator=generator)
    advantages, returns = ppo.gae(rollout, next_value, gamma, gae_lambda)

    values = [*rollout.values[:, 0].tolist(), next_value.item()]
    rewards = rollout.rewards[:, 0].tolist()
    for start in range(steps):
        end = 5 if start < 5 else steps  # the episode's last step, plus one
        expected = 0.0
        for t in range(start, end):
            following = 0.0 if t == 4 else values[t + 1]
            expected += (gamma * gae_lambda) ** (t - start) * (rewards[t] + gamma * following - values[t])
        assert advantages[start, 0].item() == pytest.approx(expected, abs=1e-5)
    assert torch.allclose(returns, advantages + rollout.values)


def test_the_value_after_a_rollout_counts_only_where_the_episode_goes_on() -> None:
    rollout = play(Counter(length=99), Counter(length=99), num_steps=2)
    rollout.rewards = torch.tensor([[1.0, 1.0], [2.0, 2.0]])
    rollout.values = torch.tensor([[3.0, 3.0], [5.0, 5.0]])
    rollout.dones = torch.zeros(2, 2)
    rollout.next_done = torch.tensor([1.0, 0.0])
    advantages, returns = ppo.gae(rollout, torch.tensor([100.0, 100.0]), gamma=0.5, gae_lambda=0.5)
    last = [2 - 5.0, 2 + 0.5 * 100 - 5.0]
    first = [1 + 0.5 * 5 - 3 + 0.5 * 0.5 * delta for delta in last]
    assert advantages.tolist() == [first, last]
    assert torch.equal(returns, advantages + rollout.values)


# --------------------------------------------------------------------------------------------------------------- agent
SPACES = [
    gym.spaces.Box(-1, 1, (1,), np.float32),
    gym.spaces.Box(-1, 1, (3,), np.float32),
    gym.spaces.Discrete(4),
    gym.spaces.MultiDiscrete([3, 3, 13, 4]),
    gym.spaces.MultiBinary(12),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_every_action_space_has_its_head(space: gym.Space) -> None:
    torch.manual_seed(1)
    agent = ppo.Agent(IMAGES, space)
    observation = torch.zeros(7, *IMAGES.shape, dtype=torch.uint8)
    action, log_prob, entropy, value = agent.get_action_and_value(observation)
    assert action.shape == (7, *(space.shape or ()))
    assert log_prob.shape == entropy.shape == value.shape == (7,)
    again = agent.get_action_and_value(observation, action)
    assert torch.equal(again[1], log_prob)
    if not isinstance(space, gym.spaces.Box):
        assert all(choice.astype(space.dtype) in space for choice in action.numpy())


@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.Text(3),
        gym.spaces.Discrete(3, start=1),
        gym.spaces.MultiDiscrete([3, 3], start=[0, 1]),
        gym.spaces.Box(-1, 1, (2, 2), np.float32),
        gym.spaces.Box(-1, 1, (), np.float32),
    ],
    ids=str,
)
def test_an_action_space_without_a_head_is_refused(space: gym.Space) -> None:
    with pytest.raises(KartRewardsError, match="no head for the action space"):
        ppo.Agent(IMAGES, space)


@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.Box(0, 1, (4, 84, 84), np.float32),  # rollouts would keep its numbers as 0
        gym.spaces.Box(0, 255, (84 * 84,), np.uint8),
        gym.spaces.Box(0, 255, (4, 84, 84, 1), np.uint8),
        gym.spaces.Dict({"image": IMAGES}),
    ],
    ids=str,
)
def test_observations_that_are_not_images_are_refused(space: gym.Space) -> None:
    with pytest.raises(KartRewardsError, match="observations must be uint8 images, or stacks of them, not "):
        ppo.Agent(space, TWO_ACTIONS)


@pytest.mark.parametrize(
    ("height", "width", "fits"), [(36, 36, True), (35, 36, False), (36, 35, False), (7, 99, False)]
)
def test_the_smallest_images_are_as_large_as_the_message_says(height: int, width: int, fits: bool) -> None:
    space = gym.spaces.Box(0, 255, (1, height, width), np.uint8)
    if fits:
        ppo.Agent(space, TWO_ACTIONS)
    else:
        with pytest.raises(KartRewardsError, match="too small for the network: use 36x36 or more"):
            ppo.Agent(space, TWO_ACTIONS)


@pytest.mark.parametrize("shape", [(4, 84, 84), (1, 84, 84), (84, 84, 3), (4, 84, 84, 3), (224, 256, 3)])
def test_every_observation_shape_is_encoded(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.init, "orthogonal_", lambda *_: None)  # of large matrices it takes seconds
    agent = ppo.Agent(gym.spaces.Box(0, 255, shape, np.uint8), TWO_ACTIONS)
    assert agent.get_value(torch.zeros(2, *shape, dtype=torch.uint8)).shape == (2,)


def test_each_channel_of_a_colour_image_is_one_of_its_colours() -> None:
    image = torch.randint(0, 255, (2, 5, 7, 3), dtype=torch.uint8)
    channels = ppo.Agent.to_channels(image)
    assert channels.shape == (2, 3, 5, 7)
    for colour in range(3):
        assert torch.equal(channels[:, colour], image[..., colour])


def test_each_channel_of_stacked_colour_images_is_one_colour_of_one_image() -> None:
    stack = torch.randint(0, 255, (2, 4, 5, 7, 3), dtype=torch.uint8)
    channels = ppo.Agent.to_channels(stack)
    assert channels.shape == (2, 12, 5, 7)
    for image in range(4):
        for colour in range(3):
            assert torch.equal(channels[:, 3 * image + colour], stack[:, image, ..., colour])


def test_grey_images_are_channels_already() -> None:
    images = torch.randint(0, 255, (2, 4, 5, 7), dtype=torch.uint8)
    assert torch.equal(ppo.Agent.to_channels(images), images)


def test_the_first_convolution_computes_with_pixels_from_0_to_1() -> None:
    convolution = ppo.PixelConv2d(2, 3, 4)
    pixels = torch.randint(0, 255, (5, 2, 9, 9)).float()
    expected = torch.nn.functional.conv2d(pixels / 255, convolution.weight, convolution.bias)
    assert torch.allclose(convolution(pixels), expected, atol=1e-6)


@pytest.mark.parametrize("space", SPACES[2:], ids=str)
def test_the_deterministic_action_is_the_most_probable_one(space: gym.Space) -> None:
    torch.manual_seed(1)
    agent = ppo.Agent(IMAGES, space)
    torch.nn.init.normal_(agent.actor.weight)  # far from uniform
    observation = torch.randint(0, 255, (5, *IMAGES.shape), dtype=torch.uint8)
    most_probable = agent.act(observation, deterministic=True)
    assert torch.equal(most_probable, agent.act(observation, deterministic=True))
    with torch.no_grad():
        best = agent.get_action_and_value(observation, most_probable)[1]
        for _ in range(50):
            assert (agent.get_action_and_value(observation)[1] <= best + 1e-5).all()


def test_the_deterministic_action_of_a_continuous_policy_is_its_mean() -> None:
    torch.manual_seed(1)
    agent = ppo.Agent(IMAGES, SPACES[1])
    observation = torch.randint(0, 255, (5, *IMAGES.shape), dtype=torch.uint8)
    with torch.no_grad():
        mean = agent.actor(agent.encode(observation))
        assert torch.equal(agent.act(observation, deterministic=True), mean)
        assert not torch.equal(agent.act(observation, deterministic=False), mean)


def test_buttons_that_are_equally_probable_have_a_deterministic_action() -> None:
    agent = ppo.Agent(IMAGES, gym.spaces.MultiBinary(3))
    torch.nn.init.zeros_(agent.actor.weight)
    action = agent.act(torch.zeros(1, *IMAGES.shape, dtype=torch.uint8), deterministic=True)
    assert set(action[0].tolist()) <= {0.0, 1.0}


def test_outputs_that_are_not_finite_end_the_run() -> None:
    agent = ppo.Agent(IMAGES, TWO_ACTIONS)
    torch.nn.init.constant_(agent.actor.bias, float("nan"))
    with pytest.raises(DivergedError, match="outputs are no longer finite"):
        agent.act(torch.zeros(1, *IMAGES.shape, dtype=torch.uint8), deterministic=False)


def test_bfloat16_computes_nearly_what_float32_does() -> None:
    observation = torch.randint(0, 255, (16, 4, 84, 84), dtype=torch.uint8)
    space = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    agents = []
    for precision in (torch.float32, torch.bfloat16):
        torch.manual_seed(1)
        agents.append(ppo.Agent(space, gym.spaces.Box(-1, 1, (1,), np.float32), precision))
    with torch.no_grad():
        exact, near = (agent.encode(observation) for agent in agents)
    assert near.dtype == torch.float32
    assert not torch.equal(exact, near)
    assert (exact - near).abs().mean() < 0.02 * exact.abs().mean()
    assert all(parameter.dtype == torch.float32 for parameter in agents[1].parameters())


# -------------------------------------------------------------------------------------------------------------- update
def test_an_update_makes_rewarded_actions_more_probable() -> None:
    torch.manual_seed(1)
    rollout = play(Counter(length=99), num_steps=64)
    agent = ppo.Agent(IMAGES, TWO_ACTIONS)
    options = ppo.PPOOptions(num_envs=1, num_steps=64, num_minibatches=2, ent_coef=0.0, norm_adv=False)
    with torch.no_grad():
        _, log_probs, _, values = agent.get_action_and_value(rollout.observations[:, 0], rollout.actions[:, 0])
    rollout.log_probs, rollout.values = log_probs[:, None], values[:, None]
    advantages = rollout.actions.float() * 2 - 1  # action 1 was good, action 0 was bad
    optimizer = torch.optim.Adam(agent.parameters(), lr=1e-3)
    losses = ppo.update(agent, optimizer, rollout, advantages, rollout.values.clone(), options, Ranks())
    with torch.no_grad():
        after = agent.get_action_and_value(rollout.observations[:, 0], torch.ones(64))[1].exp().mean()
        before = log_probs[rollout.actions[:, 0] == 1].exp().mean()
    assert after > before + 0.02
    assert set(losses) >= {"value_loss", "policy_loss", "entropy", "approx_kl", "clipfrac", "explained_variance"}


def older_policy(agent: ppo.Agent, size: int) -> ppo.Rollout:
    """A rollout of random images by an older policy, whose probability ratios are in part beyond the clip range."""
    rollout = play(Counter(length=99), num_steps=size)
    rollout.observations = torch.randint(0, 255, rollout.observations.shape, dtype=torch.uint8)
    with torch.no_grad():
        _, log_probs, _, values = agent.get_action_and_value(rollout.observations[:, 0], rollout.actions[:, 0])
    rollout.log_probs = (log_probs + torch.randn(size) * 0.2)[:, None]
    rollout.values = (values + torch.randn(size) * 0.5)[:, None]
    return rollout


@pytest.mark.parametrize(("clip_vloss", "norm_adv"), [(True, True), (False, True), (True, False)])
def test_an_update_is_ppos_formula(clip_vloss: bool, norm_adv: bool) -> None:
    """One minibatch, one epoch, plain gradient descent: the step is that of the loss written down once more here."""
    torch.manual_seed(3)
    size = 16
    options = ppo.PPOOptions(
        num_envs=1, num_steps=size, num_minibatches=1, update_epochs=1, ent_coef=0.3, vf_coef=0.7, clip_coef=0.1,
        max_grad_norm=0.05, clip_vloss=clip_vloss, norm_adv=norm_adv,
    )  # fmt: skip
    agent = ppo.Agent(IMAGES, TWO_ACTIONS)
    rollout = older_policy(agent, size)
    advantages, returns = torch.randn(size, 1), torch.randn(size, 1) * 3

    _, log_prob, entropy, value = agent.get_action_and_value(rollout.observations[:, 0], rollout.actions[:, 0])
    normalised = (advantages[:, 0] - advantages.mean()) / (advantages.std() + 1e-8) if norm_adv else advantages[:, 0]
    surrogate, value_losses = [], []
    for i in range(size):
        ratio = (log_prob[i] - rollout.log_probs[i, 0]).exp()
        clipped = min(max(ratio, torch.tensor(0.9)), torch.tensor(1.1))
        surrogate.append(min(ratio * normalised[i], clipped * normalised[i]))
        old, target = rollout.values[i, 0], returns[i, 0]
        near = old + min(max(value[i] - old, torch.tensor(-0.1)), torch.tensor(0.1))
        value_losses.append(max((value[i] - target) ** 2, (near - target) ** 2 if clip_vloss else torch.tensor(0.0)))
    policy_loss, value_loss = -torch.stack(surrogate).mean(), 0.5 * torch.stack(value_losses).mean()
    loss = policy_loss - 0.3 * entropy.mean() + 0.7 * value_loss
    gradients = torch.autograd.grad(loss, list(agent.parameters()))
    norm = torch.sqrt(torch.stack([(gradient**2).sum() for gradient in gradients]).sum())
    assert norm > 0.05, "the gradient is clipped, too"
    before = [parameter.detach().clone() for parameter in agent.parameters()]

    optimizer = torch.optim.SGD(agent.parameters(), lr=1.0)
    losses = ppo.update(agent, optimizer, rollout, advantages, returns, options, Ranks())
    for start, gradient, parameter in zip(before, gradients, agent.parameters(), strict=True):
        assert torch.allclose(parameter, start - gradient * 0.05 / norm, atol=1e-5)
    assert losses["policy_loss"] == pytest.approx(policy_loss.item(), abs=1e-5)
    assert losses["value_loss"] == pytest.approx(value_loss.item(), rel=1e-4)
    assert losses["entropy"] == pytest.approx(entropy.mean().item(), rel=1e-4)


def test_the_diagnostics_of_an_update_are_their_formulas() -> None:
    torch.manual_seed(3)
    size = 16
    options = ppo.PPOOptions(num_envs=1, num_steps=size, num_minibatches=1, update_epochs=1, clip_coef=0.1)
    agent = ppo.Agent(IMAGES, TWO_ACTIONS)
    rollout = older_policy(agent, size)
    returns = torch.randn(size, 1) * 3
    with torch.no_grad():
        _, log_prob, _, _ = agent.get_action_and_value(rollout.observations[:, 0], rollout.actions[:, 0])
    optimizer = torch.optim.Adam(agent.parameters())
    losses = ppo.update(agent, optimizer, rollout, torch.randn(size, 1), returns, options, Ranks())

    old, new = rollout.log_probs[:, 0].double().numpy(), log_prob.double().numpy()
    ratio = np.exp(new) / np.exp(old)
    assert losses["old_approx_kl"] == pytest.approx(np.mean(old - new), abs=1e-6)
    assert losses["approx_kl"] == pytest.approx(np.mean(ratio - 1 - np.log(ratio)), abs=1e-6)
    clipped = [not 0.9 <= each <= 1.1 for each in ratio]
    assert 0 < sum(clipped) < size
    assert losses["clipfrac"] == pytest.approx(sum(clipped) / size)
    targets, values = returns[:, 0].double().numpy(), rollout.values[:, 0].double().numpy()
    assert losses["explained_variance"] == pytest.approx(1 - np.var(targets - values) / np.var(targets), rel=1e-5)


def test_clipfrac_is_the_mean_over_all_minibatches() -> None:
    torch.manual_seed(3)
    size, beyond = 16, 5
    options = ppo.PPOOptions(num_envs=1, num_steps=size, num_minibatches=2, update_epochs=3, clip_coef=0.1)
    agent = ppo.Agent(IMAGES, TWO_ACTIONS)
    rollout = older_policy(agent, size)
    with torch.no_grad():
        _, log_prob, _, _ = agent.get_action_and_value(rollout.observations[:, 0], rollout.actions[:, 0])
    rollout.log_probs = log_prob[:, None] + 0.5 * (torch.arange(size) < beyond)[:, None]
    still = torch.optim.SGD(agent.parameters(), lr=0.0)
    losses = ppo.update(agent, still, rollout, torch.randn(size, 1), torch.randn(size, 1), options, Ranks())
    assert losses["clipfrac"] == pytest.approx(beyond / size), "no minibatch of 8 steps has this fraction by itself"


def test_an_update_sees_colour_observations_as_the_rollout_did() -> None:
    class Colours(Counter):
        def __init__(self) -> None:
            super().__init__(length=99)
            self.observation_space = COLOURS
            self.random = np.random.default_rng(1)

        def observation(self) -> np.ndarray:
            return self.random.integers(0, 255, COLOURS.shape, np.uint8)

    torch.manual_seed(1)
    agent = ppo.Agent(COLOURS, TWO_ACTIONS)
    torch.nn.init.normal_(agent.actor.weight)  # the policy depends on what it sees
    rollout = play(Colours(), num_steps=16, agent=agent)
    assert rollout.log_probs.std() > 0.1
    options = ppo.PPOOptions(num_envs=1, num_steps=16, num_minibatches=1, update_epochs=1)
    optimizer = torch.optim.Adam(agent.parameters())
    losses = ppo.update(agent, optimizer, rollout, torch.randn(16, 1), torch.randn(16, 1), options, Ranks())
    assert losses["approx_kl"] == pytest.approx(0.0, abs=1e-5), "the policy has not changed yet"


def test_an_update_stops_at_the_target_kl() -> None:
    def policy_after(target_kl: float | None) -> torch.Tensor:
        torch.manual_seed(1)
        rollout = play(Counter(length=99), num_steps=16)
        agent = ppo.Agent(IMAGES, TWO_ACTIONS)
        options = ppo.PPOOptions(num_envs=1, num_steps=16, num_minibatches=1, update_epochs=5, target_kl=target_kl)
        rollout.log_probs = torch.full((16, 1), -0.7)
        optimizer = torch.optim.SGD(agent.parameters(), lr=0.1)
        ppo.update(agent, optimizer, rollout, torch.randn(16, 1), torch.zeros(16, 1), options, Ranks())
        return agent.actor.weight.detach()

    assert torch.equal(policy_after(None), policy_after(1e9))
    assert not torch.equal(policy_after(None), policy_after(-1.0))


# ------------------------------------------------------------------------------------------------------------- options
def parse(*arguments: object) -> ppo.Args:
    args, checkpoint = ppo.parse_args([str(argument) for argument in arguments])
    assert checkpoint is None
    return args


def test_an_option_of_each_group_is_read() -> None:
    args = parse("--env-id", GAME, "--no-clip-vloss", "--no-anneal-lr", "--eval-seed", 7, "--exp-name", "mine")
    assert (args.env.env_id, args.eval.eval_seed, args.run.exp_name) == (GAME, 7, "mine")
    assert (args.ppo.clip_vloss, args.ppo.anneal_lr) == (False, False)


def test_episodes_are_as_long_in_frames_for_every_frame_skip() -> None:
    assert ppo.EnvOptions().episode_limit * ppo.EnvOptions().frame_skip == 12_000
    assert ppo.EnvOptions(frame_skip=6).episode_limit == 2_000
    assert ppo.EnvOptions(frame_skip=6, max_episode_steps=50).episode_limit == 50


def test_files_of_a_run_are_found_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = ["--rewards", "mine.py", "a_module", "--scenario", "sprint.json", "--state", "mine.state", "Level1"]
    env = parse("--env-id", GAME, *files, "--integrations-path", os.path.relpath(INTEGRATIONS)).env
    assert env.rewards == (str(tmp_path / "mine.py"), "a_module")
    assert (env.scenario, env.info) == (str(tmp_path / "sprint.json"), "data")
    assert env.state == (str(tmp_path / "mine.state"), "Level1")
    assert env.integrations_path == INTEGRATIONS.resolve()
    courses = parse("--env-id", GAME, "--eval-states", "mine.state", "Level1").eval.eval_states
    assert courses == (str(tmp_path / "mine.state"), "Level1")


def test_a_pattern_of_states_is_replaced_by_their_names() -> None:
    args = parse("--env-id", GAME, "--state", "Level[1-3]", "--eval-states", "Level4", "Level*")
    assert args.env.state == ("Level1", "Level2", "Level3")
    assert args.eval.eval_states == ("Level4", "Level1", "Level2", "Level3", "Level5")


def test_agents_of_a_loader_need_no_game_of_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    parse("--evaluate", "agent.zip", "--loader", "mine:load", "--env-id", "Lost-Snes")
    assert not capsys.readouterr().out, "no word of a missing ROM, or of training"


def test_options_for_one_start_are_not_those_of_a_resumed_run(trained: TrainedRun, tmp_path: Path) -> None:
    agent = tmp_path / "agent.pt"
    once = ["--allow-changed-rewards", "--total-timesteps", 128, "--checkpoint-interval", 0]
    run = trained.copy(tmp_path / "runs")
    train_here(*RESUME, run / "agent.pt", *once)
    agent = run / "agent.pt"
    args = ppo.saved_args(Checkpoint.load(agent))
    assert (args.run.resume, args.run.allow_changed_rewards, args.eval.evaluate) == (None, False, ())
    assert (args.ppo.total_timesteps, args.run.checkpoint_interval) == (128, 0)


def test_an_evaluation_takes_over_only_the_seed_and_the_length_of_an_episode(trained: TrainedRun) -> None:
    checkpoint = Checkpoint.load(trained.folder / "agent.pt")
    checkpoint.options["eval"] |= {"eval_states": ("Level1",), "eval_episodes": 2, "capture_video": True}
    checkpoint.options["eval"] |= {"eval_seed": 7, "eval_max_episode_steps": 30}
    args = ppo.saved_args(checkpoint)
    assert (args.eval, args.env.max_episode_steps) == (ppo.EvalOptions(eval_seed=7), 30)
    args = ppo.saved_args(checkpoint, resuming=True)
    assert (args.eval.eval_episodes, args.eval.eval_max_episode_steps, args.env.max_episode_steps) == (2, 30, 40)


@pytest.mark.parametrize(
    ("options", "frames"),
    [
        ([], 12_000),
        (["--max-episode-steps", 5], 15),
        (["--eval-max-episode-steps", 7], 21),
        (["--max-episode-steps", 5, "--eval-max-episode-steps", 7], 21),
        (["--max-episode-steps", 5, "--frame-skip", 4], 20),
    ],
)
def test_both_options_limit_the_episodes_of_evaluate(options: list[object], frames: int) -> None:
    """Also for an agent whose evaluations in training had a limit of their own, as those of the project's had."""
    agent = ROOT / "agents" / "HomebrewKart.pt"
    trained_with = Checkpoint.load(agent).options
    assert (trained_with["eval"]["eval_max_episode_steps"], trained_with["env"]["frame_skip"]) == (4000, 3)
    args, _ = ppo.parse_args(["--evaluate", str(agent), *map(str, options)])
    assert args.eval.max_episode_frames(args.env.episode_limit, args.env.frame_skip) == frames


def test_an_agent_is_loaded_with_its_environment(trained: TrainedRun) -> None:
    best = trained.folder / "best.pt"
    agent = ppo.load_agent(best)
    assert (agent.path, agent.seed, agent.max_episode_frames) == (best, 1, 160)
    assert agent.steps in (64, 96)
    assert agent.env_options["game"] == GAME
    assert agent.env_options["reward_weights"] == {"wall": -5.0}
    assert isinstance(agent.make_policy(True), TorchPolicy)


# ------------------------------------------------------------------------------------------------------- complete runs
def test_without_a_rom_the_free_game_is_trained_and_named(trained: TrainedRun) -> None:
    printed = trained.finished.stdout
    assert "MarioKart-Snes has no ROM" in printed
    assert "kart-rewards import PATH" in printed
    assert "Training HomebrewKart-Snes instead" in printed
    assert trained.folder.name.startswith("HomebrewKart-Snes__ppo_continuous_single_file__1__")
    assert Checkpoint.load(trained.folder / "agent.pt").options["env"]["env_id"] == GAME


def test_the_terms_in_force_are_shown(trained: TrainedRun) -> None:
    assert "top_speed        0.02  Pay for speed." in trained.finished.stdout
    assert "wall               -5  Charge every frame" in trained.finished.stdout


def test_the_learning_rate_falls_linearly(trained: TrainedRun) -> None:
    rates = [value for _, value in scalars(trained.folder)["charts/learning_rate"]]
    assert rates == pytest.approx([5e-4, 5e-4 * 2 / 3, 5e-4 / 3])


def test_the_learning_rate_falls_over_the_steps_that_were_asked_for(tmp_path: Path) -> None:
    finished = train_here("--env-id", GAME, *SMALL, "--total-timesteps", "8e1", "--runs-path", tmp_path)
    assert [value for _, value in scalars(only_run(tmp_path))["charts/learning_rate"]] == pytest.approx([5e-4, 3e-4])
    assert "Training ends after 64 steps, not 80: each rollout is complete, with 32 steps." in finished.stdout
    assert "64/64 steps" in finished.stdout


def test_without_annealing_the_learning_rate_stays(tmp_path: Path) -> None:
    train_here("--env-id", GAME, *SMALL, "--total-timesteps", 64, "--no-anneal-lr", "--runs-path", tmp_path)
    assert [value for _, value in scalars(only_run(tmp_path))["charts/learning_rate"]] == pytest.approx([5e-4, 5e-4])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_either_precision_trains(tmp_path: Path, precision: str) -> None:
    arguments = [*SMALL, "--total-timesteps", 32, "--precision", precision, "--runs-path", tmp_path]
    finished = train_here("--env-id", GAME, *arguments)
    assert f"on cpu in {precision}" in finished.stdout
    assert scalars(only_run(tmp_path))["losses/value_loss"]


@pytest.mark.parametrize("mode", ["driving", "multi-discrete", "filtered"])
def test_other_heads_train_too(tmp_path: Path, mode: str) -> None:
    colour = ["--no-grey", "--crop", "None"] if mode == "filtered" else []
    train_here(
        "--env-id", GAME, *SMALL, "--total-timesteps", 32, "--action-mode", mode, *colour, "--runs-path", tmp_path
    )  # fmt: skip
    assert "losses/entropy" in scalars(only_run(tmp_path))


def test_auto_begins_a_new_run_if_there_is_none_to_resume(tmp_path: Path) -> None:
    train_here("--env-id", GAME, *SMALL, "--total-timesteps", 32, "--resume", "auto", "--runs-path", tmp_path)
    assert Checkpoint.load(only_run(tmp_path) / "agent.pt").steps == 32


def test_auto_resumes_the_free_game_that_replaced_the_retail_game(trained: TrainedRun, tmp_path: Path) -> None:
    run = trained.copy(tmp_path / "runs")
    finished = train_here(
        "--env-id", "MarioKart-Snes", *RESUME, "auto", "--runs-path", run.parent, "--total-timesteps", 128
    )  # fmt: skip
    assert "Resuming after 3 updates, 96 steps." in finished.stdout
    assert Checkpoint.load(run / "agent.pt").steps == 128


def test_auto_has_nothing_to_do_if_the_run_is_finished(trained: TrainedRun) -> None:
    runs = trained.folder.parent
    finished = train_here("--env-id", GAME, "--resume", "auto", "--runs-path", runs, "--total-timesteps", 96)
    assert f"the run of {trained.folder / 'agent.pt'} is finished: 96 of 96 steps are done. Raise" in finished.stdout
    assert not finished.stderr


def test_resuming_does_not_mention_the_missing_rom_of_another_game(trained: TrainedRun, tmp_path: Path) -> None:
    run = trained.copy(tmp_path / "runs")
    finished = train_here(*RESUME, run / "agent.pt", "--total-timesteps", 128, "--no-fallback")
    assert "has no ROM" not in finished.stdout


@pytest.mark.slow
def test_agents_are_evaluated_against_the_drivers(trained: TrainedRun, tmp_path: Path) -> None:
    run = trained.copy(tmp_path / "runs")
    finished = train_here(
        *("--evaluate", run / "agent.pt", run / "best.pt", "--eval-episodes", 2, "--eval-states", "Level1", "Level2"),
        *("--max-episode-steps", 10),
    )
    report = json.loads((run / "evaluation.json").read_text())
    assert [Path(agent["file"]).name for agent in report["agents"]] == ["agent.pt", "best.pt"]
    for agent in report["agents"]:
        assert set(agent["summary"]) == {"Level1", "Level2"}
        policies = agent["summary"]["Level1"]
        assert {"agent, deterministic", "agent, sampled", "random", "full-throttle", "reference"} == set(policies)
        assert policies["agent, sampled"]["episodes"] == 2
        assert len(agent["episodes"]) == 2 * 5 * 2
    assert "across_seeds" not in report, "both agents are of one run"
    for words in ("HomebrewKart-Snes, 96 steps with seed 1", "full-throttle", f"wrote {run / 'evaluation.json'}"):
        assert words in finished.stdout
    seeds = {episode["seed"] for episode in report["agents"][0]["episodes"]}
    of_training, next_ones = (
        {int(each) for each in np.random.SeedSequence(seed).generate_state(2)} for seed in (1000, 1001)
    )
    assert report["eval_seed"] == 1001
    assert seeds == next_ones
    assert not seeds & of_training, "training chose best.pt by those"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--env-id", "MarioKart-Snes", "--no-fallback"], ["MarioKart-Snes has no ROM", "kart-rewards import"]),
        (["--env-id", "MarioCart-Snes"], ["unknown game 'MarioCart-Snes'", "Did you mean 'MarioKart-Snes'"]),
        (["--state", "Level99"], ["Level99.state: no such start state", "Level1"]),
        (["--state", "Gen*"], ["no start state of HomebrewKart-Snes matches 'Gen*'; it has Level1"]),
        (["--scenario", "sprint"], ["sprint.json: no such file"]),
        (["--reward-weights", "wal=3"], ["no reward term 'wal'"]),
        (["--reward-weights", "wall"], ["'wall' is not NAME=NUMBER"]),
        (["--rewards", "lost.py"], ["lost.py: no such file"]),
        (["--num-minibatches", "5"], ["does not split into 5 equal minibatches"]),
        (["--num-minibatches", "32"], ["minibatches of 1 step"]),
        (["--learning-rate", "-1"], ["--learning-rate must be 0 or more, not -1.0"]),
        (["--gamma", "2"], ["--gamma must be between 0 and 1, not 2.0"]),
        (["--seed", "-1"], ["--seed must be between 0 and 4294967295, not -1"]),
        (["--max-episode-steps", "0"], ["--max-episode-steps must be 1 or more, not 0"]),
        (["--total-timesteps", "9"], ["is less than one rollout"]),
        (["--resume", "lost.pt"], ["lost.pt: can't be read: No such file"]),
        (["--resume", "pyproject.toml"], ["pyproject.toml: is not a checkpoint"]),
        (["--runs-path", "pyproject.toml"], ["pyproject.toml: is a file, not a folder: choose another --runs-path"]),
        (["--eval-states", "Level99"], ["Level99.state: no such start state"]),
        (["--eval-episodes", "0"], ["--eval-episodes must be 1 or more, not 0"]),
        (["--size", "20", "20"], ["too small for the network"]),
        (["--ent-coef", "nan"], ["--ent-coef must be a finite number, not nan"]),
        (["--loader", "mine:load"], ["--loader mine:load: training loads no agents: use it with --evaluate"]),
        (["--output", "a.json"], ["--output a.json: training writes no such file: use it with --evaluate"]),
        (["--evaluate", "a.pt", "--resume", "auto"], ["--resume auto: is for training", "leave out --evaluate"]),
        (["--exp-name", "../mine"], ["--exp-name ../mine: becomes a part of a folder's name"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("--") else "",
)
def test_mistakes_are_reported(
    arguments: Sequence[str], words: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    where = [] if "--runs-path" in arguments else ["--runs-path", tmp_path]
    assert_refused(train_here("--env-id", GAME, *SMALL, *where, *arguments, check=False), *words)
    assert not list(tmp_path.iterdir()), "and no run is left behind"


def test_options_are_checked_before_the_notice_of_the_replaced_game() -> None:
    finished = train_here("--num-envs", 0, check=False)
    assert_refused(finished, "--num-envs must be 1 or more, not 0")
    assert not finished.stdout


def test_help_reads_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    finished = train_here("--help")
    assert "whose best.pt or else agent.pt is meant. Several agents" in finished.stdout, "no line ends in mid-sentence"
    for words in ("env options", "ppo options", "eval options", "run options", "--env-id", "--evaluate", "--resume"):
        assert words in finished.stdout
    assert "(default: MarioKart-Snes)" in " ".join(finished.stdout.replace("│", "").split())
