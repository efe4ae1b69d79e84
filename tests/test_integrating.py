"""The pages about games do what they say: the example of another console runs as it stands there."""

from __future__ import annotations

import ast
import contextlib
import itertools
import json
import os
import re
import shlex
import shutil
import socket
import string
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import forks
import pytest
from training_runs import only_run, scalars

from kart_rewards.errors import KartRewardsError
from kart_rewards.games.condition import Condition
from kart_rewards.ram import RamLayout, Variable
from kart_rewards.testing import START_OF_RACE, snapshot

ROOT = Path(__file__).parent.parent
PAGES = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(?:^`(?P<file>[\w./-]+)`:\n\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```", re.M | re.S)
# Training as the page has it, but short, with episodes short enough to end.
SHORT = (
    "--total-timesteps 64 --num-envs 1 --num-steps 64 --num-minibatches 1 --update-epochs 1 --max-episode-steps 30 "
    "--eval-interval 0"
)
FORKED = {"kart-rewards": (["-m", "kart_rewards"], forks.COMMANDS), "python": ([], forks.TRAINING)}
"""A command -> the arguments of Python that run it, and the modules that it imports."""


def section(title: str) -> str:
    """The page with a title, or the part of a page under a heading of the second rank."""
    (text,) = (page for page in PAGES if re.search(f"^##? {re.escape(title)}$", page, flags=re.M))
    return text if text.startswith(f"# {title}\n") else text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def commands(text: str) -> list[str]:
    """The lines of the bash blocks in a part of a page."""
    return "".join(block["text"] for block in BLOCK.finditer(text) if block["language"] == "bash").splitlines()


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A folder like the repository's, in which games may be made."""
    for name in ("kart_rewards", "examples", "integrations/HomebrewKart-Snes"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "ppo_continuous_single_file.py", tmp_path)
    retail = tmp_path / "integrations" / "MarioKart-Snes"
    retail.mkdir()
    for name in ("data.json", "metadata.json", "rom.sha", "scenario.json"):  # not somebody's dump
        shutil.copy(ROOT / "integrations" / "MarioKart-Snes" / name, retail)
    return tmp_path


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a shell command as a reader does: in the folder, with the virtual environment active.

    What needs no shell runs as a fork, which saves its imports.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "PYTHONPATH": str(folder), "HOME": str(folder), "COLUMNS": "200"}
    program, *arguments = shlex.split(command)
    if program in FORKED and not re.search(r"[$|&;<>~]|\n.", command):
        beginning, modules = FORKED[program]
        return forks.run([sys.executable, *beginning, *arguments], modules, cwd=folder, env=env)
    return subprocess.run(
        ["/bin/bash", "-euo", "pipefail", "-c", command],
        cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


def shows(output: str, line: str) -> bool:
    """Whether a line is in the output; … stands for anything."""
    pattern = ".*".join(map(re.escape, line.split("…")))
    return re.search(f"^{pattern}$", output, flags=re.M) is not None


@pytest.mark.slow
def test_a_game_that_stable_retro_already_knows(workspace: Path) -> None:
    text = section("A game that stable-retro already knows")
    [own] = [block["text"] for block in BLOCK.finditer(text) if block["language"] == "python"]
    (workspace / "my_rewards.py").write_text(own)
    games, train, tensorboard, _, games_all, train_with_own = commands(text.replace("\\\n", ""))
    listed = run(games, workspace)
    assert shows(listed.stdout, "Airstriker-Genesis-v0 … right … Level1 (default) …"), listed
    assert len(run(games_all, workspace).stdout.splitlines()) > 1000
    terms = []
    for command in (train, train_with_own):
        done = run(re.sub(r"--total-timesteps \d+", SHORT, command), workspace)
        assert done.returncode == 0, done.stderr
        table = done.stdout.partition("\n\n")[0].splitlines()
        terms.append([line.split()[:2] for line in table if line.startswith("  ")])
    assert terms[0] == [["score", "1"], ["gameover_and_lives", "ends"]]
    assert terms[1] == [["score", "0.5"], ["ship_lost", "-100"], ["gameover_and_lives", "ends"]]
    assert_tensorboard_shows({"rewards/score", "rewards/ship_lost"}, tensorboard, workspace)


@pytest.mark.slow
def test_another_game_on_another_console(workspace: Path) -> None:
    output = ""
    for block in BLOCK.finditer(section("A game of your own")):
        if block["file"]:
            (workspace / block["file"]).write_text(block["text"])
        elif block["language"] == "text":
            for line in block["text"].splitlines():
                assert shows(output, line), f"{line!r} is not in\n{output}"
        elif block["text"].startswith("tensorboard"):  # the test above has started it
            assert block["text"].strip() in commands(section("A game that stable-retro already knows"))
            assert {"rewards/points", "rewards/ship_lost"} <= scalars(only_run(workspace / "runs")).keys()
        else:
            assert block["language"] == "bash", block["text"]
            done = run(re.sub(r"--total-timesteps \d+", SHORT, block["text"]), workspace)
            output = done.stdout
            assert done.returncode == 0, f"{block['text']}\n{output}{done.stderr}"
    found = RamLayout.from_file(workspace / "integrations" / "Airstriker-Genesis" / "data.json")
    assert [(v.name, v.address, v.type) for v in found.variables] == [
        ("lives", 16712283, "|u1"),  # the low byte of what stable-retro's own integration reads
        ("score", 16712270, ">u4"),
    ]


def assert_tensorboard_shows(wanted: set[str], command: str, folder: Path) -> None:
    """Starts TensorBoard, and waits until it serves these curves."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    arguments = [sys.executable, "-m", "tensorboard.main", *shlex.split(command)[1:], "--port", str(port)]
    server = subprocess.Popen(arguments, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        shown: set[str] = set()
        latest = time.monotonic() + 120
        while not wanted <= shown:
            assert server.poll() is None, "TensorBoard ended"
            assert time.monotonic() < latest, f"TensorBoard shows only {shown}"
            time.sleep(0.25)
            with (
                contextlib.suppress(OSError),  # it has not started yet
                urllib.request.urlopen(f"http://localhost:{port}/data/plugin/scalars/tags", timeout=30) as reply,
            ):
                shown = set().union(*json.load(reply).values())
    finally:
        server.terminate()
        server.wait(timeout=30)


def test_the_random_agent_reports_a_mistake(workspace: Path) -> None:
    done = run("python examples/random_agent.py integrations HomebrewKart", workspace)
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown game 'HomebrewKart'. Did you mean 'HomebrewKart-Snes'?")


def test_the_retail_games_commands_are_right_but_for_the_rom(workspace: Path) -> None:
    reported = []
    (workspace / "dumps").mkdir()
    (workspace / "dumps" / "readme.txt").write_text("no dump")
    for command in commands(section("Super Mario Kart")):
        if not command.startswith("tensorboard"):
            done = run(command, workspace)
            reported.append((done.returncode, (done.stderr or done.stdout).strip()))
    imported, state, doctor, play, training = reported
    assert imported[0] == 2
    assert imported[1].startswith("error: none of these files (1) is the ROM of a known game")
    for code, error in (state, play, training):
        assert code == 2
        assert error.startswith("error: MarioKart-Snes has no ROM: "), error
        assert "rom.sfc is missing" in error
    assert doctor[0] == 1
    assert "FAIL  ROM: MarioKart-Snes has no ROM" in doctor[1]


def test_the_window_pauses_where_the_public_start_state_is() -> None:
    text = section("Super Mario Kart")
    facts = " ".join(text.split()).partition("in a time trial they read: ")[2].partition(".")[0].split(", ")
    read = {name: int(value) for name, value in map(str.split, facts)}
    start = snapshot()
    assert read == {name: getattr(start, name) for name in START_OF_RACE}
    (until,) = re.findall(r'--until "(.+?)"', text)
    holds = Condition(until, read)
    assert holds(start)
    assert not holds(snapshot(current_frame=start.current_frame - 1))


def test_the_page_names_all_types_of_data_json() -> None:
    table = section("The files of a game").partition("| byte order |")[2].partition("\n\n")[0]
    cells = [re.split(r"(?<!\\)\|", row) for row in table.splitlines()[2:]]
    orders, kinds = (
        {item.replace("\\", "") for row in cells for item in re.findall("`(.+?)`", row[column])} for column in (1, 3)
    )
    accepted = set()
    for order in [*"|<>=!", *map("".join, itertools.product("|<>=!", repeat=2))]:
        for kind in string.ascii_letters:
            with contextlib.suppress(KartRewardsError):
                accepted.add((order, Variable("name", 0, f"{order}{kind}2").type[-2]))
    assert accepted == set(itertools.product(orders, kinds))


def test_the_examples_of_files_are_sound(tmp_path: Path) -> None:
    examples = [block["text"] for block in BLOCK.finditer(section("The files of a game"))]
    assert len(examples) == 1
    (tmp_path / "data.json").write_text(examples[0])
    assert RamLayout.from_file(tmp_path / "data.json").names == ("speed", "race_seconds", "gear")


def test_the_messages_that_are_explained_are_the_programs() -> None:
    texts = []
    for path in [*sorted((ROOT / "kart_rewards").rglob("*.py")), ROOT / "ppo_continuous_single_file.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    explained = re.findall(r"^\| (`.+?) \|", section("When something goes wrong"), flags=re.M)
    ours = [cell for cell in explained if not cell.startswith(("`pip`", "`docker`"))]
    assert len(ours) > 10
    for cell in ours:
        message = cell.strip("`")
        assert any(message in text for text in texts), f"no part of the program says {message!r}"
