"""Damaged and foreign checkpoints: each command refuses them in one message, or works.

A file format that users send each other is read by three commands. Reports of the kind: a loader that runs code (the
reason for PyTorch's ``weights_only``), and an optimizer whose moments have another shape than the weights.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import importlib
import io
import math
import random
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import platformdirs
import pytest
import torch
from training_runs import GAME, RESUME, SMALL, assert_refused, only_run, train_here

import kart_rewards.__main__ as command_line
from kart_rewards.evaluation import evaluator
from kart_rewards.files import copies_in_use, use_copies
from kart_rewards.training.checkpoints import Checkpoint
from kart_rewards.training.processes import Workers

MUTATIONS = {"resume": 150, "evaluate": 30, "watch": 135}
JUNK: list[Any] = [
    None,
    True,
    -1,
    2**70,
    math.nan,
    math.inf,
    "x",
    "",
    b"\x00",
    [],
    [{}],
    [1],
    {},
    {"a": 1},
    (1, 2),
    torch.zeros(3),
    torch.zeros(2, 2, dtype=torch.int8),
    torch.zeros(0),
]


@pytest.fixture(scope="module", autouse=True)
def imports_of_an_optimizer(quick_garbage_collection: None) -> None:
    """Imports what the first optimizer imports, and exempts it from garbage collection, too. It takes seconds."""
    importlib.import_module("torch._dynamo")
    gc.freeze()


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two updates, with agent.pt and best.pt."""
    runs = tmp_path_factory.mktemp("runs")
    train_here(
        "--env-id", GAME, *SMALL, "--total-timesteps", 64, "--eval-interval", 1, "--eval-episodes", 1,
        "--max-episode-steps", 3, "--runs-path", runs,
    )  # fmt: skip
    return only_run(runs)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """All places in nested dicts and lists, as keys from the outside in."""
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*at, key)
        yield from places(item, (*at, key))


def mutated(content: dict[str, Any], seed: int) -> tuple[dict[str, Any], str]:
    """The content with one value replaced or removed, and what was changed."""
    choose = random.Random(seed)
    changed = copy.deepcopy(content)
    first = choose.choice(sorted(changed))  # not most often one of the many weights
    inside = [(first, *place) for place in places(changed[first])]
    place = choose.choice([(first,), *inside])
    target: Any = changed
    for key in place[:-1]:
        target = target[key]
    if choose.random() < 0.1:
        del target[place[-1]]
        return changed, f"{place} removed"
    target[place[-1]] = choose.choice(JUNK)
    return changed, f"{place} = {target[place[-1]]!r}"


def kart_rewards(*arguments: object) -> tuple[int, str]:
    """Runs a command in this process. Returns its exit code and standard error."""
    stderr, code = io.StringIO(), 0
    with (
        mock.patch.object(sys, "argv", ["kart-rewards", *map(str, arguments)]),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(stderr),
    ):
        try:
            command_line.main()
        except SystemExit as end:
            code = int(end.code or 0)
    return code, stderr.getvalue()


def map_here(workers: Workers, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
    """Plays the episodes of an evaluation in this process. Each process of an evaluation would import PyTorch."""
    copies = copies_in_use()
    try:
        for task in tasks:
            yield function(*task)
    finally:
        if evaluator._kept:
            evaluator._kept[1].close()
        evaluator._kept = None
        use_copies(copies)


# harvard-edge/cs249r_book#2050: damaged checkpoints ended in errors deep inside, which name neither the file nor the
# fault.
@pytest.mark.parametrize("command", MUTATIONS)
def test_a_checkpoint_with_one_wrong_value_is_refused_in_one_message_or_works(
    run_folder: Path, tmp_path: Path, command: str, thorough: bool
) -> None:
    content = torch.load(run_folder / "agent.pt", weights_only=True)
    mutations, refused = MUTATIONS[command] // (1 if thorough else 10), 0
    for seed in range(mutations):
        changed, what = mutated(content, seed)
        folder = tmp_path / str(seed)
        folder.mkdir()
        torch.save(changed, folder / "agent.pt")
        if command == "resume":
            more = ["--total-timesteps", 96, "--eval-interval", 0, "--runs-path", folder / "runs", "--device", "cpu"]
            finished = train_here("--resume", folder / "agent.pt", *more, check=False)
            code, stderr = finished.returncode, finished.stderr
        elif command == "evaluate":
            with mock.patch("kart_rewards.training.processes.Workers.map", map_here):
                code, stderr = kart_rewards(
                    "evaluate", folder / "agent.pt", "--eval-episodes", 1, "--eval-states", "Level1"
                )
        else:
            output = folder / "video.mp4"
            with mock.patch("kart_rewards.look.watch._SECONDS_AFTER_EPISODE", 0.0):  # else nearly all of the video
                code, stderr = kart_rewards(
                    "watch", folder / "agent.pt", "--output", output, "--seconds", 0.05, "--scale", 1
                )
        assert code in (0, 2), (what, stderr)
        assert "Traceback" not in stderr, (what, stderr)
        if code:
            refused += 1
            assert stderr.startswith("error: "), (what, stderr)
            assert len(stderr) < 2000, (what, stderr)
        shutil.rmtree(folder)
    assert refused > mutations / 10


# pytorch/pytorch#40769: moments of another shape than the weights were loaded, and the first step of Adam failed.
def test_an_optimizer_moment_of_the_wrong_shape_is_refused(run_folder: Path, tmp_path: Path) -> None:
    """PyTorch's fused Adam reads past the end of such a tensor, and the process crashes."""
    content = torch.load(run_folder / "agent.pt", weights_only=True)
    content["optimizer"]["state"][0]["exp_avg"] = torch.zeros(1)
    torch.save(content, tmp_path / "agent.pt")
    finished = train_here(*RESUME, tmp_path / "agent.pt", "--total-timesteps", 96, check=False)
    assert_refused(finished, "agent.pt: is damaged: the optimizer's state does not fit the agent")


@pytest.fixture
def foreign(run_folder: Path, tmp_path: Path) -> Path:
    """A crafted checkpoint that names a Python file, which would leave a trace if it ran."""
    (tmp_path / "evil.py").write_text(
        f"open({str(tmp_path / 'trace')!r}, 'w').close()\n"
        "from kart_rewards import reward_term\n@reward_term()\ndef gift(ram):\n    return 1.0\n"
    )
    content = torch.load(run_folder / "agent.pt", weights_only=True)
    content["options"]["env"]["rewards"] = (str(tmp_path / "evil.py"),)
    torch.save(content, tmp_path / "agent.pt")
    return tmp_path / "agent.pt"


# mit-ll-responsible-ai/equine#168: a model that was shared runs the code that it contains before anything is checked.
def test_code_that_a_foreign_checkpoint_names_does_not_run(foreign: Path) -> None:
    folder = foreign.parent
    finished = train_here(*RESUME, foreign, "--total-timesteps", 96, check=False)
    assert_refused(finished, "was not made by you on this computer", str(folder / "evil.py"), "--trust")
    code, stderr = kart_rewards("watch", foreign, "--output", folder / "video.mp4", "--seconds", 0.05, "--scale", 1)
    assert code == 0, stderr
    assert (folder / "video.mp4").exists(), "the agent is still watched"
    finished = train_here("--evaluate", foreign, "--eval-episodes", 1, "--eval-states", "Level1")
    assert "there are race metrics, but no rewards" in finished.stdout
    assert not (folder / "trace").exists()


def test_a_trusted_checkpoint_runs_its_code(foreign: Path) -> None:
    train_here(*RESUME, foreign, "--total-timesteps", 96, "--trust", "--allow-changed-rewards")
    assert (foreign.parent / "trace").exists()


def test_ones_own_checkpoint_needs_no_trust(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from kart_rewards import reward_term\n@reward_term()\ndef gift(ram):\n    return 1.0\n"
    )
    arguments = ["--env-id", GAME, *SMALL, "--rewards", tmp_path / "mine.py", "--runs-path", tmp_path / "runs"]
    train_here(*arguments, "--total-timesteps", 32)
    agent = only_run(tmp_path / "runs") / "agent.pt"
    train_here(*RESUME, agent, "--total-timesteps", 64)
    assert Checkpoint.load(agent).steps == 64
    with mock.patch.object(platformdirs, "user_data_path", return_value=tmp_path / "another user"):
        finished = train_here(*RESUME, agent, "--total-timesteps", 96, check=False)
    assert_refused(finished, "was not made by you on this computer")
