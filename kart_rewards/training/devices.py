"""What the agent computes on, and with.

* ``choose_device``, ``choose_precision`` - what ``auto`` means on this machine
* ``compile_encoder`` - torch.compile, where it works
* ``one_thread`` - PyTorch on one thread, for small batches
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from kart_rewards.errors import KartRewardsError
from kart_rewards.training.ranks import Ranks


def choose_device(name: str, ranks: Ranks) -> torch.device:
    """Returns the device that the agent runs on. Each rank on a machine has a GPU of its own.

    Args:
        name: ``cpu``, ``cuda``, ``mps`` or ``auto``: cuda if there is one, else cpu.
        ranks: This process among all.

    Raises:
        KartRewardsError: This machine does not have the device, or the ranks can't share it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available[name]:
        raise KartRewardsError(
            f"--device {name}: this machine, or this build of PyTorch, does not have one: use --device auto"
        )
    if name == "mps" and ranks.world_size > 1:
        raise KartRewardsError("--device mps: several processes can't share it: use --device cpu")
    if name == "cuda" and ranks.world_size > 1:
        if ranks.local_rank >= torch.cuda.device_count():
            raise KartRewardsError(
                f"torchrun starts {ranks.local_world_size} processes here, for {torch.cuda.device_count()} GPUs: lower "
                "--nproc-per-node"
            )
        torch.cuda.set_device(ranks.local_rank)
        return torch.device("cuda", ranks.local_rank)
    return torch.device(name)


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """Returns the type that the encoder computes with.

    Args:
        name: ``float32``, ``bfloat16`` or ``auto``: bfloat16 where the device has instructions for it.
        device: What the agent runs on.
    """
    if name == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            abilities = torch.cpu.get_capabilities()
            fast = device.type == "cpu" and torch.backends.mkldnn.is_available()  # else PyTorch's bfloat16 is slow
            fast = fast and any(abilities.get(each) for each in ("avx512_bf16", "amx_bf16", "bf16"))
        name = "bfloat16" if fast else "float32"
    return torch.float32 if name == "float32" else torch.bfloat16


def compile_encoder(agent: Any, observation: Tensor) -> None:
    """Compiles ``agent.encoder`` in place with torch.compile. If that fails, the encoder stays and a notice is printed.

    Args:
        agent: A module with the attribute ``encoder`` and the method ``get_value``.
        observation: An example, shape (batch, ...), of the size that training uses.
    """
    eager = agent.encoder
    try:
        agent.encoder = torch.compile(eager)
        agent.get_value(observation).sum().backward()
        agent.encoder = eager
        agent.encoder.compile()  # in place, so that checkpoints name the weights as before
    except Exception as error:  # torch.compile raises many types where a compiler is missing or broken
        agent.encoder = eager
        print(f"--compile is ignored: torch.compile does not work here ({type(error).__name__})\n")
    agent.zero_grad()


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch computes on one thread inside: for small batches, waking a second thread takes longer than it saves."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
