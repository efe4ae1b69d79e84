"""Draws the reward terms and lap times in the TensorBoard log of a run.

    python benchmarks/plot_run.py runs/NAME docs/images/reward_curves.png

It needs matplotlib (in the ``dev`` extra).
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SMOOTHING_EPISODES = 10


def smooth(values: np.ndarray) -> np.ndarray:
    """Returns the running mean over the last episodes, with the same length."""
    sums = np.cumsum(np.insert(values, 0, 0.0))
    starts = np.maximum(np.arange(1, len(values) + 1) - SMOOTHING_EPISODES, 0)
    ends = np.arange(1, len(values) + 1)
    return (sums[ends] - sums[starts]) / (ends - starts)


def main() -> None:
    """Draws the plot."""
    if len(sys.argv) != 3 or not Path(sys.argv[1]).is_dir():
        sys.exit("usage: python benchmarks/plot_run.py RUN_FOLDER PICTURE.png")
    log = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0})
    log.Reload()
    tags = log.Tags()["scalars"]
    figure, (rewards, laps) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for tag in sorted(tag for tag in tags if tag.startswith("rewards/")):
        events = log.Scalars(tag)
        steps, values = np.array([event.step for event in events]), np.array([event.value for event in events])
        rewards.plot(steps, smooth(values), label=tag.removeprefix("rewards/"))
    rewards.set(title="rewards/<term>: weighted sum of an episode", xlabel="agent steps", yscale="symlog")
    rewards.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    for tag, label in (
        ("race/lap_time_seconds", "mean of an episode"),
        ("race/best_lap_time_seconds", "best of an episode"),
    ):
        if tag in tags:
            events = log.Scalars(tag)
            steps, values = np.array([event.step for event in events]), np.array([event.value for event in events])
            laps.plot(steps, smooth(values), label=label)
    laps.set(title="race/lap_time_seconds", xlabel="agent steps", ylabel="s")
    laps.legend(fontsize="small")
    for axes in (rewards, laps):
        axes.grid(alpha=0.3)
    figure.savefig(sys.argv[2], dpi=100)


if __name__ == "__main__":
    main()
