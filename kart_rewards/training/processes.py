"""Child processes: they ignore signals, and they end when their parent ends.

* ``serve_parent`` - sets up a child process; each child calls it first
* ``processor_count`` - the number of processor cores of this process
* ``core_by_core`` - moves a thread between cores, so that it slows down all processes equally
* ``on_core`` - keeps a thread on one core while it waits
* ``attempt`` - calls a function in a child and returns its result or error in a form for the parent
* ``CLEAN`` - how to start processes that do not get the memory of this one
* ``Children`` - child processes and the connections to them
* ``Workers`` - a pool of child processes that call functions

``Workers`` is used instead of the process pool of concurrent.futures, because that pool can't stop a running task, and
because it ends its processes with SIGTERM, which these processes ignore.
"""

from __future__ import annotations

import atexit
import gc
import io
import itertools
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
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

_SIGNALS = (signal.SIGINT, signal.SIGTERM)  # a terminal and `timeout` send these to the children, too


def serve_parent() -> None:
    """Sets up a child process: it ignores SIGINT and SIGTERM, and it ends when its parent ends for any reason.

    Standard output is written line by line, even to a file: the parent kills its children, and what they print, for
    example in a reward term, must not be lost then. Each line is written at once, so that the lines of two processes do
    not mix.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a test may have replaced it
        sys.stdout.reconfigure(line_buffering=True, write_through=False)

    def exit_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()


def processor_count() -> int:
    """Returns the number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def core_by_core(busy_cores: int) -> Iterator[Callable[[], None]]:
    """Yields a function that moves this thread to the next processor core.

    It is for a thread that works now and then while other processes are busy. The operating system would run such a
    thread on the same core again and again. The process on that core would be slower than the others, and they would
    wait for it.

    The function does nothing if a core is free, or if the platform has no processor affinity. After the context, the
    thread may use all its cores again.

    Args:
        busy_cores: Number of other busy processes on this machine.
    """
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else set()
    if busy_cores < len(cores) or len(cores) < 2:
        yield lambda: None
        return
    turns = itertools.cycle(sorted(cores))
    try:
        yield lambda: _allow({next(turns)})
    finally:
        _allow(cores)


@contextmanager
def on_core(number: int) -> Iterator[None]:
    """Keeps this thread on one processor core, for example while it waits for a message.

    It is for processes that a third one wakes at the same time. The operating system may wake two of them on one core,
    and move one of them only milliseconds later, although another core is idle. Each of them wakes on its own core if
    it waits in this context, and may then be moved.

    Args:
        number: The number of the process; with more processes than cores, the numbers begin again at the first core.
    """
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else set()
    try:
        if cores:
            _allow({sorted(cores)[number % len(cores)]})
        yield
    finally:
        if cores:
            _allow(cores)


def _allow(cores: set[int]) -> None:
    """Sets the cores on which this thread may run."""
    with suppress(OSError):  # a container can lose cores at any time
        os.sched_setaffinity(0, cores)


def attempt(function: Callable[..., Result], *args: Any) -> tuple[Exception | None, Result | None]:
    """Calls a function in a child process.

    Returns:
        The error and the result; one of them is None. The error is picklable: a ``KartRewardsError`` with the same
        message, or for other exceptions a ``RuntimeError`` with the traceback as its message.
    """
    try:
        return None, function(*args)
    except KartRewardsError as failure:
        return KartRewardsError(str(failure)), None  # a subclass may not be picklable
    except Exception:
        return RuntimeError(f"in a worker process:\n{traceback.format_exc()}"), None


CLEAN = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
"""A start method for processes that do not get the memory of this one. A fork would copy the locks of its threads, such
as PyTorch's, in a locked state. ``forkserver`` forks them from a process that has only imported the same modules: all
but the first start fast. Windows has only ``spawn``."""


class Children:
    """Child processes and the connections to them. The children ignore signals from their start.

    Their temporary files are in one folder, which is deleted with the last of them.

    Args:
        start_method: A start method of multiprocessing, such as ``CLEAN``; None is the platform's default.

    Attributes:
        processes: The parent's end of a connection -> the process at the other end.
    """

    def __init__(self, start_method: str | None = None) -> None:
        self.context: Any = multiprocessing.get_context(start_method)
        self.processes: dict[Connection, Any] = {}
        self._folder: str | None = None

    def start(self, target: Callable[..., None], *args: Any) -> Connection:
        """Starts a process that calls ``target(connection, *args)``.

        Returns:
            The parent's end of the connection.

        Raises:
            KartRewardsError: The process can't be started.
        """
        if not self.processes:
            atexit.register(self.close)  # otherwise multiprocessing would wait for the children at exit
        try:
            self._folder = self._folder or tempfile.mkdtemp(prefix="kart_rewards-")
            here, there = self.context.Pipe()
            if self.context.get_start_method() == "forkserver":
                self.context.set_forkserver_preload(_modules_in_use())
            args = (self._folder, dict(os.environ), target, there, *args)
            process = self.context.Process(target=_call_as_child, args=args, daemon=True)
            with _signals_deferred(), _objects_frozen():
                process.start()
                self.processes[here] = process
        except OSError as error:
            raise KartRewardsError(f"a process could not be started: {error.strerror or error}") from None
        there.close()
        return here

    def ended(self, timeout_seconds: float) -> dict[int, str]:
        """Waits until a process has ended, or until the timeout.

        Args:
            timeout_seconds: The maximum time to wait.

        Returns:
            For each process that has ended: its index in the order of ``start`` -> ``exit code 1`` or ``killed by
            signal 9``.
        """
        ended = wait([process.sentinel for process in self.processes.values()], timeout_seconds)
        how = {}
        for number, process in enumerate(self.processes.values()):
            if process.sentinel in ended:
                process.join()  # the exit code is known only after the pipes are closed
                code = process.exitcode
                how[number] = f"exit code {code}" if code >= 0 else f"killed by signal {-code}"
        return how

    def close(self) -> None:
        """Kills the processes, even while they are busy."""
        for process in self.processes.values():
            process.kill()
        for connection, process in self.processes.items():
            process.join()
            connection.close()
        self.processes.clear()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        atexit.unregister(self.close)


class Workers:
    """A pool of child processes that call functions. They start when ``map`` needs them, and run until ``close``.

    Each process imports the main script again, so the script needs an ``if __name__ == "__main__":`` block.

    Args:
        count: The maximum number of processes.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._children = Children(CLEAN)
        self._at_work: dict[Connection, int] = {}  # -> index of the task

    def map(self, function: Callable[..., Result], tasks: Sequence[tuple[Any, ...]]) -> Iterator[Result]:
        """Calls a function once per task, in parallel.

        If the caller stops the iteration before its end, or an exception is raised, the processes are killed. The next
        call starts new ones.

        Args:
            function: A function of a module. Its result must be picklable.
            tasks: The arguments of each call; they must be picklable.

        Yields:
            ``function(*task)`` for each task, in the order of the tasks.

        Raises:
            KartRewardsError: The function raised this error, a process was killed, or a process can't be started.
            RuntimeError: The function raised another exception (the message contains the traceback), or another ``map``
                is not finished.
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
            how = ", ".join(self._children.ended(timeout_seconds=5).values()) or "the exit code is not known"
            raise KartRewardsError(
                f"a worker process ended unexpectedly ({how}): if the memory is full, use fewer processes"
            ) from None
        finally:
            if self._at_work:
                self.close()

    def _start(self, wanted: int) -> None:
        if wait(list(self._children.processes), 0):  # an idle process sends nothing, so a connection has closed
            self.close()
        while len(self._children.processes) < wanted:
            self._children.start(_work)

    def close(self) -> None:
        """Kills the processes, even while they are busy."""
        self._children.close()
        self._at_work.clear()


def _modules_in_use() -> list[str]:
    """Returns the names of the modules to import before the first fork: PyTorch, and this package's."""
    return [name for name in sys.modules if name == "torch" or name.partition(".")[0] == __package__.partition(".")[0]]


def _call_as_child(folder: str, variables: dict[str, str], target: Callable[..., None], *args: Any) -> None:
    """Runs in a child process.

    Args:
        folder: Where it makes temporary files. The parent deletes them, because the child will be killed.
        variables: The parent's environment variables of now, which may differ from the fork server's.
        target: The function to call.
        args: Its arguments.
    """
    tempfile.tempdir = folder
    os.environ.clear()
    os.environ.update(variables)
    target(*args)


@contextmanager
def _objects_frozen() -> Iterator[None]:
    """Exempts this process's objects from garbage collection in a child that is forked inside.

    The child would look through them, and copy the memory of all that it looks at. An environment collects garbage when
    it starts, which took 0.16 s with PyTorch loaded.
    """
    global _others_freeze
    _others_freeze = _others_freeze or gc.get_freeze_count() > 0  # counting takes 0.05 s if there are many
    gc.freeze()
    try:
        yield
    finally:
        if not _others_freeze:
            gc.unfreeze()


_others_freeze = False
"""Whether this program exempts objects itself. Then they stay exempt."""


@contextmanager
def _signals_deferred() -> Iterator[None]:
    """Delays signals while a process starts. The new process blocks them from its first instruction.

    The new process inherits this thread's signal mask. The mask alone does not delay the signals of this process,
    because its other threads receive them. Therefore the handlers are replaced, too.
    """
    received: list[int] = []
    handlers: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.signal(number, lambda number, _: received.append(number)) for number in _SIGNALS}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        resource_tracker.ensure_running()  # otherwise the start of the process does this and unblocks the signals
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)
        for signal_number in received:
            signal.raise_signal(signal_number)


def _work(connection: Connection) -> None:
    """Runs in a child process: calls the functions that the parent sends, until the connection closes."""
    serve_parent()
    with suppress(EOFError, ConnectionError):
        while True:
            function, task = connection.recv()
            connection.send(attempt(function, *task))
