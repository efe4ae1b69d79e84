"""stable-retro's emulator. A process can have one at a time.

* ``start_emulator`` - starts an emulator
* ``console_of``, ``buttons_of`` - the console of a ROM, and the buttons of a console
* ``game_runs_on`` - whether a loaded state is one of a running game
* ``SharedEmulator`` - the emulator of this process; several environments of one game use it in turns
* ``Player`` - the interface of such an environment

A change of turns saves one game and loads the other. On the SNES it takes a fifth of the time of an emulated frame
(``python benchmarks/scoring.py``). One process per environment would take more on a machine with fewer cores than
environments, because each switch of processes loads the interpreter into the caches again (``python
benchmarks/speed.py``).
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import stable_retro

from kart_rewards.errors import KartRewardsError


def start_emulator(rom: Path) -> Any:
    """Returns a new ``stable_retro.RetroEmulator``. There must be no reference to a previous one.

    Args:
        rom: The ROM. Its suffix decides the console.

    Raises:
        KartRewardsError: The emulator does not start: the ROM does not belong to the console of its suffix, or this
            process has another emulator.
    """
    gc.collect()  # deletes a previous emulator, if only a reference cycle keeps it
    try:
        return stable_retro.RetroEmulator(str(rom))
    except RuntimeError as error:
        raise KartRewardsError(f"{rom}: the emulator did not start: {error}") from None


def console_of(rom: Path) -> str:
    """Returns stable-retro's name of a ROM's console, such as ``Snes``. The suffix of the file decides."""
    return str(stable_retro.get_romfile_system(str(rom)))


def buttons_of(console: str) -> list[str | None]:
    """Returns a console's buttons in the core's order; None where the core has no button."""
    return list(stable_retro.get_system_info(console)["buttons"])


_FRAMES_TO_COUNT = 10  # current_frame must count up within this many frames
_FRAMES_TO_MOVE = 60  # RAM or screen must change within this many frames, in a game without current_frame


def game_runs_on(em: Any, data: Any, read: Callable[[], Any] | None, step: Callable[[], object]) -> bool:
    """Returns whether the game continues from a loaded state.

    The emulator may accept a state of another ROM; then the game hangs. This function checks that ``current_frame``
    counts up. In a game without this variable, it checks that RAM or screen changes.

    Args:
        em: stable-retro's emulator, with the state loaded. This function runs it for at most 61 frames.
        data: The ``GameData`` that is bound to the emulator.
        read: Returns a ``RamSnapshot`` of live memory. None if the game's variables are not known.
        step: Runs one emulated frame without buttons.
    """
    before: Any = read() if read else None
    if read and hasattr(before, "current_frame"):
        for _ in range(_FRAMES_TO_COUNT):
            step()
        return 1 <= (read().current_frame - before.current_frame) % 2**16 <= _FRAMES_TO_COUNT
    step()  # the screen shows a loaded state only after a frame
    memory, screen = dict(data.memory.blocks), em.get_screen()
    for _ in range(_FRAMES_TO_MOVE):
        step()
    return dict(data.memory.blocks) != memory or not np.array_equal(em.get_screen(), screen)


class Player(Protocol):
    """An environment that uses a shared emulator in turns."""

    def put_aside(self) -> None:
        """Saves the game. It is called at the end of this player's turn."""

    def take_up(self) -> None:
        """Loads the saved game. It is called at the beginning of this player's turn."""


class SharedEmulator:
    """The emulator of this process. ``SharedEmulator.of`` returns the same one for the same ROM.

    The emulator ends when nothing refers to it any more.

    Args:
        rom: The game's ROM.

    Attributes:
        em: stable-retro's emulator.

    Raises:
        KartRewardsError: See ``start_emulator``.
    """

    _running: ClassVar[weakref.ref[SharedEmulator] | None] = None

    def __init__(self, rom: Path) -> None:
        self.rom = rom
        self.em = start_emulator(rom)
        self._player: weakref.ref[Player] | None = None
        self._data: Any = None

    @classmethod
    def of(cls, rom: Path) -> SharedEmulator:
        """Returns the emulator of this process if it runs this ROM, else a new one.

        Raises:
            KartRewardsError: See ``start_emulator``. There must be no reference to an emulator of another ROM.
        """
        running = cls._running and cls._running()
        if not running or running.rom != rom:
            running = None  # the only reference must not keep the old emulator while the new one starts
            running = cls(rom)
            cls._running = weakref.ref(running)
        return running

    def configure(self, data: Any) -> None:
        """Binds a ``stable_retro.data.GameData`` to the emulator's memory."""
        self.em.configure_data(data)
        self._data = data  # the emulator keeps only a raw pointer to the latest data

    def take(self, player: Player) -> None:
        """Begins a player's turn, unless it is that player's turn already. This method runs once per step."""
        previous = self._player and self._player()
        if previous is player:
            return
        if previous:
            previous.put_aside()
        self._player = weakref.ref(player)
        player.take_up()

    def leave(self, player: Player) -> None:
        """Ends the last turn of a player, without saving its game."""
        if self._player and self._player() is player:
            self._player = None
