from __future__ import annotations

import pytest

from kart_rewards.errors import counted, did_you_mean


def test_a_similar_name_is_suggested() -> None:
    assert did_you_mean("sped", ["laps", "speed", "spread"]) == " Did you mean 'speed'?"
    assert did_you_mean("sped", iter({"speed": 1})) == " Did you mean 'speed'?"


def test_nothing_is_suggested_without_a_similar_name() -> None:
    assert did_you_mean("altitude", ["laps", "speed"]) == ""
    assert did_you_mean("sped", []) == ""
    assert did_you_mean("new-game", ["games", "new"]) == ""


def test_a_common_suffix_does_not_make_names_similar() -> None:
    assert did_you_mean("reward", ["rewards", "utils"], ".py") == " Did you mean 'rewards.py'?"
    assert did_you_mean("missing", ["syn"], ".py") == ""


@pytest.mark.parametrize(
    ("number", "nouns", "text"),
    [
        (0, ("frame",), "0 frames"),
        (1, ("frame",), "1 frame"),
        (2, ("frame",), "2 frames"),
        (12_345, ("frame",), "12,345 frames"),
        (1, ("address", "addresses"), "1 address"),
        (3, ("address", "addresses"), "3 addresses"),
    ],
)
def test_a_number_has_its_noun_in_singular_or_plural(number: int, nouns: tuple[str, ...], text: str) -> None:
    assert counted(number, *nouns) == text
