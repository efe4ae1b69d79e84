from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from conftest import GAME

from kart_rewards.env import KartEnv
from kart_rewards.env.observations import ObservationConfig
from kart_rewards.env.wrappers import has_memory, make_wrapped
from kart_rewards.errors import KartRewardsError
from kart_rewards.evaluation import Contestant, Policy, drivers
from kart_rewards.evaluation import evaluator as evaluation
from kart_rewards.evaluation.episodes import play_episode
from kart_rewards.training.episodes import make_training_env, make_training_envs
from kart_rewards.training.ranks import Ranks

MINE = """
import gymnasium as gym
import numpy as np

class Dark(gym.ObservationWrapper):
    def __init__(self, env):
        super().__init__(env)
        self.observation_space = gym.spaces.Box(0, 255, (2, 84, 84), np.uint8)

    def observation(self, observation):
        return observation[:2] // 2

class Doubled(gym.RewardWrapper):
    def reward(self, reward):
        return 2 * reward

class Counting(gym.Wrapper):
    def reset(self, **options):
        self.steps = 0
        return super().reset(**options)

class Difference(gym.ObservationWrapper):
    def __init__(self, env):
        super().__init__(env)
        self.before = None

    def observation(self, observation):
        before, self.before = self.before, observation
        return observation if before is None else observation - before

class Seen(gym.ObservationWrapper):
    def __init__(self, env):
        super().__init__(env)
        self.seen = []

    def observation(self, observation):
        self.seen.append(observation.mean())
        return observation

def unchanged(env):
    return env

def other(env):
    return gym.make("CartPole-v1")

def nothing(env):
    pass

def failing(env):
    raise ValueError("a bug")

number = 3
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    (tmp_path / "my_wrappers.py").write_text(MINE)
    return tmp_path / "my_wrappers.py"


def options(*wrappers: str, **others: Any) -> dict[str, Any]:
    return {"game": GAME, "action_mode": "driving", "wrappers": wrappers, **others}


def step(env: Any) -> tuple[np.ndarray, float]:
    observation, reward, *_ = env.step(0)
    return observation, reward


# DLR-RM/stable-baselines3#1286: users want to change observations, actions or rewards without a change of the trainer.
def test_wrappers_are_applied_in_their_order(mine: Path) -> None:
    with closing(make_wrapped(options())) as plain:
        assert type(plain) is KartEnv
        before = plain.reset(seed=1)[0]
        steps = [step(plain) for _ in range(60)]
    names = [f"{mine}:{name}" for name in ("unchanged", "Dark", "Doubled")]
    wrapped: Any = make_wrapped(options(*names))
    with closing(wrapped) as env:
        assert [type(env).__name__, type(env.env).__name__] == ["Doubled", "Dark"]
        assert isinstance(env.unwrapped, KartEnv)
        assert env.observation_space.shape == (2, 84, 84)
        assert np.array_equal(env.reset(seed=1)[0], before[:2] // 2)
        for observation, reward in steps:
            wrapped = step(env)
            assert np.array_equal(wrapped[0], observation[:2] // 2)
            assert wrapped[1] == 2 * reward
        assert sum(reward for _, reward in steps) != 0


@pytest.mark.parametrize(
    ("wrapper", "message"),
    [
        ("{mine}", "is not the name of a wrapper: write MODULE:NAME or FILE.py:NAME"),
        ("{mine}:Drak", r"my_wrappers\.py: has no function or class 'Drak'\. Did you mean 'Dark'\?"),
        ("{mine}:number", r"my_wrappers\.py: has no function or class 'number'"),
        ("{mine}:failing", r"my_wrappers\.py:failing raised ValueError: a bug\n  at .*my_wrappers\.py:\d+: raise"),
        ("{mine}:nothing", "returned None: it must return the environment, wrapped"),
        ("{mine}:other", "returned <.*CartPole.*: it must return the environment, wrapped"),
        ("lost.py:Dark", r"lost\.py: no such file"),
        ("no_such_module:Dark", "no_such_module: no such module"),
        ("gymnasium.wrappers:RescaleAction", "wrapper gymnasium.wrappers:RescaleAction raised TypeError: .*min_action"),
    ],
)  # fmt: skip
def test_what_is_no_wrapper_is_reported(mine: Path, wrapper: str, message: str) -> None:
    with pytest.raises(KartRewardsError, match=message):
        make_wrapped(options(wrapper.format(mine=mine)))
    make_wrapped(options()).close()  # no emulator is left


def test_training_sees_the_wrapped_environment(mine: Path) -> None:
    wrapped = options(f"{mine}:Dark", f"{mine}:Doubled")
    with closing(make_training_envs(wrapped, 2, 100, Ranks())) as envs:
        assert envs.single_observation_space.shape == (2, 84, 84)
        assert envs.reset(seed=1).shape == (2, 2, 84, 84)


def test_a_resumed_environment_goes_on_behind_its_wrappers(mine: Path) -> None:
    wrapped = options(f"{mine}:Dark", f"{mine}:Doubled", random_start_steps=5)
    with closing(make_training_env(wrapped, 0, 100)) as env:
        env.reset(seed=1)
        for _ in range(30):
            latest, _ = step(env)
        state = env.get_state()
        expected = [step(env) for _ in range(30)]
    with closing(make_training_env(wrapped, 0, 100)) as env:
        observation, _ = env.reset(seed=2, options={"states": [state]})
        assert np.array_equal(observation, latest)
        assert env.episode_steps == 30
        for observation, reward in expected:
            resumed = step(env)
            assert np.array_equal(resumed[0], observation)
            assert resumed[1] == reward


def test_behind_a_wrapper_with_a_memory_a_new_episode_begins(mine: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its memory is not in the checkpoint, and belongs to an episode."""
    wrapped = options(f"{mine}:Counting")
    with closing(make_training_env(wrapped, 0, 100)) as env:
        assert has_memory(env.env)
        first = env.reset(seed=1)[0]
        step(env)
        state = env.get_state()
        observation, _ = env.reset(seed=1, options={"states": [state]})
        assert np.array_equal(observation, first)
        assert env.episode_steps == 0
    make_training_envs(wrapped, 1, 100, Ranks()).close()
    notice = "The wrappers may have a memory, which checkpoints lack: a resumed run begins new episodes\n"
    assert capfd.readouterr().out.count(notice) == 1


@pytest.mark.parametrize(
    ("wrapper", "remembers"),
    [
        ("Dark", False), ("Doubled", False), ("Counting", True), ("Difference", True), ("Seen", True),
        ("gymnasium.wrappers:GrayscaleObservation", False), ("gymnasium.wrappers:NormalizeObservation", True),
        ("gymnasium.wrappers:NormalizeReward", True),
    ],
)  # fmt: skip
def test_wrappers_with_a_memory_are_known(mine: Path, wrapper: str, remembers: bool) -> None:
    name = wrapper if ":" in wrapper else f"{mine}:{wrapper}"
    colours = {"observation": ObservationConfig(grey=False, stack=1)} if "Grayscale" in wrapper else {}
    with closing(make_wrapped(options(name, **colours))) as env:
        assert has_memory(env) == remembers


def test_evaluation_plays_the_wrapped_environment(mine: Path, tmp_path: Path) -> None:
    shapes = []

    def make_policy(env: Any, state: str, seed: int) -> Policy:
        shapes.append(env.observation_space.shape)
        return lambda env, observation: shapes.append(observation.shape) or 0  # type: ignore[func-returns-value]

    with closing(make_wrapped(options())) as env:
        plain = play_episode(env, lambda *_: 0, "Level1", 1, max_episode_frames=240)
    with closing(make_wrapped(options(f"{mine}:Dark", f"{mine}:Doubled"))) as env:
        result = play_episode(env, make_policy(env, "Level1", 1), "Level1", 1, max_episode_frames=240)
    assert set(shapes) == {(2, 84, 84)}
    assert result.episode_return == pytest.approx(2 * plain.episode_return)
    assert (result.reward_sums, result.laps_completed) == (plain.reward_sums, plain.laps_completed)

    agent = Contestant("agent", make_straight_on, options(f"{mine}:Dark", f"{mine}:Doubled"))
    with evaluation.Evaluator(workers=1) as evaluator:
        [twice] = evaluator.play([agent], ["Level1"], 1, 1, max_episode_frames=240, video_folder=tmp_path / "videos")
    assert [path.name for path in (tmp_path / "videos").iterdir()] == ["Level1-agent.mp4"]
    [alone] = drivers(options(f"{mine}:Dark"))[1:2]
    assert "wrappers" not in alone.env_options, "the scripted drivers play the game itself"
    assert twice.length_steps == 60


def test_an_episode_that_a_wrapper_truncates_ends(mine: Path) -> None:
    mine.write_text(
        "import gymnasium as gym\ndef limited(env):\n    return gym.wrappers.TimeLimit(env, max_episode_steps=5)\n"
    )
    with closing(make_wrapped(options(f"{mine}:limited"))) as env:
        result = play_episode(env, lambda *_: 0, "Level1", 1, max_episode_frames=240)
    assert (result.length_steps, result.done_rule) == (5, None)


def make_straight_on(env: Any, state: str, seed: int) -> Policy:
    assert env.observation_space.shape == (2, 84, 84)
    return straight_on


def straight_on(env: Any, observation: np.ndarray) -> int:
    return 0


def test_gymnasiums_own_wrappers_fit(mine: Path) -> None:
    names = ["gymnasium.wrappers:FlattenObservation", "gymnasium.wrappers:RecordEpisodeStatistics"]
    with closing(make_wrapped(options(*names))) as env:
        assert isinstance(env, gym.wrappers.RecordEpisodeStatistics)
        assert env.reset(seed=1)[0].shape == (4 * 84 * 84,)
