"""Start states, made by a script and by hand: real cores, real files, a real window with real keys."""

from __future__ import annotations

import gc
import gzip
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import stable_retro
from xvfb import Display, virtual_display, wait_until

from kart_rewards.env import KartEnv
from kart_rewards.errors import KartRewardsError
from kart_rewards.games.inputs import read_inputs
from kart_rewards.games.states import Console, Moment, Rewind, make_state
from kart_rewards.integrations import INTEGRATIONS, Game
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


def command(games: Path, *arguments: Any) -> list[str]:
    return [sys.executable, "-m", "kart_rewards", "state", *map(str, arguments), "--integrations-path", str(games)]


def state(games: Path, *arguments: Any, wrapper: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    without_display = {name: value for name, value in os.environ.items() if "DISPLAY" not in name}
    return subprocess.run(
        [*wrapper, *command(games, *arguments)], capture_output=True, text=True, env=without_display, timeout=120
    )


def assert_told(done: subprocess.CompletedProcess[str], *parts: str) -> None:
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
    env = KartEnv(KART, integrations=games)  # which takes metadata.json's state
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
    assert_told(done, "Level1.state: is there already; --overwrite replaces it")
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
    assert_told(state(games, KART, "Another", *arguments), f"{record}: is there already; --overwrite replaces it")


def test_what_can_not_be_done_is_told_and_leaves_nothing(games: Path, tmp_path: Path) -> None:
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
            "'laps > 200 and speed == 0' did not hold on any of 100 frames (--max-frames); after the last: laps 127, ",
        ),
        (("--play",), "neither DISPLAY nor WAYLAND_DISPLAY is set"),
    ):
        assert_told(state(games, KART, "New", *arguments), message)
    assert files_in(folder) == before


@pytest.mark.parametrize(
    ("game", "name", "options", "message"),
    [
        (KART, "New", {"until": None}, "say how to get there: --play, --inputs FILE or --until CONDITION"),
        (KART, "New", {"max_frames": 0}, "--max-frames must be 1 or more, not 0"),
        (KART, "../New", {}, "'../New' can't be a state's name"),
        (KART, "", {}, "'' can't be a state's name"),
        ("Homebrew", "New", {}, f"did you mean '{KART}'?"),
        (KART, "New", {"start": "Level1"}, "no such start state"),
        ("No-Rom", "New", {}, "No-Rom has no ROM: there is none"),
        ("Bad-Metadata", "New", {"default": True}, "metadata.json: is not JSON"),
    ],
)
def test_what_can_not_be_begun_is_told(games: Path, game: str, name: str, options: Any, message: str) -> None:
    (games / "No-Rom").mkdir()
    (games / "No-Rom" / "rom.sha").touch()
    shutil.copytree(games / KART, games / "Bad-Metadata")
    (games / "Bad-Metadata" / "metadata.json").write_text("{")
    with pytest.raises(KartRewardsError, match=re.escape(message)):
        make_state(game, name, **{"integrations": games, "max_frames": 10, "until": "laps"} | options)


def test_a_game_that_does_not_run_on_is_not_kept(tiny_rom_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "games" / "Tiny-Snes"
    folder.mkdir(parents=True)
    shutil.copy(tiny_rom_path, folder)
    (folder / "rom.sha").write_text(hashlib.sha1(tiny_rom_path.read_bytes()).hexdigest())  # noqa: S324 - the format's
    done = state(tmp_path / "games", "Tiny-Snes", "New", "--inputs", script(tmp_path, "10\n"))
    assert_told(done, "not kept: the game does not run on from here")
    assert files_in(folder) == {"rom.sfc", "rom.sha"}


def test_a_full_disk_is_told(games: Path, tmp_path: Path) -> None:
    """A limit on the size of files makes the kernel refuse the write, as a full disk does, with no disk to mount."""
    code = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096));"
        "sys.argv = sys.argv[3:]; runpy.run_module('kart_rewards', run_name='__main__')"
    )
    done = state(games, KART, "New", "--inputs", script(tmp_path, "60\n"), wrapper=(sys.executable, "-c", code))
    assert_told(done, f"{games / KART / 'New.state'}: can't be written: File too large")
    assert files_in(games / KART) == {"rom.sfc", "rom.sha", "data.json"}


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs the right to mount a small disk")
def test_a_read_only_folder_is_told(games: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], check=True)  # noqa: S607
    try:
        shutil.copytree(games / KART, disk / KART)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)  # noqa: S607
        done = state(disk, KART, "New", "--inputs", script(tmp_path, "60\n"))
        assert_told(done, f"{disk / KART / 'New.state'}: can't be written: Read-only file system")
    finally:
        subprocess.run(["umount", disk], check=True)  # noqa: S607


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="holds a write up with a named pipe")
def test_being_killed_while_it_writes_leaves_the_old_state(games: Path, tmp_path: Path) -> None:
    folder = games / KART
    (folder / "New.state").write_bytes(b"the old one")
    partial = folder / ".New.state.partial"
    os.mkfifo(partial)  # in the middle of the file, the writer waits for a reader who does not go on
    arguments = command(games, KART, "New", "--inputs", script(tmp_path, "60\n"), "--overwrite")
    with subprocess.Popen(arguments) as process, partial.open("rb", buffering=0) as reader:
        assert reader.read(2) == b"\x1f\x8b"  # a gzip file has begun
        process.kill()
    assert (folder / "New.state").read_bytes() == b"the old one"

    partial.unlink()
    partial.write_bytes(b"\x1f\x8b and no more")  # what a file would hold then
    done = state(games, KART, "New", "--inputs", script(tmp_path, "60\n"), "--overwrite")
    assert done.returncode == 0, done
    assert read_snapshot(folder / "New.state").startswith(b"#!s9xsnp")
    assert files_in(folder) == {"rom.sfc", "rom.sha", "data.json", "New.state"}


def test_rewind_forgets_the_oldest_in_bounded_memory() -> None:
    rewind = Rewind(most_bytes=100)
    for frame in range(1000):
        rewind.push(Moment(bytes(30), [], frame))
    assert [rewind.pop() for _ in range(4)] == [Moment(bytes(30), [], frame) for frame in (999, 998, 997)] + [None]
    rewind.push(Moment(bytes(100), [], 1))
    assert rewind.pop() is not None


# By hand, in a window.


@pytest.fixture(scope="module")
def display(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Display]:
    with virtual_display(tmp_path_factory.mktemp("display")) as running:
        yield running


class Hand:
    """A person at the window of ``state --play``."""

    def __init__(self, display: Display, games: Path, *arguments: Any) -> None:
        self.display = display
        self._output = games.parent / "output.txt"
        with self._output.open("w") as output:
            self.process = subprocess.Popen(
                command(games, *arguments, "--play"),
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | {"DISPLAY": display.name},
            )

    def press(self, *keys: str) -> None:
        self.display.xdotool("key", "--delay", "40", *keys)

    def hold(self, key: str, seconds: float) -> None:
        self.display.xdotool("keydown", key, "sleep", str(seconds), "keyup", key)

    def output(self) -> str:
        return self._output.read_text()

    def keep(self) -> int:
        """Keeps the state, and returns of how many frames it says to be."""
        before = self.output().count("loaded again and checked")
        self.press("F5")
        wait_until(lambda: self.output().count("loaded again and checked") > before, "the state is kept")
        return int(self.output().rpartition(".state: ")[2].split()[0])

    def end(self) -> int:
        self.press("Escape")
        return self.process.wait(timeout=30)


@pytest.fixture
def play(display: Display, games: Path) -> Iterator[Callable[..., Hand]]:
    """Starts ``state --play`` with these arguments; all are ended with the test."""
    hands = []

    def start(*arguments: Any) -> Hand:
        hands.append(Hand(display, games, *arguments))
        wait_until(lambda: not display.is_dark(), "the window is there")
        return hands[-1]

    yield start
    for hand in hands:
        hand.process.kill()
        hand.process.wait()
    wait_until(display.is_dark, "the window is gone")


def test_by_hand_with_slots_rewind_and_frame_steps(games: Path, tmp_path: Path, play: Callable[..., Hand]) -> None:
    record = tmp_path / "hand.inputs"
    hand = play(KART, "Hand", "--until", "game_mode == 0x1c", "--record", record)
    counts = [-1]

    def is_paused() -> bool:  # frames count on until the race begins, and the condition pauses it
        hand.press("Return")
        hand.hold("f", 0.2)
        counts.append(hand.keep())
        return counts[-2] == counts[-1]

    wait_until(is_paused, "the race begins")
    at_go = counts[-1]
    assert read_state_file(games / KART / "Hand.state")[0][0xB5] == 0x1C

    hand.press("F2", "n", "n", "n", "5", "F3")  # slot 1 is saved; slot 5 is empty
    assert hand.keep() == at_go + 3
    hand.press("1", "F3")
    assert hand.keep() == at_go
    console = Console(Game(KART, games / KART), start="Hand")
    shown = cv2.resize(console.screen, None, fx=3, fy=3, interpolation=cv2.INTER_NEAREST)
    del console
    assert np.array_equal(hand.display.picture()[: shown.shape[0], : shown.shape[1]], shown)

    def is_back() -> bool:
        hand.hold("BackSpace", 0.1)
        return hand.keep() < at_go

    wait_until(is_back, "what was before the slot comes back")
    rewound = hand.keep()
    hand.press("F9")
    assert hand.keep() == 0
    hand.hold("BackSpace", 0.1)  # which takes back going there, too
    assert 0 < hand.keep() <= rewound
    hand.press("F3", "p")
    assert hand.keep() >= at_go
    hand.press("p")
    assert hand.keep() > at_go
    hand.hold("z", 0.1)  # while it is paused: nothing
    hand.display.xdotool("keydown", "z", "keydown", "Left", "key", "n", "sleep", "0.2", "keyup", "z", "keyup", "Left")
    frames = hand.keep()
    assert hand.end() == 0, hand.output()

    pressed = read_inputs(record, stable_retro.get_system_info("Snes")["buttons"])
    assert sum(count for count, _ in pressed) == frames
    assert pressed[-1] == (1, frozenset({"B", "LEFT"}))
    assert {name for _, held in pressed[:-1] for name in held} == {"START"}
    done = state(games, KART, "Again", "--inputs", record)
    assert f"{frames} frames from power-on" in done.stdout
    assert read_state_file(games / KART / "Again.state") == read_state_file(games / KART / "Hand.state")


def test_what_can_not_be_written_is_told_in_the_window_and_the_game_goes_on(
    games: Path, play: Callable[..., Hand]
) -> None:
    hand = play(KART, "Hand")
    in_the_way = games / KART / ".Hand.state.partial"
    in_the_way.mkdir()
    message = np.s_[24:48, 800:]
    before = hand.display.picture()[message]
    hand.press("F5")
    wait_until(lambda: not np.array_equal(hand.display.picture()[message], before), "the message changes")
    assert not (games / KART / "Hand.state").exists()
    in_the_way.rmdir()
    assert hand.keep() > 0
    hand.process.send_signal(signal.SIGINT)
    assert hand.process.wait(timeout=30) == 130
    assert "Traceback" not in hand.output()
    assert (games / KART / "Hand.state").exists()


def test_a_window_closed_too_early_is_told(games: Path, play: Callable[..., Hand]) -> None:
    hand = play(KART, "Hand", "--default")
    assert hand.end() == 2
    assert hand.output() == "error: the window was closed, and no state was kept: f5 keeps it\n"
    assert files_in(games / KART) == {"rom.sfc", "rom.sha", "data.json"}
