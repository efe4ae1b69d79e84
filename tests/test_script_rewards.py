"""The wrapper for environments of stable-retro."""

from __future__ import annotations

import functools
import gc
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import stable_retro
from conftest import GAME
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import MaxAndSkipObservation, TimeLimit

from kart_rewards import KartEnv, KartRewardsError, ObservationConfig, ScriptRewards, done_rule, reward_term
from kart_rewards.integrations import INTEGRATIONS

AIRSTRIKER = "Airstriker-Genesis-v0"


@pytest.fixture(autouse=True)
def own_games() -> Iterator[None]:
    """stable-retro knows the games of this project. No emulator is left in this process."""
    stable_retro.data.Integrations.add_custom_path(str(INTEGRATIONS))
    yield
    gc.collect()


def make(game: str = GAME, **options: Any) -> Any:
    """An environment of stable-retro."""
    return stable_retro.make(game, inttype=stable_retro.data.Integrations.ALL, render_mode=None, **options)


@reward_term(weight=0.5)
def moved(ram: Any, previous: Any) -> float:
    """Pays for each change of the RAM."""
    return float(ram != previous)


@reward_term()
class Calls:
    """Counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, ram: Any) -> int:
        self.calls += 1
        return self.calls


@reward_term()
def inputs(ram: Any, buttons: frozenset[str], action: Any) -> float:
    """Pays for held buttons and for the parts of the action."""
    return len(buttons) + 0.01 * sum(i * part for i, part in enumerate(action or ()))


class After:
    """Ends the episode on a frame."""

    def __init__(self, frame: int) -> None:
        self.left = frame

    def __call__(self, ram: Any) -> bool:
        self.left -= 1
        return self.left == -1  # the first call is that of the reset


After50 = done_rule("after50")(functools.partial(After, 50))
After20 = done_rule("after20", truncates=True)(functools.partial(After, 20))


def played(env: Any, masks: list[np.ndarray]) -> list[tuple[float, bool, bool, dict[str, Any]]]:
    """The results of a drive, until the episode ends."""
    _, info = env.reset(seed=3)
    steps = [(0.0, False, False, info)]
    for mask in masks:
        _, reward, terminated, truncated, info = env.step(mask)
        steps.append((reward, terminated, truncated, info))
        if terminated or truncated:
            break
    return steps


@pytest.mark.parametrize(
    ("game", "options", "frames"),
    [
        (GAME, {}, 900),
        (GAME, {"rewards": [moved, Calls, After50], "reward_weights": {"moved": -2.0}}, 60),
        (GAME, {"rewards": Calls, "scenario": None, "reward_transform": "none"}, 60),
        (GAME, {"rewards": [moved, After20], "reward_transform": "sign"}, 60),
        (GAME, {"rewards": [inputs], "scenario": None}, 120),
        (AIRSTRIKER, {"rewards": [moved, Calls]}, 900),
        (AIRSTRIKER, {"rewards": [moved], "reward_weights": {"score": 3.0}, "reward_scale": 2.0}, 300),
    ],
)
def test_it_pays_what_kart_env_pays(game: str, options: dict[str, Any], frames: int, tmp_path: Path) -> None:
    env = make(game)
    random = np.random.default_rng(1)
    buttons = np.array([name not in (None, "START", "SELECT", "MODE") for name in env.buttons])
    masks: list[np.ndarray] = []
    while len(masks) < frames:
        masks += [(random.random(len(buttons)) < 0.4) & buttons] * int(random.integers(1, 30))
    masks = [mask.astype(np.int8) for mask in masks[:frames]]
    wrapped = played(ScriptRewards(env, **options), masks)
    env.close()
    del env
    gc.collect()

    folder = Path(stable_retro.data.get_file_path(game, "data.json", stable_retro.data.Integrations.ALL)).parent.parent
    raw = ObservationConfig.raw()
    kart = KartEnv(game, integrations=folder, frame_skip=1, action_mode="filtered", observation=raw, **options)
    try:
        expected = played(kart, masks)
    finally:
        kart.close()
    assert len(wrapped) == len(expected)
    for ours, theirs in zip(wrapped, expected, strict=True):
        assert ours[:3] == theirs[:3]
        for key, value in theirs[3].items():
            assert key == "state" or ours[3][key] == value, key
    assert any(reward for reward, *_ in wrapped)


def test_a_truncating_rule_truncates() -> None:
    env = ScriptRewards(make(), rewards=[After20])
    steps = played(env, [np.zeros(12, np.int8)] * 30)
    assert len(steps) == 21
    assert steps[-1][1:3] == (False, True)
    assert steps[-1][3]["done_rule"] == "after20"
    env.close()


def test_stable_retros_info_stays() -> None:
    plain = make()
    plain.reset(seed=1)
    wanted = [plain.step(np.array([1] + [0] * 11))[4] for _ in range(30)]
    plain.close()
    del plain
    gc.collect()
    env = ScriptRewards(make(), rewards=[moved])
    env.reset(seed=1)
    for info in wanted:
        found = env.step(np.array([1] + [0] * 11))[4]
        assert {name: found[name] for name in info} == info
        assert found["ram"]["speed"] == np.int16(np.uint16(info["speed"])), "ours is signed"
    env.close()


def test_another_scenario_and_other_variables(own_game: Path) -> None:
    scenario = own_game / "sprint.json"
    scenario.write_text(json.dumps({"kart_rewards": {"rewards": {"time": -3}, "done": []}}))
    env = ScriptRewards(make(), scenario=scenario)
    assert [(term.name, term.weight) for term in env.scoring.terms] == [("time", -3)]
    with pytest.raises(KartRewardsError, match=r"stable-retro finds no sprint\.json of this game"):
        ScriptRewards(env.env, scenario="sprint")
    named = ScriptRewards(env.env, scenario="scenario.json", info="data.json")
    assert (own_game / named.layout.source).name == "data.json"
    assert "wall" in [term.name for term in named.scoring.terms]
    env.close()
    with pytest.raises(KartRewardsError, match="needs an open environment, and this one is closed: make another"):
        ScriptRewards(env.env)


def test_the_environments_own_scenario_counts(own_game: Path) -> None:
    scenario = own_game / "sprint.json"
    scenario.write_text(json.dumps({"kart_rewards": {"rewards": {"time": -3}, "done": []}}))
    env = ScriptRewards(make(scenario=str(scenario)))
    assert [term.name for term in env.scoring.terms] == ["time"]
    env.close()


def test_it_passes_gymnasiums_check() -> None:
    env = ScriptRewards(make(AIRSTRIKER))
    check_env(env, skip_render_check=True)
    env.close()


def test_a_frame_skip_goes_around_it() -> None:
    inner = ScriptRewards(make(), rewards=[Calls], scenario=None, reward_transform="none")
    env = MaxAndSkipObservation(inner, 4)
    env.reset(seed=1)
    assert env.step(np.zeros(12, np.int8))[1] == 2 + 3 + 4 + 5, "each frame is scored"
    env.close()


def test_a_frame_skip_below_it_is_refused() -> None:
    env = ScriptRewards(MaxAndSkipObservation(make(), 4))
    env.reset(seed=1)
    with pytest.raises(KartRewardsError, match="ran 4 frames; ScriptRewards must score each one: put"):
        env.step(np.zeros(12, np.int8))
    env.close()


def test_stable_baselines3s_stack_works_around_it() -> None:
    wrappers = pytest.importorskip("stable_baselines3.common.atari_wrappers")
    inner = ScriptRewards(make(), rewards=[Calls], scenario=None, reward_transform="none")
    env = wrappers.WarpFrame(wrappers.MaxAndSkipEnv(inner, skip=4))
    env.reset(seed=1)
    assert env.step(np.zeros(12, np.int8))[1] == 2 + 3 + 4 + 5
    env.close()


def test_rl_zoo3s_stack_works_around_it(tmp_path: Path) -> None:
    """The wrappers of a YAML file of RL Zoo, in its order: the innermost first."""
    utils = pytest.importorskip("rl_zoo3.utils")
    (tmp_path / "mine.py").write_text(
        "from kart_rewards import reward_term\n@reward_term\ndef one(ram):\n    return 1\n"
    )
    script = {"rewards": [str(tmp_path / "mine.py")], "scenario": None, "reward_transform": "none"}
    wrappers: list[Any] = [
        {"kart_rewards.ScriptRewards": script},
        {"rl_zoo3.wrappers.FrameSkip": {"skip": 4}},
        "stable_baselines3.common.atari_wrappers.WarpFrame",
        {"rl_zoo3.wrappers.YAMLCompatResizeObservation": {"shape": [64, 64]}},
    ]
    env = utils.get_wrapper_class({"env_wrapper": wrappers})(make())
    env.reset(seed=1)
    observation, reward, *_, info = env.step(np.zeros(12, np.int8))
    assert (observation.shape[:2], reward, info["episode_rewards"]["sum"]) == ((64, 64), 4, {"one": 4})
    env.close()


def test_a_time_limit_below_it_still_truncates() -> None:
    env = ScriptRewards(TimeLimit(make(), 5))
    steps = played(env, [np.zeros(12, np.int8)] * 9)
    assert len(steps) == 6
    assert steps[-1][1:3] == (False, True)
    env.close()


PICKLED = """
import pickle, sys, numpy, stable_retro
stable_retro.data.Integrations.add_custom_path(sys.argv[2])
env = pickle.load(open(sys.argv[1], "rb"))
env.reset(seed=1)
print(env.step(numpy.zeros(12, numpy.int8))[1], sorted(env.step(numpy.zeros(12, numpy.int8))[4]["reward_terms"]))
"""


def test_it_pickles(tmp_path: Path) -> None:
    file = tmp_path / "terms.py"
    file.write_text("from kart_rewards import reward_term\n@reward_term()\ndef three(ram):\n    return 3\n")
    env = ScriptRewards(make(), rewards=file, scenario=None, reward_transform="none")
    env.reset(seed=1)
    (tmp_path / "env.pkl").write_bytes(pickle.dumps(env))  # another process can have an emulator of its own
    env.close()
    command = [sys.executable, "-c", PICKLED, str(tmp_path / "env.pkl"), str(INTEGRATIONS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "3.0 ['three']\n", done.stderr


@pytest.mark.parametrize(
    ("env", "why"),
    [
        ("CartPole-v1", r"needs an environment of stable-retro, not .*CartPole.*: wrap an environment of stable_retro"),
        (f"kart_rewards:{GAME}", "it scores with terms and rules itself: pass them to make_env or KartEnv as rewards"),
    ],
)
def test_other_environments_are_refused(env: str, why: str) -> None:
    other = gym.make(env)
    with pytest.raises(KartRewardsError, match=why):
        ScriptRewards(other)
    other.close()


def test_what_is_no_environment_is_refused() -> None:
    vector = gym.make_vec("CartPole-v1", num_envs=2)
    with pytest.raises(KartRewardsError, match="wrap each of its environments, inside the functions that make them"):
        ScriptRewards(vector)  # type: ignore[arg-type]
    vector.close()
    with pytest.raises(KartRewardsError, match="not 'Airstriker'"):
        ScriptRewards("Airstriker")  # type: ignore[arg-type]


def test_one_inside_another_is_refused() -> None:
    env = ScriptRewards(make())
    with pytest.raises(KartRewardsError, match="a ScriptRewards inside another one has no effect: pass all terms"):
        ScriptRewards(gym.wrappers.TimeLimit(env, 100))
    env.reset(seed=1)
    env.close()
    for use in (env.reset, lambda: env.step(np.zeros(12, np.int8))):
        with pytest.raises(
            (gym.error.ClosedEnvironmentError, gym.error.ResetNeeded), match=r"the environment is closed|Call reset"
        ):
            use()


def test_step_needs_a_reset() -> None:
    env = ScriptRewards(make())
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(12, np.int8))
    env.close()
