"""Trains a racer from pixels with PPO, in one file that reads from top to bottom.

    python ppo_continuous_single_file.py --env-id MarioKart-Snes
    tensorboard --logdir runs

The order is CleanRL's: options, environments, agent, then the stages of training, each a function: ``collect`` plays a
rollout, ``gae`` estimates advantages, ``update`` improves the agent. ``main`` strings them together.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import math
import multiprocessing.connection
import os
import random
import shlex
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, Normal
from torch.utils.tensorboard import SummaryWriter

from kart_rewards.env import KartEnv
from kart_rewards.errors import KartRewardsError
from kart_rewards.integrations import INTEGRATIONS, MissingRomError, default_max_episode_steps, find_game, list_games
from kart_rewards.observations import ObservationConfig
from kart_rewards.rewards import parse_weights
from kart_rewards.scenario import Scoring, load_scoring
from kart_rewards.scripting import Script
from kart_rewards.video import RecordEpisodes, ever_fewer

FREE_GAME = "HomebrewKart-Snes"  # what runs when the retail game's dump is not there
RETAIL_GAME = "MarioKart-Snes"


# ------------------------------------------------------------------------------------------------------------- options
@dataclass
class RunOptions:
    """The run: where it goes, how it is logged and saved."""

    exp_name: str = Path(__file__).stem
    """Part of the run's name: runs/{env-id}__{exp-name}__{seed}__{time}."""
    seed: int = 1
    """Seed of the agent, the rollouts and the environments."""
    runs_path: Path = Path("runs")
    """Folder for runs: each has a folder of its own there, for its TensorBoard log, checkpoints and videos."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the agent runs. auto: cuda if there is one, else cpu."""
    torch_deterministic: bool = True
    """Use only deterministic algorithms in cuDNN."""
    resume: str | None = None
    """Checkpoint to resume, such as runs/NAME/agent.pt. Its options apply, except those given here. auto: the newest
    whole one of a run with this game, name and seed, if there is any."""
    allow_changed_rewards: bool = False
    """Resume though the reward terms or done rules are not those of the checkpoint."""
    checkpoint_interval: int = 20
    """Save a checkpoint every so many updates, and at the end. 0: at the end only."""
    checkpoints_kept: int = 3
    """Keep the last so many checkpoints, as agent-STEPS.pt; agent.pt is the newest."""
    capture_video: bool = False
    """Write episodes of the first environment as MP4, less often as training goes on."""
    video_path: Path | None = None
    """Folder for videos. By default videos/ in the run's folder."""
    track: bool = False
    """Mirror the log to Weights & Biases (needs pip install '.[wandb]')."""
    wandb_project_name: str = "kart_rewards"
    """The Weights & Biases project."""
    wandb_entity: str | None = None
    """The Weights & Biases team."""


@dataclass
class EnvOptions:
    """The environment: game, rewards, actions, observations."""

    env_id: str = RETAIL_GAME
    """The game: a folder's name under the integrations path."""
    integrations_path: Path | None = None
    """Folder of games, in stable-retro's layout. By default the project's own."""
    fallback: bool = True
    """Train HomebrewKart-Snes when MarioKart-Snes has no ROM. --no-fallback makes a missing ROM an error."""
    state: tuple[str, ...] = ()
    """Start states: names in the game's folder, or .state files; each episode draws one. By default metadata.json's."""
    scenario: str = "scenario"
    """Which reward terms and done rules to use: the name of a file in the game's folder, or a .json path."""
    info: str = "data"
    """Which RAM variables there are: the name of a file in the game's folder, or a .json path."""
    rewards: tuple[str, ...] = ()
    """Python files or modules with reward terms and done rules to add."""
    reward_weights: tuple[str, ...] = ()
    """Weights that override the scenario's, as NAME=NUMBER: --reward-weights wall=-5 top_speed=0.02."""
    reward_transform: Literal["scale", "sign", "none"] = "scale"
    """What the agent gets of each emulated frame's reward: a scaled sum, its sign (as in the original: weights then
    hardly matter), or the plain sum."""
    reward_scale: float = 0.01
    """Factor of --reward-transform scale."""
    action_mode: Literal["continuous", "driving", "all", "filtered", "discrete", "multi-discrete"] = "continuous"
    """continuous: steering, the throttle held. driving: throttle alone, left, right, hop. Others: stable-retro's."""
    frame_skip: int = 4
    """Emulated frames an action is held."""
    crop: tuple[int, int, int, int] | None = ObservationConfig.crop
    """Part of the screen to see: top, bottom, left, right. None: all of it."""
    max_pool: bool = True
    """See the brighter of the last two frames in each pixel."""
    grey: bool = True
    """See luminance instead of colours."""
    size: tuple[int, int] | None = ObservationConfig.size
    """Height and width of an observation. None: the screen's."""
    stack: int = 4
    """How many observations to stack."""
    random_start_steps: int = 0
    """Begin each episode with 0 to this many steps of random actions, unscored."""
    max_episode_steps: int | None = None
    """Agent steps after which an episode is truncated. By default as many as make 12,000 emulated frames (200 s)."""

    @property
    def games(self) -> Path:
        """The folder of games."""
        return self.integrations_path or INTEGRATIONS

    @property
    def episode_limit(self) -> int:
        """Agent steps after which an episode is truncated."""
        return self.max_episode_steps or default_max_episode_steps(self.frame_skip)


@dataclass
class PPOOptions:
    """The algorithm: proximal policy optimisation."""

    total_timesteps: int = 500_000
    """Agent steps to train for, over all environments."""
    learning_rate: float = 2.5e-4
    """Adam's step size at the start."""
    anneal_lr: bool = True
    """Lower the learning rate linearly to 0."""
    num_envs: int = 8
    """Environments played at once, a process each."""
    num_steps: int = 128
    """Steps a rollout takes in each environment."""
    gamma: float = 0.99
    """Discount factor."""
    gae_lambda: float = 0.95
    """Lambda of the generalised advantage estimation."""
    num_minibatches: int = 4
    """Minibatches a rollout is split into."""
    update_epochs: int = 4
    """Passes over a rollout in each update."""
    norm_adv: bool = True
    """Normalise advantages in each minibatch."""
    clip_coef: float = 0.1
    """How far the policy's probability ratio may move from 1."""
    clip_vloss: bool = True
    """Clip the value loss too."""
    ent_coef: float = 0.01
    """Weight of the entropy bonus."""
    vf_coef: float = 0.5
    """Weight of the value loss."""
    max_grad_norm: float = 0.5
    """Largest norm of the gradient."""
    target_kl: float | None = None
    """Stop an update's epochs once the policy has moved this far. None: never."""

    @property
    def batch_size(self) -> int:
        """Steps in a rollout."""
        return self.num_envs * self.num_steps

    @property
    def minibatch_size(self) -> int:
        """Steps in a minibatch."""
        return self.batch_size // self.num_minibatches

    @property
    def num_updates(self) -> int:
        """Rollouts, each with its update, in a run."""
        return self.total_timesteps // self.batch_size

    def check(self) -> None:
        """Raises KartRewardsError if the numbers do not fit together."""
        if self.batch_size % self.num_minibatches:
            raise KartRewardsError(
                f"a rollout of {self.num_envs} environments x {self.num_steps} steps = {self.batch_size} steps does "
                f"not split into {self.num_minibatches} equal minibatches: change --num-minibatches"
            )
        if self.minibatch_size == 1 and self.norm_adv:
            raise KartRewardsError("advantages can't be normalised in minibatches of 1 step: lower --num-minibatches")
        if self.num_updates < 1:
            raise KartRewardsError(
                f"--total-timesteps {self.total_timesteps} is less than one rollout of {self.batch_size} steps: raise "
                "it, or lower --num-envs or --num-steps"
            )


def check_ranges(args: Args) -> None:
    """Raises KartRewardsError if an option is out of its range, naming it."""
    ranges: dict[str, tuple[float, float]] = {
        "--frame-skip": (1, math.inf),
        "--stack": (1, math.inf),
        "--random-start-steps": (0, math.inf),
        "--max-episode-steps": (1, math.inf),
        "--num-envs": (1, math.inf),
        "--num-steps": (1, math.inf),
        "--num-minibatches": (1, math.inf),
        "--update-epochs": (1, math.inf),
        "--learning-rate": (0, math.inf),
        "--gamma": (0, 1),
        "--gae-lambda": (0, 1),
        "--clip-coef": (0, math.inf),
        "--max-grad-norm": (0, math.inf),
        "--seed": (0, 2**32 - 1),
        "--checkpoint-interval": (0, math.inf),
        "--checkpoints-kept": (1, math.inf),
    }
    values = {**vars(args.env), **vars(args.ppo), **vars(args.run)}
    for option, (least, most) in ranges.items():
        value = values[option.removeprefix("--").replace("-", "_")]
        if value is not None and not least <= value <= most:
            wanted = f"{least} or more" if most == math.inf else f"between {least} and {most}"
            raise KartRewardsError(f"{option} must be {wanted}, not {value}")


@dataclass
class Args:
    """Trains a racer from pixels with PPO: python ppo_continuous_single_file.py --env-id MarioKart-Snes"""

    env: EnvOptions = field(default_factory=EnvOptions)
    ppo: PPOOptions = field(default_factory=PPOOptions)
    run: RunOptions = field(default_factory=RunOptions)


# -------------------------------------------------------------------------------------------------------- environments
def make_training_env(env: EnvOptions, index: int, video_folder: Path | None) -> gym.Env:
    """Makes one environment; this runs in a process of its own."""
    _serve_parent()
    made: gym.Env = KartEnv(
        env.env_id,
        integrations=env.games,
        state=env.state,
        scenario=env.scenario,
        info=env.info,
        rewards=env.rewards,
        reward_weights=parse_weights(env.reward_weights),
        reward_transform=env.reward_transform,
        reward_scale=env.reward_scale,
        action_mode=env.action_mode,
        observation=ObservationConfig(env.crop, env.max_pool, env.grey, env.size, env.stack),
        frame_skip=env.frame_skip,
        random_start_steps=env.random_start_steps,
        render_mode="rgb_array" if video_folder else None,
    )
    if video_folder:
        made = RecordEpisodes(made, video_folder, ever_fewer)
    return TrainingEpisodes(made, index, env.episode_limit)


@contextmanager
def environments(args: Args, video_folder: Path) -> Iterator[AsyncVectorEnv]:
    """Makes the environments, a process each, and ends them however the block ends.

    The first is also made, and closed, in this process, so that bad options end here with one message.
    """
    gym.logger.min_level = gym.logger.ERROR + 1  # a worker's error reaches us as an exception; its traceback is noise
    makers = [
        functools.partial(make_training_env, args.env, i, video_folder if args.run.capture_video and i == 0 else None)
        for i in range(args.ppo.num_envs)
    ]
    try:
        envs = AsyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)
    except (EOFError, ConnectionError):
        raise KartRewardsError("an environment's process ended before it began") from None
    try:
        yield envs
        envs.close()  # politely, so that a video is finished
    finally:
        for process in envs.processes:
            process.kill()
        for process in envs.processes:
            process.join()
        envs.closed = True  # or it would talk to them when it is garbage-collected


def describe_dead(envs: AsyncVectorEnv) -> str:
    """Says which of the environments' processes ended, and how."""
    ended = multiprocessing.connection.wait([process.sentinel for process in envs.processes], timeout=5)
    dead = [(i, process) for i, process in enumerate(envs.processes) if process.sentinel in ended]
    for _, process in dead:
        process.join()  # its end of the pipe closes a moment before its exit code is known
    listed = ", ".join(f"number {i} (exit code {process.exitcode})" for i, process in dead)
    return f"an environment's process ended unexpectedly: {listed or 'which one is not known'}"


def _serve_parent() -> None:
    """In an environment's process: leave signals to the trainer, and die with it however it dies."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal and `timeout` send theirs to the children, too
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def exit_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()


class TrainingEpisodes(gym.Wrapper):
    """What training wants of episodes: a step limit, their return and length, and to go on from a checkpoint.

    Only an episode's last info is kept, which training reads: the others would cost time between processes. It gains
    ``episode``: ``r``, the return, and ``l``, the length in steps, as Gymnasium's RecordEpisodeStatistics calls them.

    ``reset`` takes ``options={"states": [...]}``, what ``get_state`` returned of each environment, to go on from there.

    Args:
        env: A ``KartEnv``, or a wrapper around one.
        index: Its number among the run's environments.
        max_episode_steps: Steps after which an episode is truncated.
    """

    def __init__(self, env: gym.Env, index: int, max_episode_steps: int) -> None:
        super().__init__(env)
        self.index = index
        self.max_episode_steps = max_episode_steps
        self.episode_return = 0.0
        self.episode_steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.episode_return = 0.0
        self.episode_steps = 0
        observation, info = self.env.reset(seed=seed, options=options)
        if options and "states" in options:
            state = options["states"][self.index]
            self.episode_return, self.episode_steps = state["return"], state["steps"]
            observation = self.unwrapped.set_state(state["env"])  # type: ignore[attr-defined]
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.episode_return += float(reward)
        self.episode_steps += 1
        truncated = truncated or self.episode_steps >= self.max_episode_steps
        if not (terminated or truncated):
            return observation, reward, False, False, {}
        info["episode"] = {"r": self.episode_return, "l": self.episode_steps}
        return observation, reward, terminated, truncated, info

    def get_state(self) -> dict[str, Any]:
        """Returns all that the rest of the run depends on, as plain values and bytes."""
        env = self.unwrapped.get_state()  # type: ignore[attr-defined]
        return {"return": self.episode_return, "steps": self.episode_steps, "env": env}


def final_infos(infos: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the last info of each environment whose episode just ended, out of a vector environment's merged infos."""

    def unmerge(merged: dict[str, Any], i: int) -> dict[str, Any]:
        present = (key for key in merged if not key.startswith("_") and merged[f"_{key}"][i])
        return {key: unmerge(merged[key], i) if isinstance(merged[key], dict) else merged[key][i] for key in present}

    for i in np.flatnonzero(infos.get("_final_info", ())):
        yield unmerge(infos["final_info"], int(i))


# --------------------------------------------------------------------------------------------------------------- agent
def layer_init(layer: Any, std: float = math.sqrt(2), bias: float = 0.0) -> Any:
    """Orthogonal weights and a constant bias, as PPO's reference implementation has them."""
    nn.init.orthogonal_(layer.weight, std)
    nn.init.constant_(layer.bias, bias)
    return layer


class MultiCategorical:
    """Independent categorical choices, one for each entry of a MultiDiscrete action.

    Args:
        logits: Shape (batch, sum of sizes).
        sizes: How many options each choice has.
    """

    def __init__(self, logits: Tensor, sizes: list[int]) -> None:
        self.parts = [Categorical(logits=part) for part in logits.split(sizes, dim=-1)]

    def sample(self) -> Tensor:
        return torch.stack([part.sample() for part in self.parts], dim=-1)

    def log_prob(self, action: Tensor) -> Tensor:
        chosen = action.unbind(dim=-1)
        return torch.stack([part.log_prob(choice) for part, choice in zip(self.parts, chosen, strict=True)]).sum(0)

    def entropy(self) -> Tensor:
        return torch.stack([part.entropy() for part in self.parts]).sum(0)


class DivergedError(KartRewardsError):
    """Training went wrong for good: the agent must not replace a checkpoint's."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"the agent's {what} are no longer finite: resume an earlier checkpoint with a lower --learning-rate, or "
            "check what the reward terms pay"
        )


class Agent(nn.Module):
    """Policy and value function over one convolutional encoder. The policy's head follows from the action space.

    Args:
        observation_space: Box of uint8 images: (channels, height, width), (height, width, 3), or a stack of the latter.
        action_space: Box, Discrete, MultiDiscrete or MultiBinary.
    """

    def __init__(self, observation_space: gym.Space, action_space: gym.Space) -> None:
        super().__init__()
        example = torch.zeros(1, *(observation_space.shape or ()), dtype=torch.uint8)
        convolutions = nn.Sequential(
            layer_init(nn.Conv2d(self._to_channels(example).shape[1], 32, 8, stride=4)),
            nn.ReLU(),
            layer_init(nn.Conv2d(32, 64, 4, stride=2)),
            nn.ReLU(),
            layer_init(nn.Conv2d(64, 64, 3, stride=1)),
            nn.ReLU(),
            nn.Flatten(),
        )
        try:
            features = convolutions(self._to_channels(example)).shape[1]
        except RuntimeError:
            raise KartRewardsError(
                f"observations of shape {observation_space.shape} are too small for the network: use 36x36 or more"
            ) from None
        self.encoder = nn.Sequential(convolutions, layer_init(nn.Linear(features, 512)), nn.ReLU())
        self.critic = layer_init(nn.Linear(512, 1), std=1.0)
        self.action_space = action_space
        if isinstance(action_space, gym.spaces.Box):
            outputs = action_space.shape[0]
            self.actor_log_std = nn.Parameter(torch.full((1, outputs), -0.5))
        elif isinstance(action_space, gym.spaces.Discrete):
            outputs = int(action_space.n)
        elif isinstance(action_space, gym.spaces.MultiDiscrete):
            outputs = int(action_space.nvec.sum())
        elif isinstance(action_space, gym.spaces.MultiBinary):
            outputs = int(np.prod(action_space.n))
        else:
            raise KartRewardsError(f"the agent has no head for the action space {action_space}")
        self.actor = layer_init(nn.Linear(512, outputs), std=0.01)

    @staticmethod
    def _to_channels(observation: Tensor) -> Tensor:
        """(batch, ...) images of any of the environment's shapes -> (batch, channels, height, width), 0 to 1."""
        if observation.shape[-1] == 3:  # colour: channels come last
            observation = observation.movedim(-1, -3).flatten(1, -3)
        return observation / 255.0

    def policy(self, hidden: Tensor) -> Distribution | MultiCategorical:
        """Returns the distribution over actions.

        Raises:
            DivergedError: It has no finite parameters any more.
        """
        output = self.actor(hidden)
        if not output.isfinite().all():
            raise DivergedError("outputs")
        if isinstance(self.action_space, gym.spaces.Box):
            std = self.actor_log_std.exp().expand_as(output)
            return Independent(Normal(output, std, validate_args=False), 1)  # what is not finite, update notices
        if isinstance(self.action_space, gym.spaces.Discrete):
            return Categorical(logits=output)
        if isinstance(self.action_space, gym.spaces.MultiDiscrete):
            return MultiCategorical(output, self.action_space.nvec.tolist())
        return Independent(Bernoulli(logits=output), 1)

    def get_value(self, observation: Tensor) -> Tensor:
        """Returns the value of each observation, shape (batch,)."""
        return self.critic(self.encoder(self._to_channels(observation))).squeeze(-1)

    def get_action_and_value(
        self, observation: Tensor, action: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns actions (drawn, unless given), their log-probabilities, the policy's entropies and the values."""
        hidden = self.encoder(self._to_channels(observation))
        policy = self.policy(hidden)
        if action is None:
            action = policy.sample()
        return action, policy.log_prob(action), policy.entropy(), self.critic(hidden).squeeze(-1)


# ------------------------------------------------------------------------------------------------------------- rollout
@dataclass
class Rollout:
    """What one rollout leaves: tensors of shape (num_steps, num_envs, ...).

    ``dones[t]`` tells whether ``observations[t]`` begins a new episode. ``next_observation`` and ``next_done`` continue
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
    def empty(cls, envs: gym.vector.VectorEnv, num_steps: int, device: torch.device) -> Rollout:
        """Makes room for rollouts; the memory is used again for each."""
        actions = envs.single_action_space
        shape = (num_steps, envs.num_envs)
        zeros = functools.partial(torch.zeros, device=device)
        chosen_by_number = isinstance(actions, (gym.spaces.Discrete, gym.spaces.MultiDiscrete))
        observation_shape = envs.single_observation_space.shape or ()
        return cls(
            observations=zeros(*shape, *observation_shape, dtype=torch.uint8),
            actions=zeros(*shape, *(actions.shape or ()), dtype=torch.int64 if chosen_by_number else torch.float32),
            log_probs=zeros(shape),
            rewards=zeros(shape),
            dones=zeros(shape),
            values=zeros(shape),
            next_observation=zeros(envs.num_envs, *observation_shape, dtype=torch.uint8),
            next_done=zeros(envs.num_envs),
        )


@torch.no_grad()
def collect(
    agent: Agent,
    envs: gym.vector.VectorEnv,
    rollout: Rollout,
    gamma: float,
    on_step: Callable[[dict[str, Any]], None],
) -> None:
    """Plays a rollout, from where the last one ended.

    A truncated episode could have gone on: its last reward gets the discounted value of its real final observation.

    Args:
        agent: Chooses the actions.
        envs: Autoreset must be in the same step, so that no step is wasted on resets.
        rollout: Filled in.
        gamma: Discount factor.
        on_step: Is called after each step with the vector environment's infos.
    """
    device = rollout.rewards.device
    for step in range(rollout.rewards.shape[0]):
        rollout.observations[step] = rollout.next_observation
        rollout.dones[step] = rollout.next_done
        action, log_prob, _, value = agent.get_action_and_value(rollout.next_observation)
        rollout.actions[step] = action
        rollout.log_probs[step] = log_prob
        rollout.values[step] = value

        observation, reward, terminated, truncated, infos = envs.step(action.cpu().numpy())
        rollout.next_observation = torch.as_tensor(observation, device=device)
        rollout.next_done = torch.as_tensor(terminated | truncated, dtype=torch.float32, device=device)
        rollout.rewards[step] = torch.as_tensor(reward, dtype=torch.float32, device=device)

        cut_off = np.flatnonzero(truncated & ~terminated)
        if cut_off.size:
            final_observations = torch.as_tensor(np.stack(infos["final_obs"][cut_off]), device=device)
            rollout.rewards[step, cut_off] += gamma * agent.get_value(final_observations)
        on_step(infos)


# ---------------------------------------------------------------------------------------------------------- advantages
def gae(rollout: Rollout, next_value: Tensor, gamma: float, gae_lambda: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al., 2016, https://arxiv.org/abs/1506.02438).

    Args:
        rollout: Rewards, values and dones, shape (num_steps, num_envs).
        next_value: Value of the observation after the last step, shape (num_envs,).
        gamma: Discount factor.
        gae_lambda: Between 0 (one-step differences) and 1 (whole returns).

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
) -> dict[str, float]:
    """Improves the agent on a rollout: several epochs of minibatches under PPO's clipped objective.

    Returns:
        The losses and diagnostics of the last minibatch, by their TensorBoard names, without ``losses/``.
    """
    observations, actions, log_probs, old_values, advantages, returns = (
        tensor.flatten(0, 1)
        for tensor in (rollout.observations, rollout.actions, rollout.log_probs, rollout.values, advantages, returns)
    )
    clipped_fractions = []
    for _ in range(ppo.update_epochs):
        for minibatch in torch.randperm(ppo.batch_size, device=returns.device).split(ppo.minibatch_size):
            _, log_prob, entropy, value = agent.get_action_and_value(observations[minibatch], actions[minibatch])
            log_ratio = log_prob - log_probs[minibatch]
            ratio = log_ratio.exp()
            with torch.no_grad():  # http://joschu.net/blog/kl-approx.html
                old_approx_kl = (-log_ratio).mean()
                approx_kl = ((ratio - 1) - log_ratio).mean()
                clipped_fractions.append(((ratio - 1.0).abs() > ppo.clip_coef).float().mean())

            advantage = advantages[minibatch]
            if ppo.norm_adv:
                advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
            unclipped = -advantage * ratio
            clipped = -advantage * ratio.clamp(1 - ppo.clip_coef, 1 + ppo.clip_coef)
            policy_loss = torch.max(unclipped, clipped).mean()

            value_error = (value - returns[minibatch]) ** 2
            if ppo.clip_vloss:
                old = old_values[minibatch]
                value_clipped = old + (value - old).clamp(-ppo.clip_coef, ppo.clip_coef)
                value_error = torch.max(value_error, (value_clipped - returns[minibatch]) ** 2)
            value_loss = 0.5 * value_error.mean()

            entropy_loss = entropy.mean()
            loss = policy_loss - ppo.ent_coef * entropy_loss + ppo.vf_coef * value_loss
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), ppo.max_grad_norm)
            optimizer.step()
        if ppo.target_kl is not None and approx_kl > ppo.target_kl:
            break

    return {
        "value_loss": value_loss.item(),
        "policy_loss": policy_loss.item(),
        "entropy": entropy_loss.item(),
        "old_approx_kl": old_approx_kl.item(),
        "approx_kl": approx_kl.item(),
        "clipfrac": torch.stack(clipped_fractions).mean().item(),
        "explained_variance": (1 - (returns - old_values).var() / returns.var()).item(),
    }


# --------------------------------------------------------------------------------------------------------- checkpoints
def save_checkpoint(folder: Path, content: dict[str, Any], kept: int) -> None:
    """Writes a checkpoint as agent-STEPS.pt and agent.pt, and removes all but the newest.

    A file of that name is whole at every moment: the new one takes its place at a stroke.

    Args:
        folder: The run's folder.
        content: What ``load_checkpoint`` returns again.
        kept: How many checkpoints to keep.

    Raises:
        OSError: The disk is full or read-only; the old checkpoints are still there.
    """
    buffer = io.BytesIO()  # torch.save tells a full disk by a RuntimeError; a plain write says what happened
    torch.save(content, buffer)
    temporary = folder / ".agent.pt.partial"
    try:
        for name in (f"agent-{content['steps']}.pt", "agent.pt"):
            with temporary.open("wb") as file:
                file.write(buffer.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(folder / name)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    for old in newest_first(folder.glob("agent-*.pt"))[kept:]:
        old.unlink()


def newest_first(paths: Iterable[Path]) -> list[Path]:
    """Returns files sorted by when they were written, the last first."""
    return sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True)


CHECKPOINT_KEYS = {
    "agent",
    "optimizer",
    "updates",
    "steps",
    "torch_rng",
    "cuda_rng",
    "options",
    "scoring",
    "env_states",
}


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint. It may come from anywhere: nothing but tensors and plain values is unpickled.

    Raises:
        KartRewardsError: There is none, or it is damaged or not a checkpoint of this script.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise KartRewardsError(f"{path}: can't be read: {error.strerror}") from None
    try:
        checkpoint = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch makes of a damaged or foreign file
        raise KartRewardsError(f"{path}: is not a checkpoint, or a damaged one ({type(error).__name__})") from None
    if not isinstance(checkpoint, dict) or CHECKPOINT_KEYS - checkpoint.keys():
        raise KartRewardsError(f"{path}: is not a checkpoint of this script")
    return checkpoint


def newest_checkpoint(args: Args) -> str | None:
    """Returns the newest whole checkpoint of a run with this game, name and seed; says which damaged ones it passed."""
    games = [args.env.env_id, *([FREE_GAME] if args.env.env_id == RETAIL_GAME and args.env.fallback else [])]
    found = [
        path
        for game in games
        for path in args.run.runs_path.glob(f"{game}__{args.run.exp_name}__{args.run.seed}__*/agent*.pt")
    ]
    for path in newest_first(found):
        try:
            load_checkpoint(path)
            return str(path)
        except KartRewardsError as error:
            print(f"passed over: {error}")
    return None


def plain(value: Any) -> Any:
    """Turns options into what a checkpoint may hold and tyro can't misread: paths become text."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return str(value) if isinstance(value, Path) else value


def options_of(checkpoint: dict[str, Any]) -> Args:
    """Returns the options that a checkpoint's run was started with."""
    saved = checkpoint["options"]
    try:
        args = Args(EnvOptions(**saved["env"]), PPOOptions(**saved["ppo"]), RunOptions(**saved["run"]))
    except (KeyError, TypeError) as error:
        raise KartRewardsError(f"the checkpoint is of another version of this script: {error}") from None
    for group, name in ((args.env, "integrations_path"), (args.run, "runs_path"), (args.run, "video_path")):
        if getattr(group, name) is not None:
            setattr(group, name, Path(getattr(group, name)))
    args.run.resume, args.run.allow_changed_rewards = None, False  # these were meant for that time only
    return args


# ------------------------------------------------------------------------------------------------------------ progress
class Progress:
    """One line on the terminal, renewed in place; a new line every 10 seconds where the output is no terminal.

    Args:
        total_steps: Agent steps of the whole run.
        steps: Agent steps done before this process started.
    """

    def __init__(self, total_steps: int, steps: int) -> None:
        self.total_steps, self.first_step = total_steps, steps
        self.started = time.monotonic()
        self.returns: deque[float] = deque(maxlen=20)
        self.best_lap_seconds = math.inf
        self._terminal = sys.stdout.isatty()
        self._next_print = 0.0
        self._width = 0

    def steps_per_second(self, steps: int) -> float:
        """The rate since this process started."""
        return (steps - self.first_step) / max(time.monotonic() - self.started, 1e-9)

    def show(self, steps: int, now: bool = False) -> None:
        """Renews the line, if it is time to."""
        if not now and time.monotonic() < self._next_print:
            return
        self._next_print = time.monotonic() + (0.5 if self._terminal else 10.0)
        rate = self.steps_per_second(steps)
        parts = [f"{steps:,}/{self.total_steps:,} steps", f"{rate:,.0f} steps/s"]
        if rate:
            parts.append(f"{duration((self.total_steps - steps) / rate)} left")
        if self.returns:
            parts.append(f"return {sum(self.returns) / len(self.returns):.1f}")
        if self.best_lap_seconds < math.inf:
            parts.append(f"best lap {self.best_lap_seconds:.2f} s")
        line = "  ".join(parts)
        self._width = max(self._width, len(line))
        try:
            print(
                f"\r{line:<{self._width}}" if self._terminal else line, end="" if self._terminal else "\n", flush=True
            )
        except BrokenPipeError:  # whoever read the output has gone; training goes on
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def finish(self, steps: int) -> None:
        """Shows the line a last time and ends it."""
        self.show(steps, now=True)
        if self._terminal:
            print()


def duration(seconds: float) -> str:
    """``5025`` -> ``1 h 24 min``."""
    minutes = math.ceil(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


# ---------------------------------------------------------------------------------------------------------------- main
def choose_game(env: EnvOptions) -> EnvOptions:
    """Returns the options with the game that can run: the free one stands in for the retail one, and says so."""
    try:
        find_game(env.env_id, env.games).rom()
    except MissingRomError as error:
        if not (env.fallback and env.env_id == RETAIL_GAME):
            raise
        print(
            f"{error}\nTraining {FREE_GAME} instead: a free game of the project's own with the same RAM map and the "
            f"same rewards. (--no-fallback makes this an error.)\n"
        )
        has_it = FREE_GAME in list_games(env.games)
        return replace(env, env_id=FREE_GAME, integrations_path=env.integrations_path if has_it else None)
    return env


def parse_args(arguments: list[str] | None = None) -> tuple[Args, dict[str, Any] | None]:
    """Returns the options, and the checkpoint to go on from if they name one."""
    parse = functools.partial(tyro.cli, Args, args=arguments, config=(tyro.conf.OmitArgPrefixes,))
    args = parse()
    checkpoint = None
    if args.run.resume == "auto":
        args.run.resume = newest_checkpoint(args)
    if args.run.resume:
        path = args.run.resume
        checkpoint = load_checkpoint(Path(path))
        args = parse(default=options_of(checkpoint))  # the saved options become the defaults
        args.run.resume = path
    args.env = choose_game(args.env)
    check_ranges(args)
    args.ppo.check()
    # So that a resumed run finds them from elsewhere.
    args.env.rewards = tuple(str(Path(item).resolve()) if item.endswith(".py") else item for item in args.env.rewards)
    return args, checkpoint


def check_scoring(run: RunOptions, saved: dict[str, str], current: dict[str, str]) -> None:
    """Says what changed of the reward terms and done rules since the checkpoint.

    Raises:
        KartRewardsError: Something changed, and no flag allows it.
    """
    changed = [
        f"  {name}: {saved.get(name, 'was not there')} -> {current.get(name, 'is not there')}"
        for name in {**saved, **current}
        if saved.get(name) != current.get(name)
    ]
    if changed:
        listed = "\n".join(changed)
        if not run.allow_changed_rewards:
            raise KartRewardsError(
                f"{run.resume}: was trained under other reward terms or done rules (source: a hash of the file):\n"
                f"{listed}\nResume under the old ones, or add --allow-changed-rewards"
            )
        print(f"Resuming under other reward terms or done rules:\n{listed}\n")


def choose_device(name: str) -> torch.device:
    """Returns the device; ``auto`` is cuda if there is one, else cpu."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available[name]:
        raise KartRewardsError(f"--device {name}: this machine, or this build of PyTorch, has none: use --device auto")
    return torch.device(name)


def log_episode(writer: SummaryWriter, info: dict[str, Any], steps: int, progress: Progress) -> None:
    """Writes an episode's last info to TensorBoard and to the progress line."""
    progress.returns.append(float(info["episode"]["r"]))
    writer.add_scalar("charts/episodic_return", info["episode"]["r"], steps)
    writer.add_scalar("charts/episodic_length", info["episode"]["l"], steps)
    for table, by_term in info["episode_rewards"].items():
        for term, value in by_term.items():
            writer.add_scalar(f"rewards/{term}" if table == "sum" else f"rewards_{table}/{term}", value, steps)
    race = info.get("race", {})
    for metric, value in race.items():
        writer.add_scalar(f"race/{metric}", value, steps)
    progress.best_lap_seconds = min(progress.best_lap_seconds, race.get("best_lap_time_seconds", math.inf))


def silence_the_log_writer() -> None:
    """TensorBoard writes in a thread of its own, whose error is raised at our next call too: once is enough."""
    threading.excepthook = lambda info: None if issubclass(info.exc_type, OSError) else threading.__excepthook__(info)


def stop_on_signals() -> threading.Event:
    """Returns an event that Ctrl-C or SIGTERM sets; a second one ends the program at once."""
    stop = threading.Event()

    def on_signal(number: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        with suppress(OSError):
            os.write(
                sys.stderr.fileno(), b"\nstopping after this update... (again: at once)\n"
            )  # print is not safe in a handler

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    return stop


def run_folder(args: Args, checkpoint: dict[str, Any] | None) -> Path:
    """Returns the run's folder: the resumed checkpoint's, or a new one.

    A new one, too, if the checkpoint is of another game, or if its folder holds one ahead of it, which would be lost.
    """
    if checkpoint and args.run.resume and checkpoint["options"]["env"]["env_id"] == args.env.env_id:
        folder = Path(args.run.resume).parent
        try:
            ahead = load_checkpoint(folder / "agent.pt")["steps"] > checkpoint["steps"]
        except KartRewardsError:  # none, or damaged
            ahead = False
        if not ahead:
            return folder
        print(f"{folder / 'agent.pt'} is ahead of {args.run.resume}: the run goes on in a folder of its own.\n")
    name = f"{args.env.env_id}__{args.run.exp_name}__{args.run.seed}__{int(time.time())}"
    taken = sum(1 for _ in args.run.runs_path.glob(f"{name}*"))  # by a run that began in the same second
    return args.run.runs_path / (f"{name}-{taken + 1}" if taken else name)


def unwritable(folder: Path, error: OSError) -> KartRewardsError:
    """The error that a run's folder can't be written."""
    return KartRewardsError(
        f"{folder}: can't be written: {error.strerror or error}: free space there, or choose --runs-path"
    )


def close_writer(writer: SummaryWriter) -> None:
    """Closes the TensorBoard log; on a full disk what it still holds can't be kept."""
    with suppress(OSError):
        writer.close()


def open_writer(folder: Path, args: Args, scoring: Scoring, steps: int) -> SummaryWriter:
    """Makes the run's folder and TensorBoard log, and notes the options and the reward terms there.

    Raises:
        OSError: The folder can't be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if args.run.track:
        import wandb

        wandb.init(
            project=args.run.wandb_project_name,
            entity=args.run.wandb_entity,
            name=folder.name,
            config=plain(asdict(args)),
            sync_tensorboard=True,
        )
    # What was logged after a checkpoint is played again from there: it is dropped from the curves.
    writer = SummaryWriter(str(folder), purge_step=steps + 1)
    options = {name: value for group in plain(asdict(args)).values() for name, value in group.items()}
    table = "\n".join(f"|{name}|{value}|" for name, value in options.items())
    writer.add_text("hyperparameters", f"|option|value|\n|-|-|\n{table}", steps)
    rows: list[tuple[str, str, Script]] = [(term.name, f"{term.weight:g}", term) for term in scoring.terms]
    rows += [(rule.name, "ends the episode", rule) for rule in scoring.done]
    table = "\n".join(
        f"|{name}|{weight}|{script.summary}|{script.where}|{script.fingerprint}|" for name, weight, script in rows
    )
    writer.add_text("reward_terms", f"|name|weight|what|defined at|hash of the file|\n|-|-|-|-|-|\n{table}", steps)
    return writer


@dataclass
class Training:
    """What training changes, and a checkpoint holds: the agent, its optimizer, and how far they are."""

    agent: Agent
    optimizer: torch.optim.Optimizer
    updates: int = 0
    steps: int = 0

    def checkpoint(self, args: Args, scoring: Scoring, env_states: Sequence[dict[str, Any]] | None) -> dict[str, Any]:
        """Returns what ``save_checkpoint`` writes; ``env_states`` is what each environment's ``get_state`` returned."""
        return {
            "agent": self.agent.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "updates": self.updates,
            "steps": self.steps,
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "options": plain(asdict(args)),
            "scoring": scoring.fingerprints(),
            "env_states": list(env_states) if env_states else None,
        }

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Goes on from a checkpoint.

        Raises:
            KartRewardsError: Its agent is for other observations or actions.
        """
        try:
            self.agent.load_state_dict(checkpoint["agent"])
        except RuntimeError:
            raise KartRewardsError(
                "the checkpoint's agent is for other observations or actions than these options make"
            ) from None
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.updates, self.steps = checkpoint["updates"], checkpoint["steps"]
        torch.set_rng_state(checkpoint["torch_rng"])
        if checkpoint["cuda_rng"] and len(checkpoint["cuda_rng"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(checkpoint["cuda_rng"])


def states_to_resume(args: Args, checkpoint: dict[str, Any] | None, scoring: Scoring) -> dict[str, Any] | None:
    """Returns the reset options with which the environments go on where the checkpoint left them, if they can."""
    if not checkpoint:
        return None
    now, then = plain(asdict(args)), checkpoint["options"]
    if not checkpoint["env_states"]:
        print("The environments begin new episodes: the checkpoint has no states of them.\n")
    elif now["env"] != then["env"] or now["ppo"]["num_envs"] != then["ppo"]["num_envs"]:
        print("The environments begin new episodes: their options are not those of the checkpoint.\n")
    elif checkpoint["scoring"] != scoring.fingerprints():
        print("The environments begin new episodes: the reward terms or done rules are not those of the checkpoint.\n")
    else:
        return {"states": checkpoint["env_states"]}
    return None


def train(
    training: Training,
    envs: AsyncVectorEnv,
    reset_options: dict[str, Any] | None,
    writer: SummaryWriter,
    progress: Progress,
    args: Args,
    should_stop: Callable[[], bool],
) -> Iterator[None]:
    """Plays and learns, until all steps are done or ``should_stop`` says so after an update.

    Yields when a checkpoint is due, the first time before the first step: a disk that can't take one, and a term whose
    memory can't be saved, should say so then.
    """
    agent, ppo = training.agent, args.ppo
    device = next(agent.parameters()).device
    observation, _ = envs.reset(seed=args.run.seed + training.steps, options=reset_options)
    rollout = Rollout.empty(envs, ppo.num_steps, device)
    rollout.next_observation = torch.as_tensor(observation, device=device)
    yield
    while training.steps + ppo.batch_size <= ppo.total_timesteps:
        learning_rate = ppo.learning_rate
        if ppo.anneal_lr:
            learning_rate *= 1.0 - training.steps / ppo.total_timesteps
        training.optimizer.param_groups[0]["lr"] = learning_rate

        steps = training.steps

        def on_step(infos: dict[str, Any]) -> None:
            nonlocal steps
            steps += ppo.num_envs
            for info in final_infos(infos):
                log_episode(writer, info, steps, progress)
            progress.show(steps)

        collect(agent, envs, rollout, ppo.gamma, on_step)
        with torch.no_grad():
            next_value = agent.get_value(rollout.next_observation)
        advantages, returns = gae(rollout, next_value, ppo.gamma, ppo.gae_lambda)
        losses = update(agent, training.optimizer, rollout, advantages, returns, ppo)
        if not all(parameter.isfinite().all() for parameter in agent.parameters()):
            raise DivergedError("weights")
        training.updates, training.steps = training.updates + 1, steps

        for name, value in losses.items():
            writer.add_scalar(f"losses/{name}", value, steps)
        writer.add_scalar("charts/learning_rate", learning_rate, steps)
        writer.add_scalar("charts/SPS", progress.steps_per_second(steps), steps)
        if should_stop():
            return
        if args.run.checkpoint_interval and training.updates % args.run.checkpoint_interval == 0:
            yield


def main() -> None:
    args, checkpoint = parse_args()
    device = choose_device(args.run.device)
    if args.run.track and importlib.util.find_spec("wandb") is None:
        raise KartRewardsError("--track needs Weights & Biases: pip install '.[wandb]'")
    scenario = find_game(args.env.env_id, args.env.games).json_path(args.env.scenario)
    scoring = load_scoring(scenario, args.env.rewards, parse_weights(args.env.reward_weights))
    if checkpoint:
        check_scoring(args.run, checkpoint["scoring"], scoring.fingerprints())
        if checkpoint["steps"] + args.ppo.batch_size > args.ppo.total_timesteps:
            raise KartRewardsError(
                f"{args.run.resume}: is done: {checkpoint['steps']} of {args.ppo.total_timesteps} steps: raise "
                "--total-timesteps to train on"
            )
    random.seed(args.run.seed)
    np.random.seed(args.run.seed)
    torch.manual_seed(args.run.seed)
    torch.backends.cudnn.deterministic = args.run.torch_deterministic

    folder = run_folder(args, checkpoint)
    agent_path = folder / "agent.pt"
    stop = stop_on_signals()
    silence_the_log_writer()
    with ExitStack() as closing:
        envs = closing.enter_context(environments(args, args.run.video_path or folder / "videos"))
        agent = Agent(envs.single_observation_space, envs.single_action_space).to(device)
        training = Training(agent, torch.optim.Adam(agent.parameters(), lr=args.ppo.learning_rate, eps=1e-5))
        print(f"{args.env.env_id} on {device}, logging to {folder}\n{scoring.table()}\n")
        if checkpoint:
            training.load(checkpoint)
            print(f"Resuming after {training.updates} updates, {training.steps:,} steps.\n")
        reset_options = states_to_resume(args, checkpoint, scoring)

        def save(env_states: Sequence[dict[str, Any]] | None) -> None:
            save_checkpoint(folder, training.checkpoint(args, scoring, env_states), args.run.checkpoints_kept)

        try:
            writer = open_writer(folder, args, scoring, training.steps)
            closing.callback(close_writer, writer)
        except OSError as error:
            raise unwritable(folder, error) from None

        progress = Progress(args.ppo.total_timesteps, training.steps)
        env_states: Sequence[dict[str, Any]] | None = None
        failure: KartRewardsError | None = None
        try:
            for _ in train(training, envs, reset_options, writer, progress, args, stop.is_set):
                save(envs.call("get_state"))
            env_states = envs.call("get_state")
        except (EOFError, ConnectionError):
            failure = KartRewardsError(describe_dead(envs))
        except OSError as error:
            failure = unwritable(folder, error)
        except KartRewardsError as error:
            failure = error
        progress.finish(training.steps)
        # After a failure the environments' states are lost: a checkpoint of this update that has them is better.
        if not failure or not (isinstance(failure, DivergedError) or (folder / f"agent-{training.steps}.pt").exists()):
            try:
                save(env_states)
                print(f"saved {agent_path} after {training.updates} update{'s' * (training.updates != 1)}")
            except OSError as error:
                failure = failure or unwritable(folder, error)
        if failure:
            raise failure
        if stop.is_set():
            print(f"resume with: {shlex.join(['python', sys.argv[0], '--resume', str(agent_path)])}")


if __name__ == "__main__":
    try:
        main()
    except KartRewardsError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
