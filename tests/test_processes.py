from __future__ import annotations

import multiprocessing
import operator
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import pytest
from training_runs import clean_children, forked_children, wait_until

from kart_rewards.drivers import centreline
from kart_rewards.errors import KartRewardsError
from kart_rewards.training.processes import (
    Children,
    Workers,
    attempt,
    core_by_core,
    on_core,
    processor_count,
    serve_parent,
)

needs_affinity = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this platform has no core affinity")


def children() -> list[psutil.Process]:
    """Returns the child processes of this process, without those that multiprocessing itself uses."""
    return forked_children(os.getpid()) + clean_children(os.getpid())


# --- processor cores --------------------------------------------------------------------------------------------------


@needs_affinity
def test_the_number_of_cores_is_that_of_the_affinity() -> None:
    cores = os.sched_getaffinity(0)
    assert processor_count() == len(cores)
    try:
        os.sched_setaffinity(0, {min(cores)})
        assert processor_count() == 1
    finally:
        os.sched_setaffinity(0, cores)


@needs_affinity
def test_a_thread_moves_from_core_to_core_and_may_use_all_of_them_afterwards() -> None:
    cores = os.sched_getaffinity(0)
    seen = []
    with core_by_core(busy_cores=len(cores)) as change_core:
        for _ in range(2 * len(cores)):
            change_core()
            seen.append(os.sched_getaffinity(0))
    assert len(cores) == 1 or seen == 2 * [{core} for core in sorted(cores)]
    assert os.sched_getaffinity(0) == cores
    with core_by_core(busy_cores=len(cores) - 1) as change_core:
        change_core()
        assert os.sched_getaffinity(0) == cores, "a core is free: the operating system finds it"


@needs_affinity
def test_a_thread_stays_on_one_core_while_it_waits_and_may_use_all_of_them_afterwards() -> None:
    cores = os.sched_getaffinity(0)
    for number in range(2 * len(cores)):
        with on_core(number):
            assert os.sched_getaffinity(0) == {sorted(cores)[number % len(cores)]}
        assert os.sched_getaffinity(0) == cores


# --- calls in a child -------------------------------------------------------------------------------------------------


class UnpicklableError(KartRewardsError):
    def __init__(self, message: str, cause: object) -> None:
        super().__init__(message)
        self.cause = cause


def test_an_attempt_returns_a_result_or_an_error_that_can_be_sent_to_the_parent() -> None:
    def fail(error: Exception) -> None:
        raise error

    assert attempt(operator.add, 2, 3) == (None, 5)
    error, result = attempt(fail, UnpicklableError("no fuel", lambda: None))
    assert (type(error), str(error), result) == (KartRewardsError, "no fuel", None)
    pickle.dumps(error)
    error, result = attempt(operator.truediv, 1, 0)
    assert (type(error), result) == (RuntimeError, None)
    assert str(error).startswith("in a worker process:\nTraceback")
    assert "ZeroDivisionError: division by zero" in str(error)


# --- children ---------------------------------------------------------------------------------------------------------


def echo(connection: Connection, word: str) -> None:
    """Answers each message, until the connection closes."""
    serve_parent()
    with suppress(EOFError):
        while True:
            connection.send((word, connection.recv()))


def test_a_process_that_serves_its_parent_ignores_signals() -> None:
    """The process is not one of ``Children``, which also block the signals."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.Process(target=echo, args=(there, "first"), daemon=True)
    process.start()
    there.close()  # otherwise recv would wait for a process that has ended
    try:
        for message in (1, 2):
            here.send(message)
            assert here.recv() == ("first", message)
            for number in (signal.SIGINT, signal.SIGTERM):
                os.kill(process.pid or 0, number)
        process.join(0.2)
        assert process.is_alive()
    finally:
        process.kill()
        process.join()


def print_and_wait(connection: Connection) -> None:
    serve_parent()
    print("a line")
    connection.send("printed")
    connection.recv()


# DLR-RM/stable-baselines3#1973: what an environment in a child process prints appears late, or not at all.
def test_a_line_that_a_child_printed_to_a_file_is_there_when_the_child_is_killed(tmp_path: Path) -> None:
    script = (
        "from contextlib import closing; from kart_rewards.training.processes import Children\n"
        "from test_processes import print_and_wait\n"
        "with closing(Children()) as started: assert started.start(print_and_wait).recv() == 'printed'"
    )
    with (tmp_path / "out.txt").open("w") as out:
        buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        subprocess.run([sys.executable, "-c", script], stdout=out, check=True, cwd=Path(__file__).parent, env=buffered)
    assert (tmp_path / "out.txt").read_text() == "a line\n"


def leave(connection: Connection, code: int) -> None:
    sys.exit(code)


def test_children_answer_ignore_signals_and_report_how_they_ended() -> None:
    with closing(Children()) as started:
        first, second = started.start(echo, "first"), started.start(echo, "second")
        for connection, word in ((first, "first"), (second, "second")):
            connection.send(1)
            assert connection.recv() == (word, 1)
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(started.processes[first].pid, number)
        assert started.ended(timeout_seconds=0.2) == {}
        first.send(2)
        assert first.recv() == ("first", 2)
        os.kill(started.processes[second].pid, signal.SIGKILL)
        assert started.ended(timeout_seconds=10) == {1: "killed by signal 9"}
        third = started.start(leave, 3)
        started.processes[third].join(10)
        assert started.ended(timeout_seconds=10) == {1: "killed by signal 9", 2: "exit code 3"}
    assert children() == []


def test_a_process_that_can_not_be_started_is_reported() -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    with closing(Children()) as started:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limit[1]))
        try:
            with pytest.raises(KartRewardsError, match="a process could not be started: Too many open files"):
                started.start(echo, "never")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)


# --- workers ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def workers() -> Iterator[Workers]:
    with closing(Workers(2)) as pool:
        yield pool


def test_results_are_in_the_order_of_the_tasks_and_the_processes_are_kept(workers: Workers) -> None:
    assert list(workers.map(operator.add, [])) == []
    assert children() == [], "processes start when there is a task"
    assert list(workers.map(operator.add, [(1, 1)])) == [2]
    [first] = children()
    assert list(workers.map(slow_first, [(i,) for i in range(6)])) == [0, 10, 20, 30, 40, 50]
    assert len(children()) == 2
    assert first in children()


def slow_first(i: int) -> int:
    """The first task ends after the others."""
    time.sleep(0.5 if i == 0 else 0)
    return 10 * i


def test_errors_of_a_function_are_raised_in_the_caller(workers: Workers) -> None:
    with pytest.raises(KartRewardsError, match="no course with the start state 'Level9'"):
        list(workers.map(centreline, [("Level1",), ("Level9",)]))
    with pytest.raises(RuntimeError, match=r"(?s)in a worker process:.*ZeroDivisionError"):
        list(workers.map(operator.truediv, [(1, 0)]))
    assert list(workers.map(operator.truediv, [(4, 2)])) == [2.0]


def test_a_killed_worker_is_reported_and_replaced(workers: Workers) -> None:
    results = workers.map(time.sleep, [(0,)] + [(60,)] * 3)
    next(results)
    killed, other = children()
    killed.kill()
    with pytest.raises(KartRewardsError, match=r"a worker process ended unexpectedly \(killed by signal 9\)"):
        next(results)
    assert not other.is_running()
    assert list(workers.map(operator.add, [(1, 1)])) == [2]
    [idle] = children()
    idle.kill()
    wait_until(lambda: not psutil.pid_exists(idle.pid), 10)  # a zombie's threads may still hold its connection
    assert list(workers.map(operator.add, [(1, 1)])) == [2]


def test_a_process_has_the_environment_and_the_folder_of_its_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also a later one, although all are forks of one process."""
    for number in ("1", "2"):
        folder = tmp_path / number
        folder.mkdir()
        monkeypatch.setenv("KART_REWARDS_TEST", number)
        monkeypatch.chdir(folder)
        with closing(Workers(1)) as pool:
            assert list(pool.map(os.getenv, [("KART_REWARDS_TEST",)])) == [number]
            assert list(pool.map(os.getcwd, [()])) == [str(folder)]


def test_stopping_the_iteration_kills_the_processes(workers: Workers) -> None:
    for _ in workers.map(time.sleep, [(0,)] + [(60,)] * 3):
        with pytest.raises(RuntimeError, match="still busy with another map"):
            next(workers.map(operator.add, [(1, 1)]))
        assert len(children()) == 2
        break
    assert children() == []
    assert list(workers.map(operator.add, [(1, 1)])) == [2]


# --- signals and the end of the parent --------------------------------------------------------------------------------

PROGRAM = """
import sys, time
from kart_rewards.training.processes import Workers
if __name__ == "__main__":
    results = Workers(2).map(time.sleep, [(0,)] + [(60,)] * 3)
    print("begins", flush=True)
    try:
        next(results)
        print("works", flush=True)
        if sys.argv[1:] == ["leave"]:
            sys.exit(3)
        next(results)
    except KeyboardInterrupt:
        print("interrupted")
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts PROGRAM in its own session."""
    (tmp_path / "program.py").write_text(PROGRAM)
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(tmp_path / "program.py"), *arguments]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, start_new_session=True, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def children_at(process: subprocess.Popen[str], line: str) -> list[psutil.Process]:
    """Waits until a program prints a line and has a child process. Returns its child processes."""
    assert process.stdout
    for printed in process.stdout:
        if printed.rstrip() == line:
            break
    while not (found := psutil.Process(process.pid).children(recursive=True)):
        time.sleep(0.01)
    return found


def assert_gone(processes: list[psutil.Process]) -> None:
    assert psutil.wait_procs(processes, timeout=10)[1] == []


@pytest.mark.parametrize("moment", ["begins", "works"])
def test_only_the_parent_handles_ctrl_c(program: Any, moment: str) -> None:
    process = program()
    found = children_at(process, moment)
    os.killpg(process.pid, signal.SIGINT)  # a terminal also sends it to the parent and its children
    stdout, stderr = process.communicate(timeout=60)
    assert (stdout.splitlines()[-1:], stderr, process.returncode) == (["interrupted"], "", 0)
    assert_gone(found)


def test_the_children_of_a_killed_parent_end(program: Any) -> None:
    process = program()
    found = children_at(process, "works")
    assert len(found) >= 2
    process.kill()
    assert_gone(found)


def test_workers_that_are_not_closed_do_not_delay_the_exit(program: Any) -> None:
    process = program("leave")
    found = children_at(process, "works")
    assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == 3
    assert_gone(found)
