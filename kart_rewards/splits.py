"""Split times: when an episode first reached each checkpoint.

* ``Splits`` - follows an episode, and keeps the time of each checkpoint
* ``has_checkpoints`` - whether a snapshot has the variables that it reads
* ``splits_of``, ``frames_before`` - the splits of a recorded drive, and the frames on the race clock before it

A checkpoint counts when it is first reached or passed. Where the game counts several checkpoints on one frame, they all
get this frame. Driving back over checkpoints, or over the line, changes nothing.
"""

from __future__ import annotations

from typing import Any

from kart_rewards.drives import Drive
from kart_rewards.race import LAPS_IN_A_RACE, progress

SPLIT_VARIABLES = frozenset({"laps", "checkpoint", "num_checkpoints"})
"""The variables that ``Splits`` reads."""


def has_checkpoints(ram: Any) -> bool:
    """Returns whether a snapshot has the variables that ``Splits`` reads, as integers."""
    return all(isinstance(getattr(ram, name, None), int) for name in SPLIT_VARIABLES)


class Splits:
    """The time of each checkpoint in one episode, in frames since the start of the race clock of ``RaceMetrics``.

    Args:
        ram: The first snapshot of the episode.
        frames: Number of frames on the race clock before it, such as those of a random start.

    Attributes:
        frames: Number of frames so far.
        count: Number of checkpoints of a lap; 0 if the game does not have any yet.
        reached: The frame of each checkpoint since the first crossing of the line, which is number 0; see ``progress``.
            None: it was passed before the episode began. Checkpoints that were not reached yet are missing.

    Example:
        >>> from kart_rewards.testing import snapshot
        >>> splits = Splits(snapshot(num_checkpoints=3, checkpoint=2))
        >>> for laps, checkpoint in ((127, 2), (128, 0), (128, 1), (128, 2), (128, 2), (129, 0)):
        ...     splits.update(snapshot(num_checkpoints=3, laps=laps, checkpoint=checkpoint))
        >>> splits.reached, splits.laps
        ([2, 3, 4, 6], [[3, 4, 6]])
    """

    def __init__(self, ram: Any, frames: int = 0) -> None:
        self.frames = frames
        self._begin(ram)

    def _begin(self, ram: Any) -> None:
        """Begins to count from a snapshot: that of the episode's first frame, or the first one of another course."""
        self.count: int = ram.num_checkpoints
        self._before = progress(ram)
        self.reached: list[int | None] = [None] * min(self._before + 1, LAPS_IN_A_RACE * self.count + 1)
        lap = max(self._before, 0) // self.count if self.count else 0
        begun = self._before > 0 and not (self.frames and lap == 0)  # a random start may have passed checkpoints
        self._first_lap = lap
        self._is_first_known = not begun

    def update(self, ram: Any) -> None:
        """Adds the next emulated frame."""
        self.frames += 1
        if ram.num_checkpoints != self.count:
            self._begin(ram)
        now = progress(ram)
        new = now + 1 - len(self.reached)
        # Lap and checkpoint are two variables. On a frame between the game's changes of them, progress can be too large
        # by a lap. Therefore so many new checkpoints as no kart can pass count only if they stay for another frame.
        if new > 0 and self.count and (new <= max(self.count // 2, 2) or self._before >= len(self.reached)):
            last = min(now, LAPS_IN_A_RACE * self.count)  # after the finish, nothing counts
            self.reached += [self.frames] * (last + 1 - len(self.reached))
        self._before = now

    @property
    def laps(self) -> list[list[int | None]]:
        """The splits of each lap, in frames since its start: those of checkpoint 1, 2 and so on, and of the line.

        The last lap has only the splits that were reached; a lap without any is missing. The first lap starts at the
        start of the race clock, as in ``RaceMetrics``, so the last split of a complete lap is its lap time. If the
        episode starts in the middle of a race, all splits of the lap that it starts in are None.
        """
        laps = []
        for first in range(self._first_lap * self.count, len(self.reached) - 1, self.count or 1):
            is_first = first == self._first_lap * self.count
            start = (0 if self._is_first_known else None) if is_first else self.reached[first]
            times = self.reached[first + 1 : first + self.count + 1]
            laps.append([None if at is None or start is None else at - start for at in times])
        return laps


def splits_of(drive: Drive) -> Splits | None:
    """Returns the splits of a drive. None: its game has no checkpoints."""
    if not has_checkpoints(drive[0]):
        return None
    splits = Splits(drive[0], frames_before(drive))
    for ram in drive[1:]:
        splits.update(ram)
    return splits if splits.count else None


def frames_before(drive: Drive) -> int:
    """Returns the number of frames on the race clock before the first frame of a drive: those of a random start."""
    return max(len(drive.lead) - 1, 0)
