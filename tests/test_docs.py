"""Every example in README.md and docs/ works: Python code is run, and commands are run (training is shortened).

The commands run in the process of the test, which saves the time of their imports: other tests run the training script
and ``kart-rewards`` in processes of their own.
"""

from __future__ import annotations

import doctest
import importlib
import json
import os
import pkgutil
import re
import shlex
import shutil
import sys
from pathlib import Path

import forks
import pytest
from training_runs import COMMAND, SCRIPT, run_here

import kart_rewards
from kart_rewards.__main__ import COMMANDS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "homebrew" / "README.md"]
PAGES += [ROOT / "agents" / "README.md"]
LINKED = [*PAGES, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]
# The steps of these pages build on each other: test_integrating.py and test_walk_through.py.
IN_ORDER = [
    ROOT / "docs" / name
    for name in ("installing.md", "integrating.md", "super_mario_kart.md", "new_game.md", "lua.md", "game_files.md",
                 "troubleshooting.md", "rewards.md")
]  # fmt: skip
SHORT = (
    "--total-timesteps 32 --num-envs 2 --num-steps 16 --num-minibatches 2 --update-epochs 1 --checkpoint-interval 0 "
    "--eval-interval 0 --precision float32"
)
SHORT_EVALUATION = "--eval-episodes 1 --eval-states Level1 --max-episode-steps 40 --output evaluation.json"
SHORTENED = {
    "python ppo_": SHORT,
    "kart-rewards ram": "",
    "kart-rewards score": "",
    "kart-rewards drives": "",
    "kart-rewards watch": "--seconds 0.1 --scale 1",
    "kart-rewards push": "",  # a dry run
}
# Commands that other tests or CI run, or that need what a test does not have.
ELSEWHERE = ("pip install", "python3 -m venv", "tensorboard", "kart-rewards import PATH", "python homebrew/",
             "python benchmarks/", "apt-get", "pytest", "torchrun", "kart-rewards play",
             "kart-rewards state MarioKart-Snes", "kart-rewards doctor", "kart-rewards evaluate",
             "kart-rewards lint", "kart-rewards lab", "kart-rewards audit", "kart-rewards ablate",
             "kart-rewards pull", "kart-rewards watch agents/OWNER",
             "python examples/sb3_agent.py", "kart-rewards watch model.zip")  # fmt: skip


def blocks(page: Path, language: str) -> list[str]:
    """The fenced code blocks of one language on a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def commands(page: Path) -> list[str]:
    """The commands on a page, without their comments."""
    lines = "".join(blocks(page, "bash")).splitlines()
    return [command for line in lines if (command := line.partition("  #")[0].strip())]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.+)$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A folder for the files of a page, with what its commands refer to by relative paths."""
    for name in ("integrations", "ppo_continuous_single_file.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "agents", tmp_path / "agents")  # evaluations are written there
    return tmp_path


def run(arguments: list[str], folder: Path) -> None:
    """Runs Python as a reader does: in the folder, with the virtual environment active."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(folder)}
    done = forks.run([sys.executable, *arguments], forks.TRAINING, timeout=180, cwd=folder, env=environment)
    assert done.returncode == 0, f"{shlex.join(arguments)}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page not in IN_ORDER], ids=lambda page: str(page.relative_to(ROOT))
)
def test_the_examples_on_a_page_work(page: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    files = {}
    for code in blocks(page, "python"):
        if match := re.match(r"# (\w+\.py)\n", code):
            files[match[1]] = code
            (workspace / match[1]).write_text(code)
    for code in blocks(page, "json"):
        json.loads(code)
    for code in blocks(page, "python"):
        if code not in files.values():
            (workspace / "block.py").write_text(code)
            run(["block.py"], workspace)
    if tests := [name for name in files if name.startswith("test_")]:
        run(["-m", "pytest", "-q", *tests], workspace)
    for command in commands(page):
        if command.startswith(ELSEWHERE):
            continue
        short = next((short for start, short in SHORTENED.items() if command.startswith(start)), None)
        assert short is not None, f"no test runs the command {command!r}"
        if "watch" in command and "--output" not in command:  # the window has a test of its own
            short += " --output drive.mp4"
        if "--evaluate" in command:
            short = SHORT_EVALUATION
        program, *options = shlex.split(command.removeprefix("python "))
        assert program in (SCRIPT.name, COMMAND.name), command
        run_here(workspace / program if program == SCRIPT.name else COMMAND, *options, *short.split())


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not link.startswith("https://"):
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), f"{link}: {target.name} has no such heading"


def test_the_first_commands_of_the_readme_are_those_that_ci_runs() -> None:
    install, test = blocks(ROOT / "README.md", "bash")[0].splitlines()
    assert re.match(r"pip install -e \. && python ppo_continuous_single_file\.py --env-id MarioKart-Snes +#", install)
    assert re.match(r"pip install .* && pytest +#", test)


@pytest.mark.parametrize(
    ("name", "page", "arms"), [("", "study", 4), ("without_fast", "study", 2), ("lap", "training", 3)]
)
def test_a_study_on_its_page_is_that_of_its_files(name: str, page: str, arms: int) -> None:
    folder = ROOT / "docs" / "study" / name
    text, report = (ROOT / "docs" / f"{page}.md").read_text(), (folder / "report.md").read_text()
    results = json.loads((folder / "results.json").read_text())
    assert page != "study" or (ROOT / "docs" / "study" / "speed.py").read_text() in text
    effects = [effect for effect in results["effects"] if effect["outcome"] == "race_seconds"]
    assert len(effects) == arms
    for effect in effects:
        value, difference = effect["interquartile_mean"], effect["difference"]
        row = (
            f"| {value['value']:.1f} [{value['low']:.1f}, {value['high']:.1f}] | "
            f"{difference['value']:+.1f} [{difference['low']:+.1f}, {difference['high']:+.1f}] | "
        )
        assert row in text
        assert row in report
    assert "/" not in "".join(results["options"]), "no path of a computer"


def section(page: str, title: str) -> str:
    """The part of a page of docs/ under a heading of the second rank."""
    return (ROOT / "docs" / page).read_text(encoding="utf-8").partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def mapped_paths() -> list[Path]:
    """The files and folders in the first column of the table "The rooms"; some are relative to the last one."""
    rows = section("architecture.md", "The rooms").splitlines()
    column = "\n".join(line.split("|")[1] + "|" for line in rows if "|" in line)
    paths, folder = [], ROOT
    for name in re.findall(r"`([\w/.]+)`(?=[ ,|])", column):
        paths.append(ROOT / name if (ROOT / name).exists() else folder / name)
        folder = paths[-1].parent
    return paths


def test_the_files_that_the_table_of_rooms_names_are_there() -> None:
    assert len(mapped_paths()) > 15
    for path in mapped_paths():
        assert path.exists(), path


def test_the_table_of_rooms_has_every_room() -> None:
    rooms = {path.parent for path in (ROOT / "kart_rewards").glob("*/__init__.py")}
    assert rooms <= set(mapped_paths())


def test_the_commands_that_the_page_lists_are_the_programs() -> None:
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `kart-rewards ([\w-]+)` \|", page, flags=re.M)) == sorted(COMMANDS)


@pytest.mark.parametrize(
    "name", [module.name for module in pkgutil.walk_packages(kart_rewards.__path__, f"{kart_rewards.__name__}.")]
)
def test_the_examples_in_docstrings_work(name: str) -> None:
    if not name.endswith("__main__"):
        assert doctest.testmod(importlib.import_module(name)).failed == 0
