"""Generates courses from a seed, and builds a second game, HomebrewKartPlus, with them and the hand-made courses.

Run ``python homebrew/generate.py --seed 1 --courses 24 --test-courses 4``. It needs what ``build.py`` and
``make_states.py`` need. It writes a complete game to ``integrations/HomebrewKartPlus-Snes/``: ROM, start states and
JSON files. ``Level1`` to ``Level5`` are the hand-made courses, ``Gen01`` and so on are for training, and ``Test1`` and
so on are held out. The same seed gives the same bytes.

* ``build_game`` - the complete game
* ``generate_course`` - one generated course that obeys all rules
* ``describe`` - a random description, before the builder checks it
* ``Probe`` - drives a course in the real emulator

Each course depends on the seed, its set (training or test) and its number only. So more courses do not change the first
ones, and the first 8 of 24 training courses are the 8 of a smaller game.
"""

from __future__ import annotations

import argparse
import colorsys
import contextlib
import dataclasses
import itertools
import math
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import build  # noqa: E402
from courses import COURSES, RGB, Corner, Course, Ellipse, Pad, Point, Strip, WallAlong  # noqa: E402
from make_states import make_states, menu_inputs  # noqa: E402
from track import GRID_DISTANCE, UNIT, Track, build_track, centreline  # noqa: E402

from kart_rewards.drivers import CentrelineDriver  # noqa: E402
from kart_rewards.games.console import Console  # noqa: E402
from kart_rewards.games.inputs import read_inputs  # noqa: E402
from kart_rewards.race import BOOST, DEEP_WATER, DIRT, LAPS_IN_A_RACE, OIL, PIT, lap, progress  # noqa: E402
from kart_rewards.ram import RamLayout  # noqa: E402

GAME = "HomebrewKartPlus-Snes"
ORIGINAL = HERE.parent / "integrations" / build.GAME  # some of its files are the second game's, too
TRAINING, TEST = "Gen", "Test"  # the sets
IN_RACE = 0x1C  # game_mode

# --- rules for generated courses, in pixels if nothing else is said ---------------------------------------------------
LAP_SECONDS = (8.0, 25.0)  # of the scripted driver, for each lap
SIZES = ((1850, 2450), (2250, 3200), (2800, 4600))  # limits of the lap length: short, medium, long
MIN_CORNERS = (4, 8, 10)  # of courses on a lattice, for each size
LOW, HIGH = 128, 896  # limits of the corners' coordinates
GRID = 8  # corners are on this grid
MIN_RADIUS = 72
INNER_RADIUS = 28  # minimum radius of the inner edge of the road
MIN_GAP = 56  # minimum distance between two parts of the road
NEAR_ON_LAP = 250  # parts of the road that are closer than this along the lap may be closer than MIN_GAP
STRAIGHT = 16  # minimum straight between two bends
START_STRAIGHT = 152  # minimum length of the straight with the start line
BEFORE_LINE, AFTER_LINE = GRID_DISTANCE + 32, 48  # straight road before and after the start line
MAX_ATTEMPTS = 10_000

T = TypeVar("T")


class Dice:
    """Random numbers that depend on the seed only, in each version of Python.

    Python guarantees this for ``random()``, but not for its other methods.
    """

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed).random

    def chance(self, probability: float) -> bool:
        """Return whether an event with this probability occurs."""
        return self._random() < probability

    def between(self, low: float, high: float) -> float:
        """Return a number of an interval."""
        return low + (high - low) * self._random()

    def integer(self, low: int, high: int) -> int:
        """Return an integer from ``low`` to ``high``, both included."""
        return low + int(self._random() * (high - low + 1))

    def pick(self, choices: Sequence[T]) -> T:
        """Return one of the choices."""
        return choices[int(self._random() * len(choices))]


# --- shapes -----------------------------------------------------------------------------------------------------------
Cell = tuple[int, int]


def outline(cells: set[Cell]) -> list[Cell]:
    """Return the corners of the outline of some squares of a lattice, clockwise.

    Raises:
        ValueError: The outline is not one closed line that touches no point twice.
    """
    following: dict[Cell, Cell] = {}
    for x, y in sorted(cells):
        sides = (
            ((x, y - 1), (x, y), (x + 1, y)),
            ((x + 1, y), (x + 1, y), (x + 1, y + 1)),
            ((x, y + 1), (x + 1, y + 1), (x, y + 1)),
            ((x - 1, y), (x, y + 1), (x, y)),
        )
        for neighbour, first, last in sides:
            if neighbour not in cells:
                if first in following:
                    raise ValueError("two squares touch at a corner only")
                following[first] = last
    points = [min(following)]
    while (point := following[points[-1]]) != points[0]:
        points.append(point)
    if len(points) < len(following):
        raise ValueError("the squares enclose a hole")
    turns = zip(points[-1:] + points[:-1], points, points[1:] + points[:1], strict=True)
    return [b for a, b, c in turns if (b[0] - a[0], b[1] - a[1]) != (c[0] - b[0], c[1] - b[1])]


def grow(dice: Dice, columns: int, rows: int, count: int) -> list[Cell]:
    """Return the outline of connected random squares of a lattice."""
    cells = {(dice.integer(0, columns - 1), dice.integer(0, rows - 1))}
    for _ in range(20 * count):
        x, y = dice.pick(sorted(cells))
        dx, dy = dice.pick(((1, 0), (-1, 0), (0, 1), (0, -1)))
        new = (x + dx, y + dy)
        if new in cells or not (0 <= new[0] < columns and 0 <= new[1] < rows):
            continue
        try:
            outline(cells | {new})
        except ValueError:
            continue
        cells.add(new)
        if len(cells) == count:
            break
    return outline(cells)


def lattice_lines(dice: Dice, count: int, pitch: int) -> list[int]:
    """Return the coordinates of ``count`` + 1 lattice lines that are at least ``pitch`` apart.

    Raises:
        ValueError: The world is too small for them.
    """
    spare = HIGH - LOW - count * pitch
    if spare < 0:
        raise ValueError("the lattice does not fit into the world")
    shares = [dice.between(0.0, 1.0) for _ in range(count + 2)]
    used, lines = 0.0, []
    for number in range(count + 1):
        used += shares[number] / sum(shares) * spare
        lines.append(round((LOW + used + number * pitch) / GRID) * GRID)
    return lines


def lattice_shape(dice: Dice, pitch: int, size: int) -> list[Point]:
    """Return a course along the lines of a lattice: all bends have 90 degrees.

    Args:
        dice: The random numbers.
        pitch: Minimum distance of the lines.
        size: 0 short, 1 medium, 2 long.
    """
    fewest, most = ((2, 3), (2, 4), (3, 5))[size]
    columns, rows = dice.integer(fewest, most), dice.integer(fewest, most)
    corners = grow(dice, columns, rows, dice.integer(columns * rows * 2 // 5, columns * rows - 1))
    if len(corners) < MIN_CORNERS[size]:
        raise ValueError("the course has too few bends for its size")
    xs, ys = lattice_lines(dice, columns, pitch), lattice_lines(dice, rows, pitch)
    return [(xs[x], ys[y]) for x, y in corners]


def oblique_shape(dice: Dice, pitch: int, size: int) -> list[Point]:
    """Return a course like that of ``lattice_shape``, with corners that are moved at random."""
    points = lattice_shape(dice, pitch + 16, size)
    limit = 0.35 * pitch
    moved = [(x + dice.between(-limit, limit), y + dice.between(-limit, limit)) for x, y in points]
    return align_one_side(dice, moved)


def ring_shape(dice: Dice, pitch: int, size: int) -> list[Point]:
    """Return a course around a centre: its distance from the centre is a sum of random waves."""
    count = dice.integer(*((6, 9), (8, 11), (9, 12))[size])
    strength = (0.15, 0.35, 0.45)[size]
    waves = [(number, dice.between(0.0, strength), dice.between(0, 2 * math.pi)) for number in (2, 3, 4)]
    points = []
    for number in range(count):
        angle = 2 * math.pi * (number + dice.between(-0.15, 0.15)) / count
        distance = 1 + sum(height * math.cos(turns * angle + phase) for turns, height, phase in waves)
        points.append((distance * math.cos(angle), distance * math.sin(angle)))
    spans = []
    for axis in (0, 1):
        values = [point[axis] for point in points]
        span = dice.between(0.8, 1.0) * (HIGH - LOW)
        spans.append((min(values), span / (max(values) - min(values)), dice.between(LOW, HIGH - span)))
    moved = [tuple((point[k] - low) * scale + place for k, (low, scale, place) in enumerate(spans)) for point in points]
    return align_one_side(dice, [(x, y) for x, y in moved])


def align_one_side(dice: Dice, points: list[tuple[float, float]]) -> list[Point]:
    """Return the points on the grid, with one of the long sides along an axis: the start line needs it."""

    def length(index: int) -> float:
        return math.dist(points[index], points[(index + 1) % len(points)])

    longest = sorted(range(len(points)), key=length)[-2:]
    index = dice.pick(longest)
    (ax, ay), (bx, by) = points[index], points[(index + 1) % len(points)]
    if abs(bx - ax) > abs(by - ay):
        ay = by = (ay + by) / 2
    else:
        ax = bx = (ax + bx) / 2
    points = list(points)
    points[index], points[(index + 1) % len(points)] = (ax, ay), (bx, by)
    return [(round(x / GRID) * GRID, round(y / GRID) * GRID) for x, y in points]


SHAPES = (lattice_shape, oblique_shape, ring_shape)


def half_turn(before: Point, corner: Point, after: Point) -> float:
    """Return half of the change of direction at a corner, in radians."""
    a = math.atan2(corner[1] - before[1], corner[0] - before[0])
    b = math.atan2(after[1] - corner[1], after[0] - corner[0])
    return abs((b - a + math.pi) % (2 * math.pi) - math.pi) / 2


def round_corners(dice: Dice, points: list[Point], width: int) -> tuple[list[Corner], Point]:
    """Choose the radii of the bends and the place of the start line.

    Returns:
        Corners, and the start.

    Raises:
        ValueError: There is a place without room for a bend, or no straight for the start line.
    """
    count = len(points)
    low, high = dice.pick(((MIN_RADIUS, 96), (MIN_RADIUS, 150), (115, 220), (180, 320)))
    smallest = max(MIN_RADIUS, width // 2 + INNER_RADIUS)
    tangents = []
    for index, point in enumerate(points):
        half = half_turn(points[index - 1], point, points[(index + 1) % count])
        if not math.radians(4) < half < math.radians(62):
            raise ValueError("a corner is too sharp or too flat")
        tangents.append(math.tan(half))
    rooms = []  # for the bends' part of each side, beyond the smallest radius
    starts = []
    for index, (ax, ay) in enumerate(points):
        other = (index + 1) % count
        bx, by = points[other]
        rooms.append(math.dist((ax, ay), (bx, by)) - STRAIGHT - smallest * (tangents[index] + tangents[other]))
        if rooms[-1] < 0:
            raise ValueError("a side is too short")
        if (ax == bx or ay == by) and rooms[-1] >= START_STRAIGHT - STRAIGHT:
            starts.append(index)
    if not starts:
        raise ValueError("there is no straight for the start line")
    start_side = dice.pick(starts)
    rooms[start_side] -= START_STRAIGHT - STRAIGHT
    extra = [max(0.0, dice.between(low, high) - smallest) for _ in points]
    for _ in range(30):
        for index in range(count):
            other = (index + 1) % count
            need = extra[index] * tangents[index] + extra[other] * tangents[other]
            if need > rooms[index]:
                extra[index] *= rooms[index] / need
                extra[other] *= rooms[index] / need
    radii = [smallest + each for each in extra]
    corners = [Corner(x, y, int(radius)) for (x, y), radius in zip(points, radii, strict=True)]
    # The start line: on the straight part of its side, at a multiple of 16.
    a, b = points[start_side], points[(start_side + 1) % count]
    axis = 0 if a[0] != b[0] else 1
    sign = 1 if b[axis] > a[axis] else -1
    first = a[axis] + sign * (radii[start_side] * tangents[start_side] + BEFORE_LINE)
    last = b[axis] - sign * (radii[(start_side + 1) % count] * tangents[(start_side + 1) % count] + AFTER_LINE)
    places = [place for place in range(0, 1024, 16) if min(first, last) <= place <= max(first, last)]
    if sign * (last - first) < 0 or not places:
        raise ValueError("the start line does not fit")
    place = dice.pick(places)
    return corners, (place, a[1]) if axis == 0 else (a[0], place)


def check_distances(line: np.ndarray, width: int) -> None:
    """Check that two parts of the road keep their distance.

    Args:
        line: Samples of the centreline in pixels, float (n, 2).
        width: Width of the road.

    Raises:
        ValueError: They don't.
    """
    few = line[::4]
    step = math.dist(few[0], few[1])
    apart = np.abs(np.arange(len(few))[:, None] - np.arange(len(few))[None, :])
    apart = np.minimum(apart, len(few) - apart) * step
    square = ((few[:, None, :] - few[None, :, :]) ** 2).sum(axis=2)
    if (square[apart > NEAR_ON_LAP] < (width + MIN_GAP) ** 2).any():
        raise ValueError("two parts of the road are too close")
    if line.min() < width // 2 + 40 or line.max() > 1024 - width // 2 - 40:
        raise ValueError("the road is too close to the border")


# --- features ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Road:
    """The road without features, for the choice of their places.

    Attributes:
        line: Samples of the centreline in pixels from the start line on, float (n, 2).
        tangent: Driving direction at each sample, float (n, 2).
        length: Length of a lap.
        width: Width of the road.
    """

    line: np.ndarray
    tangent: np.ndarray
    length: float
    width: int

    def distance(self, x: float, y: float) -> float:
        """Return the distance of a point from the edge of the road; negative on the road."""
        return math.sqrt(((self.line - (x, y)) ** 2).sum(axis=1).min()) - self.width / 2

    def bend_ahead(self, index: int, pixels: float) -> float:
        """Return the largest change of direction on the next pixels of the road, in radians."""
        ahead = (index + np.arange(int(pixels * len(self.line) / self.length))) % len(self.line)
        return math.acos(min(1.0, float((self.tangent[ahead] @ self.tangent[index]).min())))


def areas(dice: Dice, road: Road, path: Strip | None) -> Iterator[Ellipse]:
    """Yield water, dirt and pits beside the road and the short cut."""
    wanted = dice.integer(2, 6)
    for _ in range(60):
        if not wanted:
            return
        x, y = dice.integer(48, 976), dice.integer(48, 976)
        if dice.chance(0.5):  # near the road
            near, aside = dice.integer(0, len(road.line) - 1), road.width / 2 + dice.between(44, 110)
            aside *= dice.pick((-1, 1))
            x = round(road.line[near][0] - road.tangent[near][1] * aside)
            y = round(road.line[near][1] + road.tangent[near][0] * aside)
        room = road.distance(x, y) - 12
        if path:
            room = min(room, distance_to(path.points, x, y) - path.width / 2 - 24)
        if room < 28:
            continue
        wanted -= 1
        surface = dice.pick((DEEP_WATER, DEEP_WATER, DIRT, PIT))
        largest = min(room, 60 if surface == PIT else 150)
        radii = (int(dice.between(0.6, 1.0) * largest), int(dice.between(0.6, 1.0) * largest))
        yield Ellipse(surface, x, y, *(max(16, radius) for radius in radii))


def distance_to(points: tuple[Point, ...], x: float, y: float) -> float:
    """Return the distance of a point from a straight path."""
    (ax, ay), (bx, by) = points
    part = ((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / ((bx - ax) ** 2 + (by - ay) ** 2)
    part = min(1.0, max(0.0, part))
    return math.dist((x, y), (ax + (bx - ax) * part, ay + (by - ay) * part))


def walls(dice: Dice) -> Iterator[WallAlong]:
    """Yield walls along parts of the road."""
    for _ in range(dice.integer(1, 6)):
        start = dice.between(0.0, 0.9)
        end = min(1.0, start + dice.between(0.05, 0.25))
        yield WallAlong(dice.pick(("left", "right")), dice.pick((16, 24, 32)), round(start, 3), round(end, 3))


def pads(dice: Dice, road: Road) -> Iterator[Pad]:
    """Yield boosts on straights and oil at the side of the road, not near the start line."""
    boosts, slicks = dice.integer(0, 3), dice.integer(0, 2)
    count = len(road.line)
    taken: list[int] = []
    for _ in range(80):
        index = dice.integer(int(0.05 * count), int(0.94 * count))
        if any(abs(index - other) < 0.08 * count for other in taken):
            continue
        x, y = road.line[index]
        if boosts:
            on_axis = np.abs(road.tangent[index]).max() > 0.97
            if not on_axis or road.bend_ahead(index, 170) > 0.35:
                continue
            pad = Pad(BOOST, round(x), round(y), dice.integer(2, 3), 2)
        elif slicks:
            side = dice.pick((-1, 1)) * (road.width // 2 - 26)
            tx, ty = road.tangent[index]
            pad = Pad(OIL, round(x - ty * side), round(y + tx * side), 1, 2)
            if dice.chance(0.5):
                pad = dataclasses.replace(pad, across=2, along=1)
        else:
            return
        if not on_road(road, pad):
            continue
        boosts, slicks = boosts - (pad.surface == BOOST), slicks - (pad.surface == OIL)
        taken.append(index)
        yield pad


def on_road(road: Road, pad: Pad) -> bool:
    """Return whether a pad is on the road, wherever the builder rounds it to."""
    reach = 8 * max(pad.across, pad.along)
    centre = (round(pad.x / 16) * 16, round(pad.y / 16) * 16)
    corners = [(centre[0] + dx, centre[1] + dy) for dx in (-reach, reach) for dy in (-reach, reach)]
    if pad.surface == BOOST and pad.across == 3:  # the shorter side is along the road
        along = abs(road.tangent[((road.line - centre) ** 2).sum(axis=1).argmin()])
        cut = np.where(along > 0.5, 16, 24)
        corners = [(centre[0] + dx * cut[0], centre[1] + dy * cut[1]) for dx in (-1, 1) for dy in (-1, 1)]
    return all(road.distance(*corner) < -4 for corner in corners)


def short_cut(dice: Dice, road: Road) -> Strip | None:
    """Return a dirt path that saves a part of the lap, or None if no place for one is found."""
    count = len(road.line)
    for _ in range(60):
        first = dice.integer(int(0.06 * count), int(0.8 * count))
        last = first + dice.integer(int(0.1 * count), int(0.3 * count))
        if last > 0.95 * count:
            continue
        a, b = road.line[first], road.line[last]
        chord = math.dist(a, b)
        along = (last - first) * road.length / count
        if not 1.25 * chord < along < 2.6 * chord or not road.width + 90 < chord < 420:
            continue
        # It leaves the road forward and joins it forward.
        direction = (b - a) / chord
        if min(float(road.tangent[first] @ direction), float(road.tangent[last] @ direction)) < 0.5:
            continue
        inside = [road.distance(*(a + (b - a) * part / 20)) for part in range(21)]
        if sum(one < 0 for one in inside) * chord / 20 > 2.6 * road.width or min(inside[8:13]) < 20:
            continue
        return Strip(DIRT, ((round(a[0]), round(a[1])), (round(b[0]), round(b[1]))), 56, short_cut=True)
    return None


# --- looks ------------------------------------------------------------------------------------------------------------
# Luminance of road, grass, dirt, water and walls. Agents see the game in grey, so they differ by more than the minimum.
LEVELS = (
    (96, 144, 178, 56, 214),
    (86, 158, 122, 50, 206),
    (70, 112, 148, 32, 190),
    (178, 106, 142, 64, 218),
    (98, 212, 174, 56, 134),
    (112, 180, 146, 72, 218),
)
GRASS_HUES = (30, 45, 70, 95, 115, 140, 165, 200, 285)
SKIES: tuple[tuple[RGB, RGB, RGB, RGB, RGB], ...] = (
    Course.sky,
    ((40, 128, 200), (96, 184, 232), (216, 240, 248), (136, 96, 72), (120, 152, 176)),
    ((64, 136, 216), (136, 184, 232), (248, 224, 176), (144, 88, 48), (184, 136, 104)),
    ((24, 32, 88), (56, 72, 144), (136, 136, 184), (24, 40, 56), (56, 72, 104)),
    ((232, 120, 72), (248, 176, 104), (255, 224, 160), (96, 48, 48), (160, 96, 88)),
    ((120, 136, 152), (168, 180, 192), (216, 224, 232), (72, 88, 88), (128, 144, 152)),
    ((24, 120, 136), (80, 176, 176), (208, 240, 216), (24, 80, 72), (72, 136, 128)),
)


def tint(hue: float, saturation: float, level: float) -> RGB:
    """Return a colour with a luminance of 0 to 255, in steps that the console can show."""
    for lightness in range(4, 256, 2):
        red, green, blue = colorsys.hls_to_rgb(hue / 360, lightness / 255, saturation)
        if 255 * (0.299 * red + 0.587 * green + 0.114 * blue) >= level:
            break
    return tuple(min(248, round(255 * channel / 8) * 8) for channel in (red, green, blue))  # type: ignore[return-value]


def look(dice: Dice) -> tuple[dict[str, RGB], tuple[RGB, RGB, RGB, RGB, RGB]]:
    """Return random colours of the world and of the sky."""
    road, grass, dirt, water, wall = (level + dice.between(-1.5, 1.5) for level in dice.pick(LEVELS))
    green, brown, blue = dice.pick(GRASS_HUES) + dice.between(-10, 10), dice.between(15, 42), dice.between(195, 250)
    grey, painted = dice.between(0, 360), dice.between(0, 360)
    lush, tar = dice.between(0.2, 0.55) / (1 if green < 180 else 2), dice.between(0.0, 0.14)
    return {
        "outer": tint(green, lush, grass - 6),
        "grass_a": tint(green, lush, grass - 6),
        "grass_b": tint(green, lush, grass + 6),
        "grass_dots": tint(green, lush, grass - 26),
        "verge": tint(green, lush, min(235, grass + 34)),
        "road_a": tint(grey, tar, road - 6),
        "road_b": tint(grey, tar, road + 6),
        "road_dots": tint(grey, tar, road - 24),
        "kerb_red": tint(painted, 0.8, 70),
        "dirt": tint(brown, 0.5, dirt),
        "dirt_dots": tint(brown, 0.45, dirt - 28),
        "dirt_edge": tint(brown, 0.4, dirt - 62),
        "water": tint(blue, 0.8, water),
        "water_dots": tint(blue, 0.8, water + 80),
        "wall_top": tint(painted, 0.9, min(246, wall + 40)),
        "wall_side": tint(painted, 0.75, wall - 40),
        "wall_edge": tint(painted, 0.6, 24),
    }, dice.pick(SKIES)


# --- courses ----------------------------------------------------------------------------------------------------------


def state_name(state: str, number: int) -> str:
    """Return the name of a course's start state: Gen01 or Test1."""
    return f"{state}{number:02d}" if state == TRAINING else f"{state}{number}"


def describe(seed: int, state: str, number: int, attempt: int = 0) -> Course:
    """Return a random description of a course.

    Shape, size and driving direction depend on the number, so that few courses are already different.

    Args:
        seed: The seed of all courses.
        state: The set: ``Gen`` or ``Test``.
        number: The number of the course in the set, from 1.
        attempt: Another attempt gives another course.

    Raises:
        ValueError: The attempt gives no sane course.
    """
    dice = Dice(f"{seed} {state} {number} {attempt}")
    kind = number - 1
    width = dice.pick((80, 84, 84, 88, 88, 92, 96, 104))
    size = (kind // 2 + kind // 6) % 3
    points = SHAPES[kind % 3](dice, width + MIN_GAP + 8, size)
    if kind % 2:
        points = points[::-1]
    corners, start = round_corners(dice, points, width)
    course = Course(
        name=state_name(state, number).upper(),
        corners=tuple(corners),
        road_width=width,
        start=start,
        num_checkpoints=20,
        held_out=state == TEST,
    )
    samples, tangent, length = centreline(course)
    shortest, longest = SIZES[min(size, 1) if kind % 3 == 2 else size]  # a ring has no room for more
    if not shortest <= length <= longest:
        raise ValueError("the lap is too short or too long")
    road = Road(samples / UNIT, tangent, length, width)
    check_distances(road.line, width)
    path = short_cut(dice, road) if dice.chance(0.6) else None
    features: list[Ellipse | WallAlong | Strip | Pad] = [*areas(dice, road, path), *walls(dice)]
    features += [path] if path else []
    features += pads(dice, road)
    colours, sky = look(dice)
    return dataclasses.replace(
        course,
        num_checkpoints=min(32, max(20, round(length / 105))),
        features=tuple(features),
        colours=colours,
        sky=sky,
    )


class Probe:
    """A ROM with one course, to drive it before it is part of the game.

    Args:
        folder: An empty folder for the files.
    """

    def __init__(self, folder: Path) -> None:
        build.write_includes(folder, 1)
        self._linked = build.assemble(HERE / "src" / "main.s", folder, "probe")
        self._rom = folder / "rom.sfc"
        self._inputs = folder / "menu.inputs"
        self._inputs.write_text(menu_inputs(0))
        self._layout = RamLayout.from_file(ORIGINAL / "data.json")

    def start(self, track: Track) -> tuple[Console, bytes]:
        """Build the ROM with a course. Return a console with it, and the emulator's state at the start of the race."""
        self._rom.write_bytes(build.finish(self._linked, [track]))
        console = Console(self._rom, self._layout)
        for frames, held in read_inputs(self._inputs, console.buttons):
            for _ in range(frames):
                console.step(held)
        while console.ram().game_mode != IN_RACE:
            console.step()
        return console, console.em.get_state()

    def lap_seconds(self, track: Track) -> list[float]:
        """Return the lap times of the scripted driver in a race. The way to the line is part of the first lap.

        Raises:
            ValueError: It hits a wall, leaves out a checkpoint, needs too much or too little time, or can't drive the
                course's short cut.
        """
        console, start = self.start(track)
        line = [(x / UNIT, y / UNIT) for x, y in track.line[::4].tolist()]
        seconds: list[float] = []
        before = -1
        for frame, ram in enumerate(race(console, start, line), 1):
            if ram.collision:
                raise ValueError("the scripted driver hits a wall")
            if ram.backward:
                raise ValueError("the scripted driver drives backward")
            if (now := progress(ram)) not in (before, before + 1):
                raise ValueError("the checkpoints do not count one by one")
            before = now
            if lap(ram) > len(seconds):
                seconds.append(frame / 60 - sum(seconds))
                if seconds[-1] < LAP_SECONDS[0]:
                    raise ValueError("the scripted driver needs too little time for a lap")
            if len(seconds) == LAPS_IN_A_RACE:
                break
            if frame / 60 - sum(seconds) > LAP_SECONDS[1]:
                raise ValueError("the scripted driver needs too much time for a lap")
        for feature in track.course.features:
            if isinstance(feature, Strip) and feature.short_cut:
                for aside in (-18, 0, 18):
                    path = over_short_cut(line, feature.points)
                    check_short_cut(race(console, start, path, aside))
        return seconds


def race(console: Console, start: bytes, line: Sequence[Sequence[float]], aside: float = 0.0) -> Iterator[Any]:
    """Drive a line from the start of the race. Yield the variables after each frame."""
    console.load(start)
    driver = CentrelineDriver(line, offset=aside)
    while True:
        console.step(driver(console.ram()))
        yield console.ram()


def over_short_cut(line: list[tuple[float, float]], points: tuple[Point, ...]) -> list[tuple[float, float]]:
    """Return a line that leaves the road a little before a short cut and joins it a little after it."""
    leave, join = (min(range(len(line)), key=lambda k: math.dist(line[k], end)) for end in (points[0], points[-1]))
    corners = [line[leave - 6], *points[1:-1], line[(join + 6) % len(line)]]
    path = line[: leave - 6]
    for (ax, ay), (bx, by) in itertools.pairwise(corners):
        steps = max(1, round(math.dist((ax, ay), (bx, by)) / 8))
        path += [(ax + (bx - ax) * k / steps, ay + (by - ay) * k / steps) for k in range(steps)]
    return path + line[join + 6 :]


def check_short_cut(frames: Iterator[Any]) -> None:
    """Check that a lap over a short cut counts.

    Raises:
        ValueError: It does not.
    """
    dirt, most = 0, -1
    for ram in itertools.islice(frames, round(LAP_SECONDS[1] * 60)):
        dirt += ram.surface == DIRT
        most = max(most, progress(ram))
        if progress(ram) < most - 1 or lap(ram) == 1:
            break
    if lap(ram) < 1 or dirt <= 10:
        raise ValueError("the scripted driver can't drive the short cut")


def generate_course(probe: Probe, seed: int, state: str, number: int) -> tuple[Track, list[float], list[str]]:
    """Return a generated course that obeys the builder's rules and that the scripted driver can drive.

    Args:
        probe: The ROM to drive it in.
        seed: The seed of all courses.
        state: The set: ``Gen`` or ``Test``.
        number: The number of the course in the set, from 1.

    Returns:
        The course, the scripted driver's lap times, and the reasons for which other courses were refused.
    """
    refused: list[str] = []
    for attempt in range(MAX_ATTEMPTS):
        try:
            track = build_track(describe(seed, state, number, attempt))
            return track, probe.lap_seconds(track), refused
        except ValueError as error:
            refused.append(str(error))
    raise RuntimeError(f"no {state_name(state, number)} in {MAX_ATTEMPTS} attempts; the last: {refused[-1]}")


def build_game(out: Path, seed: int, courses: int, test_courses: int) -> None:
    """Write the complete game to a folder. The states of an earlier game there are deleted.

    Raises:
        ValueError: The ROM has no room for so many courses.
    """
    total = len(COURSES) + courses + test_courses
    build.rom_banks(total)  # before the work begins
    tracks = build.build_tracks()
    states = build.level_states(len(tracks))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "probe").mkdir()
        probe = Probe(Path(folder) / "probe")
        for state, count in ((TRAINING, courses), (TEST, test_courses)):
            for number in range(1, count + 1):
                track, seconds, refused = generate_course(probe, seed, state, number)
                tracks.append(track)
                states.append(state_name(state, number))
                print(f"{states[-1]}: {np.mean(seconds):.1f} s a lap, {len(refused)} refused", flush=True)
        build.write_includes(Path(folder), total)
        rom = build.finish(build.assemble(HERE / "src" / "main.s", Path(folder), "game"), tracks)
    build.write_game(out, rom, tracks, states)
    for name in ("data.json", "scenario.json", "course_progress.json", "course_progress.py", "reference_laps.json"):
        shutil.copyfile(ORIGINAL / name, out / name)
    for old in out.glob("*.state"):
        old.unlink()
    with contextlib.redirect_stdout(None):  # all variables of each state
        make_states(out)
    print(f"{len(states)} start states in {out}")


def main() -> None:
    """Generate from the command line."""
    parser = argparse.ArgumentParser(description="Build HomebrewKartPlus: HomebrewKart with generated courses.")
    parser.add_argument("--seed", type=int, default=1, help="another seed gives other courses (%(default)s)")
    parser.add_argument("--courses", type=int, default=24, help="training courses, Gen01 ... (%(default)s)")
    parser.add_argument("--test-courses", type=int, default=4, help="held-out courses, Test1 ... (%(default)s)")
    parser.add_argument(
        "--integrations", type=Path, default=Path("integrations"), help=f"folder for {GAME} (./%(default)s)"
    )
    args = parser.parse_args()
    most = build.MAX_COURSES - len(COURSES)
    if min(args.courses, args.test_courses) < 0 or args.courses + args.test_courses > most:
        parser.error(f"the ROM has room for 0 to {most} generated courses, training and test ones together")
    build.check_tools()
    build_game(args.integrations / GAME, args.seed, args.courses, args.test_courses)


if __name__ == "__main__":
    main()
