"""The search for the address at which a game keeps a value, as commands: ``kart-rewards search GAME``.

* ``command`` - the command line
* ``SearchPrompt`` - the commands of the search, on a terminal or from a file

The game is played by hand, by a script of buttons or by a recording. From time to time, the player states how the value
has changed. The search keeps only the addresses whose content changed in this way, until few are left. The chosen one
is then written into the game's ``data.json``.
"""

from __future__ import annotations

import cmd
import inspect
import itertools
import json
import re
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from kart_rewards.env.core import buttons_of, console_of, start_emulator
from kart_rewards.env.window import Window, key_help
from kart_rewards.errors import KartRewardsError, counted, did_you_mean
from kart_rewards.games.data_file import add_variable, read_entries
from kart_rewards.games.inputs import MOVIES, Held, button_masks, movie_start, parse_inputs, read_inputs
from kart_rewards.games.ram_search import COMPARISONS, RamSearch, Reading
from kart_rewards.integrations import Game, find_game, writable
from kart_rewards.training.options import GamesFolder

FEW_ADDRESSES = 100  # are listed after each 'keep', and shown in the window
PLACES_SHOWN = 10
SAMPLES_SHOWN = 8

_FRAMES_PER_REPORT = 300


def command(
    game: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="GAME")],
    /,
    state: str | None = None,
    name: str | None = None,
    script: Path | None = None,
    integrations_path: GamesFolder = None,
) -> None:
    """Finds the address at which a game keeps a value, and adds it to data.json.

    Play the game by hand, by a script of buttons or by a recording. From time to time, state how the value has changed.
    The search keeps only the addresses whose content changed in this way, until few are left. Commands are typed, or
    read from --script or a pipe:

        play 60 B
        keep greater
        play 300
        keep equal 0
        list
        add 1 speed

    "help" lists the commands. "help keep" lists the comparisons.

    Args:
        game: Name of the game's folder.
        state: The start state: a name in the game's folder, or a .state file. The default is the default state in
            metadata.json, or power-on if the game has no state yet.
        name: Name of the variable. With it, "add 1" needs no name.
        script: File of commands, one per line. "#" starts a comment. The first command that fails ends the search.
    """
    found = find_game(game, integrations_path)
    if state is None and found.states():
        state = found.default_state()
    try:
        lines = script.read_text(encoding="utf-8-sig").splitlines() if script else None
    except (OSError, UnicodeDecodeError) as error:
        raise KartRewardsError(f"{script}: can't be read: {error}") from None
    prompt = SearchPrompt(found, state, name)
    if lines is not None:
        prompt.run(lines, str(script))
    elif sys.stdin.isatty():
        prompt.run_interactively()
    else:
        prompt.run(sys.stdin, "standard input")


class SearchPrompt(cmd.Cmd):
    """The commands of a search in a running game. Each ``do_`` method is one command; its docstring is the help text.

    Args:
        game: The game.
        state: The start state's name or path. None: power-on.
        name: The variable's name, if the command ``add`` gives none.

    Raises:
        KartRewardsError: The ROM, the state or ``data.json`` is missing or wrong.
    """

    def __init__(self, game: Game, state: str | None, name: str | None) -> None:
        super().__init__()
        rom = game.rom()
        loaded = game.load_state(state) if state else None
        read_entries(game.json_path("data"))  # an error here is better than one after a long search
        self._game, self._name = game, name
        self._console = console_of(rom)
        self._buttons = buttons_of(self._console)
        self._emulator = start_emulator(rom)
        self._start_state = loaded or self._emulator.get_state()
        self._load(self._start_state, state)
        self._ram = RamSearch(self._emulator, self._console)
        self._trace: Path | None = None  # the recording that is being played
        self._listed: list[Reading] = []  # in the order of the numbers in the list
        self._interactive = False
        self.prompt = self._status()

    def _load(self, snapshot: bytes, source: str | Path | None) -> None:
        if not self._emulator.set_state(snapshot):
            raise KartRewardsError(
                f"{source}: the emulator does not accept this state: it is damaged or belongs to another game"
            )
        self._frame = 0

    def _status(self) -> str:
        return f"frame {self._frame}, {counted(self._ram.addresses_left(), 'address', 'addresses')} left> "

    def run(self, lines: Iterable[str], source: str) -> None:
        """Runs commands and prints each as if it was typed.

        Args:
            lines: The commands, one per line.
            source: The name of their file, for error messages.

        Raises:
            KartRewardsError: A command failed. The commands after it were not run.
        """
        for number, line in enumerate(lines, start=1):
            print(f"{self.prompt}{line.rstrip()}", flush=True)
            try:
                if self.onecmd(line):
                    return
            except KartRewardsError as error:
                raise KartRewardsError(f"{source}, line {number}: {error}") from None

    def run_interactively(self) -> None:
        """Runs the commands that a person types, until ``quit`` or the end of input."""
        self._interactive = True
        print("'help' lists the commands. Play until the value has changed in a known way, then 'keep' what fits.")
        self.cmdloop()

    def onecmd(self, line: str) -> bool:
        """Runs one command.

        In interactive use, errors and Ctrl-C are printed and do not end the search.

        Returns:
            Whether it was the last command.

        Raises:
            KartRewardsError: The command failed.
        """
        try:
            return self._dispatch(line)
        except KartRewardsError as error:
            if not self._interactive:
                raise
            print(f"error: {error}")
        except KeyboardInterrupt:
            if not self._interactive:
                raise
            print(f"\nstopped at frame {self._frame}")
        finally:
            self.prompt = self._status()
        return False

    def _dispatch(self, line: str) -> bool:
        if line == "EOF":  # cmd.Cmd passes the end of input as this line
            print()
            return True
        try:
            name, *words = shlex.split(line, comments=True) or [""]
        except ValueError as error:
            raise KartRewardsError(f"{line!r} is not a command: {error}") from None
        if not name:
            return False
        _check_command(name)
        method = getattr(self, f"do_{name}")
        try:
            inspect.signature(method).bind(*words)
        except TypeError:
            raise _usage_error(name) from None
        return bool(method(*words))

    def do_play(self, frames: str, buttons: str = "") -> None:
        """play FRAMES [BUTTONS]: run frames with buttons held

        Most consoles show 60 frames per second. Example: play 60 B+LEFT
        """
        self._play(parse_inputs(f"{frames} {buttons}", self._buttons, "play"))

    def do_run(self, file: str) -> None:
        """run FILE: run the frames of a script of buttons

        Each line of the script is a number of frames and the buttons held: 30 B+LEFT
        """
        self._play(read_inputs(file, self._buttons))

    def _play(self, inputs: list[Held]) -> None:
        self._trace = None
        self._advance(button_masks(inputs, self._buttons), sum(frames for frames, _ in inputs))

    def do_window(self) -> None:
        """window: play by hand in a window; Escape closes it

        The window shows the keys. If few candidates are left, it shows their current values, too.
        """
        self._trace = None
        places = self._ram.places() if self._ram.addresses_left() <= FEW_ADDRESSES else []
        watched = [place[0] for place in places[:PLACES_SHOWN]]
        lines = [*key_help(self._console), "", "escape  back to the terminal", ""]
        rate = self._emulator.get_screen_rate()
        with Window(f"search {self._game.name}", instead="To play by script instead: play FRAMES BUTTONS") as window:
            while not window.closed:
                values = [
                    f"{number:>2}  0x{reading.address:06X} {reading.type}  "
                    f"{self._ram.data.memory.extract(reading.address, reading.type):>11}"
                    for number, reading in enumerate(watched, start=1)
                ]
                window.show(self._emulator.get_screen(), [*lines, f"frame {self._frame}", *values], rate)
                held = window.buttons(self._console)
                self._advance(button_masks([(1, held)], self._buttons), 1)

    def do_trace(self, file: str, frame: str = "") -> None:
        """trace FILE [FRAME]: go to a frame of a recording, by default to its end

        FILE is a drive, a .bk2 movie or a script of buttons. Drives and movies start from the state inside them. A
        script starts from the start state of this search. A .csv.gz trace can't be used: it contains the variables
        that were known when it was recorded, and no other RAM. Use the .bk2 movie that was recorded with it.
        """
        path = Path(file)
        if file.endswith((".csv.gz", ".csv")):
            movie = path.with_name(path.name.partition(".csv")[0] + ".bk2")
            remedy = movie if movie.is_file() else "the .bk2 movie or the script of buttons that it was made from"
            raise KartRewardsError(
                f"{file}: contains the variables that were known when it was recorded, and no other RAM. Use {remedy}"
            )
        inputs = read_inputs(path, self._buttons)
        length = sum(frames for frames, _ in inputs)
        goal = _integer(frame) if frame else length
        if not 0 <= goal <= length:
            raise KartRewardsError(f"{file}: has only {counted(length, 'frame')}: frame {goal} does not exist")
        if self._trace != path or goal < self._frame:
            snapshot = movie_start(path) if file.endswith(MOVIES) else self._start_state
            self._load(snapshot, path)
            self._trace = path
        masks = itertools.islice(button_masks(inputs, self._buttons), self._frame, goal)
        self._advance(masks, goal - self._frame)

    def do_load(self, state: str = "") -> None:
        """load [STATE]: load a state, by default the start state of this search

        STATE is a name in the game's folder, or a .state file. The candidates stay.
        """
        self._trace = None
        self._load(self._game.load_state(state) if state else self._start_state, state)

    def _advance(self, masks: Iterable[np.ndarray], frames: int) -> None:
        shows_progress = frames > _FRAMES_PER_REPORT and sys.stderr.isatty()
        try:
            for done, mask in enumerate(masks):
                if shows_progress and done % _FRAMES_PER_REPORT == 0:
                    print(f"\r{done} of {frames} frames", end="", file=sys.stderr, flush=True)
                self._emulator.set_button_mask(mask, 0)
                self._emulator.step()
                self._frame += 1
        finally:
            if shows_progress:
                print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def do_start(self) -> None:
        """start: start a new search at the current frame

        Each address is a candidate again.
        """
        self._ram.start(self._frame)
        self._listed = []

    def do_keep(self, comparison: str, value: str = "") -> None:
        """keep COMPARISON: keep the addresses whose content fits the comparison

        Compared with the content at the last 'keep' or 'start':
          keep changed      it is different          keep unchanged     it is the same (also: keep equal)
          keep greater      it is greater            keep less          it is less
          keep +3           it is greater by 3       keep -3            it is less by 3
        Compared with a number:
          keep equal 127    it is 127
          keep greater 5    it is greater than 5     keep less -5       it is less than -5
        """
        if re.fullmatch(r"[+-]\d+", comparison, re.ASCII) and not value:
            self._keep("by", _integer(comparison))
        elif comparison in COMPARISONS and value:
            self._keep(comparison, _integer(value))
        elif comparison in ("greater", "less", "changed", "unchanged", "equal") and not value:
            self._keep(comparison.replace("equal", "unchanged"), None)
        else:
            raise KartRewardsError(f"'{f'keep {comparison} {value}'.strip()}' is not a comparison: see 'help keep'")

    def _keep(self, comparison: str, value: int | None) -> None:
        self._ram.keep(comparison, value, self._frame)
        self._listed = []
        left = self._ram.addresses_left()
        if not left:
            print("no address fits. 'undo' reverts this 'keep', 'start' starts a new search")
        elif left <= FEW_ADDRESSES:
            self.do_list()

    def do_undo(self) -> None:
        """undo: revert the last 'keep' or 'start'

        The game stays at the current frame.
        """
        if not self._ram.undo():
            raise KartRewardsError("there is no 'keep' or 'start' to revert")
        self._listed = []

    def do_list(self, what: str = "") -> None:
        """list [all]: show the candidates, the most likely first

        Each line shows an entry for data.json, the address in hexadecimal, and the values at the last samples: the
        frames of 'start' and 'keep'. Readings that share bytes are one place. Only the most likely reading of a place
        is shown. 'list all' shows all readings.
        """
        if what not in ("", "all"):
            raise _usage_error("list")
        places = self._number_readings()
        frames = ", ".join(str(sample.frame) for sample in self._ram.samples[-SAMPLES_SHOWN:])
        print(f"{counted(len(places), 'place')}, {counted(len(self._listed), 'reading')}; read at frames {frames}")
        shown = len(self._listed) if what else min(len(places), PLACES_SHOWN)
        for number, reading in enumerate(self._listed[:shown], start=1):
            if number == len(places) + 1:
                print("other readings of the same bytes")
            history = ", ".join(map(str, reading.history[-SAMPLES_SHOWN:]))
            wider = self._ram.wider(reading, places[number - 1]) if number <= len(places) else []
            numbered = ", ".join(f"{other.type} (number {self._listed.index(other) + 1})" for other in wider)
            same = f"   same so far: {numbered}" if numbered else ""
            print(f"{number:>4}  {json.dumps(reading.entry)}  0x{reading.address:06X}  {history}{same}")
        if shown < len(places):
            print(f"and {counted(len(places) - shown, 'more place')}: 'list all' shows them")

    def _number_readings(self) -> list[list[Reading]]:
        """Numbers the readings: first the most likely one of each place, then all others. Returns the places."""
        places = self._ram.places()
        self._listed = [place[0] for place in places] + [reading for place in places for reading in place[1:]]
        return places

    def do_add(self, number: str, name: str = "") -> None:
        """add NUMBER [NAME]: write an entry of the list into data.json

        NUMBER is the entry's number in the list. NAME is the variable's name. It may be omitted if the option --name
        gave it.
        """
        name = name or self._name or ""
        if not name:
            raise KartRewardsError(f"the variable needs a name. {_usage_error('add')}")
        if not self._listed:
            self._number_readings()
        chosen = _integer(number)
        if not 1 <= chosen <= len(self._listed):
            entries = counted(len(self._listed), "entry", "entries")
            raise KartRewardsError(f"number {chosen} is not in the list, which has {entries}")
        reading = self._listed[chosen - 1]
        self._game = writable(self._game)
        path = self._game.json_path("data")
        add_variable(path, name, reading.entry)
        print(f"{path}: added {json.dumps(name)}: {json.dumps(reading.entry)}")

    def do_help(self, command: str = "") -> None:
        """help [COMMAND]: list the commands, or explain one"""
        if command:
            _check_command(command)
            print(_help_texts()[command])
            return
        for name in _help_texts():
            usage, _, summary = _first_line(name).partition(": ")
            print(f"  {usage:<24}{summary}")

    def do_quit(self) -> bool:
        """quit: end the search; the added entries stay in data.json"""
        return True


def _help_texts() -> dict[str, str]:
    """The help text of each command, by its name."""
    methods = {name[3:]: method for name, method in vars(SearchPrompt).items() if name.startswith("do_")}
    return {name: inspect.cleandoc(method.__doc__) for name, method in methods.items()}


def _first_line(name: str) -> str:
    return _help_texts()[name].splitlines()[0]


def _usage_error(name: str) -> KartRewardsError:
    return KartRewardsError(f"usage: {_first_line(name)}")


def _check_command(name: str) -> None:
    known = _help_texts()
    if name not in known:
        hint = did_you_mean(name, known)
        raise KartRewardsError(f"unknown command {name!r}.{hint} The commands are {', '.join(known)}")


def _integer(text: str) -> int:
    try:
        number = int(text, 0)
    except ValueError:
        raise KartRewardsError(f"{text!r} is not an integer") from None
    if abs(number) >= 2**63:
        raise KartRewardsError(f"{text} is larger than any value in RAM")
    return number
