"""stable-retro's emulator, of which a process can have one at a time.

* ``start_emulator`` - starts it
* ``console_of``, ``buttons_of`` - the console that a ROM is for, and its buttons
* ``game_runs_on`` - whether a loaded state is one of a running game
* ``SharedEmulator`` - the process's emulator, which several environments of one game take turns at

A turn costs a fifth of a frame on the SNES, for putting one game aside and taking up the other (``python
benchmarks/scoring.py``). That is less than a process for each environment costs on fewer cores: whenever these take
turns, the interpreter is fetched into the caches again (``python benchmarks/speed.py``).
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
    """Returns a fresh ``stable_retro.RetroEmulator``; the one before must no longer be referred to.

    Raises:
        KartRewardsError: It does not start: the ROM is not what its suffix says, or there is another emulator.
    """
    gc.collect()  # an emulator that is no longer referred to must be gone before the next
    try:
        return stable_retro.RetroEmulator(str(rom))
    except RuntimeError as error:
        raise KartRewardsError(f"{rom}: the emulator did not start: {error}") from None


def console_of(rom: Path) -> str:
    """Returns the console that a ROM is for, by stable-retro's name: ``Snes``. The file's suffix decides."""
    return str(stable_retro.get_romfile_system(str(rom)))


def buttons_of(console: str) -> list[str | None]:
    """Returns a console's buttons in the core's order; None where the core has no button at a place."""
    return list(stable_retro.get_system_info(console)["buttons"])


_FRAMES_TO_COUNT = 10  # in which current_frame must count up
_FRAMES_TO_MOVE = 60  # in which something must change, in a game without current_frame


def game_runs_on(em: Any, data: Any, read: Callable[[], Any] | None, step: Callable[[], object]) -> bool:
    """Whether time passes in the game from here on. A state of another ROM may load, and then the game stands still.

    ``current_frame`` must count up; in a game without this variable, RAM or picture must change.

    Args:
        em: stable-retro's emulator, with the state loaded. The check runs at most 61 frames.
        data: The ``GameData`` that is bound to it.
        read: Returns a ``RamSnapshot`` of now. None: the game has no known variables.
        step: Runs one emulated frame with no buttons held.
    """
    before = read() if read else None
    if hasattr(before, "current_frame"):
        assert read
        for _ in range(_FRAMES_TO_COUNT):
            step()
        return 1 <= (read().current_frame - before.current_frame) % 2**16 <= _FRAMES_TO_COUNT
    step()  # the picture before is not this state's
    memory, screen = dict(data.memory.blocks), em.get_screen()
    for _ in range(_FRAMES_TO_MOVE):
        step()
    return dict(data.memory.blocks) != memory or not np.array_equal(em.get_screen(), screen)


class Player(Protocol):
    """Who takes turns at a shared emulator."""

    def put_aside(self) -> None:
        """Saves its game, since another's turn begins."""

    def take_up(self) -> None:
        """Loads its game again, since its turn begins."""


class SharedEmulator:
    """The process's emulator. Who asks ``of`` for the same ROM shares it; it ends with the last who refers to it.

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
        """Returns the process's emulator, if it runs this ROM, or a new one. See the class."""
        running = cls._running and cls._running()
        if not running or running.rom != rom:
            running = None  # one that nobody else refers to must be gone
            running = cls(rom)
            cls._running = weakref.ref(running)
        return running

    def configure(self, data: Any) -> None:
        """Binds a ``stable_retro.data.GameData`` to the emulator's memory."""
        self.em.configure_data(data)
        self._data = data  # the emulator keeps a bare pointer to the latest

    def take(self, player: Player) -> None:
        """Begins a player's turn, if it is not its turn already. This runs once a step."""
        previous = self._player and self._player()
        if previous is player:
            return
        if previous:
            previous.put_aside()
        self._player = weakref.ref(player)
        player.take_up()

    def leave(self, player: Player) -> None:
        """Ends a player's turns: its game is not needed any more."""
        if self._player and self._player() is player:
            self._player = None
