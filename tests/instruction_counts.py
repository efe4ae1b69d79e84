"""Counts the processor instructions of decoding, scoring and observing, with valgrind's tool callgrind.

    python tests/instruction_counts.py

* ``PARTS`` - the parts, each with its yardstick
* ``missing`` - what this machine lacks to count instructions
* ``count`` - the instructions of each part and of each yardstick
* ``ratios`` - the instructions of each part, relative to its yardstick

A count does not depend on the speed and the load of the machine, so it can be compared with a committed number. To
depend little on the builds and versions of Python and of the libraries, too, each part has a yardstick: work of the
same kind without this package, counted in the same process. ``test_cost.py`` compares the ratios. Started as a program,
this file prints the counts and the line with the ratios for ``test_cost.py``, for a deliberate change.
"""

from __future__ import annotations

import ctypes
import gc
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
FRAMES = 480  # with checkpoints, walls and driving off the road
STEPS = 40
PARTS = {
    "decoding a frame": "stable-retro's lookup_all",
    "scoring a frame": "conditions in plain Python",
    "observing a step": "OpenCV and NumPy",
}
"""Part -> its yardstick."""

_SWITCHES = """
#include <valgrind/callgrind.h>
extern "C" void start() { CALLGRIND_START_INSTRUMENTATION; CALLGRIND_ZERO_STATS; }
extern "C" void stop(const char *name) { CALLGRIND_DUMP_STATS_AT(name); CALLGRIND_STOP_INSTRUMENTATION; }
"""


def missing() -> str:
    """Returns what this machine lacks to count instructions; an empty text if nothing."""
    for program in ("valgrind", "g++"):
        if not shutil.which(program):
            return f"{program} is not installed"
    # valgrind shows the same processor to a program on each machine that has AVX2. On others, OpenCV runs other code.
    processor = Path("/proc/cpuinfo")
    if not (processor.exists() and re.search(r"^flags\b.*\bavx2\b", processor.read_text(), re.MULTILINE)):
        return "the processor has no AVX2"
    return ""


def count() -> dict[str, float]:
    """Returns part or yardstick -> instructions per frame or step. It takes about 6 seconds.

    Raises:
        RuntimeError: The compiler or the process that is counted failed.
    """
    # valgrind counts the instruction `rep movsb` once per byte. With these limits, the C library copies with vectors.
    copying = "glibc.cpu.x86_rep_movsb_threshold=1000000000:glibc.cpu.x86_rep_stosb_threshold=1000000000"
    with tempfile.TemporaryDirectory() as folder:
        switches, output = f"{folder}/switches.so", f"{folder}/counts"
        _run(["g++", "-shared", "-fPIC", "-x", "c++", "-", "-o", switches], input=_SWITCHES)
        # Without instrumentation, the imports and the start of the emulator take 5 s. With it, they take 20 s.
        callgrind = ["valgrind", "-q", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={output}"]
        environment = {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", "GLIBC_TUNABLES": copying}
        _run([*callgrind, sys.executable, __file__, switches], env=os.environ | environment)
        counts = {}
        for file in Path(folder).glob("counts.*"):  # a file for each dump
            text = file.read_text()
            if name := re.search(r"^desc: Trigger: Client Request: (\d+) (.+)$", text, re.MULTILINE):
                [instructions] = re.findall(r"^totals: (\d+)", text, re.MULTILINE)
                counts[name[2]] = int(instructions) / int(name[1])
        return counts


def ratios(counts: dict[str, float]) -> dict[str, float]:
    """Returns part -> instructions, relative to those of its yardstick."""
    return {part: counts[part] / counts[yardstick] for part, yardstick in PARTS.items()}


def _run(command: list[str], **options: Any) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True, **options)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed:\n{done.stdout}{done.stderr}")


def _run_parts(switches: ctypes.CDLL) -> None:
    """Runs each part and each yardstick twice, the second time with instrumentation. This runs under valgrind."""
    import cv2
    import numpy as np

    from kart_rewards.done import REFERENCE_RULES, EpisodeDone, as_rule
    from kart_rewards.env import KartEnv
    from kart_rewards.env.observations import ROAD_VIEW, ObservationConfig, ScreenObserver
    from kart_rewards.race import RaceMetrics
    from kart_rewards.rewards import REFERENCE_TERMS, EpisodeRewards, as_term, make_transform
    from kart_rewards.testing import load_trace

    env = KartEnv("HomebrewKart-Snes", action_mode="driving")
    env.reset(seed=1)
    for _ in range(10):
        env.step(0)
    read, lookup_all = env.layout.reader(env.data), env.data.lookup_all
    screen = env.em.get_screen()
    observer = ScreenObserver(ObservationConfig(), screen.shape, ROAD_VIEW)
    frames = load_trace("walls")[:FRAMES]
    terms, rules = [as_term(term) for term in REFERENCE_TERMS], [as_rule(rule) for rule in REFERENCE_RULES]
    transform = make_transform("scale", 0.01)
    scorers = [(EpisodeRewards(terms, transform), RaceMetrics(frames[0], 60.0), EpisodeDone(rules)) for _ in range(2)]

    def decode() -> None:
        for _ in range(FRAMES):
            read()

    def look_up_all() -> None:
        for _ in range(FRAMES):
            lookup_all()

    def score() -> None:
        rewards, race, done = scorers.pop()
        for ram in frames:
            rewards(ram)
            race.update(ram)
            done(ram)

    def apply_conditions() -> None:
        best = -1

        def slow(ram: Any) -> bool:
            return ram.speed < 600

        def touches(ram: Any) -> bool:
            return ram.collision != 0 and slow(ram)

        def leaves(ram: Any) -> bool:
            return ram.surface != 0x40 and ram.current_frame % 30 == 0 and not slow(ram)

        def advances(ram: Any) -> bool:
            nonlocal best
            place = ram.checkpoint + ram.laps * ram.num_checkpoints
            if place <= best:
                return False
            best = place
            return True

        sums = {"touches": 0.0, "leaves": 0.0, "advances": 0.0}
        for ram in frames:
            values = [float(condition(ram)) for condition in (touches, leaves, advances)]
            if any(values):
                for name, value in zip(sums, values, strict=True):
                    sums[name] += value

    def observe() -> None:
        for _ in range(STEPS):
            observer.observe(screen)

    def convert() -> None:
        images = np.zeros((4, 84, 84), np.uint8)
        for _ in range(STEPS):
            grey = cv2.cvtColor(np.ascontiguousarray(screen[32:112]), cv2.COLOR_RGB2GRAY)
            newest = cv2.resize(grey, (84, 84), interpolation=cv2.INTER_AREA)
            images = np.concatenate((images[1:], newest[np.newaxis]))

    gc.disable()
    bodies = {
        "decoding a frame": (decode, look_up_all, FRAMES),
        "scoring a frame": (score, apply_conditions, len(frames)),
        "observing a step": (observe, convert, STEPS),
    }
    for part, (run_part, run_yardstick, times) in bodies.items():
        for name, body in ((part, run_part), (PARTS[part], run_yardstick)):
            body()  # Python specializes its bytecode in the first calls
            switches.start()
            body()
            switches.stop(f"{times} {name}".encode())
    env.close()


def main() -> None:
    """Prints the counts and the ratios. With the path of the compiled switches as argument, it runs the parts."""
    if len(sys.argv) > 1:
        _run_parts(ctypes.CDLL(sys.argv[1]))
        return
    if lacking := missing():
        sys.exit(f"instructions can't be counted: {lacking}")
    counts = count()
    for part, yardstick in PARTS.items():
        for name in (part, yardstick):
            print(f"{name:<28}{counts[name]:>10,.0f} instructions")
    rounded = ", ".join(f'"{part}": {ratio:.2f}' for part, ratio in ratios(counts).items())
    print(f'    "{PYTHON}": {{{rounded}}},')


if __name__ == "__main__":
    main()
