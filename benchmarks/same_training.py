"""Shows that a change left training as it was: an earlier commit and this checkout train the same agents, bit for bit.

    python benchmarks/same_training.py --before COMMIT

Both run on this machine, because numbers differ between machines. Each case trains three updates and compares weights,
optimizer, random numbers and the losses in TensorBoard. Then this checkout resumes the earlier commit's checkpoint, and
the earlier commit does the same.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

HERE = Path(__file__).resolve().parents[1]
SCRIPT = "ppo_continuous_single_file.py"
STEPS_OF_AN_UPDATE = 4 * 32
OPTIONS = (
    "--env-id HomebrewKart-Snes --num-envs 4 --num-steps 32 --num-minibatches 2 --update-epochs 2 --seed 3 "
    "--eval-interval 3 --eval-episodes 1 --max-episode-steps 40 --random-start-steps 5"
).split()


@dataclass
class Case:
    """One way to train.

    Args:
        name: A name for the table.
        options: Options beside ``OPTIONS``.
        ranks: How many processes train together.
    """

    name: str
    options: str
    ranks: int = 1


CASES = [
    Case("continuous, float32", "--action-mode continuous --precision float32"),
    Case("driving, float32", "--action-mode driving --precision float32"),
    Case("continuous, bfloat16", "--action-mode continuous --precision bfloat16"),
    Case("driving, bfloat16", "--action-mode driving --precision bfloat16"),
    Case("multi-discrete, colour", "--action-mode multi-discrete --no-grey --size 64 64 --precision float32"),
    Case("two ranks, float32", "--action-mode continuous --precision float32", ranks=2),
    Case("two ranks, bfloat16", "--action-mode driving --precision bfloat16", ranks=2),
]


def train(checkout: Path, case: Case, options: list[str], output: Path) -> Path:
    """Trains in a checkout; returns the run's folder."""
    command = [sys.executable, SCRIPT]
    if case.ranks > 1:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={case.ranks}", SCRIPT]
    done = subprocess.run(  # noqa: S603
        [*command, *OPTIONS, *case.options.split(), "--runs-path", str(output), *options],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{case.name} failed in {checkout}:\n{done.stdout}\n{done.stderr}")
    [folder] = [path for path in output.iterdir() if path.is_dir()]
    return folder


def content(folder: Path) -> dict[str, Any]:
    """Returns everything that two equal runs have in common: a checkpoint's numbers, and the losses."""
    checkpoint = torch.load(folder / "agent.pt", weights_only=True)
    log = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    log.Reload()
    scalars = {
        tag: [(event.step, event.value) for event in log.Scalars(tag)]
        for tag in log.Tags()["scalars"]
        if not tag.startswith(("time/", "memory/")) and tag != "charts/SPS"
    }
    kept = ("agent", "optimizer", "rng_states", "env_states", "best_score", "updates", "steps")
    return {**{key: checkpoint[key] for key in kept}, "scalars": scalars}


def equal(one: Any, other: Any) -> bool:
    """Whether two nested values are the same, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def main(before: str) -> None:
    """Compares this checkout with an earlier commit.

    Args:
        before: The commit.
    """
    folder = Path(tempfile.mkdtemp())
    git = shutil.which("git") or "git"
    old = folder / "before"
    subprocess.run([git, "worktree", "add", "--detach", str(old), before], cwd=HERE, check=True, capture_output=True)  # noqa: S603
    different = []
    try:
        for number, case in enumerate(CASES):
            three = ["--total-timesteps", str(3 * STEPS_OF_AN_UPDATE)]
            runs = {
                name: train(checkout, case, three, folder / f"{number}-{name}")
                for name, checkout in (("old", old), ("new", HERE))
            }
            results = [equal(content(runs["old"]), content(runs["new"]))]
            resumed = {}
            for name, checkout in (("old", old), ("new", HERE)):
                copy = folder / f"{number}-resumed-{name}" / runs["old"].name
                shutil.copytree(runs["old"], copy)
                more = ["--resume", str(copy / "agent.pt"), "--total-timesteps", str(5 * STEPS_OF_AN_UPDATE)]
                resumed[name] = train(checkout, case, more, copy.parent)
            results.append(equal(content(resumed["old"]), content(resumed["new"])))
            shown = ["equal" if result else "DIFFERENT" for result in results]
            print(f"{case.name:<24} three updates: {shown[0]}; two more from the earlier checkpoint: {shown[1]}", flush=True)
            different += [case.name] * (not all(results))
    finally:
        subprocess.run([git, "worktree", "remove", "--force", str(old)], cwd=HERE, check=False)  # noqa: S603
        shutil.rmtree(folder, ignore_errors=True)
    if different:
        raise SystemExit(f"different: {', '.join(different)}")


if __name__ == "__main__":
    tyro.cli(main)
