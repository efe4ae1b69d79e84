"""The names of the package ``kart_rewards`` itself."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest


def test_an_import_that_fails_below_is_reported_with_its_cause(tmp_path: Path) -> None:
    """``from`` turns an AttributeError into "cannot import name"."""
    (tmp_path / "stable_retro.py").touch()
    code = "from kart_rewards import make_env"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].startswith(
        "ImportError: kart_rewards.make_env can't be imported: module 'stable_retro' has no attribute 'RetroEmulator'. "
        "If a file of"
    )


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("kart_rewards", "done_rule make_env reward_term"),
        ("kart_rewards.env", "KartEnv"),
        ("kart_rewards.race", "COURSE_SURFACES"),
        ("kart_rewards.ram", "RamLayout"),
        ("kart_rewards.testing", "ends_at load_trace score snapshot"),
    ],
)
def test_names_that_version_0_1_documented_are_where_they_were(module: str, names: str) -> None:
    found = importlib.import_module(module)
    assert all(callable(getattr(found, name)) or name.isupper() for name in names.split())
