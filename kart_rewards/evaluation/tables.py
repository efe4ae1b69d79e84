"""Statistics as text and as JSON.

* ``table`` - the statistics of ``summarise`` as a table
* ``seeds_table`` - the statistics of ``across_seeds`` as a table
* ``lost_table`` - the worst sectors of ``time_lost``
* ``write_json`` - writes a JSON file

Tables are plain text without colours, whatever the output is. Their lines are never wrapped or truncated.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from kart_rewards.errors import counted
from kart_rewards.evaluation.sectors import TimeLost
from kart_rewards.evaluation.statistics import TERM_PREFIX, Metrics, SeedStatistics, Summary
from kart_rewards.files import atomic_write

_WIDER_THAN_ANY_TABLE = 10_000  # characters; rich wraps tables to the width of its console


class _Column(NamedTuple):
    header: str
    metric: str
    number_format: str


_COLUMNS = (
    _Column("episodes", "episodes", "{}"),
    _Column("finished", "finish_rate", "{:.0%}"),
    _Column("lap\nbest", "best_lap_time_seconds", "{:.2f}"),
    _Column("lap\nmedian", "median_lap_time_seconds", "{:.2f}"),
    _Column("race\nbest", "best_race_time_seconds", "{:.2f}"),
    _Column("race\nmedian", "median_race_time_seconds", "{:.2f}"),
    _Column("off\nroad", "median_off_road_seconds", "{:.1f}"),
    _Column("wall\nhits", "median_wall_hits", "{:.1f}"),
    _Column("return", "median_return", "{:.1f}"),
)
_LENGTH = _Column("length", "median_length_seconds", "{:.1f}")

_TERM = f"median_{TERM_PREFIX}"
_WORST = 3  # sectors of a course that ``lost_table`` names

_Row = tuple[str, Mapping[str, str]]
"""A label, and the text of each metric. A heading has no metrics."""


def table(summary: Summary) -> str:
    """Returns the statistics of ``summarise`` as a table, one row per course and policy."""
    columns, is_race = _columns(metrics for by_policy in summary.values() for metrics in by_policy.values())
    rows: list[_Row] = []
    for course, by_policy in summary.items():
        rows.append((course, {}))
        for policy, metrics in by_policy.items():
            cells, episodes, rate = _cells(columns, metrics), metrics["episodes"], metrics["finish_rate"]
            if rate is not None:
                cells["finish_rate"] = f"{round(rate * episodes)}/{episodes}"
                del cells["episodes"]
            rows.append((f"  {policy}", cells))
    legend = "Length (seconds), return (after --reward-scale), sums of the reward terms (before it): medians."
    if is_race:
        legend = (
            "Times are in seconds. Lap: all completed laps. Race: finished episodes.\n"
            "Off road, wall hits, return (after --reward-scale): medians."
        )
    return f"{_layout(columns, rows)}\n{legend}"


def seeds_table(statistics: SeedStatistics) -> str:
    """Returns the statistics of ``across_seeds`` as a table: medians, with the quartiles in the rows below.

    A fourth row has the number of seeds with a value, if it differs between the columns.
    """
    columns, _ = _columns(metrics for by_policy in statistics.values() for metrics in by_policy.values())
    columns = [column for column in columns if column.metric != "episodes"]
    rows: list[_Row] = []
    for course, by_policy in statistics.items():
        rows.append((course, {}))
        for policy, metrics in by_policy.items():
            seeds = {name: values["seeds"] for name, values in metrics.items()}
            most = f"{policy}, {counted(max(seeds.values()), 'seed')}"
            for label, part in ((most, "median"), ("  25%", "lower_quartile"), ("  75%", "upper_quartile")):
                rows.append((f"  {label}", _cells(columns, {name: values[part] for name, values in metrics.items()})))
            if len(set(seeds.values()) - {0}) > 1:
                rows.append(("    seeds", {name: str(count) for name, count in seeds.items() if count}))
    legend = (
        "Median over the seeds, and the values at 25% and 75%. Seeds: number of agents with a value.\n"
        "Times are in seconds."
    )
    return f"{_layout(columns, rows)}\n{legend}"


def lost_table(lost: TimeLost, policy: str) -> str:
    """Returns a line per course: the sum of what a policy loses in the sectors, and the worst of them.

    It ends with a line break. Empty if the policy has no time on any course.

    Example:
        >>> print(lost_table({"Level1": {"agent": [0.1, 0.0, -0.03, None, 0.25]}}, "agent"), end="")
        Lost to the reference lap by agent, seconds per lap:
          Level1  +0.32 in 4 of 5 sectors, most in sectors 5 (+0.25), 1 (+0.10)
        Sector: from a checkpoint to the next; 1 begins at the line. Medians over laps.
    """
    rows = []
    for course, by_policy in lost.items():
        sectors = by_policy.get(policy, [])
        known = {sector: seconds for sector, seconds in enumerate(sectors, 1) if seconds is not None}
        if known:
            worst = [sector for sector in sorted(known, key=lambda sector: -known[sector]) if known[sector] > 0.005]
            part = f" in {len(known)} of {len(sectors)} sectors" if len(known) < len(sectors) else ""
            most = ", ".join(f"{sector} ({known[sector]:+.2f})" for sector in worst[:_WORST])
            words = f", most in sector{'s' if worst[1:] else ''} {most}" if most else ""
            rows.append(f"  {course}  {sum(known.values()):+.2f}{part}{words}")
    if not rows:
        return ""
    head = f"Lost to the reference lap by {policy}, seconds per lap:"
    legend = "Sector: from a checkpoint to the next; 1 begins at the line. Medians over laps."
    return "\n".join([head, *rows, legend, ""])


def _columns(all_metrics: Iterable[Metrics]) -> tuple[Sequence[_Column], bool]:
    """Returns the columns, and whether the game is a kart race. In other games, each reward term has a column."""
    all_metrics = list(all_metrics)
    rates = [metrics["finish_rate"] for metrics in all_metrics]
    if any(rate["seeds"] if isinstance(rate, dict) else rate is not None for rate in rates):
        return _COLUMNS, True
    names = dict.fromkeys(name for metrics in all_metrics for name in metrics if name.startswith(_TERM))
    terms = [_Column(name.removeprefix(_TERM), name, "{:.1f}") for name in names]
    return [*_COLUMNS[:-1], _LENGTH, _COLUMNS[-1], *terms], False


def _cells(columns: Sequence[_Column], metrics: Metrics) -> dict[str, str]:
    known = ((column, metrics.get(column.metric)) for column in columns)
    texts = ((column.metric, column.number_format.format(value)) for column, value in known if value is not None)
    return {metric: re.sub(r"^-(?=0(\.0*)?$)", "", text) for metric, text in texts}  # not -0.0


def _layout(columns: Sequence[_Column], rows: Sequence[_Row]) -> str:
    """Returns the rows as text, without the columns that have no values."""
    used = [column for column in columns if any(column.metric in cells for _, cells in rows)]
    grid = Table(box=None, pad_edge=False, padding=(0, 0, 0, 1))  # so that the usual tables fit 80 columns
    grid.add_column("")
    for column in used:
        grid.add_column(column.header, justify="right", vertical="bottom")
    for label, cells in rows:
        grid.add_row(label, *(cells.get(column.metric, "-") for column in used if cells))
    console = Console(
        file=io.StringIO(),
        width=_WIDER_THAN_ANY_TABLE,
        color_system=None,
        force_terminal=False,
        force_jupyter=False,
        markup=False,
        emoji=False,
        highlight=False,
    )
    with console.capture() as captured:
        console.print(grid)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


_LISTS_OF_NUMBERS = re.compile(r"\[\n(?:\s+(?:-?[\d.][\d.e+-]*|null),?\n)+\s+\]")
"""Lists of numbers in indented JSON. They are written on one line: a race has more than a hundred split times."""


def write_json(path: str | Path, content: Any) -> None:
    """Writes a JSON file atomically. An existing file is replaced.

    Args:
        path: The file. A missing folder is created.
        content: Dicts, lists, numbers and text, without NaN.

    Raises:
        KartRewardsError: The file can't be written. An existing file stays as it was.
    """
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    text = _LISTS_OF_NUMBERS.sub(lambda match: f"[{' '.join(match[0][1:-1].split())}]", text)
    with atomic_write(path) as file:
        file.write_text(text, encoding="utf-8")
