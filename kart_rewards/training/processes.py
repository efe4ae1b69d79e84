"""Processes that belong to another: they leave signals to it, and end with it.

* ``serve_parent`` - what a child calls first, whoever started it
* ``processor_count`` - how many processes can run at once
* ``core_by_core`` - moves a thread around, so that it slows down all processes equally
* ``attempt`` - calls a function in a child, for an answer to the parent
* ``Children`` - processes, and a connection to each
* ``Workers`` - processes that call functions, each one task after the other

concurrent.futures has such a pool, but ends its processes with SIGTERM, which these ignore, and can't stop one at work.
"""

from __future__ import annotations

import atexit
import itertools
import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from kart_rewards.errors import KartRewardsError

Result = TypeVar("Result")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)  # a terminal and `timeout` send theirs to the children, too


def serve_parent() -> None:
    """In a child process: leaves signals to the parent, and dies with it however it dies."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)

    def exit_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()


def processor_count() -> int:
    """Returns how many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # where there is such a limit
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def core_by_core(busy_cores: int) -> Iterator[Callable[[], None]]:
    """Yields what moves this thread to the next core, for a thread that works beside busy processes now and then.

    Left to the operating system, it comes back to one core again and again; the process there falls behind, and the
    others wait for it. Nothing moves where a core is free, or where a thread can't choose.

    Args:
        busy_cores: How many processes are at work on this machine beside this thread.
    """
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else set()
    if busy_cores < len(cores) or len(cores) < 2:
        yield lambda: None
        return
    turns = itertools.cycle(sorted(cores))

    def choose(allowed: set[int]) -> None:
        with suppress(OSError):  # a container may lose cores meanwhile
            os.sched_setaffinity(0, allowed)

    try:
        yield lambda: choose({next(turns)})
    finally:
        choose(cores)


def attempt(function: Callable[..., Result], *args: Any) -> tuple[Exception | None, Result | None]:
    """Calls the function. Returns the error that it raised, as one that can be sent to the parent, and its result."""
    try:
        return None, function(*args)
    except KartRewardsError as failure:
        return KartRewardsError(str(failure)), None  # a subclass need not be picklable
    except Exception:
        return RuntimeError(f"in a worker process:\n{traceback.format_exc()}"), None


class Children:
    """Processes, and a connection to each. They are deaf to signals from their first moment on.

    Args:
        start_method: One of multiprocessing's; None is the platform's.

    Attributes:
        processes: This end of each one's connection -> the process.
    """

    def __init__(self, start_method: str | None = None) -> None:
        self.context: Any = multiprocessing.get_context(start_method)
        self.processes: dict[Connection, Any] = {}

    def start(self, target: Callable[..., None], *args: Any) -> Connection:
        """Starts a process that calls ``target(connection, *args)``; returns the other end of the connection.

        Raises:
            KartRewardsError: It can't be started.
        """
        if not self.processes:
            atexit.register(self.close)  # else multiprocessing would wait for them at exit
        try:
            here, there = self.context.Pipe()
            process = self.context.Process(target=target, args=(there, *args), daemon=True)
            with _signals_deferred():
                process.start()
                self.processes[here] = process
        except OSError as error:
            raise KartRewardsError(f"a process could not be started: {error.strerror or error}") from None
        there.close()
        return here

    def ended(self, timeout_seconds: float) -> dict[int, str]:
        """Waits until a process has ended; returns how each did that has, by its number."""
        ended = wait([process.sentinel for process in self.processes.values()], timeout_seconds)
        how = {}
        for number, process in enumerate(self.processes.values()):
            if process.sentinel in ended:
                process.join()  # its pipes close a moment before its exit code is known
                code = process.exitcode
                how[number] = f"exit code {code}" if code >= 0 else f"killed by signal {-code}"
        return how

    def close(self) -> None:
        """Ends the processes, whatever they are doing."""
        for process in self.processes.values():
            process.kill()
        for connection, process in self.processes.items():
            process.join()
            connection.close()
        self.processes.clear()
        atexit.unregister(self.close)


class Workers:
    """Processes that call functions. They start when there is work and are kept until ``close``.

    They are fresh processes, which import the main script again: it needs its ``if __name__ == "__main__":``.

    Args:
        count: How many at most.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._children = Children("spawn")  # a fork would copy torch's threads, locks and all
        self._at_work: dict[Connection, int] = {}  # the number of the task

    def map(self, function: Callable[..., Result], tasks: Sequence[tuple[Any, ...]]) -> Iterator[Result]:
        """Yields ``function(*task)`` of each task, in the order of the tasks, which are spread over the processes.

        Left before its end, or by an exception, it ends the processes; the next call starts others.

        Args:
            function: Known by its name in a module.
            tasks: Their items must be picklable, and so must what the function returns.

        Raises:
            KartRewardsError: The function raised one, or a process was killed or could not be started.
            RuntimeError: The function raised anything else (its traceback is in the message), or the last ``map`` is
                still at work.
        """
        if self._at_work:
            raise RuntimeError("these workers are still busy with another map")
        self._start(min(self.count, len(tasks)))
        idle, waiting, results = list(self._children.processes), deque(enumerate(tasks)), {}
        try:
            for number in range(len(tasks)):
                while number not in results:
                    while idle and waiting:
                        connection = idle.pop()
                        self._at_work[connection], task = waiting.popleft()
                        connection.send((function, task))
                    ready: list[Any] = wait(list(self._at_work))
                    for connection in ready:
                        error, result = connection.recv()
                        results[self._at_work.pop(connection)] = result
                        idle.append(connection)
                        if error:
                            raise error
                yield results.pop(number)
        except (EOFError, ConnectionError):
            how = ", ".join(self._children.ended(timeout_seconds=5).values()) or "how is not known"
            raise KartRewardsError(
                f"a worker process ended unexpectedly ({how}): if memory is short, use fewer of them"
            ) from None
        finally:
            if self._at_work:
                self.close()

    def _start(self, wanted: int) -> None:
        if self._children.ended(timeout_seconds=0):
            self.close()
        while len(self._children.processes) < wanted:
            self._children.start(_work)

    def close(self) -> None:
        """Ends the processes, whatever they are doing."""
        self._children.close()
        self._at_work.clear()


@contextmanager
def _signals_deferred() -> Iterator[None]:
    """Starts of processes are not interrupted inside, and the processes are deaf to signals from their first moment on.

    They inherit the thread's signal mask. It does not keep signals from this process, whose other threads take them.
    """
    came: list[int] = []
    handlers: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.signal(number, lambda number, _: came.append(number)) for number in _SIGNALS}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        resource_tracker.ensure_running()  # a start would do it otherwise, and lift the mask
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)
        for signal_number in came:
            signal.raise_signal(signal_number)


def _work(connection: Connection) -> None:
    """Calls what is asked for, until there is nobody to ask."""
    serve_parent()
    with suppress(EOFError, ConnectionError):
        while True:
            function, task = connection.recv()
            connection.send(attempt(function, *task))
