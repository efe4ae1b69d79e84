"""What the author of a game's scenario wants.

* ``Goal`` - a scenario's ``goal``, or that of a kart race: finish, then time
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

import numpy as np

from kart_rewards.drives import Drive
from kart_rewards.errors import KartRewardsError
from kart_rewards.games.condition import Condition
from kart_rewards.race import RaceMetrics, finished, is_kart_race, progress


class Goal:
    """What the author wants.

    Args:
        text: A condition, or a number that should be large, over variables and race metrics. None: finish, then time,
            in a kart race; else there is no goal.
        names: The names of the variables.

    Attributes:
        known: Whether there is a goal.
        uses_metrics: Whether it uses race metrics.
        is_number: Whether the goal is a number, of which more is better.

    Raises:
        KartRewardsError: The text is not a condition.
    """

    def __init__(self, text: str | None, names: tuple[str, ...]) -> None:
        self._metrics = is_kart_race(names)
        self._by_checkpoints = text is None and {"laps", "checkpoint", "num_checkpoints"} <= {*names}
        self.uses_metrics = False
        self._condition: Condition | None = None
        self.is_number = text is None and self._metrics
        self.known = text is not None or self._metrics
        if text is not None:
            metrics = ("laps_completed", "finished", "off_road_seconds", "wall_hits") if self._metrics else ()
            self._condition = Condition(text, (*names, *metrics))
            self.uses_metrics = any(name in text for name in metrics)
            tree = ast.parse(text.strip(), mode="eval").body
            is_bool = isinstance(tree, (ast.Compare, ast.BoolOp))
            self.is_number = not (is_bool or (isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.Not)))

    def value(self, ram: Any, race: RaceMetrics | None) -> float:
        """Returns how near a frame is to the goal: the larger, the nearer; 1 or 0 if the goal is a condition."""
        if self._condition is not None:
            values: Mapping[str, Any] = ram._asdict() | (race.summary() if race else {})
            try:
                return float(self._condition.value(values))
            except OverflowError:
                raise KartRewardsError(f"the goal {self._condition.text!r} is too large for a number") from None
        if self._by_checkpoints:
            return float(progress(ram))
        return float(ram.laps) if self._metrics else 0.0

    def reached(self, ram: Any, value: float) -> bool:
        """Returns whether a frame is at the goal. A number has no end."""
        if self._condition is not None:
            return bool(value) and not self.is_number
        return self._metrics and finished(ram)

    def along(self, drive: Drive) -> tuple[np.ndarray, int | None]:
        """Returns the value on each frame of a drive, and the first frame at the goal after the start, or None."""
        race = RaceMetrics(drive[0], drive.info.frames_per_second) if is_kart_race(drive.columns) else None
        values, reached = [self.value(drive[0], race)], None
        for frame, ram in enumerate(drive[1:], 1):
            if race:
                race.update(ram)
            values.append(self.value(ram, race))
            if reached is None and self.reached(ram, values[-1]):
                reached = frame
        return np.array(values), reached
