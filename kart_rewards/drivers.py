"""Scripted drivers: they choose the buttons to hold from the values in RAM.

* ``CentrelineDriver`` - follows a line around the course
* ``full_throttle``, ``reverse``, ``coast`` - always hold the same buttons
* ``WallHugger``, ``TurnAround``, ``RandomDriver`` - drive badly in different ways
* ``centreline``, ``centrelines`` - the line in the middle of the road of a HomebrewKart course, and of all courses
* ``drive`` - runs a driver in an environment

A driver is a callable. It takes the RAM snapshot of a frame and returns the SNES buttons to hold on the next frame, as
a frozenset of names. The snapshot can be any object with the attributes of ``KartState``.

Drivers test courses and are the baseline of a trained agent. This module imports no emulator.

Example:
    >>> from types import SimpleNamespace
    >>> ram = SimpleNamespace(kart_x=400, kart_y=2000, kart_direction=0, speed=0, surface=0x40)
    >>> driver = CentrelineDriver([(100, 500), (100, 400), (100, 300), (500, 300), (500, 500)])
    >>> sorted(driver(ram))
    ['B']
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from kart_rewards.errors import KartRewardsError
from kart_rewards.integrations import INTEGRATIONS
from kart_rewards.race import WALL
from kart_rewards.ram import load_json

Buttons = frozenset[str]


class KartState(Protocol):
    """The attributes that a driver reads.

    Attributes:
        kart_x, kart_y: Position in quarter pixels, 0 to 4095.
        kart_direction: Heading in 1/256 turn; 0 is north, and it grows clockwise.
        speed: 256 is one pixel per frame.
        surface: The ground under the kart; a code of ``kart_rewards.race``.
    """

    @property
    def kart_x(self) -> int: ...
    @property
    def kart_y(self) -> int: ...
    @property
    def kart_direction(self) -> int: ...
    @property
    def speed(self) -> int: ...
    @property
    def surface(self) -> int: ...


Driver = Callable[[KartState], Buttons]


def centreline(
    state: str, courses: str | Path = INTEGRATIONS / "HomebrewKart-Snes" / "courses.json"
) -> list[list[float]]:
    """Returns the middle of a course's road as a list of points.

    Args:
        state: The course's start state, such as ``Level1``.
        courses: The file that describes the courses. HomebrewKart's build writes it.

    Returns:
        Points [x, y] in world pixels, in driving order.

    Raises:
        KartRewardsError: The file can't be read, or it has no such course.
    """
    lines = centrelines(courses)
    if state not in lines:
        raise KartRewardsError(f"{courses}: has no course with the start state {state!r}; it has {', '.join(lines)}")
    return lines[state]


def centrelines(courses: str | Path) -> dict[str, list[list[float]]]:
    """Returns the middle of the road of each course that a file describes: start state -> points [x, y].

    Raises:
        KartRewardsError: The file can't be read, or a course is not valid.
    """
    content: Any = load_json(courses).get("courses")
    lines: dict[str, list[list[float]]] = {}
    for course in content if isinstance(content, list) else [{}]:
        try:
            line = lines[str(course["state"])] = [[float(x), float(y)] for x, y in course["centreline"]]
            if len(line) < 3:
                raise ValueError
        except (LookupError, TypeError, ValueError):
            raise KartRewardsError(
                f'{courses}: is not {{"courses": [{{"state": NAME, "centreline": [[X, Y], …]}}, …]}}'
            ) from None
    return lines


def drive(env: Any, driver: Driver, seed: int = 1) -> Iterator[Any]:
    """Runs a driver in an environment, frame by frame. The iterator has no end: the caller decides when to stop.

    Args:
        env: A ``KartEnv`` with ``action_mode="all"`` and ``frame_skip=1``.
        driver: The driver.
        seed: Seed of the reset.

    Yields:
        The RAM snapshot after the reset, then the snapshot after each frame.
    """
    env.reset(seed=seed)
    while True:
        yield env.ram
        held = driver(env.ram)
        env.step([button in held for button in env.buttons])


def full_throttle(ram: KartState) -> Buttons:
    """Holds B and never steers."""
    return frozenset({"B"})


def reverse(ram: KartState) -> Buttons:
    """Holds Y: the kart brakes, then drives backwards."""
    return frozenset({"Y"})


def coast(ram: KartState) -> Buttons:
    """Holds no button."""
    return frozenset()


def turn_difference(wanted: float, direction: float) -> float:
    """Returns the shorter turn from ``direction`` to ``wanted``, in 1/256 turn: -128 (left) to 128 (right)."""
    return (wanted - direction + 128.0) % 256.0 - 128.0


class CentrelineDriver:
    """Follows a closed line: it steers towards a point ahead on the line (pure pursuit).

    The driver holds B. It releases B when the line ahead bends more than the kart can turn at its speed. If that is not
    enough, it hops and starts a drift.

    Args:
        centreline: Points [x, y] of the line in world pixels, in driving order. The last point is connected to the
            first.
        lookahead: Distance to the point ahead at speed 0, in pixels.
        lookahead_per_speed: Increase of that distance, in pixels per unit of speed.
        offset: Distance from the line in pixels; positive is right, negative is left.
        backward: Whether to drive the course in the wrong direction.
        hop: Whether the driver may hop.

    Raises:
        ValueError: The line has fewer than three points.
    """

    def __init__(
        self,
        centreline: Sequence[Sequence[float]],
        lookahead: float = 50.0,
        lookahead_per_speed: float = 0.045,
        offset: float = 0.0,
        backward: bool = False,
        hop: bool = True,
    ) -> None:
        points = [(float(x), float(y)) for x, y in centreline]
        if len(points) < 3:
            raise ValueError("a centreline needs at least three points")
        if backward:
            points.reverse()
        self._points = [self._beside(points, index, offset) for index in range(len(points))] if offset else points
        self._spacing = sum(
            math.dist(a, b) for a, b in zip(self._points, self._points[1:] + self._points[:1], strict=True)
        ) / len(self._points)
        self._lookahead = lookahead
        self._per_speed = lookahead_per_speed
        self._hop = hop
        self._nearest: int | None = None
        self._hopped = 0

    @staticmethod
    def _beside(points: list[tuple[float, float]], index: int, offset: float) -> tuple[float, float]:
        (ax, ay), (bx, by) = points[index - 1], points[(index + 1) % len(points)]
        length = math.hypot(bx - ax, by - ay) or 1.0
        x, y = points[index]
        return x - (by - ay) / length * offset, y + (bx - ax) / length * offset

    def _locate(self, x: float, y: float) -> int:
        """Returns the index of the nearest point. It searches near the last one first: straights may be parallel."""
        count = len(self._points)
        if self._nearest is not None:
            window = [(self._nearest + step) % count for step in range(-6, 13)]
            best = min(window, key=lambda k: math.dist(self._points[k], (x, y)))
            if math.dist(self._points[best], (x, y)) < 120.0:
                self._nearest = best
                return best
        self._nearest = min(range(count), key=lambda k: math.dist(self._points[k], (x, y)))
        return self._nearest

    def _error(self, x: float, y: float, direction: float, distance: float) -> float:
        """Returns the turn towards the point of the line ``distance`` pixels ahead, in 1/256 turn."""
        assert self._nearest is not None
        px, py = self._points[(self._nearest + max(1, round(distance / self._spacing))) % len(self._points)]
        wanted = math.atan2(px - x, y - py) / (2 * math.pi) * 256.0
        return turn_difference(wanted, direction)

    def __call__(self, ram: KartState) -> Buttons:
        """Returns the buttons to hold on the next frame."""
        x, y = ram.kart_x / 4.0, ram.kart_y / 4.0
        self._locate(x, y)
        speed = max(0, ram.speed)
        error = self._error(x, y, ram.kart_direction, self._lookahead + speed * self._per_speed)
        far = self._error(x, y, ram.kart_direction, self._lookahead + speed * self._per_speed * 2)
        held = set()
        # A turn of more than 40/256 is shorter without throttle.
        if abs(error) < 40.0 or speed < 300:
            held.add("B")
        if speed > 700 and abs(far) > 36.0 and abs(error) > 20.0:
            held.discard("B")
        # A D-pad steers fully or not at all, so a small error is ignored.
        if error > 2.0:
            held.add("RIGHT")
        elif error < -2.0:
            held.add("LEFT")
        self._hopped = max(0, self._hopped - 1)
        if self._hop and speed > 500 and abs(error) > 38.0 and self._hopped == 0:
            held.add("R" if error > 0 else "L")
            self._hopped = 60
        return frozenset(held)


class TurnAround:
    """Turns until the kart faces the opposite of its first direction, then drives straight on."""

    def __init__(self) -> None:
        self._first: int | None = None

    def __call__(self, ram: KartState) -> Buttons:
        """Returns the buttons to hold on the next frame."""
        if self._first is None:
            self._first = ram.kart_direction
        if abs(turn_difference(self._first + 128, ram.kart_direction)) > 16:
            return frozenset({"B", "RIGHT"})
        return frozenset({"B"})


class WallHugger:
    """Drives straight into a wall and then along the wall, in contact with it.

    Args:
        side: The side of the kart on which the wall is, ``LEFT`` or ``RIGHT``.

    Raises:
        ValueError: The side is neither.
    """

    def __init__(self, side: str = "LEFT") -> None:
        if side not in ("LEFT", "RIGHT"):
            raise ValueError(f"side must be LEFT or RIGHT, not {side!r}")
        self._side = side
        self._hit = False
        self._frame = 0

    def __call__(self, ram: KartState) -> Buttons:
        """Returns the buttons to hold on the next frame."""
        self._frame += 1
        self._hit = self._hit or ram.surface == WALL
        # After the first contact, steer towards the wall during every other quarter of a second.
        if self._hit and self._frame // 15 % 2:
            return frozenset({"B", self._side})
        return frozenset({"B"})


class RandomDriver:
    """Holds B alone or with one random button: LEFT, RIGHT or L.

    Args:
        seed: Drivers with the same seed hold the same buttons.
        hold: Number of frames until the next random choice.

    Raises:
        ValueError: ``hold`` is less than 1.
    """

    CHOICES: tuple[Buttons, ...] = (
        frozenset({"B"}),
        frozenset({"B", "LEFT"}),
        frozenset({"B", "RIGHT"}),
        frozenset({"B", "L"}),
    )

    def __init__(self, seed: int = 0, hold: int = 4) -> None:
        if hold < 1:
            raise ValueError("hold must be at least 1 frame")
        self._random = random.Random(seed)
        self._hold = hold
        self._left = 0
        self._held: Buttons = frozenset()

    def __call__(self, ram: KartState) -> Buttons:
        """Returns the buttons to hold on the next frame."""
        if self._left == 0:
            self._held = self._random.choice(self.CHOICES)
            self._left = self._hold
        self._left -= 1
        return self._held
