"""Drives in the emulator again.

* ``replay`` - yields the screens of a drive, and checks that each frame is the recorded one
* ``DepartedError`` - a replay departs from its drive
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from kart_rewards.drives import Drive
from kart_rewards.env.core import fingerprints_of
from kart_rewards.errors import KartRewardsError
from kart_rewards.games.console import Console
from kart_rewards.integrations import find_game
from kart_rewards.ram import RamLayout


class DepartedError(KartRewardsError):
    """A frame of a replay is not the frame of the drive.

    Attributes:
        frame: The index of the frame.
    """

    def __init__(self, message: str, frame: int) -> None:
        super().__init__(message)
        self.frame = frame


def replay(drive: Drive, integrations: str | Path | None = None) -> Iterator[np.ndarray]:
    """Plays a drive again from its start state, with its buttons.

    stable-retro allows one emulator per process, so no environment may be open.

    Args:
        drive: The drive.
        integrations: The only folder to look for the game in. None: the standard lookup.

    Yields:
        The screen of each frame, uint8, shape (height, width, 3): ``len(drive)`` screens.

    Raises:
        DepartedError: A variable has another value than in the drive. The message names the frame.
        KartRewardsError: The drive has no start state, or its game or ROM is missing.

    Example:
        >>> from kart_rewards.testing import load_trace
        >>> sum(1 for screen in replay(load_trace("reverse")))
        601
    """
    name = drive.info.label or "the drive"
    if not drive.start:
        raise KartRewardsError(f"{name}: has no start state, so it can't be played again")
    game = find_game(drive.info.game, integrations)
    rom, layout = game.rom(), RamLayout.from_file(game.json_path("data"))
    shared = [variable for variable in layout.variables if variable.name in drive.columns]
    console = Console(rom, RamLayout(shared, layout.source))
    try:
        console.load(drive.start, name)
        for held in drive.all_buttons[: len(drive.lead)]:
            console.step(held)
        columns = [drive.columns[variable.name] for variable in shared]
        buttons = drive.buttons
        recorded = zip(*(column.tolist() for column in columns), strict=True)
        for frame, values in enumerate(recorded):
            if frame:
                console.step(buttons[frame])
            ram = console.ram()
            if tuple(ram) != values and [*map(_plain, ram)] != list(values):
                different = next(i for i, value in enumerate(values) if _plain(ram[i]) != value)
                other = [
                    part for part, known in fingerprints_of(rom).items() if drive.info.fingerprints.get(part) != known
                ]
                why = f": it was recorded with another {' and another '.join(other)}" if other else ""
                raise DepartedError(
                    f"{name}: the replay departs on frame {frame}: {shared[different].name} is {ram[different]}, and "
                    f"{values[different]} in the drive{why}",
                    frame,
                )
            yield console.screen
    finally:
        del console  # a reference to the exception would keep the process's only emulator alive


def _plain(value: int | tuple[int, ...]) -> int | list[int]:
    return list(value) if isinstance(value, tuple) else value
