"""One complete episode, and its result.

* ``Policy``, ``PolicyMaker`` - chooses the actions of an episode; makes a policy for each episode
* ``OnStep`` - a callback that follows an episode
* ``play_episode`` - plays one episode in this process
* ``EpisodeResult`` - what was measured in it

An episode depends only on its policy, start state and seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from kart_rewards.defaults import DEFAULT_MAX_EPISODE_FRAMES
from kart_rewards.env import KartEnv
from kart_rewards.evaluation.courses import Marks
from kart_rewards.rewards import unweighted

Policy = Callable[[KartEnv, np.ndarray], Any]
"""Chooses an action: ``policy(env, observation)``. An agent uses only the observation; a driver uses ``env.ram``."""

PolicyMaker = Callable[[KartEnv, str, int], Policy]
"""Makes the policy of one episode: ``make_policy(env, state, seed)``.

It must be picklable, because episodes are played in worker processes. The policy must depend only on the arguments. A
worker process unpickles it once and calls it for each episode, so it may cache what is slow to make, such as a network.
"""

OnStep = Callable[[Any, float, dict[str, Any]], None]
"""Called with action, reward and info after each step. After the reset, the action is None and the reward is 0."""


@dataclass(frozen=True)
class EpisodeResult:
    """What was measured in one episode. Values about a race are None for games without race variables.

    Args:
        state: The course: the name of its start state.
        seed: The episode's seed.
        policy: The contestant's label.
        finished: Whether all laps of the race were completed.
        laps_completed: Number of completed laps.
        lap_times_seconds: Time of each completed lap. The first lap is timed from the start state.
        race_time_seconds: Time of the race. None if it was not finished.
        off_road_seconds: Time spent off the road.
        wall_hits: Number of collisions with walls.
        episode_return: Sum of the rewards, after the reward transform.
        length_steps: Number of environment steps.
        length_seconds: Duration of these steps, in seconds of the console.
        done_rule: The done rule that ended the episode. None if the frame limit or a wrapper ended it.
        reward_sums: Reward term -> sum of its weighted values, before the reward transform.
        value_sums: Reward term -> sum of its unweighted values.
        reward_shares: Reward term -> its part of everything that was paid and charged, after the reward transform.
        laps_driven: Number of laps, with the part of the last one by its checkpoints.
        split_times_seconds: See ``kart_rewards.evaluation.courses.split_times``. Empty if no drive was recorded.
        checkpoint_times_seconds: See ``kart_rewards.evaluation.courses.checkpoint_times``. Empty if no drive was
            recorded.
        marks: Where the kart was and where terms fired. None: not recorded.
    """

    state: str
    seed: int
    policy: str
    finished: bool | None
    laps_completed: int | None
    lap_times_seconds: tuple[float, ...] | None
    race_time_seconds: float | None
    off_road_seconds: float | None
    wall_hits: int | None
    episode_return: float
    length_steps: int
    length_seconds: float
    done_rule: str | None
    reward_sums: dict[str, float]
    value_sums: dict[str, float] = field(default_factory=dict)
    reward_shares: dict[str, float] = field(default_factory=dict)
    laps_driven: float | None = None
    split_times_seconds: tuple[tuple[float, ...], ...] = ()
    checkpoint_times_seconds: tuple[tuple[float | None, ...], ...] = ()
    marks: Marks | None = field(default=None, repr=False, compare=False)

    def plain(self) -> dict[str, Any]:
        """Returns the result for JSON, without ``marks``. The times of checkpoints are rounded to milliseconds."""
        plain = {name: value for name, value in asdict(self).items() if name != "marks"}
        plain["checkpoint_times_seconds"] = [
            [None if at is None else round(at, 3) for at in lap] for lap in self.checkpoint_times_seconds
        ]
        return plain


def play_episode(
    env: Any,
    policy: Policy,
    state: str,
    seed: int,
    *,
    label: str = "",
    max_episode_frames: int = DEFAULT_MAX_EPISODE_FRAMES,
    random_start_frames: int = 0,
    on_step: OnStep | None = None,
) -> EpisodeResult:
    """Plays one episode until a done rule, a wrapper or the frame limit ends it.

    Args:
        env: A ``KartEnv``, or a wrapper around one. The policy gets the same.
        policy: The policy, made for this episode.
        state: The start state.
        seed: Seed of the reset.
        label: The contestant's label, for the result.
        max_episode_frames: Number of emulated frames after which the episode is truncated.
        random_start_frames: The reset first drives 0 to this many emulated frames at random.
        on_step: Called after the reset and after each step.

    Raises:
        KartRewardsError: The start state can't be used, or a reward term or done rule failed.

    Example:
        >>> env = KartEnv("HomebrewKart-Snes", action_mode="driving")
        >>> result = play_episode(env, lambda env, observation: 0, "Level1", seed=1, max_episode_frames=240)
        >>> result.length_steps, result.laps_completed
        (60, 0)
        >>> env.close()
    """
    core: KartEnv = env.unwrapped
    options = {"state": state, "random_start_frames": random_start_frames}
    observation, info = env.reset(seed=seed, options=options)
    if on_step:
        on_step(None, 0.0, info)
    episode_return, steps, ended = 0.0, 0, False
    while not ended and steps < max(max_episode_frames // core.frame_skip, 1):
        action = policy(env, observation)
        observation, reward, terminated, truncated, info = env.step(action)
        ended = terminated or truncated
        episode_return += reward
        steps += 1
        if on_step:
            on_step(action, reward, info)
    race, rewards = info.get("race", {}), info["episode_rewards"]
    lap_times = tuple(frames / core.frames_per_second for frames in core.race.lap_frames) if core.race else None
    return EpisodeResult(
        state=state,
        seed=seed,
        policy=label,
        finished=race.get("finished"),
        laps_completed=race.get("laps_completed"),
        lap_times_seconds=lap_times,
        race_time_seconds=race.get("race_time_seconds"),
        off_road_seconds=race.get("off_road_seconds"),
        wall_hits=race.get("wall_hits"),
        episode_return=episode_return,
        length_steps=steps,
        length_seconds=steps * core.frame_skip / core.frames_per_second,
        done_rule=info.get("done_rule"),
        reward_sums=rewards["sum"],
        value_sums=unweighted(rewards, core.scoring.terms),
        reward_shares=rewards["share"],
        laps_driven=race.get("laps_driven"),
    )
