"""Start states, made by a script: real cores and real files. tests/test_state_window.py makes them by hand."""

from __future__ import annotations

import gc
import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import forks
import numpy as np
import pytest
import stable_retro
from command_line import run
from conftest import part_of

from kart_rewards import integrations
from kart_rewards.drives import load_drive
from kart_rewards.env import KartEnv
from kart_rewards.errors import KartRewardsError
from kart_rewards.games.states import command
from kart_rewards.integrations import INTEGRATIONS
from kart_rewards.ram import read_snapshot, read_state_file

KART, AIR = "HomebrewKart-Snes", "Airstriker-Genesis-v0"
TO_THE_RACE = "59  # the menu\n2 START\n"
TO_THE_FIRST_LEVEL = "500  # the title\n5 START\n100\n5 B  # Start game\n100\n5 B  # Single Player\n"


@pytest.fixture
def games(tmp_path: Path) -> Path:
    """A folder of games that have no state yet: ROM, checksum and variables alone."""
    folder = tmp_path / "games"
    for name, source, files in (
        (KART, INTEGRATIONS / KART, ("rom.sfc", "rom.sha", "data.json")),
        (AIR, Path(stable_retro.data.path(), "stable", AIR), ("rom.md", "rom.sha", "data.json")),
    ):
        (folder / name).mkdir(parents=True)
        for file in files:
            shutil.copy(source / file, folder / name)
    return folder


def state(games: Path, *arguments: Any) -> subprocess.CompletedProcess[str]:
    """Runs the command, with no display."""
    no_display = {"DISPLAY": "", "WAYLAND_DISPLAY": ""}
    return run("state", *arguments, "--integrations-path", games, environment=no_display)


def assert_error(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 2, done
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    for part in parts:
        assert part in done.stderr


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def script(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "script.txt"
    path.write_text(text)
    return path


def test_a_script_makes_the_state_that_the_project_brings(games: Path, tmp_path: Path) -> None:
    folder = games / KART
    (folder / "metadata.json").write_text('{"default_state": "Other", "whitelist": {"ö": []}}', encoding="utf-8")
    steps = script(tmp_path, TO_THE_RACE)
    done = state(games, KART, "Level1", "--inputs", steps, "--until", "game_mode == 0x1c", "--default")
    assert (done.returncode, done.stderr) == (0, "")
    first, *table = done.stdout.splitlines()
    assert first == f"kept {folder / 'Level1.state'}: 240 frames from power-on; loaded again and checked"
    values = {name: int(value) for name, value in map(str.split, table)}
    assert (values["laps"], values["num_checkpoints"], values["game_mode"]) == (127, 24, 0x1C)
    assert read_state_file(folder / "Level1.state") == read_state_file(INTEGRATIONS / KART / "Level1.state")
    assert json.loads((folder / "metadata.json").read_text(encoding="utf-8")) == {
        "default_state": "Level1",
        "whitelist": {"ö": []},
    }
    assert files_in(folder) == {"rom.sfc", "rom.sha", "data.json", "metadata.json", "Level1.state"}

    shutil.copy(INTEGRATIONS / KART / "scenario.json", folder)
    env = KartEnv(KART, integrations=games)  # which begins with the state in metadata.json
    env.reset()
    assert env.ram.current_frame == values["current_frame"] + 1
    env.close()


def test_another_consoles_menus_without_any_file_but_the_rom(games: Path, tmp_path: Path) -> None:
    until = ("--until", "lives == 3", "--max-frames", 1000)
    done = state(games, AIR, "Level1", "--inputs", script(tmp_path, TO_THE_FIRST_LEVEL), *until)
    assert done.returncode == 0, done
    assert "lives                                  3" in done.stdout
    made = (games / AIR / "Level1.state").read_bytes()

    (games / AIR / "data.json").unlink()
    steps = script(tmp_path, TO_THE_FIRST_LEVEL + "60\n")
    done = state(games, AIR, "Level1", "--inputs", steps)
    assert_error(done, "Level1.state: exists already; --overwrite replaces it")
    assert (games / AIR / "Level1.state").read_bytes() == made
    done = state(games, AIR, "Level1", "--inputs", steps, "--overwrite")
    assert done.stdout == f"kept {games / AIR / 'Level1.state'}: 775 frames from power-on; loaded again and checked\n"
    assert (games / AIR / "Level1.state").read_bytes() != made


def test_a_movie_that_stable_retro_recorded_leads_to_the_same_ram(games: Path) -> None:
    folder = games / KART
    for file in ("scenario.json", "Level2.state"):
        shutil.copy(INTEGRATIONS / KART / file, folder)
    stable_retro.data.Integrations.add_custom_path(str(games))
    try:
        env = stable_retro.RetroEnv(
            KART,
            "Level2",
            inttype=stable_retro.data.Integrations.CUSTOM_ONLY,
            use_restricted_actions=stable_retro.Actions.ALL,
            record=str(folder),
            render_mode="rgb_array",
        )
        env.reset()
        for frame in range(90):
            env.step(np.array([name == "B" or (name == "LEFT" and frame > 60) for name in env.buttons], np.uint8))
        expected = dict(env.data.memory.blocks)
        env.stop_record()
        env.close()
        del env
    finally:
        stable_retro.data.Integrations.clear_custom_paths()
        gc.collect()
    movie = folder / f"{KART}-Level2-000000.bk2"
    done = state(games, KART, "Rolling", "--inputs", movie)
    assert f"Rolling.state: 91 frames from the start of {movie}; loaded again and checked" in done.stdout, done
    work_ram = read_state_file(folder / "Rolling.state")
    assert work_ram == {start: expected[start] for start in work_ram}


def test_from_a_state_on(games: Path, tmp_path: Path) -> None:
    shutil.copy(INTEGRATIONS / KART / "Level1.state", games / KART)
    record = tmp_path / "rolling.inputs"
    steps = script(tmp_path, "1000 B\n")
    arguments = ("--start", "Level1", "--inputs", steps, "--until", "speed > 500", "--record", record)
    done = state(games, KART, "Rolling", *arguments)
    assert "frames from state Level1; loaded again and checked" in done.stdout, done
    frames = int(done.stdout.partition("Rolling.state: ")[2].split()[0])
    assert record.read_text() == f"# {KART}, Rolling: from state Level1\n{frames} B\n"
    speed = next(int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("speed"))
    assert 500 < speed < 520
    assert_error(state(games, KART, "Another", *arguments), f"{record}: exists already; --overwrite replaces it")


def test_several_states_along_a_drive(games: Path, tmp_path: Path) -> None:
    shutil.copy(INTEGRATIONS / KART / "Level1.state", games / KART)
    drive = tmp_path / "lap.drive"
    part_of(load_drive(INTEGRATIONS / KART / "reference_drives" / "Level1.drive"), 640).save(drive)
    arguments = ("--start", "Level1", "--inputs", drive, "--until", "laps == 128 and speed > 500", "--every", 100)
    done = state(games, KART, "Along", *arguments)
    expected: list[int] = []
    for frames, ram in enumerate(load_drive(drive), 1):  # the first snapshot is that after the frame of the reset
        is_next = not expected or frames >= expected[-1] + 100
        if is_next and ram.laps == 128 and ram.speed > 500:
            expected.append(frames)
    kept = re.findall(r"kept (.*): (\S+ frames) from state Level1; loaded again and checked", done.stdout)
    assert [(Path(path).name, frames) for path, frames in kept] == [
        (f"Along_{number}.state", f"{frames:,} frames") for number, frames in enumerate(expected, 1)
    ], done
    assert len(kept) >= 4 and done.stdout.count("\n") == len(kept)
    assert not (games / KART / "Along.state").exists()
    alone = ("--start", "Level1", "--inputs", drive, "--until", "laps == 128 and speed > 500")
    assert state(games, KART, "Alone", *alone).returncode == 0
    assert (games / KART / "Alone.state").read_bytes() == (games / KART / "Along_1.state").read_bytes()
    assert_error(state(games, KART, "Along", *arguments), "Along_1.state: exists already; --overwrite replaces it")
    assert_error(
        state(games, KART, "None", *arguments[:-3], "laps == 1", "--every", 100),
        "'laps == 1' did not hold on any frame of the inputs",
    )
    assert state(games, KART, "Along", *arguments[:-1], 300, "--overwrite").returncode == 0
    assert len(list((games / KART).glob("Along_*.state"))) < len(kept), "those of the earlier call are gone"
    (games / KART / ".Odd_2.partial.state").mkdir()  # where it is written first
    assert_error(state(games, KART, "Odd", *arguments), "Odd_2.state: can't be written: Is a directory")
    assert not (games / KART / "Odd_1.state").exists(), "all or none"


def test_what_can_not_be_done_is_reported_and_leaves_nothing(games: Path, tmp_path: Path) -> None:
    folder = games / KART
    (folder / "damaged.state").write_bytes(gzip.compress(b"#!s9xsnp:0011\n and no more"))
    before = files_in(folder)
    steps = script(tmp_path, "10 Z\n")
    for arguments, message in (
        (("--inputs", steps), f"{steps}, line 1: this console has no button 'Z'; it has B, Y,"),
        (("--until", "lap == 127"), "names no RAM variable 'lap'. Did you mean 'laps'?"),
        (("--start", "damaged", "--until", "laps"), "state damaged: the emulator refuses it"),
        (
            ("--until", "laps > 200 and speed == 0", "--max-frames", 100),
            "'laps > 200 and speed == 0' did not hold on any of 100 frames (--max-frames); after the last frame: laps ",
        ),
        (("--play",), "neither DISPLAY nor WAYLAND_DISPLAY is set"),
    ):
        assert_error(state(games, KART, "New", *arguments), message)
    assert files_in(folder) == before


@pytest.mark.parametrize(
    ("game", "name", "options", "message"),
    [
        (KART, "New", {"until": None}, "say how to reach the state: --play, --inputs FILE or --until CONDITION"),
        (KART, "New", {"every": 0}, "--every must be 1 or more, not 0"),
        (KART, "New", {"every": 5}, "--every keeps states along --inputs FILE"),
        (KART, "New", {"max_frames": 0}, "--max-frames must be 1 or more, not 0"),
        (KART, "../New", {}, "'../New' can't be a state's name"),
        (KART, "", {}, "'' can't be a state's name"),
        ("Homebrew", "New", {}, f"Did you mean '{KART}'?"),
        (KART, "New", {"start": "Level1"}, "no such start state"),
        ("No-Rom", "New", {}, "rom.sfc is missing. Import your own dump of the game"),
        ("Bad-Metadata", "New", {"default": True}, "metadata.json: is not JSON"),
    ],
)
def test_what_can_not_be_begun_is_reported(games: Path, game: str, name: str, options: Any, message: str) -> None:
    (games / "No-Rom").mkdir()
    (games / "No-Rom" / "rom.sha").touch()
    shutil.copytree(games / KART, games / "Bad-Metadata")
    (games / "Bad-Metadata" / "metadata.json").write_text("{")
    with pytest.raises(KartRewardsError, match=re.escape(message)):
        command(game, name, **{"integrations_path": games, "max_frames": 10, "until": "laps"} | options)


def test_a_game_that_does_not_run_on_is_not_kept(tiny_rom_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "games" / "Tiny-Snes"
    folder.mkdir(parents=True)
    shutil.copy(tiny_rom_path, folder)
    (folder / "rom.sha").write_text(hashlib.sha1(tiny_rom_path.read_bytes()).hexdigest())  # noqa: S324 - the format's
    done = state(tmp_path / "games", "Tiny-Snes", "New", "--inputs", script(tmp_path, "10\n"))
    assert_error(done, "not kept: the game does not run on from here")
    assert files_in(folder) == {"rom.sfc", "rom.sha"}


def test_a_full_disk_is_reported(games: Path, tmp_path: Path) -> None:
    """A limit on the size of files makes the kernel refuse the write, as on a full disk, without a disk to mount."""
    code = (
        "import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096));"
        "runpy.run_module('kart_rewards', run_name='__main__')"
    )
    options = ["--inputs", script(tmp_path, "60\n"), "--integrations-path", games]
    arguments = [sys.executable, "-c", code, "state", KART, "New", *options]
    done = subprocess.run([*map(str, arguments)], capture_output=True, text=True, check=False, timeout=120)
    assert_error(done, f"{games / KART / 'New.state'}: can't be written: File too large")
    assert files_in(games / KART) == {"rom.sfc", "rom.sha", "data.json"}


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs the right to mount a small disk")
def test_a_read_only_folder_is_reported(games: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], check=True)  # noqa: S607
    try:
        shutil.copytree(games / KART, disk / KART)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)  # noqa: S607
        done = state(disk, KART, "New", "--inputs", script(tmp_path, "60\n"))
        assert_error(done, f"{disk / KART / 'New.state'}: can't be written: Read-only file system")
    finally:
        subprocess.run(["umount", disk], check=True)  # noqa: S607


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="holds a write up with a named pipe")
def test_being_killed_while_it_writes_leaves_the_old_state(games: Path, tmp_path: Path) -> None:
    folder = games / KART
    (folder / "New.state").write_bytes(b"the old one")
    partial = folder / ".New.partial.state"
    os.mkfifo(partial)  # in the middle of the file, the writer waits for a reader that has stopped reading
    options = ["--inputs", script(tmp_path, "60\n"), "--overwrite", "--integrations-path", games]
    arguments = [sys.executable, "-m", "kart_rewards", "state", KART, "New", *options]
    with forks.Fork(arguments, forks.COMMANDS) as process, partial.open("rb", buffering=0) as reader:
        assert reader.read(2) == b"\x1f\x8b"  # a gzip file has begun
        process.kill()
    assert (folder / "New.state").read_bytes() == b"the old one"

    partial.unlink()
    partial.write_bytes(b"\x1f\x8b and no more")  # an incomplete file
    done = state(games, KART, "New", "--inputs", script(tmp_path, "60\n"), "--overwrite")
    assert done.returncode == 0, done
    assert read_snapshot(folder / "New.state").startswith(b"#!s9xsnp")
    assert files_in(folder) == {"rom.sfc", "rom.sha", "data.json", "New.state"}


@pytest.fixture
def packaged(games: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of games as inside an installed package. The user's data folder is tmp_path/mine, and has no games."""
    monkeypatch.setattr(integrations, "INTEGRATIONS", games)
    monkeypatch.setattr(integrations, "_INSIDE_PACKAGE", games)
    monkeypatch.setenv(integrations.FOLDER_VARIABLE, str(tmp_path / "mine"))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return games


def test_the_state_of_a_game_in_the_package_is_kept_in_the_users_folder(
    packaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine" / KART
    steps = script(tmp_path, TO_THE_RACE)
    command(KART, "Grid", inputs=steps, until="game_mode == 0x1c", default=True)
    copied, kept, *_ = capsys.readouterr().out.splitlines()
    assert copied.startswith(f"copied {KART} to {mine}")
    assert kept.startswith(f"kept {mine / 'Grid.state'}: 240 frames from power-on")
    assert json.loads((mine / "metadata.json").read_text()) == {"default_state": "Grid"}
    assert files_in(packaged / KART) == {"rom.sfc", "rom.sha", "data.json"}

    command(KART, "Later", start="Grid", inputs=steps)  # the copy is found first
    assert capsys.readouterr().out.startswith(f"kept {mine / 'Later.state'}: 61 frames from state Grid")
    with pytest.raises(KartRewardsError, match=r"mine/.*/Grid\.state: exists already"):
        command(KART, "Grid", inputs=steps)


def test_a_failed_attempt_does_not_copy_the_game(packaged: Path, tmp_path: Path) -> None:
    with pytest.raises(KartRewardsError, match="'laps == 9' did not hold on any of 10 frames"):
        command(KART, "Grid", until="laps == 9", max_frames=10)
    assert not (tmp_path / "mine").exists()
