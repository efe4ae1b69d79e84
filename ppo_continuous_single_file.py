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
import os
import random
import shlex
import signal
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

# Else PyTorch's threads spin for a while after each computation, on the cores that the environments then need.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported

import gymnasium as gym
import numpy as np
import psutil
import torch
import tyro
from tensorboard.compat.proto.summary_pb2 import Summary as SummaryProto
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, Normal
from torch.utils.tensorboard import SummaryWriter

from kart_rewards.defaults import default_max_episode_steps
from kart_rewards.env import KartEnv
from kart_rewards.env.observations import ObservationConfig
from kart_rewards.env.video import to_gif
from kart_rewards.errors import KartRewardsError
from kart_rewards.evaluation import (
    Contestant,
    Episode,
    Evaluator,
    Policy,
    Summary,
    across_seeds,
    drivers,
    left_out,
    seeds_table,
    summarise,
    table,
    write_json,
)
from kart_rewards.integrations import INTEGRATIONS, MissingRomError, find_game, list_games
from kart_rewards.rewards import parse_weights
from kart_rewards.scenario import Scoring, load_scoring
from kart_rewards.scripting import Script
from kart_rewards.training.processes import core_by_core, processor_count
from kart_rewards.training.vector import EnvGroups

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
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """What the network computes with while it trains; weights, heads and losses are float32. auto: bfloat16 where the
    device has instructions for it."""
    compile: bool = False
    """Compile the network with torch.compile, if this machine has a compiler; it goes on without if not."""
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
    max_pool: bool = False
    """See the brighter of the last two frames in each pixel: for games whose sprites flicker."""
    grey: bool = True
    """See luminance instead of colours."""
    size: tuple[int, int] | None = ObservationConfig.size
    """Height and width of an observation. None: the screen's."""
    stack: int = 4
    """How many observations to stack."""
    random_start_steps: int = 0
    """Begin each episode with 0 to this many steps of random driving, unscored."""
    max_episode_steps: int | None = None
    """Agent steps after which an episode is truncated. By default as many as make 12,000 emulated frames (200 s)."""

    @property
    def games(self) -> Path:
        """The folder of games."""
        return self.integrations_path or INTEGRATIONS

    def of_kart_env(self) -> dict[str, Any]:
        """The arguments of ``KartEnv``."""
        return {
            "game": self.env_id,
            "integrations": self.games,
            "state": self.state,
            "scenario": self.scenario,
            "info": self.info,
            "rewards": self.rewards,
            "reward_weights": parse_weights(self.reward_weights),
            "reward_transform": self.reward_transform,
            "reward_scale": self.reward_scale,
            "action_mode": self.action_mode,
            "observation": ObservationConfig(self.crop, self.max_pool, self.grey, self.size, self.stack),
            "frame_skip": self.frame_skip,
            "random_start_steps": self.random_start_steps,
        }

    @property
    def episode_limit(self) -> int:
        """Agent steps after which an episode is truncated."""
        return self.max_episode_steps or default_max_episode_steps(self.frame_skip)


@dataclass
class PPOOptions:
    """The algorithm: proximal policy optimisation."""

    total_timesteps: int = 500_000
    """Agent steps to train for, over all environments."""
    learning_rate: float = 5e-4
    """Adam's step size at the start."""
    anneal_lr: bool = True
    """Lower the learning rate linearly to 0."""
    num_envs: int = 16
    """Environments played at once, in a process a core; under torchrun, those of all its processes together."""
    num_steps: int = 64
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
    ent_coef: float = 0.0
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
class EvalOptions:
    """Evaluation: whole episodes of the agent as it is, with their own seed, apart from training."""

    evaluate: tuple[str, ...] = ()
    """Evaluate these checkpoints, such as runs/NAME/agent.pt, instead of training; several: the same run with other
    seeds. Prints tables and writes evaluation.json beside the first."""
    eval_interval: int = 50
    """Evaluate every so many updates of training, and after the last. 0: never."""
    eval_episodes: int = 5
    """Episodes on each course."""
    eval_states: tuple[str, ...] = ()
    """Courses to evaluate on: start states. By default those trained on; with --evaluate, all that the game has."""
    eval_seed: int = 1000
    """Seed of the evaluation's random starts; --evaluate takes the next, since best.pt was chosen on these."""
    capture_video: bool = False
    """Write each evaluation's first episode on each course as MP4, into videos/ in the run's folder, and show it in
    TensorBoard."""
    video_gif: bool = False
    """With --capture-video: keep the GIFs that TensorBoard shows, the first 20 seconds, beside the MP4s."""


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
        "--eval-interval": (0, math.inf),
        "--eval-episodes": (1, math.inf),
        "--eval-seed": (0, 2**32 - 1),
    }
    values = {**vars(args.env), **vars(args.ppo), **vars(args.eval), **vars(args.run)}
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
    eval: EvalOptions = field(default_factory=EvalOptions)
    run: RunOptions = field(default_factory=RunOptions)

    def courses(self) -> tuple[str, ...]:
        """The start states that training evaluates on."""
        game = find_game(self.env.env_id, self.env.games)
        return self.eval.eval_states or self.env.state or (game.default_state(),)

    def of_evaluation(self) -> dict[str, Any]:
        """The arguments of ``Evaluator.play`` that say how long it plays, and from where."""
        frames = self.env.episode_limit * self.env.frame_skip
        return {"episodes": self.eval.eval_episodes, "seed": self.eval.eval_seed, "max_episode_frames": frames}


# --------------------------------------------------------------------------------------------------------------- ranks
@dataclass(frozen=True)
class Ranks:
    """The processes that train one agent together under torchrun, each with its part of the environments.

    A run without torchrun is rank 0 of 1, for which every method returns what it was given.

    Args:
        rank: This process's number among all, over all machines: it decides seeds, and rank 0 logs and saves.
        world_size: How many processes there are.
        local_rank: This process's number on its machine: it decides the GPU.
        local_world_size: How many processes there are on its machine.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @classmethod
    def of_torchrun(cls) -> Ranks:
        """Returns what torchrun says in the environment."""
        told = {
            item.name: int(os.environ[item.name.upper()]) for item in fields(cls) if item.name.upper() in os.environ
        }
        return cls(**told)

    def check(self, ppo: PPOOptions) -> None:
        """Raises KartRewardsError if the work does not split into equal parts."""
        for option, total in (("--num-envs", ppo.num_envs), ("a minibatch's steps", ppo.minibatch_size)):
            if total % self.world_size:
                raise KartRewardsError(
                    f"{option}, {total}, can't be shared equally by {self.world_size} processes: change --num-envs, "
                    "--num-steps or --num-minibatches"
                )

    def processors(self) -> int:
        """Returns how many processor cores this rank has."""
        return max(processor_count() // self.local_world_size, 1)

    def share(self, total: int) -> int:
        """Returns this rank's part of what is counted over all ranks."""
        return total // self.world_size

    def mean(self, tensor: Tensor) -> Tensor:
        """Returns the mean over the ranks, the same on each."""
        if self.world_size > 1:
            tensor = tensor.clone()
            with self._told_of_others():
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
        """Returns each rank's item, in their order, on every rank."""
        items = [item]
        if self.world_size > 1:
            items = [None] * self.world_size
            with self._told_of_others():
                torch.distributed.all_gather_object(items, item)
        return items

    def agree(self, agent: nn.Module, steps: int) -> None:
        """Gives every rank rank 0's weights: on other processors the same seed may give slightly other ones.

        Raises:
            KartRewardsError: The ranks are not equally far.
        """
        if len(set(self.gather(steps))) > 1:
            raise KartRewardsError("the ranks are not equally far: every machine needs the checkpoint to resume")
        if self.world_size > 1:
            for parameter in agent.parameters():
                torch.distributed.broadcast(parameter.data, 0)

    @contextmanager
    def _told_of_others(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise KartRewardsError(
                f"another process of this run has ended; its own message says why ({reason})"
            ) from None


@contextmanager
def joined(ranks: Ranks, device: torch.device) -> Iterator[None]:
    """Connects this process with the other ranks, if there are any, for the length of the block."""
    if ranks.world_size == 1:
        yield
        return
    # The others wait for rank 0 while it evaluates. Whoever dies is noticed by its closed connections, or by torchrun.
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(days=1))
    yield
    torch.distributed.destroy_process_group()  # after an error this could wait for ranks that wait for this one


# -------------------------------------------------------------------------------------------------------- environments
def make_training_env(env: EnvOptions, index: int) -> gym.Env:
    """Makes one environment; this runs in the process that it plays in."""
    return TrainingEpisodes(KartEnv(**env.of_kart_env()), index, env.episode_limit)


def environments(args: Args, ranks: Ranks) -> closing[EnvGroups]:
    """Makes this rank's environments, which end with the ``with`` block however that ends."""
    num_envs = ranks.share(args.ppo.num_envs)
    makers = [functools.partial(make_training_env, args.env, ranks.rank * num_envs + i) for i in range(num_envs)]
    return closing(EnvGroups(makers, groups=2, processes=ranks.processors()))


class TrainingEpisodes(gym.Wrapper):
    """What training wants of episodes: a step limit, their return and length, and to go on from a checkpoint.

    Only an episode's last info is kept, which training reads. It gains ``episode``: ``r``, the return, and ``l``, the
    length in steps, as Gymnasium's RecordEpisodeStatistics calls them.

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

    @property
    def mode(self) -> Tensor:
        return torch.stack([part.mode for part in self.parts], dim=-1)


class DivergedError(KartRewardsError):
    """Training went wrong for good: the agent must not replace a checkpoint's."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"the agent's {what} are no longer finite: resume an earlier checkpoint with a lower --learning-rate, or "
            "check what the reward terms pay"
        )


class PixelConv2d(nn.Conv2d):
    """A convolution of pixels from 0 to 255, as of ones from 0 to 1: it scales its weights, which are fewer."""

    def forward(self, pixels: Tensor) -> Tensor:
        return self._conv_forward(pixels, self.weight / 255, self.bias)


class Agent(nn.Module):
    """Policy and value function over one convolutional encoder. The policy's head follows from the action space.

    Args:
        observation_space: Box of uint8 images: (channels, height, width), (height, width, 3), or a stack of the latter.
        action_space: Box, Discrete, MultiDiscrete or MultiBinary.
        precision: What the encoder computes with; its weights and the heads are float32.
    """

    def __init__(
        self, observation_space: gym.Space, action_space: gym.Space, precision: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.precision = precision
        example = torch.zeros(1, *(observation_space.shape or ()), dtype=torch.uint8)
        convolutions = nn.Sequential(
            layer_init(PixelConv2d(self.to_channels(example).shape[1], 32, 8, stride=4)),
            nn.ReLU(),
            layer_init(nn.Conv2d(32, 64, 4, stride=2)),
            nn.ReLU(),
            layer_init(nn.Conv2d(64, 64, 3, stride=1)),
            nn.ReLU(),
            nn.Flatten(),
        )
        try:
            features = convolutions(self.to_channels(example).float()).shape[1]
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
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster convolutions

    @staticmethod
    def to_channels(observation: Tensor) -> Tensor:
        """(batch, ...) images of any of the environment's shapes -> (batch, channels, height, width)."""
        if observation.shape[-1] == 3:  # colour: channels come last
            observation = observation.movedim(-1, -3).flatten(1, -3)
        return observation.contiguous(memory_format=torch.channels_last)

    def encode(self, observation: Tensor) -> Tensor:
        """Returns the features that both heads work on: float32, shape (batch, 512)."""
        pixels = self.to_channels(observation).to(self.precision)
        with torch.autocast(observation.device.type, self.precision, enabled=self.precision != torch.float32):
            return self.encoder(pixels).float()

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

    def act(self, observation: Tensor, deterministic: bool) -> Tensor:
        """Returns an action for each observation: the likeliest, or one that is drawn."""
        policy = self.policy(self.encode(observation))
        # The likelier of two equally likely buttons is no number to PyTorch.
        return policy.mode.nan_to_num() if deterministic else policy.sample()

    def get_value(self, observation: Tensor) -> Tensor:
        """Returns the value of each observation, shape (batch,)."""
        return self.critic(self.encode(observation)).squeeze(-1)

    def get_action_and_value(
        self, observation: Tensor, action: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns actions (drawn, unless given), their log-probabilities, the policy's entropies and the values."""
        hidden = self.encode(observation)
        policy = self.policy(hidden)
        if action is None:
            action = policy.sample()
        return action, policy.log_prob(action), policy.entropy(), self.critic(hidden).squeeze(-1)


# ----------------------------------------------------------------------------------------------------------- stopwatch
class Stopwatch:
    """Adds up the wall-clock seconds that each stage takes."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Times the block."""
        began = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - began


def where_time_goes(
    stages: dict[str, float], seconds_by_process: Sequence[dict[str, float]], steps: int
) -> dict[str, float]:
    """Splits a training step's wall-clock time.

    Args:
        stages: Seconds of the stages ``rollout``, ``policy`` (a part of it) and ``update``.
        seconds_by_process: What the environments' processes did meanwhile, see ``EnvGroups.seconds``.
        steps: Agent steps in that time.

    Returns:
        Milliseconds an agent step, by TensorBoard names without ``time/``. In a rollout there are as many cores at
        work as processes with environments, and the policy shares one with them; so what one of n cores does for a
        second counts 1/n seconds. ``transfer`` is what is left: the trainer's talking to processes, and cores that
        wait. Where the policy has a core or a GPU of its own it can be negative. What the processes do beside steps
        (resets, talking) counts with the parts of a step.
    """
    cores = len(seconds_by_process)
    split = {"emulator": 0.0, "scoring": 0.0, "observation": 0.0}
    for seconds in seconds_by_process:
        stepping = sum(seconds[part] for part in split)  # by the clock: also while the policy had the core
        for part in split:
            split[part] += seconds[part] / stepping * seconds["processor"] / cores
    split["policy"] = stages["policy"] / cores
    split["transfer"] = stages["rollout"] - sum(split.values())
    split["update"] = stages["update"]
    return {f"{part}_ms_per_step": 1000 * seconds / steps for part, seconds in split.items()}


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
    def empty(cls, envs: EnvGroups, num_steps: int, device: torch.device) -> Rollout:
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
    agent: Agent, envs: EnvGroups, rollout: Rollout, gamma: float, busy_cores: int, stopwatch: Stopwatch
) -> list[tuple[int, dict[str, Any]]]:
    """Plays a rollout, from where the last one ended: while one group of environments steps, the agent answers another.

    A truncated episode could have gone on: its last reward gets the discounted value of its real final observation.

    Args:
        agent: Chooses the actions.
        envs: No group is at a step, before and after.
        rollout: Filled in.
        gamma: Discount factor.
        busy_cores: How many processes play environments on this machine, those of other ranks too.
        stopwatch: Times the stage ``policy``.

    Returns:
        The step in which each episode ended that did, and its last info.
    """
    device = rollout.rewards.device
    num_steps = rollout.rewards.shape[0]
    ended: list[tuple[int, dict[str, Any]]] = []

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

    def take(step: int, group: int) -> None:
        part = envs.groups[group]
        outcome = envs.recv(group)
        rollout.next_observation[part] = torch.as_tensor(outcome.observations, device=device)
        done = outcome.terminated | outcome.truncated
        rollout.next_done[part] = torch.as_tensor(done, dtype=torch.float32, device=device)
        rollout.rewards[step, part] = torch.as_tensor(outcome.rewards, dtype=torch.float32, device=device)
        for i, (final_observation, info) in outcome.finals.items():
            ended.append((step, info))
            if not outcome.terminated[i]:
                value = agent.get_value(torch.as_tensor(final_observation, device=device)[None])[0]
                rollout.rewards[step, part.start + i] += gamma * value

    # The outermost autocast keeps what those inside have cast, here the encoder's weights.
    with torch.autocast(device.type, enabled=False), core_by_core(busy_cores) as change_core:
        for step in range(num_steps):
            for group in range(len(envs.groups)):
                if step:
                    take(step - 1, group)
                act(step, group)
                change_core()
        for group in range(len(envs.groups)):
            take(num_steps - 1, group)
    return ended


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
    ranks: Ranks,
) -> dict[str, float]:
    """Improves the agent on a rollout: several epochs of minibatches under PPO's clipped objective.

    With several ranks, a minibatch is made of equal parts of each rank's rollout, and every rank makes the same step.

    Returns:
        The losses and diagnostics of the last minibatch, by their TensorBoard names, without ``losses/``.
    """
    observations, actions, log_probs, old_values, advantages, returns = (
        tensor.flatten(0, 1)
        for tensor in (rollout.observations, rollout.actions, rollout.log_probs, rollout.values, advantages, returns)
    )
    observations = agent.to_channels(observations).movedim(1, -1)  # now each lies in memory as the encoder wants it
    clipped_fractions = []
    for _ in range(ppo.update_epochs):
        order = torch.randperm(len(returns), device=returns.device)
        for minibatch in order.split(ranks.share(ppo.minibatch_size)):
            seen = observations.index_select(0, minibatch).movedim(-1, 1)
            _, log_prob, entropy, value = agent.get_action_and_value(seen, actions[minibatch])
            log_ratio = log_prob - log_probs[minibatch]
            ratio = log_ratio.exp()
            with torch.no_grad():  # http://joschu.net/blog/kl-approx.html
                old_approx_kl = (-log_ratio).mean()
                approx_kl = ((ratio - 1) - log_ratio).mean()
                clipped_fractions.append(((ratio - 1.0).abs() > ppo.clip_coef).float().mean())

            advantage = advantages[minibatch]
            if ppo.norm_adv:
                advantage = advantage - ranks.mean(advantage.mean())
                variance = ranks.mean((advantage**2).mean()) * ppo.minibatch_size / (ppo.minibatch_size - 1)
                advantage = advantage / (variance.sqrt() + 1e-8)
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
        "clipfrac": torch.stack(clipped_fractions).mean(),
        "explained_variance": 1 - (returns - old_values).var() / returns.var(),
    }
    return dict(zip(losses, ranks.mean(torch.stack(list(losses.values())).detach()).tolist(), strict=True))


# --------------------------------------------------------------------------------------------------------- checkpoints
def save_checkpoint(folder: Path, content: dict[str, Any], kept: int) -> None:
    """Writes a checkpoint as agent-STEPS.pt and agent.pt, and removes all but the newest.

    Args:
        folder: The run's folder.
        content: What ``load_checkpoint`` returns again.
        kept: How many checkpoints to keep.

    Raises:
        OSError: The disk is full or read-only; the old checkpoints are still there.
    """
    save_whole(content, folder / f"agent-{content['steps']}.pt", folder / "agent.pt")
    for old in newest_first(folder.glob("agent-*.pt"))[kept:]:
        old.unlink(missing_ok=True)


def save_whole(content: dict[str, Any], *paths: Path) -> None:
    """Writes the content to each path. A file there is whole at every moment: the new one takes its place at a stroke.

    Raises:
        OSError: The disk is full or read-only; what was there before still is.
    """
    buffer = io.BytesIO()  # torch.save tells a full disk by a RuntimeError; a plain write says what happened
    torch.save(content, buffer)
    for path in paths:
        temporary = path.with_name(".pt.partial")
        try:
            with temporary.open("wb") as file:
                file.write(buffer.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def newest_first(paths: Iterable[Path]) -> list[Path]:
    """Returns files sorted by when they were written, the last first."""
    return sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True)


AGENT_KEYS = {"agent", "updates", "steps", "options", "scoring"}
"""What there is to say of an agent that has been trained: enough to evaluate and to watch it."""
CHECKPOINT_KEYS = AGENT_KEYS | {"optimizer", "rng_states", "env_states", "best_score"}


def load_checkpoint(path: Path, keys: set[str] = CHECKPOINT_KEYS) -> dict[str, Any]:
    """Reads a checkpoint. It may come from anywhere: nothing but tensors and plain values is unpickled.

    Args:
        path: The file.
        keys: What it must hold.

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
    if not isinstance(checkpoint, dict) or AGENT_KEYS - checkpoint.keys():
        raise KartRewardsError(f"{path}: is not a checkpoint of this script")
    if keys - checkpoint.keys():
        raise KartRewardsError(f"{path}: holds an agent alone, to evaluate or to watch: resume an agent.pt")
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
        groups = {"env": EnvOptions, "ppo": PPOOptions, "eval": EvalOptions, "run": RunOptions}
        args = Args(**{name: options(**saved[name]) for name, options in groups.items()})
    except (KeyError, TypeError) as error:
        raise KartRewardsError(f"the checkpoint is of another version of this script: {error}") from None
    for group, name in ((args.env, "integrations_path"), (args.run, "runs_path")):
        if getattr(group, name) is not None:
            setattr(group, name, Path(getattr(group, name)))
    # These were meant for that time only.
    args.run.resume, args.run.allow_changed_rewards, args.eval.evaluate = None, False, ()
    return args


# ---------------------------------------------------------------------------------------------------------- evaluation
class AgentPolicy:
    """Makes an agent's policy where it plays: in a process that evaluates, or beside a window.

    Args:
        weights: The agent's, on the CPU.
        deterministic: Take the likeliest action; else draw one, as in training, by the episode's seed.
    """

    def __init__(self, weights: dict[str, Tensor], deterministic: bool) -> None:
        self.weights = weights
        self.deterministic = deterministic
        self._agent: Agent | None = None

    def __call__(self, env: KartEnv, state: str, seed: int) -> Policy:
        if self._agent is None:
            torch.set_num_threads(1)  # such processes play side by side
            self._agent = Agent(env.observation_space, env.action_space)
            load_agent(self._agent, self.weights)
        torch.manual_seed(seed)
        return self._act

    @torch.no_grad()
    def _act(self, env: KartEnv, observation: np.ndarray) -> np.ndarray:
        assert self._agent
        return self._agent.act(torch.as_tensor(observation)[None], self.deterministic)[0].numpy()


def evaluate_agent(
    evaluator: Evaluator, agent: Agent, args: Args, video_folder: Path | None, stop: threading.Event
) -> Summary | None:
    """Plays deterministic episodes with the agent as it is.

    Returns:
        What ``kart_rewards.evaluation.summarise`` does; None if ``stop`` was set meanwhile.
    """
    weights = {name: value.detach().cpu() for name, value in agent.state_dict().items()}
    contestant = Contestant("agent", AgentPolicy(weights, deterministic=True), args.env.of_kart_env())
    episodes = []
    plays = evaluator.play([contestant], args.courses(), **args.of_evaluation(), video_folder=video_folder)
    for episode in plays:
        episodes.append(episode)
        if stop.is_set():
            return None
    return summarise(episodes)


def evaluation_score(summary: Summary) -> list[float]:
    """Returns what makes one evaluation better than another, what matters most first, as lists are compared.

    That is how often races are finished, then their time, then the return; a mean over the courses.
    """
    agents = [by_policy["agent"] for by_policy in summary.values()]
    rate = [metrics["finish_rate"] or 0.0 for metrics in agents]
    seconds = [metrics["median_race_time_seconds"] or math.inf for metrics in agents]
    returns = [metrics["median_return"] for metrics in agents]
    return [float(np.mean(rate)), -float(np.mean(seconds)), float(np.mean(returns))]


def evaluate_checkpoints(args: Args) -> None:
    """Evaluates trained agents, with the likeliest actions and with drawn ones, beside the scripted drivers.

    Prints tables and writes them, and each episode, to evaluation.json beside the first agent.

    Raises:
        KartRewardsError: An agent can't be read, or was trained in another environment than the first.
    """
    paths = [Path(path) for path in args.eval.evaluate]
    contents = [load_checkpoint(path, AGENT_KEYS) for path in paths]
    for path, content in zip(paths, contents, strict=True):
        if content["options"]["env"] != contents[0]["options"]["env"]:
            raise KartRewardsError(
                f"{path}: was trained with other environment options than {paths[0]}: evaluate it by itself"
            )
    states = args.eval.eval_states or tuple(find_game(args.env.env_id, args.env.games).states())
    videos = paths[0].parent / "videos" / "evaluation" if args.eval.capture_video else None
    # Not the seed of training's evaluations, by which best.pt was chosen.
    args.eval.eval_seed += 1
    options = args.env.of_kart_env()
    scripted = drivers(options)
    if text := left_out(scripted, states):
        print(text)
    played = 0

    with Evaluator() as evaluator:

        def play(contestants: Sequence[Contestant]) -> list[Episode]:
            nonlocal played
            episodes = []
            for episode in evaluator.play(contestants, states, **args.of_evaluation(), video_folder=videos):
                episodes.append(episode)
                played += 1
                if sys.stdout.isatty():
                    print(f"\r{played} episodes played", end="", flush=True)
            return episodes

        of_drivers = play(scripted)
        agents, summaries = [], []
        for path, content in zip(paths, contents, strict=True):
            ways = {"agent, likeliest": True, "agent, drawn": False}
            policies = [
                Contestant(way, AgentPolicy(content["agent"], likeliest), options) for way, likeliest in ways.items()
            ]
            episodes = play(policies) + of_drivers
            summary = summarise(sorted(episodes, key=lambda episode: states.index(episode.state)))
            seed, steps = content["options"]["run"]["seed"], content["steps"]
            start = "\r" if sys.stdout.isatty() else ""
            print(f"{start}{path}: {args.env.env_id}, {steps:,} steps with seed {seed}\n{table(summary)}\n")
            summaries.append(summary)
            agents.append({"file": str(path), "seed": seed, "steps": steps, "summary": summary})
            agents[-1]["episodes"] = [asdict(episode) for episode in episodes]
    report: dict[str, Any] = {"game": args.env.env_id, "eval_seed": args.eval.eval_seed, "agents": agents}
    if len(paths) > 1:
        report["across_seeds"] = across_seeds(summaries)
        print(f"the {len(paths)} agents: median, and quartiles\n{seeds_table(report['across_seeds'])}\n")
    output = paths[0].parent / "evaluation.json"
    write_json(output, report)
    print(f"wrote {output}")


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
    resume, evaluate = args.run.resume, args.eval.evaluate
    if resume or evaluate:
        checkpoint = load_checkpoint(Path(evaluate[0]), AGENT_KEYS) if evaluate else load_checkpoint(Path(resume or ""))
        args = parse(default=options_of(checkpoint))  # the saved options become the defaults
        args.run.resume = resume
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


def choose_device(name: str, ranks: Ranks) -> torch.device:
    """Returns the device; ``auto`` is cuda if there is one, else cpu. Each rank on a machine has a GPU of its own."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available[name]:
        raise KartRewardsError(f"--device {name}: this machine, or this build of PyTorch, has none: use --device auto")
    if name == "mps" and ranks.world_size > 1:
        raise KartRewardsError("--device mps: several processes can't share it: use --device cpu")
    if name == "cuda" and ranks.world_size > 1:
        if ranks.local_rank >= torch.cuda.device_count():
            raise KartRewardsError(
                f"torchrun starts {ranks.local_world_size} processes here, for {torch.cuda.device_count()} GPUs: lower "
                "--nproc-per-node"
            )
        torch.cuda.set_device(ranks.local_rank)
        return torch.device("cuda", ranks.local_rank)
    return torch.device(name)


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """Returns what the encoder computes with; ``auto`` is bfloat16 where the device has instructions for it."""
    if name == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            abilities = torch.cpu.get_capabilities()
            fast = device.type == "cpu" and torch.backends.mkldnn.is_available()  # else PyTorch's bfloat16 is slow
            fast = fast and any(abilities.get(each) for each in ("avx512_bf16", "amx_bf16", "bf16"))
        name = "bfloat16" if fast else "float32"
    return torch.float32 if name == "float32" else torch.bfloat16


def compile_encoder(agent: Agent, observation: Tensor) -> None:
    """Compiles the agent's encoder; where that fails, for want of a compiler, says so and leaves it as it is."""
    eager = agent.encoder
    try:
        agent.encoder = torch.compile(eager)  # type: ignore[assignment]
        agent.get_value(observation).sum().backward()
        agent.encoder = eager
        agent.encoder.compile()  # in place, so that checkpoints name the weights as ever
    except Exception as error:  # whatever torch.compile makes of a missing or broken compiler
        agent.encoder = eager
        print(f"--compile is left out: torch.compile does not work here ({type(error).__name__})\n")
    agent.zero_grad()


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


def load_agent(agent: Agent, weights: dict[str, Tensor]) -> None:
    """Gives an agent its weights.

    Raises:
        KartRewardsError: They are for other observations or actions.
    """
    try:
        agent.load_state_dict(weights)
    except RuntimeError:
        raise KartRewardsError(
            "the checkpoint's agent is for other observations or actions than these options make"
        ) from None


@dataclass
class Training:
    """What training changes, and a checkpoint holds: the agent, its optimizer, and how far they are."""

    agent: Agent
    optimizer: torch.optim.Optimizer
    updates: int = 0
    steps: int = 0
    best_score: list[float] = field(default_factory=list)
    """The best evaluation so far, see ``evaluation_score``; there is none yet if it is empty."""

    def agent_file(self, args: Args, scoring: Scoring) -> dict[str, Any]:
        """Returns what is to be known of the agent alone: ``AGENT_KEYS``."""
        return {
            "agent": self.agent.state_dict(),
            "updates": self.updates,
            "steps": self.steps,
            "options": plain(asdict(args)),
            "scoring": scoring.fingerprints(),
        }

    def checkpoint(self, args: Args, scoring: Scoring, rank_states: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Returns all that the rest of the run depends on: ``CHECKPOINT_KEYS``.

        Args:
            args: The run's options.
            scoring: Its reward terms and done rules.
            rank_states: Each rank's ``rank_state``; none after a failure.
        """
        return self.agent_file(args, scoring) | {
            "optimizer": self.optimizer.state_dict(),
            "rng_states": [state["rng"] for state in rank_states],
            "env_states": [env for state in rank_states for env in state["envs"]],
            "best_score": self.best_score,
        }

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Goes on from a checkpoint.

        Raises:
            KartRewardsError: Its agent is for other observations or actions.
        """
        load_agent(self.agent, checkpoint["agent"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.optimizer.param_groups[0]["fused"] = True  # also if the checkpoint's was not
        self.updates, self.steps = checkpoint["updates"], checkpoint["steps"]
        self.best_score = checkpoint["best_score"]


def load_rng(checkpoint: dict[str, Any], device: torch.device, ranks: Ranks) -> None:
    """Takes up the random numbers where the checkpoint left them, if it is of as many ranks."""
    if len(checkpoint["rng_states"]) == ranks.world_size:
        states = checkpoint["rng_states"][ranks.rank]
        torch.set_rng_state(states["torch"])
        if "cuda" in states and device.type == "cuda":
            torch.cuda.set_rng_state(states["cuda"], device)


def rank_state(envs: EnvGroups, device: torch.device) -> dict[str, Any]:
    """Returns what this rank's part of the rest of the run depends on: random numbers to come, and environments."""
    rng = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        rng["cuda"] = torch.cuda.get_rng_state(device)
    return {"rng": rng, "envs": envs.call("get_state")}


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


@dataclass
class Report:
    """What a rollout and its update leave for the log.

    ``episodes`` are those that ended, on all ranks: agent steps of the whole run until then, and the last info.
    ``milliseconds`` is where a step's time went, see ``where_time_goes``.
    """

    learning_rate: float
    losses: dict[str, float]
    episodes: list[tuple[int, dict[str, Any]]]
    milliseconds: dict[str, float]


def play_and_learn(training: Training, envs: EnvGroups, rollout: Rollout, ppo: PPOOptions, ranks: Ranks) -> Report:
    """Plays one rollout and improves the agent on it.

    Raises:
        DivergedError: The agent's weights are no longer finite.
    """
    agent, stopwatch = training.agent, Stopwatch()
    learning_rate = ppo.learning_rate
    if ppo.anneal_lr:
        learning_rate *= 1.0 - training.steps / ppo.total_timesteps
    training.optimizer.param_groups[0]["lr"] = learning_rate

    seconds_before = envs.seconds()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # waking a second one for so small a batch takes longer than it saves
    with stopwatch("rollout"):
        busy_cores = envs.num_processes * ranks.local_world_size
        ended = collect(agent, envs, rollout, ppo.gamma, busy_cores, stopwatch)
    torch.set_num_threads(threads)
    seconds_by_process = [
        {part: after[part] - before[part] for part in after}
        for before, after in zip(seconds_before, envs.seconds(), strict=True)
    ]
    with stopwatch("update"):
        with torch.no_grad():
            next_value = agent.get_value(rollout.next_observation)
        advantages, returns = gae(rollout, next_value, ppo.gamma, ppo.gae_lambda)
        losses = update(agent, training.optimizer, rollout, advantages, returns, ppo, ranks)
    if not all(parameter.isfinite().all() for parameter in agent.parameters()):
        raise DivergedError("weights")
    episodes = [(training.steps + (step + 1) * ppo.num_envs, info) for step, info in ended]
    training.updates, training.steps = training.updates + 1, training.steps + ppo.batch_size
    return Report(
        learning_rate,
        losses,
        sorted((episode for part in ranks.gather(episodes) for episode in part), key=lambda episode: episode[0]),
        where_time_goes(stopwatch.seconds, seconds_by_process, ranks.share(ppo.batch_size)),
    )


class Log:
    """A run's folder and its TensorBoard log: the options and the reward terms at the start, then reports.

    Args:
        folder: The run's folder; made if it is not there.
        args: The run's options.
        scoring: Its reward terms and done rules.
        steps: Agent steps done so far. What was logged after them is played again, and dropped from the curves.

    Raises:
        OSError: The folder can't be written.
    """

    def __init__(self, folder: Path, args: Args, scoring: Scoring, steps: int) -> None:
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
        self.writer = SummaryWriter(str(folder), purge_step=steps + 1)
        self.progress = Progress(args.ppo.total_timesteps, steps)
        self._keep_gifs = args.eval.video_gif
        options = {name: value for group in plain(asdict(args)).values() for name, value in group.items()}
        table = "\n".join(f"|{name}|{value}|" for name, value in options.items())
        self.writer.add_text("hyperparameters", f"|option|value|\n|-|-|\n{table}", steps)
        rows: list[tuple[str, str, Script]] = [(term.name, f"{term.weight:g}", term) for term in scoring.terms]
        rows += [(rule.name, "ends the episode", rule) for rule in scoring.done]
        table = "\n".join(
            f"|{name}|{weight}|{script.summary}|{script.where}|{script.fingerprint}|" for name, weight, script in rows
        )
        head = "|name|weight|what|defined at|hash of the file|\n|-|-|-|-|-|\n"
        self.writer.add_text("reward_terms", head + table, steps)

    def scalars(self, group: str, values: Mapping[str, float], steps: int) -> None:
        """Writes each value as ``group/name``."""
        for name, value in values.items():
            self.writer.add_scalar(f"{group}/{name}", value, steps)

    def report(self, report: Report, steps: int) -> None:
        """Writes what an update left, and renews the progress line."""
        for episode_steps, info in report.episodes:
            self._episode(info, episode_steps)
        self.scalars("losses", report.losses, steps)
        self.scalars("time", report.milliseconds, steps)
        self.scalars("memory", memory_mb(), steps)
        rate = self.progress.steps_per_second(steps)
        self.scalars("charts", {"learning_rate": report.learning_rate, "SPS": rate}, steps)
        self.progress.show(steps)

    def _episode(self, info: dict[str, Any], steps: int) -> None:
        self.progress.returns.append(float(info["episode"]["r"]))
        self.scalars(
            "charts", {"episodic_return": info["episode"]["r"], "episodic_length": info["episode"]["l"]}, steps
        )
        for kind, by_term in info["episode_rewards"].items():
            self.scalars("rewards" if kind == "sum" else f"rewards_{kind}", by_term, steps)
        race = info.get("race", {})
        self.scalars("race", race, steps)
        best = race.get("best_lap_time_seconds", math.inf)
        self.progress.best_lap_seconds = min(self.progress.best_lap_seconds, best)

    def evaluation(self, summary: Summary, videos: Path | None, steps: int) -> None:
        """Writes an evaluation as ``eval/COURSE/METRIC``, and its videos."""
        for course, by_policy in summary.items():
            known = {name: value for name, value in by_policy["agent"].items() if value is not None}
            self.scalars(f"eval/{course}", known, steps)
        for video in sorted(videos.glob("*.mp4")) if videos else ():
            gif = video.with_suffix(".gif")
            to_gif(video, gif, width=256, frames_per_second=10, seconds=20)
            image = SummaryProto.Image(
                encoded_image_string=gif.read_bytes()
            )  # SummaryWriter.add_video needs an old moviepy
            value = SummaryProto.Value(tag=f"eval/{video.stem}", image=image)
            self.writer._get_file_writer().add_summary(SummaryProto(value=[value]), steps)
            if not self._keep_gifs:
                gif.unlink()

    def close(self) -> None:
        """Closes the TensorBoard log; on a full disk what it still holds can't be kept."""
        with suppress(OSError):
            self.writer.close()


def memory_mb() -> dict[str, float]:
    """Returns the resident memory of this process and of those it started, in MiB (they share some of it).

    Those are the environments and, from the first evaluation on, the processes that evaluate.
    """
    trainer = psutil.Process()
    children = 0
    for process in trainer.children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            children += process.memory_info().rss
    memory = {"trainer_mb": trainer.memory_info().rss / 2**20, "children_mb": children / 2**20}
    if torch.cuda.is_available():
        memory["gpu_peak_mb"] = torch.cuda.max_memory_allocated() / 2**20
    return memory


def is_due(interval: int, updates: int) -> bool:
    """Whether what happens every ``interval`` updates happens after this one; with 0 it never does."""
    return interval > 0 and updates % interval == 0


def train(
    args: Args,
    checkpoint: dict[str, Any] | None,
    scoring: Scoring,
    envs: EnvGroups,
    device: torch.device,
    ranks: Ranks,
    folder: Path,
    stop: threading.Event,
) -> None:
    """Trains from the first step, or a checkpoint's, to the last, or to the end of the update in which ``stop`` is set.

    Raises:
        KartRewardsError: The run can't go on. What was learned is saved first, if it can be.
    """
    ppo = args.ppo
    random.seed(args.run.seed)
    np.random.seed(args.run.seed)
    torch.manual_seed(args.run.seed)
    torch.backends.cudnn.deterministic = args.run.torch_deterministic
    precision = choose_precision(args.run.precision, device)
    agent = Agent(envs.single_observation_space, envs.single_action_space, precision).to(device)
    training = Training(agent, torch.optim.Adam(agent.parameters(), lr=ppo.learning_rate, eps=1e-5, fused=True))
    rollout = Rollout.empty(envs, ppo.num_steps, device)
    if args.run.compile:
        compile_encoder(agent, rollout.next_observation)
    print(f"{args.env.env_id} on {device} in {str(precision)[6:]}, logging to {folder}\n{scoring.table()}\n")
    if checkpoint:
        training.load(checkpoint)
        print(f"Resuming after {training.updates} updates, {training.steps:,} steps.\n")
    if not comparable(args, checkpoint, scoring, folder):
        training.best_score = []
    ranks.agree(agent, training.steps)
    # Equal agents, but other actions on each rank, and after a resumption other ones than at the beginning.
    torch.manual_seed((args.run.seed + ranks.rank + training.steps) % 2**63)
    if checkpoint:
        load_rng(checkpoint, device, ranks)

    def save(rank_states: Sequence[dict[str, Any]]) -> None:
        if ranks.rank == 0:
            save_checkpoint(folder, training.checkpoint(args, scoring, rank_states), args.run.checkpoints_kept)

    evaluator = Evaluator()
    log: Log | None = None
    failure: Exception | None = None
    try:
        seed = args.run.seed + training.steps + ranks.rank * envs.num_envs
        observation = envs.reset(seed=seed, options=states_to_resume(args, checkpoint, scoring))
        rollout.next_observation = torch.as_tensor(observation, device=device)
        if ranks.rank == 0:
            log = Log(folder, args, scoring, training.steps)
        # Before the first step: a disk that can't take it, and a term whose memory can't be saved, should say so now.
        save(ranks.gather(rank_state(envs, device)))
        ended = False
        while not ended:
            report = play_and_learn(training, envs, rollout, ppo, ranks)
            last = training.steps + ppo.batch_size > ppo.total_timesteps
            if log:
                log.report(report, training.steps)
                if args.eval.eval_interval and (last or is_due(args.eval.eval_interval, training.updates)):
                    evaluate_and_keep_the_best(training, evaluator, args, scoring, folder, log, stop)
            ended = any(ranks.gather(last or stop.is_set()))
            if ended or is_due(args.run.checkpoint_interval, training.updates):
                save(ranks.gather(rank_state(envs, device)))
    except OSError as error:
        failure = unwritable(folder, error)
    except Exception as error:  # also a mistake of ours should not cost what was learned
        failure = error
    evaluator.close()
    if log:
        log.progress.finish(training.steps)
        log.close()
    # After a failure the environments' states are lost: a checkpoint of this update that has them is better.
    if failure and not (isinstance(failure, DivergedError) or (folder / f"agent-{training.steps}.pt").exists()):
        try:
            save([])
        except OSError:
            raise failure from None
    agent_path = folder / "agent.pt"
    if not isinstance(failure, DivergedError) and agent_path.exists():
        print(f"saved {agent_path} after {training.updates} update{'s' * (training.updates != 1)}")
    if failure:
        raise failure
    if not last:
        print(f"resume with: {shlex.join(['python', sys.argv[0], '--resume', str(agent_path)])}")


def evaluate_and_keep_the_best(
    training: Training,
    evaluator: Evaluator,
    args: Args,
    scoring: Scoring,
    folder: Path,
    log: Log,
    stop: threading.Event,
) -> None:
    """Evaluates the agent, unless ``stop`` is set; writes the best so far to best.pt. Training goes on if it fails.

    Raises:
        OSError: The run's folder can't be written.
    """
    videos = folder / "videos" / str(training.steps) if args.eval.capture_video else None
    try:
        summary = evaluate_agent(evaluator, training.agent, args, videos, stop)
        if summary is None:
            return
        log.evaluation(summary, videos, training.steps)
    except KartRewardsError as error:
        print(f"\nthe evaluation is left out: {error}")
        return
    score = evaluation_score(summary)
    if score > training.best_score:
        training.best_score = score
        save_whole(training.agent_file(args, scoring), folder / "best.pt")


def comparable(args: Args, checkpoint: dict[str, Any] | None, scoring: Scoring, folder: Path) -> bool:
    """Whether evaluations to come compare with those before the checkpoint, of which the folder has the best agent."""
    if not checkpoint or not (folder / "best.pt").exists():
        return False
    now, then = plain(asdict(args)), checkpoint["options"]
    same_options = all(now[group] == then[group] for group in ("env", "eval"))
    return same_options and checkpoint["scoring"] == scoring.fingerprints()


def main() -> None:
    ranks = Ranks.of_torchrun()
    if ranks.rank > 0:  # one process speaks for all; errors go to standard error
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - for as long as the process lives
    args, checkpoint = parse_args()
    if args.eval.evaluate:
        if ranks.rank == 0:
            evaluate_checkpoints(args)
        return
    ranks.check(args.ppo)
    device = choose_device(args.run.device, ranks)
    if args.run.track and importlib.util.find_spec("wandb") is None:
        raise KartRewardsError("--track needs Weights & Biases: pip install '.[wandb]'")
    game = find_game(args.env.env_id, args.env.games)
    scoring = load_scoring(game.json_path(args.env.scenario), args.env.rewards, parse_weights(args.env.reward_weights))
    for state in args.courses():
        game.load_state(state)  # what evaluation needs should be missed now
    if checkpoint:
        check_scoring(args.run, checkpoint["scoring"], scoring.fingerprints())
        if checkpoint["steps"] + args.ppo.batch_size > args.ppo.total_timesteps:
            raise KartRewardsError(
                f"{args.run.resume}: is done: {checkpoint['steps']} of {args.ppo.total_timesteps} steps: raise "
                "--total-timesteps to train on"
            )
    folder = run_folder(args, checkpoint)
    stop = stop_on_signals()
    silence_the_log_writer()
    with environments(args, ranks) as envs, joined(ranks, device):
        train(args, checkpoint, scoring, envs, device, ranks, folder, stop)


if __name__ == "__main__":
    try:
        main()
    except KartRewardsError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
