"""Follows docs/rewards.md in an empty folder: from an idea to the curves of a trained agent.

    python benchmarks/walk_through.py               # the seconds, commands and lines from the idea to each result
    python benchmarks/walk_through.py --pictures    # also trains for 60,000 steps, and makes the pictures of the page

``steps`` reads the files and commands of the page, in their order. It needs the programs chromium and chromedriver, and
selenium.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "rewards.md"
IMAGES = ROOT / "docs" / "images"
FINDS = "exits with 1"
"""What the comment behind a command says if the command's exit code is 1."""


class Step(NamedTuple):
    """A file or a command of the page.

    Attributes:
        file: The name of a file to write. None: this step is a command.
        text: The content of the file, or the command.
        code: The exit code of the command.
    """

    file: str | None
    text: str
    code: int = 0


def steps() -> Iterator[Step]:
    """Yields the files and commands of the page, in their order."""
    page = PAGE.read_text(encoding="utf-8")
    for language, text in re.findall(r"^```(python|bash)\n(.*?)^```", page, flags=re.M | re.S):
        if language == "bash":
            for line in text.splitlines():
                command, _, comment = line.partition("  # ")
                yield Step(None, command.strip(), int(FINDS in comment))
        elif name := re.match(r"# (\w+\.py)\n", text):
            yield Step(name[1], text)


def glue(source: str) -> int:
    """Returns the lines of a file that are neither its terms' or tests' functions nor empty nor comments."""
    outside = [line for line in source.splitlines() if re.match(r"[^\s#)]", line) and not line.startswith("def ")]
    return len(outside)


def environment(folder: Path) -> dict[str, str]:
    """Returns the variables of a wide terminal with colours, in which the virtual environment is active."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "FORCE_COLOR": "1", "COLUMNS": "160", "PYTHONPATH": str(folder)}


def run(command: str, folder: Path, code: int = 0) -> tuple[float, str]:
    """Runs a command in a folder. Returns its seconds and what it prints, without the folder's name."""
    start = time.perf_counter()
    done = subprocess.run(
        shlex.split(command), cwd=folder, env=environment(folder), capture_output=True, text=True, check=False
    )
    if done.returncode != code:
        sys.exit(f"{command}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return time.perf_counter() - start, done.stdout.replace(f"{folder}/", "")


def measure(folder: Path) -> None:
    """Prints what lies between the idea and a passing test, and between the idea and a picture."""
    term, test = (
        next(each for each in steps() if each.file == name) for name in ("my_rewards.py", "test_my_rewards.py")
    )
    rows = (
        ("a passing test", (term, test), "pytest -q test_my_rewards.py"),
        ("a picture of where it pays", (term,), "kart-rewards lab race --rewards my_rewards.py --output page.html"),
    )
    print(f"{'from the idea to':<28} {'commands':>8} {'seconds':>8} {'lines':>6} {'of them glue':>13}")
    total = 0.0
    for name, files, command in rows:
        for each in files:
            (folder / str(each.file)).write_text(each.text)
        seconds = sorted(run(command, folder)[0] for _ in range(3))[1]
        total += seconds
        lines = [line for each in files for line in each.text.splitlines()[1:] if line]
        print(f"{name:<28} {1:>8} {seconds:>8.1f} {len(lines):>6} {sum(glue(each.text) for each in files):>13}")
    print(f"{'both':<28} {2:>8} {total:>8.1f}   (medians of three)")


def picture_of_terminal(path: Path, command: str, printed: str) -> None:
    """Writes what a command prints as an SVG picture of a terminal. Its font is one of the reader's own."""
    shown = re.sub(r"(?m)^.*\r(?!\n)", "", printed)  # the last state of a progress line
    lines = [Text(f"$ {command}", style="bold"), *map(Text.from_ansi, shown.splitlines())]
    console = Console(record=True, file=io.StringIO(), width=max(map(len, lines)) + 1)
    for line in lines:
        console.print(line)
    svg = re.sub(r"@font-face \{.*?\}\s*", "", console.export_svg(title=""), flags=re.S)
    path.write_text(svg.replace("Fira Code, monospace", "ui-monospace, Menlo, Consolas, monospace"), encoding="utf-8")


def picture_of_page(browser: Any, url: str, path: Path, ready: str, seconds: float = 60) -> None:
    """Writes a picture of a page of the browser, when an expression in JavaScript has become true."""
    browser.get(url)
    deadline = time.monotonic() + seconds
    while not browser.execute_script(f"return Boolean({ready})"):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{url}: {ready}")
        time.sleep(0.2)
    time.sleep(2)  # the page draws
    browser.save_screenshot(str(path))


def picture_of_tensorboard(browser: Any, command: str, folder: Path) -> None:
    """Writes a picture of TensorBoard's tab Custom Scalars."""
    words = [*command.split(), "--port", "6116"]
    server = subprocess.Popen(words, cwd=folder, env=environment(folder), stderr=subprocess.DEVNULL)
    try:
        time.sleep(15)  # it starts, and reads the log
        picture_of_page(browser, "http://localhost:6116/#custom_scalars", IMAGES / "tensorboard.png", "true")
    finally:
        server.terminate()
        server.wait()


def pictures(folder: Path) -> None:
    """Follows the page, and writes its pictures."""
    from lab import chromium

    terminals = {"pytest": "walk_test", "kart-rewards score": "walk_score", "kart-rewards lint": "walk_lint"}
    with chromium() as browser:
        for step in steps():
            if step.file:
                (folder / step.file).write_text(step.text)
            elif step.text.startswith("kart-rewards lab"):
                run(f"{step.text} --output page.html", folder)
                ready = "window.lab?.tracks()[0]?.score && lab.tracks()[0].data"
                picture_of_page(browser, (folder / "page.html").as_uri(), IMAGES / "lab.png", ready)
            elif step.text.startswith("python ppo_"):
                shutil.copy(ROOT / "ppo_continuous_single_file.py", folder)
                _, printed = run(step.text, folder)
                picture_of_terminal(IMAGES / "walk_run.svg", step.text, printed)
            elif step.text.startswith("tensorboard"):
                picture_of_tensorboard(browser, step.text, folder)
            else:
                _, printed = run(step.text, folder, step.code)
                for start in [start for start in terminals if step.text.startswith(start)]:
                    picture_of_terminal(IMAGES / f"{terminals.pop(start)}.svg", step.text, printed)  # of the first time


def main() -> None:
    """Measures the walk, or makes its pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", action="store_true", help="train for 60,000 steps, and make the pictures")
    wanted = parser.parse_args().pictures
    with tempfile.TemporaryDirectory() as folder:
        if wanted:
            pictures(Path(folder))
        else:
            measure(Path(folder))


if __name__ == "__main__":
    main()
