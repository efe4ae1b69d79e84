"""Compares the reference terms and rules with the same rules in Lua, which stable-retro's script engine runs.

The Lua script is part of this project (tests/reference/reference.lua). Both score the same frames of the same emulator.
There are two intended differences. Python reads a negative speed, which stable-retro reads as a large one. Python
reports the early stop on the frame of the seventh hit; the Lua engine reports it one frame later, with reward 0.
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import stable_retro
from conftest import emulator

from kart_rewards.done import REFERENCE_RULES, EpisodeDone, as_rule
from kart_rewards.drivers import CentrelineDriver, Driver, RandomDriver, WallHugger, centreline, full_throttle, reverse
from kart_rewards.integrations import INTEGRATIONS
from kart_rewards.ram import RamLayout
from kart_rewards.rewards import REFERENCE_TERMS, EpisodeRewards, as_term

GAME = INTEGRATIONS / "HomebrewKart-Snes"
LUA = Path(__file__).parent / "reference" / "reference.lua"
BUTTONS = stable_retro.get_system_info("Snes")["buttons"]


class Frame(NamedTuple):
    """One emulated frame: its RAM, and the results of the Lua script."""

    ram: Any
    lua_reward: float
    lua_done: bool


@pytest.fixture
def lua_game(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Any, Any, RamLayout]]:
    """The game with the Lua script. The test's parameter is the type of ``speed`` for stable-retro."""
    info = json.loads((GAME / "data.json").read_text())
    info["info"]["speed"]["type"] = request.param
    scripts = {
        "scripts": ["reference.lua"],
        "reward": {"script": "lua:reference_reward"},
        "done": {"script": "lua:reference_done"},
    }
    (tmp_path / "data.json").write_text(json.dumps(info))
    (tmp_path / "scenario.json").write_text(json.dumps(scripts))
    shutil.copy(LUA, tmp_path)
    with emulator(GAME / "rom.sfc", tmp_path) as (em, data):
        yield em, data, RamLayout.from_file(GAME / "data.json")


def episode(lua_game: Any, state: str, driver: Driver, most_frames: int) -> Iterator[Frame]:
    """Plays from a start state until the Lua script reports the end. The first frame is the one after the reset."""
    em, data, layout = lua_game
    em.set_state(gzip.decompress((GAME / f"{state}.state").read_bytes()))
    em.set_button_mask(np.zeros(12, np.uint8), 0)
    em.step()
    data.reset()
    for _ in range(most_frames):
        data.update_ram()
        ram = layout.decode(data.memory.blocks)  # does not change the data that the script reads
        frame = Frame(ram, data.current_reward(), data.is_done())
        yield frame
        if frame.lua_done:
            return
        held = driver(ram)
        em.set_button_mask(np.array([name in held for name in BUTTONS], np.uint8), 0)
        em.step()


class PythonScore:
    """Scores one episode with the Python terms and rules. ``convert`` is applied to each snapshot."""

    def __init__(self, convert: Callable[[Any], Any] = lambda ram: ram) -> None:
        self.rewards = EpisodeRewards([as_term(term) for term in REFERENCE_TERMS])
        self.done = EpisodeDone([as_rule(rule) for rule in REFERENCE_RULES])
        self.convert = convert

    def __call__(self, ram: Any) -> tuple[float, str | None]:
        ram = self.convert(ram)
        reward, rule = self.rewards(ram), self.done(ram)
        return reward, rule.name if rule else None


def assert_agrees(frames: Iterator[Frame], score: PythonScore) -> int:
    """Asserts that all rewards and the end are the same. Returns the number of frames."""
    stopped_by = None
    count = 0
    for frame in frames:
        count += 1
        if stopped_by == "wall_hits":
            assert (frame.lua_done, frame.lua_reward) == (True, 0.0), "Lua stops one frame later, without reward"
            return count
        reward, stopped_by = score(frame.ram)
        assert reward == frame.lua_reward, frame
        assert frame.lua_done == (stopped_by == "race_finished"), frame
    return count


def follow(course: int, **options: Any) -> Driver:
    return CentrelineDriver(centreline(f"Level{course + 1}"), **options)


@pytest.mark.parametrize("lua_game", ["<i2"], indirect=True, ids=["Lua reads signed speed"])
def test_python_and_lua_agree_on_each_frame_of_all_drives(lua_game: Any) -> None:
    drives: list[tuple[str, int, Callable[[int], Driver], int]] = [
        ("a complete race", 5000, lambda i: follow(0), 0),
        ("another course, off the line", 3000, lambda i: follow(3, offset=60.0), 3),
        ("the wrong way round", 2500, lambda i: follow(0, backward=True), 0),
        ("at random", 5000, lambda i: RandomDriver(seed=i), 1),
        ("into walls", 3000, lambda i: WallHugger("LEFT" if i % 2 else "RIGHT"), 2),
        ("full throttle", 2000, lambda i: full_throttle, 0),
        ("in reverse", 1500, lambda i: reverse, 0),
    ]
    scored, ends = 0, set()
    for name, frames_wanted, make_driver, course in drives:
        frames_played = attempts = 0
        while frames_played < frames_wanted:
            frames = list(episode(lua_game, f"Level{course + 1}", make_driver(attempts), frames_wanted - frames_played))
            assert_agrees(iter(frames), PythonScore())
            ends |= {("finished" if frames[-1].ram.laps >= 133 else "stopped")} if frames[-1].lua_done else set()
            frames_played += len(frames)
            attempts += 1
        scored += frames_played
        assert frames_played >= frames_wanted, name
    assert scored >= 20_000
    assert ends == {"finished", "stopped"}, "both rules ended an episode"


@pytest.mark.parametrize("lua_game", ["<s2"], indirect=True, ids=["Lua reads unsigned speed"])
def test_with_the_retail_type_only_negative_speeds_differ(lua_game: Any) -> None:
    """stable-retro reads the type ``<s2`` as unsigned. With an unsigned speed, Python and Lua agree on each frame."""
    differing = 0
    drivers: list[Driver] = [reverse, WallHugger("LEFT"), WallHugger("RIGHT"), RandomDriver(3)]
    for i, driver in enumerate(drivers):
        signed, unsigned = PythonScore(), PythonScore(lambda ram: ram._replace(speed=ram.speed % 65536))
        frames = list(episode(lua_game, f"Level{i + 1}", driver, 1200))
        assert_agrees(iter(frames), unsigned)
        for frame in frames:
            reward, stopped_by = signed(frame.ram)
            if reward != frame.lua_reward:
                differing += 1
                assert frame.ram.speed < 0, frame
            if stopped_by:
                break
    assert differing >= 20
