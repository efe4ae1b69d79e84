"""ROM dumps: recognised by their SHA-1, and copied to the games they belong to.

* ``import_roms`` - looks through files, folders and zips
* ``copier_header``, ``printable``, ``UNREADABLE`` - parts of it that ``kart_rewards.games.new`` needs, too
"""

from __future__ import annotations

import lzma
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

from kart_rewards.errors import KartRewardsError
from kart_rewards.files import atomic_write
from kart_rewards.integrations import INTEGRATIONS, Game, find_game, is_file, list_games, rom_sha1

COPIER_HEADER_BYTES = 512  # what old dumping devices put before a SNES ROM
UNREADABLE = (OSError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError, EOFError)
"""What reading a damaged, locked or encrypted file or zip raises."""
_UNOPENED_ARCHIVES = {".7z", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip"}  # .zip: inside another zip


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


def _obstacle(path: Path) -> str:
    if is_file(path):
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
    if is_file(target):
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
    """Copies an open ROM without its first ``skip`` bytes. What lies at the target is replaced."""
    file.seek(skip)
    with atomic_write(target) as temporary, temporary.open("wb") as copy:
        shutil.copyfileobj(file, copy)
