"""Every example in README.md and docs/ does what it says: Python is run, commands are run (training cut short)."""

from __future__ import annotations

import doctest
import importlib
import json
import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import kart_rewards

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "homebrew" / "README.md"]
PAGES += [ROOT / "agents" / "README.md"]
RUN_IN_A_TEST_OF_ITS_OWN = ROOT / "docs" / "integrating.md"  # whose steps build on each other: test_integrating.py
SHORT = (
    "--total-timesteps 32 --num-envs 2 --num-steps 16 --num-minibatches 2 --update-epochs 1 --checkpoint-interval 0 "
    "--eval-interval 0"
)
SHORTENED = {"python ppo_": SHORT, "python -m kart_rewards ram": "", "python -m kart_rewards watch": "--seconds 1"}
# Commands that stand for themselves elsewhere: CI runs them, or they need what a test has not.
ELSEWHERE = ("pip install", "python3 -m venv", "tensorboard", "python -m kart_rewards import PATH", "python homebrew/",
             "python benchmarks/", "apt-get", "pytest", "torchrun", "python -m kart_rewards play",
             "python -m kart_rewards state MarioKart-Snes", "python -m kart_rewards doctor MarioKart-Snes")  # fmt: skip


def blocks(page: Path, language: str) -> list[str]:
    """The fenced code blocks of one language on a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A folder where a page's files lie, with what commands refer to by relative paths."""
    for name in ("integrations", "ppo_continuous_single_file.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "agents", tmp_path / "agents")  # evaluations are written there
    return tmp_path


def run(arguments: list[str], folder: Path) -> None:
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, check=False, timeout=180,
                          env=os.environ | {"PYTHONPATH": str(folder)})  # fmt: skip
    assert done.returncode == 0, f"{shlex.join(arguments)}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.name != "integrating.md"],  # which tests/test_integrating.py runs
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_the_examples_on_a_page_work(page: Path, workspace: Path) -> None:
    files = {}
    for code in blocks(page, "python"):
        if match := re.match(r"# (\w+\.py)\n", code):
            files[match[1]] = code
            (workspace / match[1]).write_text(code)
    for code in blocks(page, "json"):
        json.loads(code)
    for code in blocks(page, "python"):
        if code not in files.values():
            run([sys.executable, "-c", code], workspace)
    for name in files:
        if name.startswith("test_"):
            run([sys.executable, "-m", "pytest", "-q", name], workspace)
    for line in "".join(blocks(page, "bash")).splitlines():
        command = line.partition("  #")[0].strip()
        shortened = {
            "python ppo_": SHORT,
            "python -m kart_rewards ram": "",
            "python -m kart_rewards watch": "--seconds 1",
        }
        short = next((short for start, short in shortened.items() if command.startswith(start)), None)
        if short is not None:
            if "watch" in command and "--output" not in command:  # the window has a test of its own
                short += " --output drive.mp4"
            if "--evaluate" in command:
                short = "--eval-episodes 1 --eval-states Level1 --max-episode-steps 40"
            run([sys.executable, *shlex.split(command)[1:], *short.split()], workspace)
        elif command:
            assert command.startswith(ELSEWHERE), f"nobody tests the command {command!r}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_the_files_that_the_readme_maps_are_there() -> None:
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Where things are")[2].partition("\n## ")[0]
    folder = ROOT
    for name in re.findall(
        r"`([\w/.]+)`(?=[ ,|])", "\n".join(line.split("|")[1] + "|" for line in table.splitlines() if "|" in line)
    ):
        path = ROOT / name if (ROOT / name).exists() else folder / name
        assert path.exists(), name
        folder = path.parent


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(kart_rewards.__path__)])
def test_the_examples_in_docstrings_work(name: str) -> None:
    if name != "__main__":
        assert doctest.testmod(importlib.import_module(f"kart_rewards.{name}")).failed == 0
