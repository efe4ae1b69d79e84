"""What a unit test of a reward term needs: snapshots typed by hand, and what terms make of a trace.

* ``snapshot`` - one frame's RAM, in microseconds and without an emulator
* ``score`` - what reward terms pay over a sequence of snapshots
* ``ends_at`` - where done rules end a sequence of snapshots
* ``load_trace``, ``save_trace`` - a recorded drive, frame by frame; some come with the package
* ``drive`` and the drivers of ``kart_rewards.drivers``

Example:
    >>> from kart_rewards.rewards import wall
    >>> wall(snapshot(collision=1, speed=599))
    1.0
    >>> score([snapshot(), snapshot(collision=1)], [wall])
    {'wall': -10.0}
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kart_rewards.done import EpisodeDone, as_rule
from kart_rewards.drivers import (  # noqa: F401 - drivers are for tests, too
    CentrelineDriver,
    RandomDriver,
    TurnAround,
    WallHugger,
    drive,
    full_throttle,
    reverse,
)
from kart_rewards.errors import KartRewardsError, did_you_mean
from kart_rewards.files import atomic_write
from kart_rewards.integrations import INTEGRATIONS
from kart_rewards.ram import RamLayout, snapshot_class
from kart_rewards.rewards import EpisodeRewards, as_term
from kart_rewards.scripting import unique_by_name

TRACES = Path(__file__).parent / "traces"
"""The drives that come with the package, on HomebrewKart: see ``homebrew/record_traces.py`` for who drove them."""

START_OF_RACE = {
    "laps": 127,
    "checkpoint": 29,
    "num_checkpoints": 30,
    "speed": 0,
    "surface": 0x40,
    "collision": 0,
    "backward": 0,
    "current_frame": 360,
}
"""What the variables read at the retail game's start of Mario Circuit 1, time trial; the others read 0 here."""


_LAYOUT = RamLayout.from_file(INTEGRATIONS / "HomebrewKart-Snes" / "data.json")
_VARIABLES = {variable.name: variable for variable in _LAYOUT.variables}
_NOTHING = dict.fromkeys(_VARIABLES, 0)


def snapshot(**values: int) -> Any:
    """Returns a ``RamSnapshot`` of the start of a race, with some values changed.

    Raises:
        KartRewardsError: The games of this project have no such variable, or a value does not fit its type. For another
            game's variables use ``RamLayout.from_file(…).snapshot_class``.
    """
    for name, value in values.items():
        variable = _VARIABLES.get(name)
        if variable is None:
            hint = did_you_mean(name, _VARIABLES)
            raise KartRewardsError(f"no RAM variable {name!r}.{hint} There are: {', '.join(_VARIABLES)}")
        if not variable.lowest <= value <= variable.highest:
            raise KartRewardsError(
                f"{name}={value} does not fit its type {variable.type}, {variable.lowest} to {variable.highest}"
            )
    return _LAYOUT.snapshot_class(**(_NOTHING | START_OF_RACE | values))


def score(trace: Iterable[Any], terms: Iterable[Any]) -> dict[str, float]:
    """Returns what each term pays over a trace, weighted.

    Args:
        trace: Snapshots, a frame each. The first is an episode's reset frame: the terms see it, and it pays nothing.
        terms: Functions and classes, marked ``@reward_term`` or plain.

    Raises:
        KartRewardsError: A term raised, its value is no finite number, or two terms share a name.
    """
    rewards = EpisodeRewards(list(unique_by_name(map(as_term, terms)).values()))
    for frame, ram in enumerate(trace):
        rewards(ram)
        if frame == 0:
            rewards.discard()
    return rewards.episode_summary()["sum"]


def ends_at(trace: Iterable[Any], rules: Iterable[Any]) -> tuple[int, str] | None:
    """Returns the frame on which done rules end a trace, counted from 0, and the rule's name; None if they do not.

    Args:
        trace: Snapshots, a frame each. The first is an episode's reset frame: the rules see it, and it ends nothing.
        rules: Functions and classes, marked ``@done_rule`` or plain.

    Raises:
        KartRewardsError: A rule raised, or returned no truth value.
    """
    done = EpisodeDone([as_rule(rule) for rule in rules])
    for frame, ram in enumerate(trace):
        name = done(ram)
        if name and frame:
            return frame, name
    return None


def load_trace(name: str | Path) -> list[Any]:
    """Returns the snapshots of a recorded drive, one a frame; the first is an episode's reset frame.

    Args:
        name: ``race`` (five laps driven well), ``walls``, ``reverse`` or ``wander``, or the path of a ``.csv.gz`` file
            whose first row names the variables.

    Raises:
        KartRewardsError: There is no such trace, or the file is damaged.
    """
    path = Path(name) if str(name).endswith(".csv.gz") else TRACES / f"{name}.csv.gz"
    try:
        rows = csv.reader(io.StringIO(gzip.decompress(path.read_bytes()).decode()))
        make = snapshot_class(tuple(next(rows)))
        return [make(*map(int, row)) for row in rows]
    except FileNotFoundError:
        shipped = ", ".join(sorted(file.name.removesuffix(".csv.gz") for file in TRACES.glob("*.csv.gz")))
        raise KartRewardsError(f"{path}: no such trace; the package brings {shipped}") from None
    except (OSError, EOFError, zlib.error, ValueError, TypeError, StopIteration) as error:
        raise KartRewardsError(f"{path}: is not a trace: {error!r}") from None


def save_trace(path: str | Path, trace: Iterable[Any]) -> None:
    """Writes a drive as a file that ``load_trace`` reads.

    Args:
        path: The file, ``NAME.csv.gz``. It appears when it is complete.
        trace: Snapshots, a frame each; the first is an episode's reset frame.

    Raises:
        KartRewardsError: The file can't be written.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    for frame, ram in enumerate(trace):
        if frame == 0:
            rows.writerow(ram._fields)
        rows.writerow(ram)
    with atomic_write(path) as file:
        file.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))  # the same drive gives the same bytes
