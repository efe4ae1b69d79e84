"""``kart-rewards search``: real games, real files, a real terminal and a real window."""

from __future__ import annotations

import gc
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import forks
import numpy as np
import pytest
import stable_retro
from xvfb import Display, virtual_display, wait_until

from kart_rewards import integrations
from kart_rewards.drivers import CentrelineDriver, centreline
from kart_rewards.errors import KartRewardsError
from kart_rewards.games import search as search_module
from kart_rewards.games.inputs import format_inputs
from kart_rewards.games.search import SearchPrompt
from kart_rewards.integrations import INTEGRATIONS, find_game
from kart_rewards.ram import RamLayout

GAME = "HomebrewKart-Snes"
AIRSTRIKER = "Airstriker-Genesis-v0"
LAPS, SPEED, FRAMES = 0x7E10C1, 0x7E10EA, 0x7E0038
KNOWN = RamLayout.from_file(INTEGRATIONS / GAME / "data.json")


@pytest.fixture
def games(tmp_path: Path) -> Path:
    """A folder with HomebrewKart, without any known variables."""
    folder = tmp_path / "games" / GAME
    folder.mkdir(parents=True)
    for name in ("rom.sfc", "rom.sha", "metadata.json", "scenario.json", "Level1.state"):
        shutil.copy(INTEGRATIONS / GAME / name, folder)
    (folder / "data.json").write_text('{"info": {}}')
    return folder.parent


def command(games: Path, *arguments: object, game: str = GAME) -> list[str]:
    options = ["search", game, "--integrations-path", *arguments]
    return [sys.executable, "-m", "kart_rewards", *map(str, [*options[:3], games, *options[3:]])]


def search(
    games: Path, commands: str, *arguments: object, game: str = GAME, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Runs the command without a display, with commands from a pipe."""
    without = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "WAYLAND_DISPLAY")}
    done = forks.run(command(games, *arguments, game=game), forks.COMMANDS, input=commands, env=without)
    assert "Traceback" not in done.stderr
    assert not check or done.returncode == 0, done.stderr
    return done


def last_list(output: str) -> list[str]:
    """The lines of the last list of places that was printed."""
    lines = output[output.rindex(" place") :].splitlines()[1:]
    return [line for line in lines if re.match(r" +\d+  \{", line)]


def entry(line: str) -> tuple[int, int, str]:
    """Number, address and type in a line of a list."""
    match = re.match(r' +(\d+)  {"address": (\d+), "type": "(.+?)"}', line)
    assert match, line
    return int(match[1]), int(match[2]), match[3]


# --- real searches ----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[int]]:
    """A drive as a movie and as a script, and the frames at which the kart crosses the line on the screen."""
    folder = tmp_path_factory.mktemp("drive")
    game = find_game(GAME)
    gc.collect()
    emulator = stable_retro.RetroEmulator(str(game.rom()))
    data = stable_retro.data.GameData()
    emulator.configure_data(data)
    emulator.set_state(game.load_state("Level1"))
    movie = stable_retro.Movie(str(folder / "drive.bk2"), True, 1)
    movie.configure(GAME, emulator)
    movie.set_state(emulator.get_state())
    buttons = stable_retro.get_system_info("Snes")["buttons"]
    driver, pressed = CentrelineDriver(centreline("Level1")), []
    crossings: list[int] = []
    ram = KNOWN.decode(data.memory.blocks)
    while len(crossings) < 2:
        pressed.append(driver(ram))
        mask = np.array([name in pressed[-1] for name in buttons], np.uint8)
        for key, down in enumerate(mask):
            movie.set_key(key, bool(down), 0)
        movie.step()
        emulator.set_button_mask(mask, 0)
        emulator.step()
        before, ram = ram, KNOWN.decode(data.memory.blocks)
        crossings += [len(pressed)] if ram.laps > before.laps else []
    for _ in range(30):
        pressed.append(frozenset())
        movie.step()
    movie.close()
    (folder / "drive.txt").write_text(format_inputs(pressed))
    return folder / "drive.bk2", folder / "drive.txt", crossings


def test_homebrewkarts_variables_are_found_with_no_prior_knowledge(
    games: Path, drive: tuple[Path, Path, list[int]]
) -> None:
    """One place is left for each, and its first reading has the right address and type."""
    movie, script, (first, second) = drive
    frame_counter = "play 1\nkeep +1\nplay 7\nkeep +7\nplay 300 B\nkeep +300\nadd 1 current_frame\n"
    # The speed of a stopped kart is 0. Then the kart goes backwards.
    speed = (
        "play 60 B\nkeep greater\nplay 60 B\nkeep greater\nplay 200\nkeep equal 0\nplay 60\nkeep unchanged\n"
        "play 20 Y\nkeep less\nadd 1\n"
    )
    laps = (
        f"trace '{movie}' {first - 5}\nkeep unchanged\ntrace '{movie}' {first + 5}\nkeep +1\n"
        f"trace '{movie}' {second - 5}\nkeep unchanged\n"
        f"trace '{script}' {second + 5}  # the same drive, from its beginning\nkeep +1\nadd 1 laps\n"
    )
    printed = search(games, f"{frame_counter}load\nstart\n{speed}load\nstart\n{laps}", "--name", "speed").stdout
    frame_counter_left, speed_left, laps_left = map(last_list, printed.split("> load\n"))
    assert [entry(line) for line in frame_counter_left] == [(1, FRAMES, "<u2")]
    assert [entry(line) for line in speed_left] == [(1, SPEED, "<i2")]
    assert re.search(r"  0, \d+, \d+, 0, 0, -\d+$", speed_left[0]), "the value in each sample, with its sign"
    assert [entry(line) for line in laps_left] == [(1, LAPS, "|u1")]

    data_path = games / GAME / "data.json"
    assert list(json.loads(data_path.read_text())["info"]) == ["current_frame", "speed", "laps"]
    layout = RamLayout.from_file(data_path)
    gc.collect()
    emulator = stable_retro.RetroEmulator(str(games / GAME / "rom.sfc"))
    data = stable_retro.data.GameData(data=str(data_path), scenario=str(games / GAME / "scenario.json"))
    emulator.configure_data(data)
    emulator.set_state(find_game(GAME).load_state("Level1"))
    speeds = []
    for button in ["B"] * 80 + ["Y"] * 120:
        mask = [name == button for name in stable_retro.get_system_info("Snes")["buttons"]]
        emulator.set_button_mask(np.array(mask, np.uint8), 0)
        emulator.step()
        ram, truth = layout.decode(data.memory.blocks), KNOWN.decode(data.memory.blocks)
        assert (ram.laps, ram.speed, ram.current_frame) == (truth.laps, truth.speed, truth.current_frame)
        assert data.lookup_all() == ram._asdict(), "stable-retro reads the same values, with their sign"
        speeds.append(ram.speed)
    assert min(speeds) < 0 < max(speeds)


def test_a_big_endian_console_is_searched_too(tmp_path: Path) -> None:
    """One place is left for the lives, two for the score. They share bytes with stable-retro's own entries."""
    shipped = Path(stable_retro.data.path()) / "stable" / AIRSTRIKER
    shutil.copytree(shipped, tmp_path / AIRSTRIKER)
    shots = tmp_path / "shots.txt"
    shots.write_text("4 B\n4\n" * 25)
    score = f"run {shots}\nkeep +20\nrun {shots}\nkeep +20\nkeep greater 39\n"
    lives = "load\nstart\nplay 480 B\nkeep -1\nplay 450 B\nkeep -1\nadd 3 ships\n"
    found = search(tmp_path, score + lives, game=AIRSTRIKER).stdout
    (only,) = last_list(found)
    assert '"address": 16712283, "type": "|u1"}  0xFF025B  3, 2, 1' in only
    assert "same so far: >u2 (number 3)" in only, "a type for numbers that need more than a byte"

    score_list = last_list(found[: found.index("> load")])
    assert len(score_list) == 2
    at, line = next((i, line) for i, line in enumerate(score_list, start=1) if "16712273" in line)
    assert line.startswith(f"{at:>4}  ")
    number = re.search(r">u4 \(number (\d+)\)", line)
    assert number, line
    search(tmp_path, f"{score}add {number[1]} points\n", game=AIRSTRIKER)
    data_path = tmp_path / AIRSTRIKER / "data.json"
    info = json.loads(data_path.read_text())["info"]
    assert list(info) == ["gameover", "lives", "score", "ships", "points"]
    assert info["points"] == info["score"]
    assert info["ships"] == info["lives"]
    added = ',\n    "points": {\n      "address": 16712270,\n      "type": ">u4"\n    }\n  }\n}\n'
    assert data_path.read_text().endswith(added), "formatted as stable-retro's own entries"


def test_a_person_drives_by_hand(games: Path, tmp_path: Path) -> None:
    """Keys move the kart, and Escape leads back to the terminal. The speed is among the values that increased."""
    with virtual_display(tmp_path) as display:
        process = forks.Fork(
            command(games),
            forks.COMMANDS,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"DISPLAY": display.name},
        )
        assert process.stdin
        try:
            process.stdin.write("window\nkeep greater\nwindow\n")
            process.stdin.flush()
            drive_in_window(display, "z")
            drive_in_window(display, "a")
            output, _ = process.communicate("keep less\nlist all\n", timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0, output
    assert f'{{"address": {SPEED}, "type": "' in output[output.rindex("list all") :]


def drive_in_window(display: Display, key: str) -> None:
    """Holds a key until the road moves, then closes the window."""
    wait_until(lambda: not display.is_dark(), "the window is open")
    wait_until(lambda: display.picture().shape[0] == 672, "the window shows the game")
    road = np.s_[180:320, 100:600]
    before = display.picture()[road]
    display.xdotool("keydown", key)
    wait_until(lambda: (display.picture()[road] != before).mean() > 0.2, "the road moves")
    display.xdotool("key", "Escape")
    wait_until(display.is_dark, "the window is closed")
    display.xdotool("keyup", key)


def test_a_variable_of_an_installed_game_is_added_to_a_copy(
    games: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("INTEGRATIONS", "_INSIDE_PACKAGE"):
        monkeypatch.setattr(integrations, name, games)
    monkeypatch.setenv(integrations.FOLDER_VARIABLE, str(tmp_path / "mine"))
    monkeypatch.chdir(tmp_path)
    commands = tmp_path / "commands.txt"
    commands.write_text(
        "play 1\nkeep +1\nplay 7\nkeep +7\nplay 300 B\nkeep +300\nadd 1 frames\nadd 1 again\nload Level1\n"
    )
    search_module.command(GAME, script=commands)
    copy = tmp_path / "mine" / GAME
    assert RamLayout.from_file(copy / "data.json").names == ("frames", "again")
    assert (games / GAME / "data.json").read_text() == '{"info": {}}'
    printed = capsys.readouterr().out
    assert printed.count(f"copied {GAME} to {copy}") == 1
    assert f'{copy}/data.json: added "frames": {{"address": {FRAMES}, "type": "<u2"}}' in printed
    assert find_game(GAME).folder == copy, "the next command finds the copy"


def test_every_command_has_a_help_text_that_starts_with_its_usage(
    prompt: SearchPrompt, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt.onecmd("help")
    summaries = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in summaries]
    assert names == ["play", "run", "window", "trace", "load", "start", "keep", "undo", "list", "add", "help", "quit"]
    for name, summary in zip(names, summaries, strict=True):
        prompt.onecmd(f"help {name}")
        usage, _, rest = capsys.readouterr().out.splitlines()[0].partition(": ")
        assert summary == f"  {usage:<24}{rest}"


# --- errors -----------------------------------------------------------------------------------------------------------
@pytest.fixture
def prompt(games: Path) -> Iterator[SearchPrompt]:
    prompt = SearchPrompt(find_game(GAME, games), "Level1", None)
    yield prompt
    del prompt
    gc.collect()


def test_wrong_commands_are_reported(prompt: SearchPrompt, tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_text("30 B\n30 JUMP\n")
    (tmp_path / "short.txt").write_text("30 B\n")
    (tmp_path / "race.csv.gz").write_bytes(b"")
    movie = tmp_path / "race.bk2"
    movie.write_bytes(b"not a movie")
    for line, message in {
        "kep greater": "unknown command 'kep'. Did you mean 'keep'? The commands are play, run, window,",
        "keep": "usage: keep COMPARISON",
        "keep bigger": "'keep bigger' is not a comparison: see 'help keep'",
        "keep changed 5": "'keep changed 5' is not a comparison",
        "keep equal lots": "'lots' is not an integer",
        f"keep +{2**63}": "is larger than any value in RAM",
        "keep greater": "the game is still at the last sample: run some frames first",
        "play": "usage: play FRAMES [BUTTONS]",
        "play soon": "'soon' is not a number of frames",
        "play 5 JUMP": "this console has no button 'JUMP'; it has B, Y, SELECT",
        f"run {tmp_path}/none.txt": "none.txt: no such file",
        f"run {tmp_path}/bad.txt": "bad.txt, line 2: this console has no button 'JUMP'",
        f"trace {tmp_path}/short.txt 31": "short.txt: has only 30 frames: frame 31 does not exist",
        f"trace {tmp_path}/race.csv.gz": f"known when it was recorded, and no other RAM. Use {movie}",
        f"trace {movie}": "race.bk2: stable-retro can't read this movie: it is damaged",
        "load Level9": "no such start state of HomebrewKart-Snes",
        "undo": "there is no 'keep' or 'start' to revert",
        "list": "too many to list: use 'keep' first",
        "list some": "usage: list [all]",
        "add 1": "the variable needs a name. usage: add NUMBER [NAME]",
        "help fly": "unknown command 'fly'. The commands are",
        "play 'x": "is not a command: No closing quotation",
    }.items():
        with pytest.raises(KartRewardsError, match=re.escape(message)):
            prompt.onecmd(line)
    assert prompt.prompt == "frame 0, 131,073 addresses left> ", "none of them had an effect"


def test_undo_is_offered_when_no_candidate_is_left(prompt: SearchPrompt, capsys: pytest.CaptureFixture[str]) -> None:
    for line in ("play 3", "keep +3", "play 5", "keep +4"):
        assert not prompt.onecmd(line)
    assert capsys.readouterr().out.endswith(
        "no address fits. 'undo' reverts this 'keep', 'start' starts a new search\n"
    )
    with pytest.raises(KartRewardsError, match="number 1 is not in the list, which has 0 entries"):
        prompt.onecmd("add 1 frames")
    for line in ("undo", "keep +5", "add 1 frames"):
        prompt.onecmd(line)
    assert "0x7E0038" in capsys.readouterr().out
    with pytest.raises(KartRewardsError, match="number 99 is not in the list"):
        prompt.onecmd("add 99 frames")


def test_a_script_ends_at_the_command_that_fails(games: Path, tmp_path: Path) -> None:
    script = tmp_path / "commands.txt"
    script.write_text("# first\nplay 1\nfly\nplay 1\n")
    done = search(games, "", "--script", script, check=False)
    assert done.returncode == 2
    assert f"error: {script}, line 3: unknown command 'fly'. The commands are play, run, window" in done.stderr
    assert done.stdout.endswith("frame 1, 131,073 addresses left> fly\n")

    done = search(games, "play 1\nwindow\n", check=False)
    assert done.returncode == 2
    assert "error: standard input, line 2: a window needs a display, and there is none" in done.stderr


def test_files_are_checked_before_the_game_starts(games: Path) -> None:
    data = games / GAME / "data.json"
    cases: list[tuple[str, dict[str, Any], str]] = [
        ('{"info"', {}, f"{data}: is not JSON"),
        ('{"info": {}}', {"script": games / "none.txt"}, "none.txt: can't be read"),
        ('{"info": {}}', {"state": "Level9"}, "no such start state"),
    ]
    for content, options, message in cases:
        data.write_text(content)
        with pytest.raises(KartRewardsError, match=re.escape(message)):
            search_module.command(GAME, integrations_path=games, **options)


def test_a_person_at_a_terminal_can_interrupt_and_go_on(games: Path) -> None:
    """Ctrl-C stops the command that runs. At the prompt, it ends the search. Wrong commands do not end the search."""
    terminal, other_end = pty.openpty()
    process = subprocess.Popen(command(games), stdin=other_end, stdout=other_end, stderr=other_end, close_fds=True)
    os.close(other_end)

    def expect(text: str) -> str:
        seen = ""
        while text not in seen:
            assert select.select([terminal], [], [], 60)[0], seen
            seen += os.read(terminal, 10_000).decode()
        return seen

    try:
        expect("left> ")
        os.write(terminal, b"fly\n")
        expect("error: unknown command 'fly'")
        os.write(terminal, b"help\n")
        expect("keep COMPARISON")
        os.write(terminal, b"play 900000\n")
        expect("of 900000 frames")
        process.send_signal(signal.SIGINT)
        assert re.search(r"stopped at frame \d+", expect(" addresses left> "))
        os.write(terminal, b"play 1\n")
        expect(" addresses left> ")
        # Python ignores a Ctrl-C between showing the prompt and reading from it. A person would press again.
        for _ in range(30):
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=2)
                break
        assert process.returncode == 130
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
