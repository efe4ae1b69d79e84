"""``python -m kart_rewards search``: real games, real files, a real terminal and a real window."""

from __future__ import annotations

import gc
import itertools
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

import numpy as np
import pytest
import stable_retro
from xvfb import Display, virtual_display, wait_until

from kart_rewards import search as search_module
from kart_rewards.drivers import CentrelineDriver, centreline
from kart_rewards.errors import KartRewardsError
from kart_rewards.games.inputs import format_inputs
from kart_rewards.games.search import RamSearch, Reading, SearchPrompt, add_variable
from kart_rewards.integrations import INTEGRATIONS, find_game
from kart_rewards.ram import RamLayout, Variable

GAME = "HomebrewKart-Snes"
AIRSTRIKER = "Airstriker-Genesis-v0"
LAPS, SPEED, FRAMES = 0x7E10C1, 0x7E10EA, 0x7E0038
KNOWN = RamLayout.from_file(INTEGRATIONS / GAME / "data.json")
READING = Reading(SPEED, "<i2", ())


@pytest.fixture
def games(tmp_path: Path) -> Path:
    """A folder with HomebrewKart, about whose RAM nothing is known."""
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
    done = subprocess.run(
        command(games, *arguments, game=game), input=commands, capture_output=True, text=True, env=without
    )
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


# ------------------------------------------------------------------------------------------------ what it is there for
@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[int]]:
    """A drive as a movie and as a script, and at which of its frames the line was crossed: what a spectator sees."""
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
    driver, pressed, crossings = CentrelineDriver(centreline("Level1")), [], []
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
    """Of each, one place is left, and the first proposal is the right address with the right type."""
    movie, script, (first, second) = drive
    frame_counter = "play 1\nkeep +1\nplay 7\nkeep +7\nplay 300 B\nkeep +300\nadd 1 current_frame\n"
    # A kart that stands has the speed 0. Then it goes backwards.
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
    assert re.search(r"  0, \d+, \d+, 0, 0, -\d+$", speed_left[0]), "what it read at each moment, with its sign"
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
        assert data.lookup_all() == ram._asdict(), "stable-retro reads the same, the sign too"
        speeds.append(ram.speed)
    assert min(speeds) < 0 < max(speeds)


def test_a_big_endian_console_is_searched_too(tmp_path: Path) -> None:
    """Airstriker's lives are one of one place, its score one of two; both share bytes with what stable-retro ships."""
    shipped = Path(stable_retro.data.path()) / "stable" / AIRSTRIKER
    shutil.copytree(shipped, tmp_path / AIRSTRIKER)
    shots = tmp_path / "shots.txt"
    shots.write_text("4 B\n4\n" * 25)
    score = f"run {shots}\nkeep +20\nrun {shots}\nkeep +20\nkeep greater 39\n"
    lives = "load\nstart\nplay 480 B\nkeep -1\nplay 450 B\nkeep -1\nadd 3 ships\n"
    found = search(tmp_path, score + lives, game=AIRSTRIKER).stdout
    (only,) = last_list(found)
    assert '"address": 16712283, "type": "|u1"}  0xFF025B  3, 2, 1' in only
    assert "same so far: >u2 (number 3)" in only, "a type for numbers that grow beyond a byte"

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
    assert data_path.read_text().endswith(added), "laid out as stable-retro's own entries"


def test_a_person_drives_by_hand(games: Path, tmp_path: Path) -> None:
    """Keys of a real keyboard move the kart, Escape leads back to the terminal, where the speed is among what grew."""
    with virtual_display(tmp_path) as display:
        process = subprocess.Popen(
            command(games),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
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
    """Holds a key until the road moves, then leaves the window."""
    wait_until(lambda: not display.is_dark(), "the window is there")
    wait_until(lambda: display.picture().shape[0] == 672, "the game is in it")
    road = np.s_[180:320, 100:600]
    before = display.picture()[road]
    display.xdotool("keydown", key)
    wait_until(lambda: (display.picture()[road] != before).mean() > 0.2, "the road moves")
    display.xdotool("key", "Escape")
    wait_until(display.is_dark, "the window is gone")
    display.xdotool("keyup", key)


# ------------------------------------------------------------------------------------------------------ how it narrows
def test_what_is_kept_is_what_our_decoder_reads(tiny_emulator: Any) -> None:
    """Random bytes at three moments; every type at every address is decoded again, with nothing of stable-retro's."""
    emulator, _ = tiny_emulator
    ram = RamSearch(emulator, "Snes")
    start, size = 0x7F4000, 120
    random = np.random.default_rng(1)
    first = random.integers(0, 256, size)
    second = (first + random.integers(1, 256, size)) % 256
    second[80:100] = random.integers(0, 100, 20) // 10 * 16 + random.integers(0, 10, 20)  # digits
    third = np.where(random.random(size) < 0.4, second, random.integers(0, 256, size))
    third[::5] = (second[::5] + 3) % 256
    third[1::20] = (second[1::20] - 1) % 256
    third[50:60], third[60:70] = 0, [0xFF] * 4 + [0xFB] + [0xFF] * 5
    moments = [content.astype(np.uint8).tobytes() for content in (first, second, third)]

    def set_memory(content: bytes) -> None:
        for address, byte in enumerate(content, start=start):
            ram.data.memory.assign(address, "|u1", byte)

    set_memory(moments[0])
    ram.start(0)
    set_memory(moments[1])
    ram.keep("changed", None, 1)
    set_memory(moments[2])

    readings = []
    for type_, at in itertools.product(ram.types, range(size)):
        raw = [moment[at : at + int(type_[-1])] for moment in moments]
        above_nine = {"d": r".*[a-f]", "n": r"(..)*.[a-f]"}.get(type_[-2])
        is_number = not above_nine or not any(re.match(above_nine, content.hex()) for content in raw)
        if len(raw[0]) == int(type_[-1]) and is_number:
            decoded = [Variable("value", start + at, type_).decode(content) for content in raw]
            if decoded[0] != decoded[1]:
                readings.append(Reading(start + at, type_, tuple(decoded)))

    for comparison, value, fits in (
        ("changed", None, lambda before, now: now != before),
        ("unchanged", None, lambda before, now: now == before),
        ("greater", None, lambda before, now: now > before),
        ("less", None, lambda before, now: now < before),
        ("by", 3, lambda before, now: now - before == 3),
        ("by", -256, lambda before, now: now - before == -256),
        ("by", 0, lambda before, now: now == before),
        ("equal", 0, lambda before, now: now == 0),
        ("equal", -5, lambda before, now: now == -5),
        ("greater", 60_000, lambda before, now: now > 60_000),
        ("less", -1, lambda before, now: now < -1),
    ):
        ram.keep(comparison, value, 2)
        kept = {reading for place in ram.places() for reading in place}
        inside = {kept for kept in kept if start <= kept.address <= start + size - int(kept.type[-1])}
        expected = {reading for reading in readings if fits(*reading.history[1:])}
        assert inside == expected, (comparison, value)
        assert expected, "nothing was tested"
        assert ram.undo()


def test_why_known_values_are_not_left_to_stable_retros_search(tiny_emulator: Any) -> None:
    """When this fails, stable-retro's search has become better, and may be used."""
    emulator, _ = tiny_emulator
    data = RamSearch(emulator, "Snes").data
    for i in range(8):
        data.memory.assign(0x7F4000 + i, "|u1", 0x77)
    data.memory.assign(0x7F4002, "<u2", 0)
    data.memory.assign(0x7F4005, ">i2", -5)
    data.memory.assign(0x1FFF, "|u1", 0)  # the last byte of the block before
    data.search("zero", 0)
    data.search("minus five", -5)
    found = {
        name: {(address, type_) for (address, *_), types in search.typed_results() for type_ in types}
        for name, search in data.list_searches().items()
    }
    assert (0x7F4002, "|u1") in found["zero"]
    assert (0x7F4002, "<u2") not in found["zero"]
    assert (0x7F4006, "|i1") in found["minus five"]
    assert (0x7F4005, ">i2") not in found["minus five"]


def test_a_mirror_is_no_second_place(tiny_emulator: Any) -> None:
    emulator, _ = tiny_emulator
    ram = RamSearch(emulator, "Snes")
    for value in (1, 2):
        ram.data.memory.assign(0x7E0123, "<u2", value * 1000)
        if value == 1:
            ram.start(0)
    assert ram.data.memory.extract(0x0123, "<u2") == 2000, "the low page shows it, too"
    ram.keep("by", 1000, 1)
    assert [place[0] for place in ram.places()] == [Reading(0x7E0123, "<u2", (1000, 2000))]
    assert ram.addresses_left() == 1


def test_undo_takes_back_what_was_kept_and_begun(tiny_emulator: Any) -> None:
    emulator, _ = tiny_emulator
    ram = RamSearch(emulator, "Snes")
    everything = ram.addresses_left()
    assert not ram.undo()
    ram.data.memory.assign(0x7F3FFC, "<u8", 0)
    ram.start(0)
    for frame, value in enumerate((7, 8), start=1):
        ram.data.memory.assign(0x7F4000, "|u1", value)
        ram.keep("greater", None, frame)
    left = ram.places()
    assert left[0][0].history == (0, 7, 8)
    ram.data.memory.assign(0x7F4000, "|u1", 5)
    ram.keep("greater", None, 3)
    assert ram.addresses_left() == 0
    with pytest.raises(KartRewardsError, match="no address is left: 'undo' takes the last 'keep' back"):
        ram.keep("less", None, 3)
    assert ram.undo()
    assert ram.places() == left
    ram.keep("less", None, 3)
    assert ram.places()[0][0].history == (0, 7, 8, 5), "another comparison of the same two moments"
    ram.start(3)
    assert ram.addresses_left() == everything
    assert ram.undo()
    assert ram.places()[0][0].history == (0, 7, 8, 5)


# -------------------------------------------------------------------------------------------------- what it writes
ONE_LINE = '{\n  "info": {\n    "a": {"address": 1, "type": "|u1"}\n  },\n  "mine": [1]\n}\n'


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (ONE_LINE, ONE_LINE.replace('"}\n', '"},\n    "speed": {"address": 8261866, "type": "<i2"}\n')),
        (
            '{"x": {"info": {}}, "info": {"a": {"type": "<u2", "address": 9, "mask": 15}}}',
            '{"x": {"info": {}}, "info": {"a": {"type": "<u2", "address": 9, "mask": 15},'
            '"speed": {"address": 8261866, "type": "<i2"}}}',
        ),
        (
            '{\r\n\t"info": {\r\n\t\t"a": {\r\n\t\t\t"address": 1,\r\n\t\t\t"type": "|u1"\r\n\t\t}\r\n\t}\r\n}',
            '{\r\n\t"info": {\r\n\t\t"a": {\r\n\t\t\t"address": 1,\r\n\t\t\t"type": "|u1"\r\n\t\t},\r\n'
            '\t\t"speed": {\r\n\t\t\t"address": 8261866,\r\n\t\t\t"type": "<i2"\r\n\t\t}\r\n\t}\r\n}',
        ),
        ('{"info": {}}', '{\n  "info": {\n    "speed": {"address": 8261866, "type": "<i2"}\n  }\n}\n'),
        ("{}", '{\n  "info": {\n    "speed": {"address": 8261866, "type": "<i2"}\n  }\n}\n'),
    ],
    ids=["a line each", "all on one line", "spread out, tabs, CRLF", "empty", "without info"],
)
def test_an_entry_is_laid_out_as_the_others_and_these_stay(tmp_path: Path, before: str, after: str) -> None:
    path = tmp_path / "data.json"
    path.write_bytes(before.encode())
    path.chmod(0o640)
    add_variable(path, "speed", READING)
    assert path.read_bytes().decode() == after
    assert path.stat().st_mode & 0o777 == 0o640
    assert json.loads(after)["info"]["speed"] == {"address": SPEED, "type": "<i2"}
    add_variable(path, "second", READING)
    assert list(RamLayout.from_file(path).names)[-2:] == ["speed", "second"]
    assert [file.name for file in tmp_path.iterdir()] == ["data.json"]


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (ONE_LINE, "a", r"has a variable 'a' already, \{\"address\": 1, \"type\": \"\|u1\"\}: choose another name"),
        (ONE_LINE, "2nd", "'2nd' can't be a variable's name"),
        (ONE_LINE[:30], "speed", r"data\.json: is not JSON"),
        (ONE_LINE.replace("|u1", "u8"), "speed", r"data\.json: unknown type 'u8' of variable 'a'"),
        ('{"info": []}', "speed", r"data\.json: holds no variables"),
    ],
)
def test_what_cannot_be_added_is_told_and_the_file_stays(tmp_path: Path, content: str, name: str, message: str) -> None:
    path = tmp_path / "data.json"
    path.write_text(content)
    with pytest.raises(KartRewardsError, match=message):
        add_variable(path, name, READING)
    assert path.read_text() == content
    assert [file.name for file in tmp_path.iterdir()] == ["data.json"]


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs the right to mount a read-only folder")
def test_a_read_only_folder_is_told_with_the_entry(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "data.json").write_text(ONE_LINE)
    subprocess.run(["mount", "--bind", folder, folder], check=True)  # noqa: S607
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)  # noqa: S607
        with pytest.raises(KartRewardsError) as told:
            add_variable(folder / "data.json", "speed", READING)
    finally:
        subprocess.run(["umount", folder], check=True)  # noqa: S607
    assert "data.json: can't be written: Read-only file system. The entry is" in str(told.value)
    assert '"speed": {"address": 8261866, "type": "<i2"}' in str(told.value)


# ------------------------------------------------------------------------------------------------------ what goes wrong
@pytest.fixture
def prompt(games: Path) -> Iterator[SearchPrompt]:
    prompt = SearchPrompt(find_game(GAME, games), "Level1", None)
    yield prompt
    del prompt
    gc.collect()


def test_bad_commands_are_told(prompt: SearchPrompt, tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_text("30 B\n30 JUMP\n")
    (tmp_path / "short.txt").write_text("30 B\n")
    (tmp_path / "race.csv.gz").write_bytes(b"")
    movie = tmp_path / "race.bk2"
    movie.write_bytes(b"not a movie")
    for line, message in {
        "kep greater": "unknown command 'kep': did you mean 'keep'?",
        "keep": "say it as: keep COMPARISON",
        "keep bigger": "'keep bigger' is no comparison: see 'help keep'",
        "keep changed 5": "'keep changed 5' is no comparison",
        "keep equal lots": "'lots' is not a value: write a whole number",
        f"keep +{2**63}": "is larger than any number in RAM",
        "keep greater": "the game has not gone on since the moment before: play first",
        "play": "say it as: play FRAMES [BUTTONS]",
        "play soon": "'soon' is not a number of frames",
        "play 5 JUMP": "this console has no button 'JUMP'; it has B, Y, SELECT",
        f"run {tmp_path}/none.txt": "none.txt: no such file",
        f"run {tmp_path}/bad.txt": "bad.txt, line 2: this console has no button 'JUMP'",
        f"trace {tmp_path}/short.txt 31": "short.txt: has 30 frames, and no frame 31",
        f"trace {tmp_path}/race.csv.gz": f"the variables known when it was made, not RAM. Search in {movie}",
        f"trace {movie}": "race.bk2: stable-retro can't read this movie: it is damaged",
        "load Level9": "no such start state of HomebrewKart-Snes",
        "undo": "there is nothing to take back",
        "list": "too many to rank: narrow them down with 'keep' first",
        "list some": "say it as: list [all]",
        "add 1": "say what to call it: add NUMBER [NAME]",
        "help fly": "there is no command 'fly'",
        "play 'x": "is not a command: No closing quotation",
    }.items():
        with pytest.raises(KartRewardsError, match=re.escape(message)):
            prompt.onecmd(line)
    assert prompt.prompt == "frame 0, 131,073 addresses left> ", "nothing of it had an effect"


def test_when_nothing_is_left_undo_is_offered(prompt: SearchPrompt, capsys: pytest.CaptureFixture[str]) -> None:
    for line in ("play 3", "keep +3", "play 5", "keep +4"):
        assert not prompt.onecmd(line)
    assert capsys.readouterr().out.endswith("no address fits. 'undo' takes this back; 'start' begins anew\n")
    with pytest.raises(KartRewardsError, match="there is no number 1 in the list: it has 0"):
        prompt.onecmd("add 1 frames")
    for line in ("undo", "keep +5", "add 1 frames"):
        prompt.onecmd(line)
    assert "0x7E0038" in capsys.readouterr().out
    with pytest.raises(KartRewardsError, match="there is no number 99 in the list"):
        prompt.onecmd("add 99 frames")


def test_a_script_ends_at_the_command_that_fails(games: Path, tmp_path: Path) -> None:
    script = tmp_path / "commands.txt"
    script.write_text("# first\nplay 1\nfly\nplay 1\n")
    done = search(games, "", "--script", script, check=False)
    assert done.returncode == 2
    assert f"error: {script}, line 3: unknown command 'fly': There are play, run, window" in done.stderr
    assert done.stdout.endswith("frame 1, 131,073 addresses left> fly\n")

    done = search(games, "play 1\nwindow\n", check=False)
    assert done.returncode == 2
    assert "error: standard input, line 2: a window needs a display, and there is none" in done.stderr


def test_files_are_checked_before_the_game_starts(games: Path) -> None:
    data = games / GAME / "data.json"
    for content, options, message in (
        ('{"info"', {}, f"{data}: is not JSON"),
        ('{"info": {}}', {"script": games / "none.txt"}, "none.txt: can't be read"),
        ('{"info": {}}', {"state": "Level9"}, "no such start state"),
    ):
        data.write_text(content)
        with pytest.raises(KartRewardsError, match=re.escape(message)):
            search_module.search(GAME, integrations=games, **options)


def test_a_person_at_a_terminal_can_interrupt_and_go_on(games: Path) -> None:
    """Ctrl-C ends what runs, not the search; at the prompt it ends the search. Mistakes end nothing."""
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
        # Python misses one that comes between its showing the prompt and its reading; a person presses again.
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
