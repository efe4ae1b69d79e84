"""Scripted drivers as contestants, and the courses that they can play."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest

from kart_rewards.env import KartEnv
from kart_rewards.errors import KartRewardsError
from kart_rewards.evaluation import Contestant, drivers, left_out
from kart_rewards.integrations import INTEGRATIONS

GAME = "HomebrewKart-Snes"


def by_label(**options: object) -> dict[str, Contestant]:
    return {contestant.label: contestant for contestant in drivers({"game": GAME, **options})}


def test_the_drivers_press_what_their_names_say() -> None:
    contestants = by_label(frame_skip=8, action_mode="driving", reward_scale=0.5)
    env = KartEnv(**contestants["random"].env_options)
    try:
        assert (env.frame_skip, env.action_space.shape) == (1, (12,)), "they choose buttons on each emulated frame"
        assert contestants["random"].env_options["reward_scale"] == 0.5, "they get the agent's rewards"
        observation, _ = env.reset(seed=1)

        def pressed(label: str, seed: int, steps: int) -> list[set[str]]:
            policy = contestants[label].make_policy(env, "Level1", seed)
            env.reset(seed=1)
            held = []
            for _ in range(steps):
                action = policy(env, observation)
                held.append({name for name, down in zip(env.buttons, action, strict=True) if down and name})
                env.step(action)
            return held

        assert pressed("full-throttle", 1, 3) == [{"B"}] * 3
        assert pressed("random", 1, 200) == pressed("random", 1, 200)
        assert pressed("random", 1, 200) != pressed("random", 2, 200)
        assert {"B"} <= set.union(*pressed("reference", 1, 200))
    finally:
        env.close()


def test_drivers_can_be_sent_to_worker_processes() -> None:
    for contestant in by_label().values():
        assert pickle.loads(pickle.dumps(contestant)) == contestant  # noqa: S301 - pickled here


def test_the_reference_driver_plays_the_courses_whose_road_is_known(tmp_path: Path) -> None:
    contestants = by_label()
    reference, path = contestants["reference"], "another/Level1.state"
    assert left_out(contestants.values(), ["Level1", "Level5"]) == ""
    assert (reference.plays("Level1"), reference.plays(path)) == (True, False)
    assert left_out(contestants.values(), ["Level1", path]) == (
        f"left out: reference on {path}: {GAME} has no courses.json entry for this course"
    )
    folder = shutil.copytree(INTEGRATIONS / GAME, tmp_path / GAME)
    (folder / "courses.json").unlink()
    contestants = by_label(integrations=tmp_path)
    assert left_out(contestants.values(), ["Level1", "Level2"]) == (
        f"left out: reference on Level1, Level2: {GAME} has no courses.json entry for these courses"
    )
    (folder / "courses.json").write_text("{")
    with pytest.raises(KartRewardsError, match=r"courses\.json"):
        drivers({"game": GAME, "integrations": tmp_path})


def test_an_unknown_game_is_reported() -> None:
    with pytest.raises(KartRewardsError, match="unknown game 'HomebrewCart-Snes'"):
        drivers({"game": "HomebrewCart-Snes"})


def test_an_agent_plays_every_course_unless_its_courses_are_given() -> None:
    def make_policy(*_: object) -> object:
        raise AssertionError("not called")

    assert Contestant("agent", make_policy, {}).plays("any")  # type: ignore[arg-type]
    assert not Contestant("agent", make_policy, {}, ["Level1"]).plays("any")  # type: ignore[arg-type]
    assert left_out([Contestant("agent", make_policy, {})], ["any"]) == ""  # type: ignore[arg-type]
