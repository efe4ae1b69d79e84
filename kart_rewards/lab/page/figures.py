"""The numbers that the page of ``kart-rewards lab`` shows, as plain values for JSON.

* ``list_entry`` - a drive in the list of drives, without its scores
* ``drive_figures`` - what does not depend on rewards: variables, buttons, and the course
* ``score_figures`` - what a reward set pays on each frame of a drive, and the source of its terms
* ``summary_figures`` - the numbers of a drive in the list of drives
* ``packed`` - values as compressed JSON

This module imports no emulator.
"""

from __future__ import annotations

import gzip
import inspect
import json
import math
import re
import textwrap
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from kart_rewards.drivers import centrelines
from kart_rewards.drives import Drive
from kart_rewards.errors import KartRewardsError
from kart_rewards.integrations import find_game
from kart_rewards.lab.score import DriveScore, Loaded, outcome_rank, score_drive
from kart_rewards.ram import load_json
from kart_rewards.rewards import RewardTerm
from kart_rewards.scenario import Scoring

COURSES = "courses.json"
"""The file in a game's folder that describes the courses of its start states. HomebrewKart's build writes one."""


def list_entry(drive: Drive) -> dict[str, Any]:
    """Returns what the list of drives shows of a drive, and what identifies its game."""
    info = drive.info
    return {
        "label": info.label,
        "game": info.game,
        "state": info.state,
        "driver": info.driver,
        "outcome": drive.outcome,
        "rank": outcome_rank(drive),
        "frames": len(drive),
        "frames_per_second": info.frames_per_second,
        "variables": list(drive.columns),
    }


def drive_figures(drive: Drive, integrations: Path | None = None) -> dict[str, Any]:
    """Returns what does not depend on rewards.

    Args:
        drive: The drive.
        integrations: The only folder to look for the game in. None: the standard lookup.
    """
    return {
        "columns": {name: _plain(column) for name, column in drive.columns.items()},
        "buttons": list(drive.info.buttons),
        "masks": [*(drive.lead.tolist()[-1:] or [0]), *drive.masks.tolist()],  # of each frame
        "actions": drive.frame_actions if _is_chosen(drive) else [],
        "map": _course_map(drive, integrations),
    }


def _is_chosen(drive: Drive) -> bool:
    """Whether the actions say more than the buttons do."""
    return drive.info.frame_skip > 1


def _course_map(drive: Drive, integrations: Path | None) -> dict[str, Any] | None:
    """Returns the road of the drive's course; None if the game has no file of courses that describes it."""
    try:
        path = find_game(drive.info.game, integrations).folder / COURSES
        line = centrelines(path)[drive.info.state] if path.is_file() else None
    except (KartRewardsError, KeyError):
        return None
    if line is None or not {"kart_x", "kart_y"} <= drive.columns.keys():
        return None
    content: Any = load_json(path)
    course = next(each for each in content["courses"] if each["state"] == drive.info.state)
    units = float(content.get("position_units_per_pixel", 1))
    return {
        "line": [[x * units, y * units] for x, y in line],  # in the units of the variables
        "width": float(course.get("road_width", 0)) * units,
    }


def score_figures(drive: Drive, loaded: Loaded) -> dict[str, Any]:
    """Returns what a reward set pays on each frame of a drive.

    Raises:
        KartRewardsError: See ``score_drive``.
    """
    score = score_drive(drive, loaded)
    unpaid = [replace(term, weight=1.0) for term in loaded.scoring.terms if not term.weight]
    raw = score_drive(drive, Loaded(Scoring(unpaid, []), float, 1.0)).values if unpaid else {}
    return {
        "summary": summary_figures(score),
        "terms": [
            {
                "name": term.name,
                "weight": term.weight,
                "summary": term.summary,
                **_source(term),
                **asdict(score.terms[term.name]),
                "values": score.values[term.name].tolist(),
                "raw": raw[term.name].tolist() if term.name in raw else None,  # None: the values by the weight
            }
            for term in loaded.scoring.terms
        ],
        "rewards": score.rewards.tolist(),
    }


def summary_figures(score: DriveScore) -> dict[str, Any]:
    """Returns the numbers of a drive in the list of drives."""
    return {name: getattr(score, name) for name in ("plain", "transformed", "discounted", "ended_by", "end")}


def _source(term: RewardTerm) -> dict[str, Any]:
    """Returns the place of a term's definition, and its text, or the text of the file that declares the term."""
    definition: Any = term.definition
    while hasattr(definition, "func"):  # a partial
        definition = definition.func
    definition = inspect.unwrap(definition) if inspect.isroutine(definition) else definition
    if not (inspect.isroutine(definition) or inspect.isclass(definition)):
        definition = type(definition)
    path = Path(re.sub(r":\d+$", "", term.where))
    try:
        if path.suffix != ".py":  # scenario.json, or a script of Lua
            return {"where": term.where, "line": 1, "source": path.read_text(encoding="utf-8")[:_MOST_SOURCE]}
        lines, first = inspect.getsourcelines(definition)
    except (OSError, TypeError, ValueError):
        return {"where": term.where, "line": 1, "source": ""}
    return {"where": term.where, "line": first, "source": textwrap.dedent("".join(lines))}


_MOST_SOURCE = 20_000  # characters


def _plain(column: np.ndarray) -> list[Any]:
    """Returns a column as a list. JSON has no numbers that are not finite; they become None."""
    values: list[Any] = column.tolist()
    if column.dtype.kind != "f" or np.isfinite(column).all():
        return values
    return _without_infinity(values)


def _without_infinity(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_infinity(each) for each in value]
    return value if math.isfinite(value) else None


def packed(values: Any) -> bytes:
    """Returns values as JSON, compressed with gzip. Equal values give equal bytes."""
    text = json.dumps(values, separators=(",", ":"), allow_nan=False)
    return gzip.compress(text.encode(), compresslevel=1, mtime=0)
