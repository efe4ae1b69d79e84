"""A ghost: a recorded drive that races against an episode, on the map and by its times at the checkpoints.

* ``load_ghost`` - the drive that a person named, for a game and a course
* ``Ghost`` - a drive: where it was, and when it reached each checkpoint
* ``Chase`` - follows an episode: its splits, and the distance to a ghost in seconds
* ``REFERENCE`` - the option's value for the reference drive of the course
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from kart_rewards.drives import Drive, drive_file, load_drive
from kart_rewards.env.panel import row
from kart_rewards.errors import KartRewardsError
from kart_rewards.evaluation.courses import (
    SHIFT,
    UNITS_PER_PIXEL,
    Course,
    CourseMap,
    find_courses,
    positions,
    reference_drive,
)
from kart_rewards.integrations import Game
from kart_rewards.splits import Splits, frames_before, splits_of

REFERENCE = "reference"
"""Names the reference drive of the course, which is in the game's folder."""

_WIDTH, _HEIGHT = 336, 672  # of the picture, in pixels; half as wide as a window of the usual scale is high
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 322, 490, 650  # of the curve
_OWN, _GHOST, _TEXT, _DIM = (255, 214, 64), (80, 175, 255), (225, 228, 235), (80, 86, 100)
_BEHIND, _AHEAD = (255, 110, 100), (90, 220, 130)
_LONGEST_LABEL = 30  # characters
_TRACK = 60.0  # width of a line that stands for the road, in world pixels, where the game describes none


def load_ghost(name: str, game: Game, state: str) -> Drive:
    """Returns the drive that ``--ghost`` names.

    Args:
        name: ``reference``, the file of a drive, or the name of a drive of the package.
        game: The game of the episodes.
        state: Their start state.

    Raises:
        KartRewardsError: There is no such drive, it was driven in another game or on another course, or the game has no
            checkpoints.
    """
    path = reference_drive(game.folder, state) if name == REFERENCE else drive_file(name)
    if name == REFERENCE and not path.is_file():
        raise KartRewardsError(
            f"{path}: no such drive: {game.name} has no reference drive of {state}. Name another drive: --ghost FILE"
        )
    drive = load_drive(path)
    if drive.info.game != game.name:
        raise KartRewardsError(f"{path}: is a drive in {drive.info.game}, and the agent plays {game.name}")
    if _stem(drive.info.state) != _stem(state):
        raise KartRewardsError(
            f"{path}: is a drive on {drive.info.state}, and the agent drives on {state}: name a drive on {state} with "
            f"--ghost, or the other course with --state {drive.info.state}"
        )
    if splits_of(drive) is None:
        raise KartRewardsError(f"{path}: has no checkpoints, by which a ghost and an agent could be compared")
    return drive


def _stem(state: str) -> str:
    return Path(state).name.removesuffix(".state")


class Ghost:
    """A drive that races against episodes.

    Args:
        drive: The drive, from ``load_ghost``.
        game: Its game, for the map.

    Attributes:
        label: A name for people.
        splits: When it reached each checkpoint.
        course: The course for the map. None: where the ghost was is not known.
    """

    def __init__(self, drive: Drive, game: Game) -> None:
        splits = splits_of(drive)
        assert splits, "load_ghost has checked it"
        self.splits = splits
        driver, file = drive.info.driver, drive.info.label
        self.label = (file if file.startswith(driver) else f"{driver} {file}")[:_LONGEST_LABEL]
        self.frames_per_second = drive.info.frames_per_second
        self._before, self._places = frames_before(drive), positions(drive)
        self.course: Course | None = None
        if self._places is not None:
            described = find_courses(game.folder).get(drive.info.state)
            self.course = described or Course(self._places.tolist(), _TRACK)

    def place(self, seconds: float) -> np.ndarray:
        """Returns where the ghost was on the race clock, in world pixels: float64, shape (2,). At the end it stays."""
        assert self._places is not None, "there is a course"
        frame = round(seconds * self.frames_per_second) - self._before
        place: np.ndarray = self._places[min(max(frame, 0), len(self._places) - 1)]
        return place

    def seconds_at(self, progress: int) -> float | None:
        """Returns when the ghost reached a checkpoint, on the race clock. None: it never did, or it is not known.

        Args:
            progress: The number of checkpoints since the first crossing of the line.
        """
        reached = self.splits.reached[progress] if progress < len(self.splits.reached) else None
        return None if reached is None else reached / self.frames_per_second


class Chase:
    """Follows an episode: the splits of its laps, and how far it is behind a ghost.

    Args:
        ram: The first snapshot of the episode.
        frames: Number of frames on the race clock before it.
        frames_per_second: Of the console.
        ghost: The ghost. None: there are only the splits.

    Raises:
        KartRewardsError: The ghost drove a course with another number of checkpoints.
    """

    def __init__(self, ram: Any, frames: int, frames_per_second: float, ghost: Ghost | None = None) -> None:
        self.splits = Splits(ram, frames)
        self._frames_per_second = frames_per_second
        self._ghost = ghost
        self._behind: list[float | None] = []  # seconds at each checkpoint since the first crossing
        if ghost and self.splits.count not in (0, ghost.splits.count):
            raise KartRewardsError(
                f"{ghost.label}: its course has {ghost.splits.count} checkpoints, and the agent's {self.splits.count}: "
                "it was driven with another ROM"
            )
        self._map: CourseMap | None = None
        if ghost and ghost.course and hasattr(ram, "kart_x") and hasattr(ram, "kart_y"):
            self._map = CourseMap(ghost.course, _WIDTH)
            self._map.draw_start()
        self._laps, self._trails = 0, self._map.picture.copy() if self._map else None
        self._dots: list[tuple[int, int]] = []  # of the agent and the ghost, as ``CourseMap.placed`` returns them
        self._move(ram)

    def update(self, ram: Any) -> None:
        """Adds the next emulated frame."""
        self.splits.update(ram)
        for progress in range(len(self._behind), len(self.splits.reached)):
            own, other = self.splits.reached[progress], self._ghost and self._ghost.seconds_at(progress)
            known = own is not None and other is not None
            self._behind.append(own / self._frames_per_second - other if known else None)  # type: ignore[operator]
        self._move(ram)

    @property
    def behind(self) -> float | None:
        """The seconds that the agent was behind the ghost at its latest checkpoint; negative if it was ahead."""
        return self._behind[-1] if self._behind else None

    def lines(self) -> list[str]:
        """Returns the latest split and the distance to the ghost, as lines of the panel."""
        count, progress = self.splits.count, len(self.splits.reached) - 1
        lines = [row("split (s)", "", "")]
        if progress >= 0 and self.splits.reached[-1] is not None:
            laps = self.splits.laps
            frames = laps[-1][-1] if laps else self.splits.reached[0]  # of the first crossing of the line
            number = len(laps[-1]) if laps else 0
            lines = [row(f"split {number}/{count} (s)", "", f"{(frames or 0) / self._frames_per_second:.2f}")]
        if self._ghost:
            lines.append(row("behind ghost (s)", "", "" if self.behind is None else f"{self.behind:+.2f}"))
        return lines

    def _move(self, ram: Any) -> None:
        """Moves the dots on the map, which leave trails until the end of the lap."""
        if self._map is None or self._trails is None or self._ghost is None:
            return
        seconds = self.splits.frames / self._frames_per_second
        own = ram.kart_x / UNITS_PER_PIXEL, ram.kart_y / UNITS_PER_PIXEL
        dots = [(int(x), int(y)) for x, y in self._map.placed([own, self._ghost.place(seconds)])]
        laps = max(len(self.splits.reached) - 2, 0) // max(self.splits.count, 1)
        if laps > self._laps:
            self._laps, self._trails = laps, self._map.picture.copy()
        for before, now, colour in zip(self._dots, dots, (_OWN, _GHOST), strict=False):
            dim = tuple(round(0.6 * part) for part in colour)
            cv2.line(self._trails, before, now, dim, 1, cv2.LINE_AA, SHIFT)
        self._dots = dots

    def picture(self) -> np.ndarray | None:
        """Returns the map with both karts, and the distance over the checkpoints so far.

        Returns:
            uint8 RGB, shape (672, 336, 3). None: the game has no positions, or there is no ghost.
        """
        if self._map is None or self._trails is None or self._ghost is None:
            return None
        picture = np.full((_HEIGHT, _WIDTH, 3), self._map.picture[0, 0], np.uint8)
        picture[: len(self._trails)] = self._trails[:_HEIGHT]
        for dot, colour in reversed(list(zip(self._dots, (_OWN, _GHOST), strict=True))):
            cv2.circle(picture, dot, 5 << SHIFT, colour, cv2.FILLED, cv2.LINE_AA, SHIFT)
            cv2.circle(picture, dot, 5 << SHIFT, (18, 20, 28), 1, cv2.LINE_AA, SHIFT)
        for y, colour, text in ((368, _OWN, "agent"), (392, _GHOST, f"ghost: {self._ghost.label}")):
            cv2.circle(picture, (20, y - 5), 5, colour, cv2.FILLED, cv2.LINE_AA)
            _write(picture, text, (34, y), 0.5, _TEXT)
        if self.behind is not None:
            colour = _BEHIND if self.behind > 0 else _AHEAD
            _write(picture, f"{self.behind:+.2f} s", (14, 440), 1.1, colour, 2)
            _write(picture, "behind" if self.behind > 0 else "ahead", (200, 440), 0.6, colour)
        self._draw_curve(picture)
        return picture

    def _draw_curve(self, picture: np.ndarray) -> None:
        """Draws the seconds behind the ghost over the checkpoints of the race."""
        known = [(progress, behind) for progress, behind in enumerate(self._behind) if behind is not None]
        low, high = min([-0.5, *(behind for _, behind in known)]), max([0.5, *(behind for _, behind in known)])

        def height(behind: float) -> int:
            return round(_BOTTOM - (_BOTTOM - _TOP) * (behind - low) / (high - low))

        end = max(len(self._ghost.splits.reached) if self._ghost else 1, len(self._behind), 2) - 1
        _write(picture, "behind the ghost over the race, s", (14, _TOP - 14), 0.45, _TEXT)
        for value in (high, 0.0, low):
            y = height(value)
            cv2.line(picture, (_LEFT, y), (_RIGHT, y), _DIM, 1)
            _write(picture, f"{value:+.1f}" if value else "0", (4, y + 4), 0.35, _TEXT)
        points = [(round(_LEFT + (_RIGHT - _LEFT) * progress / end), height(behind)) for progress, behind in known]
        for before, now, (_, behind) in zip(points, points[1:], known[1:], strict=False):
            cv2.line(picture, before, now, _BEHIND if behind > 0 else _AHEAD, 2, cv2.LINE_AA)


def _write(
    picture: np.ndarray, text: str, at: tuple[int, int], size: float, colour: tuple[int, int, int], thick: int = 1
) -> None:
    cv2.putText(picture, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, colour, thick, cv2.LINE_AA)
