"""Inputs: the buttons that are held in each frame, from a text script or a recorded movie.

* ``read_inputs`` - reads a text script, a drive, or a ``.bk2`` movie that stable-retro recorded
* ``parse_inputs`` - reads the text of a script
* ``format_inputs`` - writes inputs as the text of a script
* ``button_masks`` - inputs for the emulator: one mask per frame
* ``movie_start`` - the save state that a movie starts from
* ``Held`` - a number of frames and the buttons held in them

Each line of a script is a number of frames and the buttons held in them. ``#`` starts a comment::

    60            # one second without buttons: the title appears
    2 START
    30 B+LEFT

stable-retro is imported only when a movie is read.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kart_rewards.drives import SUFFIX, load_drive
from kart_rewards.errors import KartRewardsError

MOVIES = (".bk2", SUFFIX)
"""The suffixes of recordings with a start state of their own."""

Held = tuple[int, frozenset[str]]
"""A number of frames, and the names of the buttons held in them."""

_LINE = re.compile(r"(?P<frames>\d{1,9})(\s+(?P<buttons>\S.*))?", re.ASCII)


def read_inputs(path: str | Path, buttons: Sequence[str | None]) -> list[Held]:
    """Returns the inputs in a file, in order.

    Args:
        path: A text script; a drive if the name ends in ``.drive``; or a movie if it ends in ``.bk2``. Of a movie, the
            inputs of player 1 are read.
        buttons: The console's buttons, in the core's order.

    Raises:
        KartRewardsError: The file can't be read, a line is wrong, a script is empty, or the console does not have a
            button.
    """
    if str(path).endswith(".bk2"):
        return list(_read_movie(path, buttons))
    if str(path).endswith(SUFFIX):
        return list(_run_lengths(load_drive(path).all_buttons))
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise KartRewardsError(f"{path}: no such file") from None
    except OSError as error:
        raise KartRewardsError(f"{path}: can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise KartRewardsError(
            f"{path}: is not a text script of buttons. A movie's name must end in .bk2, a drive's in {SUFFIX}"
        ) from None
    inputs = parse_inputs(text, buttons, str(path))
    if not inputs:
        raise KartRewardsError(f"{path}: has no inputs: each line is a number of frames and the buttons, '30 B+LEFT'")
    return inputs


def parse_inputs(text: str, buttons: Sequence[str | None], source: str = "script") -> list[Held]:
    """Returns the inputs in the text of a script, in order.

    Args:
        text: The script. See the module's docstring.
        buttons: The console's buttons, in the core's order.
        source: The name of the script, for error messages.

    Raises:
        KartRewardsError: A line is wrong, or the console does not have a button.

    Example:
        >>> parse_inputs("60  # the title appears\\n2 START", ["B", "START"])
        [(60, frozenset()), (2, frozenset({'START'}))]
    """
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    return [_parse_line(line, buttons, f"{source}, line {i}") for i, line in enumerate(lines, start=1) if line]


def _parse_line(line: str, buttons: Sequence[str | None], where: str) -> Held:
    match = _LINE.fullmatch(line)
    if not match or not int(match["frames"]):
        raise KartRewardsError(
            f"{where}: {line!r} is not a number of frames (1 or more) and the buttons held, such as '30 B+LEFT' or '60'"
        )
    held = frozenset(name.strip().upper() for name in match["buttons"].split("+")) if match["buttons"] else frozenset()
    unknown = sorted(held - set(buttons))
    if unknown:
        known = ", ".join(name for name in buttons if name)
        raise KartRewardsError(f"{where}: this console has no button {unknown[0]!r}; it has {known}")
    return int(match["frames"]), held


def _read_movie(path: str | Path, buttons: Sequence[str | None]) -> Iterator[Held]:
    movie = _open_movie(path)

    def frames() -> Iterator[frozenset[str]]:
        while movie.step():
            yield frozenset(name for i, name in enumerate(buttons) if name and movie.get_key(i, 0))

    yield from _run_lengths(frames())


def _open_movie(path: str | Path) -> Any:
    from stable_retro import Movie

    try:
        return Movie(str(path))
    except RuntimeError:
        unreadable = "stable-retro can't read this movie: it is damaged, or it starts at power-on and not from a state"
        problem = unreadable if Path(path).is_file() else "no such file"
        raise KartRewardsError(f"{path}: {problem}") from None


def movie_start(path: str | Path) -> bytes:
    """Returns the emulator's snapshot that a movie or a drive starts from.

    Raises:
        KartRewardsError: The file can't be read as a movie or as a drive.
    """
    if str(path).endswith(SUFFIX):
        return load_drive(path).start
    return bytes(_open_movie(path).get_state())


def button_masks(inputs: Iterable[Held], buttons: Sequence[str | None]) -> Iterator[np.ndarray]:
    """Yields the buttons of each frame as a mask: 1 for a button that is held, else 0.

    Args:
        inputs: The inputs, in order.
        buttons: The console's buttons, in the core's order.

    Yields:
        The mask of one frame: shape (number of buttons,), dtype uint8, in the core's order.

    Example:
        >>> [mask.tolist() for mask in button_masks([(2, frozenset({"START"}))], ["B", "START"])]
        [[0, 1], [0, 1]]
    """
    for frames, held in inputs:
        mask = np.array([name in held for name in buttons], np.uint8)
        yield from itertools.repeat(mask, frames)


def _run_lengths(frames: Iterable[frozenset[str]]) -> Iterator[Held]:
    for held, group in itertools.groupby(frames):
        yield sum(1 for _ in group), held


def format_inputs(frames: Iterable[frozenset[str]]) -> str:
    """Returns the text of the script that holds the same buttons.

    Args:
        frames: The names of the buttons held in each frame.

    Example:
        >>> format_inputs([frozenset(), frozenset(), frozenset({"LEFT", "B"})])
        '2\\n1 B+LEFT\\n'
    """
    return "".join(f"{count} {'+'.join(sorted(held))}".strip() + "\n" for count, held in _run_lengths(frames))
