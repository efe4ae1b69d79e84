"""Drivers on positions typed by hand; tests/test_homebrew.py has them drive the courses in the emulator."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kart_rewards.drivers import (
    CentrelineDriver,
    RandomDriver,
    TurnAround,
    WallHugger,
    centreline,
    turn_difference,
)
from kart_rewards.errors import KartRewardsError

SQUARE = [(x, 900) for x in range(100, 900, 20)] + [(900, y) for y in range(900, 100, -20)]
SQUARE += [(x, 100) for x in range(900, 100, -20)] + [(100, y) for y in range(100, 900, 20)]


def kart(x: float, y: float, direction: int, speed: int = 500, surface: int = 0x40) -> Any:
    """A kart at world pixels (x, y); direction 0 is north, 64 east."""
    return SimpleNamespace(
        kart_x=round(x * 4), kart_y=round(y * 4), kart_direction=direction, speed=speed, surface=surface
    )


@pytest.mark.parametrize(
    ("wanted", "direction", "turn"), [(64, 0, 64), (0, 64, -64), (250, 5, -11), (5, 250, 11), (128, 0, -128)]
)
def test_turns_go_the_short_way_round(wanted: int, direction: int, turn: int) -> None:
    assert turn_difference(wanted, direction) == turn


@pytest.mark.parametrize(
    ("y", "direction", "steers"),
    [(900, 64, set()), (860, 64, {"RIGHT"}), (940, 64, {"LEFT"}), (900, 90, {"LEFT"}), (900, 40, {"RIGHT"})],
    ids=["on the line", "left of it", "right of it", "heading off to the right", "heading off to the left"],
)
def test_the_centreline_driver_steers_back_to_the_line(y: float, direction: int, steers: set[str]) -> None:
    assert CentrelineDriver(SQUARE)(kart(400, y, direction)) & {"LEFT", "RIGHT"} == steers


def test_an_offset_lies_to_the_right_and_backward_turns_round() -> None:
    assert CentrelineDriver(SQUARE, offset=40.0)(kart(400, 940, 64)) & {"LEFT", "RIGHT"} == set()
    assert CentrelineDriver(SQUARE, backward=True)(kart(400, 900, 192)) & {"LEFT", "RIGHT"} == set()


def test_drivers_with_a_seed_press_the_same() -> None:
    presses = [
        [driver(kart(0, 0, 0)) for _ in range(50)] for driver in (RandomDriver(1), RandomDriver(1), RandomDriver(2))
    ]
    assert presses[0] == presses[1] != presses[2]


def test_turning_around_ends() -> None:
    driver = TurnAround()
    assert driver(kart(0, 0, 10)) == {"B", "RIGHT"}
    assert driver(kart(0, 0, 138)) == {"B"}


def test_the_wall_hugger_leans_once_it_has_touched() -> None:
    driver = WallHugger("RIGHT")
    assert all(driver(kart(0, 0, 0)) == {"B"} for _ in range(40))
    assert any(driver(kart(0, 0, 0, surface=0x80)) == {"B", "RIGHT"} for _ in range(40))


def test_bad_arguments_are_told() -> None:
    with pytest.raises(ValueError, match="at least three points"):
        CentrelineDriver([(0, 0), (1, 1)])
    with pytest.raises(ValueError, match="side must be LEFT or RIGHT"):
        WallHugger("UP")
    with pytest.raises(ValueError, match="at least 1 frame"):
        RandomDriver(hold=0)
    with pytest.raises(KartRewardsError, match=r"no course with the start state 'Level9'; it has Level1, Level2"):
        centreline("Level9")
