"""Games on disk, in stable-retro's own layout: one folder per game.

* ``find_game``, ``list_games`` - games by name
* ``some_games`` - the games of a message: stable-retro's are only counted
* ``find_folder``, ``incomplete_games`` - folders of games that may be incomplete
* ``integration_folders`` - where games are looked for
* ``writable_folder``, ``writable`` - where games are written to
* ``Game`` - one game's folder: ROM, states, data and scenario files, each checked when it is needed
* ``command`` - a command line for a message
* ``state_labels`` - names of start states for files and curves
* ``system_of``, ``rom_sha1`` - the console that a game's name ends in; a ROM's checksum
* ``INTEGRATIONS`` - the folder of the games that come with the project

The standard lookup of games is: ``./integrations``, then the user's data folder, then ``INTEGRATIONS``, then the games
of stable-retro's own package: ``stable``, ``experimental`` and ``contrib``. If several folders have a game of one name,
the first folder counts, and a notice says so. The environment variable ``KART_REWARDS_INTEGRATIONS`` sets another path
for the user's data folder.

A game's folder holds ``data.json`` (variables), ``scenario.json`` (reward terms and done rules), ``metadata.json``
(the default state), ``rom.sha`` (SHA-1 of the ROM), the ROM (``rom.sfc`` and the like) and start states (``*.state``).

stable-retro is imported only when a ROM is looked at, so listing games is cheap.
"""

from __future__ import annotations

import errno
import fnmatch
import functools
import hashlib
import importlib.util
import os
import re
import shlex
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from kart_rewards.errors import KartRewardsError, counted, did_you_mean
from kart_rewards.files import copy_of
from kart_rewards.notices import notice
from kart_rewards.ram import load_json, read_snapshot

_INSIDE_PACKAGE = Path(__file__).parent / "integrations_data"
_BESIDE_PACKAGE = Path(__file__).parent.parent / "integrations"
INTEGRATIONS = _INSIDE_PACKAGE if _INSIDE_PACKAGE.is_dir() else _BESIDE_PACKAGE
"""The games that come with the project: inside the package in an installed wheel, beside it in a checkout."""

FOLDER_VARIABLE = "KART_REWARDS_INTEGRATIONS"
"""Environment variable with the path of the user's data folder of games."""

LARGEST_ROM_BYTES = 2**30  # a Saturn's compact disc is 700 MB
_LONGEST_LABEL = 50  # of a start state: a file's name may have 255 bytes, a letter up to 4, and there are more parts
_INES_HEADER_BYTES = 16  # a NES ROM keeps this header, but stable-retro's SHA-1 does not include it


class MissingRomError(KartRewardsError):
    """The game is known, but its ROM is missing."""


def integration_folders(integrations: str | Path | None = None) -> list[Path]:
    """Returns the folders in which games are looked for, in order.

    Args:
        integrations: The only folder to look in. None: the existing folders of the standard lookup.
    """
    if integrations is not None:
        return [Path(integrations)]
    folders: dict[Path, Path] = {}
    for folder in _standard_folders():
        with suppress(OSError):  # the current folder may have been deleted, or links may form a loop
            if folder.is_dir():
                folders.setdefault(folder.resolve(), folder.absolute())
    return list(folders.values())


def list_games(integrations: str | Path | None = None) -> list[str]:
    """Returns the names of the games in a folder or, by default, in all folders of the standard lookup, sorted."""
    return sorted({name for folder in integration_folders(integrations) for name in _games_in(folder)})


def some_games(integrations: str | Path | None = None) -> str:
    """Returns the names of the games as text for a message. Games of stable-retro's own package are only counted."""
    own: set[str] = set()
    stock: set[str] = set()
    for folder in integration_folders(integrations):
        (stock if integrations is None and _is_stock(folder) else own).update(_games_in(folder))
    names = [*sorted(own), *([f"{counted(len(stock - own), 'game')} of stable-retro"] if stock else [])]
    return ", ".join(names) or "none"


def find_game(name: str, integrations: str | Path | None = None) -> Game:
    """Returns the game called ``name``.

    Args:
        name: The name of the game's folder.
        integrations: The only folder to look in. None: the standard lookup.

    Raises:
        KartRewardsError: No game has that name, or the folder ``integrations`` does not exist.
    """
    folders = integration_folders(integrations)
    found = [Game(name, folder / name) for folder in folders if _has_game(folder, name)]
    if found:
        for other in found[1:]:
            notice(f"{name} is the game in {found[0].folder}; there is another in {other.folder}")
        return found[0]
    if integrations is not None and not folders[0].is_dir():
        raise KartRewardsError(f"{integrations}: no such folder of integrations")
    for folder in folders:
        if not os.access(folder, os.R_OK | os.X_OK):
            raise KartRewardsError(f"{folder}: may not be read: change its permissions")
    incomplete = find_folder(name, integrations)
    if incomplete:
        raise KartRewardsError(
            f"{incomplete.folder}: is not a game's folder: it has no data.json, or may not be read. "
            f"{incomplete.how_to_complete()}"
        )
    hint = _elsewhere(name, integrations) or did_you_mean(name, list_games(integrations))
    if name.endswith(".py"):
        hint = f" It looks like a rewards file: write --rewards {name} after the game."
    raise KartRewardsError(
        f"unknown game {name!r}.{hint} Known games: {some_games(integrations)}. "
        f"Looked in: {', '.join(map(str, folders))}"
    )


def _elsewhere(name: str, integrations: str | Path | None) -> str:
    """Returns where the standard lookup finds a game that an explicit folder does not have, as a sentence."""
    others = [folder for folder in integration_folders() if integrations is not None and _has_game(folder, name)]
    return f" It is in {others[0]}: leave out the folder of games (--integrations-path)." if others else ""


def find_folder(name: str, integrations: str | Path | None = None) -> Game | None:
    """Returns a game even if its folder is incomplete; None if there is no such folder. A complete folder comes first.

    Args:
        name: The name of the game's folder.
        integrations: The only folder to look in. None: the standard lookup.
    """
    if not name or Path(name).name != name or name == "..":  # a path, or empty
        return None
    games = [Game(name, folder / name) for folder in integration_folders(integrations)]
    games.sort(key=lambda game: not _has_game(game.folder.parent, name))
    return next((game for game in games if os.path.isdir(game.folder)), None)  # noqa: PTH112


def incomplete_games(integrations: str | Path | None = None) -> list[Game]:
    """Returns the games whose ROM ``kart-rewards import`` can't recognise, because data.json or rom.sha is missing.

    A folder is that of a game if its name ends in a console, such as ``-Snes``. Folders of stable-retro's own package
    are left out.
    """
    games = []
    for folder in integration_folders(integrations):
        if integrations is None and _is_stock(folder):
            continue
        with suppress(OSError):
            names = sorted(name for name in os.listdir(folder) if system_of(name))  # noqa: PTH208
            games += [Game(name, folder / name) for name in names if os.path.isdir(folder / name)]  # noqa: PTH112
    return [game for game in games if {"data.json", "rom.sha"} & set(game.missing_files())]


def writable_folder() -> Path:
    """Returns the first folder of the standard lookup that may be written to.

    ``./integrations`` counts only if it exists. The user's data folder is created if necessary. Games inside an
    installed package, this one or stable-retro, are not written to: they are lost with the package.

    Raises:
        KartRewardsError: None of the folders may be written to.
    """
    user_folder = _user_folder()
    folders = (_current_folder(), user_folder, INTEGRATIONS)
    for folder in folders:
        if folder == user_folder:
            with suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)
        if _may_be_written(folder):
            return folder.absolute()
    raise KartRewardsError(
        f"no folder of games may be written to: {', '.join(map(str, folders))}. Set {FOLDER_VARIABLE} to a folder "
        "that you may write to"
    )


def writable(game: Game) -> Game:
    """Returns the game in a folder that may be written to: call this before writing into a game's folder.

    If the game's own folder may not be written to, the complete folder is copied to ``writable_folder()``, and a
    message says so. The standard lookup finds the copy before the original. If it would find the original first, or if
    the game is not one of the standard lookup, the game itself is returned, and writing fails with its own message.

    Raises:
        KartRewardsError: No folder may be written to, or the copy can't be made.
    """
    if _may_be_written(game.folder):
        return game
    lookup = [folder.resolve() for folder in _standard_folders()]
    own = game.folder.parent.resolve()
    if own not in lookup:
        return game
    target = writable_folder()
    if lookup.index(target.resolve()) > lookup.index(own):
        return game
    copy, temporary = target / game.name, target / f".{game.name}.partial"
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # a killed process may have left it
        shutil.copytree(game.folder, temporary, ignore=shutil.ignore_patterns("__pycache__"))
        temporary.chmod(0o755)  # the original's permissions were copied, too
        temporary.rename(copy)
    except OSError as error:
        why = error.args[0][0][2] if isinstance(error, shutil.Error) else error.strerror  # the first file's error
        raise KartRewardsError(f"{copy}: can't be written: {why}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(f"copied {game.name} to {copy}; the original, {game.folder}, is not changed")
    return Game(game.name, copy)


def command(words: str, integrations: str | Path | None = None) -> str:
    """Returns a command line of this package, for messages.

    Args:
        words: The command and its arguments.
        integrations: The folder of games. It is part of the command line if the standard lookup does not include it.
    """
    if integrations is None or Path(integrations).resolve() in [folder.resolve() for folder in integration_folders()]:
        return f"kart-rewards {words}"
    return f"kart-rewards {words} --integrations-path {shlex.quote(str(integrations))}"


def _standard_folders() -> list[Path]:
    return [_current_folder(), _user_folder(), INTEGRATIONS, *_stock_folders()]


def _current_folder() -> Path:
    return Path("integrations")


def _user_folder() -> Path:
    import platformdirs

    return Path(os.environ.get(FOLDER_VARIABLE) or platformdirs.user_data_path("kart_rewards") / "integrations")


@functools.cache
def _stock_folders() -> list[Path]:
    """The folders of stable-retro's own games. stable-retro is not imported."""
    package = importlib.util.find_spec("stable_retro")
    if package is None or package.origin is None:
        return []
    data = Path(package.origin).resolve().parent / "data"
    return [data / kind for kind in ("stable", "experimental", "contrib")]


def _is_stock(folder: Path) -> bool:
    with suppress(OSError):
        return folder.resolve() in _stock_folders()
    return False


def _has_game(folder: Path, name: str) -> bool:
    """Whether ``_games_in`` has the name, in less time."""
    with suppress(OSError):  # the list of names decides where a disk ignores the case of letters
        may_be = is_file(folder / name / "data.json") and not name.startswith(".")
        return may_be and name in os.listdir(folder)  # noqa: PTH208
    return False


def _games_in(folder: Path) -> list[str]:
    """The games of a folder; none if the folder can't be read."""
    try:
        names = [name for name in os.listdir(folder) if not name.startswith(".")]  # noqa: PTH208
        return [name for name in names if is_file(folder / name / "data.json")]
    except OSError:
        return []


def _may_be_written(folder: Path) -> bool:
    """Whether files may be made in a folder. In an installed package they would be lost with it, so they may not."""
    packages = (_INSIDE_PACKAGE.resolve(), *_stock_folders())
    inside_package = any(folder.resolve().is_relative_to(each) for each in packages)
    return not inside_package and os.access(folder, os.W_OK | os.X_OK)


@dataclass(frozen=True)
class Game:
    """One game's folder.

    Args:
        name: The folder's name, and the environment's id.
        folder: The path of the folder.
    """

    name: str
    folder: Path

    @property
    def is_stock(self) -> bool:
        """Whether the game is one of stable-retro's own package."""
        return _is_stock(self.folder.parent)

    def rom(self) -> Path:
        """Returns the ROM, checked against ``rom.sha``.

        Raises:
            MissingRomError: There is no ROM.
            KartRewardsError: The SHA-1 of the ROM is not in ``rom.sha``, or a file can't be read.
        """
        path = self.rom_path()
        if not is_file(path):
            remedy = f"Import your own dump of the game: {self.command('import PATH')}"
            if not is_file(self.folder / "rom.sha"):
                remedy = f"{self.folder / 'rom.sha'} is missing, too. {self.how_to_complete()}"
            raise MissingRomError(f"{self.name} has no ROM: {path} is missing. {remedy}")
        wanted = self.rom_hashes()
        try:
            with path.open("rb") as file:
                sha1 = rom_sha1(file)[0]
        except OSError as error:
            raise KartRewardsError(f"{path}: can't be read: {error.strerror}") from None
        if sha1 not in wanted:
            raise KartRewardsError(
                f"{path}: is not the ROM that {self.name} needs: its SHA-1 is {sha1}, but {self.folder / 'rom.sha'} "
                f"allows {' or '.join(wanted) or 'none'}. Import the right dump: {self.command('import PATH')}"
            )
        return path.resolve()

    def command(self, words: str) -> str:
        """Returns a command line of this package that finds this game, for messages."""
        found = find_folder(self.name)
        if found and found.folder.resolve() == self.folder.resolve():
            return f"kart-rewards {words}"
        return f"kart-rewards {words} --integrations-path {shlex.quote(str(self.folder.parent))}"

    def rom_path(self, suffix: str = ".sfc") -> Path:
        """Returns the path of the ROM, which may be missing: ``rom.sfc`` and the like, as stable-retro expects it.

        The ROM of an arcade game has the name that ``metadata.json`` gives as ``original_rom_name``, because the core
        needs it. stable-retro needs a ``rom.zip`` beside it.

        Args:
            suffix: The suffix, if it follows neither from an existing ROM nor from the console in the game's name.
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
            KartRewardsError: The file is missing or can't be read.
        """
        path = self.folder / "rom.sha"
        try:
            return path.read_text().lower().split()
        except FileNotFoundError:
            raise KartRewardsError(
                f"{path}: can't be read: no such file: it must hold the ROM's SHA-1. {self.how_to_complete()}"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise KartRewardsError(f"{path}: can't be read: {error}: it must hold the ROM's SHA-1") from None

    def missing_files(self) -> list[str]:
        """Returns the names of the files that each game's folder needs, and this one does not have."""
        needed = ("data.json", "metadata.json", "rom.sha", "scenario.json")
        return [name for name in needed if not is_file(self.folder / name)]

    def how_to_complete(self) -> str:
        """Returns what to type to add the files that the folder lacks."""
        rom = self.rom_path()
        words = f"new {self.name} {shlex.quote(str(rom)) if is_file(rom) else 'ROM'} --complete"
        return f"To add the files that the folder lacks: {self.command(words)}"

    def states(self) -> list[str]:
        """Returns the names of the start states, sorted."""
        return sorted(path.stem for path in self.folder.glob("[!.]*.state"))  # not a half-written one

    def default_state(self) -> str:
        """Returns the name of the default start state, from ``metadata.json``.

        Raises:
            KartRewardsError: The file does not name one, or can't be read.
        """
        path = self.folder / "metadata.json"
        name = load_json(path).get("default_state") if is_file(path) else None
        if isinstance(name, str):
            return name
        remedy = self._how_to_make_a_state(default=True)
        if self.states():
            remedy = f'write {{"default_state": "{self.states()[0]}"}} to it, or name a state: --state'
        if not is_file(path):
            raise KartRewardsError(f"{path}: can't be read: no such file. It has the default start state: {remedy}")
        raise KartRewardsError(f'{path}: has no "default_state": {remedy}')

    def state_path(self, state: str | Path) -> Path:
        """Returns the path of a start state.

        Args:
            state: ``Level1`` for ``Level1.state`` in the game's folder, or the path of any ``.state`` file.

        Raises:
            KartRewardsError: The file does not exist.
        """
        path = self._file(state, ".state")
        if not is_file(path):
            states = ", ".join(self.states())
            remedy = f"it has {states}" if states else f"it has no states yet: {self._how_to_make_a_state()}"
            raise KartRewardsError(f"{path}: no such start state of {self.name}; {remedy}")
        return path

    def chosen_states(self, names: Iterable[str | Path]) -> list[str]:
        """Returns the start states that a person named.

        Args:
            names: As for ``state_path``. A name may be a pattern with ``*``, ``?`` or ``[...]``: it stands for all
                states in the game's folder that match it and that are not in the list yet.

        Raises:
            KartRewardsError: No state matches a pattern.
        """
        chosen: list[str] = []
        for name in map(str, names):
            if not re.search(r"[*?[]", name) or is_file(self._file(name, ".state")):
                chosen.append(name)
                continue
            matching = fnmatch.filter(self.states(), name.removesuffix(".state"))
            if not matching:
                raise KartRewardsError(
                    f"no start state of {self.name} matches {name!r}; it has {', '.join(self.states()) or 'none'}"
                )
            chosen += [state for state in matching if state not in chosen]
        return chosen

    def _how_to_make_a_state(self, default: bool = False) -> str:
        return f"make one: {self.command(f'state {self.name} start --play')}{' --default' if default else ''}"

    def load_state(self, state: str | Path) -> bytes:
        """Returns the emulator's snapshot inside a start state.

        Args:
            state: As for ``state_path``.

        Raises:
            KartRewardsError: The file does not exist, or is damaged.
        """
        return read_snapshot(self.state_path(state))

    def json_path(self, name: str | Path) -> Path:
        """Returns the path of a data or scenario file.

        Args:
            name: ``sprint`` for ``sprint.json`` in the game's folder, or the path of any ``.json`` file.

        Raises:
            KartRewardsError: The file does not exist.
        """
        path = self._file(name, ".json")
        if not is_file(copy_of(path)):
            files = ", ".join(sorted(file.name for file in self.folder.glob("*.json")))
            remedy = f". {self.how_to_complete()}" if name in ("data", "scenario") else ""
            raise KartRewardsError(f"{path}: no such file; {self.folder} has {files or 'no .json file'}{remedy}")
        return path.resolve()

    def _file(self, name: str | Path, suffix: str) -> Path:
        """Returns the path of a file from its name in the folder, with or without suffix, or from its path."""
        if not str(name).endswith(suffix):
            return self.folder / f"{name}{suffix}"
        own = self.folder / name
        return own if is_file(own) else Path(name)


def state_labels(states: Iterable[str]) -> dict[str, str]:
    """Returns a label for each start state, for the names of files and curves.

    A label is the name of the state's file without ``.state``, with ``_`` in place of what a file's name should not
    have. No two labels are equal, not even on a disk that ignores the case of letters.

    Args:
        states: Names and paths of start states.

    Example:
        >>> state_labels(["Zone.Act1", "a/start.state", "b/start.state"])
        {'Zone.Act1': 'Zone.Act1', 'a/start.state': 'start', 'b/start.state': 'b-start'}
    """
    labels: dict[str, str] = {}
    taken: set[str] = set()
    for state in dict.fromkeys(states):
        path = Path(state)
        name = path.name.removesuffix(".state")
        names = (name, f"{path.absolute().parent.name}-{name}", *(f"{name}-{number}" for number in range(2, 10_000)))
        safe = (re.sub(r"[^\w.+ -]|^\.", "_", each)[-_LONGEST_LABEL:] for each in names)
        labels[state] = next(label for label in safe if label.casefold() not in taken)
        taken.add(labels[state].casefold())
    return labels


def system_of(name: str) -> str | None:
    """Returns stable-retro's name of the console that a game's name ends in, such as ``Snes``; None without one."""
    from stable_retro import data as retro_data

    console = re.sub(r"-v\d+$", "", name).rpartition("-")[2]
    return console if console in retro_data.EMU_INFO else None


def rom_sha1(file: IO[bytes]) -> tuple[str, int]:
    """Returns the SHA-1 of an open ROM, in the form of ``rom.sha``, and its size in bytes.

    Raises:
        OSError: The file can't be read, or is larger than any ROM.
    """
    digest, size = hashlib.sha1(usedforsecurity=False), 0
    file.seek(0)
    while chunk := file.read(2**20):
        digest.update(chunk[_INES_HEADER_BYTES:] if not size and chunk.startswith(b"NES\x1a") else chunk)
        size += len(chunk)
        if size > LARGEST_ROM_BYTES:
            raise OSError(errno.EFBIG, f"it is larger than any ROM ({LARGEST_ROM_BYTES // 2**20} MiB)")
    return digest.hexdigest(), size


def is_file(path: Path) -> bool:
    """Whether the path is a file. ``Path.is_file`` does the same, but raises an exception in a locked folder."""
    return os.path.isfile(path)  # noqa: PTH113
