"""stable-retro's emulator. A process can have one at a time.

* ``start_emulator`` - starts an emulator
* ``console_of``, ``buttons_of`` - the console of a ROM, and the buttons of a console
* ``game_runs_on`` - whether a loaded state is one of a running game
* ``SharedEmulator`` - the emulator of this process; several environments of one game use it in turns
* ``Player`` - the interface of such an environment
* ``SLOW_TURNS``, ``INEXACT_STATES`` - consoles on which each environment should, or must, have a process of its own

A change of turns saves one game and loads the other. On the SNES it takes a fifth of the time of an emulated frame
(``python benchmarks/scoring.py``). One process per environment would take more on a machine with fewer cores than
environments, because each switch of processes loads the interpreter into the caches again (``python
benchmarks/speed.py``).
"""

from __future__ import annotations

import gc
import hashlib
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import stable_retro

from kart_rewards.errors import KartRewardsError
from kart_rewards.ram import RamLayout

SLOW_TURNS = {
    "Atari2600": "stable-retro starts its core again at each change of turns, which takes the time of many frames, and "
    "0.14 MB of memory that is never freed",
    "N64": "its core saves and loads 17 MB at each change of turns",
    "NintendoDs": "its core saves and loads 7 MB at each change of turns",
}
"""Console -> why a change of turns is slow on it."""
INEXACT_STATES = {
    "32x": "its core leaves clock cycles out of the states that it saves",
    "FBNeo": "its core leaves the direction of the stick out of the states that it saves",
}
"""Console -> why environments can't take turns on it: a game does not run on from its state as if alone."""

_SHOWN_ROWS = {"32x": 224}
"""Console -> rows of the picture. stable-retro reads 240 rows from picodrive, the last of them behind the picture."""
_KEEPS_BUTTONS = {"Sms", "32x", "FBNeo"}
"""Consoles whose core knows which buttons were held on the last frame, but does not save it in its states."""
_MOVES_MEMORY = {"Atari2600"}
"""Consoles whose RAM is at another place of the process's memory after a state is loaded."""


def start_emulator(rom: Path) -> Any:
    """Returns a new ``stable_retro.RetroEmulator``. There must be no reference to a previous one.

    Args:
        rom: The ROM. Its suffix decides the console.

    Raises:
        KartRewardsError: The emulator does not start: the ROM does not belong to the console of its suffix, or this
            process has another emulator.
    """
    gc.collect()  # deletes a previous emulator, if only a reference cycle keeps it
    emulator = _CroppedEmulator if console_of(rom) in _SHOWN_ROWS else stable_retro.RetroEmulator
    try:
        return emulator(str(rom))
    except RuntimeError as error:
        raise KartRewardsError(f"{rom}: the emulator did not start: {error}") from None


class _CroppedEmulator(stable_retro.RetroEmulator):
    """An emulator that returns only the rows of the picture that its core draws."""

    def __init__(self, rom: str) -> None:
        super().__init__(rom)
        self._rows = _SHOWN_ROWS[console_of(Path(rom))]

    def get_screen(self) -> np.ndarray:
        screen: np.ndarray = super().get_screen()
        return screen[: self._rows]


def console_of(rom: Path) -> str:
    """Returns stable-retro's name of a ROM's console, such as ``Snes``. The suffix of the file decides."""
    return str(stable_retro.get_romfile_system(str(rom)))


def fingerprints_of(rom: Path) -> dict[str, str]:
    """Returns hashes of a ROM and of the emulator's core for it: what decides how a game runs, beside the inputs."""
    library = stable_retro.data.EMU_INFO[console_of(rom)]["lib"]
    [core, *_] = Path(stable_retro.__file__).parent.glob(f"cores/{library}_libretro.[!j]*")  # not its .json
    return {name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for name, path in (("ROM", rom), ("core", core))}


def buttons_of(console: str) -> list[str | None]:
    """Returns a console's buttons in the core's order; None where the core has no button."""
    return list(stable_retro.get_system_info(console)["buttons"])


_FRAMES_TO_COUNT = 11  # current_frame must count up within this many frames; a prime, so a small counter shows it too
_FRAMES_TO_MOVE = 60  # RAM or screen must change within this many frames, in a game without current_frame


def game_runs_on(
    em: Any, data: Any, layout: RamLayout | None, read: Callable[[], Any], step: Callable[[], object]
) -> bool:
    """Returns whether the game continues from a loaded state.

    The emulator may accept a state of another ROM; then the game hangs. This function checks that ``current_frame``
    counts up. In a game without this variable, it checks that RAM or screen changes.

    Args:
        em: stable-retro's emulator, with the state loaded. This function runs it for at most 61 frames.
        data: The ``GameData`` that is bound to the emulator.
        layout: The game's variables. None if they are not known.
        read: Returns a ``RamSnapshot`` of live memory with these variables.
        step: Runs one emulated frame without buttons.
    """
    counter = next((each for each in layout.variables if each.name == "current_frame"), None) if layout else None
    if counter:
        before = read().current_frame
        for _ in range(_FRAMES_TO_COUNT):
            step()
        numbers = counter.highest - counter.lowest + 1  # after so many frames, it begins again
        if counter.mask is not None:
            numbers = min(numbers, counter.mask + 1)
        return 1 <= (read().current_frame - before) % numbers <= _FRAMES_TO_COUNT
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
        console: stable-retro's name of the console.
        players: The environments that use this emulator.

    Raises:
        KartRewardsError: See ``start_emulator``.
    """

    faults: ClassVar[dict[Path, str]] = {}
    """ROM -> why environments can't take turns, or an empty text. Child processes need not find out again."""

    _running: ClassVar[weakref.ref[SharedEmulator] | None] = None

    def __init__(self, rom: Path) -> None:
        self.rom = rom
        self.console = console_of(rom)
        self.em = start_emulator(rom)
        self.players: weakref.WeakSet[Player] = weakref.WeakSet()
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

    def load(self, data: Any, snapshot: bytes, held: np.ndarray) -> bool:
        """Loads a state of a game. Returns whether the core accepts it.

        Args:
            data: The ``GameData`` of the player that loads it.
            snapshot: The state.
            held: The buttons that were held on the frame before the state was saved: a mask.
        """
        if self.console in _MOVES_MEMORY and self._data is not data:
            self.configure(data)  # the emulator lets only this data know where its memory lies
        if self.console in _KEEPS_BUTTONS:
            self.em.set_button_mask(held, 0)
            self.em.step()
        return bool(self.em.set_state(snapshot))

    def take(self, player: Player) -> None:
        """Begins a player's turn, unless it is that player's turn already. This method runs once per step."""
        previous = self._player and self._player()
        if previous is player:
            return
        if previous:
            previous.put_aside()
        self._player = weakref.ref(player)
        self.players.add(player)
        player.take_up()

    def leave(self, player: Player) -> None:
        """Ends the last turn of a player, without saving its game."""
        self.players.discard(player)
        if self._player and self._player() is player:
            self._player = None
