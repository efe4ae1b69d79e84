"""A game's emulator without an environment around it: for making start states and for checking a game.

* ``Console`` - a console with one ROM: it runs frames, loads states, and reads the screen and the variables
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import stable_retro

from kart_rewards.env.core import buttons_of, console_of, game_runs_on, start_emulator
from kart_rewards.errors import KartRewardsError
from kart_rewards.ram import RamLayout

_NOTHING: frozenset[str] = frozenset()


class Console:
    """A console that is switched on, with a ROM in it. stable-retro allows one emulator per process.

    Args:
        rom: The ROM.
        layout: The variables to read. None: no variables are known.

    Attributes:
        name: stable-retro's name of the console, such as ``Snes``.
        buttons: The console's buttons, in the core's order; None where the core has no button at a position.
        layout: The variables that ``ram`` reads, or None.
        screen: The latest picture, uint8 (height, width, 3).
        frames_per_second: The console's own speed.
        em: stable-retro's emulator.
        data: stable-retro's ``GameData``, bound to the emulator.

    Raises:
        KartRewardsError: The emulator does not start, or a variable lies outside the console's memory.

    Example:
        >>> from kart_rewards.integrations import find_game
        >>> console = Console(find_game("HomebrewKart-Snes").rom())
        >>> console.name, console.screen.shape, round(console.frames_per_second)
        ('Snes', (224, 256, 3), 60)
        >>> console.step(frozenset({"START"}))
    """

    def __init__(self, rom: Path, layout: RamLayout | None = None) -> None:
        self._rom = rom
        self.name = console_of(rom)
        self.buttons = buttons_of(self.name)
        self.layout = layout
        self.power_on()

    def power_on(self) -> None:
        """Switches the console off and on: starts a fresh emulator. One frame passes, as in stable-retro."""
        self.em: Any = None  # the old emulator must be gone before the new one starts
        self.data: Any = None
        self.em = start_emulator(self._rom)
        self.data = stable_retro.data.GameData()
        self.em.configure_data(self.data)
        self.em.step()
        self.screen: np.ndarray = self.em.get_screen()
        self.frames_per_second: float = self.em.get_screen_rate()
        self.set_layout(self.layout)

    def set_layout(self, layout: RamLayout | None) -> None:
        """Sets the variables that ``ram`` reads.

        Raises:
            KartRewardsError: A variable lies outside the console's memory.
        """
        self._read: Callable[[], Any] | None = layout.reader(self.data) if layout else None
        self.layout = layout

    def step(self, held: frozenset[str] = _NOTHING) -> None:
        """Runs one emulated frame with these buttons held."""
        self.em.set_button_mask(np.array([name in held for name in self.buttons], np.uint8), 0)
        self.em.step()
        self.screen = self.em.get_screen()

    def load(self, snapshot: bytes, source: str = "the state") -> None:
        """Loads a state of the game. ``screen`` stays as it is until the next frame.

        Args:
            snapshot: The emulator's snapshot.
            source: The name of the state in the error message.

        Raises:
            KartRewardsError: The emulator refuses the snapshot.
        """
        if not self.em.set_state(snapshot):
            raise KartRewardsError(
                f"{source}: the emulator refuses it: it is damaged, or it is from another console or another core"
            )

    def ram(self) -> Any:
        """Returns the ``RamSnapshot`` of the current frame; an empty tuple if no variables are known."""
        return self._read() if self._read else ()

    def runs_on(self) -> bool:
        """Returns whether time passes in the game. The check runs at most 61 frames. See ``game_runs_on``."""
        return game_runs_on(self.em, self.data, self.layout, self.ram, self.step)
