"""Unit tests of reward terms and done rules, without an emulator.

* ``snapshot`` - returns the RAM of one frame, with the values that a test sets
* ``score`` - returns the sum of each reward term over a trace
* ``ends_at`` - returns the frame on which done rules end a trace
* ``score_episode`` - returns both, of the part of a trace that is one episode
* ``load_trace`` - reads a recorded trace; some are part of the package
* ``drive`` and the drivers of ``kart_rewards.drivers``

A trace is a sequence of snapshots, one per emulated frame. The first is the snapshot after an episode's reset.

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
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kart_rewards.done import EpisodeDone, as_rule, episode_calls
from kart_rewards.drivers import (  # noqa: F401 - public here, too
    CentrelineDriver,
    RandomDriver,
    TurnAround,
    WallHugger,
    drive,
    full_throttle,
    reverse,
)
from kart_rewards.drives import SHIPPED, SUFFIX, Drive, load_drive, shipped_drive
from kart_rewards.errors import KartRewardsError, did_you_mean
from kart_rewards.integrations import INTEGRATIONS
from kart_rewards.ram import RamLayout, shown, snapshot_class
from kart_rewards.rewards import EpisodeRewards, as_term
from kart_rewards.scenario import load_scoring
from kart_rewards.scripting import Script, plain_action, unique_by_name

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
"""Values in the retail game at the start of a time trial on Mario Circuit 1. ``snapshot`` sets other variables to 0."""

_OLD_SUFFIX = ".csv.gz"

_LAYOUT = RamLayout.from_file(INTEGRATIONS / "HomebrewKart-Snes" / "data.json")


def snapshot(**values: int) -> Any:
    """Returns a ``RamSnapshot`` of the start of a race, with some values replaced.

    It has the variables of HomebrewKart. For another game, use ``RamLayout.from_file(…).snapshot``.

    Args:
        values: Variable -> value.

    Raises:
        KartRewardsError: A variable is unknown, or a value is not an integer in the range of its type.
    """
    return _LAYOUT.snapshot(**(START_OF_RACE | values))


def score(trace: Iterable[Any], terms: Any, buttons: Any = None, actions: Any = None) -> dict[str, float]:
    """Returns the weighted sum of each term over a trace.

    Args:
        trace: One snapshot per frame, or a ``kart_rewards.drives.Drive``. The first is from an episode's reset: the
            terms are called with it, but it is not paid.
        terms: Functions and classes, with or without ``@reward_term``; one of them or several.
        buttons: For terms that ask for ``buttons``: for each frame, the names of the buttons that are held. By default
            those of the drive.
        actions: For terms that ask for ``action``: the agent's action on each frame; None on the first. By default
            those of the drive.

    Returns:
        Term -> weighted sum.

    Raises:
        KartRewardsError: The trace is not a sequence of snapshots, a term asks for an input that is not given, a term
            raised an exception, its value is not a finite number, or two terms have the same name.

    Example:
        >>> def hop(ram, buttons):
        ...     return "L" in buttons
        >>> score([snapshot()] * 3, hop, buttons=[{}, {"L"}, {"B", "L"}])
        {'hop': 2.0}
    """
    rewards = EpisodeRewards(list(unique_by_name(map(as_term, _several(terms))).values()))
    for number, frame in enumerate(_frames(trace, buttons, actions, rewards.calls.scripts)):
        rewards(*frame)
        if number == 0:
            rewards.discard()
    return rewards.episode_summary()["sum"]


def ends_at(trace: Iterable[Any], rules: Any, buttons: Any = None, actions: Any = None) -> tuple[int, str] | None:
    """Returns the frame on which done rules end a trace.

    Args:
        trace: One snapshot per frame, or a drive. The first is from an episode's reset: the rules are called with it,
            but it does not end the episode.
        rules: Functions and classes, with or without ``@done_rule``; one of them or several.
        buttons, actions: See ``score``.

    Returns:
        The index of the frame in the trace and the name of the rule. None if no rule ends the trace.

    Raises:
        KartRewardsError: The trace is not a sequence of snapshots, a rule asks for an input that is not given, a rule
            raised an exception, or its value is not a bool or an integer.
    """
    done = EpisodeDone([as_rule(rule) for rule in _several(rules)])
    for number, frame in enumerate(_frames(trace, buttons, actions, done.calls.scripts)):
        rule = done(*frame)
        if rule and number:
            return number, rule.name
    return None


def score_episode(
    trace: Iterable[Any],
    scripts: Any,
    weights: Mapping[str, float] | None = None,
    buttons: Any = None,
    actions: Any = None,
) -> tuple[dict[str, float], tuple[int, str] | None]:
    """Scores a trace up to the frame on which a rule ends the episode, as the environment does.

    A class that is a term and a rule has one instance for both.

    Args:
        trace: One snapshot per frame, or a drive. The first is from an episode's reset: it is not paid, and does not
            end the episode.
        scripts: Terms and rules: functions and classes with marks; one of them or several. A function or class without
            a mark is a term.
        weights: Term -> weight; replaces the term's own.
        buttons, actions: See ``score``.

    Returns:
        Term -> weighted sum; and what ``ends_at`` returns.

    Raises:
        KartRewardsError: See ``score`` and ``ends_at``.

    Example:
        >>> from kart_rewards.done import race_finished
        >>> from kart_rewards.rewards import wall
        >>> score_episode([snapshot(), snapshot(collision=1), snapshot(laps=133)], [wall, race_finished])
        ({'wall': -10.0}, (2, 'race_finished'))
    """
    scoring = load_scoring(None, _several(scripts), weights)
    rewards, done = episode_calls(scoring.terms, scoring.done)
    end = None
    for number, frame in enumerate(_frames(trace, buttons, actions, [*scoring.terms, *scoring.done])):
        rewards(*frame)
        rule = done(*frame)
        if number == 0:
            rewards.discard()
        elif rule:
            end = number, rule.name
            break
    return rewards.episode_summary()["sum"], end


def _several(scripts: Any) -> Iterable[Any]:
    """One term or rule as a list of one."""
    return [scripts] if callable(scripts) or not isinstance(scripts, Iterable) else scripts


def _frames(trace: Any, buttons: Any, actions: Any, scripts: Iterable[Script]) -> Iterator[tuple[Any, Any, Any]]:
    """Yields the snapshot, the buttons and the action of each frame of a trace."""
    if hasattr(trace, "_fields") or not isinstance(trace, Iterable):  # a snapshot is a tuple of numbers
        what = "a single snapshot" if hasattr(trace, "_fields") else shown(trace)
        raise KartRewardsError(f"a trace must be a sequence of snapshots, such as [snapshot()], not {what}")
    if isinstance(trace, str):
        raise KartRewardsError(f"a trace must be a sequence of snapshots, not {shown(trace)}: did you mean load_trace?")
    frames = list(trace)
    odd = [frame for frame in frames if isinstance(frame, (str, bytes, int, float, list, dict, type(None)))]
    if odd or not frames:
        what = shown(odd[0]) if odd else "an empty one"
        raise KartRewardsError(f"a trace must be a sequence of snapshots, such as [snapshot()], not {what}")
    if isinstance(trace, Drive) and trace.info.buttons:
        buttons = trace.buttons if buttons is None else buttons
        actions = trace.frame_actions if actions is None else actions
    for name, argument, values in (("buttons", "buttons", buttons), ("action", "actions", actions)):
        for script in scripts:
            if name in script.inputs and values is None:
                raise KartRewardsError(
                    f"{script.name!r} ({script.where}) asks for {name!r}, which this trace does not have: pass "
                    f"{argument}=[…] with one element per frame, or a drive"
                )
        if values is not None and not hasattr(values, "__len__"):
            raise KartRewardsError(f"{argument} must be a list with one element per frame, not {shown(values)}")
        if values is not None and len(values) != len(frames):
            raise KartRewardsError(f"there are {len(values)} {argument} for {len(frames)} frames: pass one per frame")
    for each in () if buttons is None else buttons:
        if isinstance(each, str) or not isinstance(each, Iterable):
            raise KartRewardsError(
                f'buttons must be a list of sets of names, such as [{{"B", "LEFT"}}], with one set per frame: not of '
                f"{shown(each)}"
            )
    held = [frozenset()] * len(frames) if buttons is None else list(map(frozenset, buttons))
    chosen = [None] * len(frames) if actions is None else list(map(plain_action, actions))
    yield from zip(frames, held, chosen, strict=True)


def load_trace(name: str | Path) -> Drive:
    """Returns a recorded trace: one snapshot per frame. The first is from an episode's reset.

    Args:
        name: ``race`` (a good drive of five laps), ``walls``, ``reverse`` or ``wander``; or the path of a ``.drive``
            file, or of a ``.csv.gz`` file of version 0.1, whose first row is the names of the variables.

    Returns:
        The drive: a sequence of snapshots. That of a ``.csv.gz`` has no buttons and no actions.

    Raises:
        KartRewardsError: The trace does not exist, or the file is damaged.
    """
    path = Path(name)
    if path.name.endswith(_OLD_SUFFIX):
        return Drive.of_snapshots(_rows(path), path.name.removesuffix(_OLD_SUFFIX))
    shipped = shipped_drive(str(name))
    if path.suffix != SUFFIX and shipped is None:
        names = sorted(file.name.removesuffix(SUFFIX) for file in SHIPPED.glob(f"*{SUFFIX}"))
        hint = did_you_mean(str(name), names)
        raise KartRewardsError(f"{name}: no such trace; the package has {', '.join(names)}.{hint}")
    return load_drive(shipped or path)


def _rows(path: Path) -> list[Any]:
    """Returns the snapshots in a file of version 0.1."""
    try:
        rows = csv.reader(io.StringIO(gzip.decompress(path.read_bytes()).decode()))
        make = snapshot_class(tuple(next(rows)))
        return [make(*map(_value, row)) for row in rows]
    except FileNotFoundError:
        raise KartRewardsError(f"{path}: no such trace") from None
    except (OSError, EOFError, zlib.error, csv.Error, ValueError, TypeError, StopIteration) as error:
        raise KartRewardsError(f"{path}: is not a trace: {error!r}") from None


def _value(cell: str) -> int | tuple[int, ...]:
    return tuple(map(int, cell[1:-1].split())) if cell[:1] == "[" else int(cell)
