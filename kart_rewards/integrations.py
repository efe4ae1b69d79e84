"""Games on disk, in stable-retro's own layout: one folder a game.

* ``INTEGRATIONS`` - the folder of the games that come with the project
* ``find_game``, ``list_games`` - games by name
* ``Game`` - one game's folder: ROM, states, data and scenario files, each checked as it is asked for
* ``import_roms`` - copies ROM dumps to the games they belong to
* ``system_of``, ``rom_sha1``, ``copier_header``, ``UNREADABLE`` - ROMs, for whoever else handles them
* ``command`` - what a person is to type

A game's folder holds ``data.json`` (variables), ``scenario.json`` (what a run pays and when it ends), ``metadata.json``
(the default state), ``rom.sha`` (SHA-1 of the ROM), the ROM itself (``rom.sfc`` and the like) and start states
(``*.state``).

stable-retro is imported only where a ROM is looked at, so that listing games stays cheap.
"""

from __future__ import annotations

import difflib
import errno
import hashlib
import lzma
import os
import re
import shlex
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from kart_rewards.errors import KartRewardsError
from kart_rewards.ram import load_json, read_snapshot

_BESIDE_PACKAGE = Path(__file__).parent.parent / "integrations"
_INSIDE_PACKAGE = Path(__file__).parent / "integrations_data"
INTEGRATIONS = _BESIDE_PACKAGE if _BESIDE_PACKAGE.is_dir() else _INSIDE_PACKAGE
"""The games that come with the project: beside the package in a checkout, inside it in an installed wheel."""

DEFAULT_MAX_EPISODE_FRAMES = 12_000
"""Emulated frames, of which 60 make a second: five laps of 40 seconds, thrice what a good driver takes."""
DEFAULT_FRAME_SKIP = 4


def default_max_episode_steps(frame_skip: int) -> int:
    """Returns how many agent steps of so many frames make an episode of the default length."""
    return max(DEFAULT_MAX_EPISODE_FRAMES // max(frame_skip, 1), 1)


LARGEST_ROM_BYTES = 2**30  # a Saturn's compact disc is 700 MB
COPIER_HEADER_BYTES = 512  # what old dumping devices put before a SNES ROM
UNREADABLE = (OSError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError, EOFError)
"""What reading a damaged, locked or encrypted file or zip raises."""
_INES_HEADER_BYTES = 16  # of a NES ROM; kept, but no part of what stable-retro takes the SHA-1 of
_UNOPENED_ARCHIVES = {".7z", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip"}  # .zip: inside another zip


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
        close = difflib.get_close_matches(name, games, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise KartRewardsError(f"unknown game {name!r}: {hint}{folder} holds {', '.join(games) or 'no games'}")
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
        if not _is_file(path):
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
        return next((path for path in paths if _is_file(path)), paths[0])

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


def copier_header(size: int) -> int:
    """Returns how many bytes of a SNES dump of this size are a copier's header: ROMs come in whole KiB."""
    return COPIER_HEADER_BYTES if size % 1024 == COPIER_HEADER_BYTES else 0


def import_roms(paths: list[Path], integrations: str | Path = INTEGRATIONS) -> Iterator[tuple[str, str, str | None]]:
    """Copies ROM dumps to the games they belong to, recognised by their SHA-1.

    Looks into folders, but not through links to folders, and into zip files, but not into archives inside them. A
    512-byte copier header is removed. A ROM that is right stays; any other file in its place is replaced.

    Args:
        paths: Files, folders and zip files.
        integrations: The games.

    Yields:
        For each file: what it is called, what became of it, and at which game's place it is now, if it is; a ROM of
        several games once for each.

    Raises:
        KartRewardsError: A path does not exist, there are no games, or a ROM can't be written.
    """
    games: dict[str, list[Game]] = {}
    for name in list_games(integrations):
        game = find_game(name, integrations)
        if (game.folder / "rom.sha").is_file():
            for sha1 in dict.fromkeys(game.rom_hashes()):
                games.setdefault(sha1, []).append(game)
    if not games:
        raise KartRewardsError(f"{integrations}: holds no games that may be read, so no ROM can be recognised")
    for path in paths:
        if not os.path.exists(path):  # noqa: PTH110 - Path.exists raises in a locked folder
            raise KartRewardsError(f"{path}: no such file or folder")
    for path in paths:
        for file, obstacle in _files(path):
            if obstacle:
                yield printable(file), f"skipped: {obstacle}", None
                continue
            for name, what, place in _import_file(file, games):
                yield printable(name), what, place


def printable(name: object) -> str:
    """Returns a foreign name for a terminal: what can't be printed, or would steer the terminal, is escaped."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in str(name))


def _files(path: Path) -> Iterator[tuple[Path, str]]:
    """All files of a folder, or one file; and, if it can't be looked at, why."""
    if not path.is_dir():
        yield path, _obstacle(path)
        return
    locked: list[OSError] = []
    for folder, subfolders, names in os.walk(path, onerror=locked.append):
        subfolders.sort()
        for name in sorted(names):
            yield Path(folder, name), _obstacle(Path(folder, name))
        for link in (Path(folder, name) for name in subfolders):
            if link.is_symlink():
                yield link, "a link to a folder; name it to have it looked into"
    for error in locked:
        yield Path(error.filename), f"the folder can't be read: {error.strerror}"


def _is_file(path: Path) -> bool:
    return os.path.isfile(path)  # noqa: PTH113 - Path.is_file raises in a locked folder


def _obstacle(path: Path) -> str:
    if _is_file(path):
        return ""
    return "a link that leads nowhere" if path.is_symlink() else "not a plain file"


def _import_file(path: Path, games: dict[str, list[Game]]) -> Iterator[tuple[str, str, str | None]]:
    """Imports a file, or each file inside a zip. Yields as ``import_roms`` does."""
    try:
        with path.open("rb") as file:
            if path.suffix.lower() != ".zip" or _is_arcade_rom(file, games):
                yield from _import_content(str(path), file, games)
                return
            with zipfile.ZipFile(file) as archive:
                for entry in archive.infolist():
                    if not entry.is_dir():
                        yield from _import_entry(f"{path}!{entry.filename}", archive, entry, games)
    except UNREADABLE as error:
        yield str(path), _unreadable(error), None


def _is_arcade_rom(file: IO[bytes], games: dict[str, list[Game]]) -> bool:
    """Whether a zip is itself a game's ROM."""
    with suppress(OSError):  # it may be a large collection
        return rom_sha1(file)[0] in games
    return False


def _import_entry(
    name: str, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, games: dict[str, list[Game]]
) -> Iterator[tuple[str, str, str | None]]:
    try:
        with archive.open(entry) as content:
            yield from _import_content(name, content, games)
    except UNREADABLE as error:
        yield name, _unreadable(error), None


def _unreadable(error: Exception) -> str:
    why = "it is encrypted" if "is encrypted" in str(error) else getattr(error, "strerror", None) or error
    return f"skipped: can't be read: {why}"


def _import_content(name: str, file: IO[bytes], games: dict[str, list[Game]]) -> Iterator[tuple[str, str, str | None]]:
    sha1, size = rom_sha1(file)
    header = 0
    if sha1 not in games and copier_header(size):
        header = copier_header(size)
        sha1, _ = rom_sha1(file, header)
    for game in games.get(sha1, []):
        yield name, _place(name, file, header, sha1, game), game.name
    if sha1 not in games:
        yield name, f"skipped: {_foreign(name, file, header)} (SHA-1 {sha1})", None


def _foreign(name: str, file: IO[bytes], header: int) -> str:
    """What a file is that is no game's ROM."""
    for start in (0x7FC0, 0xFFC0):  # a SNES ROM's own header: a title, and a checksum beside its complement
        file.seek(header + start)
        title = file.read(32)
        if int.from_bytes(title[28:30], "little") ^ int.from_bytes(title[30:32], "little") == 0xFFFF:
            shown = printable(title[:21].decode("ascii", "replace").strip())
            return f"a SNES ROM, titled {shown!r}, but not one that a game here asks for"
    if Path(name).suffix.lower() in _UNOPENED_ARCHIVES:
        return "an archive, which is not looked into: unpack it first"
    return "not the ROM of a known game"


def _place(name: str, file: IO[bytes], header: int, sha1: str, game: Game) -> str:
    """Copies a ROM to its game's place, unless a right one is there. Returns what became of it."""
    target = game.rom_path(Path(name).suffix or ".sfc")
    replaced = ""
    if _is_file(target):
        try:
            with target.open("rb") as present:
                other = rom_sha1(present)[0]
        except OSError as error:
            raise KartRewardsError(f"{target}: can't be read: {error.strerror}") from None
        if other == sha1:
            return f"is {game.name}'s ROM, which is there already: {target}"
        if other in game.rom_hashes():
            return f"is {game.name}'s ROM; another that its rom.sha allows stays in place: {target}"
        replaced = f" in place of another file (SHA-1 {other})"
    for path in {target, target.with_name(f"rom{target.suffix}")}:  # which are two for arcade games
        _copy_rom(file, header, path)
    note = " (512-byte copier header removed)" if header else ""
    return f"imported as {game.name}'s ROM: {target}{replaced}{note}"


def _copy_rom(file: IO[bytes], skip: int, target: Path) -> None:
    """Copies an open ROM from where it begins, whole or not at all. What lies at the target is replaced."""
    temporary = target.with_name(f".{target.name}.partial")
    file.seek(skip)
    try:
        with temporary.open("wb") as copy:
            shutil.copyfileobj(file, copy)
        temporary.replace(target)
    except OSError as error:
        raise KartRewardsError(f"{target}: can't be written: {error.strerror}") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
