"""Making start states: the save states that episodes begin from.

* ``make_state`` - the work of ``python -m kart_rewards state``: run a game by a script or by hand, and keep its state
* ``Console`` - a game's emulator, from power-on, with what was pressed since
* ``Rewind`` - the way back, in bounded memory

A state is kept only after it was loaded again, from the file, in a fresh emulator. It needs a game's folder with its
ROM and, for conditions and variables, its ``data.json``; no other file and no other state.
"""

from __future__ import annotations

import gzip
import itertools
import json
import re
import textwrap
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import stable_retro

from kart_rewards.env.core import start_emulator
from kart_rewards.env.window import PANEL_COLUMNS, Lit, Window, key_help
from kart_rewards.errors import KartRewardsError
from kart_rewards.games.condition import Condition
from kart_rewards.games.inputs import Held, button_masks, format_inputs, movie_start, read_inputs
from kart_rewards.integrations import Game, find_game
from kart_rewards.ram import RamLayout, load_json, read_snapshot

_FRAMES_TO_COUNT = 10  # in which current_frame must count up, as KartEnv asks of a state
_FRAMES_TO_MOVE = 60  # in which something must change, in a game without current_frame
_FRAMES_PER_MOMENT = 4  # between the points that a rewind stops at
_REWIND_BYTES = 64 * 2**20  # about three minutes of a SNES
_FAST = 8  # times as fast
_KEYS = [
    "f5   keep the state",
    "1-9  choose a slot",
    "f2   save the slot",
    "f3   load the slot",
    "p    pause, play",
    "n    next frame",
    "f    fast (hold)",
    "backspace  rewind (hold)",
    "f9   begin again",
    "esc  end",
]
_ARROWS = frozenset(["up", "down", "left", "right"])
_SLOTS = frozenset("123456789")
_NOTHING: frozenset[str] = frozenset()
_NAME = re.compile(r"\w[\w .+-]*")


def make_state(
    game_name: str,
    name: str,
    *,
    integrations: str | Path,
    max_frames: int,
    play: bool = False,
    inputs: Path | None = None,
    until: str | None = None,
    start: str | None = None,
    record: Path | None = None,
    overwrite: bool = False,
    default: bool = False,
) -> None:
    """Makes ``integrations/GAME/NAME.state``, and prints what the RAM reads in it.

    Args:
        game_name: The game's folder.
        name: What the state is to be called.
        integrations: The folder of games.
        max_frames: How many frames to wait for ``until``.
        play: Open a window, after the inputs if there are any, and keep the state when its key is pressed.
        inputs: A script or movie of what to press: see ``kart_rewards.games.inputs``. After its end nothing is pressed.
        until: A condition over the RAM: see ``kart_rewards.games.condition``. The inputs end on the first frame after which
            it holds; without inputs, the player's game pauses there.
        start: The state to begin from: a name, or a path. By default the game is switched on, or begins where the movie
            does.
        record: Where to write a script of all that was pressed up to the state.
        overwrite: Whether files may be replaced.
        default: Whether ``metadata.json`` is to name the state as the one to start from.

    Raises:
        KartRewardsError: Something is wrong with the arguments or the files, the condition never held, or the state did
            not stand the check.
    """
    if not (play or inputs or until):
        raise KartRewardsError("say how to get there: --play, --inputs FILE or --until CONDITION")
    if max_frames < 1:
        raise KartRewardsError(f"--max-frames must be 1 or more, not {max_frames}")
    name = name.removesuffix(".state")
    if not _NAME.fullmatch(name):
        raise KartRewardsError(f"{name!r} can't be a state's name: use letters, digits, _ . + - and spaces")
    folder = Path(integrations) / game_name
    game = Game(game_name, folder) if list(folder.glob("rom.*")) else find_game(game_name, integrations)
    path, metadata_path = folder / f"{name}.state", folder / "metadata.json"
    for file in (path, record):
        if file and file.exists() and not overwrite:
            raise KartRewardsError(f"{file}: is there already; --overwrite replaces it")
    metadata = load_json(metadata_path) if default and metadata_path.exists() else {}

    console = Console(game, start, inputs)
    script = read_inputs(inputs, console.buttons) if inputs else []
    condition = Condition(until, console.layout.names if console.layout else ()) if until else None
    kept = False

    def keep() -> None:
        nonlocal kept
        console.save(path)
        kept = True
        what = f"kept {path}: {len(console.pressed)} frames from {console.begins}; loaded again and checked"
        print(what, *console.table(), sep="\n", flush=True)
        if record:
            header = f"# {game_name}, {name}: from {console.begins}\n"
            _write(record, (header + format_inputs(console.pressed)).encode())
        if default:
            text = json.dumps(metadata | {"default_state": name}, indent=2, ensure_ascii=False) + "\n"
            _write(metadata_path, text.encode())

    if not play:
        _run(console, script, condition, max_frames)
        keep()
        return
    with Window(f"{game_name}: {name}") as window:  # first of all: there may be no display
        _run(console, script, condition if inputs else None, max_frames)
        _Player(console, window, f"f5 keeps {path.name}", keep, None if inputs else condition).play()
    if not kept:
        raise KartRewardsError("the window was closed, and no state was kept: f5 keeps it")


def _write(path: Path, content: bytes, check: Callable[[Path], None] | None = None) -> None:
    """Writes a file whole or not at all; under its name only after the check of it has not raised."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.write_bytes(content)
        if check:
            check(temporary)
        temporary.replace(path)
    except OSError as error:
        raise KartRewardsError(f"{path}: can't be written: {error.strerror}") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class Moment:
    """A point to come back to.

    Args:
        snapshot: The emulator's, compressed.
        pressed: What was held on each frame; later frames may follow.
        frames: How many of them lie before this point.
    """

    snapshot: bytes
    pressed: list[frozenset[str]]
    frames: int


class Console:
    """A game's emulator, and what was pressed since it began. There is one a process.

    Args:
        game: The game.
        start: The state that it begins from. None: it is switched on. One frame passes then, as in stable-retro.
        movie: The inputs: where they are a movie and there is no ``start``, the game begins where the movie does.

    Attributes:
        layout: The variables of ``data.json``; None without this file.
        system: The console's name, such as ``Snes``.
        buttons: Its buttons, in the core's order.
        begins: Where the game began, for a person.
        pressed: What was held on each frame since.
        screen: The latest picture, uint8 (height, width, 3).
        beginning: The way back to where it began.

    Raises:
        KartRewardsError: Something about the game's files or the state is wrong.
    """

    def __init__(self, game: Game, start: str | None = None, movie: Path | None = None) -> None:
        self._rom = game.rom()
        has_data = (game.folder / "data.json").is_file()
        self.layout = RamLayout.from_file(game.json_path("data")) if has_data else None
        self.system: str = stable_retro.get_romfile_system(str(self._rom))
        self.buttons: list[str | None] = stable_retro.get_system_info(self.system)["buttons"]
        self.begins, snapshot = "power-on", None
        if start:
            self.begins, snapshot = f"state {start}", game.load_state(start)
        elif movie and movie.suffix == ".bk2":
            self.begins, snapshot = f"the start of {movie}", movie_start(movie)
        self.pressed: list[frozenset[str]] = []
        self._power_on()
        self.frames_per_second: float = self._emulator.get_screen_rate()
        if snapshot is not None and not self._emulator.set_state(snapshot):
            raise KartRewardsError(
                f"{self.begins}: the emulator refuses it: it is damaged, or another console's or core's"
            )
        self.beginning = self.moment()
        if snapshot is not None:
            self.go_to(self.beginning)  # for its picture

    def _power_on(self) -> None:
        self._emulator: Any = None
        self._data: Any = None
        self._emulator = start_emulator(self._rom)
        self._data = stable_retro.data.GameData()
        self._emulator.configure_data(self._data)
        self._emulator.step()
        self._read: Callable[[], Any] = self.layout.reader(self._data) if self.layout else tuple
        self.screen: np.ndarray = self._emulator.get_screen()

    def step(self, held: frozenset[str] = _NOTHING) -> None:
        """Runs a frame with these buttons held."""
        self.pressed.append(held)
        self._step(held)

    def _step(self, held: frozenset[str] = _NOTHING) -> None:
        self._emulator.set_button_mask(next(button_masks([(1, held)], self.buttons)), 0)
        self._emulator.step()
        self.screen = self._emulator.get_screen()

    def ram(self) -> Any:
        """Returns the ``RamSnapshot`` of now; an empty one without ``data.json``."""
        return self._read()

    def table(self) -> list[str]:
        """Returns a line for each variable: its name and its value."""
        names = self.layout.names if self.layout else ()
        return [f"{name:<28} {value:>11}" for name, value in zip(names, self.ram(), strict=True)]

    def moment(self) -> Moment:
        """Returns the way back to now."""
        return Moment(zlib.compress(self._emulator.get_state(), level=1), self.pressed, len(self.pressed))

    def go_to(self, moment: Moment) -> None:
        """Goes to another point, with what had been pressed until then."""
        snapshot = zlib.decompress(moment.snapshot)
        self._emulator.set_state(snapshot)
        self._step()  # for the picture, of which the cores keep none in a snapshot
        self._emulator.set_state(snapshot)
        self.pressed = moment.pressed[: moment.frames]  # a copy: other moments keep what came after

    def save(self, path: Path) -> None:
        """Writes a ``.state`` of now, in stable-retro's format, once a fresh emulator has loaded it and run on.

        Raises:
            KartRewardsError: It can't be written, or does not stand the check.
        """
        snapshot, memory, screen = self._emulator.get_state(), dict(self._data.memory.blocks), self.screen
        # No time stamp and no name inside, so that the file depends on its content only.
        try:
            _write(path, gzip.compress(snapshot, mtime=0), lambda file: self._check(file, memory))
        finally:
            self._emulator.set_state(snapshot)
            self.screen = screen

    def _check(self, file: Path, memory: dict[int, bytes]) -> None:
        self._power_on()
        if not self._emulator.set_state(read_snapshot(file)):
            raise KartRewardsError("not kept: the emulator refuses the state when it is loaded again")
        if dict(self._data.memory.blocks) != memory:
            raise KartRewardsError("not kept: loaded again, the RAM does not read the same")
        if not self._runs_on(memory):
            raise KartRewardsError("not kept: the game does not run on from here")

    def _runs_on(self, memory: dict[int, bytes]) -> bool:
        """Whether time passes in the game: its frame counter counts or, without one, RAM or picture change."""
        before = self.ram()
        if hasattr(before, "current_frame"):
            for _ in range(_FRAMES_TO_COUNT):
                self._step()
            return 1 <= (self.ram().current_frame - before.current_frame) % 2**16 <= _FRAMES_TO_COUNT
        self._step()
        screen = self.screen
        for _ in range(_FRAMES_TO_MOVE):
            self._step()
        return dict(self._data.memory.blocks) != memory or not np.array_equal(self.screen, screen)


class Rewind:
    """Moments to go back to, the latest first; the oldest are forgotten.

    Args:
        most_bytes: How much memory their snapshots may take.
    """

    def __init__(self, most_bytes: int = _REWIND_BYTES) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._moments: deque[Moment] = deque()

    def push(self, moment: Moment) -> None:
        """Takes in a moment."""
        self._moments.append(moment)
        self._bytes += len(moment.snapshot)
        while self._bytes > self._most_bytes:
            self._bytes -= len(self._moments.popleft().snapshot)

    def pop(self) -> Moment | None:
        """Returns and forgets the latest moment; None if there is no more."""
        if not self._moments:
            return None
        self._bytes -= len(self._moments[-1].snapshot)
        return self._moments.pop()


def _run(console: Console, script: Iterable[Held], until: Condition | None, max_frames: int) -> None:
    """Presses what the script says or, with a condition, until it holds."""
    frames: Iterator[frozenset[str]] = (held for count, held in script for _ in range(count))
    if until is None:
        for held in frames:
            console.step(held)
        return
    for held in itertools.islice(itertools.chain(frames, itertools.repeat(_NOTHING)), max_frames):
        console.step(held)
        if until(console.ram()):
            return
    raise KartRewardsError(
        f"{until.text!r} did not hold on any of {max_frames} frames (--max-frames); after the last: "
        f"{until.values(console.ram())}"
    )


class _Player:
    """A person who plays in a window and keeps states. ``keep`` does the keeping; ``until`` is where to pause."""

    def __init__(
        self, console: Console, window: Window, message: str, keep: Callable[[], None], until: Condition | None
    ) -> None:
        self._console, self._window, self._message, self._keep, self._until = console, window, message, keep, until
        self._rewind = Rewind()
        self._slots: dict[str, Moment] = {}
        self._slot = "1"
        self._paused = False
        game_keys = [line for line in key_help(console.system) if line.split()[0] not in _ARROWS]
        rows = itertools.zip_longest(_KEYS, ["arrows  the pad", *game_keys], fillvalue="")
        self._help = [f"{own:<26}{of_game}" for own, of_game in rows]

    def play(self) -> None:
        """Runs until the window is closed."""
        console, window = self._console, self._window
        while not window.closed:
            window.show(console.screen, self._lines(), console.frames_per_second)
            for key in window.pressed:
                self._take(key)
            if "backspace" in (*window.held, *window.pressed):
                moment = self._rewind.pop()
                if moment:
                    console.go_to(moment)
            else:
                for _ in range(_FAST if "f" in window.held else 1):
                    if not self._paused:
                        self._step()

    def _lines(self) -> list[str]:
        status = f"{'paused' if self._paused else 'playing'}, frame {len(self._console.pressed)}"
        slot = f"slot {self._slot} {'saved' if self._slot in self._slots else 'empty'}"
        message = map(Lit, textwrap.wrap(self._message, PANEL_COLUMNS))
        return [f"{status:<26}{slot}", *message, *self._help, *self._console.table()]

    def _take(self, key: str) -> None:
        match key:
            case "f5":
                try:
                    self._keep()
                    self._message = "kept, loaded again and checked"
                except KartRewardsError as error:
                    self._message = str(error)
            case "f2":
                self._slots[self._slot] = self._console.moment()
                self._message = f"slot {self._slot} saved"
            case "f3" if self._slot in self._slots:
                self._jump(self._slots[self._slot], f"slot {self._slot} loaded")
            case "f3":
                self._message = f"slot {self._slot} is empty: f2 saves it"
            case "f9":
                self._jump(self._console.beginning, f"back at {self._console.begins}")
            case "p":
                self._paused = not self._paused
            case "n":
                self._paused = True
                self._step()
            case _ if key in _SLOTS:
                self._slot = key

    def _jump(self, moment: Moment, message: str) -> None:
        self._rewind.push(self._console.moment())  # so that a jump can be undone
        self._console.go_to(moment)
        self._message = message

    def _step(self) -> None:
        console, until = self._console, self._until
        if len(console.pressed) % _FRAMES_PER_MOMENT == 0:
            self._rewind.push(console.moment())
        held_already = until and until(console.ram())
        console.step(self._window.buttons(console.system))
        if until and until(console.ram()) and not held_already:
            self._paused, self._message = True, f"paused: {until.text}"
