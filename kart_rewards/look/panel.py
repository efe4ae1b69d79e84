"""The text beside a game's picture: what each reward term pays, and how the race stands.

* ``Panel`` - takes in an episode step by step, and says it in lines
* ``fitting`` - blocks of lines as one text that fits
"""

from __future__ import annotations

import itertools
import textwrap
from typing import Any

from kart_rewards.env import KartEnv
from kart_rewards.env.window import PANEL_COLUMNS, PANEL_LINES, Lit

_SECONDS_LIT = 0.5  # after a term paid: on one frame alone, nobody would see it
_MOST_VARIABLES = 8  # shown of a game without race metrics


class Panel:
    """One episode in lines of text.

    Args:
        env: Where it is played, after the reset.
        info: What the reset returned.
    """

    def __init__(self, env: KartEnv, info: dict[str, Any]) -> None:
        self._env = env
        self._info = info
        self._frames = 0
        self._last_paid: dict[str, tuple[int, float]] = {}  # term -> frame and amount

    def step(self, info: dict[str, Any]) -> None:
        """Takes in what a step of the environment returned."""
        self._info = info
        self._frames += self._env.frame_skip
        for name, paid in info["reward_terms"].items():
            if paid:
                self._last_paid[name] = (self._frames, paid)

    @property
    def done_rule(self) -> str | None:
        """What ended the episode, if anything has."""
        return self._info.get("done_rule")

    def blocks(self) -> list[list[str]]:
        """Returns what each term paid last, lit for a moment, and in all; the race; what ends the episode."""
        rules = ", ".join(rule.name for rule in self._env.scoring.done) or "nothing"
        over: list[str] = textwrap.wrap(f"ends on {rules}", PANEL_COLUMNS)
        if self.done_rule:
            over = [Lit(f"over: {self.done_rule}")]
        return [self._term_lines(), self._state_lines(), over]

    def _term_lines(self) -> list[str]:
        totals = self._info["episode_rewards"]["sum"]
        lines = [_row("reward term", "paid", "total")]
        for name, total in totals.items():
            frame, paid = self._last_paid.get(name, (0, 0.0))
            if paid and self._frames - frame < _SECONDS_LIT * self._env.frames_per_second:
                lines.append(Lit(_row(name, f"{paid:+.2f}", f"{total:.2f}")))
            else:
                lines.append(_row(name, "", f"{total:.2f}"))
        return [*lines, _row("all", "", f"{sum(totals.values()):.2f}")]

    def _state_lines(self) -> list[str]:
        """Speed, laps and times; of a game that has none of these, its first variables."""
        env = self._env
        if env.race is None:
            first = itertools.islice(zip(env.layout.names, env.ram, strict=True), _MOST_VARIABLES)
            return [_row(name, "", str(value)) for name, value in first]
        race = env.race.summary()
        best = race.get("best_lap_time_seconds")
        return [
            *([_row("speed", "", str(env.ram.speed))] if "speed" in env.layout.names else []),
            _row("laps done", "", str(race["laps_completed"])),
            _row("race time (s)", "", f"{env.race.frames / env.frames_per_second:.2f}"),
            _row("best lap (s)", "", "" if best is None else f"{best:.2f}"),
        ]


def _row(name: str, paid: str, total: str) -> str:
    return f"{name if len(name) <= 18 else name[:17] + '…':<18}  {paid:>8}  {total:>10}"


def fitting(blocks: list[list[str]]) -> list[str]:
    """Returns the blocks' lines, with an empty one between blocks if there is room for that."""
    lines = [line for block in blocks for line in (*block, "")][:-1]
    return lines if len(lines) <= PANEL_LINES else [line for line in lines if line]
