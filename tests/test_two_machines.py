"""Training on two machines under torchrun. Two network namespaces with a cable between them stand for the machines."""

from __future__ import annotations

import functools
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import torch
from training_runs import GAME, ROOT, SCRIPT, SMALL, Finished, alive, only_run, wait_until

from kart_rewards.training.checkpoints import Checkpoint

PROGRAM = ROOT / "tests" / "ranks_of_two_machines.py"
TRAINING = ["--env-id", GAME, *SMALL, "--checkpoint-interval", "1"]
EVALUATION = ["--eval-interval", "1", "--eval-episodes", "1000"]
LOST = r"error: another process of this run has ended, or the network to its machine is down \(.*10\.77\.0\.\d.*\)"
MINUTE = 60
IP = shutil.which("ip")
_numbers = itertools.count()


def ip(*arguments: str) -> str:
    """Runs iproute2's program, and returns what it prints."""
    return subprocess.run([str(IP), *arguments], check=True, capture_output=True, text=True).stdout


@dataclass
class Machine:
    """One of two machines: a network namespace with a loopback device and one end of a cable.

    Args:
        index: 0 or 1. The ranks of machine 0 come first.
        name: The namespace's name.
        folder: A folder of its own, for the output of its processes and for runs.
    """

    index: int
    name: str
    folder: Path
    torchrun: subprocess.Popen[bytes] = field(init=False)

    def start(self, *command: object, rendezvous: str = "static", restarts: int = 0) -> None:
        """Starts torchrun with one rank."""
        options = ["--nnodes=2", "--nproc-per-node=1", f"--max-restarts={restarts}"]
        if rendezvous == "static":
            options += [f"--node-rank={self.index}", "--master-addr=10.77.0.1", "--master-port=29500"]
        else:
            options += ["--rdzv-backend=c10d", "--rdzv-endpoint=10.77.0.1:29500", "--rdzv-id=test"]
            # torchrun would look for the host by the computer's name, which the two namespaces share.
            options += [f"--rdzv-conf=is_host={self.index == 0}", f"--local-addr=10.77.0.{self.index + 1}"]
        environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "cable"}
        words = [str(IP), "netns", "exec", self.name, sys.executable, "-m", "torch.distributed.run", *options, *command]
        with (self.folder / "stdout").open("wb") as stdout, (self.folder / "stderr").open("wb") as stderr:
            self.torchrun = subprocess.Popen(
                [str(word) for word in words], stdout=stdout, stderr=stderr, env=os.environ | environment
            )

    def train(self, *options: object, rendezvous: str = "static", restarts: int = 0) -> None:
        """Starts a training with a folder of runs of its own."""
        runs = ["--runs-path", self.runs]
        self.start(SCRIPT, *TRAINING, *runs, *options, rendezvous=rendezvous, restarts=restarts)

    @property
    def runs(self) -> Path:
        """The folder of runs."""
        return self.folder / "runs"

    @property
    def rank(self) -> psutil.Process:
        """The process of the rank, once torchrun has started it."""
        process: psutil.Process = wait_until(lambda: psutil.Process(self.torchrun.pid).children(), 120)[0]
        return process

    def processes(self) -> list[psutil.Process]:
        """All processes on this machine."""
        return [psutil.Process(int(pid)) for pid in ip("netns", "pids", self.name).split() if alive(int(pid))]

    def finish(self, seconds: float) -> Finished:
        """Waits until torchrun ends, and returns its result."""
        code = self.torchrun.wait(seconds)
        stdout, stderr = ((self.folder / name).read_text() for name in ("stdout", "stderr"))
        return subprocess.CompletedProcess(self.torchrun.args, code, stdout, stderr)

    def cut(self) -> None:
        """Cuts the cable for good. No machine gets a message about it."""
        ip("-n", self.name, "link", "set", "cable", "down")


Machines = tuple[Machine, Machine]


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    """Two machines, 10.77.0.1 and 10.77.0.2. All their processes are killed in the end."""
    if sys.platform != "linux" or os.geteuid() != 0 or not IP:
        pytest.skip("needs root on Linux, and the program ip (package iproute2), for network namespaces")
    made = []
    try:
        for index in (0, 1):
            folder = tmp_path / f"machine{index}"
            folder.mkdir()
            machine = Machine(index, f"kart-{os.getpid()}-{next(_numbers)}", folder)
            try:
                ip("netns", "add", machine.name)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"no network namespace can be made here: {error.stderr}")
            made.append(machine)
        first, second = made
        cable = ["link", "add", "cable", "netns", first.name, "type", "veth", "peer", "name", "cable"]
        ip(*cable, "netns", second.name)
        for machine in made:
            ip("-n", machine.name, "address", "add", f"10.77.0.{machine.index + 1}/24", "dev", "cable")
            for device in ("cable", "lo"):
                ip("-n", machine.name, "link", "set", device, "up")
        yield first, second
    finally:
        for machine in made:
            for process in machine.processes():
                process.kill()
            ip("netns", "delete", machine.name)


def wait_for_update(machines: Machines, updates: int = 2) -> None:
    """Waits until the training on the machines has saved a checkpoint after so many updates."""

    def has_updated() -> bool:
        for machine in machines:
            assert machine.torchrun.poll() is None, machine.finish(0)
        return any(int(path.stem[6:]) >= 32 * updates for path in machines[0].runs.glob("*/agent-*.pt"))

    wait_until(has_updated, 180)


def assert_reported(finished: Finished, message: str) -> None:
    """torchrun ended because of an error, for which the program printed one message."""
    assert finished.returncode != 0
    errors = re.findall(r"^error: .*", finished.stderr, re.MULTILINE)
    assert len(errors) == 1, finished.stderr
    assert re.search(message, errors[0]), errors[0]
    assert not re.search(r"^\S*RuntimeError", finished.stderr, re.MULTILINE), finished.stderr


def is_empty(machine: Machine) -> bool:
    return not machine.processes()


def assert_saved_and_gone(machines: Machines) -> None:
    """Rank 0 left a complete checkpoint, and no machine has a process left."""
    assert Checkpoint.load(only_run(machines[0].runs) / "agent.pt", to_resume=True).updates >= 1
    assert not machines[1].runs.exists(), "only rank 0 saves"
    for machine in machines:
        wait_until(functools.partial(is_empty, machine), 10)


# Observed: the timeout of torch.distributed must be longer than the longest evaluation; so a peer that was only slow
# and a peer that was gone looked the same. Here rank 0 is paused for longer than a lost machine may be silent.
@pytest.mark.slow
def test_two_machines_have_equal_weights_and_wait_for_each_other(machines: Machines, tmp_path: Path) -> None:
    for machine in machines:
        options = [*TRAINING, "--runs-path", machine.runs, "--total-timesteps", "640"]
        machine.start(PROGRAM, "weights", tmp_path, *options)
    wait_for_update(machines)
    machines[0].rank.send_signal(signal.SIGSTOP)
    time.sleep(30)
    assert all(machine.torchrun.poll() is None for machine in machines)
    machines[0].rank.send_signal(signal.SIGCONT)
    for machine in machines:
        finished = machine.finish(180)
        assert finished.returncode == 0, finished.stderr
    first, second = (torch.load(tmp_path / rank, weights_only=True) for rank in ("0", "1"))
    checkpoint = Checkpoint.load(only_run(machines[0].runs) / "agent.pt")
    assert checkpoint.steps == 640
    for name, value in first.items():
        assert value.equal(second[name]), name
        assert value.equal(checkpoint.agent[name]), name
    assert_saved_and_gone(machines)


# pytorch/pytorch#41665: after one node was killed, the process of the other one waited without an end, whatever timeout
# it had been given.
@pytest.mark.slow
def test_a_killed_rank_ends_both_machines(machines: Machines) -> None:
    for machine in machines:
        machine.train()
    wait_for_update(machines)
    killed, survivor = machines
    killed.rank.kill()
    assert_reported(survivor.finish(MINUTE), LOST)
    finished = killed.finish(MINUTE)
    assert "(SIGKILL)" in finished.stderr, "torchrun reports it"
    assert "error:" not in finished.stderr.replace("multiprocessing.errors", "")
    assert_saved_and_gone(machines)


# pytorch/pytorch#37571: when nodes become unreachable, an operation over all nodes never returns.
@pytest.mark.parametrize("during", ["training", pytest.param("evaluation", marks=pytest.mark.slow)])
def test_a_cut_cable_ends_both_machines_in_a_minute(during: str, machines: Machines) -> None:
    for machine in machines:
        machine.train(*(EVALUATION if during == "evaluation" else []))
    if during == "training":
        wait_for_update(machines)
    else:
        wait_until(lambda: any("forkserver" in str(each.cmdline()) for each in machines[0].processes()), 180)
        time.sleep(5)
    machines[1].cut()
    cut_at = time.monotonic()
    for machine in machines:
        assert_reported(machine.finish(cut_at + MINUTE - time.monotonic()), LOST)
    assert_saved_and_gone(machines)


@pytest.mark.slow
def test_a_rank_that_is_busy_for_long_ends_after_another_was_lost(machines: Machines) -> None:
    for machine in machines:
        machine.start(PROGRAM, "busy")
    machines[1].torchrun.wait(180)
    assert_reported(
        machines[0].finish(MINUTE), "another process of this run has ended, and this one did not end in 25 s"
    )


# pytorch/pytorch#135712: torchrun's store outlives a restart, and restarted ranks used the addresses of ranks that had
# ended. The number of restarts does not tell them apart, because each machine counts its own ones.
@pytest.mark.slow
def test_restarted_ranks_go_on_from_the_checkpoint_of_rank_0(machines: Machines) -> None:
    for machine in machines:
        machine.train("--resume", "auto", "--total-timesteps", "960", rendezvous="c10d", restarts=1)
    wait_for_update(machines)
    machines[1].rank.kill()
    results = [machine.finish(240) for machine in machines]
    assert [finished.returncode for finished in results] == [0, 0], results
    assert "Resuming after " in results[0].stdout
    assert Checkpoint.load(only_run(machines[0].runs) / "agent.pt").steps == 960
    assert_saved_and_gone(machines)


@pytest.mark.slow
def test_a_mistake_of_one_rank_is_reported_by_both_machines(machines: Machines) -> None:
    for machine, game in zip(machines, (GAME, "Nothing-Snes"), strict=True):
        machine.train("--env-id", game)
    assert_reported(machines[1].finish(MINUTE), "^error: unknown game 'Nothing-Snes'")
    assert_reported(machines[0].finish(MINUTE), "another process of this run has ended: rank 1: unknown game")
