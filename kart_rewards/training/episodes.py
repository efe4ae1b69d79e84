"""The environments of a training run.

* ``TrainingEpisodes`` - a wrapper with a step limit, returns and lengths, and states to resume from
* ``make_training_envs`` - all environments of this process's share
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium as gym

from kart_rewards.drives import SUFFIX
from kart_rewards.env.recorder import DriveRecorder
from kart_rewards.env.wrappers import has_memory, make_wrapped, wrapped_observation
from kart_rewards.errors import KartRewardsError
from kart_rewards.files import UnwritableError
from kart_rewards.integrations import state_labels
from kart_rewards.notices import notice
from kart_rewards.training.ranks import Ranks
from kart_rewards.training.vector import EnvGroups


class TrainingEpisodes(gym.Wrapper):
    """Gives episodes a step limit, measures their return and length, and saves and resumes them.

    ``info`` is empty except on an episode's last step, the only one that training reads. There it gains ``episode``:
    ``r``, the return, and ``l``, the length in agent steps, as in Gymnasium's ``RecordEpisodeStatistics``; and
    ``seconds``, the length in seconds of the console.

    ``reset`` takes ``options={"states": [...]}``, the results of ``get_state`` of all environments, to resume. With a
    wrapper that may have a memory, or a Lua script, whose memory is not saved, a new episode begins instead.

    Args:
        env: A ``KartEnv``, or a wrapper around one.
        index: Its number among the run's environments.
        max_episode_steps: Agent steps after which an episode is truncated.
    """

    def __init__(self, env: gym.Env, index: int, max_episode_steps: int) -> None:
        super().__init__(env)
        self.index = index
        self.max_episode_steps = max_episode_steps
        self.episode_return = 0.0
        self.episode_steps = 0
        self.episodes = 0  # begun so far
        self._record_interval = 0
        self._drives: Path | None = None

    def record_drives(self, interval: int) -> None:
        """Records one of ``interval`` episodes as a drive, beginning with the first. ``keep_drives`` saves them."""
        self._record_interval = interval

    def keep_drives(self, folder: Path) -> None:
        """Saves each recorded episode in this folder when it ends."""
        self._drives = folder

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.episode_return = 0.0
        self.episode_steps = 0
        core: Any = self.unwrapped
        is_recorded = self._record_interval and self.episodes % self._record_interval == 0
        core.recorder = DriveRecorder("training") if is_recorded else None
        self.episodes += 1
        observation, info = self.env.reset(seed=seed, options=options)
        forgets = has_memory(self.env) or getattr(core, "lua", None)
        if options and "states" in options and not forgets:
            try:
                state = options["states"][self.index]
                self.episode_return, self.episode_steps = float(state["return"]), int(state["steps"])
                self.episodes = int(state.get("episodes", 1))
                observation = core.set_state(state["env"])
                observation = wrapped_observation(self.env, observation)
            except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, zlib.error) as error:
                raise KartRewardsError(
                    f"the checkpoint's state of environment {self.index} is damaged ({type(error).__name__}: {error})"
                ) from None
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.episode_return += float(reward)
        self.episode_steps += 1
        truncated = truncated or self.episode_steps >= self.max_episode_steps
        if not (terminated or truncated):
            return observation, reward, False, False, {}
        core: Any = self.unwrapped
        seconds = self.episode_steps * core.frame_skip / core.frames_per_second
        info["episode"] = {"r": self.episode_return, "l": self.episode_steps, "seconds": seconds}
        recorder = core.recorder
        if self._drives and recorder and recorder.has_drive:
            drive = recorder.drive(core, limited=True)
            label = state_labels([drive.info.state])[drive.info.state]
            name = f"{label}-environment-{self.index}-episode-{self.episodes}{SUFFIX}"
            try:
                drive.save(self._drives / name)
            except UnwritableError as error:
                info["drive_trouble"] = str(error)
        return observation, reward, terminated, truncated, info

    def fingerprints(self) -> dict[str, str]:
        """Returns the fingerprints of the environment's reward terms and done rules."""
        return self.unwrapped.scoring.fingerprints()  # type: ignore[attr-defined]

    def get_state(self) -> dict[str, Any]:
        """Returns everything that the rest of the episode depends on, as plain values and bytes."""
        env = self.unwrapped.get_state()  # type: ignore[attr-defined]
        return {"return": self.episode_return, "steps": self.episode_steps, "episodes": self.episodes, "env": env}


def make_training_env(env_options: Mapping[str, Any], index: int, max_episode_steps: int) -> TrainingEpisodes:
    """Makes one environment; see ``TrainingEpisodes``. It runs in the process that the environment plays in."""
    return TrainingEpisodes(make_wrapped(env_options), index, max_episode_steps)


def make_training_envs(
    env_options: Mapping[str, Any], num_envs: int, max_episode_steps: int, ranks: Ranks
) -> EnvGroups:
    """Makes the environments of one rank, in two groups: one group steps while the agent answers the other.

    Args:
        env_options: The arguments of ``KartEnv`` by name, and ``wrappers``; see ``make_wrapped``.
        num_envs: How many environments all ranks have together.
        max_episode_steps: Agent steps after which an episode is truncated.
        ranks: This process among all. Its environments are distributed over one process per core that it has, or over
            one process per environment if sharing an emulator would be wrong or slow.

    Raises:
        KartRewardsError: An environment can't be made.
    """
    own = ranks.share(num_envs)
    if env_options.get("wrappers"):
        with closing(make_wrapped(env_options)) as env:
            if has_memory(env):
                notice("The wrappers may have a memory, which checkpoints lack: a resumed run begins new episodes")
    makers = [
        functools.partial(make_training_env, env_options, ranks.rank * own + i, max_episode_steps) for i in range(own)
    ]
    return EnvGroups(makers, groups=2, processes=ranks.processors())
