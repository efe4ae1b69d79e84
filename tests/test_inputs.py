"""The buttons of each frame: from scripts, and from movies that stable-retro itself wrote."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import stable_retro
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kart_rewards.errors import KartRewardsError
from kart_rewards.games.inputs import button_masks, format_inputs, movie_start, parse_inputs, read_inputs
from kart_rewards.integrations import INTEGRATIONS

SNES = stable_retro.get_system_info("Snes")["buttons"]


def test_a_script_has_frames_and_the_buttons_held(tmp_path: Path) -> None:
    path = tmp_path / "boot.txt"
    path.write_text("\ufeff# boot\n\n60\n2 START   # the menu\n 30\tb + Left\r\n", encoding="utf-8")
    assert read_inputs(path, SNES) == [
        (60, frozenset()),
        (2, frozenset({"START"})),
        (30, frozenset({"B", "LEFT"})),
    ]


@pytest.mark.parametrize("line", ["B", "0", "-1 B", "1.5 B", "1e3", "9999999999", "30B", "² B"])
def test_a_wrong_line_is_reported_with_its_number(line: str) -> None:
    with pytest.raises(
        KartRewardsError, match=r"^boot\.txt, line 2: .* is not a number of frames \(1 or more\) and the"
    ):
        parse_inputs(f"60\n{line}\n", SNES, "boot.txt")


@pytest.mark.parametrize(
    ("line", "button"), [("30 C", "C"), ("30 B+", ""), ("30 B LEFT", "B LEFT"), ("3 None", "NONE")]
)
def test_an_unknown_button_is_reported_with_the_known_ones(line: str, button: str) -> None:
    gameboy = stable_retro.get_system_info("GameBoy")["buttons"]
    with pytest.raises(KartRewardsError) as raised:
        parse_inputs(f"{line}\n", gameboy, "boot.txt")
    assert str(raised.value) == (
        f"boot.txt, line 1: this console has no button {button!r}; it has B, SELECT, START, UP, DOWN, LEFT, RIGHT, A"
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "no such file"),
        ("none.bk2", None, "no such file"),
        ("empty.txt", b"", "has no inputs: each line is a number of frames"),
        ("comment.txt", b"# one second\n", "has no inputs: each line is a number of frames"),
        ("binary.txt", b"\xff\xfe\x00", "is not a text script of buttons. A movie's name must end in .bk2"),
        ("damaged.bk2", b"PK\x03\x04 and no more", "stable-retro can't read this movie: it is damaged"),
    ],
)
def test_an_unreadable_file_is_reported(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(KartRewardsError) as raised:
        read_inputs(tmp_path / name, SNES)
    assert str(raised.value).startswith(f"{tmp_path / name}: {message}")


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # other processes may use the processor
@given(st.lists(st.frozensets(st.sampled_from([name for name in SNES if name]))))
def test_formatted_inputs_are_parsed_to_the_same_inputs(frames: list[frozenset[str]]) -> None:
    assert [held for count, held in parse_inputs(format_inputs(frames), SNES) for _ in range(count)] == frames


def test_masks_have_the_cores_order() -> None:
    gameboy = stable_retro.get_system_info("GameBoy")["buttons"]
    masks = list(button_masks([(2, frozenset({"A", "START"})), (1, frozenset())], gameboy))
    assert [mask.tolist() for mask in masks] == [[0, 0, 0, 1, 0, 0, 0, 0, 1]] * 2 + [[0] * 9]
    assert {mask.dtype for mask in masks} == {np.dtype(np.uint8)}


def test_a_movie_of_stable_retro_is_read(tmp_path: Path) -> None:
    """A movie of two players, from a real emulator: the buttons of player 1, and the state at the start."""
    emulator = stable_retro.RetroEmulator(str(INTEGRATIONS / "HomebrewKart-Snes" / "rom.sfc"))
    emulator.step()
    snapshot = emulator.get_state()
    held = [frozenset({name}) for name in SNES] + [frozenset({"B", "LEFT"})] * 3 + [frozenset()] * 2
    movie = stable_retro.Movie(str(tmp_path / "race.bk2"), True, 2)
    movie.configure("HomebrewKart-Snes", emulator)
    movie.set_state(snapshot)
    for buttons in held:
        for i, button in enumerate(SNES):
            movie.set_key(i, button in buttons, 0)
            movie.set_key(i, button not in buttons, 1)
        movie.step()
    movie.close()
    del emulator
    gc.collect()
    expected = [(1, buttons) for buttons in held[: len(SNES)]] + [(3, held[len(SNES)]), (2, frozenset())]
    assert read_inputs(tmp_path / "race.bk2", SNES) == expected
    assert movie_start(tmp_path / "race.bk2") == snapshot
