from __future__ import annotations

import os

import pytest

from kart_rewards import errors
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


@pytest.mark.parametrize(("columns", "wanted"), [(0, "80"), (120, None)])
def test_a_terminal_without_a_size_is_80_columns_wide(
    columns: int, wanted: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python 3.10 returns 0 for it, with which the parser of the options would never end. Later versions return 80."""
    monkeypatch.setattr(errors.shutil, "get_terminal_size", lambda: os.terminal_size((columns, 24)))
    monkeypatch.setenv("COLUMNS", "")  # so that it is restored
    monkeypatch.delenv("COLUMNS")
    seen: list[str | None] = []
    errors.run_command(lambda: seen.append(os.environ.get("COLUMNS")))
    assert seen == [wanted]
