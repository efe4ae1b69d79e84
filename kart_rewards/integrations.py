"""Games on disk, in stable-retro's own layout: one folder a game.

* ``INTEGRATIONS`` - the folder of the games that come with the project
* ``find_game``, ``list_games`` - games by name
* ``Game`` - one game's folder: ROM, states, data and scenario files, each checked as it is asked for
* ``import_roms`` - copies ROM dumps to the games they belong to

A game's folder holds ``data.json`` (variables), ``scenario.json`` (what a run pays and when it ends), ``metadata.json``
(the default state), ``rom.sha`` (SHA-1 of the ROM), the ROM itself (``rom.sfc`` and the like) and start states
(``*.state``).

stable-retro is imported only where a ROM is looked at, so that listing games stays cheap.
"""

from __future__ import annotations

import difflib
import io
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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


LARGEST_ROM_BYTES = 32 * 2**20  # stable-retro's own limit
COPIER_HEADER_BYTES = 512  # what old dumping devices put before a SNES ROM


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
        close = difflib.get_close_matches(name, games, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise KartRewardsError(f"unknown game {name!r}: {hint}{folder} holds {', '.join(games) or 'no games'}")
    return Game(name, folder / name)


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
        from stable_retro import data as retro_data

        roms = sorted(path for path in self.folder.glob("rom.*") if path.suffix in retro_data.EMU_EXTENSIONS)
        if not roms:
            raise MissingRomError(
                f"{self.name} has no ROM: there is none (rom.sfc) in {self.folder}. Import your own dump of the game: "
                f"python -m kart_rewards import PATH"
            )
        wanted = self.rom_hashes()
        with roms[0].open("rb") as file:
            sha1 = retro_data.groom_rom(str(roms[0]), file)[1]
        if sha1 not in wanted:
            raise KartRewardsError(
                f"{roms[0]}: is not the ROM that {self.name} needs: its SHA-1 is {sha1}, and {self.folder / 'rom.sha'} "
                f"names {' or '.join(wanted) or 'none'}. Import the right dump: python -m kart_rewards import PATH"
            )
        return roms[0].resolve()

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
            raise KartRewardsError(f'{path}: names no "default_state"')
        return name

    def state_path(self, state: str | Path) -> Path:
        """Returns where a start state lies: ``Level1`` is the folder's ``Level1.state``; or any ``.state`` by its path.

        Raises:
            KartRewardsError: There is none.
        """
        path = self._file(state, ".state")
        if not path.is_file():
            states = ", ".join(self.states())
            remedy = f"it has {states}" if states else "it has none yet: put one there, made at the start of a race"
            raise KartRewardsError(f"{path}: no such start state of {self.name}; {remedy}")
        return path

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


def import_roms(paths: list[Path], integrations: str | Path = INTEGRATIONS) -> Iterator[tuple[str, str, bool]]:
    """Copies ROM dumps to the games they belong to, recognised by their SHA-1.

    Looks into folders and zip files. A SNES dump's 512-byte copier header is removed.

    Args:
        paths: Files, folders and zip files.
        integrations: The games.

    Yields:
        For each file: what it is called, what became of it, and whether it is now at a game's place.

    Raises:
        KartRewardsError: A path does not exist, there are no games, or a ROM can't be written.
    """
    games: dict[str, Game] = {}
    for name in list_games(integrations):
        game = find_game(name, integrations)
        if (game.folder / "rom.sha").is_file():
            games |= dict.fromkeys(game.rom_hashes(), game)
    if not games:
        raise KartRewardsError(f"{integrations}: holds no games, so no ROM can be recognised")
    for path in paths:
        if not path.exists():
            raise KartRewardsError(f"{path}: no such file or folder")
        for file in sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else [path]:
            for name, content in _contents(file):
                yield (name, *_import_one(name, content, games))


def _contents(file: Path) -> Iterator[tuple[str, bytes | None]]:
    """Name and content of a file, or of each file inside a zip; None for what is too large, damaged or locked."""
    try:
        if file.suffix.lower() != ".zip":
            yield str(file), file.read_bytes() if file.stat().st_size <= LARGEST_ROM_BYTES else None
            return
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                if entry.is_dir():
                    continue
                with archive.open(entry) as member:  # the declared size may lie: read no more than a ROM can hold
                    content = member.read(LARGEST_ROM_BYTES + 1)
                yield f"{file}!{entry.filename}", content if len(content) <= LARGEST_ROM_BYTES else None
    except (OSError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError, EOFError):
        yield str(file), None


def _import_one(name: str, content: bytes | None, games: dict[str, Game]) -> tuple[str, bool]:
    from stable_retro import data as retro_data

    if content is None:
        return "skipped: damaged, locked, or larger than any ROM", False
    headerless = content[COPIER_HEADER_BYTES:] if len(content) % 1024 == COPIER_HEADER_BYTES else content
    for body in (content, headerless):
        sha1 = retro_data.groom_rom(name, io.BytesIO(body))[1]
        if sha1 in games:
            break
    else:
        return f"skipped: not the ROM of a known game (SHA-1 {sha1})", False
    game = games[sha1]
    system = game.name.removesuffix("-v0").rsplit("-", 1)[-1]
    extensions = retro_data.EMU_INFO.get(system, {}).get("ext", [Path(name).suffix.lstrip(".") or "sfc"])
    target = game.folder / f"rom.{extensions[0]}"
    replaced = ""
    if target.exists():
        if target.read_bytes() == body:
            return f"is {game.name}'s ROM, which is there already: {target}", True
        replaced = " in place of another file"
    temporary = target.with_name(f".{target.name}.partial")
    try:
        temporary.write_bytes(body)
        temporary.replace(target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise KartRewardsError(f"{target}: can't be written: {error.strerror}") from None
    note = " (512-byte copier header removed)" if body is not content else ""
    return f"imported as {game.name}'s ROM: {target}{replaced}{note}", True
