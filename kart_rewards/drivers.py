"""Scripted drivers: what to press, given what the RAM says.

A driver is a callable that takes a snapshot of the game's RAM once a frame and returns the SNES buttons to hold for
that frame, as a frozenset of names. The snapshot needs the attributes ``kart_x`` and ``kart_y`` (quarter pixels,
0-4095), ``kart_direction`` (256 a turn, 0 north, clockwise), ``speed`` (256 = one pixel a frame) and ``surface``; our
:class:`~kart_rewards.ram.RamSnapshot` has them, and so does any object made by hand.

Drivers test courses and give a learned driver something to be compared with. They import no emulator.

Contents: :class:`CentrelineDriver`, :func:`full_throttle`, :func:`reverse`, :func:`coast`, :class:`WallHugger`,
:class:`TurnAround`, :class:`RandomDriver`; :func:`centreline` of HomebrewKart's courses; :func:`drive`, which puts a
driver into an environment.

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
    """What a driver looks at. Units: quarter pixels, 256 a turn, 256 = one pixel a frame, retail surface codes."""

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
    """Return the points [x, y], in world pixels and driving order, of the middle of a course's road.

    Args:
        state: The course's start state, such as ``Level1``.
        courses: The file that describes the courses; HomebrewKart's is written by its build.

    Raises:
        KartRewardsError: The file can't be read, or has no such course.
    """
    lines = {course["state"]: course["centreline"] for course in load_json(courses)["courses"]}
    if state not in lines:
        raise KartRewardsError(f"{courses}: has no course with the start state {state!r}; it has {', '.join(lines)}")
    return lines[state]


def drive(env: Any, driver: Driver, seed: int = 1) -> Iterator[Any]:
    """Let a driver play an environment, one emulated frame after the other, without end.

    Args:
        env: A ``KartEnv`` with ``action_mode="all"`` and ``frame_skip=1``.
        driver: Who drives.
        seed: Seed of the reset.

    Yields:
        The RAM snapshot after the reset, then after each frame.
    """
    env.reset(seed=seed)
    while True:
        yield env.ram
        held = driver(env.ram)
        env.step([button in held for button in env.buttons])


def full_throttle(ram: KartState) -> Buttons:
    """Hold B and never steer."""
    return frozenset({"B"})


def reverse(ram: KartState) -> Buttons:
    """Hold Y: brake, then roll backwards."""
    return frozenset({"Y"})


def coast(ram: KartState) -> Buttons:
    """Touch nothing."""
    return frozenset()


def turn_difference(wanted: float, direction: float) -> float:
    """Return the turn from ``direction`` to ``wanted``, both 256 a turn, as -128 (left) to 128 (right)."""
    return (wanted - direction + 128.0) % 256.0 - 128.0


class CentrelineDriver:
    """Follow a closed line by steering at a point some way ahead on it (pure pursuit).

    It holds B, lets go of it when the line ahead bends more than the kart can turn at its speed, and hops into a drift
    when even that is not enough. With ``backward=True`` it drives the course the wrong way round.

    Args:
        centreline: Points of the line in world pixels, in driving order; the last joins the first.
        lookahead: Distance to the point aimed at, in pixels, at standstill.
        lookahead_per_speed: Growth of that distance, in pixels per unit of speed.
        offset: Distance kept to the right of the line, in pixels (negative: left).
        backward: Drive against the course.
        hop: Whether the driver may hop.
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
        """Return the nearest point's number; search near the last one first, so that parallel straights do not swap."""
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
        """Return the turn (256 a turn) towards the line's point ``distance`` pixels ahead."""
        assert self._nearest is not None
        px, py = self._points[(self._nearest + max(1, round(distance / self._spacing))) % len(self._points)]
        wanted = math.atan2(px - x, y - py) / (2 * math.pi) * 256.0
        return turn_difference(wanted, direction)

    def __call__(self, ram: KartState) -> Buttons:
        """Return the buttons for this frame."""
        x, y = ram.kart_x / 4.0, ram.kart_y / 4.0
        self._locate(x, y)
        speed = max(0, ram.speed)
        error = self._error(x, y, ram.kart_direction, self._lookahead + speed * self._per_speed)
        far = self._error(x, y, ram.kart_direction, self._lookahead + speed * self._per_speed * 2)
        held = set()
        # Off by more than a sixth of a turn: slow is fast. 256 a turn.
        if abs(error) < 40.0 or speed < 300:
            held.add("B")
        if speed > 700 and abs(far) > 36.0 and abs(error) > 20.0:
            held.discard("B")
        # The D-pad knows no half lock: a small error is left alone, a medium one is steered off.
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
    """Drive in a circle until the kart faces against its first direction, then straight on."""

    def __init__(self) -> None:
        self._first: int | None = None

    def __call__(self, ram: KartState) -> Buttons:
        """Return the buttons for this frame."""
        if self._first is None:
            self._first = ram.kart_direction
        if abs(turn_difference(self._first + 128, ram.kart_direction)) > 16:
            return frozenset({"B", "RIGHT"})
        return frozenset({"B"})


class WallHugger:
    """Drive straight into a wall and keep scraping along it.

    Args:
        side: Side on which the wall is kept, "LEFT" or "RIGHT".
    """

    def __init__(self, side: str = "LEFT") -> None:
        if side not in ("LEFT", "RIGHT"):
            raise ValueError(f"side must be LEFT or RIGHT, not {side!r}")
        self._side = side
        self._hit = False
        self._frame = 0

    def __call__(self, ram: KartState) -> Buttons:
        """Return the buttons for this frame."""
        self._frame += 1
        self._hit = self._hit or ram.surface == WALL
        # Before the first contact straight on; after it, keep leaning to the wall every other quarter second.
        if self._hit and self._frame // 15 % 2:
            return frozenset({"B", self._side})
        return frozenset({"B"})


class RandomDriver:
    """Press at random: B mostly, a direction now and then, held for a few frames.

    Args:
        seed: Two drivers with the same seed press the same.
        hold: Frames for which a choice is kept.
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
        """Return the buttons for this frame."""
        if self._left == 0:
            self._held = self._random.choice(self.CHOICES)
            self._left = self._hold
        self._left -= 1
        return self._held
