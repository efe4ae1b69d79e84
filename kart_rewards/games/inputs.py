"""What is pressed, frame by frame: scripts of buttons and frames, and recorded movies.

* ``read_inputs`` - a text script (``parse_inputs``), or a ``.bk2`` movie as stable-retro records them
* ``movie_start`` - the save state that a movie begins from
* ``button_masks`` - inputs as the emulator takes them, one mask a frame
* ``format_inputs`` - inputs as a text script

A script says on each line for how many frames which buttons are held. ``#`` begins a comment::

    60            # one second of nothing: the title appears
    2 START
    30 B+LEFT

stable-retro is imported only where a movie is read.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kart_rewards.errors import KartRewardsError

Held = tuple[int, frozenset[str]]
"""For how many frames which buttons are held."""

_LINE = re.compile(r"(?P<frames>\d{1,9})(\s+(?P<buttons>\S.*))?", re.ASCII)


def read_inputs(path: str | Path, buttons: Sequence[str | None]) -> list[Held]:
    """Returns what a file presses, in order.

    Args:
        path: A text script, or a movie whose name ends in ``.bk2``; of a movie, player 1 is taken.
        buttons: The console's buttons, in the core's order.

    Raises:
        KartRewardsError: The file can't be read, a line is not frames and buttons, or the console lacks a button.
    """
    if str(path).endswith(".bk2"):
        return list(_read_movie(path, buttons))
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise KartRewardsError(f"{path}: no such file") from None
    except OSError as error:
        raise KartRewardsError(f"{path}: can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise KartRewardsError(f"{path}: is neither a text script of buttons nor named .bk2 as a movie is") from None
    return parse_inputs(text, buttons, str(path))


def parse_inputs(text: str, buttons: Sequence[str | None], source: str = "script") -> list[Held]:
    """Returns what a text script presses, in order. ``source`` is what errors call it; see ``read_inputs``.

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
        unreadable = "stable-retro can't read this movie: it is damaged, or begins at power-on and not from a state"
        what = unreadable if Path(path).is_file() else "no such file"
        raise KartRewardsError(f"{path}: {what}") from None


def movie_start(path: str | Path) -> bytes:
    """Returns the emulator's snapshot that a movie begins from.

    Raises:
        KartRewardsError: The file is not a movie.
    """
    return bytes(_open_movie(path).get_state())


def button_masks(inputs: Iterable[Held], buttons: Sequence[str | None]) -> Iterator[np.ndarray]:
    """Yields, a frame each, which buttons are down: shape (number of buttons,), dtype uint8, in the core's order.

    Args:
        inputs: What is held for how long.
        buttons: The console's buttons, in the core's order.

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
    """Returns the text script of what was held on each frame.

    Example:
        >>> format_inputs([frozenset(), frozenset(), frozenset({"LEFT", "B"})])
        '2\\n1 B+LEFT\\n'
    """
    return "".join(f"{count} {'+'.join(sorted(held))}".strip() + "\n" for count, held in _run_lengths(frames))
