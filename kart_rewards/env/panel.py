"""The text beside a game's picture: reward terms, the race, and the end of the episode.

* ``Panel`` - follows an episode, and returns its state as lines of text
* ``row`` - a line with a name and numbers
* ``fitting`` - joins blocks of lines into one text that fits the panel
"""

from __future__ import annotations

import itertools
import textwrap
from typing import Any

from kart_rewards.env.kart_env import KartEnv
from kart_rewards.env.window import PANEL_COLUMNS, PANEL_LINES, Headings, Lit
from kart_rewards.ram import value_text

_LIT_SECONDS = 0.5  # for which a payment stays highlighted; a single frame would be too short to see
_MAX_VARIABLES = 8  # shown for a game without race metrics
_NAME_COLUMNS = 18
_NUMBER_COLUMNS = 20


class Panel:
    """The state of one episode as lines of text.

    Args:
        env: The environment, after its reset.
        info: The info of the reset.
    """

    def __init__(self, env: KartEnv, info: dict[str, Any]) -> None:
        self._env = env
        self._info = info
        self._frames = 0
        self._last_paid: dict[str, tuple[int, float]] = {}  # term -> frame and amount

    def step(self, info: dict[str, Any]) -> None:
        """Updates the panel with the info of an environment step."""
        self._info = info
        self._frames += self._env.frame_skip
        for name, paid in info["reward_terms"].items():
            if paid:
                self._last_paid[name] = (self._frames, paid)

    @property
    def done_rule(self) -> str | None:
        """The done rule that ended the episode. None while it goes on."""
        return self._info.get("done_rule")

    def blocks(self) -> list[list[str]]:
        """Returns three blocks of lines: the reward terms, the race, and what ends the episode.

        A reward term's line has its latest payment for half a second, highlighted, and its sum over the episode.
        """
        rules = ", ".join(rule.name for rule in self._env.scoring.done) or "nothing"
        ending: list[str] = textwrap.wrap(f"ends on {rules}", PANEL_COLUMNS)
        if self.done_rule:
            ending = [Lit(f"over: {self.done_rule}")]
        return [self._term_lines(), self._state_lines(), ending]

    def _term_lines(self) -> list[str]:
        totals = self._info["episode_rewards"]["sum"]
        lines: list[str] = [Headings(row("reward term", "paid", "total"))]
        for name, total in totals.items():
            frame, paid = self._last_paid.get(name, (0, 0.0))
            if paid and self._frames - frame < _LIT_SECONDS * self._env.frames_per_second:
                lines.append(Lit(row(name, f"{paid:+.2f}", f"{total:.2f}")))
            else:
                lines.append(row(name, "", f"{total:.2f}"))
        return [*lines, row("all", "", f"{sum(totals.values()):.2f}")]

    def _state_lines(self) -> list[str]:
        """Returns speed, laps and times; for a game without race metrics, its first variables."""
        env = self._env
        if env.race is None:
            first = itertools.islice(zip(env.ram._fields, env.ram, strict=True), _MAX_VARIABLES)
            return [row(name, "", value_text(value, _NUMBER_COLUMNS)) for name, value in first]
        race = env.race.summary()
        best = race.get("best_lap_time_seconds")
        return [
            *([row("speed", "", str(env.ram.speed))] if "speed" in env.layout.names else []),
            row("laps done", "", str(race["laps_completed"])),
            row("race time (s)", "", f"{env.race.frames / env.frames_per_second:.2f}"),
            row("best lap (s)", "", "" if best is None else f"{best:.2f}"),
        ]


def row(name: str, paid: str, total: str) -> str:
    """Returns a line of the panel: a name, the latest payment or an empty text, and a number."""
    short = name if len(name) <= _NAME_COLUMNS else name[: _NAME_COLUMNS - 1] + "…"
    numbers = f"{paid:>8}  {total:>10}" if paid else total
    return f"{short:<{_NAME_COLUMNS}}  {numbers:>{_NUMBER_COLUMNS}}"


def fitting(blocks: list[list[str]]) -> list[str]:
    """Returns the lines of the blocks. Empty lines separate the blocks if all lines then fit the panel."""
    lines = [line for block in blocks for line in (*block, "")][:-1]
    return lines if len(lines) <= PANEL_LINES else [line for line in lines if line]
