"""A network computes the parts of a batch in threads.

* ``in_threads`` - lets several threads compute a method of a network, each a part of the batch

PyTorch's own threads share each operation. On a processor, the threads of oneDNN's convolutions wait for each other
many times per operation, in a loop that never gives the core back to the operating system. If another process has the
core of one thread, the other threads wait and compute nothing. Two trainings that ran side by side had a twentieth of
the speed of one (``python benchmarks/side_by_side.py``). With the threads of this module, each operation has one
thread; the threads meet once per forward and once per backward pass, and sleep until then.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

_MIN_SAMPLES = 16
"""The smallest part for a thread. The parts of smaller batches take less time than waking the threads."""


def in_threads(method: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """Lets ``module.threads`` threads compute a method of a network, if gradients are needed. Use it as a decorator.

    The gradients of the parts are added in the order of the parts, so the result does not depend on which thread is
    faster. Another number of threads adds in another order, which changes the last digits.

    Args:
        method: A method of a ``torch.nn.Module`` with an attribute ``threads``. Its argument is a batch, shape
            (batch, ...), and so is its result. The result for a sample must not depend on the other samples.

    Returns:
        The method. Gradients flow back to the parameters of the module, and not to the batch.
    """

    @functools.wraps(method)
    def by_parts(module: Any, batch: Tensor) -> Tensor:
        threads = min(module.threads, len(batch) // _MIN_SAMPLES)
        if threads < 2 or not torch.is_grad_enabled():
            return method(module, batch)
        function, parts = functools.partial(method, module), batch.chunk(threads)
        result: Tensor = _InThreads.apply(function, parts, *module.parameters())
        return result

    return by_parts


class _InThreads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Any, parts: tuple[Tensor, ...], *parameters: Tensor) -> Tensor:
        @torch.enable_grad()
        def compute(part: Tensor) -> Tensor:
            return function(part)

        ctx.results, ctx.parameters = list(_pool(len(parts)).map(compute, parts)), parameters
        return torch.cat([result.detach() for result in ctx.results])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        def differentiate(result: Tensor, gradient: Tensor) -> tuple[Tensor | None, ...]:
            return torch.autograd.grad(result, ctx.parameters, gradient, allow_unused=True)

        by_part = _pool(len(ctx.results)).map(
            differentiate, ctx.results, gradients[0].split([len(result) for result in ctx.results])
        )
        # The parts of a parameter that the method does not use are None.
        sums = (
            None if of_parts[0] is None else sum(of_parts[1:], of_parts[0]) for of_parts in zip(*by_part, strict=True)
        )
        return None, None, *sums


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="update")
