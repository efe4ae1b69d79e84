"""HomebrewKart in the real snes9x core: the build of the ROM, its RAM map, its driving and its rules.

The tests place the kart by writing its position to RAM (``kart_x`` and ``kart_y`` are the position itself, not a copy).
They read ground, checkpoints and walls from the maps in the ROM, so they work with any set of courses.
"""

from __future__ import annotations

import gc
import gzip
import hashlib
import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import stable_retro
from conftest import load_module

from kart_rewards import drivers
from kart_rewards.env.core import Drawing

ROOT = Path(__file__).resolve().parent.parent
GAME = ROOT / "integrations" / "HomebrewKart-Snes"
ROM = (GAME / "rom.sfc").read_bytes()
COURSES = json.loads((GAME / "courses.json").read_text())["courses"]
IDS = [course["state"] for course in COURSES]
EACH_COURSE = [pytest.param(i, id=name, marks=pytest.mark.slow if i else ()) for i, name in enumerate(IDS)]
BUTTONS = ["B", "Y", "SELECT", "START", "UP", "DOWN", "LEFT", "RIGHT", "A", "X", "L", "R"]

BANK = 0x8000
FIRST_COURSE_BANK = 10
BANKS_A_COURSE = 3

ROAD, DIRT, GRASS, BOOST, OIL, LINE, WALL, PIT, WATER = 0x40, 0x54, 0x5A, 0x16, 0x18, 0x1E, 0x80, 0x20, 0x22
MENU, COUNTDOWN, RACE, FINISH = 0x04, 0x1A, 0x1C, 0x1E

# From the public integrations of the retail game.
REQUIRED = {
    "laps": (8261825, "|u1"),
    "checkpoint": (8261824, "|u1"),
    "num_checkpoints": (8257864, "|u1"),
    "speed": (8261866, "<s2"),
    "surface": (8261806, "|u1"),
    "collision": (8261714, "|u1"),
    "backward": (267, "|u1"),
    "current_frame": (8257592, "<u2"),
}
ALSO = {
    (0x88, "<i2"),
    (0x8C, "<i2"),
    (0x95, "|u1"),
    (0xB5, "|u1"),
    (0x124, "|u1"),
    (0x100, "<d2"),
    (0x102, "<d2"),
    (0x104, "<d2"),
}
VARIABLES = {
    name: (entry["address"], entry["type"])
    for name, entry in json.loads((GAME / "data.json").read_text())["info"].items()
}
HEADING = 0x94  # word whose high byte is kart_direction
NO_SECTOR = 0xFF
# Addresses of other variables of the game: see homebrew/src/defs.inc.
CAMERA_X, CAMERA_Y, MOVE_DIR, HEIGHT, RESCUE = 0x2C, 0x2E, 0x42, 0x44, 0x4C
TEXT_BUFFER, OAM_BUFFER = 0x0400, 0x0C00
FONT = " 0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ'\"/!.:-<>"


class Console:
    """A SNES that runs the game. Its variables are attributes. After ``load``, it draws only if ``draws`` is set."""

    def __init__(self) -> None:
        self.emulator = stable_retro.RetroEmulator(str(GAME / "rom.sfc"))
        self.data = stable_retro.data.GameData()
        self.emulator.configure_data(self.data)
        assert self.data.load(str(GAME / "data.json"), str(GAME / "scenario.json"))
        self.drawing, self.draws = Drawing(self.emulator, "Snes"), True

    def step(self, buttons: Any = (), frames: int = 1) -> None:
        """Hold buttons for a number of frames."""
        mask = np.array([name in buttons for name in BUTTONS], dtype=np.uint8)
        for _ in range(frames):
            self.emulator.set_button_mask(mask, 0)
            assert self.drawing.frame(self.emulator.step, seen=self.draws), "the game is as if the frame were drawn"

    def load(self, number: int) -> None:
        """Load LevelN.state."""
        self.emulator.set_state(gzip.decompress((GAME / f"Level{number}.state").read_bytes()))
        self.drawing.settle()
        self.draws = False

    def __getattr__(self, name: str) -> int:
        if name not in VARIABLES:
            raise AttributeError(name)
        address, kind = VARIABLES[name]
        # The core's decoder reads "s" as unsigned; "i" is signed.
        return int(self.data.memory.extract(address, kind.replace("s", "i")))

    def poke(self, name: str, value: int) -> None:
        """Write a variable."""
        address, kind = VARIABLES[name]
        self.data.memory.assign(address, kind.replace("s", "i"), value)

    def word(self, address: int) -> int:
        """Read a word of the game's own RAM."""
        return int(self.data.memory.extract(address, "<u2"))

    def text(self, row: int, column: int, length: int) -> str:
        """Return a text on the screen."""
        at = range(TEXT_BUFFER + (row * 32 + column) * 2, TEXT_BUFFER + (row * 32 + column + length) * 2, 2)
        return "".join(FONT[self.word(address) & 0x7F] for address in at)

    def place(self, x: float, y: float, direction: int | None = None) -> None:
        """Put the kart at a point in world pixels, and turn it to a direction in 1/256 turn."""
        self.poke("kart_x", int(x * 4))
        self.poke("kart_y", int(y * 4))
        if direction is not None:
            self.data.memory.assign(HEADING, "<u2", direction << 8)
            self.data.memory.assign(MOVE_DIR, "<u2", direction << 8)

    def snapshot(self) -> SimpleNamespace:
        """Return the values that a driver reads."""
        return SimpleNamespace(
            kart_x=self.kart_x,
            kart_y=self.kart_y,
            kart_direction=self.kart_direction,
            speed=self.speed,
            surface=self.surface,
        )

    def progress(self) -> int:
        """Return the number of checkpoints since the line; negative before the line."""
        return (self.laps - 128) * self.num_checkpoints + self.checkpoint


@pytest.fixture
def console() -> Iterator[Console]:
    """A console that is switched on: the only emulator of the process during a test."""
    gc.collect()
    machine = Console()
    yield machine
    del machine.drawing, machine.emulator, machine.data
    gc.collect()


def course_map(course: int, offset: int, side: int, bank: int = 1) -> np.ndarray:
    """Return a map of a course from the ROM, uint8 (side, side)."""
    start = (FIRST_COURSE_BANK + BANKS_A_COURSE * course + bank) * BANK + offset
    return np.frombuffer(ROM, dtype=np.uint8, count=side * side, offset=start).reshape(side, side)


def surfaces(course: int) -> np.ndarray:
    """Return the surface code of each 8-pixel cell, (128, 128)."""
    return course_map(course, 0, 128)


def sectors(course: int) -> np.ndarray:
    """Return the checkpoint of each 16-pixel cell, (64, 64)."""
    return course_map(course, 0x4000, 64)


def beside_the_road(course: int, pixels: float) -> list[tuple[float, float]]:
    """Return a line at a distance from the edge of the road: on the infield's side, or outside if it is negative.

    The line cuts the corner in bends that are too tight for it.
    """
    line = np.array(COURSES[course]["centreline"], dtype=float)
    before, after = np.roll(line, 1, axis=0), np.roll(line, -1, axis=0)
    tangent = (after - before) / np.hypot(*(after - before).T)[:, None]
    turning = np.sign((line[:, 0] * after[:, 1] - after[:, 0] * line[:, 1]).sum())
    distance = COURSES[course]["road_width"] / 2 + abs(pixels)
    points = line + np.stack([-tangent[:, 1], tangent[:, 0]], axis=1) * turning * np.sign(pixels) * distance
    return [(x, y) for x, y in points if np.hypot(*(line - (x, y)).T).min() > distance - 3]


def find_ground(code: int, clear: int) -> tuple[int, float, float]:
    """Return the course and the centre of a cell with a surface; the ``clear`` cells around it have the same one."""
    for course in range(len(COURSES)):
        ground = surfaces(course)
        for row, column in np.argwhere(ground == code):
            around = ground[max(0, row - clear) : row + clear + 1, max(0, column - clear) : column + clear + 1]
            if (around == code).all():
                return course, column * 8 + 4, row * 8 + 4
    raise AssertionError(f"no ground {code:#x} on any course")


# --- the files ------------------------------------------------------------------------------------------------------


@pytest.mark.slow  # .ci/run builds it, too
def test_the_build_reproduces_the_rom_byte_for_byte(tmp_path: Path) -> None:
    if shutil.which("ca65") is None or shutil.which("ld65") is None:
        pytest.skip("ca65 and ld65 (package cc65) are not installed")
    command = [sys.executable, str(ROOT / "homebrew" / "build.py"), "--build-dir", str(tmp_path / "b")]
    subprocess.run([*command, "--out", str(tmp_path)], check=True, capture_output=True)
    for name in ("rom.sfc", "rom.sha", "courses.json"):
        assert (tmp_path / name).read_bytes() == (GAME / name).read_bytes(), f"the build makes another {name}"


def test_the_header_and_its_checksum_are_valid() -> None:
    assert len(ROM) == 1 << 20
    assert ROM[0x7FC0:0x7FD5] == b"HOMEBREW KART".ljust(21)
    assert ROM[0x7FD5] == 0x20, "LoROM"
    assert 1024 << ROM[0x7FD7] == len(ROM)
    complement, checksum = (int.from_bytes(ROM[at : at + 2], "little") for at in (0x7FDC, 0x7FDE))
    assert checksum == sum(ROM) & 0xFFFF
    assert checksum ^ complement == 0xFFFF


def test_rom_sha_is_the_hash_of_the_rom() -> None:
    text = (GAME / "rom.sha").read_text()
    assert text == hashlib.sha1(ROM, usedforsecurity=False).hexdigest() + "\n"


def test_data_json_has_all_variables() -> None:
    for name, where in REQUIRED.items():
        assert VARIABLES[name] == where
    assert set(VARIABLES.values()) >= ALSO


def test_courses_json_describes_the_courses_of_the_rom() -> None:
    assert len(COURSES) >= 4
    assert [c["held_out"] for c in COURSES] == [False] * (len(COURSES) - 1) + [True]
    assert json.loads((GAME / "metadata.json").read_text())["default_state"] == "Level1"
    for course in COURSES:
        assert (GAME / f"{course['state']}.state").exists()
        assert 20 <= course["num_checkpoints"] <= 32
        assert set(np.unique(sectors(course["index"]))) == {*range(course["num_checkpoints"]), NO_SECTOR}
        line = course["centreline"] + course["centreline"][:1]
        length = sum(np.hypot(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(line))
        assert length == pytest.approx(course["lap_length"], rel=0.03)


@pytest.mark.parametrize("course", range(len(COURSES)), ids=IDS)
def test_walls_surround_the_world(course: int) -> None:
    ground = surfaces(course)
    for edge in (ground[:2], ground[-2:], ground[:, :2], ground[:, -2:]):
        assert (edge == WALL).all()


@pytest.mark.parametrize("course", range(len(COURSES)), ids=IDS)
def test_no_wall_is_one_cell_thick(course: int) -> None:
    """Each wall cell belongs to a square of four cells: a single cell would fit between the corners of a kart."""
    wall = surfaces(course) == WALL
    squares = wall[:-1, :-1] & wall[:-1, 1:] & wall[1:, :-1] & wall[1:, 1:]
    covered = np.zeros_like(wall)
    for dy, dx in itertools.product((0, 1), repeat=2):
        covered[dy : 127 + dy, dx : 127 + dx] |= squares
    assert (wall == covered).all(), np.argwhere(wall & ~covered)[:5] * 8


@pytest.mark.parametrize("course", range(len(COURSES)), ids=IDS)
def test_grounds_differ_in_grey(course: int) -> None:
    """Most agents see the game in grey. The test compares the drawn surfaces without their edges."""
    start = (FIRST_COURSE_BANK + BANKS_A_COURSE * course) * BANK
    tilemap = course_map(course, 0, 128, bank=0)
    tiles = np.frombuffer(ROM, dtype=np.uint8, count=0x4000, offset=start + 0x4000).reshape(256, 64)
    colours = np.frombuffer(ROM, dtype="<u2", count=256, offset=start + BANK + 0x7880).astype(int)
    red, green, blue = ((colours >> shift & 31) * 255 / 31 for shift in (0, 5, 10))
    grey = 0.299 * red + 0.587 * green + 0.114 * blue
    cells = grey[tiles].mean(axis=1)[tilemap]
    ground = surfaces(course)
    levels = []
    for kind in (ROAD, GRASS, DIRT, WATER):
        inside = ground == kind
        for dy, dx in itertools.product((-1, 0, 1), repeat=2):
            inside &= np.roll(ground, (dy, dx), axis=(0, 1)) == kind
        if inside.any():
            levels.append(np.median(cells[inside]))
    assert np.diff(sorted(levels)).min() > 20


def test_the_builder_refuses_grounds_that_look_alike_in_grey() -> None:
    artwork = load_module(ROOT / "homebrew" / "artwork.py")
    artwork.check_contrast("FINE", {}, [ROAD, GRASS, DIRT, WATER, WALL])
    artwork.check_contrast("NO DIRT", {"dirt": (100, 170, 80)}, [ROAD, GRASS])
    with pytest.raises(ValueError, match="0x5a and 0x54 look alike"):
        artwork.check_contrast("MUD", {"dirt": (100, 170, 80)}, [ROAD, GRASS, DIRT])


def test_states_are_reproducible(tmp_path: Path) -> None:
    remade = tmp_path / GAME.name
    shutil.copytree(GAME, remade, ignore=shutil.ignore_patterns("*.state", "metadata.json"))
    command = [sys.executable, str(ROOT / "homebrew" / "make_states.py"), "--integrations", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    assert json.loads((remade / "metadata.json").read_text()) == json.loads((GAME / "metadata.json").read_text())
    for course in COURSES:
        made, kept = ((folder / f"{course['state']}.state").read_bytes() for folder in (remade, GAME))
        # Another version of zlib may compress differently, so the uncompressed states are compared.
        assert gzip.decompress(made) == gzip.decompress(kept)


def test_stable_retro_itself_runs_the_game(tmp_path: Path) -> None:
    script = f"""
import stable_retro as retro
retro.data.Integrations.add_custom_path({str(GAME.parent)!r})
env = retro.make("HomebrewKart-Snes", inttype=retro.data.Integrations.ALL, render_mode="rgb_array")
observation, info = env.reset()
assert observation.shape == (224, 256, 3), observation.shape
for _ in range(30):
    observation, reward, terminated, truncated, info = env.step([1] + [0] * 11)
assert info["laps"] == 127 and info["speed"] > 100 and not terminated, info
assert len(set(map(tuple, observation.reshape(-1, 3)))) > 20
env.close()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


# --- start, menu, clock ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("course", COURSES, ids=IDS)
def test_a_start_state_has_the_start_values(console: Console, course: dict[str, Any]) -> None:
    console.load(course["index"] + 1)
    for frame in range(2):
        assert console.laps == 127
        assert console.checkpoint == course["num_checkpoints"] - 1
        assert console.num_checkpoints == course["num_checkpoints"]
        assert (console.speed, console.surface, console.collision, console.backward) == (0, ROAD, 0, 0)
        assert console.game_mode == RACE
        assert console.course == course["index"]
        assert (console.kart_x // 4, console.kart_y // 4) == (course["start"]["x"], course["start"]["y"])
        assert console.kart_direction == course["start"]["direction"]
        assert console.race_minutes == console.race_seconds == 0
        assert console.race_centiseconds == frame * 2
        console.step()
    console.step(("B",), 5)
    assert console.speed > 0, "the kart can drive on the first frame"


@pytest.mark.slow
def test_frames_are_counted_from_power_on_to_the_end_of_a_race(console: Console) -> None:
    driver = drivers.CentrelineDriver(COURSES[1]["centreline"])
    seen: list[int] = []

    def frame(buttons: Any = ()) -> None:
        before = console.current_frame
        console.step(buttons)
        assert console.current_frame == (before + 1) % 65536, f"after {before}, mode {console.game_mode:#x}"
        if not seen or seen[-1] != console.game_mode:
            seen.append(console.game_mode)

    console.step()
    for _ in range(60):
        frame()
    assert (console.game_mode, console.course) == (MENU, 0)
    for button, chosen in (("LEFT", len(COURSES) - 1), ("RIGHT", 0), ("RIGHT", 1)):
        frame((button,))
        frame((button,))
        for _ in range(15):
            frame()
        assert console.course == chosen
    frame(("START",))
    for _ in range(200):
        frame()
    assert console.game_mode == RACE
    for _ in range(6000):
        frame(driver(console.snapshot()))
        if console.laps == 133:
            break
    assert console.game_mode == FINISH
    for _ in range(120):
        frame()
    frame(("START",))
    for _ in range(20):
        frame()
    assert seen == [0, MENU, COUNTDOWN, RACE, FINISH, MENU]


@pytest.mark.slow
def test_frames_are_counted_with_any_buttons(console: Console) -> None:
    rng = np.random.default_rng(3)
    console.step(frames=60)
    modes = set()
    # First the menu, where START is rarely held; then a race without START.
    for buttons, start in ((["LEFT", "RIGHT", "B", "L"], 0.003), ([b for b in BUTTONS if b != "START"], 0.0)):
        if not start:
            console.load(4)
        held: list[str] = []
        for _ in range(2000):
            if rng.random() < 0.4:
                held = [name for name in buttons if rng.random() < 0.5] + ["START"] * (rng.random() < start)
            before = console.current_frame
            console.step(held)
            assert console.current_frame == (before + 1) % 65536
            modes.add(console.game_mode)
            if console.game_mode in (RACE, COUNTDOWN) and start:
                console.poke("game_mode", FINISH)
    assert modes >= {MENU, COUNTDOWN, RACE}


def test_the_frame_counter_wraps(console: Console) -> None:
    console.load(1)
    console.poke("current_frame", 65534)
    console.step(frames=3)
    assert console.current_frame == 1


def test_the_countdown_stops_the_kart_and_the_clock(console: Console) -> None:
    console.step(frames=60)
    console.step(("START",), 2)
    console.step(("B",), 60)
    assert console.game_mode == COUNTDOWN
    assert (console.speed, console.race_centiseconds) == (0, 0)


def test_the_clock_is_right_and_decimal(console: Console) -> None:
    console.load(1)
    console.step(frames=90)
    assert (console.race_seconds, console.race_centiseconds) == (1, 50)
    console.step(frames=60 * 60)
    assert (console.race_minutes, console.race_seconds, console.race_centiseconds) == (1, 1, 50)
    assert console.data.memory.extract(0x100, "<u2") == 0x50, "binary-coded decimal in memory"


def test_the_clock_shows_two_digits_of_minutes_and_stops_at_its_maximum(console: Console) -> None:
    console.load(1)
    console.step()
    assert console.text(1, 23, 8) == " 0'00\"02"
    for minutes, after, shown in ((9, (10, 0), "10'00"), (99, (99, 59), "99'59")):
        for name, value in (("race_minutes", minutes), ("race_seconds", 59), ("race_centiseconds", 99)):
            console.poke(name, value)
        console.step(frames=5)
        assert (console.race_minutes, console.race_seconds) == after
        assert console.text(1, 23, 5) == shown
    assert console.race_centiseconds == 99


# --- the picture ----------------------------------------------------------------------------------------------------


def test_the_marker_on_the_map_is_at_the_karts_position(console: Console) -> None:
    console.load(1)
    console.draws = True
    for x, y in ((301, 302), (500, 300), (703, 608), (650, 411)):
        console.place(x, y, 0)
        console.poke("current_frame", 0)  # the marker blinks; it is cyan now
        console.step(frames=2)  # the screen shows a position one frame later
        red, green, blue = np.moveaxis(console.emulator.get_screen().astype(int), 2, 0)
        rows, columns = np.nonzero((red < 120) & (green > 200) & (blue > 200) & (np.arange(224)[:, None] > 112))
        assert 8 < len(rows) < 40
        assert columns.mean() + 0.5 == pytest.approx(8 + x * 7 / 64, abs=0.6)
        assert rows.mean() + 0.5 == pytest.approx(112 + y * 7 / 64, abs=0.6)


def test_the_ground_turns_around_the_kart_without_jitter(console: Console) -> None:
    console.load(1)
    console.step(("B",), 60)
    misses = []
    for _ in range(150):
        console.step(("B", "RIGHT"))
        angle = (console.word(HEADING) >> 7) / 512 * 2 * np.pi
        for kart, camera, part in (
            (console.kart_x, CAMERA_X, -np.sin(angle)),
            (console.kart_y, CAMERA_Y, np.cos(angle)),
        ):
            misses.append((console.word(camera) - kart / 4, part))
    offset, part = np.array(misses).T
    distance = (offset * part).sum() / (part * part).sum()
    assert 40 < distance < 70
    assert abs(offset - distance * part).max() < 0.7, "integer pixels, rounded once"


# --- races ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("course", EACH_COURSE)
def test_the_centreline_driver_finishes_five_laps(console: Console, course: int) -> None:
    console.load(course + 1)
    first = 127
    if course:  # the last laps, as all count alike; the recorded races of the package have all laps
        first = 130
        console.poke("laps", first)
    driver = drivers.CentrelineDriver(COURSES[course]["centreline"])
    laps, crossings, top = [console.laps], [], 0
    frame, count, progress = 0, console.current_frame, console.progress()
    while console.laps != 133:
        console.step(driver(console.snapshot()))
        frame += 1
        assert console.current_frame == (count + frame) % 65536
        assert console.collision == 0, f"hit a wall at frame {frame}"
        assert console.backward == 0
        now = console.progress()
        assert now in (progress, progress + 1), "checkpoints count one by one"
        progress = now
        top = max(top, console.speed)
        if console.laps != laps[-1]:
            laps.append(console.laps)
            crossings.append(frame)
        assert frame < 7000, f"only {laps[-1] - 128} laps in {frame} frames"
    assert laps == [*range(first, 134)]
    lap_seconds = np.diff(crossings) / 60
    # Each lap is slower than a lap at boost speed, and faster than a lap at half the top speed.
    assert (lap_seconds > COURSES[course]["lap_length"] / 4.6 / 60).all()
    assert (lap_seconds < COURSES[course]["lap_length"] / 1.8 / 60).all()
    assert top > 900
    assert console.game_mode == FINISH
    clock = console.race_minutes * 60 + console.race_seconds + console.race_centiseconds / 100
    assert clock == pytest.approx(frame / 60, abs=0.02)


def test_a_finished_kart_rolls_to_a_stop(console: Console) -> None:
    finish(console)
    clock, checkpoint = (console.race_seconds, console.race_centiseconds), console.checkpoint
    console.step(("B", "LEFT"), 300)
    assert console.speed == 0
    assert (console.race_seconds, console.race_centiseconds) == clock
    assert (console.laps, console.checkpoint) == (133, checkpoint)


def finish(console: Console, number: int = 1, buttons: Any = ("B",)) -> None:
    """Load LevelN and drive over the line for the last time."""
    console.load(number)
    console.poke("laps", 132)
    while console.laps != 133:
        console.step(buttons)


def test_start_held_at_the_finish_does_not_skip_the_finish_screen(console: Console) -> None:
    finish(console, buttons=("B", "START"))
    console.step(("B", "START"), 60)
    assert console.game_mode == FINISH
    console.step()
    console.step(("START",), 10)
    assert console.game_mode == MENU


def test_the_finish_screen_fits_a_television(console: Console) -> None:
    finish(console)
    console.step(frames=2)
    assert console.text(24, 16, 15).strip() == "FINISH!"
    assert console.text(26, 16, 15).strip() == "PRESS START"
    assert not console.text(25, 16, 15).strip() + console.text(27, 0, 32).strip()


def test_a_rescued_kart_is_visible_on_the_finish_screen(console: Console) -> None:
    course, x, y = find_ground(WATER, 1)
    finish(console, course + 1)
    console.place(x, y)
    console.step(frames=130)
    assert console.word(RESCUE) == 0 and console.surface == ROAD
    console.step(frames=60)
    for _ in range(20):
        console.step()
        assert console.data.memory.extract(OAM_BUFFER + 13, "|u1") < 200, "the screen line of the sprite"


def test_the_menu_resets_the_values_of_the_last_race(console: Console) -> None:
    finish(console)
    console.poke("backward", 0x10)
    console.step(("START",), 10)
    for button in ((), ("RIGHT",)):
        console.step(button, 2)
        console.step(frames=10)
        assert console.game_mode == MENU
        assert (console.laps, console.speed, console.backward, console.collision) == (127, 0, 0, 0)
        assert console.num_checkpoints == COURSES[console.course]["num_checkpoints"]
        assert console.checkpoint == console.num_checkpoints - 1


def test_backward_follows_the_heading_on_the_finish_screen(console: Console) -> None:
    console.load(1)
    console.poke("laps", 132)
    x, y, forward = console.kart_x / 4, console.kart_y / 4, console.kart_direction
    console.place(x, y, (forward + 128) % 256)
    while console.laps != 133:
        console.step(("Y",))
    assert console.backward == 0x10
    console.place(x, y, forward)
    console.step()
    assert console.backward == 0


@pytest.mark.parametrize("course", EACH_COURSE)
def test_full_throttle_with_a_frame_skip_of_four_finishes_a_lap(console: Console, course: int) -> None:
    """An agent that always holds B, and steers on every fourth frame, can drive each course."""
    console.load(course + 1)
    driver = drivers.CentrelineDriver(COURSES[course]["centreline"], lookahead=60.0, hop=False)
    for _ in range(400):
        console.step({"B"} | (driver(console.snapshot()) & {"LEFT", "RIGHT"}), 4)
        if console.laps == 129:
            return
    raise AssertionError(f"checkpoint {console.checkpoint} of lap {console.laps - 127}")


def test_the_same_buttons_give_the_same_ram(console: Console) -> None:
    digests = []
    for _ in range(2):
        console.load(3)
        driver = drivers.RandomDriver(seed=7)
        for _ in range(600):
            console.step(driver(console.snapshot()))
        digests.append(hashlib.sha256(console.emulator.get_state()).hexdigest())
        ram = bytes(console.data.memory.extract(0x7E0000 + at, "|u1") for at in range(0x2000))
        digests.append(hashlib.sha256(ram).hexdigest())
    assert digests[:2] == digests[2:]


# --- driving --------------------------------------------------------------------------------------------------------


def test_acceleration_and_top_speed(console: Console) -> None:
    console.load(1)
    x, y = COURSES[0]["start"]["x"], COURSES[0]["start"]["y"]
    frames = 0
    while console.speed < 900:
        console.step(("B",))
        console.place(x, y)  # an endless straight
        frames += 1
        assert frames < 300
    assert 2.3 < frames / 60 < 3.7
    for _ in range(120):
        console.step(("B",))
        console.place(x, y)
    assert 900 < console.speed < 960


def test_speed_is_pixels_per_frame(console: Console) -> None:
    console.load(1)
    console.step(("B",), 40)
    before, speed = console.kart_x, console.speed
    console.step(("B",))
    assert before - console.kart_x == pytest.approx(speed / 64, abs=1.1), "quarter pixels; the oval starts westward"


def test_coasting_and_braking(console: Console) -> None:
    console.load(1)
    console.step(("B",), 60)
    speed = console.speed
    console.step((), 20)
    coasted = speed - console.speed
    speed = console.speed
    console.step(("Y",), 20)
    assert 0 < coasted < speed - console.speed


def test_the_reverse_driver_drives_backwards(console: Console) -> None:
    console.load(1)
    x = console.kart_x
    for _ in range(90):
        console.step(drivers.reverse(console.snapshot()))
    assert -280 < console.speed < -200
    assert console.kart_x > x, "away from the line, which is in the west"
    assert console.backward == 0, "the kart still faces forward"
    assert console.data.memory.extract(VARIABLES["speed"][0], "<u2") > 0x8000, "two's complement in memory"


def test_the_backward_flag_follows_the_heading(console: Console) -> None:
    console.load(1)
    forward = console.kart_direction
    x, y = console.kart_x / 4, console.kart_y / 4
    for turn, wrong in ((0, False), (56, False), (72, True), (128, True), (184, True), (200, False)):
        console.place(x, y, (forward + turn) % 256)
        console.step()
        assert console.backward == (0x10 if wrong else 0), f"turned by {turn}/256"


def test_the_turn_around_driver_faces_the_wrong_way(console: Console) -> None:
    console.load(2)
    driver = drivers.TurnAround()
    flags = set()
    for _ in range(240):
        console.step(driver(console.snapshot()))
        flags.add(console.backward)
    assert flags == {0, 0x10}


@pytest.mark.slow
def test_driving_the_wrong_way_decreases_progress(console: Console) -> None:
    console.load(1)
    x, y = console.kart_x / 4, console.kart_y / 4
    console.place(x, y, (console.kart_direction + 128) % 256)
    driver = drivers.CentrelineDriver(COURSES[0]["centreline"], backward=True)
    best = console.progress()
    for _ in range(900):
        console.step(driver(console.snapshot()))
        assert console.progress() <= best
    assert console.backward == 0x10
    # After more than a lap in the wrong direction, progress is less than on the grid.
    assert console.progress() < best - 20
    assert console.laps in (126, 127)


@pytest.mark.parametrize(("side", "sign"), [("LEFT", -1), ("RIGHT", 1)])
def test_steering_turns_in_its_direction_and_less_at_high_speed(console: Console, side: str, sign: int) -> None:
    rates = []
    for run_up in (45, 200):
        console.load(1)
        x, y, direction = console.kart_x / 4, console.kart_y / 4, console.kart_direction
        for _ in range(run_up):
            console.step(("B",))
            console.place(x, y, direction)
        for _ in range(10):
            console.step(("B", side))
            console.place(x, y)
        before = console.word(HEADING)
        for _ in range(20):
            console.step(("B", side))
            console.place(x, y)
        turned = (console.word(HEADING) - before + 32768) % 65536 - 32768
        assert turned * sign > 0
        rates.append(abs(turned) / 20)
    slow, fast = rates
    assert slow > fast * 1.2
    radius = console.speed / 256 / (fast / 65536 * 2 * np.pi)
    assert 95 < radius < 135, "pixels, at full speed"


@pytest.mark.parametrize("button", ["L", "R"])
def test_a_hop_turns_more_sharply_and_ends_in_a_drift(console: Console, button: str) -> None:
    turned = []
    for hop in ((), (button,)):
        console.load(1)
        console.step(("B",), 100)
        x, y = COURSES[0]["start"]["x"], COURSES[0]["start"]["y"]
        for _ in range(10):
            console.step(("B", "RIGHT"))
            console.place(x, y)
        before = console.word(HEADING)
        airborne = 0
        for _ in range(40):
            console.step(("B", "RIGHT", *hop))
            console.place(x, y)
            airborne += console.word(HEIGHT) > 0
        turned.append((console.word(HEADING) - before) % 65536)
        assert (airborne > 0) == bool(hop)
        assert airborne < 20
    assert turned[1] > turned[0] * 1.25


def test_slow_grounds_have_their_own_top_speeds(console: Console) -> None:
    tops = {}
    for code in (DIRT, GRASS):
        course, x, y = find_ground(code, 2)
        console.load(course + 1)
        for frame in range(240):
            console.place(x, y)
            console.step(("B",))
            console.place(x, y)
            if frame > 60:
                assert console.surface == code
        tops[code] = console.speed
    assert 400 < tops[DIRT] < 560
    assert 200 < tops[GRASS] < tops[DIRT] - 60
    # A fast kart loses speed on them.
    course, x, y = find_ground(GRASS, 6)
    console.load(course + 1)
    console.place(x, y)
    console.poke("speed", 900)
    console.step(("B",), 3)
    assert console.speed < 880


@pytest.mark.parametrize("code", [GRASS, DIRT])
def test_hopping_is_not_faster_on_slow_ground(console: Console, code: int) -> None:
    course, x, y = find_ground(code, 3)
    distance = []
    for hop in (False, True):
        console.load(course + 1)
        console.place(x, y, 0)
        console.poke("speed", 928)
        distance.append(0)
        for frame in range(150):
            console.step(("B", "L") if hop and frame % 2 == 0 else ("B",))
            distance[-1] += console.speed
            console.place(x, y)
    driven, hopped = distance
    assert hopped < driven * 1.1


def test_a_boost_decreases_in_the_air(console: Console) -> None:
    console.load(1)
    console.poke("speed", 1152)
    console.step(("B", "L"))
    console.step(("B",), 10)
    assert console.word(HEIGHT) > 0
    assert console.speed < 1125


def test_a_boost_pad_exceeds_the_top_speed(console: Console) -> None:
    course, x, y = find_ground(BOOST, 0)
    console.load(course + 1)
    console.place(x, y)
    console.poke("speed", 600)
    console.step(("B",))
    assert console.surface == BOOST
    assert 1000 < console.speed < 1300
    console.place(COURSES[course]["start"]["x"], COURSES[course]["start"]["y"])
    boosted = console.speed
    console.step(("B",), 5)
    assert console.speed < boosted, "the boost decreases"


def test_oil_disables_the_steering(console: Console) -> None:
    course, x, y = find_ground(OIL, 0)
    turned = []
    for on_oil in (True, False):
        console.load(course + 1)
        if on_oil:
            along = course_map(course, 0x5000, 64)[int(y) // 16, int(x) // 16]
            console.place(x, y, int(along))
        console.poke("speed", 500)
        console.step(("B",))
        assert (console.surface == OIL) == on_oil
        before = console.word(HEADING)
        console.step(("B", "RIGHT"), 15)
        turned.append((console.word(HEADING) - before + 32768) % 65536 - 32768)
    assert abs(turned[0]) < abs(turned[1]) / 4


def test_the_start_line_is_like_road(console: Console) -> None:
    console.load(1)
    seen = set()
    for _ in range(80):
        before = console.speed
        console.step(("B",))
        seen.add(console.surface)
        assert console.speed > before
    assert seen == {ROAD, LINE}


@pytest.mark.parametrize("code", [WATER, PIT])
def test_a_kart_in_water_or_a_pit_is_rescued(console: Console, code: int) -> None:
    course, x, y = find_ground(code, 1)
    console.load(course + 1)
    console.step(("B",), 150)
    laps, checkpoint = console.laps, console.checkpoint
    console.place(x, y)
    clock = console.race_minutes * 60 + console.race_seconds
    frames = 0
    console.step(("B",))
    while console.surface == code:
        console.step(("B",))
        assert console.speed == 0
        frames += 1
        assert frames < 200
    assert 1.4 < frames / 60 < 2.2
    assert console.race_minutes * 60 + console.race_seconds > clock, "the clock continues"
    assert console.surface == ROAD
    assert (console.laps, console.checkpoint) == (laps, checkpoint)
    assert sectors(course)[console.kart_y // 64, console.kart_x // 64] == checkpoint
    line = np.array(COURSES[course]["centreline"])
    here = np.array([console.kart_x / 4, console.kart_y / 4])
    assert np.hypot(*(line - here).T).min() < 12
    assert console.backward == 0
    console.step(("B",), 20)
    assert console.speed > 50


# --- walls ----------------------------------------------------------------------------------------------------------


def find_wall_face() -> tuple[float, float]:
    """Return a point on the first course, 60 pixels south of the northern wall, with free ground before the wall."""
    ground = surfaces(0)
    for column in range(4, 124):
        if (ground[2:16, column - 2 : column + 3] == GRASS).all():
            return column * 8 + 4, 16 + 60
    raise AssertionError("no free stretch below the northern wall")


def test_a_kart_bounces_off_a_wall(console: Console) -> None:
    x, y = find_wall_face()
    console.load(1)
    console.place(x, y, 0)
    console.poke("speed", 900)
    hits = []
    for frame in range(60):
        before = console.speed
        console.step(("B",))
        row, column = console.kart_y // 32, console.kart_x // 32
        assert surfaces(0)[row, column] != WALL, "the kart is never inside a wall"
        if console.collision:
            hits.append(frame)
            assert console.surface == WALL
            assert before > 0
            assert -260 <= console.speed < 0
        else:
            assert console.surface != WALL
    assert hits, "the kart hit the wall"
    assert len(hits) < 10, "only frames with contact count"


def test_a_kart_in_reverse_bounces_off_a_wall(console: Console) -> None:
    x, y = find_wall_face()
    console.load(1)
    console.place(x, y - 40, 128)
    speeds = []
    for _ in range(120):
        console.step(("Y",))
        speeds.append((console.speed, console.collision))
    assert any(collision and speed > 0 for speed, collision in speeds)


def test_a_kart_placed_inside_a_wall_is_rescued(console: Console) -> None:
    console.load(1)
    console.place(8, 8)
    console.step(("B",), 10)
    assert console.surface == ROAD
    assert sectors(0)[console.kart_y // 64, console.kart_x // 64] == console.checkpoint


@pytest.mark.parametrize("course", EACH_COURSE)
def test_a_kart_never_enters_a_wall(console: Console, course: int) -> None:
    """The kart drives against the narrowest ends of the walls from all sides: its corners may miss these."""
    wall = surfaces(course) == WALL
    inside = np.zeros_like(wall)
    inside[8:-8, 8:-8] = True
    for direction in range(4):
        # Turn the world so that the kart drives north.
        turned = np.rot90(wall, direction)
        ends = turned[:-8] & np.rot90(inside, direction)[:-8]
        for ahead in range(1, 8):
            ends &= ~turned[ahead : len(turned) - 8 + ahead]
        # Isolated columns first.
        lonely = [(turned[row, column - 2 : column + 3].sum(), row, column) for row, column in np.argwhere(ends)]
        for _, row, column in sorted(lonely)[:: max(1, len(lonely) // 4)]:
            for aside in (4, 0):
                x, y = column * 8 + aside, row * 8 + 8 + 20
                for _ in range(direction):  # turn the point back
                    x, y = 1024 - y, x
                console.load(course + 1)
                console.place(x, y, direction * 64)
                console.poke("speed", 300)
                for _ in range(30):
                    console.step(("B",))
                    assert not wall[console.kart_y // 32, console.kart_x // 32], (x, y)


@pytest.mark.slow
@pytest.mark.parametrize("course", range(len(COURSES)), ids=IDS)
def test_no_wall_traps_a_kart(console: Console, course: int) -> None:
    """With full throttle and no steering, a kart leaves each wall that it hits, from random places and directions."""
    rng = np.random.default_rng(course)
    spots = np.argwhere(~np.isin(surfaces(course), (WALL, WATER, PIT)))
    for row, column in rng.choice(spots, 8):
        console.load(course + 1)
        console.place(column * 8 + 4, row * 8 + 4, int(rng.integers(256)))
        trail = []
        for _ in range(600):
            console.step(drivers.full_throttle(console.snapshot()))
            trail.append((console.kart_x / 4, console.kart_y / 4))
            assert surfaces(course)[console.kart_y // 32, console.kart_x // 32] != WALL
        assert np.ptp(np.array(trail[150:]), axis=0).max() > 60, f"stuck near {trail[-1]}"


@pytest.mark.parametrize("side", ["LEFT", "RIGHT"])
def test_the_wall_hugger_hits_walls(console: Console, side: str) -> None:
    console.load(1)
    driver = drivers.WallHugger(side)
    hits = 0
    for _ in range(900):
        console.step(driver(console.snapshot()))
        hits += console.collision != 0
    assert hits >= 7


# --- checkpoints and laps -------------------------------------------------------------------------------------------


def test_driving_back_and_forth_over_the_line_counts_no_lap(console: Console) -> None:
    console.load(1)
    best = 0
    for _ in range(4):
        while console.laps != 128:
            console.step(("B",))
        console.step(("B",), 10)
        best = max(best, console.laps)
        assert console.checkpoint == 0
        for _ in range(400):
            console.step(("Y",))
            if console.laps == 127:
                break
        assert console.laps == 127
        assert console.checkpoint == console.num_checkpoints - 1
        console.step(("Y",), 20)
    assert best == 128


def sector_centre(course: int, sector: int) -> tuple[float, float]:
    """Return a point of the centreline in the middle of a sector."""
    line, n = COURSES[course]["centreline"], COURSES[course]["num_checkpoints"]
    x, y = line[int((sector + 0.5) * len(line) / n)]
    assert sectors(course)[y // 16, x // 16] == sector
    return x, y


@pytest.mark.parametrize("course", range(len(COURSES)), ids=IDS)
def test_sectors_count_only_in_order(console: Console, course: int) -> None:
    n = COURSES[course]["num_checkpoints"]
    console.load(course + 1)

    def visit(sector: int) -> tuple[int, int]:
        console.place(*sector_centre(course, sector % n))
        console.step()
        return console.checkpoint, console.laps

    assert visit(0) == (0, 128)
    assert visit(2) == (0, 128), "one sector is missing"
    assert visit(n // 2) == (0, 128), "across the infield"
    assert visit(n - 2) == (0, 128)
    assert visit(1) == (1, 128)
    assert visit(3) == (1, 128)
    assert visit(0) == (0, 128), "back again"
    assert visit(n - 1) == (n - 1, 127), "back over the line"
    assert visit(0) == (0, 128)
    for sector in range(1, n):
        assert visit(sector) == (sector, 128)
    assert visit(n) == (0, 129), "a complete lap"
    for sector in range(n - 1, n // 2, -1):
        visit(sector)
    assert (console.checkpoint, console.laps) == (n // 2 + 1, 128)
    # From half of the lap directly to the line: no lap.
    assert visit(0) == (n // 2 + 1, 128)
    assert visit(1) == (n // 2 + 1, 128)


@pytest.mark.parametrize("course", EACH_COURSE)
def test_a_loop_on_the_infield_counts_no_lap(console: Console, course: int) -> None:
    """A loop inside the course is near all parts of the road in their order, but it is not a lap."""
    line = beside_the_road(course, 64)
    console.load(course + 1)
    driver = drivers.CentrelineDriver(line, lookahead=40, hop=False)
    console.place(*line[0])
    console.poke("laps", 128)
    console.poke("checkpoint", 0)
    for _ in range(1800):
        console.step(driver(console.snapshot()))
        # Walls can push the kart to the margins of the road, where a few sectors count.
        assert console.progress() <= 6


@pytest.mark.parametrize("pixels", [20, -20])
@pytest.mark.parametrize("course", range(len(COURSES)), ids=IDS)
def test_a_kart_on_the_grass_beside_the_road_passes_each_checkpoint(console: Console, course: int, pixels: int) -> None:
    console.load(course + 1)
    console.poke("laps", 128)
    line = beside_the_road(course, pixels)
    console.poke("checkpoint", int(sectors(course)[int(line[0][1]) // 16, int(line[0][0]) // 16]))
    start = console.progress()
    for (ax, ay), (bx, by) in itertools.pairwise([*line, line[0]]):
        steps = max(1, round(np.hypot(bx - ax, by - ay) / 4))
        for k in range(1, steps + 1):
            console.place(ax + (bx - ax) * k / steps, ay + (by - ay) * k / steps)
            console.poke("speed", 0)
            console.data.memory.assign(RESCUE, "<u2", 0)  # the line may cross water
            console.step()
    assert console.progress() == start + console.num_checkpoints


def test_laps_never_wrap(console: Console) -> None:
    """After many laps in the wrong direction the count stops at 1, because 255 would be a finished race."""
    console.load(1)
    console.poke("laps", 2)
    for _ in range(3):
        for sector in (0, console.num_checkpoints - 1):
            console.poke("checkpoint", 0)
            console.place(*sector_centre(0, sector))
            console.step()
    assert console.laps == 1


def short_cuts() -> list[Any]:
    """Return (course, points) of each short cut in the descriptions of the courses."""
    return [
        pytest.param(index, feature.points, id=f"{IDS[index]}-{feature.points[0]}")
        for index, course in enumerate(load_module(ROOT / "homebrew" / "courses.py").COURSES)
        for feature in course.features
        if getattr(feature, "short_cut", False)
    ]


@pytest.mark.parametrize("aside", [-18, 0, 18])
@pytest.mark.parametrize(("course", "points"), short_cuts())
def test_a_short_cut_passes_each_checkpoint(
    console: Console, course: int, points: list[tuple[int, int]], aside: int
) -> None:
    """A short cut is a legal part of a lap: on each side of it, all checkpoints count."""
    console.load(course + 1)
    line = [tuple(p) for p in COURSES[course]["centreline"]]
    leave, join = (
        min(range(len(line)), key=lambda k: np.hypot(line[k][0] - p[0], line[k][1] - p[1]))
        for p in points[:: len(points) - 1]
    )
    # Leave the road a little before the short cut, and join it a little after it, as a driver would.
    corners = [line[leave - 6], *points[1:-1], line[(join + 6) % len(line)]]
    cut = line[: leave - 6]
    for (ax, ay), (bx, by) in itertools.pairwise(corners):
        steps = max(1, round(np.hypot(bx - ax, by - ay) / 8))
        cut += [(ax + (bx - ax) * k / steps, ay + (by - ay) * k / steps) for k in range(steps)]
    cut += line[join + 6 :]
    driver = drivers.CentrelineDriver(cut, offset=aside)
    dirt, progress = 0, console.progress()
    for _ in range(1800):
        console.step(driver(console.snapshot()))
        dirt += console.surface == DIRT
        progress = max(progress, console.progress())
        assert console.progress() >= progress - 1
        if console.laps == 129:
            break
    assert console.laps == 129
    assert dirt > 10


@pytest.mark.parametrize(("course", "points"), short_cuts())
def test_a_short_cut_joins_the_road_over_its_complete_width(
    console: Console, course: int, points: list[tuple[int, int]]
) -> None:
    console.load(course + 1)
    for aside in range(-24, 25, 6):
        checkpoint = None
        for (ax, ay), (bx, by) in itertools.pairwise(points):
            length = np.hypot(bx - ax, by - ay)
            nx, ny = (by - ay) / length * aside, -(bx - ax) / length * aside
            for k in range(int(length / 4) + 1):
                x, y = ax + (bx - ax) * k * 4 / length - nx, ay + (by - ay) * k * 4 / length - ny
                sector = int(sectors(course)[int(y) // 16, int(x) // 16])
                if checkpoint is None:
                    console.poke("checkpoint", sector)
                    checkpoint = sector
                console.place(x, y)
                console.poke("speed", 0)
                console.step()
                assert console.checkpoint == sector, f"a checkpoint does not count at ({x:.0f}, {y:.0f})"
