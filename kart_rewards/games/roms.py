"""ROM dumps: recognised by their SHA-1, and copied into the folders of their games.

* ``command`` - the command ``kart-rewards import``
* ``import_roms`` - searches files, folders and zip files for ROMs
* ``Imported`` - the result for one file
* ``readings`` - a dump as it is, and as it was before a copier changed its form
* ``printable``, ``UNREADABLE`` - helpers that ``kart_rewards.games.new`` needs, too
"""

from __future__ import annotations

import io
import lzma
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Annotated, NamedTuple

import numpy as np
import tyro

from kart_rewards.errors import KartRewardsError, counted
from kart_rewards.files import atomic_write
from kart_rewards.integrations import (
    Game,
    find_game,
    incomplete_games,
    integration_folders,
    is_file,
    list_games,
    rom_sha1,
    some_games,
    writable,
)
from kart_rewards.training.options import GamesFolder

_COPIER_HEADER_BYTES = 512  # old dumping devices put such a header before the ROM of a SNES or Genesis
_INTERLEAVED_BYTES = 2**14  # in a .smd dump of a Genesis, each such block has its odd bytes first, then its even ones
_LARGEST_COPIED_BYTES = 2**24
UNREADABLE = (OSError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError, EOFError)
"""The exceptions that reading a damaged, locked or encrypted file or zip file raises."""
_UNOPENED_ARCHIVES = {".7z", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip"}  # .zip: inside another zip file


class Imported(NamedTuple):
    """The result of importing one file.

    Args:
        file: The file's path; for a file in a zip file, the zip file's path, ``!``, and the name inside.
        message: What was done with the file.
        game: The game that has this ROM in its folder now, or None.
    """

    file: str
    message: str
    game: str | None


def command(
    paths: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="PATH [PATH ...]", help_behavior_hint="(required)"),
    ],
    /,
    integrations_path: GamesFolder = None,
) -> None:
    """Copies your own ROM dumps into the folders of their games. Recognises each by its SHA-1.

    Args:
        paths: Files, folders and zip files to search.
    """
    if not paths:
        raise KartRewardsError("no path is given: kart-rewards import PATH [PATH ...]")
    files: set[str] = set()
    games: set[str] = set()
    for file, message, game in import_roms(list(paths), integrations_path):
        print(f"{file}: {message}")
        files.add(file)
        games |= {game} if game else set()
    if not games:
        raise KartRewardsError(
            f"none of these files ({len(files)}) is the ROM of a known game. Known games: "
            f"{some_games(integrations_path)}{_of_incomplete(integrations_path)}"
        )
    print(f"{counted(len(files), 'file')} examined; ROMs in place: {', '.join(sorted(games))}")


def import_roms(paths: list[Path], integrations: str | Path | None = None) -> Iterator[Imported]:
    """Copies ROM dumps into the folders of their games. Recognises each by its SHA-1.

    Searches folders, but not links to folders, and zip files, but not archives inside them. Removes a 512-byte copier
    header, and orders the bytes of an interleaved dump (``.smd``). A right ROM that is in place stays; any other file
    in its place is replaced.

    Args:
        paths: Files, folders and zip files.
        integrations: The only folder of games to use. None: the standard lookup.

    Yields:
        The result for each file; for a ROM of several games, one result per game.

    Raises:
        KartRewardsError: A path does not exist, there are no games, or a ROM can't be written.
    """
    importer = _Importer(integrations)
    for path in paths:
        if not os.path.exists(path):  # noqa: PTH110 - Path.exists raises in a locked folder
            raise KartRewardsError(f"{path}: no such file or folder")
    for path in paths:
        for file, obstacle in _files(path):
            results = [Imported(str(file), f"skipped: {obstacle}", None)] if obstacle else importer.files(file)
            for result in results:
                yield result._replace(file=printable(result.file))


def readings(file: IO[bytes], size: int) -> Iterator[tuple[IO[bytes], str]]:
    """Yields a dump as it is, and in each form that it may have had in its cartridge.

    Args:
        file: The open dump.
        size: Its size in bytes.

    Yields:
        The ROM, open, and a note about what was changed; an empty note for the dump as it is.
    """
    yield file, ""
    has_header = size % 1024 == _COPIER_HEADER_BYTES  # the size of a ROM is a multiple of 1,024 bytes
    if size > _LARGEST_COPIED_BYTES or not size or (not has_header and size % _INTERLEAVED_BYTES):
        return
    file.seek(_COPIER_HEADER_BYTES if has_header else 0)
    content = file.read()
    note = "512-byte copier header removed" if has_header else ""
    if has_header:
        yield io.BytesIO(content), note
    if content and len(content) % _INTERLEAVED_BYTES == 0:
        halves = np.frombuffer(content, np.uint8).reshape(-1, 2, _INTERLEAVED_BYTES // 2)
        ordered = halves[:, ::-1].transpose(0, 2, 1).tobytes()
        yield io.BytesIO(ordered), f"{note}, interleaved bytes put in order".removeprefix(", ")


def printable(name: object) -> str:
    """Returns a name for output on a terminal, with control characters and other unprintable characters escaped."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in str(name))


def _of_incomplete(integrations: str | Path | None) -> str:
    """Returns what to do about folders without the files by which their ROMs are recognised, as sentences."""
    return "".join(
        f". {game.folder} has no {' and no '.join(game.missing_files())}. {game.how_to_complete()}"
        for game in incomplete_games(integrations)
    )


def _files(path: Path) -> Iterator[tuple[Path, str]]:
    """Yields one file, or all files of a folder, each with the reason why it can't be read, or an empty string."""
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
                yield link, "a link to a folder; pass its path to search it"
    for error in locked:
        yield Path(error.filename), f"the folder can't be read: {error.strerror}"


def _obstacle(path: Path) -> str:
    if is_file(path):
        return ""
    return "a broken link" if path.is_symlink() else "not a plain file"


class _Importer:
    """Copies files to the games whose ROMs they are.

    Args:
        integrations: As for ``import_roms``.
    """

    def __init__(self, integrations: str | Path | None) -> None:
        self._integrations = integrations
        self._games: dict[str, list[str]] = {}  # SHA-1 -> games
        for name in list_games(integrations):
            game = find_game(name, integrations)
            if is_file(game.folder / "rom.sha"):
                for sha1 in dict.fromkeys(game.rom_hashes()):
                    self._games.setdefault(sha1, []).append(name)
        if not self._games:
            folders = ", ".join(map(str, integration_folders(integrations)))
            raise KartRewardsError(
                f"{folders}: no readable game with a rom.sha, so no ROM can be recognised{_of_incomplete(integrations)}"
            )

    def files(self, path: Path) -> Iterator[Imported]:
        """Imports a file, or each file inside a zip file."""
        try:
            with path.open("rb") as file:
                if path.suffix.lower() != ".zip" or self._is_arcade_rom(file):
                    yield from self._content(str(path), file)
                    return
                with zipfile.ZipFile(file) as archive:
                    for entry in archive.infolist():
                        if not entry.is_dir():
                            yield from self._entry(f"{path}!{entry.filename}", archive, entry)
        except UNREADABLE as error:
            yield _unreadable(str(path), error)

    def _is_arcade_rom(self, file: IO[bytes]) -> bool:
        """Whether a zip file is itself a game's ROM."""
        with suppress(OSError):  # a large collection of ROMs exceeds the size of any ROM
            return rom_sha1(file)[0] in self._games
        return False

    def _entry(self, name: str, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Iterator[Imported]:
        try:
            with archive.open(entry) as content:
                yield from self._content(name, content)
        except UNREADABLE as error:
            yield _unreadable(name, error)

    def _content(self, name: str, file: IO[bytes]) -> Iterator[Imported]:
        sha1, size = rom_sha1(file)
        for rom, note in readings(file, size):
            of_rom = rom_sha1(rom)[0] if note else sha1
            if of_rom in self._games:
                for game in self._games[of_rom]:
                    yield Imported(name, self._place(name, rom, note, of_rom, game), game)
                return
        yield Imported(name, f"skipped: {_description(name, file)} (SHA-1 {sha1})", None)

    def _place(self, name: str, rom: IO[bytes], note: str, sha1: str, game_name: str) -> str:
        """Copies a ROM into its game's folder, unless a right one is there. Returns what was done."""
        game = find_game(game_name, self._integrations)  # an earlier file may have moved it to a writable folder
        suffix = Path(name).suffix or ".sfc"
        target = game.rom_path(suffix)
        replaced = ""
        if is_file(target):
            try:
                with target.open("rb") as present:
                    other = rom_sha1(present)[0]
            except OSError as error:
                raise KartRewardsError(f"{target}: can't be read: {error.strerror}") from None
            if other == sha1:
                return f"is {game.name}'s ROM, and is already in place: {target}"
            if other in game.rom_hashes():
                return f"is {game.name}'s ROM; another ROM that its rom.sha allows stays in place: {target}"
            replaced = f", and replaces another file (SHA-1 {other})"
        target = _holder(game).rom_path(suffix)
        for path in {target, target.with_name(f"rom{target.suffix}")}:  # an arcade game's ROM has two names
            _copy_rom(rom, path)
        return f"imported as {game.name}'s ROM: {target}{replaced}{f' ({note})' if note else ''}"


def _holder(game: Game) -> Game:
    """Returns the game in the folder that gets its ROM. stable-retro finds the ROMs of its own games in its package."""
    in_place = game.is_stock and os.access(game.folder, os.W_OK | os.X_OK)
    return game if in_place else writable(game)


def _unreadable(name: str, error: Exception) -> Imported:
    why = "it is encrypted" if "is encrypted" in str(error) else getattr(error, "strerror", None) or error
    return Imported(name, f"skipped: can't be read: {why}", None)


def _description(name: str, file: IO[bytes]) -> str:
    """Describes a file that is not a ROM of a known game."""
    headers = (0x7FC0, 0xFFC0)  # of a SNES ROM: a title, and a checksum beside its complement
    for start in (*headers, *(header + _COPIER_HEADER_BYTES for header in headers)):
        file.seek(start)
        title = file.read(32)
        if int.from_bytes(title[28:30], "little") ^ int.from_bytes(title[30:32], "little") == 0xFFFF:
            shown = printable(title[:21].decode("ascii", "replace").strip())
            return f"a SNES ROM, titled {shown!r}, but not the ROM of a known game"
    if Path(name).suffix.lower() in _UNOPENED_ARCHIVES:
        return "an archive of a kind that is not searched: unpack it first"
    return "not the ROM of a known game"


def _copy_rom(file: IO[bytes], target: Path) -> None:
    """Copies an open ROM. Replaces the target."""
    file.seek(0)
    with atomic_write(target) as temporary, temporary.open("wb") as copy:
        shutil.copyfileobj(file, copy)
