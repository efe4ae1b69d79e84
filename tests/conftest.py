"""Fixtures and helpers that several test files use."""

from __future__ import annotations

import atexit
import gc
import importlib.util
import os
import pickle
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stable_retro
from filelock import FileLock
from training_runs import SMALL, TERM_OF_SPEED, TrainedRun, only_run, train_here

from kart_rewards.drives import Drive
from kart_rewards.integrations import INTEGRATIONS

GAME = "HomebrewKart-Snes"
SNES_SHAPE = (224, 256, 3)

# Several test processes share the processor cores. PyTorch reads this in each process: with more threads, they would
# wait for each other most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The processes that tests start read the compiled modules, instead of compiling each of them again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# The user's own games must not change the results, and what tests leave in the cache, or as logs of Stable-Baselines3,
# must not be the user's.
os.environ["KART_REWARDS_INTEGRATIONS"] = os.devnull
if "PYTEST_XDIST_WORKER" not in os.environ:  # the processes of a run share one cache
    os.environ["XDG_CACHE_HOME"] = os.environ["SB3_LOGDIR"] = _cache = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)

# The background jobs of a shell ignore Ctrl-C, and so do their child processes. Some tests send Ctrl-C to a process.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)


def names_tests(config: pytest.Config) -> bool:
    """Whether some tests are chosen on the command line, by their files, names, marks or failures."""
    options, tests = config.option, Path(__file__).resolve().parent
    words = f"{options.keyword} {options.markexpr}".split()
    if (words and "not" not in words) or getattr(options, "lf", False) or getattr(options, "stepwise", False):
        return True
    return any(Path(name).resolve() not in (tests, tests.parent) for name in options.file_or_dir)


def left_out(config: pytest.Config) -> set[str]:
    """The marks of the tests that are skipped."""
    if config.getoption("slow"):
        return set()
    return {"hours"} if names_tests(config) else {"hours", "slow"}


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist's
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Lets three processes run the complete suite. Named tests run in this process, as -s and --pdb need it."""
    options = config.option
    if not config.pluginmanager.hasplugin("xdist") or hasattr(config, "workerinput"):
        return
    interactive = options.usepdb or options.trace or options.capture == "no"
    if options.numprocesses is None and not (names_tests(config) or interactive):
        options.numprocesses = 3  # for two cores: some tests wait for seconds
    if options.numprocesses and options.dist == "no":
        options.dist = "loadfile"  # a process can hold one emulator
        options.loadscopereorder = False  # else the files with the most tests start first, not the longest ones


LONGEST = (
    "lint", "page", "docs", "wheel", "homebrew", "consoles", "audit", "agents_command", "damaged_checkpoints",
    "evaluator", "log", "ppo", "reference", "two_machines", "reference_laps", "env", "ranks", "sb3", "ablate",
    "walk_through", "integrating", "doctor", "watch", "declared", "run", "drawing", "score", "server", "search",
    "sources", "agents", "play", "lua", "cost", "generate", "fingerprint", "port", "in_training", "exploits",
    "drives", "ram_search", "checkpoints", "ram", "script_rewards", "study_report", "states",
)  # fmt: skip
"""The test files that take longest, without ``test_``. A file that started last would leave a process without work."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the option that runs all tests."""
    parser.addoption("--slow", action="store_true", help="run all tests, also those with the marks slow and hours")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Lets the longest files start first. Skips slow tests, unless their file is named."""
    marks = left_out(config)
    for item in items:
        if any(map(item.get_closest_marker, marks)):
            item.add_marker(pytest.mark.skip(reason="takes long: pytest --slow runs it"))
    rank = {f"test_{name}.py": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.fixture
def thorough(pytestconfig: pytest.Config) -> bool:
    """Whether slow tests run, for tests that otherwise do less."""
    return "slow" not in left_out(pytestconfig)


@pytest.fixture(scope="module", autouse=True)
def quick_garbage_collection() -> None:
    """Exempts the modules that are imported so far from garbage collection.

    Each environment collects garbage when it starts and when it ends. With PyTorch, each time takes a tenth of a
    second, and twice that in a forked child, which has to copy the memory that it looks through.
    """
    gc.collect()
    gc.freeze()


def tiny_rom() -> bytes:
    """A SNES ROM that does nothing: a LoROM header, and an endless loop at the reset vector."""
    rom = bytearray(b"\xea" * 0x8000)
    rom[0:2] = b"\x80\xfe"  # bra *-2
    rom[0x7FC0:0x7FD5] = b"TINY".ljust(21)
    rom[0x7FD5], rom[0x7FD7] = 0x20, 5
    rom[0x7FFC:0x7FFE] = b"\x00\x80"
    return bytes(rom)


@pytest.fixture(scope="session")
def tiny_rom_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of ``tiny_rom``."""
    path = tmp_path_factory.mktemp("tiny") / "rom.sfc"
    path.write_bytes(tiny_rom())
    return path


@pytest.fixture
def tiny_state(tiny_rom_path: Path) -> bytes:
    """An emulator state of ``tiny_rom``. No emulator is left in this process."""
    gc.collect()
    emulator = stable_retro.RetroEmulator(str(tiny_rom_path))
    emulator.step()
    return emulator.get_state()


@contextmanager
def emulator(rom: Path, folder: Path) -> Iterator[tuple[Any, Any]]:
    """stable-retro's emulator one frame after the start of a ROM, and its game data for the JSON files of a folder."""
    gc.collect()
    em, data = stable_retro.RetroEmulator(str(rom)), stable_retro.data.GameData()
    em.configure_data(data)
    em.step()
    assert data.load(str(folder / "data.json"), str(folder / "scenario.json"))
    yield em, data
    del em, data
    gc.collect()


@pytest.fixture
def tiny_emulator(tiny_rom_path: Path) -> Iterator[tuple[Any, Any]]:
    """An emulator that runs ``tiny_rom``, and its game data without variables."""
    folder = tiny_rom_path.parent
    (folder / "data.json").write_text('{"info": {}}')
    (folder / "scenario.json").write_text("{}")
    with emulator(tiny_rom_path, folder) as pair:
        yield pair


@pytest.fixture
def own_game(tmp_path: Path) -> Path:
    """A folder of integrations with a copy of HomebrewKart, which a test may change."""
    shutil.copytree(INTEGRATIONS / GAME, tmp_path / GAME)
    return tmp_path


def load_module(path: Path) -> Any:
    """Imports a Python file of a folder that is not a package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module
    spec.loader.exec_module(module)
    return module


def play(env: Any, actions: list[Any], seed: int = 5) -> list[tuple[bytes, float, bool, Any]]:
    """Plays actions from a reset on. Returns observation, reward, terminated and RAM snapshot after each step."""
    observation, _ = env.reset(seed=seed)
    log = [(observation.tobytes(), 0.0, False, env.unwrapped.ram)]
    for action in actions:
        observation, reward, terminated, _, _ = env.step(action)
        log.append((observation.tobytes(), reward, terminated, env.unwrapped.ram))
        if terminated:
            break
    return log


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """A short run of the retail game without its ROM, with an additional reward term, evaluations and videos.

    Several test processes share one, so a test that changes it needs a copy.
    """
    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "trained"
    with FileLock(f"{folder}.lock"):
        if not (folder / "finished").exists():
            folder.mkdir(exist_ok=True)
            (folder / "my_rewards.py").write_text(TERM_OF_SPEED)
            finished = train_here(
                "--env-id", "MarioKart-Snes", *SMALL, "--total-timesteps", 96, "--max-episode-steps", 40,
                "--eval-interval", 2, "--eval-episodes", 2, "--capture-video", "--video-gif",
                "--rewards", folder / "my_rewards.py", "--reward-weights", "wall=-5", "--runs-path", folder / "runs",
            )  # fmt: skip
            (folder / "finished").write_bytes(pickle.dumps(finished))
        finished = pickle.loads((folder / "finished").read_bytes())  # noqa: S301 - written above
    return TrainedRun(only_run(folder / "runs"), finished)


def part_of(drive: Drive, frames: int) -> Drive:
    """The beginning of a drive of single frames."""
    columns = {name: column[:frames] for name, column in drive.columns.items()}
    steps = np.ones(frames - 1, np.uint16)
    return replace(
        drive, columns=columns, masks=drive.masks[: frames - 1], step_frames=steps, actions=drive.actions[: frames - 1],
        rewards=drive.rewards[: frames - 1],
    )  # fmt: skip
