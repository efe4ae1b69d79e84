"""A game that is played from its beginning to a start state.

* ``Session`` - the game, and what was pressed so far
* ``Moment`` - a point of a session to go back to
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

from kart_rewards.errors import KartRewardsError
from kart_rewards.files import atomic_write
from kart_rewards.games.console import Console
from kart_rewards.games.inputs import MOVIES, movie_start
from kart_rewards.integrations import Game, is_file
from kart_rewards.ram import RamLayout, read_snapshot, value_text

NOTHING: frozenset[str] = frozenset()
"""No button."""


@dataclass(frozen=True)
class Moment:
    """A point of a session to go back to.

    Args:
        snapshot: The emulator's snapshot, compressed.
        pressed: The buttons held on each frame. Frames after this point may follow.
        frames: Number of frames before this point.
    """

    snapshot: bytes
    pressed: list[frozenset[str]]
    frames: int


class Session:
    """A game that is played from its beginning to a start state.

    Args:
        game: The game.
        start: The state to begin from: a name or a path. None: the console is switched on.
        movie: The inputs. If they are a movie and ``start`` is None, the session begins where the movie begins.

    Attributes:
        console: The game's emulator.
        origin: Where the session began, for messages: ``power-on`` or ``state Level1``.
        beginning: The moment at which the session began.
        pressed: The buttons held on each frame since then.
        saved: Whether a state was written.

    Raises:
        KartRewardsError: The ROM, ``data.json`` or the state is missing or wrong.
    """

    def __init__(self, game: Game, start: str | None = None, movie: Path | None = None) -> None:
        rom = game.rom()
        layout = RamLayout.from_file(game.json_path("data")) if is_file(game.folder / "data.json") else None
        self.origin, snapshot = "power-on", None
        if start:
            self.origin, snapshot = f"state {start}", game.load_state(start)
        elif movie and movie.suffix in MOVIES:
            self.origin, snapshot = f"the start of {movie}", movie_start(movie)
        self.console = Console(rom, layout)
        self.saved = False
        self.pressed: list[frozenset[str]] = []
        if snapshot is not None:
            self.console.load(snapshot, self.origin)
        self.beginning = self.moment()
        if snapshot is not None:
            self.go_to(self.beginning)  # updates the picture

    def step(self, held: frozenset[str] = NOTHING) -> None:
        """Runs one emulated frame with these buttons held."""
        self.pressed.append(held)
        self.console.step(held)

    def table(self) -> list[str]:
        """Returns one line for each variable: its name and its value."""
        names = self.console.layout.names if self.console.layout else ()
        return [
            f"{name:<28} {value_text(value, 11):>11}" for name, value in zip(names, self.console.ram(), strict=True)
        ]

    def moment(self) -> Moment:
        """Returns the current point, to go back to."""
        return Moment(zlib.compress(self.console.em.get_state(), level=1), self.pressed, len(self.pressed))

    def go_to(self, moment: Moment) -> None:
        """Goes to another point, and restores the list of the buttons pressed up to it."""
        snapshot = zlib.decompress(moment.snapshot)
        self.console.load(snapshot)
        self.console.step()  # for the picture: the cores store none in a snapshot
        self.console.load(snapshot)
        self.pressed = moment.pressed[: moment.frames]  # a copy: other moments refer to the list with later frames

    def save(self, path: Path) -> None:
        """Writes the current state to a ``.state`` file, in stable-retro's format.

        The file appears only after a check: a fresh emulator loads it, reads the same RAM, and the game runs on.

        Raises:
            KartRewardsError: The file can't be written, or the check fails.
        """
        console = self.console
        snapshot, memory, screen = console.em.get_state(), dict(console.data.memory.blocks), console.screen
        try:
            with atomic_write(path) as file:
                file.write_bytes(gzip.compress(snapshot, mtime=0))  # without a time stamp: equal states, equal files
                self._check(file, memory)
            self.saved = True
        finally:
            console.load(snapshot)
            console.screen = screen

    def _check(self, file: Path, memory: dict[int, bytes]) -> None:
        self.console.power_on()
        self.console.load(read_snapshot(file), "not kept, because it can't be loaded again")
        if dict(self.console.data.memory.blocks) != memory:
            raise KartRewardsError("not kept: the RAM of the state differs when it is loaded again")
        if not self.console.runs_on():
            raise KartRewardsError("not kept: the game does not run on from here")
