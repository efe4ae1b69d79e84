"""Finding where a game keeps a value: ``python -m kart_rewards search GAME``.

A game is played from one moment to the next: by hand, by a script of buttons, or by a recording. At each moment the
player says how the value has changed since the last, and only the addresses whose content did so are kept, until few
are left.

* ``RamSearch`` - what may hold the value, narrowed from moment to moment
* ``Reading`` - an address and a type, with what they read at each moment
* ``add_variable`` - writes an entry into ``data.json``
* ``SearchPrompt`` - the commands, on a terminal or from a file
* ``search`` - all of it

What is used of stable-retro's search engine, and what is not (*measured*, stable-retro 1.0):

* ``GameData.delta_search`` narrows: it finds what differs, grew, shrank or moved by a number. It agrees with the
  decoder in ``kart_rewards.ram`` on every type.
* ``GameData.search``, for known values, is not used. Once it finds a match in the last bytes of a block of memory, it
  misses the wider types in all later blocks: on the SNES, all of work RAM, where 0 is looked for. It misses negative
  big-endian numbers, and mixes in near misses, such as ten times the value. ``data.memory.extract`` compares instead;
  training reads with it, too.
* ``get_search(name)`` ends the process where there is no such search, and ``save_searches`` does not exist.
"""

from __future__ import annotations

import cmd
import contextlib
import difflib
import inspect
import itertools
import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import stable_retro

from kart_rewards.env.core import start_emulator
from kart_rewards.env.window import Window, key_help
from kart_rewards.errors import KartRewardsError
from kart_rewards.games.inputs import Held, button_masks, movie_start, parse_inputs, read_inputs
from kart_rewards.integrations import INTEGRATIONS, Game, find_game
from kart_rewards.ram import RamLayout, Variable, load_json

MOST_READINGS_TO_RANK = 50_000
FEW_ADDRESSES = 100  # are listed and watched without being asked for
PLACES_SHOWN = 10
MOMENTS_SHOWN = 8

_ENGINE_SEARCH = "kart_rewards"  # what the one search in stable-retro's engine is called
_ENGINE_OPERATIONS = {"changed": "not-equal", "greater": "greater-than", "less": "less-than", "by": "equal"}
_COMPARISONS = {"equal": np.equal, "greater": np.greater, "less": np.less}
_FRAMES_A_REPORT = 300
_LIKELY_WIDTHS = (2, 4, 1, 3, 6, 8)  # of a number whose first and last byte both change
_GAP = re.compile(r"[\s,:]*")  # between the parts of a JSON object


class Moment(NamedTuple):
    """A moment of play at which candidates were compared."""

    frame: int
    state: bytes  # the emulator's snapshot
    memory: bytes  # of all blocks, in the order of ``RamSearch.addresses``


class Reading(NamedTuple):
    """An address and a type, as an entry of ``data.json`` has them.

    Args:
        address: Where the first byte lies.
        type: Byte order, representation and width; see ``kart_rewards.ram``.
        history: What it read at each moment.
    """

    address: int
    type: str
    history: tuple[int, ...]

    @property
    def entry(self) -> dict[str, Any]:
        """The value of an entry in ``data.json``."""
        return {"address": self.address, "type": self.type}


class RamSearch:
    """What may hold the value: at first every address of memory as every type, then what each ``keep`` leaves.

    The types are unsigned, signed and BCD numbers of 1 to 4 bytes in both byte orders, and those that stable-retro
    itself looks for on the console. Signed ones are written ``i``, which stable-retro's own decoder knows; it takes
    ``s`` for unsigned.

    Args:
        emulator: stable-retro's emulator, running.
        system: The console, by stable-retro's name: ``Snes``.

    Attributes:
        addresses: The address of each byte of memory, ascending.
        types: The types.
        moments: When the search began, and each ``keep`` since.
        data: stable-retro's game data, bound to the emulator.

    Raises:
        KartRewardsError: The core shows no memory.
    """

    def __init__(self, emulator: Any, system: str) -> None:
        self._emulator = emulator
        own_types = stable_retro.data.EMU_INFO[system].get("types", [])
        self._big_endian = ">u2" in own_types
        wide = [f"{order}{kind}{width}" for width in (2, 3, 4) for order in "<>" for kind in "uid"]
        self.types = list(dict.fromkeys(["|u1", "|i1", "|d1", *wide, *own_types]))
        self.data = stable_retro.data.GameData()
        _configure(emulator, self.data, system, self.types)
        blocks = sorted((start, len(content)) for start, content in self.data.memory.blocks.items())
        if not blocks:
            raise KartRewardsError(f"stable-retro's core for this console ({system}) shows no memory to search in")
        self.addresses = np.concatenate([np.arange(start, start + size) for start, size in blocks])
        ends = np.cumsum([size for _, size in blocks])
        self._blocks = [slice(end - size, end) for end, (_, size) in zip(ends.tolist(), blocks, strict=True)]
        self._before: list[tuple[np.ndarray, list[Moment]]] = []
        self._begin(0)

    def start(self, frame: int) -> None:
        """Begins anew at this moment, with every address and type.

        Args:
            frame: What to call the moment.
        """
        self._remember()
        self._begin(frame)

    def _begin(self, frame: int) -> None:
        self._candidates = np.zeros((len(self.types), len(self.addresses)), bool)
        for row, type_ in zip(self._candidates, self.types, strict=True):
            for block in self._blocks:
                row[block][: 1 - _width(type_) or None] = True
        self.moments = [self._moment(frame)]
        self._rule_out_no_digits(self._candidates, self.moments[0])

    def keep(self, comparison: str, value: int | None, frame: int) -> None:
        """Rules out what did not do as said between the moment before and now.

        Args:
            comparison: ``changed``, ``unchanged``, ``greater``, ``less`` or ``by``, compared with the moment before; or
                ``equal``, ``greater`` or ``less``, compared with ``value``.
            value: A number to compare with; of ``by``, how much was added.
            frame: What to call the moment.

        Raises:
            KartRewardsError: Nothing is left to keep, or nothing has happened since the moment before.
        """
        now = self._moment(frame)
        if not self._candidates.any():
            raise KartRewardsError("no address is left: 'undo' takes the last 'keep' back, 'start' begins anew")
        if comparison in _COMPARISONS and value is not None:
            fitting = self._reads(comparison, value)
        elif now.state == self.moments[-1].state:
            raise KartRewardsError("the game has not gone on since the moment before: play first")
        elif comparison == "unchanged" or (comparison, value) == ("by", 0):
            fitting = ~self._changed_as("changed", 0, now)
        else:
            fitting = self._changed_as(comparison, value or 0, now)
        fitting &= self._candidates
        self._rule_out_no_digits(fitting, now)
        self._remember()
        self._candidates, self.moments = fitting, [*self.moments, now]

    def _rule_out_no_digits(self, fitting: np.ndarray, moment: Moment) -> None:
        """A BCD number has no digit above 9, though the decoder reads one from any byte."""
        memory = np.frombuffer(moment.memory, np.uint8)
        low_digits = memory & 15 < 10
        digits = {"n": low_digits, "d": low_digits & (memory >> 4 < 10)}
        for row, type_ in zip(fitting, self.types, strict=True):
            if type_[-2] in digits:
                for byte in range(_width(type_)):
                    row[: len(row) - byte] &= digits[type_[-2]][byte:]

    def _changed_as(self, comparison: str, value: int, now: Moment) -> np.ndarray:
        """Which addresses changed so since the moment before, by stable-retro's engine."""
        # The engine compares with the memory at its own last call. A search for nothing ("noop") makes the moment
        # before that memory, and removing a search leaves it: the next begins with all addresses, but no list of them.
        try:
            self._emulator.set_state(self.moments[-1].state)
            self.data.delta_search(_ENGINE_SEARCH, "noop", 0)
            self.data.remove_search(_ENGINE_SEARCH)
        finally:
            self._emulator.set_state(now.state)
        self.data.delta_search(_ENGINE_SEARCH, _ENGINE_OPERATIONS[comparison], value)
        found: dict[str, list[int]] = {type_: [] for type_ in self.types}
        for (address, *_), types in self.data.get_search(_ENGINE_SEARCH).typed_results():
            for type_ in types:
                found[type_].append(address)
        self.data.remove_search(_ENGINE_SEARCH)
        fitting = np.zeros_like(self._candidates)
        for row, type_ in zip(fitting, self.types, strict=True):
            row[np.searchsorted(self.addresses, found[type_])] = True
        return fitting

    def _reads(self, comparison: str, value: int) -> np.ndarray:
        """Which candidates now read what compares so with ``value``."""
        fitting = np.zeros_like(self._candidates)
        for row, candidates, type_ in zip(fitting, self._candidates, self.types, strict=True):
            at = np.flatnonzero(candidates)
            extracted = map(self.data.memory.extract, self.addresses[at].tolist(), itertools.repeat(type_))
            row[at] = _COMPARISONS[comparison](np.fromiter(extracted, np.int64, len(at)), value)
        return fitting

    def _remember(self) -> None:
        self._before.append((np.packbits(self._candidates), self.moments))

    def undo(self) -> bool:
        """Takes back the last ``keep`` or ``start``; the game stays where it is. Returns whether there was one."""
        if not self._before:
            return False
        packed, self.moments = self._before.pop()
        shape = self._candidates.shape
        self._candidates = np.unpackbits(packed, count=self._candidates.size).astype(bool).reshape(shape)
        return True

    def _moment(self, frame: int) -> Moment:
        # Some cores hold their memory in the wrong byte order, which only the decoder knows.
        memory = bytes(map(self.data.memory.extract, self.addresses.tolist(), itertools.repeat("|u1")))
        return Moment(frame, self._emulator.get_state(), memory)

    def addresses_left(self) -> int:
        """Returns at how many addresses something fits, mirrors not counted."""
        return int(np.count_nonzero(self._candidates.any(axis=0) & ~self._mirrored()))

    def _mirrored(self) -> np.ndarray:
        """Bytes of blocks that show the beginning of a larger block again, as the SNES's low page shows work RAM's."""
        mirrored = np.zeros(len(self.addresses), bool)
        for block, larger in itertools.permutations(self._blocks, 2):
            size = block.stop - block.start
            if size < larger.stop - larger.start:
                same = (m.memory[block] == m.memory[larger.start : larger.start + size] for m in self.moments)
                mirrored[block] |= all(same)
        return mirrored

    def places(self) -> list[list[Reading]]:
        """Returns the candidates, likeliest first. Readings that share bytes are one place, the likeliest first.

        A likely reading is no BCD if something else fits, in the console's byte order, as wide as the bytes that
        change, and signed if it was seen on both sides of 0.

        Raises:
            KartRewardsError: There are too many to rank.
        """
        found = np.argwhere(self._candidates & ~self._mirrored())
        if len(found) > MOST_READINGS_TO_RANK:
            raise KartRewardsError(f"{len(found)} readings are too many to rank: narrow them down with 'keep' first")
        memory = np.stack([np.frombuffer(moment.memory, np.uint8) for moment in self.moments])
        changes = (memory != memory[0]).any(axis=0)
        ranked = sorted(self._ranked(int(at), self.types[row], changes) for row, at in found)
        places: list[list[Reading]] = []
        place_of: dict[int, list[Reading]] = {}
        for _, reading in ranked:
            covered = range(reading.address, reading.address + _width(reading.type))
            place = next((place_of[byte] for byte in covered if byte in place_of), None)
            if place is None:
                place = []
                places.append(place)
                place_of |= dict.fromkeys(covered, place)
            place.append(reading)
        return places

    def _ranked(self, at: int, type_: str, changes: np.ndarray) -> tuple[tuple[Any, ...], Reading]:
        """A reading, and what to sort it by."""
        address, width, kind = int(self.addresses[at]), _width(type_), type_[-2]
        decode = Variable("value", address, type_).decode
        history = tuple(decode(moment.memory[at : at + width]) for moment in self.moments)
        both_signs = min(history) < 0 <= max(history)
        idle_ends = width > 1 and not (changes[at] and changes[at + width - 1])
        key = (
            kind in "dn",
            not self.is_native(address, type_),
            idle_ends,
            _LIKELY_WIDTHS.index(width),
            (kind == "i") != both_signs,
            max(map(abs, history)),
            at,
        )
        return key, Reading(address, type_, history)

    def is_native(self, address: int, type_: str) -> bool:
        """Whether the console itself would keep such a number there: big-endian ones want wide numbers aligned."""
        if _width(type_) == 1:
            return True
        return type_[0] == ">" and address % 2 == 0 if self._big_endian else type_[0] == "<"


def _width(type_: str) -> int:
    return int(type_[-1])


def _configure(emulator: Any, data: Any, system: str, types: list[str]) -> None:
    """Binds game data to the emulator, with an engine that searches for these types rather than the console's own."""
    info = stable_retro.data.EMU_INFO[system]
    try:
        emulator.load_core_info(json.dumps({system: info | {"types": types}}))
        emulator.configure_data(data)
    finally:
        emulator.load_core_info(json.dumps({system: info}))


def add_variable(path: Path, name: str, reading: Reading) -> None:
    """Writes an entry into a ``data.json``, laid out as the last one there; all else stays as it is, to the byte.

    What is to take the file's place is first read by ``RamLayout`` and by stable-retro.

    Args:
        path: The file.
        name: The variable's name.
        reading: Its address and type.

    Raises:
        KartRewardsError: The name is taken or can't be one, or the file is damaged or can't be written.
    """
    RamLayout([Variable(name, reading.address, reading.type)], source="add")
    taken = _read_variables(path).get(name)
    if taken is not None:
        raise KartRewardsError(f"{path}: has a variable {name!r} already, {json.dumps(taken)}: choose another name")
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.write_bytes(_with_entry(path.read_bytes().decode(), name, reading.entry).encode())
        shutil.copymode(path, temporary)
        RamLayout.from_file(temporary)
        if not stable_retro.data.GameData().load(str(temporary), None):
            raise KartRewardsError(f"{path}: stable-retro would not load it with this entry")
        temporary.replace(path)
    except OSError as error:
        entry = f"{json.dumps(name)}: {json.dumps(reading.entry)}"
        raise KartRewardsError(f"{path}: can't be written: {error.strerror}. The entry is {entry}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _read_variables(path: Path) -> dict[str, Any]:
    """The entries of a ``data.json``, checked; it may have none yet."""
    variables = load_json(path).get("info", {})
    if variables != {}:
        RamLayout.from_file(path)
    return variables


def _with_entry(text: str, name: str, entry: dict[str, Any]) -> str:
    """The text of a ``data.json`` with one more entry. Without any so far, there is no layout to keep to."""
    new = f"{json.dumps(name)}: {json.dumps(entry)}"
    if not json.loads(text).get("info"):
        text = json.dumps(json.loads(text) | {"info": {}}, indent=2)
        return text.replace('\n  "info": {}', f'\n  "info": {{\n    {new}\n  }}') + "\n"
    start = [value for key, _, value, _ in _members(text, text.index("{")) if key == "info"][-1]
    members = list(_members(text, start))
    _, key, value, last_end = members[-1]
    before = members[-2][3] if len(members) > 1 else start + 1
    parts = list(_members(text, value))
    inner, closing = text[value + 1 : parts[0][1]], text[parts[-1][3] : last_end]
    between = text[parts[0][3] : parts[1][1]]
    body = between.join(f"{json.dumps(part)}: {json.dumps(content)}" for part, content in entry.items())
    separator = text[before:key] if len(members) > 1 else f",{text[before:key]}"
    return f"{text[:last_end]}{separator}{json.dumps(name)}: {{{inner}{body}{closing}{text[last_end:]}"


def _members(text: str, start: int) -> Iterator[tuple[str, int, int, int]]:
    """Yields, of the JSON object at ``text[start]``, each key, and where key and value start and the value ends."""
    decode = json.JSONDecoder().raw_decode
    end = start + 1
    while text[key_start := _GAP.match(text, end).end()] != "}":  # type: ignore[union-attr]
        key, end = decode(text, key_start)
        value_start = _GAP.match(text, end).end()  # type: ignore[union-attr]
        _, end = decode(text, value_start)
        yield key, key_start, value_start, end


class SearchPrompt(cmd.Cmd):
    """The commands, on a running game. Each ``do_`` method is one; its docstring is the command's help.

    Args:
        game: The game.
        state: The start state's name or path; None: power-on.
        name: What ``add`` calls the variable if it is not told.

    Raises:
        KartRewardsError: Something about the game's files is wrong; says what.
    """

    def __init__(self, game: Game, state: str | None, name: str | None) -> None:
        super().__init__()
        rom = game.rom()
        loaded = game.load_state(state) if state else None
        self._data_path = game.json_path("data")
        _read_variables(self._data_path)
        self._game, self._name = game, name
        self._system = stable_retro.get_romfile_system(str(rom))
        self._buttons = stable_retro.get_system_info(self._system)["buttons"]
        self._emulator = start_emulator(rom)
        self._start_state = loaded or self._emulator.get_state()
        self._load(self._start_state, state)
        self._ram = RamSearch(self._emulator, self._system)
        self._trace: Path | None = None  # the recording that the game is in
        self._listed: list[Reading] = []  # as ``add`` numbers them
        self._interactive = False
        self.prompt = self._status()

    def _load(self, snapshot: bytes, source: Any) -> None:
        if not self._emulator.set_state(snapshot):
            raise KartRewardsError(f"{source}: the emulator refuses this state: it is damaged, or of another game")
        self._frame = 0

    def _status(self) -> str:
        return f"frame {self._frame}, {_counted(self._ram.addresses_left(), 'address', 'addresses')} left> "

    def run(self, lines: Iterable[str], source: str) -> None:
        """Obeys commands, a line each, and prints them as if they were typed.

        Raises:
            KartRewardsError: A command failed: which, and why. Those after it are not obeyed.
        """
        for number, line in enumerate(lines, start=1):
            print(f"{self.prompt}{line.rstrip()}", flush=True)
            try:
                if self.onecmd(line):
                    return
            except KartRewardsError as error:
                raise KartRewardsError(f"{source}, line {number}: {error}") from None

    def run_interactively(self) -> None:
        """Obeys the commands that a person types, until ``quit`` or the end of input."""
        self._interactive = True
        print("'help' lists the commands. Play to a moment that you know something about, and 'keep' what fits.")
        self.cmdloop()

    def onecmd(self, line: str) -> bool:
        """Obeys one command. Returns whether it was the last."""
        try:
            return self._obey(line)
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

    def _obey(self, line: str) -> bool:
        if line == "EOF":  # what Cmd makes of the end of input
            print()
            return True
        try:
            name, *words = shlex.split(line, comments=True) or [""]
        except ValueError as error:
            raise KartRewardsError(f"{line!r} is not a command: {error}") from None
        if not name:
            return False
        commands = _commands()
        if name not in commands:
            close = difflib.get_close_matches(name, commands, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise KartRewardsError(f"unknown command {name!r}: {hint}There are {', '.join(commands)}")
        method = getattr(self, f"do_{name}")
        try:
            inspect.signature(method).bind(*words)
        except TypeError:
            raise KartRewardsError(f"say it as: {_first_line(name)}") from None
        return bool(method(*words))

    def do_play(self, frames: str, buttons: str = "") -> None:
        """play FRAMES [BUTTONS]: go on for so many frames with buttons held

        Most consoles show 60 frames a second. For example: play 60 B+LEFT
        """
        self._play(parse_inputs(f"{frames} {buttons}", self._buttons, "play"))

    def do_run(self, file: str) -> None:
        """run FILE: go on with what a script presses

        A script says on each line for how many frames which buttons are held: 30 B+LEFT
        """
        self._play(read_inputs(file, self._buttons))

    def _play(self, inputs: list[Held]) -> None:
        self._trace = None
        self._advance(button_masks(inputs, self._buttons), sum(frames for frames, _ in inputs))

    def do_window(self) -> None:
        """window: go on by hand, in a window, until Escape

        The window shows which keys play, and the candidates once they are few.
        """
        self._trace = None
        places = self._ram.places() if self._ram.addresses_left() <= FEW_ADDRESSES else []
        watched = [place[0] for place in places[:PLACES_SHOWN]]
        lines = [*key_help(self._system), "", "escape  back to the terminal", ""]
        rate = self._emulator.get_screen_rate()
        with Window(f"search {self._game.name}") as window:
            while not window.closed:
                values = [
                    f"{number:>2}  0x{reading.address:06X} {reading.type}  "
                    f"{self._ram.data.memory.extract(reading.address, reading.type):>11}"
                    for number, reading in enumerate(watched, start=1)
                ]
                window.show(self._emulator.get_screen(), [*lines, f"frame {self._frame}", *values], rate)
                held = window.buttons(self._system)
                self._advance(button_masks([(1, held)], self._buttons), 1)

    def do_trace(self, file: str, frame: str = "") -> None:
        """trace FILE [FRAME]: go to a frame of a recorded drive, or to its end

        A recording is a .bk2 movie, which is played from the state inside it, or a script as 'run' takes it, which is
        played from the search's start state. A .csv.gz trace can't be searched in: it holds the variables that were
        known when it was made, and no other RAM. The .bk2 recorded with it can.
        """
        path = Path(file)
        if file.endswith((".csv.gz", ".csv")):
            movie = path.with_name(path.name.partition(".csv")[0] + ".bk2")
            remedy = str(movie) if movie.is_file() else "the .bk2 movie or the script of buttons that it was made from"
            raise KartRewardsError(f"{file}: holds the variables known when it was made, not RAM. Search in {remedy}")
        inputs = read_inputs(path, self._buttons)
        length = sum(frames for frames, _ in inputs)
        goal = _number(frame, "a frame") if frame else length
        if not 0 <= goal <= length:
            raise KartRewardsError(f"{file}: has {length} frames, and no frame {goal}")
        if self._trace != path or goal < self._frame:
            snapshot = movie_start(path) if file.endswith(".bk2") else self._start_state
            self._load(snapshot, path)
            self._trace = path
        masks = itertools.islice(button_masks(inputs, self._buttons), self._frame, goal)
        self._advance(masks, goal - self._frame)

    def do_load(self, state: str = "") -> None:
        """load [STATE]: go to a start state, or back to the search's own

        STATE is one of the game's, or a .state file. The candidates stay.
        """
        self._trace = None
        self._load(self._game.load_state(state) if state else self._start_state, state)

    def _advance(self, masks: Iterable[np.ndarray], frames: int) -> None:
        shows_progress = frames > _FRAMES_A_REPORT and sys.stderr.isatty()
        try:
            for done, mask in enumerate(masks):
                if shows_progress and done % _FRAMES_A_REPORT == 0:
                    print(f"\r{done} of {frames} frames", end="", file=sys.stderr, flush=True)
                self._emulator.set_button_mask(mask, 0)
                self._emulator.step()
                self._frame += 1
        finally:
            if shows_progress:
                print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def do_start(self) -> None:
        """start: begin the search anew at this moment

        Every address is a candidate again.
        """
        self._ram.start(self._frame)
        self._listed = []

    def do_keep(self, comparison: str, value: str = "") -> None:
        """keep COMPARISON: keep the addresses whose content changed so

        Compared with the moment before, which is that of the last 'keep', or of the start:
          keep changed      differs                  keep unchanged     does not ('keep equal' does the same)
          keep greater      is greater               keep less          is less
          keep +3           is 3 greater             keep -3            is 3 less
        Whatever it was before:
          keep equal 127    is 127
          keep greater 5    is greater than 5        keep less -5       is less than -5
        """
        if re.fullmatch(r"[+-]\d+", comparison, re.ASCII) and not value:
            self._keep("by", _number(comparison, "a difference"))
        elif comparison in _COMPARISONS and value:
            self._keep(comparison, _number(value, "a value"))
        elif comparison in ("greater", "less", "changed", "unchanged", "equal") and not value:
            self._keep(comparison.replace("equal", "unchanged"), None)
        else:
            raise KartRewardsError(f"'{f'keep {comparison} {value}'.strip()}' is no comparison: see 'help keep'")

    def _keep(self, comparison: str, value: int | None) -> None:
        self._ram.keep(comparison, value, self._frame)
        self._listed = []
        left = self._ram.addresses_left()
        if not left:
            print("no address fits. 'undo' takes this back; 'start' begins anew")
        elif left <= FEW_ADDRESSES:
            self.do_list()

    def do_undo(self) -> None:
        """undo: take back the last 'keep' or 'start'

        The game stays where it is.
        """
        if not self._ram.undo():
            raise KartRewardsError("there is nothing to take back")
        self._listed = []

    def do_list(self, what: str = "") -> None:
        """list [all]: show what is left, likeliest first

        It is shown as entries of data.json, with what was read there at each moment. Readings that share bytes are one
        place, of which the likeliest is shown; 'list all' shows the others, too.
        """
        if what not in ("", "all"):
            raise KartRewardsError(f"say it as: {_first_line('list')}")
        places = self._ram.places()
        others = [reading for place in places for reading in place[1:]]
        self._listed = [place[0] for place in places] + others
        moments = ", ".join(str(moment.frame) for moment in self._ram.moments[-MOMENTS_SHOWN:])
        readings = _counted(len(self._listed), "reading", "readings")
        print(f"{_counted(len(places), 'place', 'places')}, {readings}; read at frames {moments}")
        shown = len(self._listed) if what else min(len(places), PLACES_SHOWN)
        for number, reading in enumerate(self._listed[:shown], start=1):
            if number == len(places) + 1:
                print("other readings of the same bytes")
            history = ", ".join(map(str, reading.history[-MOMENTS_SHOWN:]))
            wider = self._wider(reading, places[number - 1]) if number <= len(places) else ""
            print(f"{number:>4}  {json.dumps(reading.entry)}  0x{reading.address:06X}  {history}{wider}")
        if shown < len(places):
            print(f"and {_counted(len(places) - shown, 'place', 'places')} more: 'list all' shows them")

    def _wider(self, chosen: Reading, place: list[Reading]) -> str:
        """Readings that a number needs if it may grow larger than it was seen."""
        wider = [
            f"{reading.type} (number {self._listed.index(reading) + 1})"
            for reading in place
            if reading.history == chosen.history
            and _width(reading.type) in (2, 4)
            and _width(reading.type) > _width(chosen.type)
            and reading.type[-2] == chosen.type[-2]
            and self._ram.is_native(reading.address, reading.type)
        ]
        return f"   same so far: {', '.join(wider)}" if wider else ""

    def do_add(self, number: str, name: str = "") -> None:
        """add NUMBER [NAME]: write the entry with this number in the list into data.json

        NAME may be left out if --name gave it.
        """
        name = name or self._name or ""
        if not name:
            raise KartRewardsError(f"say what to call it: {_first_line('add')}")
        if not self._listed:
            places = self._ram.places()
            self._listed = [place[0] for place in places] + [reading for place in places for reading in place[1:]]
        chosen = _number(number, "a number in the list")
        if not 1 <= chosen <= len(self._listed):
            raise KartRewardsError(f"there is no number {chosen} in the list: it has {len(self._listed)}")
        reading = self._listed[chosen - 1]
        add_variable(self._data_path, name, reading)
        print(f"{self._data_path}: added {json.dumps(name)}: {json.dumps(reading.entry)}")

    def do_help(self, command: str = "") -> None:
        """help [COMMAND]: list the commands, or tell more of one"""
        commands = _commands()
        if command and command not in commands:
            raise KartRewardsError(f"there is no command {command!r}; there are {', '.join(commands)}")
        if command:
            print(commands[command])
            return
        for name in commands:
            usage, _, summary = _first_line(name).partition(": ")
            print(f"  {usage:<24}{summary}")

    def do_quit(self) -> bool:
        """quit: end the search; what was added stays"""
        return True


def _commands() -> dict[str, str]:
    """Each command's name and help."""
    methods = {name[3:]: method for name, method in vars(SearchPrompt).items() if name.startswith("do_")}
    return {name: inspect.cleandoc(method.__doc__) for name, method in methods.items()}


def _first_line(command: str) -> str:
    return _commands()[command].splitlines()[0]


def _number(text: str, what: str) -> int:
    try:
        number = int(text, 0)
    except ValueError:
        raise KartRewardsError(f"{text!r} is not {what}: write a whole number") from None
    if abs(number) >= 2**63:
        raise KartRewardsError(f"{text} is larger than any number in RAM")
    return number


def _counted(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def search(
    game: str,
    *,
    state: str | None = None,
    name: str | None = None,
    script: Path | None = None,
    integrations: Path = INTEGRATIONS,
) -> None:
    """Searches a game's memory with commands from a file, from standard input or from a person.

    Args:
        game: The game's folder name.
        state: The state to start from. By default as ``metadata.json`` says; power-on for a game that has no state yet.
        name: What to call the variable.
        script: File of commands. By default they come from standard input: typed, if that is a terminal.
        integrations: The folder of games.

    Raises:
        KartRewardsError: A file is wrong, or a command of a file or pipe failed.
    """
    found = find_game(game, integrations)
    if state is None and found.states():
        state = found.default_state()
    try:
        lines = script.read_text(encoding="utf-8").splitlines() if script else None
    except (OSError, UnicodeDecodeError) as error:
        raise KartRewardsError(f"{script}: can't be read: {error}") from None
    prompt = SearchPrompt(found, state, name)
    if lines is not None:
        prompt.run(lines, str(script))
    elif sys.stdin.isatty():
        prompt.run_interactively()
    else:
        prompt.run(sys.stdin, "standard input")
