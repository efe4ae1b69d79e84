"""Facts about a race that do not depend on the reward settings: codes in RAM, laps, progress, metrics.

* ``ROAD`` and the other surface codes, ``COURSE_SURFACES``, ``FACING_BACKWARD`` - values of RAM variables
* ``lap``, ``progress``, ``finished``, ``laps_driven`` - computed from one snapshot
* ``is_kart_race`` - whether a game is a kart race, by its variables
* ``RaceMetrics`` - lap times, off-road time and wall hits of one episode

The codes are from the public integrations of the retail game. HomebrewKart uses the same codes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
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
"""The surfaces of the course itself. All other surfaces are off the road."""

FACING_BACKWARD = 0x10  # value of `backward` while the kart faces the wrong way
LAPS_AT_FIRST_CROSSING = 128  # value of `laps` after the first crossing of the line; 127 on the grid
LAPS_IN_A_RACE = 5
_UNKNOWN = -1  # instead of the number of a frame

METRIC_VARIABLES = frozenset({"laps", "surface", "collision"})
"""The variables that ``RaceMetrics`` reads. A game without them is no kart race, and has no race metrics."""


def is_kart_race(variables: Collection[str]) -> bool:
    """Returns whether a game is a kart race: it has the variables that ``RaceMetrics`` reads.

    Args:
        variables: The names of the game's variables.
    """
    return METRIC_VARIABLES.issubset(variables)


def lap(ram: Any) -> int:
    """Returns the number of completed laps; -1 before the first crossing of the line."""
    return ram.laps - LAPS_AT_FIRST_CROSSING


def progress(ram: Any) -> int:
    """Returns the number of checkpoints since the first crossing of the line; negative before it, -1 on the grid."""
    return ram.checkpoint + lap(ram) * ram.num_checkpoints


def finished(ram: Any) -> bool:
    """Returns whether all laps of the race are done."""
    return ram.laps >= LAPS_AT_FIRST_CROSSING + LAPS_IN_A_RACE


def laps_driven(ram: Any) -> float:
    """Returns the number of laps since the first crossing of the line, with the part of the current lap by its
    checkpoints. Without checkpoints, it is the number of completed laps. Before the first crossing it is 0."""
    count = getattr(ram, "num_checkpoints", 0)
    return max(float(lap(ram)) + (getattr(ram, "checkpoint", 0) / count if count else 0.0), 0.0)


class RaceMetrics:
    """Metrics of one episode. They do not depend on the reward terms, so they make runs comparable.

    The first lap starts at the start state, like the race clock. Each lap counts once: the kart completes no lap when
    it drives back over the line and forward again. A start state in the middle of a race has no times for the lap and
    the race that it begins in.

    Args:
        ram: The first snapshot of the episode.
        frames_per_second: The console's frame rate.
        start: The snapshot of the start state, before a random start. None: there was no random start.
        frames: Number of frames of the random start.

    Attributes:
        ram: The latest snapshot.
        frames: Number of frames so far, including the frames of a random start.
        laps_completed: Number of completed laps.
        lap_frames: Number of frames of each lap that the episode drove from its beginning to its end.
        off_road_frames: Number of frames on a surface that is not in ``COURSE_SURFACES``.
        wall_hits: Number of contacts with a wall. A contact of several frames counts once.
    """

    def __init__(self, ram: Any, frames_per_second: float, start: Any = None, frames: int = 0) -> None:
        self.ram = ram
        self.frames_per_second = frames_per_second
        self.frames = frames
        self.off_road_frames = 0
        self.wall_hits = 0
        self.laps_completed = 0
        self.lap_frames: list[int] = []
        self._laps_at_start = laps_driven(ram if start is None else start)
        self._lap_started_at = _UNKNOWN if self._laps_at_start > 0 else 0
        self._most_laps = max(ram.laps, LAPS_AT_FIRST_CROSSING)
        self._touching_wall = bool(ram.collision)

    def update(self, ram: Any) -> None:
        """Adds the next emulated frame."""
        self.ram = ram
        self.frames += 1
        if ram.surface not in COURSE_SURFACES:
            self.off_road_frames += 1
        if ram.collision:
            self.wall_hits += not self._touching_wall
        self._touching_wall = bool(ram.collision)
        if ram.laps > self._most_laps:
            self._most_laps = ram.laps
            self.laps_completed += 1
            if self._lap_started_at != _UNKNOWN:
                self.lap_frames.append(self.frames - self._lap_started_at)
            self._lap_started_at = self.frames

    def summary(self) -> dict[str, Any]:
        """Returns the metrics so far.

        Returns:
            ``laps_completed`` (int), ``laps_driven`` (float: with the part of the current lap by its checkpoints),
            ``finished`` (bool), ``off_road_seconds`` (float), ``wall_hits`` (int). After the first lap of
            ``lap_frames`` also ``lap_time_seconds``, the mean, and ``best_lap_time_seconds``. After all laps of a race
            also ``race_time_seconds``.
        """
        complete = self._most_laps - LAPS_AT_FIRST_CROSSING  # driving back over the line subtracts nothing
        now = min(max(laps_driven(self.ram), complete), complete + 1)
        summary = {
            "laps_completed": self.laps_completed,
            "laps_driven": max(now - self._laps_at_start, 0.0),
            "finished": self._most_laps >= LAPS_AT_FIRST_CROSSING + LAPS_IN_A_RACE,
            "off_road_seconds": self.off_road_frames / self.frames_per_second,
            "wall_hits": self.wall_hits,
        }
        if self.lap_frames:
            summary["lap_time_seconds"] = sum(self.lap_frames) / len(self.lap_frames) / self.frames_per_second
            summary["best_lap_time_seconds"] = min(self.lap_frames) / self.frames_per_second
        if len(self.lap_frames) >= LAPS_IN_A_RACE:
            summary["race_time_seconds"] = sum(self.lap_frames[:LAPS_IN_A_RACE]) / self.frames_per_second
        return summary

    def get_state(self) -> dict[str, Any]:
        """Returns what ``set_state`` needs, as plain values."""
        return {name: value for name, value in vars(self).items() if name != "ram"}

    def set_state(self, state: Mapping[str, Any], ram: Any) -> None:
        """Restores a state that ``get_state`` returned.

        Args:
            state: The state.
            ram: The latest snapshot.
        """
        vars(self).update(state, ram=ram)
