"""Games on disk, in stable-retro's own layout: one folder a game.

* ``INTEGRATIONS`` - the folder of the games that come with the project
* ``find_game``, ``list_games`` - games by name
* ``Game`` - one game's folder: ROM, states, data and scenario files, each checked as it is asked for
* ``system_of``, ``rom_sha1`` - the console that a game's name ends in; a ROM's checksum
* ``command`` - what a person is to type

A game's folder holds ``data.json`` (variables), ``scenario.json`` (what a run pays and when it ends), ``metadata.json``
(the default state), ``rom.sha`` (SHA-1 of the ROM), the ROM itself (``rom.sfc`` and the like) and start states
(``*.state``).

stable-retro is imported only where a ROM is looked at, so that listing games stays cheap.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shlex
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from kart_rewards.errors import KartRewardsError, did_you_mean
from kart_rewards.ram import load_json, read_snapshot

_BESIDE_PACKAGE = Path(__file__).parent.parent / "integrations"
_INSIDE_PACKAGE = Path(__file__).parent / "integrations_data"
INTEGRATIONS = _BESIDE_PACKAGE if _BESIDE_PACKAGE.is_dir() else _INSIDE_PACKAGE
"""The games that come with the project: beside the package in a checkout, inside it in an installed wheel."""

LARGEST_ROM_BYTES = 2**30  # a Saturn's compact disc is 700 MB
_INES_HEADER_BYTES = 16  # of a NES ROM; kept, but no part of what stable-retro takes the SHA-1 of


class MissingRomError(KartRewardsError):
    """The game is known, but its ROM is not there."""


def list_games(integrations: str | Path = INTEGRATIONS) -> list[str]:
    """Returns the names of the games in a folder of integrations, sorted."""
    return sorted(path.parent.name for path in Path(integrations).glob("*/data.json"))


def find_game(name: str, integrations: str | Path = INTEGRATIONS) -> Game:
    """Returns the game called ``name``.

    Raises:
        KartRewardsError: There is none of that name, or no such folder of integrations.
    """
    folder = Path(integrations)
    if not folder.is_dir():
        raise KartRewardsError(f"{folder}: no such folder of integrations")
    games = list_games(folder)
    if name not in games:
        if not os.access(folder, os.R_OK | os.X_OK):
            raise KartRewardsError(f"{folder}: may not be read: change its permissions")
        if (folder / name).is_dir():
            raise KartRewardsError(f"{folder / name}: is no game's folder: it has no data.json, or may not be read")
        raise KartRewardsError(
            f"unknown game {name!r}.{did_you_mean(name, games)} {folder} holds {', '.join(games) or 'no games'}"
        )
    return Game(name, folder / name)


def command(words: str, integrations: Path) -> str:
    """Returns a command of this package, for a person to type, about a folder of games."""
    where = "" if integrations == INTEGRATIONS else f" --integrations-path {shlex.quote(str(integrations))}"
    return f"python -m kart_rewards {words}{where}"


@dataclass(frozen=True)
class Game:
    """One game's folder.

    Args:
        name: The folder's name, and the environment's id.
        folder: Where it lies.
    """

    name: str
    folder: Path

    def rom(self) -> Path:
        """Returns the ROM, checked against ``rom.sha``.

        Raises:
            MissingRomError: There is no ROM.
            KartRewardsError: It is another ROM than ``rom.sha`` names.
        """
        path = self.rom_path()
        if not is_file(path):
            raise MissingRomError(
                f"{self.name} has no ROM: there is none ({path.name}) in {self.folder}. Import your own dump of the "
                f"game: {self.command('import PATH')}"
            )
        wanted = self.rom_hashes()
        try:
            with path.open("rb") as file:
                sha1 = rom_sha1(file)[0]
        except OSError as error:
            raise KartRewardsError(f"{path}: can't be read: {error.strerror}") from None
        if sha1 not in wanted:
            raise KartRewardsError(
                f"{path}: is not the ROM that {self.name} needs: its SHA-1 is {sha1}, and {self.folder / 'rom.sha'} "
                f"names {' or '.join(wanted) or 'none'}. Import the right dump: {self.command('import PATH')}"
            )
        return path.resolve()

    def command(self, words: str) -> str:
        """Returns a command of this package, for a person to type, that finds the game where it is."""
        return command(words, self.folder.parent)

    def rom_path(self, suffix: str = ".sfc") -> Path:
        """Returns where the ROM lies, or is to lie: ``rom.sfc`` and the like, as stable-retro looks for it.

        An arcade game's has the name that ``metadata.json`` gives as ``original_rom_name``: its core goes by that,
        while stable-retro wants a ``rom.zip`` beside it.

        Args:
            suffix: What the name ends in, if neither a ROM that is there nor the game's own name tells.
        """
        from stable_retro import data as retro_data

        with suppress(KartRewardsError):
            original = load_json(self.folder / "metadata.json").get("original_rom_name")
            if isinstance(original, str):
                return self.folder / Path(original).name
        own = [f".{extension}" for extension in retro_data.EMU_INFO.get(system_of(self.name), {}).get("ext", [])]
        first = suffix if suffix in retro_data.EMU_EXTENSIONS else ".sfc"
        paths = [self.folder / f"rom{suffix}" for suffix in own or (first, *retro_data.EMU_EXTENSIONS)]
        return next((path for path in paths if is_file(path)), paths[0])

    def rom_hashes(self) -> list[str]:
        """Returns the SHA-1 sums that ``rom.sha`` allows.

        Raises:
            KartRewardsError: The file is missing.
        """
        path = self.folder / "rom.sha"
        try:
            return path.read_text().lower().split()
        except (OSError, UnicodeDecodeError) as error:
            raise KartRewardsError(f"{path}: can't be read: {error}: it must hold the ROM's SHA-1") from None

    def states(self) -> list[str]:
        """Returns the names of the start states, sorted."""
        return sorted(path.stem for path in self.folder.glob("*.state"))

    def default_state(self) -> str:
        """Returns the name of the state that ``metadata.json`` starts from.

        Raises:
            KartRewardsError: It names none.
        """
        path = self.folder / "metadata.json"
        name = load_json(path).get("default_state")
        if not isinstance(name, str):
            raise KartRewardsError(f'{path}: names no "default_state": {self._how_to_make_a_state(default=True)}')
        return name

    def state_path(self, state: str | Path) -> Path:
        """Returns where a start state lies: ``Level1`` is the folder's ``Level1.state``; or any ``.state`` by its path.

        Raises:
            KartRewardsError: There is none.
        """
        path = self._file(state, ".state")
        if not path.is_file():
            states = ", ".join(self.states())
            remedy = f"it has {states}" if states else f"it has none yet: {self._how_to_make_a_state()}"
            raise KartRewardsError(f"{path}: no such start state of {self.name}; {remedy}")
        return path

    def _how_to_make_a_state(self, default: bool = False) -> str:
        return f"make one: {self.command(f'state {self.name} start --play')}{' --default' if default else ''}"

    def load_state(self, state: str | Path) -> bytes:
        """Returns the emulator's snapshot that a start state holds.

        Raises:
            KartRewardsError: There is no such state, or the file is damaged.
        """
        return read_snapshot(self.state_path(state))

    def json_path(self, name: str | Path) -> Path:
        """Returns where a data or scenario file lies: ``sprint`` is the folder's ``sprint.json``, or a path.

        Raises:
            KartRewardsError: There is none.
        """
        path = self._file(name, ".json")
        if not path.is_file():
            files = ", ".join(sorted(file.name for file in self.folder.glob("*.json")))
            raise KartRewardsError(f"{path}: no such file; {self.folder} holds {files or 'no .json file'}")
        return path.resolve()

    def _file(self, name: str | Path, suffix: str) -> Path:
        """A file by its name in the folder, with or without its suffix, or by its path."""
        if not str(name).endswith(suffix):
            return self.folder / f"{name}{suffix}"
        own = self.folder / name
        return own if own.is_file() else Path(name)


def system_of(name: str) -> str | None:
    """Returns the console that a game's name ends in, as stable-retro calls it (``Snes``); None if it names none."""
    from stable_retro import data as retro_data

    console = re.sub(r"-v\d+$", "", name).rpartition("-")[2]
    return console if console in retro_data.EMU_INFO else None


def rom_sha1(file: IO[bytes], skip: int = 0) -> tuple[str, int]:
    """Returns a ROM's SHA-1 as ``rom.sha`` holds it, and how many bytes it has.

    Args:
        file: The ROM, open.
        skip: How many bytes lie before it.

    Raises:
        OSError: It can't be read, or is larger than any ROM.
    """
    digest, size = hashlib.sha1(usedforsecurity=False), 0
    file.seek(skip)
    while chunk := file.read(2**20):
        digest.update(chunk[_INES_HEADER_BYTES:] if not size and chunk.startswith(b"NES\x1a") else chunk)
        size += len(chunk)
        if size > LARGEST_ROM_BYTES:
            raise OSError(errno.EFBIG, f"it is larger than any ROM ({LARGEST_ROM_BYTES // 2**20} MiB)")
    return digest.hexdigest(), size


def is_file(path: Path) -> bool:
    """Whether there is a plain file. Unlike ``Path.is_file`` it does not raise in a locked folder."""
    return os.path.isfile(path)  # noqa: PTH113
