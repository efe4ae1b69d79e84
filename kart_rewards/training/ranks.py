"""Several processes that train one agent together, started by torchrun.

* ``Ranks`` - this process among all, and what they compute together
* ``on_every_rank`` - makes the main function of a program that torchrun starts
* ``joined`` - connects the processes
* ``LostRankError`` - another of them has ended, or its machine can't be reached
"""

from __future__ import annotations

import functools
import io
import os
import pickle
import re
import secrets
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr, suppress
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import psutil
import torch
from torch import Tensor, nn

from kart_rewards.errors import KartRewardsError
from kart_rewards.training.processes import processor_count

Result = TypeVar("Result")

_STORE_LIMIT = 2**22
"""Bytes of one value in the store of all ranks. PyTorch's store refuses values of more than 8 MiB."""
_SECONDS_TO_START = 300
"""How long the ranks wait for each other at the start. Machines load their programs at different speeds."""
_SECONDS_OF_SILENCE = 25
"""How long a machine may not answer before its ranks are lost. The network may fail for less than this."""
_SECONDS_TO_END = 25
"""How long a rank may take to save and end after another rank is lost."""


class LostRankError(KartRewardsError):
    """Another process of the run has ended, or its machine can't be reached."""


@dataclass(frozen=True)
class Ranks:
    """The processes that train one agent together under torchrun. Each has an equal share of the environments.

    A run without torchrun is rank 0 of 1. Then every method returns what it was given.

    Args:
        rank: This process's number among all processes of all machines. It decides seeds; rank 0 logs and saves.
        world_size: How many processes there are.
        local_rank: This process's number on its machine. It decides the GPU.
        local_world_size: How many processes there are on its machine.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @classmethod
    def from_torchrun(cls) -> Ranks:
        """Reads the environment variables that torchrun sets: RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE."""
        return cls(**{item.name: int(os.environ.get(item.name.upper(), str(item.default))) for item in fields(cls)})

    def check_shares(self, totals: Mapping[str, int]) -> None:
        """Checks that the ranks can share the work equally.

        Args:
            totals: What is shared -> how much of it there is over all ranks.

        Raises:
            KartRewardsError: A total is not a multiple of the number of ranks.
        """
        for name, total in totals.items():
            if total % self.world_size:
                raise KartRewardsError(
                    f"{name}, {total}, can't be shared equally by {self.world_size} processes: change --num-envs, "
                    "--num-steps or --num-minibatches"
                )

    def processors(self) -> int:
        """Returns how many processor cores this rank has."""
        return max(processor_count() // self.local_world_size, 1)

    def share(self, total: int) -> int:
        """Returns this rank's part of a total over all ranks."""
        return total // self.world_size

    def mean(self, tensor: Tensor) -> Tensor:
        """Returns the mean over the ranks, the same on each."""
        if self.world_size > 1:
            tensor = tensor.clone()
            with _explaining_lost_ranks():
                torch.distributed.all_reduce(tensor)
            tensor /= self.world_size
        return tensor

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces each gradient by its mean over the ranks."""
        if self.world_size > 1:
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            mean = self.mean(torch.cat([gradient.flatten() for gradient in gradients]))
            for gradient, part in zip(gradients, mean.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def gather(self, item: Any) -> list[Any]:
        """Returns the items of all ranks, in the order of the ranks, on every rank."""
        items = [item]
        if self.world_size > 1:
            items = [None] * self.world_size
            with _explaining_lost_ranks():
                torch.distributed.all_gather_object(items, item)
        return items

    def agree(self, agent: nn.Module, steps: int) -> None:
        """Gives every rank the weights of rank 0: on different processors the same seed may give different weights.

        Raises:
            KartRewardsError: The ranks have not done the same number of steps.
        """
        if len(set(self.gather(steps))) > 1:
            raise KartRewardsError("the ranks are at different steps: every machine needs the checkpoint to resume")
        if self.world_size > 1:
            for parameter in agent.parameters():
                with _explaining_lost_ranks():
                    torch.distributed.broadcast(parameter.data, 0)

    def printing_once(self) -> AbstractContextManager[object]:
        """Returns a context in which rank 0 alone prints to standard error: for a parser that prints its errors."""
        return redirect_stderr(io.StringIO()) if self.rank > 0 else nullcontext()

    def _store_error(self, error: str, *, leave: bool = True) -> None:
        """Lets the other ranks know that this one ends and, if it is to ``leave``, that it reads no more from them."""
        with suppress(RuntimeError, ValueError):  # the process that serves the store has ended, or is not known
            _store(self).set(f"error-{self.rank}", error)
            if leave:
                _store(self).set(f"left-{self.rank}", "")

    def _ends_like_rank_0(self, error: str) -> bool:
        """Whether rank 0 ends because of the same error, too. It waits for the other ranks, and they wait for it."""
        seconds = 3 if torch.distributed.is_initialized() else 60  # before, rank 0 may be loading its programs
        self._store_error(error, leave=False)
        with suppress(RuntimeError, ValueError):
            store = _store(self)
            if self.rank > 0:
                _wait_until(lambda: store.check(["error-0"]), seconds)
                same = _read(store, ["error-0"]) == [error]
                store.set(f"left-{self.rank}", "")
                return same
            # The process of rank 0 may serve the store: it ends when the others have read why.
            _wait_until(lambda: store.check([f"left-{rank}" for rank in range(1, self.world_size)]), seconds)
        return self.rank == 0

    def from_rank_0(self, function: Callable[..., Result], *args: Any) -> Result:
        """Calls a function on rank 0 alone, and returns its result on every rank. For use once, before ``joined``.

        Args:
            function: Its result must be picklable.
            args: The arguments of the function.

        Raises:
            LostRankError: Rank 0 has ended with an error, or is not ready in time.
        """
        if self.world_size == 1:
            return function(*args)
        store = _store(self)
        if self.rank == 0:
            result = function(*args)
            data = pickle.dumps(result)
            for start in range(0, len(data), _STORE_LIMIT):
                store.set(f"part-{start}", data[start : start + _STORE_LIMIT])  # type: ignore[arg-type]  # takes bytes, too
            store.set("size", str(len(data)))
            return result
        self._wait_for(0, "size")
        size = int(store.get("size"))
        data = b"".join(store.get(f"part-{start}") for start in range(0, size, _STORE_LIMIT))
        return cast(Result, pickle.loads(data))  # noqa: S301 - gather unpickles what the ranks send, too

    def _wait_for(self, rank: int, key: str) -> None:
        """Waits until another rank has stored a key.

        Raises:
            LostRankError: The rank has ended with an error, or does not store the key in time.
        """
        store, error = _store(self), f"error-{rank}"
        _wait_until(lambda: store.check([key]) or store.check([error]), _SECONDS_TO_START)
        if not store.check([key]):
            [reason] = _read(store, [error]) or [f"it is not ready after {_SECONDS_TO_START} s"]
            self._ends_like_rank_0("")
            raise LostRankError(f"another process of this run has ended: rank {rank}: {reason}")


def on_every_rank(main: Callable[[Ranks], None]) -> Callable[[], None]:
    """Makes the main function of a program that torchrun starts once per rank. Use it as a decorator.

    Rank 0 alone prints to standard output. A mistake of the user that all ranks find is reported once: a rank prints
    an error if it is rank 0, or if rank 0 does not have the same error. A lost rank is reported once per machine.

    Args:
        main: The function of one rank.

    Returns:
        The function without arguments. It raises SystemExit with exit code 2 after an error was reported.
    """

    @functools.wraps(main)
    def main_of_this_rank() -> None:
        ranks = Ranks.from_torchrun()
        if ranks.world_size == 1:
            main(ranks)
            return
        if ranks.rank > 0:
            sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - for as long as the process lives
        try:
            main(ranks)
        except LostRankError as error:
            if ranks.local_rank == 0:
                _print_error(error)
            sys.exit(2)
        except KartRewardsError as error:
            if ranks.rank == 0:
                _print_error(error)
            if not ranks._ends_like_rank_0(str(error)):
                _print_error(error)
            sys.exit(2)
        except SystemExit as end:
            # On rank 0, tyro has printed which options are wrong.
            message = "the options are not valid: start the same command without torchrun to see why"
            if end.code and not ranks._ends_like_rank_0(message):
                _print_error(message)
            raise
        except BaseException as error:  # also KeyboardInterrupt
            if _store.cache_info().currsize:  # the others may be waiting for this rank
                ranks._store_error(type(error).__name__)
            raise

    return main_of_this_rank


@functools.cache
def _store(ranks: Ranks) -> torch.distributed.Store:
    """Meets the other ranks, and returns a key-value store that these processes share.

    The store that torchrun serves is older than the processes that it has restarted. So each process has an id, and
    the keys of each group of processes have a prefix: the ids.

    Raises:
        LostRankError: A rank did not start in time.
    """
    everyone = range(ranks.world_size)
    my_id = secrets.token_hex(4)
    started = time.monotonic()
    with _explaining_lost_ranks():
        timeout = timedelta(seconds=_SECONDS_TO_START)
        store, _, _ = next(torch.distributed.rendezvous("env://", ranks.rank, ranks.world_size, timeout=timeout))
        store.set(f"id-{ranks.rank}", my_id)
        while time.monotonic() < started + _SECONDS_TO_START:
            if ranks.rank == 0:
                store.set("group", " ".join(_read(store, [f"id-{rank}" for rank in everyone])))
            [group] = _read(store, ["group"]) or [""]
            if my_id in group:
                # An earlier process can't have agreed to this group, because it does not know this process's id.
                store.set(f"agreed-{ranks.rank}", group)
                if set(_read(store, [f"agreed-{rank}" for rank in everyone])) == {group}:
                    return torch.distributed.PrefixStore(group, store)
            time.sleep(0.2)
    raise LostRankError(f"not all of the {ranks.world_size} processes of this run started in {_SECONDS_TO_START} s")


def _read(store: torch.distributed.Store, keys: list[str]) -> list[str]:
    """Returns the values of keys; an empty list if one of them is not there."""
    return [value.decode() for value in store.multi_get(keys)] if store.check(keys) else []


def _wait_until(condition: Callable[[], bool], seconds: float) -> None:
    """Waits until a condition holds, or until the time is over."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)


def _print_error(error: object) -> None:
    print(f"error: {error}", file=sys.stderr, flush=True)


@contextmanager
def _explaining_lost_ranks() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        # such as "[/pytorch/gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.2]:4999. This is"
        reason = re.sub(r"^\[\S+\] ", "", str(error).splitlines()[0]).split(". ")[0]
        raise LostRankError(
            f"another process of this run has ended, or the network to its machine is down ({reason}): the messages of "
            "the other processes say more"
        ) from None


@contextmanager
def joined(ranks: Ranks, device: torch.device, stop: threading.Event | None = None) -> Iterator[None]:
    """Connects this process with the other ranks, if there are any, for the body of the ``with`` statement.

    If another rank ends before the body ends, or its machine does not answer, operations with it raise
    ``LostRankError``. If this process does not end soon after that, it is ended without saving.

    Args:
        ranks: This process among all.
        device: The agent's.
        stop: Is set when a rank is lost, so that an evaluation ends.

    Raises:
        LostRankError: A rank has ended with an error, or did not start.
    """
    if ranks.world_size == 1:
        yield
        return
    _store(ranks).set(f"ready-{ranks.rank}", "")
    for rank in range(ranks.world_size):
        ranks._wait_for(rank, f"ready-{rank}")
    open_before = _tcp_connections()
    with _explaining_lost_ranks():
        torch.distributed.init_process_group(
            # Also with GPUs, the ranks exchange over gloo what is on the CPU.
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=_store(ranks),
            rank=ranks.rank,
            world_size=ranks.world_size,
            timeout=timedelta(days=1),  # the ranks wait while rank 0 evaluates
        )
    links = [_watched(connection.fd) for connection in _tcp_connections() - open_before]
    ended = threading.Event()
    threading.Thread(target=_watch, args=(links, ended, stop or threading.Event()), daemon=True).start()
    yield
    ranks.gather(None)  # no rank closes its connections before the others are here
    ended.set()
    # gloo's threads need the GIL to release the tensors of the last exchange. Before PyTorch 2.8, the next call keeps
    # the GIL while it waits for these threads (https://github.com/pytorch/pytorch/pull/154976).
    time.sleep(0.1)
    torch.distributed.destroy_process_group()  # after an error this could wait for ranks that wait for this one


def _tcp_connections() -> set[Any]:
    """Returns psutil's descriptions of this process's TCP connections."""
    return {connection for connection in psutil.Process().net_connections("tcp") if connection.raddr}


def _watched(descriptor: int) -> socket.socket:
    """Makes the system close a TCP connection if the other machine does not answer, which TCP itself does not detect.

    Args:
        descriptor: The connection's file descriptor.

    Returns:
        A duplicate, which shows the connection's state also after its owner has closed it.
    """
    options = {
        "TCP_KEEPIDLE": 10,  # seconds without traffic, after which the other machine is asked to answer
        "TCP_KEEPINTVL": 5,
        "TCP_KEEPCNT": (_SECONDS_OF_SILENCE - 10) // 5,
        "TCP_USER_TIMEOUT": 1000 * _SECONDS_OF_SILENCE,  # milliseconds, for data that is sent and not acknowledged
    }
    link = socket.socket(fileno=os.dup(descriptor))
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in options.items():
        if hasattr(socket, name):  # the names are Linux's; other systems have some of them
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return link


def _watch(links: Sequence[socket.socket], ended: threading.Event, stop: threading.Event) -> None:
    """Waits until a connection is closed, and makes sure that this process ends then."""
    poll = select.poll()
    for link in links:
        poll.register(link, getattr(select, "POLLRDHUP", 0))  # Linux's; others report a closed connection anyway
    poll.poll()
    stop.set()
    if not ended.wait(_SECONDS_TO_END):
        _print_error(f"another process of this run has ended, and this one did not end in {_SECONDS_TO_END} s")
        os._exit(2)
