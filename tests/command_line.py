"""For tests of the command line: a game to run it on, and a process of its own, also without root's rights."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import forks
import pytest
from conftest import tiny_rom

needs_setpriv = pytest.mark.skipif(
    not os.geteuid() and not shutil.which("setpriv"), reason="root may open all files, and setpriv is not installed"
)


def sha1(content: bytes) -> str:
    """The SHA-1 of a ROM, as rom.sha holds it."""
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


def make_game(folder: Path, rom: bytes = tiny_rom()) -> Path:
    """Makes a game's folder that lacks the ROM. Returns the folder that it is in."""
    folder.mkdir(parents=True)
    (folder / "data.json").write_text("{}")
    (folder / "rom.sha").write_text(sha1(rom) + "\n")
    return folder.parent


def ordinary() -> list[str]:
    """The beginning of a command that runs without root's right to ignore the permissions of files."""
    return [] if os.geteuid() else ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


def run(
    *arguments: object,
    ordinary_user: bool = False,
    folder: Path | None = None,
    environment: Mapping[str, str] = {},
    modules: tuple[str, ...] = forks.COMMANDS,
) -> subprocess.CompletedProcess[str]:
    """Runs ``kart-rewards`` with arguments.

    Args:
        arguments: The command and its options.
        ordinary_user: Whether root runs it without the right to ignore the permissions of files.
        folder: The current folder of the command.
        environment: Variables to set.
        modules: See ``forks.Fork``. ``forks.TRAINING`` has PyTorch.
    """
    command, env = [sys.executable, "-m", "kart_rewards", *map(str, arguments)], {**os.environ, **environment}
    if not ordinary_user:
        return forks.run(command, modules, cwd=folder, env=env)
    return subprocess.run([*ordinary(), *command], capture_output=True, text=True, check=False, cwd=folder, env=env)
