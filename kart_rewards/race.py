"""What the RAM says of a race: codes, lap, progress, and the metrics that no reward setting changes.

* ``lap``, ``progress``, ``finished`` - derived from one snapshot
* ``RaceMetrics`` - lap times, off-road time and wall hits of one episode

The codes are those of the public integrations of the retail game; HomebrewKart keeps to them.
"""

from __future__ import annotations

from typing import Any

# Values of `surface`, the ground under the kart.
ROAD = 0x40
DIRT = 0x54
GRASS = 0x5A
BOOST = 0x16
OIL = 0x18
START_LINE = 0x1E
WALL = 0x80
PIT = 0x20
DEEP_WATER = 0x22
COURSE_SURFACES = frozenset({ROAD, BOOST, OIL, START_LINE})
"""What lies on the course itself; everything else is off the road."""

FACING_BACKWARD = 0x10  # `backward` while the kart faces the wrong way
LAPS_AT_FIRST_CROSSING = 128  # `laps` reads one less on the grid
LAPS_IN_A_RACE = 5

METRIC_VARIABLES = frozenset({"laps", "surface", "collision"})
"""The variables that ``RaceMetrics`` reads: a game without them has no race metrics."""


def lap(ram: Any) -> int:
    """Laps completed; -1 until the kart first crosses the line."""
    return ram.laps - LAPS_AT_FIRST_CROSSING


def progress(ram: Any) -> int:
    """Checkpoints passed since the first crossing of the line; -1 on the grid, negative when driving away from it."""
    return ram.checkpoint + lap(ram) * ram.num_checkpoints


def finished(ram: Any) -> bool:
    """Whether all laps are done."""
    return ram.laps >= LAPS_AT_FIRST_CROSSING + LAPS_IN_A_RACE


class RaceMetrics:
    """Objective metrics of one episode, so that runs with different reward terms compare.

    The first lap is timed from the start state, as a race clock does. A lap counts once: driving back over
    the line and forward again completes none.

    Args:
        ram: The snapshot the episode starts from.
        frames_per_second: The console's frame rate.
    """

    def __init__(self, ram: Any, frames_per_second: float) -> None:
        self.frames_per_second = frames_per_second
        self.frames = 0  # after a random start the environment adds its frames
        self.off_road_frames = 0
        self.wall_hits = 0
        self.lap_frames: list[int] = []
        self._lap_started_at = 0
        self._most_laps = max(ram.laps, LAPS_AT_FIRST_CROSSING)
        self._touching_wall = bool(ram.collision)

    def update(self, ram: Any) -> None:
        """Takes in the next emulated frame."""
        self.frames += 1
        if ram.surface not in COURSE_SURFACES:
            self.off_road_frames += 1
        if ram.collision:
            self.wall_hits += not self._touching_wall
        self._touching_wall = bool(ram.collision)
        if ram.laps > self._most_laps:
            self._most_laps = ram.laps
            self.lap_frames.append(self.frames - self._lap_started_at)
            self._lap_started_at = self.frames

    def summary(self) -> dict[str, Any]:
        """The metrics so far: counts, and times in seconds. A time that there is none of yet is left out."""
        summary = {
            "laps_completed": len(self.lap_frames),
            "finished": self._most_laps >= LAPS_AT_FIRST_CROSSING + LAPS_IN_A_RACE,
            "off_road_seconds": self.off_road_frames / self.frames_per_second,
            "wall_hits": self.wall_hits,
        }
        if self.lap_frames:
            summary["lap_time_seconds"] = sum(self.lap_frames) / len(self.lap_frames) / self.frames_per_second
            summary["best_lap_time_seconds"] = min(self.lap_frames) / self.frames_per_second
        if summary["finished"]:
            summary["race_time_seconds"] = sum(self.lap_frames[:LAPS_IN_A_RACE]) / self.frames_per_second
        return summary
