"""The wheel, installed where its user may not write, and used from an empty folder."""

from __future__ import annotations

import os
import re
import shlex
import signal
import site
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from command_line import make_game, needs_setpriv, ordinary
from conftest import tiny_rom
from xvfb import Display, virtual_display, wait_until

from kart_rewards.integrations import INTEGRATIONS

ROOT = Path(__file__).parent.parent
KART = "HomebrewKart-Snes"
SHORT = (
    "--num-envs 2 --num-steps 16 --num-minibatches 2 --update-epochs 1 --checkpoint-interval 1 --eval-interval 0 "
    "--max-episode-steps 50 --precision float32"
)
HIDDEN = ("DISPLAY", "WAYLAND_DISPLAY", "PYTHONPATH", "XDG_DATA_HOME", "KART_REWARDS_INTEGRATIONS")
pytestmark = needs_setpriv


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A virtual environment with the wheel, in which nothing may be written; the dependencies are those of the tests.

    The wheel has one more game than the project: Tiny-Snes, whose ROM is missing.
    """
    folder = tmp_path_factory.mktemp("wheel")
    venv = folder / "venv"
    for command in (
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)],
        [sys.executable, "-m", "venv", "--without-pip", str(venv)],
    ):
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    [wheel] = folder.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", str(venv / "bin" / "python")]
    options = ["-q", "--no-deps", "--no-index", "--compile"]  # no process may do it later
    subprocess.run([*pip, "install", *options, str(wheel)], check=True, capture_output=True)
    [packages] = venv.glob("lib/*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    make_game(packages / "kart_rewards" / "integrations_data" / "Tiny-Snes")

    everything = [venv, *venv.rglob("*")]
    modes = {path: path.stat().st_mode for path in everything if not path.is_symlink()}
    for path, mode in modes.items():
        path.chmod(mode & 0o555)
    yield venv
    for path, mode in modes.items():
        path.chmod(mode)
    assert [venv, *venv.rglob("*")] == everything, "nothing was written into the environment"


@dataclass
class User:
    """An ordinary user with an empty home folder, in an empty folder.

    Args:
        venv: The environment whose commands the user runs.
        folder: The folder of both.
    """

    venv: Path
    folder: Path

    def __post_init__(self) -> None:
        self.here, self.home = self.folder / "empty", self.folder / "home"
        self.games = self.home / ".local" / "share" / "kart_rewards" / "integrations"
        self.here.mkdir()
        self.home.mkdir()
        self.programs: list[subprocess.Popen[str]] = []

    def start(self, command: str, display: Display | None = None) -> subprocess.Popen[str]:
        """Starts a command as it is printed."""
        words = shlex.split(command.replace("\\\n", " "))
        words[:1] = [str(self.venv / "bin" / "python"), "-m", "pytest"] if words[0] == "pytest" else words[:1]
        environment = {name: value for name, value in os.environ.items() if name not in HIDDEN}
        environment |= {"HOME": str(self.home), "PATH": f"{self.venv / 'bin'}:{os.environ['PATH']}"}
        environment |= {"DISPLAY": display.name} if display else {}
        program = subprocess.Popen(
            [*ordinary(), *words],
            cwd=self.here,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.programs.append(program)
        return program

    def run(self, command: str, typed: str = "") -> str:
        """Runs a command. Returns what it prints."""
        return finish(self.start(command), typed=typed)


def finish(program: subprocess.Popen[str], code: int = 0, typed: str = "") -> str:
    """Waits for the end of a program. Returns what it printed."""
    output, _ = program.communicate(typed, timeout=120)
    assert program.returncode == code, f"{program.args!r}\n{output}"
    return output


def printed_command(output: str, beginning: str) -> str:
    """The command in an output that begins with these words, with its continuation lines."""
    match = re.search(rf"{re.escape(beginning)}(?:.*\\\n)*.*", output)
    assert match, output
    return match[0]


@pytest.fixture
def user(venv: Path, tmp_path: Path) -> Iterator[User]:
    user = User(venv, tmp_path)
    yield user
    for program in user.programs:
        program.kill()
        program.wait()


@pytest.fixture(scope="module")
def display(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Display]:
    with virtual_display(tmp_path_factory.mktemp("display")) as display:
        yield display


def test_the_package_may_not_be_written_to_and_has_what_it_needs(user: User) -> None:
    code = (
        "import pathlib, kart_rewards, ppo_continuous_single_file as script; "
        "folder = pathlib.Path(kart_rewards.__file__).parent; assert (folder / 'py.typed').exists(); "
        "print(folder.parent, script.__file__); (folder / 'new').touch()"
    )
    output = finish(user.start(shlex.join(["python", "-c", code])), code=1)
    assert "PermissionError" in output
    [packages] = user.venv.glob("lib/*/site-packages")
    assert output.startswith(f"{packages} {packages}/ppo_continuous_single_file.py\n")


def test_games_and_doctor(user: User) -> None:
    *listed, others = user.run("kart-rewards games").splitlines()[1:]
    assert " games of stable-retro without a ROM: " in others
    assert [row.split()[:2] for row in listed] == [
        ["Airstriker-Genesis-v0", "right"],
        [KART, "right"],
        ["HomebrewKartPlus-Snes", "right"],
        ["MarioKart-Snes", "missing"],
        ["Tiny-Snes", "missing"],
    ]
    assert all(f"{user.venv}/" in row for row in listed[1:])
    report = user.run(f"kart-rewards doctor {KART}")
    assert report.splitlines()[-1].startswith("pass: ")
    assert not list(user.here.iterdir())


def test_train_and_resume(user: User) -> None:
    training = user.start(f"kart-rewards train {SHORT}")
    wait_until(
        lambda: training.poll() is not None or list(user.here.glob("runs/*/agent-[1-9]*.pt")), "the first update"
    )
    training.send_signal(signal.SIGINT)
    output = finish(training)
    assert f"Training {KART} instead" in output  # MarioKart-Snes, the default, has no ROM
    resume = printed_command(output, "kart-rewards train --resume")
    steps = max(int(path.stem.partition("-")[2]) for path in user.here.glob("runs/*/agent-*.pt"))
    user.run(f"{resume} --total-timesteps {steps + 32}")
    assert list(user.here.glob(f"runs/*/agent-{steps + 32}.pt"))


@pytest.mark.slow
def test_evaluate_and_watch(user: User) -> None:
    steps = user.run(f"kart-rewards train {SHORT} --total-timesteps 32")
    [run] = user.here.glob("runs/*")
    tables = user.run(f"{printed_command(steps, 'kart-rewards evaluate')} --eval-states Level1 --eval-episodes 1")
    assert "reference" in tables
    assert (run / "evaluation.json").exists()
    user.run(f"{printed_command(steps, 'kart-rewards watch')} --seconds 0.5 --scale 1 --output drive.mp4")
    assert (user.here / "drive.mp4").stat().st_size > 1000


@pytest.mark.slow
def test_a_rom_is_imported_into_the_users_folder(user: User) -> None:
    (user.here / "dump.smc").write_bytes(bytes(512) + tiny_rom())
    missing = finish(user.start("kart-rewards play Tiny-Snes"), code=2)
    output = user.run(printed_command(missing, "kart-rewards import PATH").replace("PATH", "dump.smc"))
    rom = user.games / "Tiny-Snes" / "rom.sfc"
    assert f"copied Tiny-Snes to {rom.parent}; " in output
    assert f"dump.smc: imported as Tiny-Snes's ROM: {rom} (512-byte copier header removed)\n" in output
    assert rom.read_bytes() == tiny_rom()
    listed = {row.split()[0]: row.split() for row in user.run("kart-rewards games").splitlines()}
    assert listed["Tiny-Snes"] == ["Tiny-Snes", "right", "none", str(rom.parent)]


@pytest.mark.slow
def test_states_and_variables_of_a_game_in_the_package_are_kept_in_the_first_folder_that_may_be_written_to(
    user: User,
) -> None:
    (user.here / "integrations").mkdir()
    (user.here / "wait.txt").write_text("60\n")
    output = user.run(f"kart-rewards state {KART} waiting --start Level1 --inputs wait.txt")
    game = user.here / "integrations" / KART
    assert f"copied {KART} to {game}; " in output
    assert f"kept {game}/waiting.state" in output
    (user.here / "find.txt").write_text("play 60 B\nkeep greater\nadd 1 grows\n")
    assert f"{game}/data.json" in user.run(f"kart-rewards search {KART} --state waiting --script find.txt")
    assert '"grows"' in (game / "data.json").read_text()
    assert "grows" in user.run(f"kart-rewards ram integrations/{KART}/waiting.state")


@pytest.mark.slow
def test_a_new_game_and_the_next_steps_that_are_printed(user: User, display: Display) -> None:
    (user.here / "dump.sfc").write_bytes((INTEGRATIONS / KART / "rom.sfc").read_bytes())  # a game that runs
    steps = user.run("kart-rewards new Mine-Snes dump.sfc")
    folder = user.games / "Mine-Snes"
    assert f"made {folder}\n" in steps

    state = user.start(printed_command(steps, "kart-rewards state"), display)
    wait_until(lambda: state.poll() is not None or not display.is_dark(), "the window is open")
    display.xdotool("key", "F5")
    wait_until(lambda: state.poll() is not None or (folder / "start.state").exists(), "the state is kept")
    if state.poll() is None:
        display.xdotool("key", "Escape")
    assert f"kept {folder}/start.state" in finish(state)

    assert "1 passed" in user.run(printed_command(steps, "pytest /"))
    found = user.run(printed_command(steps, "kart-rewards search"), "play 60 B\nkeep greater\nadd 1 grows\n")
    assert f"{folder}/data.json" in found


def test_play_records_into_the_current_folder(user: User, display: Display) -> None:
    playing = user.start("kart-rewards play", display)
    wait_until(lambda: playing.poll() is not None or not display.is_dark(), "the window is open")
    if playing.poll() is None:
        display.xdotool("key", "Escape")
    finish(playing)
    assert sorted(path.name for path in user.here.glob("recordings/*")) == [
        f"{KART}-Level1-1.bk2",
        f"{KART}-Level1-1.drive",
    ]
