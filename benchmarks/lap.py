"""Draws where a lap loses time: the speed and the line of an agent and of the reference over one lap, on the map.

    python benchmarks/lap.py agents/HomebrewKart.pt --state Level2 --output docs/images/lap.png

The agent drives one race with deterministic actions. Its best lap is compared with the best lap of the game's reference
drive. A recorded drive can take the agent's place: python benchmarks/lap.py NAME.drive --output lap.png.
"""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from kart_rewards.drives import SUFFIX, Drive, load_drive
from kart_rewards.env.recorder import DriveRecorder
from kart_rewards.env.wrappers import make_wrapped
from kart_rewards.errors import KartRewardsError
from kart_rewards.evaluation import load_agent, play_episode
from kart_rewards.evaluation.courses import Course, find_courses, reference_drive
from kart_rewards.evaluation.sectors import ReferenceLap, draw_road
from kart_rewards.integrations import find_game

COLOURS = {"agent": "tab:orange", "reference": "tab:blue"}


def race(path: Path, state: str | None, seed: int) -> Drive:
    """Returns a race of an agent with deterministic actions."""
    agent = load_agent(path)
    with closing(make_wrapped(agent.env_options)) as env:
        core: Any = env.unwrapped
        core.recorder = DriveRecorder("agent", agent.steps)
        course = state or core.states[0]
        policy = agent.make_policy(True)(env, course, seed)
        play_episode(env, policy, course, seed, max_episode_frames=agent.max_episode_frames)
        drive: Drive = core.recorder.drive(core, limited=True)
        return drive


def best_lap(drive: Drive, name: str) -> ReferenceLap:
    """Returns the best lap of a drive.

    Raises:
        KartRewardsError: It has none.
    """
    lap = ReferenceLap.of(drive)
    if lap is None or not len(lap.path):
        raise KartRewardsError(f"{name}: has no complete lap with positions")
    return lap


def along(path: np.ndarray, course: Course) -> np.ndarray:
    """Returns how much of the lap is driven at each position: the part of the centreline, float64, shape (frames,)."""
    line = np.array(course.centreline, np.float64)
    nearest = np.argmin(np.square(path[:, None] - line[None]).sum(axis=-1), axis=1) / len(line)
    return np.unwrap(nearest, period=1.0) - round(
        nearest[0]
    )  # the first position may lie before the line's first point


def draw(drives: dict[str, Drive], laps: dict[str, ReferenceLap], course: Course, output: Path) -> None:
    """Draws the lines on the map, the speeds over the lap, and the seconds lost."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.2), layout="constrained")
    parts = figure.subplot_mosaic([["map", "speed"], ["map", "lost"]], width_ratios=[1, 1.15])
    draw_road(parts["map"], course)
    for name, lap in laps.items():
        seconds = lap.sectors.sum()
        look = {"color": COLOURS[name], "label": f"{name}, {seconds:.2f} s", "linewidth": 1.8}
        parts["map"].plot(*lap.path.T, **look)
        parts["speed"].plot(100 * along(lap.path, course), drives[name].columns["speed"][lap.frames], **look)
    reference = laps["reference"]
    count = len(reference.sectors)
    for sector in range(0, count, 4):
        first = int(np.searchsorted(reference.sector_of, sector))
        parts["map"].annotate(
            str(sector), reference.path[first], xytext=(4, 4), textcoords="offset points", fontsize="small"
        )
        parts["map"].plot(*reference.path[first], "k.", markersize=5)
    parts["map"].set(aspect="equal", xticks=[], yticks=[], title="line, with every fourth checkpoint", facecolor="0.92")
    parts["map"].legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=2, frameon=False)
    lost = np.cumsum(laps["agent"].sectors - reference.sectors)
    parts["lost"].plot(range(count + 1), [0.0, *lost], marker=".", color="tab:red")
    parts["lost"].set(xlabel="checkpoint", ylabel="s", title="seconds that the agent is behind", xlim=(0, count))
    parts["speed"].set(
        xlabel="% of the lap, along the middle of the road",
        title="speed, as in the RAM: 256 is a pixel per frame",
        xlim=(0, 100),
    )
    for name in ("speed", "lost"):
        parts[name].grid(alpha=0.3)
    figure.savefig(output, dpi=100)


def command(
    agent: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="AGENT")],
    /,
    output: Path,
    state: str | None = None,
    seed: int = 1,
) -> None:
    """Draws the speed and the line of an agent and of the reference over one lap.

    Args:
        agent: The agent's file, or a drive.
        output: The PNG to write.
        state: The course. By default the first course of the agent's training.
        seed: Seed of the race.
    """
    drive = load_drive(agent) if agent.suffix == SUFFIX else race(agent, state, seed)
    game, course = find_game(drive.info.game), drive.info.state
    reference = load_drive(reference_drive(game.folder, course))
    drives = {"reference": reference, "agent": drive}
    laps = {"reference": best_lap(reference, f"the reference drive of {course}"), "agent": best_lap(drive, str(agent))}
    courses = find_courses(game.folder)
    if course not in courses:
        raise KartRewardsError(f"{game.name} does not describe the course {course}")
    output.parent.mkdir(parents=True, exist_ok=True)
    draw(drives, laps, courses[course], output)
    behind = laps["agent"].sectors.sum() - laps["reference"].sectors.sum()
    print(f"{course}: agent {laps['agent'].sectors.sum():.2f} s, {behind:+.2f} s to the reference; wrote {output}")


def main() -> None:
    """Runs the command. An error of the user ends it with one message and exit code 2."""
    try:
        tyro.cli(command, description=__doc__)
    except KartRewardsError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
