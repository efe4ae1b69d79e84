"""Courses: their map, where reward terms fired on them, split times and reference laps.

* ``Marks`` - where the kart was in an episode, and where each term fired
* ``draw_map`` - draws the marks of several episodes on maps of a course
* ``Course``, ``find_courses``, ``CourseMap`` - the courses that a game's folder describes; an empty map of one
* ``checkpoint_times``, ``split_times`` - the time from the start of each lap to each checkpoint, and to each quarter
* ``positions`` - where the kart was in a drive
* ``reference_laps``, ``reference_drive`` - the time of a very good lap of each course, and the drive that has it
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from kart_rewards.drivers import centrelines
from kart_rewards.drives import SUFFIX, Drive
from kart_rewards.errors import KartRewardsError
from kart_rewards.ram import load_json
from kart_rewards.splits import splits_of

COURSES_FILE = "courses.json"
"""The file in a game's folder that describes its courses."""
REFERENCE_FILE = "reference_laps.json"
"""The file in a game's folder with the reference lap of each course, in seconds: {"lap_time_seconds": {STATE: …}}."""
REFERENCE_DRIVES = "reference_drives"
"""The folder in a game's folder with the drive of each course that evaluations compare with: STATE.drive."""

SPLITS = 4
"""Number of parts of a lap that are timed."""

UNITS_PER_PIXEL = 4
"""Units of the variables kart_x and kart_y in a world pixel."""
_ROAD_WIDTH = 80.0  # world pixels, where the file has none

_WIDTH, _MARGIN, _ROW = 600, 14, 20  # of the picture, in pixels
_BACKGROUND, _ROAD, _PATH, _TEXT = (18, 20, 28), (52, 57, 70), (112, 118, 134), (225, 228, 235)
_COLOURS = (
    *((255, 80, 85), (80, 175, 255), (255, 205, 60), (165, 150, 255), (30, 200, 140), (245, 245, 245)),
    *((255, 140, 50), (255, 150, 205), (180, 225, 90), (190, 150, 110)),
)
_RADIUS = 3  # of a mark, in pixels
SHIFT = 4
"""Number of binary places of the coordinates that ``CourseMap.placed`` returns."""


@dataclass
class Marks:
    """Where the kart was in an episode, after each step, and where each reward term fired.

    Attributes:
        path: Positions (x, y) in quarter pixels. Empty if the game has no position.
        fired: Term -> positions of the steps in which its value was not 0.
    """

    path: list[tuple[int, int]] = field(default_factory=list)
    fired: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    _counts: Mapping[str, float] = field(default_factory=dict)

    def step(self, info: Mapping[str, Any]) -> None:
        """Adds the info of a reset or step."""
        ram, counts = info["ram"], info["episode_rewards"]["count"]
        if "kart_x" not in ram or "kart_y" not in ram:
            return
        place = ram["kart_x"], ram["kart_y"]
        self.path.append(place)
        for name, count in counts.items():
            places = self.fired.setdefault(name, [])
            if count > self._counts.get(name, 0):
                places.append(place)
        self._counts = counts


@dataclass(frozen=True)
class Course:
    """A course on the map.

    Args:
        centreline: Points [x, y] in the middle of the road, in world pixels and in driving order.
        road_width: In world pixels.
    """

    centreline: Sequence[Sequence[float]]
    road_width: float


def find_courses(folder: Path) -> dict[str, Course]:
    """Returns the courses that a game's folder describes: start state -> course. Empty if it has no ``courses.json``.

    Raises:
        KartRewardsError: The file is damaged.
    """
    path = folder / COURSES_FILE
    if not path.is_file():
        return {}
    lines, described = centrelines(path), load_json(path)["courses"]
    widths = {str(course["state"]): course.get("road_width") for course in described}
    return {
        state: Course(line, widths[state] if type(widths[state]) in (int, float) else _ROAD_WIDTH)
        for state, line in lines.items()
    }


def reference_laps(folder: Path) -> dict[str, float]:
    """Returns the reference laps in a game's folder: start state -> seconds. Empty if it has none.

    Raises:
        KartRewardsError: The file is damaged.
    """
    path = folder / REFERENCE_FILE
    if not path.is_file():
        return {}
    laps: Any = load_json(path).get("lap_time_seconds")
    valid = isinstance(laps, dict) and all(type(lap) in (int, float) and 0 < lap < math.inf for lap in laps.values())
    if not valid:
        raise KartRewardsError(f'{path}: is not {{"lap_time_seconds": {{START STATE: SECONDS, …}}}}')
    return {state: float(lap) for state, lap in laps.items()}


def reference_drive(folder: Path, state: str) -> Path:
    """Returns the path of the drive in a game's folder that evaluations on a course compare with; it may be missing."""
    return folder / REFERENCE_DRIVES / f"{Path(state).name.removesuffix('.state')}{SUFFIX}"


def split_times(drive: Drive) -> tuple[tuple[float, ...], ...]:
    """Returns split times, in seconds: for each lap the time from its start to each quarter of its checkpoints.

    Quarters that were not reached are missing, and so is a lap without any. The first lap starts at the start state, as
    in ``RaceMetrics``.

    Args:
        drive: The drive. Without race metrics or checkpoints, there are no split times.
    """
    splits = splits_of(drive) if drive.info.race is not None else None
    if splits is None:
        return ()
    ends = [math.ceil(splits.count * part / SPLITS) for part in range(1, SPLITS + 1)]
    laps = [[lap[end - 1] for end in ends if end <= len(lap)] for lap in splits.laps]
    return tuple(tuple(_seconds(drive, lap)) for lap in laps if lap and None not in lap)


def checkpoint_times(drive: Drive) -> tuple[tuple[float | None, ...], ...]:
    """Returns the time from the start of each lap to each of its checkpoints and last to the line, in seconds.

    Checkpoints that were not reached are missing; None stands for one that lies before a start state in mid-race. See
    ``kart_rewards.splits.Splits.laps``.

    Args:
        drive: The drive. Without race metrics or checkpoints, there are no times.
    """
    splits = splits_of(drive) if drive.info.race is not None else None
    return tuple(tuple(_seconds(drive, lap)) for lap in splits.laps) if splits else ()


def _seconds(drive: Drive, frames: Sequence[int | None]) -> list[Any]:
    return [None if at is None else at / drive.info.frames_per_second for at in frames]


def positions(drive: Drive) -> np.ndarray | None:
    """Returns where the kart was on each frame, in world pixels: float64, shape (frames, 2). None: it is not known."""
    columns = drive.columns
    if not {"kart_x", "kart_y"} <= columns.keys() or columns["kart_x"].ndim > 1 or columns["kart_y"].ndim > 1:
        return None
    return np.stack([columns["kart_x"], columns["kart_y"]], axis=1) / UNITS_PER_PIXEL


def draw_map(course: Course, episodes: Sequence[Marks], title: str, captions: Mapping[str, str]) -> np.ndarray:
    """Draws where each term fired on a course: a small map for each term that fired, two in a row.

    One map for all terms would hide most marks, because terms fire at the same places.

    Args:
        course: The course.
        episodes: What happened on it.
        title: Text above the maps.
        captions: Term -> text below its name, in the order of the terms.

    Returns:
        uint8 RGB (height, 600, 3).
    """
    cell = CourseMap(course, _WIDTH // 2, 2 * _ROW)
    for episode in episodes:
        path = cell.placed(np.array(episode.path) / UNITS_PER_PIXEL)
        cv2.polylines(cell.picture, [path], False, _PATH, 1, cv2.LINE_AA, SHIFT)
    cell.draw_start()
    cells, silent = [], []
    for i, (name, caption) in enumerate(captions.items()):
        places = [place for episode in episodes for place in episode.fired.get(name, ())]
        if places:
            picture, colour = cell.picture.copy(), _COLOURS[i % len(_COLOURS)]
            for x, y in cell.placed(np.array(places) / UNITS_PER_PIXEL).tolist():
                cv2.circle(picture, (x, y), _RADIUS << SHIFT, colour, cv2.FILLED, cv2.LINE_AA, SHIFT)
            cv2.circle(picture, (_MARGIN + 5, _ROW - 5), 6, colour, cv2.FILLED, cv2.LINE_AA)
            _write(picture, name, _MARGIN + 18, _ROW)
            _write(picture, caption, _MARGIN, 2 * _ROW)
            cells.append(picture)
        else:
            silent.append(name)
    cells += [np.full_like(cell.picture, _BACKGROUND)] * (len(cells) % 2)
    head, foot = (np.full((_ROW + 10, _WIDTH, 3), _BACKGROUND, np.uint8) for _ in range(2))
    _write(head, title, _MARGIN, _ROW)
    _write(foot, f"never fired: {', '.join(silent)}" if silent else "", _MARGIN, _ROW)
    return np.concatenate([head, *(np.hstack(cells[i : i + 2]) for i in range(0, len(cells), 2)), foot])


class CourseMap:
    """An empty map of a course, and where points are on it.

    Args:
        course: The course.
        width: In pixels.
        top: Height of an empty area above the map, in pixels.

    Attributes:
        picture: The map with the road: uint8 RGB, shape (height, width, 3).
    """

    def __init__(self, course: Course, width: int, top: int = 0) -> None:
        line = np.array(course.centreline, np.float64)
        low, high = line.min(axis=0) - course.road_width, line.max(axis=0) + course.road_width
        self._low, self._scale = low, (width - 2 * _MARGIN) / (high - low).max()
        self._corner = (width - (high - low)[0] * self._scale) / 2, top + _MARGIN
        self._line, self._road = line, max(round(course.road_width * self._scale), 1)
        height = top + _MARGIN + round((high - low)[1] * self._scale) + _MARGIN
        self.picture = np.full((height, width, 3), _BACKGROUND, np.uint8)
        cv2.polylines(self.picture, [self.placed(line)], True, _ROAD, self._road, cv2.LINE_AA, SHIFT)

    def placed(self, points: Any) -> np.ndarray:
        """Returns pixels of the picture, as cv2 takes them with the shift ``SHIFT``: int32, shape (points, 2).

        Args:
            points: World pixels (x, y).
        """
        world = np.array(points, np.float64).reshape(-1, 2)
        return np.round(((world - self._low) * self._scale + self._corner) * (1 << SHIFT)).astype(np.int32)

    def draw_start(self) -> None:
        """Draws the start of the line, with an arrow in driving order."""
        first = self.placed(self._line[:2]) / (1 << SHIFT)
        direction = first[1] - first[0]
        direction /= np.linalg.norm(direction) or 1.0
        side = np.array([-direction[1], direction[0]])

        def pixel(along: float, beside: float) -> list[int]:
            return [round(number) for number in (first[0] + along * direction + beside * side).tolist()]

        cv2.line(self.picture, pixel(0, -self._road / 2), pixel(0, self._road / 2), _TEXT, 1, cv2.LINE_AA)
        beside = self._road / 2 + 7
        cv2.arrowedLine(self.picture, pixel(0, beside), pixel(18, beside), _TEXT, 1, cv2.LINE_AA, 0, 0.4)


def _write(picture: np.ndarray, text: str, x: int, y: int) -> None:
    cv2.putText(picture, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.45, _TEXT, 1, cv2.LINE_AA)
