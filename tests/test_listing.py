from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import make_game, run
from conftest import tiny_rom

from kart_rewards.games import listing
from kart_rewards.integrations import FOLDER_VARIABLE, INTEGRATIONS, find_game


@pytest.fixture
def users_games(tmp_path: Path) -> Path:
    """A user's data folder with three games: the ROM of one is right, of one wrong, of one missing."""
    games = tmp_path / "a user's data folder with a long name" / "that does not fit into a terminal of 80 columns"
    for name, rom in (("Right-Snes", tiny_rom()), ("Wrong-Snes", b"another"), ("Missing-Snes", b"")):
        make_game(games / name)
        if rom:
            (games / name / "rom.sfc").write_bytes(rom)
    for state in ("Start", "[bold]Level2"):
        (games / "Right-Snes" / f"{state}.state").touch()
    (games / "Right-Snes" / "metadata.json").write_text('{"default_state": "Start"}')
    return games


def test_all_games_are_listed_with_their_folder_rom_and_states(users_games: Path, tmp_path: Path) -> None:
    done = run("games", folder=tmp_path, environment={FOLDER_VARIABLE: str(users_games)})
    assert done.returncode == 0, done.stderr
    header, *rows, last = done.stdout.splitlines()
    assert header.split() == ["game", "ROM", "start", "states", "folder"]
    assert re.fullmatch(r"1,0\d\d games of stable-retro without a ROM: kart-rewards games --all lists them, .*", last)
    listed = {row.split()[0]: " ".join(row.split()[1:]) for row in rows}
    assert listed["Right-Snes"] == f"right Start (default), [bold]Level2 {users_games}/Right-Snes"
    assert listed["Wrong-Snes"] == f"wrong none {users_games}/Wrong-Snes"
    assert listed["Missing-Snes"] == f"missing none {users_games}/Missing-Snes"
    states = "Level1 (default), Level2, Level3, Level4, Level5"
    assert listed["HomebrewKart-Snes"] == f"right {states} {INTEGRATIONS}/HomebrewKart-Snes"
    assert listed["Airstriker-Genesis-v0"].startswith("right Level1 (default) ")
    assert list(listed) == sorted(listed)


def test_all_games_of_stable_retro_are_listed_on_request(tmp_path: Path) -> None:
    done = run("games", "--all", folder=tmp_path, environment={FOLDER_VARIABLE: str(tmp_path)})
    assert done.returncode == 0, done.stderr
    rows = done.stdout.splitlines()
    assert len(rows) > 1000
    [sonic] = [row for row in rows if row.startswith("SonicTheHedgehog-Genesis-v0 ")]
    assert re.search(r" missing  .* \(default\), .*, 7 more ", sonic)


def test_only_the_games_of_an_explicit_folder_are_listed(users_games: Path, tmp_path: Path) -> None:
    done = run("games", "--integrations-path", users_games)
    assert [row.split()[0] for row in done.stdout.splitlines()[1:]] == ["Missing-Snes", "Right-Snes", "Wrong-Snes"]
    done = run("games", "--integrations-path", tmp_path / "nowhere")
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path}/nowhere: no games that may be read\n"


def test_a_terminal_shows_the_table_within_its_width(users_games: Path) -> None:
    ours, terminal = pty.openpty()
    command = [sys.executable, "-m", "kart_rewards", "games", "--integrations-path", str(users_games)]
    environment = os.environ | {"COLUMNS": "60", "TERM": "xterm"}
    subprocess.run(command, stdout=terminal, check=True, env=environment)
    os.close(terminal)
    lines = re.sub(r"\x1b\[[\d;]*m", "", os.read(ours, 2**16).decode()).splitlines()
    assert "Right-Snes" in "".join(lines)
    assert max(len(line) for line in lines) <= 60
    assert "…" not in "".join(lines), "long cells are wrapped, not cut"


def test_a_rom_that_can_not_be_checked_is_wrong(users_games: Path) -> None:
    (users_games / "Right-Snes" / "rom.sha").unlink()
    assert listing.rom_condition(find_game("Right-Snes", users_games)) == "wrong"
