"""Drivers at single positions. In tests/test_homebrew.py they drive the courses in the emulator."""

from __future__ import annotations

from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest

from kart_rewards.drivers import (
    CentrelineDriver,
    RandomDriver,
    TurnAround,
    WallHugger,
    centreline,
    coast,
    drive,
    full_throttle,
    reverse,
    turn_difference,
)
from kart_rewards.errors import KartRewardsError

SQUARE = [(x, 900) for x in range(100, 900, 20)] + [(900, y) for y in range(900, 100, -20)]
SQUARE += [(x, 100) for x in range(900, 100, -20)] + [(100, y) for y in range(100, 900, 20)]


def kart(x: float, y: float, direction: int, speed: int = 500, surface: int = 0x40) -> Any:
    """Returns a kart at world pixels (x, y); direction 0 is north, 64 is east."""
    return SimpleNamespace(
        kart_x=round(x * 4), kart_y=round(y * 4), kart_direction=direction, speed=speed, surface=surface
    )


@pytest.mark.parametrize(
    ("wanted", "direction", "turn"), [(64, 0, 64), (0, 64, -64), (250, 5, -11), (5, 250, 11), (128, 0, -128)]
)
def test_a_turn_is_the_shorter_one(wanted: int, direction: int, turn: int) -> None:
    assert turn_difference(wanted, direction) == turn


@pytest.mark.parametrize(
    ("y", "direction", "steers"),
    [(900, 64, set()), (860, 64, {"RIGHT"}), (940, 64, {"LEFT"}), (900, 90, {"LEFT"}), (900, 40, {"RIGHT"})],
    ids=["on the line", "left of it", "right of it", "heading off to the right", "heading off to the left"],
)
def test_the_centreline_driver_steers_back_to_the_line(y: float, direction: int, steers: set[str]) -> None:
    assert CentrelineDriver(SQUARE)(kart(400, y, direction)) & {"LEFT", "RIGHT"} == steers


def test_an_offset_is_to_the_right_and_backward_is_the_other_direction() -> None:
    assert CentrelineDriver(SQUARE, offset=40.0)(kart(400, 940, 64)) & {"LEFT", "RIGHT"} == set()
    assert CentrelineDriver(SQUARE, backward=True)(kart(400, 900, 192)) & {"LEFT", "RIGHT"} == set()


def test_a_random_driver_is_seeded_and_keeps_its_choice_for_some_frames() -> None:
    drivers = (RandomDriver(1, hold=4), RandomDriver(1, hold=4), RandomDriver(2, hold=4))
    first, second, other = ([driver(kart(0, 0, 0)) for _ in range(80)] for driver in drivers)
    assert first == second != other
    assert all(len(set(first[k : k + 4])) == 1 for k in range(0, 80, 4))
    assert set(first) == set(RandomDriver.CHOICES)


def test_constant_drivers_always_hold_the_same_buttons() -> None:
    assert full_throttle(kart(0, 0, 0)) == {"B"}
    assert reverse(kart(0, 0, 0)) == {"Y"}
    assert coast(kart(0, 0, 0)) == set()


def test_the_centreline_driver_releases_the_throttle_and_hops_in_a_sharp_bend() -> None:
    driver = CentrelineDriver(SQUARE)
    assert driver(kart(890, 900, 64, speed=100)) == {"B", "LEFT"}
    assert driver(kart(890, 900, 64, speed=800)) == {"L", "LEFT"}
    assert all(driver(kart(890, 900, 64, speed=800)) == {"LEFT"} for _ in range(59)), "one hop per second"
    assert driver(kart(890, 900, 64, speed=800)) == {"L", "LEFT"}
    assert CentrelineDriver(SQUARE, hop=False)(kart(890, 900, 64, speed=800)) == {"LEFT"}


def test_drive_yields_a_snapshot_per_frame_and_holds_what_the_driver_chose() -> None:
    class Env:
        buttons = ("B", None, "LEFT")
        ram = 0
        calls: list[Any] = []  # noqa: RUF012 - of the only instance

        def reset(self, seed: int) -> None:
            self.calls.append(("reset", seed))

        def step(self, action: list[bool]) -> None:
            self.ram += 1
            self.calls.append((self.ram, action))

    frames = drive(Env(), lambda ram: frozenset({"LEFT"}) if ram else frozenset({"B"}), seed=7)
    assert list(islice(frames, 3)) == [0, 1, 2]
    assert Env.calls == [("reset", 7), (1, [True, False, False]), (2, [False, False, True])]


def test_the_turn_around_driver_drives_straight_on_after_half_a_turn() -> None:
    driver = TurnAround()
    assert driver(kart(0, 0, 10)) == {"B", "RIGHT"}
    assert driver(kart(0, 0, 138)) == {"B"}


def test_the_wall_hugger_steers_to_the_wall_after_the_first_contact() -> None:
    driver = WallHugger("RIGHT")
    assert all(driver(kart(0, 0, 0)) == {"B"} for _ in range(40))
    assert any(driver(kart(0, 0, 0, surface=0x80)) == {"B", "RIGHT"} for _ in range(40))


def test_bad_arguments_are_reported() -> None:
    with pytest.raises(ValueError, match="at least three points"):
        CentrelineDriver([(0, 0), (1, 1)])
    with pytest.raises(ValueError, match="side must be LEFT or RIGHT"):
        WallHugger("UP")
    with pytest.raises(ValueError, match="at least 1 frame"):
        RandomDriver(hold=0)
    with pytest.raises(KartRewardsError, match=r"no course with the start state 'Level9'; it has Level1, Level2"):
        centreline("Level9")
