"""Processes that start quickly: forks of a process that has imported the product's modules.

Most of the processor time of a short command is spent in imports: half a second for the emulator and the parser of the
options, and three seconds more for PyTorch and what its first optimizer imports.

* ``Fork`` - such a process; it runs a Python program with its own arguments, environment variables and pipes
* ``run`` - runs one and returns what it printed; the program's own worker processes start quickly, too
* ``COMMANDS``, ``TRAINING`` - the modules of ``kart-rewards``'s commands, and those of training

The processes share nothing but the imports. Tests of the start itself use ``subprocess``: of the imports and their
order, of options of the interpreter (``-c``, ``PYTHONHASHSEED``), of a changed ``OMP_NUM_THREADS``.
"""

from __future__ import annotations

import fcntl
import functools
import gc
import hashlib
import importlib
import importlib.util
import multiprocessing.util
import os
import pickle
import select
import signal
import socket
import struct
import subprocess
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

import kart_rewards.__main__

_NUMBER = struct.Struct("i")
COMMANDS = tuple(sorted({target.partition(":")[0] for target in kart_rewards.__main__.COMMANDS.values()}))
"""None of them imports PyTorch, so that the processes also end quickly."""

TRAINING = ("ppo_continuous_single_file", "torch._dynamo")  # the latter is imported by an optimizer


class Fork(subprocess.Popen[str]):
    """Like ``subprocess.Popen`` of a program in Python. The process has a session of its own.

    Args:
        words: ``sys.executable``, then a file or ``-m`` and a package, then the program's arguments.
        modules: What is imported before the fork.
        options: Those of ``subprocess.Popen`` that set the pipes, ``cwd`` and ``env``.
    """

    _has_copy = False

    def __init__(self, words: Sequence[object], modules: tuple[str, ...], **options: Any) -> None:
        self._modules, self._status = modules, -1
        super().__init__([str(word) for word in words], text=True, start_new_session=True, **options)

    # These methods replace those of the standard library's class that fork this process and wait for its child. Other
    # systems have no descriptors of processes: there, the program starts as usual.
    if sys.platform == "linux":

        def _execute_child(self, args: Any, _1: Any, _2: Any, _3: Any, _4: Any, cwd: Any, env: Any, *rest: Any) -> None:
            p2cread, _, _, c2pwrite, _, errwrite = rest[3:9]
            self._status, status = os.pipe()
            environment = dict(os.environ if env is None else env)
            request = pickle.dumps((args, str(cwd or Path.cwd()), environment, self._has_copy))
            standard = [(p2cread, 0), (c2pwrite, 1), (errwrite, 2)]
            descriptors = [inherited if given == -1 else given for given, inherited in standard]
            socket.send_fds(_server(self._modules), [request], [*descriptors, status])
            os.close(status)
            [self.pid] = _NUMBER.unpack(os.read(self._status, _NUMBER.size))
            self._child_created = True
            self._close_pipe_fds(*rest[3:9])  # type: ignore[attr-defined]  # is not in the stubs

        def _try_wait(self, flags: int) -> tuple[int, int]:
            if flags & os.WNOHANG and not select.select([self._status], [], [], 0)[0]:
                return 0, 0
            [status] = _NUMBER.unpack(os.read(self._status, _NUMBER.size))
            os.close(self._status)
            return self.pid, status

        def _internal_poll(self, *_: Any, **__: Any) -> int | None:
            if self.returncode is None:
                pid, status = self._try_wait(os.WNOHANG)
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
            return self.returncode


class _ForkWithCopy(Fork):
    """A process with a child process from its start on, see ``_keep_a_copy``."""

    _has_copy = True


def run(
    words: Sequence[object], modules: tuple[str, ...], input: str | None = None, timeout: float = 300, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Runs a program as ``Fork`` does, and captures what it prints.

    Args:
        words: See ``Fork``.
        modules: See ``Fork``.
        input: What the program reads from its standard input.
        timeout: Seconds after which the process is killed.
        options: See ``Fork``.
    """
    options |= {"stdin": subprocess.PIPE} if input is not None else {}
    with _ForkWithCopy(words, modules, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options) as process:
        try:
            stdout, stderr = process.communicate(input, timeout)
        finally:
            process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


@functools.cache
def _server(modules: tuple[str, ...]) -> socket.socket:
    """Returns a connection to a process that imports modules and then forks. It ends with its last connection.

    All processes of a test run use the same one. It is not a child process of this one: tests count those.
    """
    folder = Path(os.environ["XDG_CACHE_HOME"]).resolve()  # of this test run alone, see conftest.py
    address = folder / f"{hashlib.sha256(repr(modules).encode()).hexdigest()[:16]}.socket"
    link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with FileLock(f"{address}.lock"):
        try:
            link.connect(str(address))
        except OSError:  # there is no server, or it has ended
            address.unlink(missing_ok=True)
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
                listener.bind(str(address))
                listener.listen()
                link.connect(str(address))
                subprocess.check_call(  # not run, which a test replaces by the function above
                    [sys.executable, __file__, str(listener.fileno()), *modules],
                    pass_fds=[listener.fileno()],
                    env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,  # not a terminal: Python writes to it in blocks, as to a test's pipe
                    start_new_session=True,
                )
    return link


def _serve(listener: socket.socket) -> list[str]:
    """Forks a process per request, and reports how each ends. Returns in a new process: the words of its program."""
    running: dict[Any, tuple[int, int]] = {}  # descriptor of a process -> its id, and where to report its end
    links: list[socket.socket] = []
    while True:
        for ready in select.select([listener, *links, *running], [], [])[0]:
            if ready is listener:
                links.append(listener.accept()[0])
                continue
            if ready in running:
                pid, status = running.pop(ready)
                os.write(status, _NUMBER.pack(os.waitpid(pid, 0)[1]))
                os.close(ready)
                os.close(status)
                continue
            request, descriptors, _, _ = socket.recv_fds(ready, 2**20, 4)
            if not request:
                links.remove(ready)
                ready.close()
                if not links:
                    os._exit(0)
                continue
            words, folder, environment, has_copy = pickle.loads(request)  # noqa: S301 - from this file's other half
            *standard, status = descriptors
            if pid := os.fork():
                running[os.pidfd_open(pid)] = pid, status
                os.write(status, _NUMBER.pack(pid))
                for descriptor in standard:
                    os.close(descriptor)
                continue
            os.setsid()
            for number, descriptor in enumerate(standard):
                os.dup2(descriptor, number)
            for descriptor in (*descriptors, *running, *(other for _, other in running.values())):
                os.close(descriptor)
            for connection in (listener, *links):
                connection.close()
            os.chdir(folder)
            os.environ.clear()
            os.environ.update(environment)
            if environment.get("PYTHONUNBUFFERED"):
                sys.stdout = open(1, "w", buffering=1)  # noqa: SIM115
            if has_copy:
                _keep_a_copy()
            return list(words)


def _keep_a_copy() -> None:
    """Forks this process. The copy becomes the fork server of multiprocessing, when the program starts one.

    Such a server is a new interpreter, which would import all modules again: one second, and three more for PyTorch. A
    copy that is not needed ends with the program.
    """
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if pid := os.fork():
        there.close()
        start_interpreter = multiprocessing.util.spawnv_passfds

        def start(path: bytes, args: Sequence[Any], passfds: Sequence[int]) -> int:
            if "multiprocessing.forkserver" not in str(args[-1]):
                return start_interpreter(path, args, passfds)
            multiprocessing.util.spawnv_passfds = start_interpreter
            socket.send_fds(here, [pickle.dumps((args[-1], passfds))], passfds)
            here.close()
            return pid

        multiprocessing.util.spawnv_passfds = start
        return
    here.close()
    on_ctrl_c = signal.signal(signal.SIGINT, signal.SIG_IGN)
    request, received, _, _ = socket.recv_fds(there, 2**20, 4)
    there.close()
    if not request:
        os._exit(0)
    code, wanted = pickle.loads(request)  # noqa: S301 - from the function above
    for number, descriptor in zip(wanted, _moved(received, max(wanted) + 1), strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    signal.signal(signal.SIGINT, on_ctrl_c)
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    try:
        exec(code, vars(main))  # noqa: S102
    finally:
        os._exit(0)


def _moved(descriptors: Sequence[int], least: int) -> list[int]:
    """Moves descriptors to numbers that are not below a number."""
    moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, least) for descriptor in descriptors]
    for descriptor in descriptors:
        os.close(descriptor)
    return moved


def _prepare(words: list[str]) -> types.ModuleType:
    """Sets up this process for a program, as the interpreter does. Returns the module ``__main__``."""
    spec, arguments = None, words[1:]
    first = str(Path(arguments[0]).resolve().parent)
    if arguments[0] == "-m":
        first = str(Path.cwd())
    python_path = os.environ.get("PYTHONPATH")
    sys.path[:] = [first, *(python_path.split(os.pathsep) if python_path else []), *sys.path[1:]]  # without this file's
    if arguments[0] == "-m":
        spec = importlib.util.find_spec(f"{arguments[1]}.__main__")
        assert spec is not None and spec.origin
        arguments[:2] = [spec.origin]
    sys.argv = arguments
    module = types.ModuleType("__main__")
    module.__file__, module.__spec__ = arguments[0], spec
    if spec:
        module.__package__ = spec.parent
    sys.modules["__main__"] = module
    return module


if __name__ == "__main__":
    if os.fork():
        os._exit(0)  # the other one has no parent
    for _name in sys.argv[2:]:
        importlib.import_module(_name)
    gc.collect()
    gc.freeze()  # so that no process copies the memory of the modules
    main = _prepare(_serve(socket.socket(fileno=int(sys.argv[1]))))
    exec(compile(Path(sys.argv[0]).read_bytes(), sys.argv[0], "exec"), vars(main))  # noqa: S102
