"""The verdict of ``kart-rewards audit``.

* ``Audit``, ``Confirmed`` - the result of a search
* ``report`` - the verdict as text
* ``as_json`` - the verdict as plain values
"""

from __future__ import annotations

import io
import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from kart_rewards.drives import SHIPPED, SUFFIX, Drive
from kart_rewards.errors import counted
from kart_rewards.lab.auditing.rollouts import LEAST_EXCESS, SHORT_FRAMES, Reference, Rollout, Setup
from kart_rewards.lab.score import DriveScore


@dataclass(frozen=True, eq=False)
class Confirmed:
    """A behaviour that was played again and scored like any other drive.

    Args:
        rollout: How it went in the search.
        kind: See ``exploit_kind``.
        drive: Its drive.
        score: What it is paid.
        path: The file of the drive.
        video: The file of its video. None: it was not written, see ``trouble``.
        trouble: Why not.
    """

    rollout: Rollout
    kind: str
    drive: Drive
    score: DriveScore
    path: Path
    video: Path | None = None
    trouble: str = ""


@dataclass(frozen=True, eq=False)
class Audit:
    """The result of a search.

    Args:
        setup: What was searched.
        reference: What the reference drive is paid.
        drive: The reference drive. None: the game has none.
        score: Its score.
        exploit: The exploit. None: none was found.
        listed: The best-paid behaviours of a game without a goal.
        by_goal: The best behaviour by the goal, in a game without a reference drive.
        short_end: See ``Search``.
        best: The best-paid behaviour that comes less than half as far as the reference.
        margin: Its excess; see ``kart_rewards.lab.auditing.rollouts.excess``.
        frames, rounds: How much was searched.
        seconds: How long.
        interrupted: Whether the user ended the search.
    """

    setup: Setup
    reference: Reference
    drive: Drive | None
    score: DriveScore | None
    exploit: Confirmed | None
    listed: tuple[Confirmed, ...]
    by_goal: Rollout | None
    short_end: Rollout | None
    best: Rollout | None
    margin: float
    frames: int
    rounds: int
    seconds: float
    interrupted: bool


def report(result: Audit) -> str:
    """Returns the verdict as text for a person.

    Args:
        result: The result.
    """
    searched = f"{_duration(result.seconds)} ({result.frames:,} frames searched)"
    stopped = ", when you ended the search" if result.interrupted else ""
    if result.exploit:
        return f"{_of_exploit(result, result.exploit)}\n\nFound in {searched}.{_side_by_side(result, result.exploit)}"
    if result.listed:
        return f"{_of_list(result)}\n\nSearched for {searched}{stopped}."
    lines = [f"No better-paid behaviour found in {searched}{stopped}."]
    if result.drive and result.score:
        lines.append(f"The reference drive, {_label(result)}, earns {result.reference.total:.2f}.")
    if result.best is not None and math.isfinite(result.margin):
        lines.append(
            f"The best-paid behaviour that comes less than half as far would earn {result.best.expected:.2f} "
            f"({result.best.behaviour}). An exploit earns at least {LEAST_EXCESS:.0%} more than the reference drive."
        )
    early = result.short_end
    if early is not None:
        lines.append(
            f"note: At gamma {result.setup.rewards.gamma:g}, an early end is better paid than driving on. If "
            f"{early.ended_by} ends the episode after {early.frames:,} frames, the discounted return is "
            f"{early.short:.2f}; for the reference it is {early.short_reference:.2f}, because what it earns later is "
            f"beyond the horizon. The behaviour: {early.behaviour}."
        )
    return "\n".join(lines)


def _label(result: Audit) -> str:
    name = result.setup.reference.name.removesuffix(SUFFIX) if result.setup.reference else ""
    outcome = result.drive.outcome if result.drive else ""
    return f"{name} ({outcome})"


def _of_exploit(result: Audit, found: Confirmed) -> str:
    rollout, reference = found.rollout, result.reference
    way = f", and comes {_progress(rollout.gain, reference.gain)} as far" if reference.gain > 0 else ""
    ended = f"; {rollout.ended_by} ends the episode" if rollout.ended_by else ""
    frames = len(found.drive) - 1
    if found.kind == "discounted":
        verdict = (
            f"In the {SHORT_FRAMES:,} frames from frame {rollout.behaviour.begin:,} on, its discounted return is "
            f"{rollout.short:.2f}. That of the reference is {rollout.short_reference:.2f}."
        )
    else:
        of_reference = (
            f"The reference drive, {_label(result)}, earns" if result.drive else "The best one by the goal earns"
        )
        verdict = (
            f"It earns {found.score.transformed:,.2f} in an episode of {frames:,} frames{way}{ended}. {of_reference} "
            f"{result.score.transformed if result.score else reference.total:,.2f}"
            + (f" in {reference.end:,} frames." if result.drive else ".")
        )
    begin = f" From frame {rollout.behaviour.begin:,} of the reference on:" if rollout.behaviour.begin else ""
    lines = [f"Exploit: {rollout.behaviour.strategy}. {verdict}", f"What it does:{begin} {_phases(rollout)}"]
    lines += ["", _table(result, found), "", f"wrote {found.path}, which was played again without a difference"]
    lines.append(f"wrote {found.video}" if found.video else f"note: there is no video: {found.trouble}")
    return "\n".join(lines)


def _side_by_side(result: Audit, found: Confirmed) -> str:
    """Returns the command that shows an exploit beside the reference drive; empty without one."""
    if not result.setup.reference:
        return ""
    words = [str(found.path), _reference_word(result.setup.reference), *result.setup.rewards.options()]
    return f"\nBoth side by side: kart-rewards lab {shlex.join(words)}"


def _phases(rollout: Rollout) -> str:
    return str(rollout.behaviour).partition(": ")[2]


def _reference_word(path: Path) -> str:
    return path.name.removesuffix(SUFFIX) if path.parent == SHIPPED else str(path)


def _progress(gain: float, of_reference: float) -> str:
    return f"{max(gain, 0.0) / of_reference:.0%}"


def _table(result: Audit, found: Confirmed) -> str:
    """Returns what each term pays, in the episodes and in the same number of frames."""
    columns: list[tuple[str, DriveScore, int, int]] = []
    rollout, score = found.rollout, result.score
    end = found.score.end
    if found.kind == "discounted" and score:
        first = rollout.behaviour.begin
        last = min(first + SHORT_FRAMES, score.end)
        columns = [("exploit", found.score, first, min(last, end)), ("reference", score, first, last)]
    elif score:
        columns = [("exploit", found.score, 0, end)]
        if end > score.end:
            columns.append(("exploit", found.score, 0, score.end))
        columns.append(("reference", score, 0, score.end))
        if end < score.end:
            columns.append(("reference", score, 0, end))
    else:
        columns = [("exploit", found.score, 0, end)]
    grid = Table(box=None, pad_edge=False, padding=(0, 0, 0, 2))
    grid.add_column("term")
    for name, _, first, last in columns:
        grid.add_column(f"{name},\n{last - first:,} frames", justify="right")
    for term in found.score.values:
        sums = [float(each.values[term][first + 1 : last + 1].sum()) for _, each, first, last in columns]
        grid.add_row(term, *(f"{total + 0.0:,.1f}" for total in sums))
    returns = [float(each.rewards[first + 1 : last + 1].sum()) for _, each, first, last in columns]
    grid.add_row("return", *(f"{total + 0.0:,.2f}" for total in returns))
    console = Console(file=io.StringIO(), width=10_000, color_system=None, markup=False, emoji=False, highlight=False)
    with console.capture() as captured:
        console.print(grid)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _of_list(result: Audit) -> str:
    lines = ["The game has no goal, so judge the best-paid behaviours by eye:"]
    for found in result.listed:
        lines.append(
            f"  {found.score.transformed:10.2f} in {counted(found.score.end, 'frame')}: {found.rollout.behaviour}\n"
            f"             {found.path}"
        )
    lines.append('A "goal" in scenario.json says what you want; see the documentation of rewards.')
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.2g} min" if seconds >= 60 else f"{seconds:.0f} s"


def as_json(result: Audit) -> dict[str, Any]:
    """Returns a result as plain values."""

    def of(found: Confirmed) -> dict[str, Any]:
        rollout = found.rollout
        return {
            "kind": found.kind,
            "strategy": rollout.behaviour.strategy,
            "behaviour": str(rollout.behaviour),
            "begin": rollout.behaviour.begin,
            "return": found.score.transformed,
            "frames": found.score.end,
            "ended_by": found.score.ended_by,
            "gain": rollout.gain,
            "terms": {name: term.sum for name, term in found.score.terms.items()},
            "drive": str(found.path),
            "video": str(found.video) if found.video else None,
        }

    reference = result.reference
    return {
        "exploit": of(result.exploit) if result.exploit else None,
        "best_paid": [of(each) for each in result.listed],
        "reference": {
            "drive": str(result.setup.reference) if result.setup.reference else None,
            "return": reference.total,
            "frames": reference.end,
            "gain": reference.gain,
            "terms": {name: term.sum for name, term in result.score.terms.items()} if result.score else None,
        },
        "margin": result.margin if math.isfinite(result.margin) else None,
        "frames": result.frames,
        "rounds": result.rounds,
        "seconds": round(result.seconds, 1),
        "interrupted": result.interrupted,
    }
