"""Begins the integration of another game: the work of ``python -m kart_rewards new NAME ROM``.

* ``scaffold`` - makes a game's folder, with a first reward term and its unit test

The folder is in stable-retro's layout. It lacks what only a person can find: start states and RAM variables.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import zipfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any

from stable_retro.data import EMU_EXTENSIONS, EMU_INFO

from kart_rewards.errors import KartRewardsError
from kart_rewards.games.roms import UNREADABLE, copier_header, printable
from kart_rewards.integrations import INTEGRATIONS, command, rom_sha1, system_of
from kart_rewards.scenario import KEY

_ARCADE = "FBNeo"  # whose ROMs are zip files, which the core knows by their names
_ROM_SUFFIXES = {*EMU_EXTENSIONS, ".smc"} - {".zip"}
_CONSOLES = {suffix: console for suffix, console in EMU_EXTENSIONS.items() if suffix != ".bin"} | {".smc": "Snes"}
"""Suffix -> console. ``.bin`` is a Nintendo 64's to stable-retro, and many a console's in the wild."""

_REWARDS = '''"""Reward terms and done rules of {name}.

A run uses those that scenario.json names: a new one must be named there, too.
"""

from kart_rewards import reward_term


@reward_term(weight=1.0)
def survival(ram):
    """Pay for every frame that the episode goes on."""
    return 1.0


# A term that reads a variable, once data.json has one called "speed". In scenario.json, replace "survival" by it.
#
# @reward_term(weight=0.01)
# def top_speed(ram):
#     """Pay for speed."""
#     return max(ram.speed, 0)
'''

_TEST = '''"""Unit tests of the reward terms: run pytest on this folder. No emulator needed."""

from pathlib import Path

from kart_rewards.ram import RamLayout
from kart_rewards.testing import score
from rewards import survival

LAYOUT = RamLayout.from_file(Path(__file__).parent / "data.json")


def snapshot(**values):
    """One frame's variables, typed by hand: what is left out reads 0."""
    return LAYOUT.snapshot_class(**(dict.fromkeys(LAYOUT.names, 0) | values))


def test_survival():
    reset, second = [snapshot()], [snapshot()] * 60
    assert score(reset + second, [survival]) == {"survival": 60.0}
'''

_GITIGNORE = """# A ROM and its states belong to whoever owns the cartridge.
{roms}
*.state
"""

_NEXT_STEPS = """
Next:
  1. Make a start state: play to where an episode begins, and press F5.
       {state}
  2. Find variables, such as speed and lap, and add them to data.json.
       {search}
  3. Pay for them in rewards.py, name the terms in scenario.json, and test them.
       pytest {folder}
  4. Check it all, now or at any time; this tells what is still to do.
       {doctor}
  5. Train. The defaults suit a kart race on the SNES: they show the screen's rows
     32 to 112, and hold B. These show all of it, and press any buttons:
       python ppo_continuous_single_file.py --env-id {name}{where} \\
         --crop None --action-mode multi-discrete"""


def scaffold(name: str, rom: Path, integrations: Path = INTEGRATIONS) -> str:
    """Makes ``integrations/NAME``, whole or not at all.

    Args:
        name: What to call the game. It ends in its console, such as ``-Snes``; a name without a hyphen is given that of
            the ROM's file name.
        rom: The ROM, or a zip file with one console's ROM in it.
        integrations: The folder of games; made if it is not there.

    Returns:
        What was made and what to do next, for a person.

    Raises:
        KartRewardsError: The name will not do, the game is there already, the ROM can't be read, or the folder can't be
            written.
    """
    with ExitStack() as stack:
        try:
            file, file_name = _open_rom(name, rom, stack)
            name = _full_name(name, file_name)
            _, size = rom_sha1(file)
            header = copier_header(size) if system_of(name) == "Snes" else 0
            sha1, size = rom_sha1(file, header)
        except UNREADABLE as error:
            raise KartRewardsError(f"{rom}: can't be read: {getattr(error, 'strerror', None) or error}") from None
        if not size:
            raise KartRewardsError(f"{rom}: is empty, so it is no ROM")
        folder, temporary = integrations / name, integrations / f".{name}.partial"
        if folder.exists():
            raise KartRewardsError(f"{folder}: is there already, and stays as it is; choose another name")
        was_there = integrations.exists()
        try:
            shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
            temporary.mkdir(parents=True)
            for path, content in _files(name, file_name, sha1).items():
                (temporary / path).write_text(content, encoding="utf-8")
            for rom_name in _rom_names(name, file_name):
                file.seek(header)
                with (temporary / rom_name).open("wb") as copy:
                    shutil.copyfileobj(file, copy)
            temporary.rename(folder)
        except OSError as error:
            raise KartRewardsError(f"{folder}: can't be made: {error.strerror}") from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            if not was_there:
                with suppress(OSError):  # which it raises if all went well
                    integrations.rmdir()
    note = f", without its copier's header of {header} bytes" if header else ""
    files = " ".join(sorted(path.name for path in folder.iterdir()))
    where = "" if integrations == INTEGRATIONS else f" --integrations-path {shlex.quote(str(integrations))}"
    next_steps = _NEXT_STEPS.format(
        name=name,
        folder=shlex.quote(str(folder)),
        where=where,
        **{word: command(f"{word} {name}", integrations) for word in ("search", "doctor")},
        state=command(f"state {name} start --play --default", integrations),
    )
    return f"made {folder}\n  {files}\n  ROM: {size // 1024} KiB{note}, SHA-1 {sha1}\n{next_steps}"


def _open_rom(name: str, rom: Path, stack: ExitStack) -> tuple[IO[bytes], str]:
    """The ROM, open, and what its file is called; taken out of a zip, unless an arcade game's ROM is the zip itself."""
    if rom.suffix.lower() != ".zip" or system_of(name) == _ARCADE:
        return stack.enter_context(rom.open("rb")), rom.name
    archive = stack.enter_context(zipfile.ZipFile(rom))
    roms = [entry for entry in archive.infolist() if Path(entry.filename).suffix.lower() in _ROM_SUFFIXES]
    if len(roms) != 1:
        found = ", ".join(printable(entry.filename) for entry in roms) or "none"
        raise KartRewardsError(
            f"{rom}: must hold the ROM of one console, and holds {found}. Unpack it and pass one of its files; if it "
            f"is an arcade game's, end the game's name in -{_ARCADE}"
        )
    return stack.enter_context(archive.open(roms[0])), Path(roms[0].filename).name


def _full_name(name: str, file_name: str) -> str:
    """The game's name with its console, checked against the ROM's file name."""
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
            f"{name!r} ends in {console}, and {printable(file_name)} is a ROM for {by_suffix} by its name: which is it?"
        )
    return name


def _rom_names(name: str, file_name: str) -> list[str]:
    """What the ROM is called in the game's folder; an arcade game's by its own name, too."""
    console = system_of(name)
    assert console is not None
    extensions = EMU_INFO[console]["ext"]
    extension = Path(file_name).suffix.lower().removeprefix(".")
    rom_name = f"rom.{extension if extension in extensions else extensions[0]}"
    return [rom_name, file_name] if console == _ARCADE else [rom_name]


def _files(name: str, file_name: str, sha1: str) -> dict[str, str]:
    """The folder's files, without the ROM: name -> content."""
    scoring = {"modules": ["rewards.py"], "rewards": {"survival": None}, "done": [], "checks": []}
    return {
        "rom.sha": f"{sha1}\n",
        "data.json": _json({"info": {}}),
        "scenario.json": _json({KEY: scoring}),
        "metadata.json": _json({"original_rom_name": file_name} if system_of(name) == _ARCADE else {}),
        "rewards.py": _REWARDS.format(name=name),
        "test_rewards.py": _TEST,
        ".gitignore": _GITIGNORE.format(roms="\n".join(_rom_names(name, file_name))),
    }


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"
