"""How pytest runs the tests of this repository: the hooks of conftest.py in a small project."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import conftest
import pytest
from training_runs import ROOT

TEST = """
import os
import time

def test_it():
    print("printed by", os.environ.get("PYTEST_XDIST_WORKER", "this process"))
    with open(__file__ + ".workers", "a") as file:
        file.write(os.environ.get("PYTEST_XDIST_WORKER", "none") + " ")
    time.sleep(0.2)

def test_another():
    test_it()
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with the settings and the hooks of this one, two test files, and tests of the user's in a folder."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name in ("tests/test_first.py", "tests/test_second.py", "games/test_mine.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(TEST)
    names = ("names_tests", "left_out", "pytest_cmdline_main", "pytest_addoption", "pytest_collection_modifyitems")
    code = "\n\n".join(inspect.getsource(getattr(conftest, name)) for name in names)
    (tmp_path / "tests" / "conftest.py").write_text(
        f"from pathlib import Path\n\nimport pytest\n\nLONGEST = ()\n\n\n{code}"
    )
    return tmp_path


def run(project: Path, *options: str, input: str = "") -> tuple[str, list[str]]:
    """Runs pytest in a project. Returns its output, and the worker of each test: none is pytest's own process.

    Of the installed plugins it loads only pytest-xdist: Hypothesis would take most of the time.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    xdist = [] if "no:xdist" in options else ["-p", "xdist"]
    command = [sys.executable, "-m", "pytest", *xdist, "-p", "no:cacheprovider", *options]
    done = subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, timeout=120, check=False, input=input
    )
    workers = [file.read_text().split() for file in sorted(project.glob("*/*.workers"))]
    return done.stdout + done.stderr, [worker for each in workers for worker in each]


@pytest.mark.parametrize("options", [["-x"], pytest.param(["tests"], marks=pytest.mark.slow)])
def test_several_processes_run_the_complete_suite(options: list[str], project: Path) -> None:
    shutil.rmtree(project / "games")
    output, workers = run(project, *options)
    assert workers[0] == workers[1] != workers[2] == workers[3], "the tests of a file run in one process"
    assert "4 passed" in output


# pytest-dev/pytest-xdist#296: with several processes, -s has no effect, and nothing says so.
@pytest.mark.parametrize(
    "options",
    [
        ["tests/test_first.py::test_it"],
        *(pytest.param(each, marks=pytest.mark.slow) for each in (["games"], ["-k", "first"], [])),
    ],
)
def test_named_tests_run_in_the_process_of_pytest(options: list[str], project: Path) -> None:
    output, workers = run(project, *options, "-s")
    assert set(workers) == {"none"}, output
    assert output.count("printed by this process") == len(workers)


# pytest-dev/pytest-xdist#549: with a number of processes in addopts, --pdb is refused.
def test_the_debugger_works(project: Path) -> None:
    (project / "tests" / "test_first.py").write_text("def test_it():\n    assert 1 + 1 == 3\n")
    output, _ = run(project, "--pdb", input="p 'in the' + ' debugger'\nc\n")
    assert "in the debugger" in output


@pytest.mark.parametrize(
    ("options", "workers"),
    [
        pytest.param(["-n", "0"], 0, marks=pytest.mark.slow),
        (["-n", "3"], 2),
        pytest.param(["-n", "2", "tests/test_first.py"], 1, marks=pytest.mark.slow),
    ],
)
def test_a_given_number_of_processes_wins(options: list[str], workers: int, project: Path) -> None:
    output, found = run(project, *options)
    assert len(set(found) - {"none"}) == workers, output  # those that are ready first get the two files


def test_the_suite_runs_without_xdist(project: Path) -> None:
    output, workers = run(project, "-p", "no:xdist")
    assert set(workers) == {"none"}, output


def test_the_longest_files_start_first(pytestconfig: pytest.Config) -> None:
    files = [ROOT / "tests" / f"test_{name}.py" for name in reversed(conftest.LONGEST)]
    assert all(file.exists() for file in files)
    short = Path("test_something_short.py")
    items: Any = [SimpleNamespace(path=file, get_closest_marker=lambda name: None) for file in (short, *files)]
    conftest.pytest_collection_modifyitems(pytestconfig, items)
    assert [item.path for item in items] == [*reversed(files), short]


@pytest.mark.parametrize(
    ("options", "ran"),
    [
        ([], {"quick"}),
        (["tests/test_long.py"], {"quick", "slow"}),
        *(
            pytest.param(options, ran, marks=pytest.mark.slow)
            for options, ran in (
                (["tests"], {"quick"}),
                (["--slow"], {"quick", "slow", "hours"}),
                (["-k", "slow"], {"slow"}),
                (["-m", "slow"], {"slow"}),
                (["-m", "not hours"], {"quick"}),
                (["-m", "hours", "--slow"], {"hours"}),
                (["-n", "2", "tests/test_long.py"], {"quick", "slow"}),
            )
        ),
    ],
)
def test_slow_tests_run_if_they_are_named(options: list[str], ran: set[str], project: Path) -> None:
    for file in project.glob("*/test_*.py"):
        file.unlink()
    (project / "tests" / "test_long.py").write_text(
        "import pytest\n\ndef test_quick(): pass\n\n@pytest.mark.slow\ndef test_slow(): pass\n\n"
        "@pytest.mark.hours\ndef test_hours(): pass\n"
    )
    output, _ = run(project, *options, "-rA")
    assert set(re.findall(r"^PASSED .*::test_(\w+)$", output, re.M)) == ran, output
