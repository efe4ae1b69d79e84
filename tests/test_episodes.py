"""Complete episodes in the real emulator."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stable_retro

from kart_rewards import done_rule
from kart_rewards.drivers import CentrelineDriver, centreline
from kart_rewards.env import KartEnv
from kart_rewards.env.observations import ObservationConfig
from kart_rewards.evaluation import DriverPolicy, drivers, play_episode, summarise, table

Make = Callable[..., KartEnv]


def straight_on(env: KartEnv, observation: np.ndarray) -> Any:
    return env.action_space.sample() * 0


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes an environment, and closes the previous one: stable-retro has one emulator per process."""
    made: list[KartEnv] = []

    def make(**options: Any) -> KartEnv:
        while made:
            made.pop().close()
        made.append(KartEnv(**{"game": "HomebrewKart-Snes", **options}))
        return made[-1]

    yield make
    while made:
        made.pop().close()


def test_a_complete_race_agrees_with_the_games_own_clock(make: Make) -> None:
    """The reference driver, after a random start of half a second, which counts in the race time and nowhere else."""
    env = make(action_mode="all", frame_skip=1, observation=ObservationConfig.raw())
    rewards = []
    episode = play_episode(
        env,
        DriverPolicy(CentrelineDriver(centreline("Level1"))),
        "Level1",
        1,
        label="reference",
        random_start_frames=60,
        on_step=lambda action, reward, info: rewards.append(reward),
    )
    assert episode.length_steps == len(rewards) - 1  # one call after the reset
    assert env.race
    started_after_frames = env.race.frames - episode.length_steps
    assert 20 < started_after_frames <= 60
    ram = env.ram
    own_clock = 60 * ram.race_minutes + ram.race_seconds + ram.race_centiseconds / 100
    assert episode.race_time_seconds == pytest.approx(own_clock, abs=0.15)  # a state begins a few frames into the race
    assert sum(episode.lap_times_seconds or ()) == pytest.approx(episode.race_time_seconds)
    assert (episode.finished, episode.laps_completed, len(episode.lap_times_seconds or ())) == (True, 5, 5)
    assert (episode.state, episode.seed, episode.policy) == ("Level1", 1, "reference")
    assert (episode.done_rule, episode.wall_hits, episode.off_road_seconds) == ("race_finished", 0, 0.0)
    assert episode.episode_return == pytest.approx(sum(rewards))
    assert episode.episode_return == pytest.approx(sum(episode.reward_sums.values()) * 0.01)


def test_a_start_depends_only_on_state_and_seed_in_every_action_mode(make: Make) -> None:
    def start(env: KartEnv, state: str, seed: int, random_start_frames: int = 60) -> Any:
        starts: list[Any] = []
        play_episode(
            env,
            straight_on,
            state,
            seed,
            max_episode_frames=1,
            random_start_frames=random_start_frames,
            on_step=lambda action, reward, info: starts.append(env.ram),
        )
        return starts[0]

    starts = [
        [start(env, "Level1", seed) for seed in (1, 2, 3)] + [start(env, "Level2", 1)]
        for options in ({"action_mode": "all", "frame_skip": 1}, {}, {"action_mode": "discrete", "frame_skip": 3})
        for env in [make(**options)]
    ]
    assert starts[0] == starts[1] == starts[2]
    assert len(set(starts[0])) == 4
    env = make()
    assert start(env, "Level1", 1, 0) == start(env, "Level1", 2, 0)
    assert len({start(env, "Level1", seed).current_frame for seed in range(10)}) > 5


def test_an_episode_ends_at_its_limit_of_emulated_frames(make: Make) -> None:
    for options, steps in (({"frame_skip": 4}, 10), ({"frame_skip": 8}, 5)):
        episode = play_episode(make(**options), straight_on, "Level1", 1, max_episode_frames=41)
        assert (episode.length_steps, episode.done_rule, episode.finished) == (steps, None, False)
        assert episode.lap_times_seconds == ()
        assert episode.race_time_seconds is None


def test_a_game_without_a_race_has_returns(tmp_path: Path) -> None:
    """Airstriker, the free Mega Drive game that is part of stable-retro."""
    shipped = stable_retro.data.get_file_path(
        "Airstriker-Genesis-v0", "data.json", stable_retro.data.Integrations.STABLE
    )
    folder = shutil.copytree(Path(shipped).parent, tmp_path / "Airstriker-Genesis")
    (folder / "own.py").write_text(
        "from kart_rewards import reward_term\n@reward_term()\ndef alive(ram):\n    return ram.lives > 0\n"
    )
    (folder / "scenario.json").write_text(
        json.dumps({"kart_rewards": {"modules": ["own.py"], "rewards": {"alive": 1}, "done": []}})
    )
    random_driver = drivers(
        {"game": "Airstriker-Genesis", "integrations": tmp_path, "reward_transform": "none"},
    )[0]
    env = KartEnv(**random_driver.env_options)
    try:
        policy = random_driver.make_policy(env, "Level1", 1)
        episode = play_episode(env, policy, "Level1", 1, max_episode_frames=300, random_start_frames=60)
    finally:
        env.close()
    assert episode.episode_return == episode.reward_sums["alive"] == 300
    assert (episode.finished, episode.laps_completed, episode.lap_times_seconds) == (None, None, None)
    assert (episode.race_time_seconds, episode.off_road_seconds, episode.wall_hits) == (None, None, None)
    summary = summarise([episode])
    assert summary["Level1"][""]["finish_rate"] is None
    assert episode.length_seconds == pytest.approx(300 / 60, rel=0.01)
    header, _, row, *_ = table(summary).splitlines()
    assert header.split() == ["episodes", "length", "return", "alive"]
    assert row.split() == ["1", "5.0", "300.0", "300.0"]


def test_an_episode_that_a_rule_truncates_is_not_finished(make: Make) -> None:
    @done_rule(truncates=True)
    def standing(ram: Any) -> bool:
        return bool(ram.speed == 0 and ram.current_frame >= 480)

    env = make(rewards=[standing], action_mode="all")
    episode = play_episode(env, lambda env, _: [0] * len(env.buttons), "Level1", 1)
    assert (episode.done_rule, episode.finished, episode.race_time_seconds) == ("standing", False, None)
    assert episode.length_steps == 60
