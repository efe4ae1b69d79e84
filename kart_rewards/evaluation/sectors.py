"""Where time is lost: the sectors of laps, compared with the best lap of a reference drive.

* ``ReferenceLap``, ``reference_lap`` - the best lap of the reference drive in a game's folder
* ``time_lost`` - the time that each sector takes longer than on the reference lap
* ``draw_time_lost`` - the same as a figure
* ``draw_road`` - draws the road of a course on a map

A sector is the part of a lap from one checkpoint to the next. Sector 1 begins at the line.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from kart_rewards.drives import Drive, load_drive
from kart_rewards.evaluation.courses import Course, positions, reference_drive
from kart_rewards.evaluation.episodes import EpisodeResult
from kart_rewards.splits import frames_before, splits_of

TimeLost = dict[str, dict[str, list[float | None]]]
"""Course -> policy -> the seconds lost in each sector."""


@dataclass(frozen=True, eq=False)
class ReferenceLap:
    """A lap to compare with.

    Args:
        sectors: The time of each sector, in seconds: float64, shape (sectors,).
        path: The position on each frame of the lap, in world pixels: float64, shape (frames, 2). Without a frame if the
            game has no positions.
        sector_of: The sector of each frame, counted from 0: int64, shape (frames,).
        frames: The index of each frame in the drive: int64, shape (frames,).
    """

    sectors: np.ndarray
    path: np.ndarray
    sector_of: np.ndarray
    frames: np.ndarray

    @classmethod
    def of(cls, drive: Drive) -> ReferenceLap | None:
        """Returns the best lap of a drive, with a flying start if there is one. None: the drive has no complete lap."""
        splits = splits_of(drive)
        if splits is None:
            return None
        complete = [lap for lap, times in enumerate(splits.laps) if len(times) == splits.count and None not in times]
        lap_frames = [times[-1] or 0 for times in splits.laps]
        flying = [lap for lap in complete if lap] or complete
        if not flying:
            return None
        lap = min(flying, key=lap_frames.__getitem__)
        ends = np.array(splits.laps[lap], np.int64)  # of the sectors, in frames since the start of the lap
        frames = np.arange(ends[-1])
        indices = frames + sum(lap_frames[:lap]) - frames_before(drive)
        recorded = indices >= 0  # a random start is not
        path = positions(drive)
        return cls(
            np.diff(ends, prepend=0) / drive.info.frames_per_second,
            np.zeros((0, 2)) if path is None else path[indices[recorded]],
            np.searchsorted(ends, frames, side="right")[recorded],
            indices[recorded],
        )


def reference_lap(folder: Path, state: str) -> ReferenceLap | None:
    """Returns the best lap of the reference drive of a course. None: the game's folder has none.

    Raises:
        KartRewardsError: The drive is damaged.
    """
    path = reference_drive(folder, state)
    return ReferenceLap.of(load_drive(path)) if path.is_file() else None


def time_lost(episodes: Iterable[EpisodeResult], references: Mapping[str, ReferenceLap]) -> TimeLost:
    """Returns how much longer each sector takes than on the reference lap, ready for JSON.

    Args:
        episodes: The episodes. The first sector of an episode's first lap does not count: it begins at the start state,
            not at the line.
        references: Course -> the lap to compare with.

    Returns:
        Course -> policy -> for each sector the median over all laps, minus the reference, in seconds; None for a sector
        without a time. Contestants and courses without any time are missing.
    """
    samples: dict[str, dict[str, list[list[float]]]] = {}
    for episode in episodes:
        if episode.state not in references:
            continue
        count = len(references[episode.state].sectors)
        of_policy = samples.setdefault(episode.state, {}).setdefault(episode.policy, [[] for _ in range(count)])
        for number, lap in enumerate(episode.checkpoint_times_seconds):
            starts = [0.0 if number else None, *lap]
            for of_sector, start, end in zip(of_policy, starts, lap, strict=False):
                if start is not None and end is not None:
                    of_sector.append(end - start)
    return {
        course: {
            policy: [
                round(float(np.median(times)) - float(seconds), 4) + 0.0 if times else None  # + 0.0: not -0.0
                for times, seconds in zip(of_policy, references[course].sectors, strict=True)
            ]
            for policy, of_policy in by_policy.items()
            if any(of_policy)
        }
        for course, by_policy in samples.items()
    }


def draw_time_lost(
    lost: Sequence[float | None], reference: ReferenceLap, title: str, course: Course | None = None
) -> bytes:
    """Draws where time is lost: on a map, by sector, and added up over the lap.

    Args:
        lost: The seconds lost in each sector, from ``time_lost``.
        reference: The lap that it was compared with. Its path is the line on the map.
        title: Text above the figure.
        course: The road on the map. None: there is only the path; without a path, there is no map.

    Returns:
        A PNG.
    """
    from matplotlib.collections import LineCollection  # loading it takes half a second
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    seconds = np.array([np.nan if each is None else each for each in lost])
    sectors = np.arange(1, len(lost) + 1)
    largest = max(np.nanmax(np.abs(seconds), initial=0.0), 0.01)
    figure = Figure(figsize=(9.0, 4.2), layout="constrained")
    figure.suptitle(title, fontsize="medium")
    has_map = len(reference.path) > 1
    parts = figure.subplot_mosaic(
        [["map", "sum"], ["map", "sectors"]] if has_map else [["sum"], ["sectors"]],
        width_ratios=[1, 1.2] if has_map else [1],
    )
    if has_map:
        axes = parts["map"]
        if course:
            draw_road(axes, course)
        firsts = np.searchsorted(reference.sector_of, [*range(len(lost)), len(lost)]).tolist()
        pieces = [reference.path[first : after + 1] for first, after in itertools.pairwise(firsts)]
        lines = axes.add_collection(
            LineCollection(
                pieces,
                array=np.ma.masked_invalid(seconds),
                cmap="RdYlGn_r",
                norm=Normalize(-largest, largest),
                linewidths=4,
            )
        )
        axes.set_facecolor("0.92")
        axes.plot(*reference.path[0], "k|", markersize=14)
        for sector, piece in enumerate(pieces, 1):
            if len(piece) and (sector == 1 or sector % 4 == 0):
                axes.annotate(str(sector), piece[len(piece) // 2], fontsize="small", weight="bold")
        axes.set(aspect="equal", xticks=[], yticks=[], title="sectors of the reference lap")
        axes.set_ylim(max(axes.get_ylim()), min(axes.get_ylim()))  # y is downwards
        figure.colorbar(lines, ax=axes, shrink=0.7, label="seconds lost")
    known = np.flatnonzero(~np.isnan(seconds))
    parts["sum"].plot([0, *sectors[known]], [0.0, *np.cumsum(seconds[known])], marker=".")
    parts["sum"].set(ylabel="seconds lost, added up")
    colours = ["tab:red" if each > 0 else "tab:green" for each in seconds]
    parts["sectors"].bar(sectors, np.nan_to_num(seconds), color=colours)
    parts["sectors"].set(ylabel="seconds lost", xlabel="sector: from checkpoint to checkpoint")
    for name in ("sum", "sectors"):
        parts[name].set_xlim(0, len(lost) + 0.6)
        parts[name].axhline(0, color="0.5", linewidth=0.8)
        parts[name].grid(alpha=0.3)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=90)
    return content.getvalue()


def draw_road(axes: Any, course: Course) -> None:
    """Draws the road of a course on axes of Matplotlib, in world pixels with y downwards."""
    line = np.array(course.centreline, np.float64)
    low, high = line.min(axis=0) - course.road_width, line.max(axis=0) + course.road_width
    width, height = np.ceil(high - low).astype(int).tolist()
    road = np.zeros((height, width), np.uint8)
    points = np.round(16 * (line - low)).astype(np.int32)  # in sixteenths, which cv2 calls a shift of 4
    cv2.polylines(road, [points], True, 255, max(round(course.road_width), 1), cv2.LINE_AA, 4)
    grey = np.zeros((height, width, 4), np.uint8)
    grey[..., :3], grey[..., 3] = 150, road
    axes.imshow(grey, extent=(low[0], high[0], high[1], low[1]))
