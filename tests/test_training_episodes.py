"""The environments of a training run: step limit, returns, states to resume from, and each rank's share."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from training_runs import GAME

from kart_rewards.drives import load_drive
from kart_rewards.env import KartEnv
from kart_rewards.errors import KartRewardsError
from kart_rewards.training import episodes
from kart_rewards.training.episodes import TrainingEpisodes, make_training_envs
from kart_rewards.training.ranks import Ranks

OPTIONS: dict[str, Any] = {"game": GAME, "action_mode": "driving"}


class Counter(gym.Env):
    """Pays the number of steps taken, and terminates after five."""

    frame_skip, frames_per_second, recorder = 4, 60.0, None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        self.steps = 0
        self.seed, self.options = seed, options
        return 0, {"seed": seed}

    def step(self, action: Any) -> tuple[int, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self.steps, float(self.steps), self.steps == 5, False, {"race": {"steps": self.steps}}

    def get_state(self) -> int:
        return self.steps

    def set_state(self, state: int) -> int:
        self.steps = state
        return state


def play(env: gym.Env, steps: int) -> list[tuple[Any, ...]]:
    return [env.step(0) for _ in range(steps)]


def test_an_episode_is_truncated_at_the_limit() -> None:
    env = TrainingEpisodes(Counter(), 0, max_episode_steps=3)
    env.reset()
    assert [step[2:4] for step in play(env, 3)] == [(False, False), (False, False), (False, True)]


def test_an_episode_that_terminates_is_not_truncated_before_the_limit() -> None:
    env = TrainingEpisodes(Counter(), 0, max_episode_steps=6)
    env.reset()
    assert play(env, 5)[-1][2:4] == (True, False)


def test_only_the_last_step_has_an_info() -> None:
    env = TrainingEpisodes(Counter(), 0, max_episode_steps=3)
    env.reset()
    assert [step[4] for step in play(env, 3)] == [
        {},
        {},
        {"race": {"steps": 3}, "episode": {"r": 6.0, "l": 3, "seconds": 0.2}},
    ]


def test_return_and_length_begin_again_with_each_episode() -> None:
    env = TrainingEpisodes(Counter(), 0, max_episode_steps=4)
    for _ in range(2):
        env.reset()
        assert play(env, 4)[-1][4]["episode"] == {"r": 10.0, "l": 4, "seconds": 16 / 60}


def test_a_resumed_episode_has_its_old_return_and_length() -> None:
    env = TrainingEpisodes(Counter(), 1, max_episode_steps=4)
    env.reset(seed=3)
    play(env, 3)
    state = env.get_state()
    assert state == {"return": 6.0, "steps": 3, "episodes": 1, "env": 3}

    resumed = TrainingEpisodes(Counter(), 1, max_episode_steps=4)
    observation, _ = resumed.reset(seed=4, options={"states": [{}, state]})
    assert observation == 3
    assert resumed.unwrapped.seed == 4  # type: ignore[attr-defined]
    [(_, _, terminated, truncated, info)] = play(resumed, 1)
    assert (terminated, truncated, info["episode"]) == (False, True, {"r": 10.0, "l": 4, "seconds": 16 / 60})


def test_a_resumed_game_goes_on_measuring_terms_of_weight_0() -> None:
    options = {**OPTIONS, "reward_weights": {"time": 0.0}}

    def unpaid(env: TrainingEpisodes) -> dict[str, float]:
        return env.unwrapped.score.info()["episode_rewards"]["unpaid"]  # type: ignore[attr-defined]

    with closing(TrainingEpisodes(KartEnv(**options), 0, 99)) as env:
        env.reset(seed=1)
        play(env, 20)
        state, measured = env.get_state(), unpaid(env)
        assert measured == {"time": 2.0}
    with closing(TrainingEpisodes(KartEnv(**options), 0, 99)) as env:
        env.reset(seed=2, options={"states": [state]})
        assert unpaid(env) == measured
        del state["env"]["unpaid"]  # as in the checkpoint of an older version
        env.reset(seed=2, options={"states": [state]})
        assert unpaid(env) == {"time": 0.0}


def test_a_resumed_game_goes_on_as_if_it_had_not_stopped() -> None:
    def drive(env: gym.Env) -> list[tuple[bytes, float]]:
        return [(step[0].tobytes(), step[1]) for step in play(env, 10)]

    with closing(TrainingEpisodes(KartEnv(**OPTIONS), 0, 99)) as env:
        env.reset(seed=1)
        drive(env)
        state = env.get_state()
        expected = drive(env)
    with closing(TrainingEpisodes(KartEnv(**OPTIONS), 0, 99)) as env:
        env.reset(seed=2, options={"states": [state]})
        assert drive(env) == expected


def test_one_of_several_episodes_is_recorded(tmp_path: Path) -> None:
    with closing(TrainingEpisodes(KartEnv(**OPTIONS), 3, 5)) as env:
        env.record_drives(2)
        env.keep_drives(tmp_path / "drives")
        returns = []
        for _ in range(4):
            env.reset()
            returns.append(play(env, 5)[-1][4]["episode"]["r"])
        state = env.get_state()
        paths = sorted((tmp_path / "drives").iterdir())
        assert [path.name for path in paths] == [f"Level1-environment-3-episode-{number}.drive" for number in (1, 3)]
        drives = list(map(load_drive, paths))
        assert [drive.rewards.sum() for drive in drives] == pytest.approx(returns[::2])
        assert [(drive.info.driver, drive.info.truncated) for drive in drives] == [("training", True)] * 2
        resumed = [state] * 4
        env.reset(options={"states": resumed})
        assert "drive_trouble" not in play(env, 5)[-1][4], "its beginning is missing, so it is no drive"
        assert len(list((tmp_path / "drives").iterdir())) == 2
        (tmp_path / "file").touch()
        env.keep_drives(tmp_path / "file")
        env.reset()
        assert play(env, 5)[-1][4]["drive_trouble"].endswith("5.drive: can't be written: Not a directory")


def test_each_rank_makes_its_share_of_the_environments() -> None:
    ranks = Ranks(rank=1, world_size=2, local_rank=1, local_world_size=2)
    with closing(make_training_envs(OPTIONS, 6, 7, ranks)) as envs:
        assert envs.num_envs == 3
        assert len(envs.groups) == 2
        envs.reset(seed=1)
        plain = envs.call("get_state")
        states = [{**plain[number % 3], "steps": number} for number in range(6)]
        envs.reset(seed=1, options={"states": states})
        assert [state["steps"] for state in envs.call("get_state")] == [3, 4, 5]


@pytest.mark.parametrize(("cores", "local_world_size", "processes"), [(4, 1, 4), (4, 2, 2), (4, 3, 1), (2, 4, 1)])
def test_the_ranks_of_a_machine_share_its_cores(
    cores: int, local_world_size: int, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    made = []
    monkeypatch.setattr(episodes, "EnvGroups", lambda makers, groups, processes: made.append(processes))
    ranks = Ranks(rank=0, world_size=local_world_size, local_world_size=local_world_size)
    make_training_envs(OPTIONS, 12, 99, ranks)
    assert made == [processes]


def test_an_environment_that_can_not_be_made_is_reported(tmp_path: Path) -> None:
    with pytest.raises(KartRewardsError, match="unknown game"):
        make_training_envs({"game": "Lost-Snes", "integrations": tmp_path}, 2, 99, Ranks())


def test_observations_are_those_of_the_game() -> None:
    with closing(make_training_envs(OPTIONS, 2, 99, Ranks())) as envs:
        observations = envs.reset(seed=1)
    assert observations.shape == (2, *envs.single_observation_space.shape)  # type: ignore[misc]
    assert observations.dtype == np.uint8
    assert observations.std() > 1
