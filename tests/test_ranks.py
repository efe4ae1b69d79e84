"""Training on several processes under torchrun: gloo on this machine's CPU, two local ranks."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import ppo_continuous_single_file as ppo

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "ppo_continuous_single_file.py"
GAME = "HomebrewKart-Snes"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
SMALL = ["--num-envs", "2", "--num-steps", "16", "--num-minibatches", "2", "--update-epochs", "1", "--device", "cpu"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def run(command: list[Any]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=180, check=False, env=ENVIRONMENT
    )


def test_two_ranks_learn_what_one_process_does_from_the_same_batch(tmp_path: Path) -> None:
    """The same rollout, whole and in halves: equal weights on both ranks, and those of the one process."""
    script = ROOT / "tests" / "two_ranks.py"
    done = run([*TORCHRUN, script, tmp_path])
    assert done.returncode == 0, done.stderr
    done = run([sys.executable, script, tmp_path])
    assert done.returncode == 0, done.stderr
    alone, first, second = (torch.load(tmp_path / name, weights_only=True) for name in ("1-0", "2-0", "2-1"))
    for name, weights in alone["agent"].items():
        assert torch.equal(first["agent"][name], second["agent"][name]), name
        assert torch.allclose(first["agent"][name], weights, atol=1e-4), name
    assert first["losses"] == second["losses"]
    for name in ("policy_loss", "value_loss", "approx_kl", "clipfrac", "entropy"):
        assert first["losses"][name] == pytest.approx(alone["losses"][name], abs=1e-4), name


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A short run by two ranks, two environments each, and what it printed."""
    runs = tmp_path_factory.mktemp("ranks") / "runs"
    arguments = ["--env-id", GAME, *SMALL, "--num-envs", 4, "--total-timesteps", 192, "--eval-interval", 0]
    return runs, run([*TORCHRUN, SCRIPT, *arguments, "--max-episode-steps", 20, "--runs-path", runs])


def test_one_rank_logs_and_saves_for_all(trained: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    runs, done = trained
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("logging to") == 1
    [folder] = runs.iterdir()
    assert len(list(folder.glob("events*"))) == 1
    checkpoint = ppo.load_checkpoint(folder / "agent.pt")
    assert checkpoint["steps"] == 192
    assert len(checkpoint["env_states"]) == 4
    assert len(checkpoint["rng_states"]) == 2
    log = EventAccumulator(str(folder))
    log.Reload()
    lengths = [event.step for event in log.Scalars("charts/episodic_length")]
    assert lengths.count(80) == 4, "episodes of 20 steps end at the same time in all four environments"


def test_the_environments_of_the_ranks_differ(trained: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    [folder] = trained[0].iterdir()
    states = [state["env"]["emulator"] for state in ppo.load_checkpoint(folder / "agent.pt")["env_states"]]
    assert len(set(states)) == 4


def test_one_process_resumes_what_two_began(
    trained: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    [trained_folder] = trained[0].iterdir()
    folder = tmp_path / "run"
    shutil.copytree(trained_folder, folder)
    done = run([sys.executable, SCRIPT, "--resume", folder / "agent.pt", "--total-timesteps", 256])
    assert done.returncode == 0, done.stderr
    assert "Resuming after 3 updates, 192 steps." in done.stdout
    assert "begin new episodes" not in done.stdout
    assert ppo.load_checkpoint(folder / "agent.pt")["steps"] == 256


def test_environments_that_cannot_be_shared_are_told(tmp_path: Path) -> None:
    done = run([*TORCHRUN, SCRIPT, "--env-id", GAME, *SMALL, "--num-envs", 3, "--runs-path", tmp_path])
    assert done.returncode != 0
    assert "error: --num-envs, 3, can't be shared equally by 2 processes" in done.stderr


def test_an_environment_killed_on_one_rank_ends_all(tmp_path: Path) -> None:
    """kill -9 of one environment of either rank: the run ends by itself, with what was saved before."""
    with start_long_run(tmp_path, checkpoint_interval=1) as process:
        wait_for_steps(process)
        environment = psutil.Process(process.pid).children()[-1].children()[-1]
        everybody = psutil.Process(process.pid).children(recursive=True)
        environment.kill()
        _, stderr = process.communicate(timeout=90)
    assert process.returncode != 0
    assert "error: an environment's process ended unexpectedly" in stderr
    assert "error: another process of this run has ended" in stderr
    assert "RuntimeError" not in stderr
    _, alive = psutil.wait_procs(everybody, timeout=20)
    assert not alive
    [folder] = tmp_path.iterdir()
    assert ppo.load_checkpoint(folder / "agent.pt")["updates"] >= 1


def test_stopping_torchrun_saves_the_environments_of_all_ranks(tmp_path: Path) -> None:
    with start_long_run(tmp_path, checkpoint_interval=0) as process:
        wait_for_steps(process)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=90)
    [folder] = tmp_path.iterdir()
    checkpoint = ppo.load_checkpoint(folder / "agent.pt")
    assert checkpoint["updates"] >= 1
    assert len(checkpoint["env_states"]) == 4


def start_long_run(runs: Path, checkpoint_interval: int) -> subprocess.Popen[str]:
    """Starts a run of two ranks, two environments each, that nobody would wait for."""
    arguments = ["--env-id", GAME, *SMALL, "--num-envs", "4", "--eval-interval", "0", "--runs-path", str(runs)]
    command = [*TORCHRUN, str(SCRIPT), *arguments, "--checkpoint-interval", str(checkpoint_interval)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def wait_for_steps(process: subprocess.Popen[str]) -> None:
    """Waits until a run has printed how many steps it made."""
    assert process.stdout
    for line in process.stdout:
        if re.match(r"[\d,]+/500,000 steps", line):
            return
    pytest.fail(f"the run ended: {process.communicate()}")
