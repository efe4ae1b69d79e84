"""Generated courses: the same seed gives the same bytes, the rules hold, and the scripted driver drives each course."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import load_module

from kart_rewards.drivers import CentrelineDriver, centrelines
from kart_rewards.games.console import Console
from kart_rewards.integrations import Game, find_game
from kart_rewards.race import ROAD, WALL
from kart_rewards.ram import RamLayout

ROOT = Path(__file__).resolve().parent.parent
generate = load_module(ROOT / "homebrew" / "generate.py")
build = generate.build
ORIGINAL = find_game("HomebrewKart-Snes", ROOT / "integrations")
LAYOUT = RamLayout.from_file(ORIGINAL.folder / "data.json")
MENU = 0x04
SEED = 1
NUMBERS = {"Gen": 20, "Test": 2}  # courses with short races

needs_assembler = pytest.mark.skipif(
    shutil.which("ca65") is None or shutil.which("ld65") is None,
    reason="ca65 and ld65 (package cc65) are not installed",
)


def described(seed: int, state: str, number: int) -> Any:
    """The first description of a course that is sane."""
    for attempt in itertools.count():
        try:
            return generate.describe(seed, state, number, attempt)
        except ValueError:
            continue
    raise AssertionError


def turn(course: Any) -> int:
    """1 for a course that is driven clockwise, -1 for one that is not."""
    corners = [(corner.x, corner.y) for corner in course.corners]
    pairs = zip(corners, corners[1:] + corners[:1], strict=True)
    return int(np.sign(sum(ax * by - bx * ay for (ax, ay), (bx, by) in pairs)))


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A ROM for one course."""
    return generate.Probe(tmp_path_factory.mktemp("probe"))


@pytest.fixture(scope="module")
def made(probe: Any) -> dict[str, tuple[Any, list[float], list[str]]]:
    """A training and a test course, their lap times, and why other ones were refused."""
    gc.collect()  # a process can hold one emulator
    return {state: generate.generate_course(probe, SEED, state, number) for state, number in NUMBERS.items()}


@pytest.fixture
def no_emulator() -> Iterator[None]:
    """No emulator is left in this process, before and after the test."""
    gc.collect()
    yield
    gc.collect()


def test_an_outline_is_one_closed_line() -> None:
    assert generate.outline({(0, 0), (1, 0)}) == [(0, 0), (2, 0), (2, 1), (0, 1)]
    assert len(generate.outline({(0, 0), (1, 0), (1, 1)})) == 6
    with pytest.raises(ValueError, match="corner only"):
        generate.outline({(0, 0), (1, 1)})
    with pytest.raises(ValueError, match="a hole"):
        generate.outline({(x, y) for x in range(3) for y in range(3)} - {(1, 1)})


def test_a_description_depends_on_seed_set_and_number_only() -> None:
    course = described(SEED, "Gen", 2)
    assert described(SEED, "Gen", 2) == course
    others = [described(SEED + 1, "Gen", 2), described(SEED, "Test", 2), described(SEED, "Gen", 1)]
    assert all(other.corners != course.corners for other in others)


def test_descriptions_obey_the_rules_and_differ() -> None:
    courses = [described(5, "Gen", number) for number in range(1, 13)]
    lengths = []
    for course in courses:
        assert not course.held_out
        half = course.road_width / 2
        samples, _, length = generate.centreline(course)
        lengths.append(length)
        line = samples / 16
        assert min(corner.radius for corner in course.corners) >= max(72, half + 28)
        assert line.min() - half > 16 and line.max() + half < 1024 - 16
        few = line[::8]
        apart = np.abs(np.subtract.outer(np.arange(len(few)), np.arange(len(few))))
        apart = np.minimum(apart, len(few) - apart) * length / len(few)
        distance = np.hypot(*(few[:, None] - few[None]).transpose(2, 0, 1))
        assert distance[apart > 260].min() > course.road_width + 50, "two parts of the road are apart"
        for pad in (feature for feature in course.features if isinstance(feature, generate.Pad)):
            centre = np.array((round(pad.x / 16), round(pad.y / 16))) * 16
            assert np.hypot(*(line - centre).T).min() < half - 8, "pads are on the road"
            assert np.hypot(*(line[0] - centre)) > 60, "the start is free"
    assert {turn(course) for course in courses} == {1, -1}
    assert max(lengths) > 1.4 * min(lengths)
    assert len({course.road_width for course in courses}) >= 3
    assert len({course.colours["grass_a"] for course in courses}) > 8
    radii = [max(corner.radius for corner in course.corners) for course in courses]
    assert max(radii) > 1.5 * min(radii), "tight and flowing"


@needs_assembler
@pytest.mark.slow
def test_the_game_of_the_package_has_these_courses(made: dict[str, Any]) -> None:
    """So a course that is generated again is the same, byte for byte."""
    game = find_game(generate.GAME, ROOT / "integrations")
    rom = game.rom().read_bytes()
    courses = {course["state"]: course for course in json.loads((game.folder / "courses.json").read_text())["courses"]}
    assert sorted(courses) == game.states()
    for state, (track, _, _) in made.items():
        course = courses[generate.state_name(state, NUMBERS[state])]
        start = (build.FIRST_COURSE_BANK + build.BANKS_A_COURSE * course["index"]) * build.BANK
        assert rom[start:].startswith(b"".join(build.course_banks(track)))
        assert course["held_out"] == (state == "Test")


@needs_assembler
@pytest.mark.slow
def test_the_scripted_driver_drives_generated_courses(made: dict[str, Any]) -> None:
    for state, (track, seconds, _) in made.items():
        assert len(seconds) == 5
        assert all(8 <= lap <= 25 for lap in seconds)
        assert track.course.held_out == (state == "Test")
        assert 20 <= track.course.num_checkpoints <= 32
        assert set(np.unique(track.sector)) >= set(range(track.course.num_checkpoints))
        for edge in (track.surface[:2], track.surface[-2:], track.surface[:, :2], track.surface[:, -2:]):
            assert (edge == WALL).all()


@needs_assembler
@pytest.mark.slow
def test_a_course_that_cannot_be_driven_is_refused(made: dict[str, Any], probe: Any, no_emulator: None) -> None:
    track = made["Gen"][0]
    # A wall over the complete road, a second after the start.
    x, y = track.line[120] // 16 // 8
    surface = track.surface.copy()
    surface[y - 8 : y + 9, x - 8 : x + 9] = WALL
    with pytest.raises(ValueError, match="hits a wall"):
        probe.lap_seconds(dataclasses.replace(track, surface=surface))


@needs_assembler
@pytest.mark.slow
def test_a_course_with_short_laps_is_refused(probe: Any, no_emulator: None) -> None:
    corners = [generate.Corner(x, y, 150) for x, y in ((300, 300), (700, 300), (700, 620), (300, 620))]
    short = generate.Course("SHORT", tuple(corners), road_width=96, start=(512, 300), num_checkpoints=12)
    with pytest.raises(ValueError, match="too little time"):
        probe.lap_seconds(generate.build_track(short))


@needs_assembler
@pytest.mark.slow
def test_the_menu_of_a_large_rom_reaches_its_last_course(
    made: dict[str, Any], tmp_path: Path, no_emulator: None
) -> None:
    """38 courses fill the ROM of 4 MB up to the banks of the work RAM."""
    track = made["Gen"][0]
    assert build.MAX_COURSES == 38
    build.write_includes(tmp_path, build.MAX_COURSES)
    linked = build.assemble(ROOT / "homebrew" / "src" / "main.s", tmp_path, "game")
    rom = bytearray(linked[: build.FIRST_COURSE_BANK * build.BANK])
    banks = b"".join(build.course_banks(track))
    rom += banks * build.MAX_COURSES
    rom += bytes((4 << 20) - len(rom))
    build.fix_checksum(rom)
    assert 1024 << rom[0x7FD7] == len(rom)
    (tmp_path / "rom.sfc").write_bytes(rom)
    console = Console(tmp_path / "rom.sfc", LAYOUT)
    for frames, held in ((60, ()), (2, ("LEFT",)), (30, ())):
        for _ in range(frames):
            console.step(frozenset(held))
    assert (console.ram().game_mode, console.ram().course) == (MENU, 37)
    assert text(console, 15, 16, 12) == "COURSE 38/38"
    for frames, held in ((2, ("START",)), (300, ())):
        for _ in range(frames):
            console.step(frozenset(held))
    ram = console.ram()
    assert ram.game_mode == generate.IN_RACE
    assert (ram.num_checkpoints, ram.surface) == (track.course.num_checkpoints, ROAD)
    assert (ram.kart_x, ram.kart_y) == track.start[:2]


def text(console: Console, row: int, column: int, length: int) -> str:
    """A text on the game's screen."""
    ram = next(iter(console.data.memory.blocks.values()))
    at = 0x0400 + (row * 32 + column) * 2
    return "".join(generate.build.artwork.CHARACTERS[ram[at + 2 * k] & 0x7F] for k in range(length))


def test_more_courses_than_the_rom_has_room_for_are_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert build.rom_banks(7) == 32
    assert build.rom_banks(8) == 64
    with pytest.raises(ValueError, match="room for 38 courses, not for 39"):
        build.rom_banks(39)
    command = ["generate.py", "--courses", "30", "--test-courses", "4", "--integrations", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit):
        generate.main()
    assert "room for 0 to 33 generated courses" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@needs_assembler
def test_the_game_of_the_package_is_built_again_and_complete(tmp_path: Path, no_emulator: None) -> None:
    command = [sys.executable, str(ROOT / "homebrew" / "generate.py"), "--integrations", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    one, two = (folder / generate.GAME for folder in (tmp_path, ROOT / "integrations"))
    names = sorted(file.name for file in one.iterdir())
    assert names == sorted(file.name for file in two.iterdir())
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes(), f"another {name}"

    game = Game(generate.GAME, one)
    assert game.missing_files() == []
    assert game.default_state() == "Level1"
    courses = json.loads((one / "courses.json").read_text())["courses"]
    hand_made = json.loads((ORIGINAL.folder / "courses.json").read_text())["courses"]
    assert courses[:5] == hand_made
    training, test = [f"Gen{number:02d}" for number in range(1, 25)], [f"Test{number}" for number in range(1, 5)]
    assert [course["state"] for course in courses[5:]] == training + test
    assert [course["state"] for course in courses[5:] if course["held_out"]] == test
    assert game.states() == sorted(course["state"] for course in courses)

    # The hand-made courses are those of the first game, byte for byte, and the same drive has the same course.
    start, length = build.FIRST_COURSE_BANK * build.BANK, 5 * build.BANKS_A_COURSE * build.BANK
    assert game.rom().read_bytes()[start:][:length] == ORIGINAL.rom().read_bytes()[start:][:length]
    lines = centrelines(one / "courses.json")
    seen = []
    for each in (ORIGINAL, game):
        console = Console(each.rom(), LAYOUT)
        driver = CentrelineDriver(lines["Level3"])
        console.load(each.load_state("Level3"))
        frames = []
        for _ in range(900):
            console.step(driver(console.ram()))
            frames.append(console.ram())
        seen.append(frames)
        del console
        gc.collect()
    assert seen[0] == seen[1]

    console = Console(game.rom(), LAYOUT)
    for course in courses[5:]:
        console.load(game.load_state(course["state"]))
        assert console.ram().course == course["index"]
        driver = CentrelineDriver(lines[course["state"]])
        for _ in range(25 * 60):
            console.step(driver(console.ram()))
            if console.ram().laps == 129:
                break
        assert console.ram().laps == 129, f"{course['state']}: no lap in 25 s"
