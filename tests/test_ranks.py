"""Training on several processes: gloo on this machine's CPU, two local ranks.

torchrun starts the run that it stops. The other tests start the ranks with the environment variables that torchrun
sets, because torchrun and each rank that it starts import PyTorch.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import shutil
import socket
import struct
import subprocess
import sys
import termios
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import forks
import psutil
import pytest
import torch
from torch import nn
from training_runs import (
    GAME,
    ROOT,
    SCRIPT,
    SMALL,
    Finished,
    equal_weights,
    finish,
    run_here,
    scalars,
    train_here,
    wait_until,
)

from kart_rewards.errors import KartRewardsError
from kart_rewards.training.checkpoints import Checkpoint
from kart_rewards.training.ranks import Ranks, joined

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def start_two_ranks(program: Path, *arguments: object) -> list[forks.Fork]:
    """Starts a program as two ranks, rank 0 first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank in ("0", "1"):
        of_torchrun = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        of_torchrun |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        words, pipes = [sys.executable, program, *arguments], {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        ranks.append(forks.Fork(words, forks.TRAINING, env=ENVIRONMENT | of_torchrun, **pipes))
    return ranks


def run_two_ranks(program: Path, *arguments: object) -> Finished:
    """Runs a program as two ranks. Returns what both printed, rank 0 first."""
    finished = [finish(each) for each in start_two_ranks(program, *arguments)]
    stdout, stderr = ("".join(getattr(each, name) for each in finished) for name in ("stdout", "stderr"))
    return subprocess.CompletedProcess([str(program)], max(abs(each.returncode) for each in finished), stdout, stderr)


# ------------------------------------------------------------------------------------------------------- one process
def test_the_ranks_are_those_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert Ranks.from_torchrun() == Ranks(rank=5, world_size=8, local_rank=1, local_world_size=4)


def test_without_torchrun_there_is_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert Ranks.from_torchrun() == Ranks(rank=0, world_size=1, local_rank=0, local_world_size=1)


@pytest.mark.parametrize(("cores", "local_world_size", "share"), [(8, 1, 8), (8, 2, 4), (8, 3, 2), (2, 4, 1)])
def test_the_ranks_of_a_machine_share_its_cores(
    cores: int, local_world_size: int, share: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ranks on other machines have the cores there."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert Ranks(world_size=16, local_world_size=local_world_size).processors() == share


def test_work_that_can_be_shared_is_accepted() -> None:
    ranks = Ranks(world_size=4)
    ranks.check_shares({"--num-envs": 8, "a minibatch's steps": 256})
    assert ranks.share(8) == 2
    with pytest.raises(KartRewardsError, match="a minibatch's steps, 250, can't be shared equally by 4 processes"):
        ranks.check_shares({"--num-envs": 8, "a minibatch's steps": 250})


def test_one_rank_computes_alone() -> None:
    ranks, tensor, layer = Ranks(), torch.tensor([1.0, 2.0]), nn.Linear(2, 1)
    layer.weight.grad = torch.ones(1, 2)
    assert ranks.mean(tensor) is tensor
    assert ranks.gather("item") == ["item"]
    ranks.average_gradients(layer.parameters())
    ranks.agree(layer, 5)
    assert layer.weight.grad.tolist() == [[1.0, 1.0]]
    ranks.check_shares({"--num-envs": 7})
    with joined(ranks, torch.device("cpu")):
        assert not torch.distributed.is_initialized()


# ------------------------------------------------------------------------------------------------------------ two ranks
@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    """The results of ``two_ranks.py`` alone, and of its two ranks."""
    folder = tmp_path_factory.mktemp("two_ranks")
    script = ROOT / "tests" / "two_ranks.py"
    finished = run_two_ranks(script, folder)
    assert finished.returncode == 0, finished.stderr
    with mock.patch.object(torch, "randperm", torch.randperm):  # the script replaces it
        run_here(script, folder)
    alone, first, second = (torch.load(folder / name, weights_only=True) for name in ("1-0", "2-0", "2-1"))
    return alone, first, second


def test_two_ranks_learn_what_one_process_does_from_the_same_batch(results: tuple[Any, Any, Any]) -> None:
    """The same rollout, complete and in halves: equal weights on both ranks, and those of the one process."""
    alone, first, second = results
    for name, weights in alone["agent"].items():
        assert torch.equal(first["agent"][name], second["agent"][name]), name
        assert torch.allclose(first["agent"][name], weights, atol=1e-4), name
    assert first["losses"] == second["losses"]
    for name in ("policy_loss", "value_loss", "approx_kl", "clipfrac", "entropy"):
        assert first["losses"][name] == pytest.approx(alone["losses"][name], abs=1e-4), name


def test_two_ranks_have_the_mean_of_their_numbers(results: tuple[Any, Any, Any]) -> None:
    for each in results[1:]:
        assert each["mean"].tolist() == [1.5, 15.0]
        assert each["gradient"].tolist() == [[1.5, 15.0]]
    assert [each["numbers"].tolist() for each in results[1:]] == [[1.0, 10.0], [2.0, 20.0]], "are left as they were"


def test_two_ranks_gather_in_the_order_of_the_ranks(results: tuple[Any, Any, Any]) -> None:
    for each in results[1:]:
        assert each["gathered"] == [{"rank": 0}, {"rank": 1}]


def test_two_ranks_begin_with_the_weights_of_the_first_one(results: tuple[Any, Any, Any]) -> None:
    alone, first, second = results
    assert torch.equal(first["weight"], alone["weight"])
    assert torch.equal(first["weight"], second["weight"])


def test_two_ranks_at_different_steps_are_refused(results: tuple[Any, Any, Any]) -> None:
    for each in results[1:]:
        assert each["refused"].startswith("the ranks are at different steps: every machine needs the checkpoint")


@pytest.fixture(scope="module")
def trained_by_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Finished]:
    """The folder of a short run by two ranks, two environments each, and what it printed."""
    runs = tmp_path_factory.mktemp("ranks") / "runs"
    arguments = ["--env-id", GAME, *SMALL, "--num-envs", 4, "--total-timesteps", 192, "--checkpoint-interval", 1]
    finished = run_two_ranks(SCRIPT, *arguments, "--max-episode-steps", 20, "--runs-path", runs)
    assert finished.returncode == 0, finished.stderr
    [folder] = runs.iterdir()
    return folder, finished


def test_one_rank_logs_and_saves_for_all(trained_by_two: tuple[Path, Finished]) -> None:
    folder, finished = trained_by_two
    assert finished.stdout.count("logging to") == 1
    assert len(list(folder.glob("events*"))) == 1
    checkpoint = Checkpoint.load(folder / "agent.pt", to_resume=True)
    assert checkpoint.steps == 192
    assert len(checkpoint.env_states) == 4
    assert len(checkpoint.rng_states) == 2
    ends = [step for step, _ in scalars(folder)["charts/episodic_length"]]
    assert ends[:4] == [77, 78, 79, 80], "episodes of 20 steps end at the same time in all four environments"


def test_the_environments_of_the_ranks_differ(trained_by_two: tuple[Path, Finished]) -> None:
    checkpoint = Checkpoint.load(trained_by_two[0] / "agent.pt", to_resume=True)
    assert len({state["env"]["emulator"] for state in checkpoint.env_states}) == 4
    first, second = (state["torch"] for state in checkpoint.rng_states)
    assert not torch.equal(first, second)


def test_two_ranks_resume_bit_for_bit(trained_by_two: tuple[Path, Finished], tmp_path: Path) -> None:
    """Each rank goes on with its own random numbers and environments."""
    shutil.copy(trained_by_two[0] / "agent-128.pt", tmp_path)
    finished = run_two_ranks(SCRIPT, "--resume", tmp_path / "agent-128.pt")
    assert finished.returncode == 0, finished.stderr
    assert "Resuming after 2 updates, 128 steps." in finished.stdout
    assert equal_weights(tmp_path / "agent.pt", trained_by_two[0] / "agent.pt")
    assert not equal_weights(trained_by_two[0] / "agent-128.pt", trained_by_two[0] / "agent.pt")


def test_one_process_resumes_what_two_began(trained_by_two: tuple[Path, Finished], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained_by_two[0], folder)
    finished = train_here("--resume", folder / "agent.pt", "--total-timesteps", 256)
    assert "Resuming after 3 updates, 192 steps." in finished.stdout
    assert "begin new episodes" not in finished.stdout
    assert Checkpoint.load(folder / "agent.pt").steps == 256


# hpc4cmb/toast#721: if a parallel run has a wrong option, each of its processes prints the complete usage message.
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-envs", 3, "--num-steps", 20], "error: --num-envs, 3, can't be shared equally by 2 processes"),
        pytest.param(["--num-envs", "three"], "For full helptext", marks=pytest.mark.slow),
    ],
)
def test_a_mistake_of_all_ranks_is_reported_once(options: list[object], message: str, tmp_path: Path) -> None:
    finished = run_two_ranks(SCRIPT, "--env-id", GAME, *SMALL, *options, "--runs-path", tmp_path)
    assert finished.returncode == 2
    assert finished.stderr.count(message) == 1, finished.stderr
    assert "Traceback" not in finished.stderr


def test_a_slow_rank_still_reads_the_same_mistake_of_rank_0(tmp_path: Path) -> None:
    """Rank 0, which serves the store here, does not end before the other has read why."""
    program = tmp_path / "program.py"
    program.write_text(SLOW_TO_READ)
    finished = run_two_ranks(program)
    assert (finished.returncode, finished.stderr) == (2, "error: the same mistake\n")


SLOW_TO_READ = """
import time
from kart_rewards.errors import KartRewardsError
from kart_rewards.training import ranks

@ranks.on_every_rank
def main(this):
    store, pause = ranks._store(this), time.sleep
    if this.rank == 0:
        while not store.check(["error-1"]):
            pause(0.01)
    else:
        time.sleep = lambda seconds: pause(2)  # rank 1 is that slow
    raise KartRewardsError("the same mistake")

main()
"""


def test_an_environment_killed_on_one_rank_ends_all(tmp_path: Path) -> None:
    """kill -9 of one environment of either rank: the run ends by itself, with what was saved before."""
    arguments = ["--env-id", GAME, *SMALL, "--num-envs", 4, "--checkpoint-interval", 1, "--runs-path", tmp_path]
    ranks = start_two_ranks(SCRIPT, *arguments)

    def has_updated() -> bool:
        for rank in ranks:
            assert rank.poll() is None, rank.communicate()
        agents = list(tmp_path.glob("*/agent.pt"))
        return bool(agents) and Checkpoint.load(agents[0]).updates >= 1

    try:
        wait_until(has_updated, 180)
        children = [psutil.Process(rank.pid).children(recursive=True) for rank in ranks]
        children[1][-1].kill()
        first, second = (finish(rank) for rank in ranks)
    finally:
        for rank in ranks:
            rank.kill()
    assert first.returncode != 0 != second.returncode
    assert "error: an environment's process ended unexpectedly" in second.stderr
    assert "error: another process of this run has ended" in first.stderr
    assert "RuntimeError" not in first.stderr + second.stderr
    assert not psutil.wait_procs([*children[0], *children[1]], timeout=30)[1]
    [folder] = tmp_path.iterdir()
    assert Checkpoint.load(folder / "agent.pt").updates >= 1


@pytest.mark.slow
def test_stopping_torchrun_saves_the_environments_of_all_ranks(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()  # a terminal shows updates at once, a pipe only after ten seconds
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    arguments = ["--env-id", GAME, *SMALL, "--num-envs", "4", "--checkpoint-interval", "0", "--runs-path", tmp_path]
    command = [str(word) for word in (*TORCHRUN, SCRIPT, *arguments)]
    process = subprocess.Popen(command, stdout=theirs, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    try:
        os.close(theirs)
        shown, deadline = b"", time.monotonic() + 180
        while not re.search(rb"[\d,]+/[\d,]+ steps", shown):
            assert time.monotonic() < deadline, shown
            shown += os.read(ours, 1000)  # an OSError: the run ended
    finally:
        process.terminate()
    with suppress(OSError):  # on Linux, when the last process has ended
        while os.read(ours, 1000):
            pass
    process.communicate(timeout=180)
    os.close(ours)
    [folder] = tmp_path.iterdir()
    checkpoint = Checkpoint.load(folder / "agent.pt")
    assert checkpoint.updates >= 1
    assert len(checkpoint.env_states) == 4
