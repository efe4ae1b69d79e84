"""Measures the page of ``kart-rewards lab`` in Chromium: 50 drives of 12,000 frames.

    python benchmarks/lab.py
    python benchmarks/lab.py --smoke

It records a long drive on two courses, copies them, and prints how long the page needs until it shows a drive, how many
frames per second it shows while a person scrubs, how long the numbers need after a save, and how large a page on disk
is. It needs the programs chromium and chromedriver, and selenium.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from selenium import webdriver

from kart_rewards.drivers import CentrelineDriver, centreline
from kart_rewards.env import KartEnv
from kart_rewards.env.recorder import DriveRecorder

GAME = "HomebrewKart-Snes"
COURSES = ("Level1", "Level2")
REWARDS = """from kart_rewards import reward_term

@reward_term(weight=0.5)
def gas(ram, previous):
    return max(ram.speed - previous.speed, 0)
"""

# Seeks a frame in each animation frame for some seconds. Returns how many the page handled per second, and how many
# pictures it showed per second.
SCRUB = """
const [stride, seconds, done] = arguments;
const canvas = document.querySelector(".picture canvas");
const last = Number(document.getElementById("scrubber").max);
const start = performance.now();
let count = 0, shown = 0, before = canvas.dataset.frame;
function next() {
  if (canvas.dataset.frame !== before) shown += 1;
  before = canvas.dataset.frame;
  const passed = (performance.now() - start) / 1000;
  if (passed > seconds) return done([count / passed, shown / passed]);
  lab.seek((stride * count++) % last);
  requestAnimationFrame(() => setTimeout(next));
}
next();
"""

ALL_SCORED = "lab.state().drives.every((each) => each.scores[0]?.version === lab.state().sets[0].version)"


def record(course: str, frames: int, path: Path) -> None:
    """Records a drive along the middle of the road, in the wrong direction: so it has no end, and the pictures move."""
    env = KartEnv(GAME, state=course, action_mode="all", frame_skip=1, scenario=None, rewards="kart_rewards.rewards")
    env.recorder = DriveRecorder("benchmark")
    driver = CentrelineDriver(centreline(course), backward=True)
    env.reset(seed=1)
    for _ in range(frames):
        held = driver(env.ram)
        env.step([button in held for button in env.buttons])
    env.recorder.drive(env).save(path)
    env.close()


def chromium() -> Any:
    """Starts Chromium without a window."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"):
        options.add_argument(flag)
    options.add_argument("--window-size=1440,1000")
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver") or ""))


def seconds_until(condition: Callable[[], object], most: float = 300) -> float:
    """Returns the seconds until a condition is true."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > most:
            raise TimeoutError
        time.sleep(0.01)
    return time.monotonic() - start


def processor_seconds(browser: Any) -> float:
    """Returns the processor time of all processes of the browser."""
    processes = psutil.Process(browser.service.process.pid).children(recursive=True)
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def show(what: str, value: str) -> None:
    """Prints a row."""
    print(f"{what:<76} {value:>16}", flush=True)


def measure(folder: Path, drives: int, frames: int, seconds: float) -> None:
    """Records the drives, and measures the page."""
    for number in range(drives):
        path = folder / "drives" / f"{COURSES[number % len(COURSES)]}-{number:02}.drive"
        if number < len(COURSES):
            record(COURSES[number], frames, path)
        else:
            shutil.copy(next((folder / "drives").glob(f"{COURSES[number % len(COURSES)]}-0*.drive")), path)
    rewards = folder / "mine.py"
    rewards.write_text(REWARDS)
    command = [sys.executable, "-m", "kart_rewards", "lab", "drives", "--rewards", "mine.py"]
    server = subprocess.Popen([*command, "--no-browser"], cwd=folder, stdout=subprocess.PIPE, text=True)
    browser = chromium()
    try:
        assert server.stdout
        start = time.monotonic()
        found = re.search(r"http\S+", server.stdout.readline())
        assert found
        browser.get(found[0])

        def js(code: str) -> Any:
            return browser.execute_script(f"return {code}")

        seconds_until(lambda: js("window.lab?.tracks()[0]?.score && lab.tracks()[0].data"))
        show(
            f"start of the command, {drives} drives of {frames:,} frames, until a drive is shown",
            f"{time.monotonic() - start:.1f} s",
        )
        replayed = seconds_until(lambda: js(f"[...lab.films.values()][0].frames > {frames}"))
        show("the same until all its pictures are there, after that", f"{replayed:.1f} s")
        seconds_until(lambda: js(ALL_SCORED))
        show("the same until all drives are scored", f"{time.monotonic() - start:.1f} s")
        browser.set_script_timeout(60)
        for stride in (1, 7, 61, 1013):
            before = processor_seconds(browser)
            handled, shown = browser.execute_async_script(SCRUB, stride, seconds)
            spent = 1000 * (processor_seconds(browser) - before) / (shown * seconds)
            what = f"scrubbing by {stride} frames: frames per second; pictures; processor time of one"
            show(what, f"{handled:.0f}; {shown:.0f}; {spent:.0f} ms")
        for weight in (2, 3, 4):
            time.sleep(4)  # a person does not save more often
            rewards.write_text(REWARDS.replace("0.5", str(weight)))
            saved = time.monotonic()
            is_new = f"lab.tracks()[0].score.terms.get('gas').weight === {weight}"
            first = seconds_until(functools.partial(js, is_new))
            seconds_until(functools.partial(js, ALL_SCORED))
            show(
                "from a save to the numbers of the drive on the page; of all",
                f"{first:.2f}; {time.monotonic() - saved:.2f} s",
            )
    finally:
        browser.quit()
        server.terminate()
        server.wait()
    start = time.monotonic()
    one = f"drives/{COURSES[0]}-00.drive"
    subprocess.run(
        [*command[:4], one, *command[5:], "--output", "page.html"], cwd=folder, check=True, stdout=subprocess.DEVNULL
    )
    size = (folder / "page.html").stat().st_size
    show(f"a page on disk with a drive of {frames:,} frames", f"{size / 1e6:.1f} MB")
    show("the time to write it", f"{time.monotonic() - start:.1f} s")


def main() -> None:
    """Measures, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="as short as possible: three short drives")
    smoke = parser.parse_args().smoke
    print(f"load of this machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "drives").mkdir()
        measure(Path(folder), *((3, 300, 0.5) if smoke else (50, 12_000, 4.0)))


if __name__ == "__main__":
    main()
