"""For tests of the page of ``kart-rewards lab``: its server, in a process of its own."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def served(folder: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Runs the command. Yields the address of the page, and the process."""
    command = [sys.executable, "-m", "kart_rewards", "lab", *options, "--no-browser"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        yield process.stdout.readline().split()[-1], process
    finally:
        process.kill()
        process.wait()
