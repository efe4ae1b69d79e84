"""Making start states: the save states in which episodes begin.

* ``command`` - ``kart-rewards state GAME NAME``: plays a game by script, by hand or both, and keeps its state

A state is kept only after a check: a fresh emulator loads the file, and the game runs on from it. A game needs its
folder with the ROM and, for conditions and variables, ``data.json``. It needs no other file and no other state.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import tyro

from kart_rewards.env.window import Window
from kart_rewards.errors import KartRewardsError, counted
from kart_rewards.files import atomic_write
from kart_rewards.games.condition import Condition
from kart_rewards.games.inputs import Held, format_inputs, read_inputs
from kart_rewards.games.session import NOTHING, Moment, Session
from kart_rewards.games.state_window import StateWindow
from kart_rewards.integrations import Game, find_folder, find_game, writable
from kart_rewards.ram import load_json
from kart_rewards.training.options import GamesFolder

_NAME = re.compile(r"\w[\w .+-]*")


def command(
    game: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="GAME")],
    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")],
    /,
    play: bool = False,
    inputs: Path | None = None,
    until: str | None = None,
    every: int | None = None,
    max_frames: int = 36_000,
    start: str | None = None,
    record: Path | None = None,
    overwrite: bool = False,
    default: bool = False,
    integrations_path: GamesFolder = None,
) -> None:
    """Makes a start state: plays the game by script, by hand or both, checks the state, and keeps it.

    It prints the values of the variables in the state; with --every, only the names of the states.

    Args:
        game: Name of the game's folder.
        name: Name of the state. The file is GAME/NAME.state.
        play: Play by hand in a window. The window lists the keys; F5 keeps the state. With --inputs, the script runs
            first.
        inputs: A script of the buttons to press. Its lines hold a number of frames and the buttons held, such as "60"
            or "30 B+LEFT". A drive and a .bk2 movie work, too. After the end of the script no button is pressed.
        until: Stop on the first frame after which this condition holds, such as "laps == 127 and current_frame > 60".
            With --play and without --inputs, the game pauses there.
        every: Keep several states along --inputs, NAME_1, NAME_2 and so on, this number of frames apart. With --until,
            the first is on the first frame on which it holds, and each of the others on the first such frame at least
            this number of frames later. Training can start in all of them: --state 'NAME_*'.
        max_frames: Maximum number of frames to wait for --until. With --every, the inputs end the wait.
        start: State to begin from: a name or a path. By default the game is switched on, or begins where the movie
            begins.
        record: Write the buttons that were pressed up to the state to this file, as a script for --inputs.
        overwrite: Replace existing files.
        default: Make this state the default for training, in metadata.json.
    """
    if not (play or inputs or until):
        raise KartRewardsError("say how to reach the state: --play, --inputs FILE or --until CONDITION")
    if max_frames < 1:
        raise KartRewardsError(f"--max-frames must be 1 or more, not {max_frames}")
    if every is not None and every < 1:
        raise KartRewardsError(f"--every must be 1 or more, not {every}")
    if every and (play or record or default or not inputs):
        raise KartRewardsError(
            "--every keeps states along --inputs FILE; it can't be used with --play, --record or --default"
        )
    name = name.removesuffix(".state")
    if not _NAME.fullmatch(name):
        raise KartRewardsError(f"{name!r} can't be a state's name: use letters, digits, _ . + - and spaces")
    found = find_folder(game, integrations_path) or find_game(game, integrations_path)
    _refuse_existing([file for file in (None if every else found.folder / f"{name}.state", record) if file], overwrite)
    if default:
        _metadata(found)  # an unreadable file must be detected before somebody plays

    session = Session(found, start, inputs)
    script = read_inputs(inputs, session.console.buttons) if inputs else []
    layout = session.console.layout
    condition = Condition(until, layout.names if layout else ()) if until else None

    def keep() -> None:
        nonlocal found
        found = writable(found)  # not earlier: a failed attempt must not leave a copy of the game
        _keep(session, found, name, record, default)

    if every:
        moments = _moments(session, script, condition, every)
        _refuse_existing(_numbered(found, name), overwrite)
        _keep_several(session, writable(found), name, moments)
        return
    if not play:
        _run(session, script, condition, max_frames)
        keep()
        return
    instead = "To reach the state by script instead: --inputs FILE or --until CONDITION, without --play"
    with Window(f"{game}: {name}", instead=instead) as window:  # before the script runs: there may be no display
        _run(session, script, condition if inputs else None, max_frames)
        StateWindow(session, window, f"f5 keeps {name}.state", keep, pause_at=None if inputs else condition).play()
    if not session.saved:
        raise KartRewardsError("the window was closed before a state was kept: F5 keeps it")


def _refuse_existing(files: Iterable[Path], overwrite: bool) -> None:
    for file in files:
        if file.exists() and not overwrite:
            raise KartRewardsError(f"{file}: exists already; --overwrite replaces it")


def _save(session: Session, game: Game, name: str) -> str:
    """Writes the state, and returns a line that says so."""
    path = game.folder / f"{name}.state"
    session.save(path)
    frames = counted(len(session.pressed), "frame")
    return f"kept {path}: {frames} from {session.origin}; loaded again and checked"


def _numbered(game: Game, name: str) -> list[Path]:
    """Returns the states that ``--every`` has kept: NAME_1, NAME_2 and so on."""
    states = sorted(game.folder.glob(f"{name}_*.state"))
    return [path for path in states if path.stem[len(name) + 1 :].isdecimal() and path.is_file()]


def _keep_several(session: Session, game: Game, name: str, moments: Iterable[Moment]) -> None:
    """Writes all states, or none. Deletes those of an earlier call: --state 'NAME_*' would mean them, too."""
    earlier, kept = _numbered(game, name), []
    try:
        for number, moment in enumerate(moments, 1):
            session.go_to(moment)
            kept.append(game.folder / f"{name}_{number}.state")
            print(_save(session, game, kept[-1].stem), flush=True)
    except BaseException:
        earlier, kept = kept, []
        raise
    finally:
        for path in {*earlier} - {*kept}:
            path.unlink(missing_ok=True)


def _keep(session: Session, game: Game, name: str, record: Path | None, default: bool) -> None:
    """Writes the state and the files that belong to it, and prints the values of the variables."""
    print(_save(session, game, name), *session.table(), sep="\n", flush=True)
    if record:
        with atomic_write(record) as file:
            header = f"# {game.name}, {name}: from {session.origin}\n"
            file.write_bytes((header + format_inputs(session.pressed)).encode())
    if default:
        with atomic_write(game.folder / "metadata.json") as file:
            metadata = _metadata(game) | {"default_state": name}
            file.write_bytes((json.dumps(metadata, indent=2, ensure_ascii=False) + "\n").encode())


def _metadata(game: Game) -> dict[str, Any]:
    path = game.folder / "metadata.json"
    return load_json(path) if path.exists() else {}


def _frames(script: Iterable[Held]) -> Iterator[frozenset[str]]:
    """Yields the buttons of each frame of a script."""
    return (held for count, held in script for _ in range(count))


def _run(session: Session, script: Iterable[Held], until: Condition | None, max_frames: int) -> None:
    """Presses the buttons of the script. With a condition, ends on the first frame after which it holds."""
    frames = _frames(script)
    if until is None:
        for held in frames:
            session.step(held)
        return
    for held in itertools.islice(itertools.chain(frames, itertools.repeat(NOTHING)), max_frames):
        session.step(held)
        if until(session.console.ram()):
            return
    raise KartRewardsError(
        f"{until.text!r} did not hold on any of {max_frames} frames (--max-frames); after the last frame: "
        f"{until.values(session.console.ram())}"
    )


def _moments(session: Session, script: Iterable[Held], condition: Condition | None, every: int) -> list[Moment]:
    """Presses the buttons of the script, and returns moments along it; see ``command``."""
    moments: list[Moment] = []
    for held in _frames(script):
        session.step(held)
        is_next = not moments or len(session.pressed) - moments[-1].frames >= every
        if is_next and (condition is None or condition(session.console.ram())):
            moments.append(session.moment())
    if not moments:
        raise KartRewardsError(
            f"{condition.text!r} did not hold on any frame of the inputs" if condition else "the inputs have no frame"
        )
    return moments
