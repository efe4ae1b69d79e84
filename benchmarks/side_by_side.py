"""Measures how trainings that run at the same time on one machine slow each other down.

    python benchmarks/side_by_side.py

One training alone, then two and four at the same time, as for a study of several seeds, agent steps/s, without the
first update. Each number is the sum over the trainings. It prints the ratio to one training alone, from the same turn,
and the median over the turns. The exit code is 1 if a goal is missed. Other options are passed to each training.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SCRIPT = Path(__file__).resolve().parent.parent / "ppo_continuous_single_file.py"
GOALS = {2: 0.95, 4: 0.9}
"""Trainings at the same time -> what they must make together, relative to one alone."""
SMOKE = ["--num-envs", "1", "--num-steps", "16", "--size", "42", "42", "--precision", "float32"]


def steps_per_second(runs: int, steps: int, options: list[str]) -> float:
    """Trains several seeds at the same time. Returns the sum of their agent steps/s, without the first update."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(SCRIPT), "--env-id", "HomebrewKart-Snes", "--runs-path", folder]
        command += ["--eval-interval", "0", "--checkpoint-interval", "0", "--total-timesteps", str(steps)]
        seeds = [["--seed", str(seed)] for seed in range(runs)]
        started = [subprocess.Popen([*command, *seed, *options], stdout=subprocess.DEVNULL) for seed in seeds]
        if sum(process.wait() for process in started):
            sys.exit("a training failed")
        total = 0.0
        for run in Path(folder).iterdir():
            log = EventAccumulator(str(run), size_guidance={"scalars": 0})
            log.Reload()
            first, *_, last = log.Scalars("charts/SPS")
            total += (last.step - first.step) / (last.wall_time - first.wall_time)
        return total


def main() -> int:
    """Runs all trainings, and compares them with the goals."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=12, help="updates per training")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="one turn of two tiny trainings, without goals")
    args, options = parser.parse_known_args()  # the others are options of the training
    at_once, steps = [1, *GOALS], args.updates * 1024
    if args.smoke:
        args.turns, options, at_once, steps = 1, SMOKE, [2], 32
    turns = [[steps_per_second(runs, steps, options) for runs in at_once] for _ in range(args.turns)]
    missed = False
    for i, runs in enumerate(at_once):
        rates = [turn[i] for turn in turns]
        ratio = statistics.median(turn[i] / turn[0] for turn in turns)
        spread = f"({min(rates):,.0f} to {max(rates):,.0f})"
        print(f"{runs} at once: {statistics.median(rates):6,.0f} steps/s {spread}, ratio {ratio:.3f}", end="")
        if runs in GOALS and not args.smoke:
            missed |= ratio < GOALS[runs]
            print(f"  (goal: at least {GOALS[runs]}, {'MISSED' if ratio < GOALS[runs] else 'met'})", end="")
        print(flush=True)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
