"""Threads that compute parts of a batch."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_runs import GAME, SCRIPT

import ppo_continuous_single_file as ppo
from kart_rewards.training.processes import processor_count
from kart_rewards.training.threads import in_threads


@pytest.fixture(autouse=True)
def one_pytorch_thread() -> Iterator[None]:
    """PyTorch's own threads compute alone, as in training."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def gradients(threads: int, precision: torch.dtype = torch.float32, samples: int = 70) -> list[torch.Tensor]:
    """The values and gradients of an agent, computed by some threads."""
    torch.manual_seed(1)
    agent = ppo.Agent(gym.spaces.Box(0, 255, (4, 42, 42), np.uint8), gym.spaces.Box(-1, 1, (1,), np.float32), precision)
    agent.threads = threads
    images = torch.randint(0, 256, (samples, 4, 42, 42), dtype=torch.uint8)
    values = agent.get_value(images)
    values.square().sum().backward()
    used = [*agent.encoder.parameters(), *agent.critic.parameters()]
    assert agent.actor.weight.grad is None, "get_value does not use it"
    return [values.detach(), *(parameter.grad for parameter in used if parameter.grad is not None)]


@pytest.mark.parametrize("threads", [2, 3, 4])
def test_the_parts_of_a_batch_have_the_gradients_of_the_batch(threads: int) -> None:
    alone, together = gradients(1), gradients(threads)
    assert len(alone) == len(together) == 11
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(one.abs().max()))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_result_does_not_depend_on_which_thread_is_faster(precision: torch.dtype) -> None:
    first = gradients(3, precision)
    for _ in range(3):
        assert all(torch.equal(one, other) for one, other in zip(first, gradients(3, precision), strict=True))


class Spy(torch.nn.Linear):
    """A network that records the size of each part and its thread."""

    def __init__(self, threads: int) -> None:
        super().__init__(2, 1)
        self.threads = threads
        self.calls: list[tuple[int, str]] = []

    @in_threads
    def compute(self, batch: torch.Tensor) -> torch.Tensor:
        """Multiplies."""
        self.calls.append((len(batch), threading.current_thread().name))
        time.sleep(0.05)  # so that one thread does not compute both parts
        return self(batch)


def test_each_part_has_a_thread_of_its_own() -> None:
    spy = Spy(threads=2)
    spy.compute(torch.zeros(65, 2)).sum().backward()
    assert sorted(size for size, _ in spy.calls) == [32, 33]
    assert len({name for _, name in spy.calls}) == 2


@pytest.mark.parametrize(("threads", "samples", "needs_gradients"), [(1, 64, True), (4, 31, True), (4, 64, False)])
def test_little_work_has_no_threads(threads: int, samples: int, needs_gradients: bool) -> None:
    spy = Spy(threads)
    with torch.set_grad_enabled(needs_gradients):
        spy.compute(torch.zeros(samples, 2))
    assert spy.calls == [(samples, threading.current_thread().name)]


def test_an_error_in_a_thread_is_raised() -> None:
    spy = Spy(threads=2)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        spy.compute(torch.zeros(64, 3))


def speeds(runs: int, folder: Path) -> list[float]:
    """Trains some agents at the same time, as users start them. Returns the agent steps/s of the slowest update."""
    command = [sys.executable, str(SCRIPT), "--env-id", GAME, "--num-envs", "4", "--total-timesteps", "768"]
    command += ["--update-epochs", "1"]
    command += ["--eval-interval", "0", "--device", "cpu", "--precision", "bfloat16", "--threads", "2"]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    processes = []
    for run in range(runs):
        words = [*command, "--runs-path", str(folder / str(run))]
        processes.append(subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL))
    assert [process.wait(300) for process in processes] == [0] * runs
    found = []
    for path in folder.glob("*/*"):
        log = EventAccumulator(str(path)).Reload()
        first, *_, last = log.Scalars("charts/SPS")
        found.append((last.step - first.step) / (last.wall_time - first.wall_time))
    assert len(found) == runs
    return found


# Observed: one training made 425 steps/s; two at the same time made 15 each, because the threads of oneDNN's
# convolutions waited for each other in a loop that gives no core back.
# It takes time that other tests would share, and benchmarks/side_by_side.py measures the same.
@pytest.mark.slow
@pytest.mark.skipif(processor_count() < 2, reason="one thread never waits for another")
def test_two_trainings_do_not_stop_each_other(tmp_path: Path) -> None:
    [alone] = speeds(1, tmp_path / "alone")
    assert min(speeds(2, tmp_path / "two")) > alone / 4
