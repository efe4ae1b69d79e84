"""For tests of training: runs of the script, in a process of their own or in this one, and what they leave behind."""

from __future__ import annotations

import contextlib
import io
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import forks
import psutil

from kart_rewards.files import copies_in_use, use_copies
from kart_rewards.notices import notice

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "ppo_continuous_single_file.py"
COMMAND = Path(sys.executable).parent / "kart-rewards"
GAME = "HomebrewKart-Snes"
SMALL = ["--num-envs", "2", "--num-steps", "16", "--num-minibatches", "2", "--update-epochs", "1"]
SMALL += ["--device", "cpu", "--precision", "float32", "--eval-interval", "0", "--size", "42", "42"]
RESUME = ["--eval-interval", "0", "--resume"]
TERM_OF_SPEED = (
    "from kart_rewards import reward_term\n\n\n@reward_term(weight=0.02)\ndef top_speed(ram):\n"
    '    """Pay for speed."""\n    return float(ram.speed > 300)\n'
)
"""A Python file with one reward term."""

Finished = subprocess.CompletedProcess[str]


def train(*arguments: object, check: bool = True, **options: Any) -> Finished:
    """Runs the script in a process of its own.

    Args:
        arguments: The options of the script.
        check: Whether it must succeed.
        options: Arguments of ``forks.run``.
    """
    finished = forks.run([sys.executable, SCRIPT, *arguments], forks.TRAINING, **options)
    assert not check or finished.returncode == 0, finished.stderr
    return finished


def train_here(*arguments: object, check: bool = True) -> Finished:
    """Runs the script in this process, as ``run_here`` does. The environments have processes of their own.

    Args:
        arguments: The options of the script.
        check: Whether it must succeed.
    """
    return run_here(SCRIPT, *arguments, check=check)


def run_here(program: Path, *arguments: object, check: bool = True) -> Finished:
    """Runs a Python program in this process, which saves its imports.

    An evaluation has one process, however many cores there are, because each process imports PyTorch.

    Args:
        program: The file of the program.
        arguments: Its options.
        check: Whether it must succeed.
    """
    words = [str(program), *map(str, arguments)]
    notice.cache_clear()  # a new process prints each notice again
    stdout, stderr, code = io.StringIO(), io.StringIO(), 0
    with contextlib.ExitStack() as changed:
        changed.enter_context(mock.patch.object(sys, "argv", words))
        changed.enter_context(mock.patch.object(threading, "excepthook", threading.excepthook))  # a Log replaces it
        for number in (signal.SIGINT, signal.SIGTERM):
            changed.callback(signal.signal, number, signal.getsignal(number))
        changed.callback(use_copies, copies_in_use())  # a run replaces them by its own
        changed.enter_context(mock.patch("kart_rewards.evaluation.evaluator.processor_count", return_value=1))
        changed.enter_context(contextlib.redirect_stdout(stdout))
        changed.enter_context(contextlib.redirect_stderr(stderr))
        try:
            runpy.run_path(str(program), run_name="__main__")
        except SystemExit as end:
            code = int(end.code or 0)
    finished = subprocess.CompletedProcess(words, code, stdout.getvalue(), stderr.getvalue())
    assert not check or code == 0, finished.stderr
    return finished


@dataclass(frozen=True)
class TrainedRun:
    """A run that is finished.

    Args:
        folder: The run's folder, the only one in its folder of runs.
        finished: The process, and what it printed.
    """

    folder: Path
    finished: Finished

    def copy(self, runs: Path) -> Path:
        """Copies the folder of runs, and returns the run's folder in it."""
        shutil.copytree(self.folder.parent, runs)
        return only_run(runs)


@contextlib.contextmanager
def started(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Starts the script as a process with a process group of its own, and kills it in the end."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = forks.Fork([sys.executable, SCRIPT, *arguments], forks.TRAINING, **pipes)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def finish(process: subprocess.Popen[str], seconds: float = 120) -> Finished:
    """Waits for the end of a process, and returns its result."""
    stdout, stderr = process.communicate(timeout=seconds)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def assert_refused(finished: Finished, *words: str) -> None:
    """The script ended as it should on a mistake of the user's: exit code 2, one message, no traceback."""
    assert finished.returncode == 2, finished.stdout + finished.stderr
    assert "Traceback" not in finished.stdout + finished.stderr
    assert finished.stderr.startswith("error: ")
    for word in words:
        assert word in finished.stderr


def only_run(runs: Path) -> Path:
    """Returns the folder of the only run in a folder of runs."""
    [run] = runs.iterdir()
    return run


def events(run: Path) -> Any:
    """Returns a run's TensorBoard log."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(run))
    log.Reload()
    return log


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Returns TensorBoard's scalars of a run: tag -> (step, value)."""
    log = events(run)
    return {tag: [(event.step, event.value) for event in log.Scalars(tag)] for tag in log.Tags()["scalars"]}


def weights(checkpoint: Path) -> dict[str, Any]:
    """Returns the weights in a checkpoint."""
    from kart_rewards.training.checkpoints import Checkpoint

    return Checkpoint.load(checkpoint).agent


def equal_weights(first: Path, second: Path) -> bool:
    """Whether two checkpoints have the same weights, bit for bit."""
    ours, others = weights(first), weights(second)
    assert ours.keys() == others.keys()
    return all(value.equal(others[name]) for name, value in ours.items())


def children(process: int) -> list[int]:
    """Returns the process ids of a process's children that are still running."""
    return [child.pid for child in psutil.Process(process).children() if alive(child.pid)]


def forked_children(process: int) -> list[psutil.Process]:
    """Returns the children of a process, without those that multiprocessing itself uses and keeps."""
    own = ("resource_tracker", "forkserver")
    children = psutil.Process(process).children()
    return [child for child in children if not any(word in " ".join(child.cmdline()) for word in own)]


def clean_children(process: int) -> list[psutil.Process]:
    """Returns the processes that a process has started with the method ``CLEAN``: its fork server's children."""
    servers = [each for each in psutil.Process(process).children() if "forkserver" in " ".join(each.cmdline())]
    return [child for server in servers for child in server.children() if alive(child.pid)]


def alive(process: int) -> bool:
    """Whether a process runs. A process that has ended does not, even if nobody has waited for it yet."""
    try:
        return bool(psutil.Process(process).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_until(condition: Callable[[], Any], seconds: float) -> Any:
    """Waits until a condition holds, and returns its value. Fails after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(0.1)
    return result
