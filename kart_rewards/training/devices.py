"""What the agent computes on, and how.

* ``choose_device`` - what ``--device auto`` means on this machine
* ``has_bfloat16`` - whether a device has instructions for bfloat16
* ``choose_computing`` - what ``auto`` means for precision, compilation and threads: it measures
* ``compile_encoder`` - torch.compile, where it works

Which precision is faster differs from processor to processor, and so does the gain of torch.compile. So a run measures
both on its own network and batch at the start. A resumed run keeps the choice, because another one changes the last
digits of what is learned.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from kart_rewards.errors import KartRewardsError
from kart_rewards.training.ranks import Ranks

Options = TypeVar("Options", bound=Any)

_SECONDS = 1.0
"""How long one alternative is measured."""
_MOST_PASSES = 12
"""The largest number of measured passes of one alternative."""
_MARGIN = 1.05
"""How much faster than float32 without compilation an alternative must be: less is noise."""


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


def has_bfloat16(device: torch.device) -> bool:
    """Returns whether a device has instructions for bfloat16. Without them, bfloat16 is slow."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Older versions of PyTorch don't report the instructions of the processor.
    abilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return (
        device.type == "cpu"
        and torch.backends.mkldnn.is_available()  # else PyTorch's bfloat16 is slow
        and any(abilities.get(each) for each in ("avx512_bf16", "amx_bf16", "bf16"))
    )


def choose_computing(
    options: Options, make_agent: Callable[[torch.dtype], Any], samples: int, device: torch.device, ranks: Ranks
) -> Options:
    """Replaces ``auto`` by what is fastest here, and sets the number of PyTorch's own threads to 1.

    Each alternative is measured for about a second: forward and backward passes of a minibatch. The result is printed.
    With several ranks, the result of rank 0 counts for all.

    Args:
        options: A dataclass with ``precision``: float32, bfloat16 or auto; ``compile``: on, off or auto; ``threads``: a
            number or auto, one per core of this process.
        make_agent: Makes an agent from a precision. Its attribute ``threads`` is set: see
            ``kart_rewards.training.threads``.
        samples: The size of a minibatch.
        device: What the agent runs on.
        ranks: This process among all.

    Returns:
        A copy of the options without ``auto`` in these three.
    """
    torch.set_num_threads(1)
    chosen = {name: getattr(options, name) for name in ("precision", "compile", "threads")}
    if chosen["threads"] == "auto":
        chosen["threads"] = ranks.processors() if device.type == "cpu" else 1

    def make(precision: str) -> Any:
        agent = make_agent(getattr(torch, precision)).to(device)
        agent.threads = chosen["threads"]
        return agent

    if ranks.rank == 0:
        rates: dict[str, float] = {}
        if chosen["precision"] == "auto":
            precisions = ["float32", "bfloat16"] if has_bfloat16(device) else ["float32"]
            chosen["precision"] = _fastest({each: make(each) for each in precisions}, samples, device, rates)
        if chosen["compile"] == "auto":
            alternatives = {"not compiled": make(chosen["precision"]), "compiled": make(chosen["precision"])}
            print("compiling the network, to measure whether that is faster", flush=True)
            if not compile_encoder(alternatives["compiled"], _images(alternatives["compiled"], samples, device)):
                del alternatives["compiled"]
            chosen["compile"] = "on" if _fastest(alternatives, samples, device, rates) == "compiled" else "off"
        if rates:
            listed = ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items())
            print(f"measured forward and backward passes, samples/s: {listed}")
    return replace(options, **ranks.gather(chosen)[0])


def _images(agent: Any, samples: int, device: torch.device) -> Tensor:
    return torch.zeros(samples, *agent.observation_shape, dtype=torch.uint8, device=device)


def _fastest(agents: Mapping[str, Any], samples: int, device: torch.device, rates: dict[str, float]) -> str:
    """Returns the name of the fastest agent. The first one wins if no other is faster by the margin.

    The agents take turns, so that a change of the machine's load has the same effect on each.
    """
    if len(agents) == 1:
        return next(iter(agents))
    seconds: dict[str, list[float]] = {name: [] for name in agents}
    end = time.perf_counter() + _SECONDS * len(agents)
    while time.perf_counter() < end and len(seconds[next(iter(agents))]) <= _MOST_PASSES:
        for name, agent in agents.items():
            images = _images(agent, samples, device)
            began = time.perf_counter()
            agent.get_value(images).sum().backward()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds[name].append(time.perf_counter() - began)
            agent.zero_grad()
    measured = {name: samples / statistics.median(each[1:] or each) for name, each in seconds.items()}  # [0]: a warm-up
    rates |= measured
    first, *others = measured
    best = max(others, key=lambda name: measured[name])
    return best if measured[best] > _MARGIN * measured[first] else first


def compile_encoder(agent: Any, observation: Tensor) -> bool:
    """Compiles ``agent.encoder`` in place with torch.compile. If that fails, the encoder stays and a notice is printed.

    On a GPU, the compiled network also uses CUDA graphs, which save the time to launch each kernel.

    Args:
        agent: A module with the attribute ``encoder`` and the method ``get_value``.
        observation: An example, shape (batch, ...), of the size that training uses.

    Returns:
        Whether the encoder is compiled.
    """
    eager, mode = agent.encoder, "reduce-overhead" if observation.is_cuda else None
    try:
        agent.encoder = torch.compile(eager, mode=mode)
        agent.get_value(observation).sum().backward()
        agent.encoder = eager
        agent.encoder.compile(mode=mode)  # in place, so that checkpoints name the weights as before
    except Exception as error:  # torch.compile raises many types where a compiler is missing or broken
        agent.encoder = eager
        print(f"--compile is ignored: torch.compile does not work here ({type(error).__name__})\n")
        return False
    finally:
        agent.zero_grad()
    return True
