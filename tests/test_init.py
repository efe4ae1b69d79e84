"""The names of the package ``kart_rewards`` itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_an_import_that_fails_below_is_reported_with_its_cause(tmp_path: Path) -> None:
    """``from`` turns an AttributeError into "cannot import name"."""
    (tmp_path / "stable_retro.py").touch()
    code = "from kart_rewards import make_env"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].startswith(
        "ImportError: kart_rewards.make_env can't be imported: module 'stable_retro' has no attribute 'RetroEmulator'. "
        "If a file of"
    )
