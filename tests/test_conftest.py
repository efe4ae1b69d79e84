"""How the tests are run: the complete suite in two processes, named tests plainly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


# pytest-dev/pytest-xdist#354: output of tests is not shown with -s in worker processes.
def test_named_tests_run_plainly() -> None:
    command = [sys.executable, "-m", "pytest", "-k", "did_you_mean", "tests/test_errors.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert "workers" not in done.stdout
