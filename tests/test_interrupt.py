"""Ctrl-C while the programs start."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from training_runs import GAME, ROOT, SCRIPT, SMALL, wait_until


# ethereum/trinity#1335, ipython/ipython#9730: loading the modules takes a second, and Ctrl-C in this time prints a
# traceback.
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux to see which libraries are loaded")
@pytest.mark.parametrize(
    ("command", "library"),
    [
        ([SCRIPT], "_multiarray_umath"),  # NumPy
        ([SCRIPT], "cv2"),
        (["-m", "kart_rewards", "train"], "_multiarray_umath"),
        (["-m", "kart_rewards", "train"], "libtorch_cpu"),
    ],
)
def test_ctrl_c_during_the_imports_ends_without_a_traceback(command: list[str], library: str, tmp_path: Path) -> None:
    words = [sys.executable, *command, "--env-id", GAME, *SMALL, "--runs-path", tmp_path]
    process = subprocess.Popen(
        [str(word) for word in words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        wait_until(lambda: library in Path(f"/proc/{process.pid}/maps").read_text(), 60)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode in (-signal.SIGINT, 130)
    assert stderr == ""
    assert not list(tmp_path.iterdir())
