"""Start states, made by hand: a real core, and a real window with real keys."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import forks
import numpy as np
import pytest
from command_line import run
from xvfb import Display, virtual_display, wait_until

from kart_rewards.env.core import buttons_of
from kart_rewards.games.inputs import read_inputs
from kart_rewards.games.session import Moment, Session
from kart_rewards.games.state_window import Rewind
from kart_rewards.integrations import INTEGRATIONS, Game
from kart_rewards.ram import read_state_file

KART = "HomebrewKart-Snes"
FILES = {"rom.sfc", "rom.sha", "data.json"}


@pytest.fixture
def games(tmp_path: Path) -> Path:
    """A folder with HomebrewKart, which has no state yet: only ROM, checksum and variables."""
    folder = tmp_path / "games"
    (folder / KART).mkdir(parents=True)
    for file in FILES:
        shutil.copy(INTEGRATIONS / KART / file, folder / KART)
    return folder


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_rewind_forgets_the_oldest_in_bounded_memory() -> None:
    rewind = Rewind(max_bytes=100)
    for frame in range(1000):
        rewind.push(Moment(bytes(30), [], frame))
    assert [rewind.pop() for _ in range(4)] == [Moment(bytes(30), [], frame) for frame in (999, 998, 997)] + [None]
    rewind.push(Moment(bytes(100), [], 1))
    assert rewind.pop() is not None


@pytest.fixture(scope="module")
def display(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Display]:
    with virtual_display(tmp_path_factory.mktemp("display")) as running:
        yield running


class Hand:
    """A person who uses the window of ``state --play``."""

    def __init__(self, display: Display, games: Path, *arguments: Any) -> None:
        self.display = display
        self._output = games.parent / "output.txt"
        options = [*map(str, arguments), "--play", "--integrations-path", str(games)]
        with self._output.open("w") as output:
            self.process = forks.Fork(
                [sys.executable, "-m", "kart_rewards", "state", *options],
                forks.COMMANDS,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | {"DISPLAY": display.name},
            )

    def press(self, *keys: str) -> None:
        self.display.xdotool("key", "--delay", "40", *keys)

    def hold(self, key: str, seconds: float) -> None:
        self.display.xdotool("keydown", key, "sleep", str(seconds), "keyup", key)

    def output(self) -> str:
        return self._output.read_text()

    def keep(self) -> int:
        """Keeps the state, and returns the number of frames that the command prints."""
        before = self.output().count("loaded again and checked")
        self.press("F5")
        wait_until(lambda: self.output().count("loaded again and checked") > before, "the state is kept")
        return int(self.output().rpartition(".state: ")[2].split()[0])

    def end(self) -> int:
        self.press("Escape")
        return self.process.wait(timeout=30)


@pytest.fixture
def play(display: Display, games: Path) -> Iterator[Callable[..., Hand]]:
    """Starts ``state --play`` with arguments. Each process ends with the test."""
    hands = []

    def start(*arguments: Any) -> Hand:
        hands.append(Hand(display, games, *arguments))
        wait_until(lambda: not display.is_dark(), "the window is open")
        return hands[-1]

    yield start
    for hand in hands:
        hand.process.kill()
        hand.process.wait()
    wait_until(display.is_dark, "the window is gone")


def test_by_hand_with_slots_rewind_and_frame_steps(games: Path, tmp_path: Path, play: Callable[..., Hand]) -> None:
    record = tmp_path / "hand.inputs"
    hand = play(KART, "Hand", "--until", "game_mode == 0x1c", "--record", record)
    counts = [-1]

    def is_paused() -> bool:  # the number of frames grows until the race begins and the condition pauses it
        hand.press("Return")
        hand.hold("f", 0.2)
        counts.append(hand.keep())
        return counts[-2] == counts[-1]

    wait_until(is_paused, "the race begins")
    at_go = counts[-1]
    assert read_state_file(games / KART / "Hand.state")[0][0xB5] == 0x1C

    hand.press("F2", "n", "n", "n", "5", "F3")  # slot 1 is saved; slot 5 is empty
    assert hand.keep() == at_go + 3
    hand.press("1", "F3")
    assert hand.keep() == at_go
    screen = Session(Game(KART, games / KART), start="Hand").console.screen
    shown = cv2.resize(screen, None, fx=3, fy=3, interpolation=cv2.INTER_NEAREST)
    assert np.array_equal(hand.display.picture()[: shown.shape[0], : shown.shape[1]], shown)

    def is_back() -> bool:
        hand.hold("BackSpace", 0.1)
        return hand.keep() < at_go

    wait_until(is_back, "a moment before the slot is back")
    rewound = hand.keep()
    hand.press("F9")
    assert hand.keep() == 0
    hand.hold("BackSpace", 0.1)  # which also undoes the jump to the beginning
    assert 0 < hand.keep() <= rewound
    hand.press("F3", "p")
    assert hand.keep() >= at_go
    hand.press("p")
    assert hand.keep() > at_go
    hand.hold("z", 0.1)  # no effect while it is paused
    hand.display.xdotool("keydown", "z", "keydown", "Left", "key", "n", "sleep", "0.2", "keyup", "z", "keyup", "Left")
    frames = hand.keep()
    assert hand.end() == 0, hand.output()

    pressed = read_inputs(record, buttons_of("Snes"))
    assert sum(count for count, _ in pressed) == frames
    assert pressed[-1] == (1, frozenset({"B", "LEFT"}))
    assert {name for _, held in pressed[:-1] for name in held} == {"START"}
    done = run("state", KART, "Again", "--inputs", record, "--integrations-path", games)
    assert f"{frames} frames from power-on" in done.stdout
    assert read_state_file(games / KART / "Again.state") == read_state_file(games / KART / "Hand.state")


def test_what_can_not_be_written_is_shown_in_the_window_and_the_game_goes_on(
    games: Path, play: Callable[..., Hand]
) -> None:
    hand = play(KART, "Hand")
    in_the_way = games / KART / ".Hand.partial.state"
    in_the_way.mkdir()
    message = np.s_[24:48, 800:]
    before = hand.display.picture()[message]
    hand.press("F5")
    wait_until(lambda: not np.array_equal(hand.display.picture()[message], before), "the message changes")
    assert not (games / KART / "Hand.state").exists()
    in_the_way.rmdir()
    assert hand.keep() > 0
    hand.process.send_signal(signal.SIGINT)
    assert hand.process.wait(timeout=30) == 130
    assert "Traceback" not in hand.output()
    assert (games / KART / "Hand.state").exists()


def test_a_window_closed_too_early_is_an_error(games: Path, play: Callable[..., Hand]) -> None:
    hand = play(KART, "Hand", "--default")
    assert hand.end() == 2
    assert hand.output() == "error: the window was closed before a state was kept: F5 keeps it\n"
    assert files_in(games / KART) == FILES
