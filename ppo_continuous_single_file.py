"""Trains a racer from pixels with PPO, in one file that reads from top to bottom.

    python ppo_continuous_single_file.py --env-id MarioKart-Snes
    tensorboard --logdir runs

The order is CleanRL's: options, agent, rollout, advantages, update, training loop. Everything that decides what is
learned is here. The package ``kart_rewards`` provides the environments (``kart_rewards.env``), and what a run needs
besides the algorithm: logs, checkpoints, several processes (``kart_rewards.training``), evaluation.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports ends the program without a traceback

import functools
import math
import sys
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import gymnasium as gym
import numpy as np
import torch
import tyro
from annotated_types import Ge, Interval
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, Normal

from kart_rewards.defaults import DEFAULT_FRAME_SKIP, default_max_episode_steps
from kart_rewards.env.actions import ActionMode
from kart_rewards.env.observations import Crop, ObservationConfig
from kart_rewards.errors import KartRewardsError, run_command
from kart_rewards.evaluation.agents import EvalOptions, TrainedAgent, evaluate_from_options
from kart_rewards.evaluation.in_training import EvaluationInTraining, TorchPolicy
from kart_rewards.integrations import find_game
from kart_rewards.rewards import parse_weights
from kart_rewards.training.checkpoints import Checkpoint, Resumption, find_checkpoint
from kart_rewards.training.devices import choose_computing, choose_device, compile_encoder
from kart_rewards.training.distributions import MultiCategorical
from kart_rewards.training.episodes import make_training_envs
from kart_rewards.training.game import absolute_states, names_of_run, resolved_options
from kart_rewards.training.options import INTEGERS, Names, check_bounds, check_given_once, flow_help, to_plain_options
from kart_rewards.training.ranks import Ranks, joined, on_every_rank
from kart_rewards.training.run import DivergedError, EndedEpisode, Run, RunOptions, stop_on_signals
from kart_rewards.training.sources import RunRewards, use_changed_sources
from kart_rewards.training.threads import in_threads
from kart_rewards.training.timing import Stopwatch
from kart_rewards.training.trust import is_own, without_foreign_code
from kart_rewards.training.vector import EnvGroups


# ------------------------------------------------------------------------------------------------------------- options
@dataclass
class EnvOptions:
    """The environment: game, rewards, actions, observations."""

    env_id: str = "MarioKart-Snes"
    """The game: the name of a folder of integrations."""
    integrations_path: Path | None = None
    """Folder of games. By default ./integrations, your data folder, then the packages kart_rewards and stable-retro."""
    fallback: bool = True
    """Train HomebrewKart-Snes when MarioKart-Snes has no ROM. --no-fallback makes a missing ROM an error."""
    state: Names = ()
    """Start states: names, patterns such as 'Gen*', .state files; each episode draws one. Default: metadata.json's."""
    scenario: str | None = "scenario"
    """Which reward terms and done rules to use: a file's name in the game's folder, or a .json path. None: none."""
    info: str = "data"
    """Which RAM variables there are: the name of a file in the game's folder, or a .json path."""
    rewards: Names = ()
    """Python files or modules with reward terms and done rules to add."""
    reward_weights: Names = ()
    """Weights that override the scenario's, as NAME=NUMBER: --reward-weights wall=-5 top_speed=0.02."""
    reward_transform: Literal["scale", "sign", "none"] = "scale"
    """What the agent gets of each frame's reward: a scaled sum, its sign (weights hardly matter then), or the sum."""
    reward_scale: float = 0.01
    """Factor of --reward-transform scale. Returns are after it, the sums of the reward terms before it."""
    action_mode: ActionMode = "auto"
    """continuous: steering, throttle held. full: steering, throttle or brake, hop. driving: throttle, left, right, hop.
    Others: stable-retro's. auto: continuous in kart races on the SNES, multi-discrete in all other games."""
    frame_skip: Annotated[int, Ge(1)] = DEFAULT_FRAME_SKIP
    """Emulated frames for which an action is held."""
    crop: Crop | Literal["auto"] | None = "auto"
    """Part of the screen to see: top, bottom, left, right. None: all of it. auto: the crop of the scenario; without
    one, in kart races on the SNES the view of the road, in all other games all of it."""
    max_pool: bool = False
    """See the brighter of the last two frames in each pixel: for games whose sprites flicker."""
    grey: bool = True
    """See luminance instead of colours."""
    size: tuple[int, int] | None = ObservationConfig.size
    """Height and width of an observation. None: the screen's."""
    stack: Annotated[int, Ge(1)] = 4
    """How many observations to stack."""
    random_start_steps: Annotated[int, Ge(0)] = 0
    """Begin each episode with 0 to this many steps of random driving, which are not scored."""
    sticky_actions: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Probability, on each emulated frame, that the buttons of the frame before stay held."""
    draw_all: bool = False
    """Draw the frames that nobody sees, too. They are not drawn where the emulator's core is known to allow it."""
    wrappers: Names = ()
    """Wrappers of your own around each environment, the innermost first: MODULE:NAME or FILE.py:NAME."""
    max_episode_steps: Annotated[int | None, Ge(1)] = None
    """Agent steps after which an episode is truncated. By default as many as make 12,000 emulated frames (200 s)."""

    def for_kart_env(self) -> dict[str, Any]:
        """Returns the arguments of ``KartEnv``."""
        options = {
            "game": self.env_id,
            "integrations": self.integrations_path,
            "reward_weights": parse_weights(self.reward_weights),
            "observation": ObservationConfig(self.crop, self.max_pool, self.grey, self.size, self.stack),
        }
        same = {"state", "scenario", "info", "rewards", "reward_transform", "reward_scale", "action_mode", "frame_skip"}
        same |= {"random_start_steps", "sticky_actions", "draw_all", "wrappers"}
        return options | {name: value for name, value in vars(self).items() if name in same}

    def resolved(self) -> EnvOptions:
        """Returns the options with a game that can be played, see ``playable_game``, and with absolute paths."""
        return replace(self, **resolved_options(vars(self)))

    @property
    def episode_limit(self) -> int:
        """Agent steps after which an episode is truncated."""
        return self.max_episode_steps or default_max_episode_steps(self.frame_skip)


# --------------------------------------------------------------------------------------------- options of the algorithm
@dataclass
class PPOOptions:
    """The algorithm: proximal policy optimisation (Schulman et al., 2017, https://arxiv.org/abs/1707.06347)."""

    total_timesteps: int = 500_000
    """Agent steps to train for, over all environments: as many complete rollouts as they are enough for."""
    learning_rate: Annotated[float, Ge(0)] = 5e-4
    """Adam's step size at the start."""
    anneal_lr: bool = True
    """Lower the learning rate linearly to 0."""
    num_envs: Annotated[int, Ge(1)] = 16
    """Environments played at once, distributed over one process per core; under torchrun, those of all ranks."""
    num_steps: Annotated[int, Ge(1)] = 64
    """Steps of a rollout in each environment."""
    gamma: Annotated[float, Interval(ge=0, le=1)] = 0.99
    """Discount factor."""
    gae_lambda: Annotated[float, Interval(ge=0, le=1)] = 0.95
    """Lambda of the generalised advantage estimation."""
    num_minibatches: Annotated[int, Ge(1)] = 4
    """Minibatches that a rollout is split into."""
    update_epochs: Annotated[int, Ge(1)] = 4
    """Passes over a rollout in each update."""
    norm_adv: bool = True
    """Normalise advantages in each minibatch."""
    clip_coef: Annotated[float, Ge(0)] = 0.1
    """How far the policy's probability ratio may move from 1."""
    clip_vloss: bool = True
    """Clip the value loss, too."""
    ent_coef: float = 0.0
    """Weight of the entropy bonus."""
    vf_coef: float = 0.5
    """Weight of the value loss."""
    max_grad_norm: Annotated[float, Ge(0)] = 0.5
    """Largest norm of the gradient."""
    target_kl: float | None = None
    """Stop an update's epochs once the policy has moved this far. None: never."""

    @property
    def batch_size(self) -> int:
        """Steps of a rollout, over all environments."""
        return self.num_envs * self.num_steps

    @property
    def minibatch_size(self) -> int:
        """Steps of a minibatch."""
        return self.batch_size // self.num_minibatches

    def check(self) -> None:
        """Raises KartRewardsError if the numbers do not fit together."""
        if self.batch_size % self.num_minibatches:
            raise KartRewardsError(
                f"a rollout of {self.num_envs} environments x {self.num_steps} steps = {self.batch_size} steps does "
                f"not split into {self.num_minibatches} equal minibatches: change --num-minibatches"
            )
        if self.minibatch_size == 1 and self.norm_adv:
            raise KartRewardsError("advantages can't be normalised in minibatches of 1 step: lower --num-minibatches")
        if self.total_timesteps < self.batch_size:
            raise KartRewardsError(
                f"--total-timesteps {self.total_timesteps} is less than one rollout of {self.batch_size} steps: raise "
                "it, or lower --num-envs or --num-steps"
            )


@dataclass
class Args:
    """Trains with PPO: python ppo_continuous_single_file.py --env-id MarioKart-Snes"""

    env: EnvOptions = field(default_factory=EnvOptions)
    ppo: PPOOptions = field(default_factory=PPOOptions)
    eval: EvalOptions = field(default_factory=EvalOptions)
    run: RunOptions = field(default_factory=lambda: RunOptions(exp_name=Path(__file__).stem))


# --------------------------------------------------------------------------------------------------------------- agent
def layer_init(layer: Any, std: float = math.sqrt(2), bias: float = 0.0) -> Any:
    """Orthogonal weights: detail 2 of https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/"""
    nn.init.orthogonal_(layer.weight, std)
    nn.init.constant_(layer.bias, bias)
    return layer


class PixelConv2d(nn.Conv2d):
    """A convolution of pixels from 0 to 255, as if they were from 0 to 1: it scales its weights, which are fewer."""

    def forward(self, pixels: Tensor) -> Tensor:
        return self._conv_forward(pixels, self.weight / 255, self.bias)


class Agent(nn.Module):
    """Policy and value function on one convolutional encoder (Mnih et al., 2015). The action space decides the head.

    Args:
        observation_space: Box of uint8 images: (channels, height, width), (height, width, 3), or a stack of the latter.
        action_space: Box, Discrete, MultiDiscrete or MultiBinary. Choices are numbered from 0 on.
        precision: What the encoder computes with; its weights and the heads are float32.
    """

    def __init__(
        self, observation_space: gym.Space, action_space: gym.Space, precision: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.precision = precision
        self.threads = 1  # of ``encode``, if gradients are needed
        self.observation_shape = shape = observation_space.shape or ()
        if observation_space.dtype != np.uint8 or not (len(shape) == 3 or (len(shape) == 4 and shape[-1] == 3)):
            raise KartRewardsError(f"observations must be uint8 images, or stacks of them, not {observation_space}")
        channels, *size = self.to_channels(torch.zeros(1, *shape, dtype=torch.uint8)).shape[1:]
        for kernel, stride in ((8, 4), (4, 2), (3, 1)):  # of the convolutions below
            size = [(length - kernel) // stride + 1 for length in size]
        if min(size) < 1:
            raise KartRewardsError(f"observations of shape {shape} are too small for the network: use 36x36 or more")
        convolutions = nn.Sequential(
            layer_init(PixelConv2d(channels, 32, 8, stride=4)),
            nn.ReLU(),
            layer_init(nn.Conv2d(32, 64, 4, stride=2)),
            nn.ReLU(),
            layer_init(nn.Conv2d(64, 64, 3, stride=1)),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.encoder = nn.Sequential(convolutions, layer_init(nn.Linear(64 * math.prod(size), 512)), nn.ReLU())
        self.critic = layer_init(nn.Linear(512, 1), std=1.0)
        self.action_space = action_space
        if isinstance(action_space, gym.spaces.Box) and len(action_space.shape) == 1:
            outputs = action_space.shape[0]
            self.actor_log_std = nn.Parameter(torch.zeros(1, outputs))
        elif isinstance(action_space, gym.spaces.Discrete) and action_space.start == 0:
            outputs = int(action_space.n)
        elif isinstance(action_space, gym.spaces.MultiDiscrete) and not action_space.start.any():
            outputs = int(action_space.nvec.sum())
        elif isinstance(action_space, gym.spaces.MultiBinary):
            outputs = int(np.prod(action_space.n))
        else:
            raise KartRewardsError(f"the agent has no head for the action space {action_space}")
        self.actor = layer_init(nn.Linear(512, outputs), std=0.01)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster convolutions

    @staticmethod
    def to_channels(observation: Tensor) -> Tensor:
        """(batch, ...) images of any shape that the environment has -> (batch, channels, height, width)."""
        if observation.shape[-1] == 3:  # colour: channels come last
            observation = observation.movedim(-1, -3).flatten(1, -3)
        return observation.contiguous(memory_format=torch.channels_last)

    @in_threads
    def encode(self, observation: Tensor) -> Tensor:
        """Returns the features that both heads work on, float32, shape (batch, 512)."""
        pixels = self.to_channels(observation).to(self.precision)
        with torch.autocast(observation.device.type, self.precision, enabled=self.precision != torch.float32):
            return self.encoder(pixels).float()

    def policy(self, hidden: Tensor) -> Distribution | MultiCategorical:
        """Returns the distribution over actions. Raises DivergedError if the network's output is not finite."""
        output = self.actor(hidden)
        if not output.isfinite().all():
            raise DivergedError("outputs")
        if isinstance(self.action_space, gym.spaces.Box):
            std = self.actor_log_std.exp().expand_as(output)
            return Independent(Normal(output, std, validate_args=False), 1)  # the run checks that weights are finite
        if isinstance(self.action_space, gym.spaces.Discrete):
            return Categorical(logits=output)
        if isinstance(self.action_space, gym.spaces.MultiDiscrete):
            return MultiCategorical(output, self.action_space.nvec.tolist())
        return Independent(Bernoulli(logits=output), 1)

    def act(self, observation: Tensor, deterministic: bool) -> Tensor:
        """Returns an action for each observation: the most probable one, or a sample."""
        policy = self.policy(self.encode(observation))
        # PyTorch's mode of two equally probable values of a button is NaN.
        return policy.mode.nan_to_num() if deterministic else policy.sample()

    def get_value(self, observation: Tensor) -> Tensor:
        """Returns the value of each observation, shape (batch,)."""
        return self.critic(self.encode(observation)).squeeze(-1)

    def get_action_and_value(
        self, observation: Tensor, action: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns actions (sampled, unless given), their log-probabilities, the policy's entropies and the values."""
        hidden = self.encode(observation)
        policy = self.policy(hidden)
        if action is None:
            action = policy.sample()
        return action, policy.log_prob(action), policy.entropy(), self.critic(hidden).squeeze(-1)


# ------------------------------------------------------------------------------------------------------------- rollout
@dataclass
class Rollout:
    """The data of one rollout: tensors of shape (num_steps, num_envs, ...).

    ``dones[t]`` is 1 where ``observations[t]`` begins a new episode. ``next_observation`` and ``next_done`` continue
    where the rollout ends.
    """

    observations: Tensor
    actions: Tensor
    log_probs: Tensor
    rewards: Tensor
    dones: Tensor
    values: Tensor
    next_observation: Tensor
    next_done: Tensor

    @classmethod
    def empty(cls, envs: EnvGroups, num_steps: int, device: torch.device) -> Rollout:
        """Allocates the memory, which every rollout uses again."""
        actions = envs.single_action_space
        shape = (num_steps, envs.num_envs)
        zeros = functools.partial(torch.zeros, device=device)
        is_number = isinstance(actions, (gym.spaces.Discrete, gym.spaces.MultiDiscrete))
        observation_shape = envs.single_observation_space.shape or ()
        return cls(
            observations=zeros(*shape, *observation_shape, dtype=torch.uint8),
            actions=zeros(*shape, *(actions.shape or ()), dtype=torch.int64 if is_number else torch.float32),
            log_probs=zeros(shape),
            rewards=zeros(shape),
            dones=zeros(shape),
            values=zeros(shape),
            next_observation=zeros(envs.num_envs, *observation_shape, dtype=torch.uint8),
            next_done=zeros(envs.num_envs),
        )


@torch.no_grad()
def collect(agent: Agent, envs: EnvGroups, rollout: Rollout, gamma: float, stopwatch: Stopwatch) -> list[EndedEpisode]:
    """Plays a rollout from where the last one ended: while one group of environments steps, the agent answers another.

    A truncated episode could have gone on: its last reward gets the discounted value of its real final observation.

    Args:
        agent: Chooses the actions.
        envs: No group is stepping, before and after.
        rollout: Is filled in.
        gamma: Discount factor.
        stopwatch: Times the stage ``policy``.

    Returns:
        The episodes that ended.
    """
    device, num_steps = rollout.rewards.device, rollout.rewards.shape[0]
    ended: list[EndedEpisode] = []

    def act(step: int, group: int) -> None:
        part = envs.groups[group]
        observation = rollout.next_observation[part]
        rollout.observations[step, part] = observation
        rollout.dones[step, part] = rollout.next_done[part]
        with stopwatch("policy"):
            action, log_prob, _, value = agent.get_action_and_value(observation)
            rollout.actions[step, part] = action
            rollout.log_probs[step, part] = log_prob
            rollout.values[step, part] = value
            chosen = action.cpu().numpy()
        envs.send(group, chosen)

    def receive(step: int, group: int) -> None:
        part = envs.groups[group]
        outcome = envs.recv(group)
        rollout.next_observation[part] = torch.as_tensor(outcome.observations, device=device)
        done = outcome.terminated | outcome.truncated
        rollout.next_done[part] = torch.as_tensor(done, dtype=torch.float32, device=device)
        rollout.rewards[step, part] = torch.as_tensor(outcome.rewards, dtype=torch.float32, device=device)
        for i, (final_observation, info) in outcome.finals.items():
            ended.append(EndedEpisode(step, part.start + i, info))
            if not outcome.terminated[i]:
                value = agent.get_value(torch.as_tensor(final_observation, device=device)[None])[0]
                rollout.rewards[step, part.start + i] += gamma * value

    with torch.autocast(device.type, enabled=False):  # the outermost autocast keeps the cast weights of those inside
        for step in range(num_steps):
            for group in range(len(envs.groups)):
                if step:
                    receive(step - 1, group)
                act(step, group)
        for group in range(len(envs.groups)):
            receive(num_steps - 1, group)
    return ended


# ---------------------------------------------------------------------------------------------------------- advantages
def gae(rollout: Rollout, next_value: Tensor, gamma: float, gae_lambda: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al., 2016, https://arxiv.org/abs/1506.02438).

    Args:
        rollout: Rewards, values and dones, shape (num_steps, num_envs).
        next_value: Value of the observation after the last step, shape (num_envs,).
        gamma: Discount factor.
        gae_lambda: Between 0 (one-step differences) and 1 (complete returns).

    Returns:
        Advantages and returns, shape (num_steps, num_envs).
    """
    advantages = torch.zeros_like(rollout.rewards)
    last = torch.zeros_like(next_value)
    for step in reversed(range(rollout.rewards.shape[0])):
        final = step == rollout.rewards.shape[0] - 1
        continues = 1.0 - (rollout.next_done if final else rollout.dones[step + 1])
        following = next_value if final else rollout.values[step + 1]
        delta = rollout.rewards[step] + gamma * following * continues - rollout.values[step]
        last = delta + gamma * gae_lambda * continues * last
        advantages[step] = last
    return advantages, advantages + rollout.values


# -------------------------------------------------------------------------------------------------------------- update
def update(
    agent: Agent,
    optimizer: torch.optim.Optimizer,
    rollout: Rollout,
    advantages: Tensor,
    returns: Tensor,
    ppo: PPOOptions,
    ranks: Ranks,
) -> dict[str, float]:
    """Improves the agent on a rollout: several epochs of minibatches with PPO's clipped objective.

    With several ranks, a minibatch has equal parts of each rank's rollout, and every rank makes the same step.

    Returns:
        Losses and diagnostics by TensorBoard name: of the last minibatch; ``clipfrac`` is the mean over all of them.
    """
    observations, actions, log_probs, old_values, advantages, returns = (
        tensor.flatten(0, 1)
        for tensor in (rollout.observations, rollout.actions, rollout.log_probs, rollout.values, advantages, returns)
    )
    observations = agent.to_channels(observations).movedim(1, -1)  # now each lies in memory as the encoder needs it
    clip_fractions = []
    for _ in range(ppo.update_epochs):
        order = torch.randperm(len(returns), device=returns.device)
        for minibatch in order.split(ranks.share(ppo.minibatch_size)):
            seen = observations.index_select(0, minibatch).movedim(-1, 1)
            _, log_prob, entropy, value = agent.get_action_and_value(seen, actions[minibatch])
            log_ratio = log_prob - log_probs[minibatch]
            ratio = log_ratio.exp()
            with torch.no_grad():  # estimators of the KL divergence, see http://joschu.net/blog/kl-approx.html
                old_approx_kl = (-log_ratio).mean()
                approx_kl = ((ratio - 1) - log_ratio).mean()
                clip_fractions.append(((ratio - 1.0).abs() > ppo.clip_coef).float().mean())

            # Advantage normalisation, with the sample variance over the minibatch of all ranks
            advantage = advantages[minibatch]
            if ppo.norm_adv:
                advantage = advantage - ranks.mean(advantage.mean())
                variance = ranks.mean((advantage**2).mean()) * ppo.minibatch_size / (ppo.minibatch_size - 1)
                advantage = advantage / (variance.sqrt() + 1e-8)

            # Policy loss: the clipped surrogate objective, equation 7 of https://arxiv.org/abs/1707.06347
            unclipped = -advantage * ratio
            clipped = -advantage * ratio.clamp(1 - ppo.clip_coef, 1 + ppo.clip_coef)
            policy_loss = torch.max(unclipped, clipped).mean()

            # Value loss, clipped: detail 9 of ppo-implementation-details (see layer_init)
            value_error = (value - returns[minibatch]) ** 2
            if ppo.clip_vloss:
                old = old_values[minibatch]
                value_clipped = old + (value - old).clamp(-ppo.clip_coef, ppo.clip_coef)
                value_error = torch.max(value_error, (value_clipped - returns[minibatch]) ** 2)
            value_loss = 0.5 * value_error.mean()

            # Total loss: equation 9 of the same paper, with the signs of a loss
            entropy_loss = entropy.mean()
            loss = policy_loss - ppo.ent_coef * entropy_loss + ppo.vf_coef * value_loss
            optimizer.zero_grad()
            loss.backward()
            ranks.average_gradients(agent.parameters())
            nn.utils.clip_grad_norm_(agent.parameters(), ppo.max_grad_norm)
            optimizer.step()
        if ppo.target_kl is not None and ranks.mean(approx_kl) > ppo.target_kl:
            break

    losses = {
        "value_loss": value_loss,
        "policy_loss": policy_loss,
        "entropy": entropy_loss,
        "old_approx_kl": old_approx_kl,
        "approx_kl": approx_kl,
        "clipfrac": torch.stack(clip_fractions).mean(),
        "explained_variance": 1 - (returns - old_values).var() / returns.var(),
    }
    return dict(zip(losses, ranks.mean(torch.stack(list(losses.values())).detach()).tolist(), strict=True))


# ------------------------------------------------------------------------------------------------------- training loop
def train(args: Args, run: Run) -> None:
    """Trains from the first step, or a checkpoint's, to the last, or until Ctrl-C or SIGTERM.

    Raises:
        KartRewardsError: The run can't go on. What was learned is saved first, if possible.
    """
    ppo, envs, device, ranks = args.ppo, run.envs, run.device, run.ranks
    torch.manual_seed(args.run.seed)
    torch.backends.cudnn.deterministic = args.run.torch_deterministic
    spaces = envs.single_observation_space, envs.single_action_space
    agent = Agent(*spaces, getattr(torch, args.run.precision)).to(device)
    agent.threads = int(args.run.threads)
    optimizer = torch.optim.Adam(agent.parameters(), lr=ppo.learning_rate, eps=1e-5, fused=True)  # eps: detail 3
    rollout = Rollout.empty(envs, ppo.num_steps, device)
    if args.run.compile == "on":
        compile_encoder(agent, rollout.next_observation)

    with run.started(agent, optimizer, f"{args.env.env_id} on {device} in {args.run.precision}") as observations:
        rollout.next_observation = torch.as_tensor(observations, device=device)
        while not run.over:
            if ppo.anneal_lr:
                optimizer.param_groups[0]["lr"] = ppo.learning_rate * (1.0 - run.steps / ppo.total_timesteps)
            with run.stopwatch("rollout"), envs.sharing_cores(ranks.local_world_size):
                episodes = collect(agent, envs, rollout, ppo.gamma, run.stopwatch)
            with run.stopwatch("update"):
                with torch.no_grad():
                    next_value = agent.get_value(rollout.next_observation)
                advantages, returns = gae(rollout, next_value, ppo.gamma, ppo.gae_lambda)
                losses = update(agent, optimizer, rollout, advantages, returns, ppo, ranks)
            run.after_update(losses, episodes)  # logs, evaluates, saves


# ---------------------------------------------------------------------------------------------------------------- main
def parse_args(arguments: list[str] | None = None) -> tuple[Args, Checkpoint | None]:
    """Returns the options, and the checkpoint that they resume or evaluate, if any. Its options are the defaults."""
    flow_help(EnvOptions, PPOOptions, EvalOptions, RunOptions)
    parse = functools.partial(tyro.cli, Args, args=arguments, config=(tyro.conf.OmitArgPrefixes,), registry=INTEGERS)
    words = sys.argv[1:] if arguments is None else arguments
    check_given_once(words, "--state", "--rewards", "--reward-weights", "--wrappers", "--evaluate", "--eval-states")
    ranks = Ranks.from_torchrun()
    with ranks.printing_once():  # tyro prints which options are wrong
        args = parse()
    run, games, checkpoint = args.run, names_of_run(args.env.env_id, args.env.fallback), None
    if args.eval.evaluate and run.resume:
        raise KartRewardsError(f"--resume {run.resume}: is for training: leave it out, or leave out --evaluate")
    if args.eval.evaluate and not args.eval.loader:
        checkpoint = Checkpoint.load(Path(args.eval.evaluate[0]))
    elif run.resume:  # only the machine of rank 0 needs the checkpoint
        checkpoint = ranks.from_rank_0(find_checkpoint, run.resume, run.runs_path, games, run.exp_name, run.seed)
    if checkpoint:
        args = parse(default=saved_args(checkpoint, args.run.trust, resuming=not args.eval.evaluate))
    check_bounds(args.env, args.ppo, args.eval, args.run)
    args.ppo.check()
    args.eval.check()
    if not args.eval.loader:  # its agents have environments of their own
        args.env = args.env.resolved()
        args.eval.eval_states = absolute_states(args.eval.eval_states, args.env.env_id, args.env.integrations_path)
    return args, checkpoint


def saved_args(checkpoint: Checkpoint, trust: bool = False, resuming: bool = False) -> Args:
    """Returns the options of a checkpoint's run, without those that were meant for one start only.

    Raises:
        KartRewardsError: The checkpoint is damaged; or, if ``resuming``, it names code that must be trusted first.
    """
    args = Args(**checkpoint.restore_options(get_type_hints(Args)))
    if not resuming:  # --max-episode-steps then is the length of the episodes that are evaluated
        args.env.max_episode_steps = args.eval.eval_max_episode_steps or args.env.max_episode_steps
    args.run, args.eval = args.run.of_next_start(), args.eval.of_next_start(resuming)
    args.env = replace(args.env, **({} if trust else without_foreign_code(checkpoint, vars(args.env), resuming)))
    return args


def load_agent(path: Path, trust: bool = False) -> TrainedAgent:
    """Loads an agent that this script saved, to watch or evaluate it.

    Args:
        path: The file.
        trust: Run the reward scripts that the file names, even if another user or computer made it.

    Raises:
        KartRewardsError: The file is not such an agent, or its game can't be played.
    """
    checkpoint = Checkpoint.load(path)
    args = saved_args(checkpoint, trust)
    if trust or is_own(checkpoint.options["env"], checkpoint.signature):
        use_changed_sources(path.parent, trust)  # also runs the copies of scripts
    env = args.env.resolved()
    return TrainedAgent(
        path=path,
        make_policy=functools.partial(TorchPolicy, Agent, checkpoint.agent),
        env_options=env.for_kart_env(),
        max_episode_frames=args.eval.max_episode_frames(env.episode_limit, env.frame_skip),
        seed=args.run.seed,
        steps=checkpoint.steps,
    )


@on_every_rank
def main(ranks: Ranks) -> None:
    args, checkpoint = parse_args()
    env, ppo, env_options = args.env, args.ppo, args.env.for_kart_env()
    limit = args.eval.max_episode_frames(env.episode_limit, env.frame_skip)
    if args.eval.evaluate:
        if ranks.rank == 0:
            evaluate_from_options(args.eval, load_agent, env_options if checkpoint else None, limit, args.run.trust)
        return

    ranks.check_shares({"--num-envs": ppo.num_envs, "a minibatch's steps": ppo.minibatch_size})
    device = choose_device(args.run.device, ranks)
    game = find_game(env.env_id, env.integrations_path)
    rewards = RunRewards.load(game, env.scenario, env.info, env.rewards, env_options["reward_weights"])
    courses = args.eval.eval_states or env.state or (game.default_state(),)
    for state in courses:
        game.load_state(state)  # a missing course should be reported now, not at the first evaluation
    resumption = None
    if checkpoint:
        allow, auto = args.run.allow_changed_rewards, args.run.resume == "auto"
        resumption = Resumption.decide(checkpoint, to_plain_options(args), rewards, ppo.batch_size, allow, auto)
    evaluate = EvaluationInTraining(functools.partial(TorchPolicy, Agent), env_options, courses, args.eval, limit)
    stop = stop_on_signals(announce=ranks.rank == 0)
    with (
        closing(evaluate),
        closing(make_training_envs(env_options, ppo.num_envs, env.episode_limit, ranks)) as envs,
        joined(ranks, device, stop),
    ):
        make_agent = functools.partial(Agent, envs.single_observation_space, envs.single_action_space)
        args.run = choose_computing(args.run, make_agent, ranks.share(ppo.minibatch_size), device, ranks)
        work, settings = (ppo.total_timesteps, ppo.batch_size), to_plain_options(args)
        train(args, Run(args.run, settings, rewards, envs, ranks, device, *work, evaluate, stop, resumption))


if __name__ == "__main__":
    run_command(main)
