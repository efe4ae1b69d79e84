from __future__ import annotations

import gzip
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import stable_retro
from conftest import GAME, play, tiny_rom
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AsyncVectorEnv

from kart_rewards import KartEnv, KartRewardsError, ObservationConfig, done_rule, make_env, reward_term
from kart_rewards.env.actions import ACTION_MODES
from kart_rewards.episode import EpisodeScore
from kart_rewards.integrations import INTEGRATIONS, MissingRomError, find_game, list_games
from kart_rewards.scripting import from_plain

REFERENCE = ("wall", "checkpoint", "terrain", "time", "backwards")
STRAIGHT = np.array([0.0], np.float32)


@pytest.fixture
def make() -> Iterator[Any]:
    """Makes an environment and closes the previous one, which may be of another game."""
    made: list[gym.Env] = []

    def make(game: str = GAME, **options: Any) -> gym.Env:
        while made:
            made.pop().close()
        made.append(make_env(game, **options))
        return made[-1]

    yield make
    while made:
        made.pop().close()


def edit(path: Path, **changes: Any) -> None:
    """Replaces some values of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.filterwarnings("error", "ignore:.*Not able to test alternative render modes")
@pytest.mark.parametrize("mode", ACTION_MODES)
def test_gymnasiums_checker_passes(mode: str) -> None:
    env = KartEnv(GAME, action_mode=mode, render_mode="rgb_array")  # no spec: the checker makes no second environment
    try:
        check_env(env)
    finally:
        env.close()


def test_each_game_is_registered() -> None:
    stock = {name for name in list_games() if find_game(name).is_stock}
    assert len(stock) > 1000
    assert stock | {GAME, "MarioKart-Snes"} <= gym.registry.keys()
    assert gym.spec(GAME).max_episode_steps == 3000


def test_gym_make_accepts_the_packages_name() -> None:
    env = gym.make(f"kart_rewards:{GAME}", action_mode="driving")
    try:
        assert env.spec is not None
        assert env.spec.max_episode_steps == 3000
        assert env.reset(seed=1)[0].shape == (4, 84, 84)
    finally:
        env.close()


def test_the_retail_game_without_a_dump_is_an_error() -> None:
    with pytest.raises(MissingRomError, match="MarioKart-Snes has no ROM"):
        make_env("MarioKart-Snes")


def test_an_unknown_argument_of_make_env_is_reported_with_a_hint() -> None:
    with pytest.raises(KartRewardsError, match=r"^make_env has no argument 'reward'\. Did you mean 'rewards'\?$"):
        make_env(GAME, reward=[])
    with pytest.raises(KartRewardsError, match=r"'max_episode_step'\. Did you mean 'max_episode_steps'\?$"):
        make_env(GAME, max_episode_step=3)


def test_an_episode_begins_with_the_retail_games_values(make: Any) -> None:
    env = make()
    env.reset(seed=1)
    ram = env.unwrapped.ram
    assert (ram.laps, ram.checkpoint, ram.speed, ram.surface) == (127, ram.num_checkpoints - 1, 0, 0x40)
    assert (ram.collision, ram.backward, ram.game_mode) == (0, 0, 0x1C)


@pytest.mark.parametrize("frame_skip", [1, 4, 7])
def test_a_step_consists_of_frame_skip_emulated_frames(make: Any, frame_skip: int) -> None:
    env = make(frame_skip=frame_skip)
    env.reset(seed=1)
    for _ in range(5):
        before = env.unwrapped.ram.current_frame
        env.step(STRAIGHT)
        assert env.unwrapped.ram.current_frame == before + frame_skip
    assert env.unwrapped.metadata["render_fps"] == pytest.approx(60.1 / frame_skip, rel=0.01)


def test_a_step_shows_its_last_frame_or_the_maximum_of_its_last_two(make: Any) -> None:
    rng = np.random.default_rng(0)
    actions = [np.array([1, 0, 0, 0, 0, 0, *rng.integers(0, 2, 2), 0, 0, 0, 0]) for _ in range(40)]
    raw = ObservationConfig.raw()

    def screens(frame_skip: int, repeats: int, observation: ObservationConfig = raw) -> list[np.ndarray]:
        env = make(action_mode="all", frame_skip=frame_skip, observation=observation)
        env.reset(seed=1)
        return [env.step(action)[0].copy() for action in actions for _ in range(repeats)]

    frames = screens(1, repeats=4)
    pooled = screens(4, repeats=1, observation=replace(raw, max_pool=True))
    assert all(map(np.array_equal, screens(4, repeats=1), frames[3::4]))
    assert all(map(np.array_equal, pooled, map(np.maximum, frames[2::4], frames[3::4])))
    assert not all(map(np.array_equal, pooled, frames[3::4]))


def test_steering_within_a_step_is_pressed_frame_by_frame(make: Any) -> None:
    """Steering of 0.25 holds RIGHT on one frame of four, as four steps of one frame do."""
    right, straight = (np.array([1, 0, 0, 0, 0, 0, 0, right, 0, 0, 0, 0]) for right in (1, 0))
    env = make(action_mode="all", frame_skip=1)
    env.reset(seed=1)
    for _ in range(60):
        for action in (straight, right, straight, straight):
            env.step(action)
    frame_by_frame = env.unwrapped.ram
    env = make(frame_skip=4)
    env.reset(seed=1)
    for _ in range(60):
        env.step([0.25])
    assert env.unwrapped.ram == frame_by_frame
    assert env.unwrapped.ram.kart_x != play(env, [STRAIGHT] * 60, seed=1)[-1][3].kart_x


def test_ram_and_screen_are_those_of_plain_stable_retro(make: Any) -> None:
    """With the same buttons, stable-retro's own environment has the same memory and screen on each frame."""
    env = make(action_mode="all", frame_skip=1, observation=ObservationConfig.raw())
    rng = np.random.default_rng(0)
    drives = [np.array([1, 0, 0, 0, 0, 0, *rng.integers(0, 2, 2), 0, 0, *rng.integers(0, 2, 2)]) for _ in range(300)]
    ours = [env.reset(seed=1)[0]]
    rams = [env.unwrapped.data.memory.blocks]
    for buttons in drives:
        ours.append(env.step(buttons)[0])
        rams.append(env.unwrapped.data.memory.blocks)
    env.close()

    stable_retro.data.Integrations.add_custom_path(str(INTEGRATIONS))
    plain = stable_retro.make(
        GAME,
        inttype=stable_retro.data.Integrations.ALL,
        use_restricted_actions=stable_retro.Actions.ALL,
        render_mode="rgb_array",
    )
    try:
        assert np.array_equal(plain.reset()[0], ours[0])
        for i, buttons in enumerate(drives, start=1):
            assert np.array_equal(plain.step(buttons)[0], ours[i]), i
            assert plain.data.memory.blocks == rams[i], i
    finally:
        plain.close()
        stable_retro.data.Integrations.clear_custom_paths()


def test_negative_speed_reaches_the_reward_terms(make: Any) -> None:
    seen = []

    def watch(ram: Any) -> float:
        seen.append(ram.speed)
        return 0.0

    env = make(rewards=[watch], action_mode="all")
    env.reset(seed=1)
    for _ in range(60):
        env.step(np.array([0, 1] + [0] * 10))  # Y: brake, then reverse
    assert min(seen) < -100


def test_a_steps_reward_is_the_sum_of_its_frames_transformed_rewards(make: Any) -> None:
    per_frame = []

    def every_other_frame(ram: Any) -> float:
        per_frame.append(float(ram.current_frame % 2) * 3)
        return per_frame[-1]

    expected = {"sign": 2.0, "scale": 2 * 3 * 0.5, "none": 2 * 3.0}
    for transform, reward in expected.items():
        env = make(rewards=[every_other_frame], reward_weights=dict.fromkeys(
            ("wall", "checkpoint", "terrain", "time", "backwards"), 0.0
        ), reward_transform=transform, reward_scale=0.5)  # fmt: skip
        env.reset(seed=1)
        assert env.step(STRAIGHT)[1] == reward, transform


def test_info_reports_the_sum_of_each_term(make: Any) -> None:
    env = make(reward_transform="none")
    _, info = env.reset(seed=1)
    assert info["state"] == "Level1"
    assert set(info["reward_terms"].values()) == {0.0}
    total = 0.0
    sums = dict.fromkeys(info["reward_terms"], 0.0)
    for _ in range(150):
        _, reward, terminated, _, info = env.step(STRAIGHT)
        assert reward == pytest.approx(sum(info["reward_terms"].values()))
        total += reward
        for term, paid in info["reward_terms"].items():
            sums[term] += paid
        if terminated:
            break
    summary = info["episode_rewards"]
    assert sums == pytest.approx(summary["sum"])
    assert sum(summary["transformed"].values()) == pytest.approx(total)
    assert summary["count"]["checkpoint"] * 300 == summary["sum"]["checkpoint"] >= 300
    keys = {"laps_completed", "laps_driven", "finished", "off_road_seconds", "wall_hits"}
    assert info["race"].keys() == keys, "no lap, no lap time"


def test_wall_hits_end_the_episode_on_the_frame_of_the_last_hit(make: Any) -> None:
    touches = []

    def watch(ram: Any) -> float:
        touches.append(ram.collision != 0 and ram.speed < 600)
        return 0.0

    env = make(rewards=[watch], reward_transform="none")
    env.reset(seed=1)
    touches.clear()
    for _ in range(1000):
        _, _, terminated, truncated, info = env.step(STRAIGHT)  # the kart hits the wall at the end of the straight
        if terminated:
            break
    assert terminated
    assert not truncated
    assert info["done_rule"] == "wall_hits"
    assert touches[-1], "the last frame is the one with the hit"
    assert sum(touches) >= 7
    assert info["episode_rewards"]["sum"]["wall"] == -10 * sum(touches)


def test_the_step_limit_truncates(make: Any) -> None:
    env = make(max_episode_steps=5)
    env.reset(seed=1)
    assert [env.step(STRAIGHT)[2:4] for _ in range(5)] == [(False, False)] * 4 + [(False, True)]


@pytest.mark.parametrize("frame", [441, 442, 443, 444])
def test_a_rule_that_truncates_ends_the_step_on_its_frame_with_the_screen_of_this_frame(make: Any, frame: int) -> None:
    """Frames within a step are not drawn, but the final observation is."""

    @done_rule(truncates=True)
    def watchdog(ram: Any) -> bool:
        return bool(ram.current_frame >= frame)

    @done_rule(truncates=True)
    def later(ram: Any) -> bool:
        return bool(ram.current_frame >= frame)

    ends = []
    for draw_all in (False, True):
        env = make(rewards=[watchdog, later], draw_all=draw_all, observation=ObservationConfig(max_pool=False))
        env.reset(seed=1)
        terminated = truncated = False
        while not (terminated or truncated):
            observation, _, terminated, truncated, info = env.step(STRAIGHT)
        assert (terminated, truncated, info["done_rule"]) == (False, True, "watchdog")
        assert env.unwrapped.ram.current_frame == frame
        ends.append(observation.tobytes())
    assert ends[0] == ends[1]


def test_a_rule_that_terminates_on_the_same_frame_is_the_end(make: Any) -> None:
    @done_rule(truncates=True)
    def watchdog(ram: Any) -> bool:
        return bool(ram.current_frame >= 400)

    @done_rule
    def over(ram: Any) -> bool:
        return bool(ram.current_frame >= 400)

    env = make(rewards=[watchdog, over])
    env.reset(seed=1)
    terminated = truncated = False
    while not (terminated or truncated):
        _, _, terminated, truncated, info = env.step(STRAIGHT)
    assert (terminated, truncated, info["done_rule"]) == (True, False, "over")


class Standing:
    """A term and a rule, with the marks of the class that derives from it."""

    def __init__(self) -> None:
        self.calls = self.slow_frames = 0

    def __call__(self, ram: Any, previous: Any) -> tuple[float, bool]:
        self.calls += 1
        self.slow_frames += ram.speed < 300 and previous.speed < 300
        return self.calls / 1024 + self.slow_frames, self.slow_frames >= 150


def test_a_class_that_is_a_term_and_a_rule_is_called_once_per_frame_and_resumes_bit_for_bit(make: Any) -> None:
    both = reward_term(weight=0.5)(done_rule(truncates=True)(type("Standing", (Standing,), {})))

    def drive_on(env: Any) -> list[Any]:
        env.action_space.seed(9)
        log: list[Any] = []
        while not (log and (log[-1][2] or log[-1][3])):
            observation, *step = env.step(env.action_space.sample())
            log.append((observation.tobytes(), *step))
        return log

    options = {"rewards": [both], "reward_weights": dict.fromkeys(REFERENCE, 0), "reward_transform": "none"}
    env = make(**options)
    env.reset(seed=3)
    for _ in range(25):
        latest = env.step(STRAIGHT)[0]
    state = env.unwrapped.get_state()
    assert state["rewards"]["calls"]["memories"]["standing"]["dict"][0] == ["calls", 1 + 25 * 4]
    assert "standing" not in state["done"]["memories"]
    expected = drive_on(env)
    assert expected[-1][2:4] == (False, True)
    assert expected[-1][4]["done_rule"] == "standing"
    env = make(**options)
    env.reset(seed=77)
    assert np.array_equal(env.unwrapped.set_state(state), latest)
    assert drive_on(env) == expected
    env = make(**options | {"reward_weights": dict.fromkeys([*REFERENCE, "standing"], 0)})
    env.reset(seed=77)
    env.unwrapped.set_state(state)
    silent = drive_on(env)
    assert len(silent) == len(expected), "with weight 0, the rule is the same"
    assert {step[1] for step in silent} == {0.0}


def test_arrays_and_variables_behind_pointers_reach_terms_and_info(make: Any, own_game: Path) -> None:
    def second_digit(ram: Any, previous: Any) -> float:
        return ram.clock[1] - previous.clock[1] + (ram.through - ram.laps)

    path = own_game / GAME / "data.json"
    info = json.loads(path.read_text())["info"] | {
        "clock": {"address": 256, "type": "<d2", "count": 3},
        "zero": {"address": 8257536 + 0x1F0, "type": "|u1"},
        "through": {"address": 8261825, "type": "|u1", "pointer": "zero"},
    }
    edit(path, info=info)
    env = make(integrations=own_game, rewards=[second_digit], reward_transform="none", frame_skip=4)
    env.reset(seed=1)
    assert env.unwrapped.ram.zero == 0
    for _ in range(70):
        info = env.step(STRAIGHT)[4]
    ram = info["ram"]
    assert ram["clock"] == (ram["race_centiseconds"], ram["race_seconds"], ram["race_minutes"])
    assert info["episode_rewards"]["sum"]["second_digit"] == ram["race_seconds"] > 2
    state, expected = env.unwrapped.get_state(), env.step(STRAIGHT)
    env.reset(seed=5)
    env.unwrapped.set_state(state)
    assert env.unwrapped.ram._asdict() == ram
    assert env.step(STRAIGHT)[1:] == expected[1:]


def test_the_same_seed_and_actions_give_the_same_trajectory(make: Any) -> None:
    options = {"random_start_steps": 20, "state": ["Level1", "Level2"], "action_mode": "driving"}
    actions = [int(action) for action in np.random.default_rng(7).integers(0, 4, 60)]
    first = play(make(**options), actions)
    assert play(make(**options), actions) == first
    assert play(make(**options), actions, seed=6) != first


def test_each_reset_selects_a_random_state_and_start(make: Any) -> None:
    env = make(state=("Level1", "Level2"), random_start_steps=10)
    starts = [env.reset(seed=0 if i == 0 else None)[1]["state"] for i in range(20)]
    assert set(starts) == {"Level1", "Level2"}
    frames = set()
    for _ in range(10):
        env.reset(options={"state": "Level1"})
        frames.add(env.unwrapped.ram.current_frame)
    assert len(frames) > 3


def test_random_starts_do_not_change_the_sampling_of_actions(make: Any) -> None:
    env = make(random_start_steps=10, action_mode="driving")
    env.action_space.seed(3)
    expected = [env.action_space.sample() for _ in range(5)]
    env.reset(seed=1)
    env.action_space.seed(3)
    env.reset(seed=1)
    assert [env.action_space.sample() for _ in range(5)] == expected


@pytest.mark.parametrize("mode", ["continuous", "driving"])
def test_a_saved_state_continues_bit_for_bit(make: Any, mode: str) -> None:
    """After the save, the old environment and a new one play the same actions with the same results."""

    class Memory:
        def __init__(self) -> None:
            self.seen: dict[str, Any] = {"surfaces": set(), "last": None, "speeds": [0]}

        def __call__(self, ram: Any, previous: Any) -> float:
            self.seen["surfaces"].add(ram.surface)
            self.seen["last"] = previous
            self.seen["speeds"] = [*self.seen["speeds"][-3:], ram.speed]
            return len(self.seen["surfaces"]) + sum(self.seen["speeds"]) / 1000

    def drive_on(env: Any) -> list[Any]:
        env.action_space.seed(9)
        steps = [env.step(env.action_space.sample()) for _ in range(40)]
        return [
            [(observation.tobytes(), reward, terminated, info) for observation, reward, terminated, _, info in steps],
            env.reset()[0].tobytes(),  # uses the random numbers
            env.unwrapped.ram,
        ]

    options = {"action_mode": mode, "rewards": [Memory], "reward_transform": "none", "random_start_steps": 5}
    env = make(**options)
    env.reset(seed=3)
    env.action_space.seed(4)
    for _ in range(60):
        latest = env.step(env.action_space.sample())[0]
    state = env.unwrapped.get_state()
    expected = drive_on(env)
    env = make(**options)
    env.reset(seed=77)
    assert np.array_equal(env.unwrapped.set_state(state), latest)
    assert drive_on(env) == expected


@pytest.mark.parametrize("laps", [127, 130])
def test_race_metrics_are_resumed_also_from_older_checkpoints_and_in_the_middle_of_a_race(
    make: Any, laps: int, tmp_path: Path
) -> None:
    """Checkpoints of version 0.1 lack two numbers."""
    env = make(action_mode="driving")
    env.reset(seed=1)
    ram = env.unwrapped.ram._replace(laps=laps)
    score = EpisodeScore(env.unwrapped.scoring, ram, float, 60.0)
    score(ram._replace(laps=laps + 2))
    state, expected = score.get_state(), score.info()["race"]
    resumed = EpisodeScore(env.unwrapped.scoring, env.unwrapped.ram, float, 60.0)
    resumed.set_state(state, score.ram)
    assert resumed.info()["race"] == expected
    newer = ("laps_completed", "_laps_at_start")
    state["race"]["dict"] = [each for each in state["race"]["dict"] if each[0] not in newer]
    resumed.set_state(state, score.ram)
    assert resumed.info()["race"].keys() == expected.keys()
    del state["race"]["dict"][0]
    with pytest.raises(ValueError, match="another form"):
        resumed.set_state(state, score.ram)


def test_a_memory_that_cannot_be_saved_is_reported(make: Any) -> None:
    class Hoarder:
        def __init__(self) -> None:
            self.treasure = object()

        def __call__(self, ram: Any) -> float:
            return 0.0

    env = make(rewards=[Hoarder])
    env.reset(seed=1)
    with pytest.raises(KartRewardsError, match=r"'hoarder' .* can't be saved: it holds a value of type object"):
        env.unwrapped.get_state()


def test_terms_with_a_memory_are_new_in_each_episode(make: Any) -> None:
    env = make(reward_transform="none")
    paid = []
    for _ in range(2):
        env.reset(seed=1)
        for _ in range(60):
            info = env.step(STRAIGHT)[4]
        paid.append(info["episode_rewards"]["sum"])
    assert paid[0] == paid[1]
    assert paid[0]["checkpoint"] > 0


def test_a_term_that_fails_is_named(make: Any) -> None:
    @reward_term()
    def moody(ram: Any) -> float:
        return float("nan") if ram.speed > 100 else 0.0

    env = make(rewards=[moody])
    env.reset(seed=1)
    with pytest.raises(KartRewardsError, match=r"'moody' \(.*test_env.py:\d+\) returned nan"):
        play(env, [STRAIGHT] * 100)


def test_states_of_another_rom_console_or_nothing_are_refused(make: Any, own_game: Path, tiny_state: bytes) -> None:
    foreign = own_game / GAME / "Foreign.state"
    foreign.write_bytes(gzip.compress(tiny_state))
    airstriker = stable_retro.data.get_file_path(
        "Airstriker-Genesis-v0", "Level1.state", stable_retro.data.Integrations.STABLE
    )
    shutil.copy(airstriker, own_game / GAME / "Genesis.state")
    (own_game / GAME / "Noise.state").write_bytes(gzip.compress(os.urandom(5000)))
    for state, message in (
        ("Foreign", "made with another ROM than HomebrewKart-Snes's"),
        ("Genesis", "the emulator refuses this state"),
        ("Noise", "the emulator refuses this state"),
        ("Level77", "no such start state of HomebrewKart-Snes; it has Foreign, Genesis, Level1"),
    ):
        with pytest.raises(KartRewardsError, match=message) as error:
            make(integrations=own_game, state=state)
        assert f"{state}.state" in str(error.value)


def test_files_that_do_not_fit_are_refused(make: Any, own_game: Path) -> None:
    folder = own_game / GAME
    info = json.loads((folder / "data.json").read_text())["info"]

    edit(folder / "data.json", info=info | {"speed": {"address": 9_999_999, "type": "<s2"}})
    with pytest.raises(
        KartRewardsError, match=r"data\.json: variable 'speed' at address 9999999 .* lies outside memory"
    ):
        make(integrations=own_game)

    edit(folder / "data.json", info={name: entry for name, entry in info.items() if name != "speed"})
    with pytest.raises(KartRewardsError, match=r"'wall' .* reads 'speed', which .*data\.json does not define"):
        make(integrations=own_game)

    edit(folder / "data.json", info=info)
    edit(folder / "scenario.json", actions=[[[], ["LEFTT"]]])
    with pytest.raises(KartRewardsError, match=r"\"actions\": Snes has no button 'LEFTT', .*Did you mean 'LEFT'"):
        make(integrations=own_game)

    edit(folder / "scenario.json", actions=[])
    (folder / "rom.sfc").write_bytes(tiny_rom())
    with pytest.raises(KartRewardsError, match=r"rom\.sfc: is not the ROM that HomebrewKart-Snes needs"):
        make(integrations=own_game)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"game": "HomebrewCart-Snes"}, r"unknown game 'HomebrewCart-Snes'\. Did you mean 'HomebrewKart-Snes'\?"),
        ({"action_mode": "flying"}, "unknown action mode 'flying'"),
        ({"reward_transform": "cube"}, "unknown reward transform 'cube'"),
        ({"frame_skip": 0}, "frame_skip must be an integer, 1 or more, not 0"),
        ({"reward_weights": {"wal": 1}}, "there is no reward term 'wal'"),
        ({"frame_skip": 2.5}, "frame_skip must be an integer"),
        ({"frame_skip": "4"}, "frame_skip must be an integer, 1 or more, not '4'"),
        ({"frame_skip": None}, "frame_skip must be an integer, 1 or more, not None"),
        ({"rewards": {"wall": -50}}, "rewards must be a list of terms and rules, not a dict"),
        ({"reward_scale": 0}, "a reward scale of 0 pays the agent nothing"),
        ({"observation": ObservationConfig(stack=10**12)}, "stack 1000000000000 do not fit into memory"),
        ({"reward_scale": float("nan")}, "the reward scale must be a finite number"),
        ({"rewards": [3]}, "3 is not a reward term"),
        ({"rewards": 3}, "3 is not a reward term"),
        ({"state": 3}, "state must be the name or path of a start state"),
        ({"observation": {"crop": None}}, "observation must be an ObservationConfig"),
        ({"game": Path(GAME)}, "can't be a game's name"),
        ({"max_episode_steps": 0}, "max_episode_steps must be an integer, 1 or more, not 0"),
        ({"observation": ObservationConfig(crop=(0, 999, 0, 9))}, "does not fit the screen"),
    ],
)
def test_bad_options_are_reported(make: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(KartRewardsError, match=message):
        make(**options)
    make()  # possible only if the failed constructor left no emulator behind


def test_a_constructor_that_fails_leaves_no_emulator_behind(make: Any) -> None:
    with pytest.raises(KartRewardsError) as kept:
        make(observation=ObservationConfig(crop=(0, 999, 0, 9)))
    make()
    assert kept.value is not None  # a notebook keeps the last exception, and with it the variables of its frames


def test_states_and_files_are_found_by_name_and_by_path(make: Any) -> None:
    folder = INTEGRATIONS / GAME
    for state in ("Level2", "Level2.state", folder / "Level2.state"):
        make(state=state, scenario="scenario.json", info=folder / "data.json").reset(seed=1)


def test_a_state_in_the_options_of_a_reset_is_not_selected_by_later_resets(make: Any) -> None:
    env = make(state="Level1")
    assert env.reset(seed=1, options={"state": "Level5"})[1]["state"] == "Level5"
    assert {env.reset()[1]["state"] for _ in range(12)} == {"Level1"}


def test_a_misspelt_option_of_a_reset_is_refused(make: Any) -> None:
    env = make(state="Level1")
    with pytest.raises(
        KartRewardsError, match=r"unknown option 'start'\. Did you mean 'state'\? The options are state, r"
    ):
        env.reset(options={"start": "Level5"})
    with pytest.raises(KartRewardsError, match="random_start_frames must be an integer, 0 or more, not -1"):
        env.reset(options={"random_start_frames": -1})
    with pytest.raises(KartRewardsError, match=r"reset: options must be a dict .* not 'Level1'"):
        env.reset(options="Level1")
    with pytest.raises(KartRewardsError, match=r"reset: state must be the name or path of one start state, not \["):
        env.reset(options={"state": ["Level1", "Level2"]})
    assert env.reset(options={"state": INTEGRATIONS / GAME / "Level5.state"})[1]["state"].endswith("Level5.state")


def test_a_closed_environment_says_so(make: Any) -> None:
    env = make()
    env.reset(seed=1)
    env.close()
    for use in (env.reset, lambda: env.step(env.action_space.sample()), env.unwrapped.get_state):
        with pytest.raises(gym.error.ClosedEnvironmentError, match="the environment is closed: make a new one"):
            use()


def test_numbers_of_numpy_are_numbers(make: Any) -> None:
    assert make(frame_skip=np.int64(2)).unwrapped.frame_skip == 2


def test_one_term_needs_no_list(make: Any) -> None:
    def fast(ram: Any) -> float:
        return float(ram.speed > 0)

    for rewards in (fast, [fast]):
        assert [term.name for term in make(rewards=rewards, scenario=None).unwrapped.scoring.terms] == ["fast"]


def test_the_default_step_limit_is_a_number_of_frames(make: Any) -> None:
    assert make(frame_skip=1).spec.max_episode_steps == 12_000
    assert make(frame_skip=6).spec.max_episode_steps == 2_000


def test_gymnasiums_vector_environments_work_in_one_process(make: Any) -> None:
    expected = [play(make(action_mode="driving"), [0] * 10, seed)[-1][0] for seed in (5, 6)]
    make().close()
    envs = gym.make_vec(f"kart_rewards:{GAME}", num_envs=2, vectorization_mode="sync", action_mode="driving")
    envs.reset(seed=5)
    for _ in range(10):
        observations, *_ = envs.step(np.array([0, 0]))
    envs.close()
    assert [observation.tobytes() for observation in observations] == expected


def test_render_returns_the_screen(make: Any) -> None:
    env = make(render_mode="rgb_array", observation=ObservationConfig.raw())
    observation, _ = env.reset(seed=1)
    assert env.render().shape == (224, 256, 3)
    assert np.array_equal(env.render(), observation)
    assert len(np.unique(observation.reshape(-1, 3), axis=0)) > 10, "a game's screen has more colours"


@pytest.mark.skipif(sys.platform != "linux", reason="only on Linux, no DISPLAY means no display")
def test_human_rendering_without_a_display_is_reported(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    with pytest.raises(KartRewardsError, match="needs a display, and there is none"):
        make(render_mode="human").reset()


def test_environments_in_different_processes_agree(make: Any) -> None:
    def always(ram: Any) -> float:
        return 1.0

    envs = AsyncVectorEnv([lambda: make_env(GAME, action_mode="driving", rewards=[always])] * 2)
    try:
        observations, _ = envs.reset(seed=[5, 5])
        for action in [0] * 10 + [1] * 10:
            observations, _, _, _, infos = envs.step(np.array([action, action]))
        assert infos["reward_terms"]["always"].tolist() == [4.0, 4.0]
        assert np.array_equal(observations[0], observations[1])
    finally:
        envs.close()
    in_this_process = play(make(action_mode="driving"), [0] * 10 + [1] * 10)
    assert in_this_process[-1][0] == observations[0].tobytes()


def test_a_game_of_another_console_works(make: Any, tmp_path: Path) -> None:
    """The game is Airstriker for the Mega Drive, which is free and part of stable-retro."""
    shipped = Path(
        stable_retro.data.get_file_path("Airstriker-Genesis-v0", "data.json", stable_retro.data.Integrations.STABLE)
    ).parent
    shutil.copytree(shipped, tmp_path / "Airstriker-Genesis")
    folder = tmp_path / "Airstriker-Genesis"
    (folder / "own.py").write_text(
        "from kart_rewards import done_rule, reward_term\n"
        "@reward_term()\ndef points(ram, previous):\n    return ram.score - previous.score\n"
        "@done_rule()\ndef game_over(ram):\n    return ram.gameover == 1 and ram.lives == 0\n"
    )
    edit(
        folder / "scenario.json",
        kart_rewards={"modules": ["own.py"], "rewards": {"points": 1}, "done": ["game_over"]},
    )
    env = make(
        "Airstriker-Genesis",
        integrations=tmp_path,
        action_mode="filtered",
        observation=ObservationConfig(crop=None),
        reward_transform="none",
    )
    env.reset(seed=1)
    env.action_space.seed(1)
    total = 0.0
    for _ in range(600):
        _, reward, terminated, _, info = env.step(env.action_space.sample())
        total += reward
        if terminated:
            break
    assert total > 0
    assert info["episode_rewards"]["sum"] == {"points": total}
    assert "race" not in info


# Farama-Foundation/stable-retro returns its variables in info; users of its wrappers read them there.
# Farama-Foundation/Arcade-Learning-Environment#440: a user wants pictures and RAM of the same step.
def test_info_has_the_variables(make: Any) -> None:
    env = make()
    _, info = env.reset(seed=1)
    assert info["ram"] == env.unwrapped.ram._asdict()
    for _ in range(30):
        info = env.step(STRAIGHT)[4]
    assert info["ram"] == env.unwrapped.ram._asdict()
    assert info["ram"]["speed"] == env.unwrapped.ram.speed > 0
    assert type(info["ram"]) is dict


# Observed: of an action of one number, the first button was pressed, or all of them.
@pytest.mark.parametrize("mode", ["all", "filtered"])
@pytest.mark.parametrize("action", [[1], [1] * 11, [1] * 13, [[1] * 12], 1])
def test_a_mask_of_another_length_is_refused(make: Any, mode: str, action: Any) -> None:
    env = make(action_mode=mode)
    env.reset(seed=1)
    with pytest.raises(KartRewardsError, match=r"is not in the action space MultiBinary\(12\)"):
        env.step(action)


# --- sticky actions ---------------------------------------------------------------------------------------------------


def held_buttons(env: Any, actions: list[Any], seed: int = 1) -> list[tuple[str, ...]]:
    """Plays actions. Returns the names of the buttons that are held on each frame."""
    core, held = env.unwrapped, []

    class Recorder:
        """The emulator, which notes the buttons of each frame, and stands still."""

        def __init__(self) -> None:
            self.em, self.mask = core.em, np.zeros(12, np.uint8)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.em, name)

        def set_button_mask(self, mask: np.ndarray, player: int) -> None:
            self.mask = mask
            self.em.set_button_mask(mask, player)

        def step(self) -> None:
            held.append(tuple(name for name, down in zip(core.buttons, self.mask, strict=True) if down))

    env.reset(seed=seed)
    core.em = Recorder()
    for action in actions:
        env.step(action)
    core.em = core.em.em
    return held


# Machado et al., 2018; sail-sg/envpool#14 and DLR-RM/stable-baselines3#1286 ask for the same option.
@pytest.mark.parametrize("frame_skip", [1, 4])
def test_a_sticky_action_takes_effect_late(make: Any, frame_skip: int) -> None:
    actions = [1, 2] * 1000
    env = make(scenario=None, action_mode="driving", frame_skip=frame_skip, sticky_actions=0.25, draw_all=True)
    held = held_buttons(env, actions)
    own = [[("B", "LEFT"), ("B", "RIGHT")][action - 1] for action in actions for _ in range(frame_skip)]
    assert set(held) <= {("B", "LEFT"), ("B", "RIGHT"), ()}, "the first action may be late, too"
    steps = [(held[i : i + frame_skip], own[i]) for i in range(0, len(own), frame_skip)]
    late = [[frame != wanted for frame in frames] for frames, wanted in steps]
    assert all(frames == sorted(frames, reverse=True) for frames in late), "once it takes effect, it stays"
    share = np.mean([frames[0] for frames in late])
    if frame_skip == 4:
        assert share == pytest.approx(0.25, abs=0.03)
        assert np.mean([all(frames[:2]) for frames in late]) == pytest.approx(0.25**2, abs=0.02)
    else:
        assert share == pytest.approx(0.25 * 0.8, abs=0.04), "an older action may be the same as the new one"


def test_sticky_actions_depend_on_the_seed_alone(make: Any) -> None:
    actions = [int(action) for action in np.random.default_rng(7).integers(0, 4, 60)]
    options = {"action_mode": "driving", "sticky_actions": 0.25}
    first = play(make(**options), actions)
    assert play(make(**options), actions) == first
    assert play(make(**options), actions, seed=6) != first
    assert play(make(action_mode="driving"), actions) != first


def test_without_sticky_actions_the_random_numbers_are_the_same_as_before(make: Any) -> None:
    env = make(action_mode="driving", random_start_steps=5)
    env.reset(seed=1)
    before = env.unwrapped.np_random.bit_generator.state
    env.step(0)
    assert env.unwrapped.np_random.bit_generator.state == before


@pytest.mark.parametrize("mode", ["continuous", "driving"])
def test_sticky_actions_continue_bit_for_bit_from_a_saved_state(make: Any, mode: str) -> None:
    options = {"action_mode": mode, "sticky_actions": 0.5}
    env = make(**options)
    env.reset(seed=3)
    env.action_space.seed(4)
    actions = [env.action_space.sample() for _ in range(80)]
    for action in actions[:40]:
        env.step(action)
    state = env.unwrapped.get_state()
    expected = [(env.step(action)[0].tobytes(), env.unwrapped.ram) for action in actions[40:]]
    env = make(**options)
    env.reset(seed=77)
    env.unwrapped.set_state(state)
    assert [(env.step(action)[0].tobytes(), env.unwrapped.ram) for action in actions[40:]] == expected


def test_a_state_of_an_older_version_without_the_buttons_is_accepted(make: Any) -> None:
    env = make(action_mode="driving")
    env.reset(seed=1)
    state = env.unwrapped.get_state()
    del state["held"]
    env.unwrapped.set_state(state)
    env.step(0)
    with pytest.raises(ValueError, match="cannot reshape"):
        env.unwrapped.set_state(state | {"held": b"12"})


@pytest.mark.parametrize("probability", [-0.1, 1, 1.5, float("nan"), "0.25", None, [0.25]])
def test_a_stickiness_that_is_not_a_probability_is_refused(make: Any, probability: Any) -> None:
    with pytest.raises(KartRewardsError, match="sticky_actions must be a probability: a number from 0 to less than 1"):
        make(sticky_actions=probability)


# --- buttons and action -----------------------------------------------------------------------------------------------


class Inputs:
    """Keeps what it was called with."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def __call__(self, ram: Any, buttons: frozenset[str], action: Any) -> float:
        self.seen.append([sorted(buttons), action])
        return 0


def seen_by(env: Any) -> list[Any]:
    memory = env.unwrapped.get_state()["rewards"]["calls"]["memories"]["inputs"]
    return from_plain(memory)["seen"]


def test_terms_see_the_buttons_of_each_frame_and_the_action_of_the_step(make: Any) -> None:
    env = make(rewards=[Inputs])
    env.reset(seed=1)
    env.step(np.array([0.5], np.float32))
    env.step([-1])
    straight, right, left = ["B"], ["B", "RIGHT"], ["B", "LEFT"]
    action = (0.5,)
    assert seen_by(env)[0] == [[], None]
    assert [buttons for buttons, _ in seen_by(env)[1:5]].count(right) == 2
    assert all(buttons in (straight, right) for buttons, _ in seen_by(env)[1:5])
    assert [given for _, given in seen_by(env)[1:5]] == [action] * 4
    assert seen_by(env)[5:] == [[left, (-1,)]] * 4
    state = env.unwrapped.get_state()
    env.close()

    resumed = make(rewards=[Inputs])
    resumed.reset(seed=2)
    resumed.unwrapped.set_state(state)
    resumed.step([1])
    assert seen_by(resumed)[5:] == [[left, (-1,)]] * 4 + [[right, (1,)]] * 4


def test_terms_see_the_buttons_that_sticky_actions_hold(make: Any) -> None:
    env = make(rewards=[Inputs], action_mode="driving", sticky_actions=0.9)
    env.reset(seed=1, options={"random_start_frames": 30})
    for action in (1, 2) * 5:
        env.step(action)
    frames = seen_by(env)[1:]
    assert {given for _, given in frames} == {1, 2}
    wanted = {1: ["B", "LEFT"], 2: ["B", "RIGHT"]}
    late = sum(buttons != wanted[given] for buttons, given in frames)
    assert 10 < late < 40


# --- defaults of games that are no kart race --------------------------------------------------------------------------


def without_race(folder: Path) -> None:
    info = json.loads((folder / "data.json").read_text())["info"]
    edit(folder / "data.json", info={"speed": info["speed"]})
    (folder / "scenario.json").write_text(json.dumps({"kart_rewards": {"modules": ["own.py"]}}))
    (folder / "own.py").write_text(
        "from kart_rewards import done_rule, reward_term\n"
        "@reward_term(weight=2)\ndef time(ram):\n    return 1\n"
        "@reward_term()\ndef checkpoint(ram):\n    return 0\n"
        "@done_rule\ndef wall_hits(ram):\n    return False\n"
    )


def shown_part(env: Any) -> tuple[slice, slice]:
    observer = env.unwrapped.observer
    return observer._rows, observer._columns


# Observed: Airstriker was trained on rows 32 to 112 and columns 0 to 256 of its 224 x 320 pixels, without a word.
def test_a_game_that_is_no_kart_race_has_its_own_view_and_actions(
    make: Any, own_game: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    race = make()
    assert shown_part(race) == (slice(32, 112), slice(0, 256))
    assert race.action_space == gym.spaces.Box(-1, 1, (1,), np.float32)
    race.close()

    without_race(own_game / GAME)
    env = make(GAME, integrations=own_game)
    assert shown_part(env) == (slice(0, 224), slice(0, 256))
    assert isinstance(env.action_space, gym.spaces.MultiDiscrete)
    env.close()

    edit(own_game / GAME / "scenario.json", crop=[8, 16, 100, 0], actions=[[[], ["LEFT"]], [[], ["B"], ["A"]]])
    env = make(GAME, integrations=own_game)
    assert shown_part(env) == (slice(16, 224), slice(8, 108))
    assert env.action_space == gym.spaces.MultiDiscrete([2, 3])
    stock = env.unwrapped.data.crop_info(0)
    assert stock == (8, 16, 100, 0), "as stable-retro reads it"
    assert capfd.readouterr().out == ""


def test_terms_of_a_game_that_is_no_kart_race_may_have_any_name(make: Any, own_game: Path) -> None:
    without_race(own_game / GAME)
    env = make(GAME, integrations=own_game, reward_transform="none")
    env.reset(seed=1)
    _, reward, *_, info = env.step(env.action_space.sample())
    assert info["reward_terms"] == {"time": 8, "checkpoint": 0}
    assert (reward, "race" in info) == (8, False)
    env.close()

    edit(own_game / GAME / "scenario.json", kart_rewards={"rewards": {"wall": 1}})
    with pytest.raises(KartRewardsError, match=r"scenario\.json: 'wall' is for kart races only, and this game is none"):
        make(GAME, integrations=own_game)
