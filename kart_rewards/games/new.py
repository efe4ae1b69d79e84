"""Beginning the integration of another game.

* ``command`` - ``kart-rewards new NAME ROM``: makes the game's folder, and prints the next steps
* ``scaffold`` - the same as a function: makes the folder, with a first reward term and its unit test
* ``complete_folder`` - adds the files that an existing folder lacks

The folder has stable-retro's layout. It lacks what only a person can find: start states and RAM variables.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import zipfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Annotated, Any, NamedTuple

import tyro
from stable_retro.data import EMU_EXTENSIONS, EMU_INFO

from kart_rewards.errors import KartRewardsError
from kart_rewards.files import atomic_write
from kart_rewards.games.roms import UNREADABLE, printable, readings
from kart_rewards.integrations import command as command_line
from kart_rewards.integrations import find_folder, is_file, rom_sha1, system_of, writable, writable_folder
from kart_rewards.scenario import KEY
from kart_rewards.training.options import GamesFolder

_ARCADE = "FBNeo"  # its ROMs are zip files, and the core identifies them by their names
_COPIERS = {".smc": "Snes", ".smd": "Genesis"}
_ROM_SUFFIXES = {*EMU_EXTENSIONS, *_COPIERS} - {".zip"}
_CONSOLES = {suffix: console for suffix, console in EMU_EXTENSIONS.items() if suffix != ".bin"} | _COPIERS
"""Suffix -> console. For stable-retro ``.bin`` means Nintendo 64, but dumps of many consoles have this suffix."""

_OTHER_FILES = {
    b"\x7fELF": "a program",
    b"%PDF": "a PDF document",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"GIF8": "a picture",
    b"\x1f\x8b": "a gzip file, such as a save state",
    b"PK\x03\x04": "a zip file",
    b"PK\x05\x06": "a zip file without content",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"BZh91AY&SY": "a bzip2 file",
    b"\xfd7zXZ\x00": "an xz file",
    b"SQLite format 3\x00": "a database",
}
"""How files begin that are not ROMs."""

_REWARDS = '''"""Reward terms and done rules of {name}.

A run uses the terms and rules that scenario.json names. Add each new one there.
"""

from kart_rewards import reward_term


@reward_term(weight=1.0)
def survival(ram):
    """Pay for every frame of the episode."""
    return 1.0


# This term reads a variable. It works when data.json has a variable "speed". Replace "survival" by it in scenario.json.
#
# @reward_term(weight=0.01)
# def top_speed(ram):
#     """Pay for speed."""
#     return max(ram.speed, 0)
'''

_TEST = '''"""Unit tests of the reward terms: run pytest on this folder. They need no emulator."""

from pathlib import Path

from kart_rewards.ram import RamLayout
from kart_rewards.testing import score
from rewards import survival

LAYOUT = RamLayout.from_file(Path(__file__).parent / "data.json")


def snapshot(**values):
    """Return the variables of one frame. Variables that are not given are 0."""
    return LAYOUT.snapshot(**values)


def test_survival():
    reset, second = [snapshot()], [snapshot()] * 60
    assert score(reset + second, [survival]) == {"survival": 60.0}
'''

_GITIGNORE = """# The ROM and its states belong to the owner of the cartridge.
{roms}
*.state
"""

_NEXT_STEPS = """
Next:
  1. Make a start state: play to the point where an episode begins, and press F5.
       {state}
  2. Find variables, such as speed and lap, and add them to data.json.
       {search}
  3. Write reward terms in rewards.py, name them in scenario.json, and test them
     with pytest (to install it: pip install pytest).
       pytest {folder}
  4. Check the game, now or at any time. The output lists what remains to be done.
       {doctor}
  5. Train. The agent sees the complete screen, and may press all buttons; --crop and
     --action-mode change that.
       {train}"""


def command(
    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")],
    rom: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="ROM")],
    /,
    complete: tyro.conf.FlagCreatePairsOff[bool] = False,
    integrations_path: GamesFolder = None,
) -> None:
    """Begins the integration of another game: makes its folder, with a first reward term and its unit test.

    The game's folder is made inside the folder of --integrations-path. By default it is made inside ./integrations if
    that folder exists and may be written to, else inside your data folder.

    Args:
        name: Name of the game, with its console: MyGame-Snes. If the console is missing, it follows from the suffix of
            the ROM.
        rom: The ROM, for any console that stable-retro emulates, or a zip file with one ROM in it.
        complete: The game's folder exists already, but lacks files, such as rom.sha: add them. Existing files stay.
    """
    print((complete_folder if complete else scaffold)(name, rom, integrations_path))


def scaffold(name: str, rom: Path, integrations: Path | None = None) -> str:
    """Makes the folder of a new game, complete or not at all.

    Args:
        name: The name of the game. It ends in its console, such as ``-Snes``. If it has no hyphen, the console of the
            ROM's suffix is added.
        rom: The ROM, or a zip file with one console's ROM in it.
        integrations: The folder of games in which to make the folder. It is created if necessary. None: the first
            writable folder of the standard lookup.

    Returns:
        A message: what was made, and the next steps.

    Raises:
        KartRewardsError: The name is not valid, the game exists already, the ROM can't be read, or the folder can't be
            written.
    """
    with ExitStack() as stack:
        dump = _read_dump(name, rom, stack)
        name = dump.game
        existing = find_folder(name, integrations)
        if existing:
            missing = existing.missing_files()
            remedy = f". It lacks {', '.join(missing)}. {existing.how_to_complete()}" if missing else ""
            raise KartRewardsError(
                f"{existing.folder}: exists already, and was not changed; choose another name{remedy}"
            )
        integrations = integrations or writable_folder()
        folder, temporary = integrations / name, integrations / f".{name}.partial"
        existed = integrations.exists()
        try:
            shutil.rmtree(temporary, ignore_errors=True)  # a killed process may have left it
            temporary.mkdir(parents=True)
            for path, content in _files(dump).items():
                (temporary / path).write_text(content, encoding="utf-8")
            for rom_name in _rom_names(dump):
                _copy(dump.rom, temporary / rom_name)
            temporary.rename(folder)
        except OSError as error:
            raise KartRewardsError(f"{folder}: can't be made: {error.strerror}") from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            if not existed:
                with suppress(OSError):  # rmdir raises it if the game's folder was made
                    integrations.rmdir()
    note = dump.note.replace("512-byte copier header removed", "without its copier's header of 512 bytes")
    note = f", {note}" if note else ""
    files = " ".join(sorted(path.name for path in folder.iterdir()))
    next_steps = _NEXT_STEPS.format(
        folder=shlex.quote(str(folder)),
        state=command_line(f"state {name} start --play --default", integrations),
        search=command_line(f"search {name}", integrations),
        doctor=command_line(f"doctor {name}", integrations),
        train=command_line(f"train --env-id {name}", integrations),
    )
    return f"made {folder}\n  {files}\n  ROM: {dump.size // 1024} KiB{note}, SHA-1 {dump.sha1}\n{next_steps}"


def complete_folder(name: str, rom: Path, integrations: Path | None = None) -> str:
    """Adds the files that the folder of a game lacks, and the ROM. Existing files are not changed.

    Args:
        name: The name of the game.
        rom: The ROM, or a zip file with one console's ROM in it. It may be the one in the folder.
        integrations: The only folder to look for the game in. None: the standard lookup.

    Returns:
        A message: what was added.

    Raises:
        KartRewardsError: There is no such game, the ROM can't be read or is another one than the game's, or a file
            can't be written.
    """
    with ExitStack() as stack:
        dump = _read_dump(name, rom, stack)
        game = find_folder(dump.game, integrations)
        if not game:
            raise KartRewardsError(f"there is no folder {dump.game} to complete: leave out --complete to make it")
        game = writable(game)
        if is_file(game.folder / "rom.sha") and dump.sha1 not in game.rom_hashes():
            raise KartRewardsError(f"{rom}: its SHA-1 is {dump.sha1}, which {game.folder / 'rom.sha'} does not allow")
        present = game.rom_path(Path(dump.file_name).suffix)
        if is_file(present):
            with present.open("rb") as file:
                if rom_sha1(file)[0] != dump.sha1:
                    raise KartRewardsError(f"{present}: is another ROM than {rom}: remove one of them")
        files = _files(dump)
        states = game.states()
        if len(states) == 1 and "original_rom_name" not in files["metadata.json"]:
            files["metadata.json"] = _json({"default_state": states[0]})
        if is_file(game.folder / "scenario.json") or is_file(game.folder / "rewards.py"):
            del files["rewards.py"], files["test_rewards.py"]  # an example, which the scenario would not name
            files["scenario.json"] = _json({KEY: {"modules": [], "rewards": {}, "done": [], "checks": []}})
        added = [path for path in files if not os.path.lexists(game.folder / path)]
        for path in added:
            with atomic_write(game.folder / path) as temporary:
                temporary.write_text(files[path], encoding="utf-8")
        for rom_name in _rom_names(dump):
            if not is_file(present) or (rom_name != present.name and not is_file(game.folder / rom_name)):
                with atomic_write(game.folder / rom_name) as temporary:
                    _copy(dump.rom, temporary)
                added.append(rom_name)
    doctor = game.command(f"doctor {game.name}")
    return (
        f"completed {game.folder}\n  added: {' '.join(sorted(added)) or 'nothing'}\n  what remains to be done: {doctor}"
    )


class _Dump(NamedTuple):
    """A ROM for a new game.

    Args:
        game: The game's name, with its console.
        file_name: The name of the ROM's file.
        rom: The ROM, open.
        note: What was changed to get it from the file; empty if nothing was.
        sha1: Its SHA-1.
        size: Its size in bytes.
    """

    game: str
    file_name: str
    rom: IO[bytes]
    note: str
    sha1: str
    size: int


def _read_dump(name: str, path: Path, stack: ExitStack) -> _Dump:
    """Reads a ROM. Raises KartRewardsError if the file is none, or if it contradicts the game's name."""
    try:
        file, file_name = _open_rom(name, path, stack)
        name = _full_name(name, file_name)
        sha1, size = rom_sha1(file)
        if not size:
            raise KartRewardsError(f"{path}: is empty, so it is not a ROM")
        file.seek(0)
        what = _what_else(file.read(2**16), system_of(name))
        if what:
            raise KartRewardsError(f"{path}: is not a ROM, but {what}")
        rom, note = file, ""
        for reading, changed in readings(file, size):
            if changed and _is_better(reading, changed, system_of(name)):
                (sha1, size), rom, note = rom_sha1(reading), reading, changed
                break
    except UNREADABLE as error:
        raise KartRewardsError(f"{path}: can't be read: {getattr(error, 'strerror', None) or error}") from None
    return _Dump(name, file_name, rom, note, sha1, size)


def _what_else(start: bytes, console: str | None) -> str:
    """Returns what a file is that begins so, if it is certainly not a ROM."""
    for magic, what in _OTHER_FILES.items():
        if start.startswith(magic) and not (what == "a zip file" and console == _ARCADE):
            return what
    controls = set(range(32)) - set(b"\t\n\v\f\r")
    return "a text file" if b"\n" in start and not controls & set(start) else ""


def _is_better(rom: IO[bytes], note: str, console: str | None) -> bool:
    """Whether a changed dump, and not the file as it is, is the ROM of a cartridge."""
    rom.seek(0x100)
    if console == "Genesis":
        return b"SEGA" in rom.read(16)
    return console == "Snes" and "interleaved" not in note


def _copy(rom: IO[bytes], target: Path) -> None:
    rom.seek(0)
    with target.open("wb") as copy:
        shutil.copyfileobj(rom, copy)


def _open_rom(name: str, rom: Path, stack: ExitStack) -> tuple[IO[bytes], str]:
    """Returns the ROM, open, and its file name. A console's ROM is taken out of a zip; an arcade ROM is a zip."""
    if rom.suffix.lower() != ".zip" or system_of(name) == _ARCADE:
        return stack.enter_context(rom.open("rb")), rom.name
    archive = stack.enter_context(zipfile.ZipFile(rom))
    roms = [entry for entry in archive.infolist() if Path(entry.filename).suffix.lower() in _ROM_SUFFIXES]
    if len(roms) != 1:
        found = ", ".join(printable(entry.filename) for entry in roms) or "none"
        raise KartRewardsError(
            f"{rom}: must contain one console's ROM, but it contains {found}. Unpack it, and pass one of its files. If "
            f"it is an arcade game's ROM, end the game's name in -{_ARCADE}"
        )
    return stack.enter_context(archive.open(roms[0])), Path(roms[0].filename).name


def _full_name(name: str, file_name: str) -> str:
    """Returns the game's name with its console. Raises KartRewardsError if it contradicts the ROM's file name."""
    consoles = ", ".join(f"-{console}" for console in sorted(EMU_INFO))
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*", name, re.ASCII):
        raise KartRewardsError(f"{name!r} can't be a game's name: use letters, digits and _, and end it in its console")
    console, by_suffix = system_of(name), _CONSOLES.get(Path(file_name).suffix.lower())
    if console is None:
        if by_suffix is None or "-" in name:
            raise KartRewardsError(f"{name!r}: end the game's name in its console, which is one of {consoles}")
        return f"{name}-{by_suffix}"
    if by_suffix not in (None, console):
        raise KartRewardsError(
            f"{name!r} ends in {console}, but the name of {printable(file_name)} is that of a ROM for {by_suffix}: "
            "correct one of the names"
        )
    return name


def _rom_names(dump: _Dump) -> list[str]:
    """Returns the names of the ROM in the game's folder. An arcade game's ROM needs its original name, too."""
    console, file_name = system_of(dump.game), dump.file_name
    assert console is not None
    extensions = EMU_INFO[console]["ext"]
    extension = Path(file_name).suffix.lower().removeprefix(".")
    rom_name = f"rom.{extension if extension in extensions else extensions[0]}"
    return [rom_name, file_name] if console == _ARCADE else [rom_name]


def _files(dump: _Dump) -> dict[str, str]:
    """Returns the files of the folder without the ROM: name -> content."""
    scoring = {"modules": ["rewards.py"], "rewards": {"survival": None}, "done": [], "checks": []}
    return {
        "rom.sha": f"{dump.sha1}\n",
        "data.json": _json({"info": {}}),
        "scenario.json": _json({KEY: scoring}),
        "metadata.json": _json({"original_rom_name": dump.file_name} if system_of(dump.game) == _ARCADE else {}),
        "rewards.py": _REWARDS.format(name=dump.game),
        "test_rewards.py": _TEST,
        ".gitignore": _GITIGNORE.format(roms="\n".join(_rom_names(dump))),
    }


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"
