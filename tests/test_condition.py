"""Conditions on RAM variables: their values, and the errors for wrong ones."""

from __future__ import annotations

import pytest

from kart_rewards.errors import KartRewardsError
from kart_rewards.games.condition import Condition
from kart_rewards.testing import snapshot

NAMES = snapshot()._fields


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("laps == 127 and current_frame > 60", True),
        ("laps == 128 or speed", False),
        ("not speed and surface == 0x40", True),
        ("0 <= speed < 900", True),
        ("0 < speed < 900", False),
        ("(checkpoint + 1) % num_checkpoints == 0", True),
        ("checkpoint + 1 % num_checkpoints == 0", False),
        ("surface & 0x40 == 64 and ~surface & 1 and surface >> 6 == 1 and 1 << 6 == surface", True),
        ("-checkpoint == 1 - num_checkpoints", True),
        ("current_frame // 7 == 51 and current_frame * 2 > 719.5 and surface ^ 64 == 0 and speed | 1", True),
        ("  laps == 127\n", True),
        ("True and laps != 127", False),
    ],
)
def test_conditions_have_pythons_meaning(text: str, holds: bool) -> None:
    condition = Condition(text, NAMES)
    assert condition(snapshot()) is holds
    assert condition(snapshot()._asdict()) is holds


def test_and_and_or_stop_at_the_part_that_decides() -> None:
    assert Condition("speed == 0 or 100 // speed > 1", NAMES)(snapshot())
    assert not Condition("speed != 0 and 100 // speed > 1", NAMES)(snapshot())


def test_before_is_an_earlier_snapshot() -> None:
    condition = Condition("speed > before.speed and laps == before.laps", NAMES, with_before=True)
    assert condition(snapshot(speed=10), snapshot())
    assert not condition(snapshot(), snapshot())
    assert condition.values(snapshot(speed=10), snapshot()) == "speed 10, before.speed 0, laps 127, before.laps 127"
    with pytest.raises(KartRewardsError, match=r"can't use 'before\.speed': there is no earlier snapshot here"):
        Condition("speed > before.speed", NAMES)


def test_a_variable_may_have_the_name_before() -> None:
    assert Condition("before == 3 and before.before == 2", ["before"], with_before=True)({"before": 3}, {"before": 2})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lap == 127", r"'lap == 127' names no RAM variable 'lap'. Did you mean 'laps'\? There are: laps, checkpoint,"),
        ("before.lap == 127", "names no RAM variable 'lap'"),
        ("laps = 127", r"'laps = 127' is not a condition \(write == to compare"),
        ("", "is not a condition"),
        ("laps ==", "is not a condition"),
        ("laps\x00", "is not a condition"),
        ("(" * 300 + "1" + ")" * 300, "is not a condition"),
        ("~" * 999 + "1", "is not a condition"),
        ("1" * 2000, "is longer than 1000 characters"),
        ("__import__('os').system('true')", "may hold only variables, numbers"),
        ("laps.__class__", r"'laps.__class__' is none of these"),
        ("before.__class__", r"no RAM variable '__class__'"),
        ("laps ** 2 == 4", r"'laps \*\* 2' is none of these"),
        ("laps in (1, 2)", "may hold only"),
        ("[x for x in (1,)]", "may hold only"),
        ("(lambda: 1)()", "may hold only"),
        ("(laps := 3)", "may hold only"),
        ("f'{laps}'", "may hold only"),
        ("'127' == laps", "\"'127'\" is none of these"),
        ("laps == 1j", "'1j' is none of these"),
        ("laps if speed else 0", "may hold only"),
    ],
)
def test_a_text_that_is_not_a_condition_is_reported(text: str, message: str) -> None:
    with pytest.raises(KartRewardsError, match=message):
        Condition(text, NAMES, with_before=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("100 // speed > 1", r"'100 // speed > 1' can't be worked out: .* by zero \(speed 0\)"),
        ("1 << current_frame > 0", r"shifts by 360 bits, not 0 to 64 \(current_frame 360\)"),
        ("1 >> -laps > 0", "shifts by -127 bits"),
        ("laps & 0.5", r"can't be worked out: unsupported operand"),
    ],
)
def test_a_condition_without_a_value_is_reported(text: str, message: str) -> None:
    with pytest.raises(KartRewardsError, match=message):
        Condition(text, NAMES)(snapshot())


def test_a_number_of_an_array_is_compared() -> None:
    ram, before = {"tiles": (3, 5), "at": 1}, {"tiles": (9, 7), "at": 0}
    assert Condition("tiles[1] == 5 and tiles[at] == 5", ["tiles", "at"])(ram)
    assert Condition("before.tiles[0] > tiles[0]", ["tiles"], with_before=True)(ram, before)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("tiles == 5", r"can't be worked out: an array has several numbers: write NAME\[0\] for the first one"),
        ("tiles[2] == 5", r"can't be worked out: tuple index out of range \(tiles \(3, 5\)\)"),
        ("at[0] == 5", "can't be worked out: 'int' object is not subscriptable"),
    ],
)
def test_an_array_is_not_a_number(text: str, why: str) -> None:
    with pytest.raises(KartRewardsError, match=why):
        Condition(text, ["tiles", "at"])({"tiles": (3, 5), "at": 1})
