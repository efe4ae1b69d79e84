"""Frames that nobody sees are not drawn. Nothing else may change: these tests compare with drawing every frame.

The suite compares 1,800 frames. To compare more: ``KART_REWARDS_PARITY_FRAMES=100000 pytest
tests/test_drawing.py -k parity``.
"""

from __future__ import annotations

import gc
import gzip
import hashlib
import json
import os
import shutil
import sys
import zlib
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import picture_roms
import pytest
import stable_retro
from conftest import GAME

from kart_rewards import KartEnv, ObservationConfig
from kart_rewards.done import done_rule
from kart_rewards.env import core
from kart_rewards.env.core import KNOWN_CORES, SharedEmulator, start_emulator
from kart_rewards.integrations import INTEGRATIONS

COURSES = ("Level1", "Level2", "Level3", "Level4", "Level5", "menu")
PARITIES = len(COURSES) + len(picture_roms.NAMES)
FRAMES = max(int(os.environ.get("KART_REWARDS_PARITY_FRAMES", 1800)) // PARITIES, 1)
SCREEN = ObservationConfig(crop=None)

needs_known_core = pytest.mark.skipif(
    hashlib.sha256(core._core_of("Snes").read_bytes()).hexdigest() not in KNOWN_CORES,
    reason="this build of snes9x is not known, so it draws every frame",
)


def memory(env: Any) -> bytes:
    return b"".join(env.data.memory.blocks.values())


def make_game(folder: Path, rom: bytes, info: dict[str, Any], state: bytes) -> None:
    """Writes the files of a game."""
    folder.mkdir()
    (folder / "rom.sfc").write_bytes(rom)
    (folder / "rom.sha").write_text(hashlib.sha1(rom, usedforsecurity=False).hexdigest())
    (folder / "data.json").write_text(json.dumps({"info": info}))
    (folder / "metadata.json").write_text('{"default_state": "Start"}')
    (folder / "scenario.json").write_text("{}")
    (folder / "Start.state").write_bytes(gzip.compress(state))


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The program of ``picture_roms``."""
    if shutil.which("ca65") is None or shutil.which("ld65") is None:
        pytest.skip("ca65 and ld65 (package cc65) are not installed")
    return picture_roms.assemble(tmp_path_factory.mktemp("pictures"))


def picture_game(folder: Path, program: bytes, name: str) -> Path:
    """Makes the game of a ROM of ``picture_roms``. It starts when its tables begin again. Returns its folder."""
    rom, count = picture_roms.with_tables(program, name), {"address": 0x7E0000, "type": "<u2"}
    path = folder / "start.sfc"
    path.write_bytes(rom)
    em, data = start_emulator(path), stable_retro.data.GameData()
    em.configure_data(data)
    while not 1 <= int.from_bytes(data.memory.blocks[0x7E0000][:2], "little") <= 2:
        em.step()
    make_game(folder / "Pictures-Snes", rom, {"count": count}, em.get_state())
    del em, data
    gc.collect()
    return folder / "Pictures-Snes"


def homebrew_game(folder: Path, state: str) -> Path:
    """Makes a game with HomebrewKart's ROM, which starts on a course or in the menu. Returns its folder."""
    source = INTEGRATIONS / GAME
    if state == "menu":
        em = start_emulator(source / "rom.sfc")
        for _ in range(60):
            em.step()
        snapshot = em.get_state()
        del em
        gc.collect()
    else:
        snapshot = gzip.decompress((source / f"{state}.state").read_bytes())
    count = {"address": 0x7E0038, "type": "<u2"}
    make_game(folder / "Kart-Snes", (source / "rom.sfc").read_bytes(), {"count": count}, snapshot)
    return folder / "Kart-Snes"


@done_rule()
def now_and_then(ram: Any) -> bool:
    """With random starts, it ends an episode on any frame of a step."""
    return bool(ram.count % 61 == 60)


def recorded(folder: Path, frames: int, others: int = 0, **options: Any) -> dict[str, Any]:
    """Plays at random, between resets. Returns RAM on every frame, all that was seen, and how much was drawn."""
    record: dict[str, Any] = {"ram": [], "seen": [], "states": [], "drawn": 0, "again": 0}
    with ExitStack() as stack:

        def make() -> KartEnv:
            env = KartEnv(folder.name, integrations=folder.parent, scenario=None, action_mode="all", **options)
            return stack.enter_context(closing(env))

        env, companions = make(), [make() for _ in range(others)]
        drawing, read, draw_again = env._emulator.drawing, env._read_frame, env._draw_again

        def read_and_record() -> Any:
            record["ram"].append(zlib.crc32(memory(env)))
            record["drawn"] += not drawing.behind
            if len(record["ram"]) % 100 < 4:
                record["states"].append(env.em.get_state())
            return read()

        def count_again() -> None:
            record["again"] += 1
            draw_again()

        env._read_frame, env._draw_again = read_and_record, count_again  # type: ignore[method-assign]
        random = np.random.default_rng(1)
        for companion in companions:
            companion.reset(seed=2)
        record["seen"].append(env.reset(seed=1)[0].tobytes())
        while len(record["ram"]) < frames:
            observation, _, terminated, _, _ = env.step(random.integers(0, 2, 12))
            record["seen"] += [zlib.crc32(observation.tobytes()), zlib.crc32(env.em.get_screen().tobytes())]
            for companion in companions:
                companion.step(random.integers(0, 2, 12))
            if terminated:
                start = {"random_start_frames": int(random.integers(0, 90))}
                record["seen"].append(zlib.crc32(env.reset(options=start)[0].tobytes()))
        record["draws_all"] = env.draws_all
    return record


def assert_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["ram"] == other["ram"]
    assert one["seen"] == other["seen"]


# --- parity -----------------------------------------------------------------------------------------------------------


@needs_known_core
@pytest.mark.parametrize("state", COURSES)
def test_parity_on_the_courses_and_in_the_menu(tmp_path: Path, state: str) -> None:
    folder = homebrew_game(tmp_path, state)
    options: dict[str, Any] = {"rewards": now_and_then, "observation": ObservationConfig(max_pool=state == "Level2")}
    options |= {"sticky_actions": 0.25 * (state == "Level3"), "frame_skip": 7 if state == "Level4" else 4}
    without = recorded(folder, FRAMES, **options)
    every = recorded(folder, FRAMES, **options, draw_all=True)
    assert_equal(without, every)
    assert without["draws_all"] == "" and every["draws_all"]
    share = {"Level2": 0.5, "Level4": 1 / 7}.get(state, 0.25)
    assert without["drawn"] / len(without["ram"]) < share + 0.15, "an undrawn frame is rarely drawn after all"
    assert every["drawn"] == len(every["ram"])


@needs_known_core
@pytest.mark.parametrize("name", picture_roms.NAMES)
def test_parity_where_drawing_matters(tmp_path: Path, program: bytes, name: str) -> None:
    folder = picture_game(tmp_path, program, name)
    max_pool = picture_roms.NAMES.index(name) % 2 == 1
    options: dict[str, Any] = {"observation": ObservationConfig(crop=None, max_pool=max_pool)}
    without = recorded(folder, FRAMES, **options)
    every = recorded(folder, FRAMES, **options, draw_all=True)
    assert_equal(without, every)
    if name not in picture_roms.SUSPICIOUS:
        assert without["draws_all"] == ""
        assert without["drawn"] < 0.6 * len(without["ram"])


@needs_known_core
def test_parity_of_environments_that_take_turns(tmp_path: Path) -> None:
    folder = homebrew_game(tmp_path, "Level1")
    without = recorded(folder, 300, others=2, rewards=now_and_then)
    every = recorded(folder, 300, others=2, rewards=now_and_then, draw_all=True)
    assert_equal(without, every)
    assert without["again"] and without["draws_all"] == ""


# --- when something is drawn after all --------------------------------------------------------------------------------


@needs_known_core
def test_a_game_is_run_again_from_where_too_many_sprites_appear(tmp_path: Path, program: bytes) -> None:
    folder = picture_game(tmp_path, program, "too many sprites, later")
    without = recorded(folder, 240, observation=SCREEN)
    every = recorded(folder, 240, observation=SCREEN, draw_all=True)
    assert_equal(without, every)
    assert without["draws_all"] == "", "the check at the start found nothing"
    assert without["again"] == 1 and every["again"] == 0


@needs_known_core
def test_a_state_that_was_saved_on_an_undrawn_frame_goes_on_in_a_drawing_emulator(tmp_path: Path) -> None:
    folder = homebrew_game(tmp_path, "Level1")
    saved = [recorded(folder, 240, draw_all=draw_all)["states"] for draw_all in (False, True)]
    assert len(saved[0]) == len(saved[1]) > 6
    with closing(KartEnv(folder.name, integrations=tmp_path, scenario=None, draw_all=True)) as env:

        def goes_on(state: bytes) -> list[Any]:
            assert env.em.set_state(state)
            frames = []
            for _ in range(6):
                env.em.step()
                frames.append((memory(env), env.em.get_screen().tobytes()))
            return frames

        for undrawn, drawn in zip(*saved, strict=True):
            assert goes_on(undrawn) == goes_on(drawn)


@needs_known_core
def test_a_state_that_someone_else_loads_between_steps_is_where_an_episode_ends(tmp_path: Path) -> None:
    folder = homebrew_game(tmp_path, "Level1")
    ends: list[Any] = []
    for draw_all in (False, True):
        rule = done_rule("second")(lambda ram: ram.count % 4 == 2)
        options: dict[str, Any] = {"scenario": None, "rewards": rule, "draw_all": draw_all, "action_mode": "driving"}
        with closing(KartEnv(folder.name, integrations=tmp_path, **options)) as env:
            env.reset(seed=1)
            start = env.em.get_state()
            for _ in range(100):
                env.em.step()
            later = env.em.get_state()
            seen = []
            for state in (start, later, start, later):
                env.em.set_state(state)
                observation, _, terminated, _, _ = env.step(1)
                seen.append((observation.tobytes(), memory(env), env.em.get_screen().tobytes()))
                assert terminated
            ends.append(seen)
    assert ends[0] == ends[1]
    assert ends[0][0][1:] != ends[0][1][1:]


@needs_known_core
def test_whoever_watches_sees_every_frame(tmp_path: Path) -> None:
    folder = homebrew_game(tmp_path, "Level1")
    screens: dict[bool, list[bytes]] = {}
    options: dict[str, Any]
    for draw_all in (False, True):
        options = {"integrations": tmp_path, "action_mode": "continuous", "scenario": None, "draw_all": draw_all}
        with closing(KartEnv(folder.name, **options)) as env:
            seen = screens.setdefault(draw_all, [])
            env.on_frame = lambda env=env, seen=seen: seen.append(env.em.get_screen().tobytes())
            env.reset(seed=1, options={"random_start_frames": 30})
            for _ in range(15):
                env.step([-1])
    assert screens[False] == screens[True]
    assert len(set(screens[False])) > 60


# --- whether it can be used -------------------------------------------------------------------------------------------


@pytest.fixture
def unknown_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "KNOWN_CORES", {})


def test_an_unknown_core_draws_every_frame(tmp_path: Path, unknown_core: None) -> None:
    folder = homebrew_game(tmp_path, "Level1")
    record = recorded(folder, 60, rewards=now_and_then)
    assert "this version of kart_rewards does not know the core" in record["draws_all"]
    assert record["drawn"] == len(record["ram"]) and record["again"] == 0


def test_an_environment_says_which_frames_are_drawn() -> None:
    for options, text in (
        ({}, "Frames that nobody sees are not drawn"),
        ({"draw_all": True}, "Every frame is drawn, because draw_all is set"),
        ({"frame_skip": 1}, "Every frame is drawn, because with a frame skip of 1, every frame is seen"),
    ):
        with closing(KartEnv(GAME, **options)) as env:
            if options or not env._emulator.drawing.obstacle:
                assert env.describe_drawing() == text


@needs_known_core
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux to see which libraries are loaded")
def test_the_core_is_found_again_after_its_emulator_has_ended(tiny_rom_path: Path) -> None:
    def loaded() -> bool:
        return "snes9x" in Path("/proc/self/maps").read_text()

    gc.collect()
    assert not loaded()
    for _ in range(3):
        shared = SharedEmulator.of(tiny_rom_path)
        assert shared.drawing.obstacle == "" and loaded()
        shared.drawing.frame(shared.em.step, False)
        assert shared.drawing.behind
        del shared
        gc.collect()
        assert not loaded(), "no reference to the library must remain"


@needs_known_core
def test_loading_a_state_switches_on_drawing(tiny_rom_path: Path) -> None:
    shared = SharedEmulator.of(tiny_rom_path)
    drawing = shared.drawing
    drawing.frame(shared.em.step, False)
    assert drawing._render.value == 0
    shared.em.step()
    assert drawing._render.value == 0, "it stays off"
    shared.em.set_state(shared.em.get_state())
    assert drawing._render.value == 1, "and the emulator's own users see what they run"
    assert drawing.disturbed
    drawing.settle()
    assert not drawing.disturbed
    shared.em.step()
    assert drawing.disturbed
