"""Parity: whether reward terms and done rules in Python pay and end as a scenario of stable-retro does.

* ``Parity`` - a game, with what its scenario pays beside what a port pays
* ``Inputs`` - a start state, and the buttons from it on
* ``Difference`` - the first frame on which both differ
* ``PortScore``, ``Scored`` - what a port pays for an episode
* ``random_inputs``, ``recorded_inputs`` - inputs by chance and from files
* ``command`` - the command ``kart-rewards parity``

Both see the same frames of one emulator. stable-retro's own ``current_reward`` and ``is_done`` say what the scenario
pays and where an episode ends, also if a Lua function decides it. The port is compared before any transform. A new
episode begins after each end; the frame of the end is compared, too. The first frame of an episode is not: no
environment pays it.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import stable_retro
import tyro
from rich.console import Console as Terminal
from rich.table import Table
from tqdm import tqdm

from kart_rewards.declared import DeclaredRule, DeclaredTerm, LuaValue, declared_in, scripts_of
from kart_rewards.done import episode_calls
from kart_rewards.drivers import Driver
from kart_rewards.drives import SUFFIX, load_drive
from kart_rewards.env.core import fingerprints_of
from kart_rewards.env.lua import LuaEngine, lua_errors
from kart_rewards.errors import KartRewardsError, counted
from kart_rewards.files import copy_of
from kart_rewards.games.console import Console
from kart_rewards.games.inputs import button_masks, movie_start, read_inputs
from kart_rewards.games.port import ScenarioName
from kart_rewards.integrations import Game, find_game
from kart_rewards.ram import RamLayout, load_json, value_text
from kart_rewards.scenario import Scoring, load_scoring
from kart_rewards.training.options import GamesFolder, Paths

SINGLE_PRECISION = 2.0**-24
"""The largest rounding error of one operation in single precision, in which stable-retro computes, relative to the
result."""

_RANDOM_FRAMES = 2000  # from one start
_RARELY = frozenset({"START", "SELECT", "MODE", "RESET"})  # a paused game has no rewards
_MOST_HELD = 12  # frames
_VALUE_COLUMNS = 30


@dataclass(frozen=True)
class Inputs:
    """A start state, and the buttons from it on.

    Args:
        name: For messages, such as ``Level1, seed 3``.
        start: The emulator's snapshot.
        make_driver: Returns the driver of an episode: a function that takes the snapshot of a frame, and returns the
            names of the buttons to hold on the next one.
        frames: The number of frames. None: it has no end.
        lead: The buttons of the frames from the start state up to that of the reset.
    """

    name: str
    start: bytes
    make_driver: Callable[[], Driver]
    frames: int | None = None
    lead: Sequence[frozenset[str]] = (frozenset(),)


@dataclass(frozen=True)
class Scored:
    """What is paid for a frame.

    Args:
        reward: The weighted sum of all terms.
        terms: Term -> its weighted value. Those that pay 0 may be missing.
        rule: The rule that ends the episode, or None.
    """

    reward: float
    terms: dict[str, float]
    rule: str | None


ScoreFrame = Callable[[Any, frozenset[str]], Scored]
"""Scores a frame from its snapshot and the names of the buttons that are held."""


class PortScore:
    """What terms and rules pay for an episode, as plain weighted sums.

    Args:
        scoring: The terms and rules.
    """

    def __init__(self, scoring: Scoring) -> None:
        self._rewards, self._done = episode_calls(scoring.terms, scoring.done)

    def __call__(self, ram: Any, buttons: frozenset[str]) -> Scored:
        """Scores a frame. The first one is that of the reset.

        Args:
            ram: Its ``RamSnapshot``.
            buttons: The names of the buttons that are held on it.

        Raises:
            KartRewardsError: A term or rule failed.
        """
        self._rewards.start_step()
        reward = self._rewards(ram, buttons)
        rule = self._done(ram, buttons)
        terms = {name: paid for name, paid in self._rewards.step.items() if paid}
        return Scored(reward, terms, rule.name if rule else None)


@dataclass(frozen=True)
class Difference:
    """The first frame on which port and scenario differ.

    Args:
        inputs: The name of the inputs.
        frame: The number of the frame in its episode. The frame of the reset is 0.
        port: What the port pays.
        reward: What the scenario pays.
        over: Whether the scenario ends the episode.
        declared: Term -> what the scenario's own term of this name pays; None if Lua decides the reward.
        declared_rules: The scenario's rules that are true; None if Lua decides the end.
        read: The variables that the port or the scenario reads.
        unsigned: Those of them that are negative, and that stable-retro reads as large numbers, because it does not
            know the type ``s``.
        previous: The snapshot of the frame before.
        ram: The snapshot of the frame.
    """

    inputs: str
    frame: int
    port: Scored
    reward: float
    over: bool
    declared: dict[str, float] | None
    declared_rules: list[str] | None
    read: set[str]
    unsigned: list[str]
    previous: Any
    ram: Any

    def differing_terms(self) -> list[str]:
        """Returns the names of the terms that do not pay what the scenario's term of the name pays."""
        if self.declared is None:
            return []
        names = dict.fromkeys((*self.declared, *self.port.terms))
        return [name for name in names if not _equal(self.port.terms.get(name, 0.0), self.declared.get(name, 0.0))]

    def lines(self) -> list[str]:
        """Returns what differs, as lines of text."""
        differing = self.differing_terms()
        port = _result(self.port.reward, self.port.terms, self.port.rule is not None, [self.port.rule or ""])
        scenario = _result(self.reward, self.declared or {}, self.over, self.declared_rules or [])
        lines = [f"{self.inputs}, frame {self.frame:,}:", f"  the port {port}", f"  the scenario {scenario}"]
        lines += [f"  terms that differ: {', '.join(differing)}"] if differing else []
        hint = "stable-retro reads the type s as unsigned; i is signed for both"
        return lines + [f"  {name} is negative: {hint}" for name in self.unsigned]

    def table(self) -> Table:
        """Returns the variables that are read, and those that changed, with their values before and on the frame."""
        table = Table("variable", "before", "now", box=None, pad_edge=False, header_style="bold")
        values = zip(self.ram._fields, self.previous, self.ram, strict=True)
        for name, *pair in sorted(values, key=lambda row: row[0] not in self.read):
            if name in self.read or pair[0] != pair[1]:
                table.add_row(name, *(value_text(value, _VALUE_COLUMNS) for value in pair))
        return table


def _result(reward: float, terms: dict[str, float], over: bool, rules: list[str]) -> str:
    shares = ", ".join(f"{name} {paid:g}" for name, paid in terms.items() if paid)
    end = ", ".join(filter(None, rules))
    paid = f"pays {reward:g}{f' ({shares})' if shares else ''}"
    if not over:
        return f"{paid} and goes on"
    return f"{paid} and ends the episode{f' ({end})' if end else ''}"


def _equal(one: float, other: float, operations: int = 4, size: float = 0.0) -> bool:
    """Whether two rewards differ by no more than the rounding errors of single precision."""
    return abs(one - other) <= operations * SINGLE_PRECISION * max(size, abs(one), abs(other))


class Parity:
    """A game in the emulator, with what its scenario pays beside what a port pays.

    Args:
        game: The game.
        port: The port's terms and rules.
        scenario: The scenario file: a name in the game's folder, or a path that ends in ``.json``.
        info: The data file, likewise.
        make_score: Returns what scores an episode. By default ``PortScore`` of the port.
        their_info: The data file that stable-retro reads. By default ``info``.

    Attributes:
        frames: The number of frames that were compared.
        buttons: The console's buttons, in the core's order; None where the core has none.
        fired: The terms that paid and the rules that ended an episode so far, as ``(kind, name)``, with the number of
            frames. The kind is ``term`` or ``rule``.

    Raises:
        KartRewardsError: A file of the game is missing or wrong, the scenario has no rewards and no rules of
            stable-retro's, or the port reads a variable that does not exist.

    Example:
        >>> from kart_rewards.scenario import load_scoring
        >>> game = find_game("Airstriker-Genesis-v0")
        >>> parity = Parity(game, load_scoring(game.json_path("scenario"), variables=()))
        >>> all(parity.compare(inputs, 100) is None for inputs in random_inputs(game, parity.buttons, 1))
        True
        >>> parity.frames
        100
    """

    def __init__(
        self,
        game: Game,
        port: Scoring,
        scenario: str | Path = "scenario",
        info: str | Path = "data",
        make_score: Callable[[], ScoreFrame] | None = None,
        their_info: str | Path = "",
    ) -> None:
        path, data_path = game.json_path(scenario), game.json_path(their_info or info)
        self._path = path
        self._layout = layout = RamLayout.from_file(game.json_path(info))
        declared = declared_in(load_json(path), path)
        self._terms, self._rules = list(declared.terms), list(declared.rules)
        if not (self._terms or self._rules):
            raise KartRewardsError(f'{path}: has no "reward" and no "done" of stable-retro\'s to compare with')
        for script in (*self._terms, *self._rules):
            script.check_reads(layout)
        port.check(layout)
        self._port = port
        self._make_score = make_score or (lambda: PortScore(port))
        self._console = Console(game.rom(), layout)
        self.buttons = self._console.buttons
        self.frames = 0
        self.fired: Counter[tuple[str, str]] = Counter()
        self._unseen: list[DeclaredTerm | DeclaredRule] = [*self._terms, *self._rules]  # of the scenario
        self._theirs = stable_retro.data.GameData()
        self._scripts = scripts_of((*self._terms, *self._rules))
        if self._scripts:
            LuaEngine(self._scripts, data_path, self._bind)  # only to check the scripts
        self._bind(self._theirs)
        if not self._theirs.load(str(copy_of(data_path)), str(copy_of(path))):
            raise KartRewardsError(f"stable-retro can't load {data_path} with {path}: check both files")

    def _bind(self, data: Any) -> None:
        for each in (data, self._console.data):  # the emulator keeps a pointer to the last one
            self._console.em.configure_data(each)

    def _update(self) -> None:
        """Lets stable-retro compute its reward and end."""
        try:
            with lua_errors(self._scripts, self._theirs.list_variables()) if self._scripts else nullcontext():
                self._theirs.update_ram()
        except (ValueError, IndexError) as error:
            raise KartRewardsError(
                f"{self._path}: stable-retro can't compute this scenario ({error}): it takes comments inside "
                '"variables" for variables, and does not know pointers'
            ) from None

    def _begin(self, inputs: Inputs) -> tuple[Driver, ScoreFrame, Any]:
        """Begins an episode. Returns who drives, what scores, and the first snapshot."""
        self._console.load(inputs.start, inputs.name)
        self._bind(self._theirs)  # some cores move their memory when they load a state
        held: frozenset[str] = frozenset()
        for held in inputs.lead:
            self._console.step(held)
        self._theirs.reset()
        self._update()
        ram, score = self._console.ram(), self._make_score()
        score(ram, held)
        return inputs.make_driver(), score, ram

    def compare(self, inputs: Inputs, frames: int | None = None) -> Difference | None:
        """Plays inputs, and compares frame by frame.

        Args:
            inputs: The inputs. After the end of an episode, they go on from their start state.
            frames: The most frames to compare. None: all frames of the inputs.

        Returns:
            The first difference; None if there is none.

        Raises:
            KartRewardsError: The emulator refuses the start state, or a term, a rule or a Lua function failed.
        """
        driver, score, ram = self._begin(inputs)
        frame, theirs = 0, self._theirs
        limits = [limit for limit in (inputs.frames, frames) if limit is not None]
        for _ in range(min(limits)) if limits else itertools.count():
            held = driver(ram)
            self._console.step(held)
            self._update()
            previous, ram = ram, self._console.ram()
            scored, reward, over = score(ram, held), theirs.current_reward(), bool(theirs.is_done())
            self.frames, frame = self.frames + 1, frame + 1
            self.fired.update(("term", name) for name in scored.terms)
            self.fired.update([("rule", scored.rule)] if scored.rule else [])
            if reward or over:
                unseen = self._unseen
                self._unseen = [each for each in unseen if not self._has_effect(each, reward, over, previous, ram)]
            operations = max(len(self._terms), len(scored.terms)) + 4
            size = sum(map(abs, scored.terms.values()))
            if (scored.rule is not None) != over or not _equal(scored.reward, reward, operations, size):
                return self._difference(inputs.name, frame, scored, previous, ram)
            if over:
                (driver, score, ram), frame = self._begin(inputs), 0
        return None

    def _difference(self, inputs: str, frame: int, scored: Scored, previous: Any, ram: Any) -> Difference:
        terms, rules = self._terms, self._rules
        scripts = (*terms, *rules, *self._port.terms, *self._port.done)
        read = {name for script in scripts for name in script.may_read(ram._fields)}
        unknown_type = {each.name for each in self._layout.variables if each.type[-2] == "s" and each.count is None}
        return Difference(
            inputs,
            frame,
            scored,
            self._theirs.current_reward(),
            bool(self._theirs.is_done()),
            None if scripts_of(terms) else {term.name: term.weight * term.definition(ram, previous) for term in terms},
            None if scripts_of(rules) else [rule.name for rule in rules if rule.definition(ram, previous)],
            read,
            [name for name in sorted(read & unknown_type) if min(getattr(previous, name), getattr(ram, name)) < 0],
            previous,
            ram,
        )

    @staticmethod
    def _has_effect(script: DeclaredTerm | DeclaredRule, reward: float, over: bool, previous: Any, ram: Any) -> bool:
        """Returns whether one of the scenario's terms pays on a frame, or one of its rules ends the episode."""
        if isinstance(script.declaration, LuaValue):
            return bool(reward if isinstance(script, DeclaredTerm) else over)
        return bool(script.definition(ram, previous))

    def silent(self) -> list[str]:
        """Returns the terms that have never paid, and the rules that have never ended an episode.

        They are those of the port. If all of these were seen, they are those of the scenario, which the port may lack.
        """
        terms = [each.name for each in self._port.terms if ("term", each.name) not in self.fired]
        terms = terms or [each.name for each in self._unseen if isinstance(each, DeclaredTerm) and each.weight]
        rules = [each.name for each in self._port.done if ("rule", each.name) not in self.fired]
        rules = rules or [each.name for each in self._unseen if isinstance(each, DeclaredRule)]
        return [*(f"term {name}" for name in terms), *(f"rule {name}" for name in rules)]


def random_inputs(game: Game, buttons: Sequence[str | None], number: int) -> Iterator[Inputs]:
    """Yields endless inputs with random buttons, from all start states of a game in turn.

    Args:
        game: The game.
        buttons: The console's buttons.
        number: How many inputs.

    Raises:
        KartRewardsError: The game has no start state, or one is damaged.
    """
    states = game.states() or [game.default_state()]  # raises, with what to do
    for seed, state in zip(range(number), itertools.cycle(states), strict=False):
        yield Inputs(f"{state}, seed {seed}", game.load_state(state), _replay(_random_buttons(buttons, seed)))


def _random_buttons(buttons: Sequence[str | None], seed: int) -> Iterator[frozenset[str]]:
    """Yields random buttons. They are held for some frames, because many games miss shorter ones."""
    generator = random.Random(seed)
    names = [name for name in buttons if name]
    while True:
        held = {name for name in names if generator.random() < (0.01 if name in _RARELY else 0.25)}
        for _ in range(generator.randint(1, _MOST_HELD)):
            yield frozenset(held)


def recorded_inputs(path: Path, game: Game, buttons: Sequence[str | None]) -> Inputs:
    """Returns the inputs in a file.

    Args:
        path: A drive (see ``kart_rewards.drives``); a ``.bk2`` movie; or a text script of buttons (see
            ``kart_rewards.games.inputs``), which starts in the game's default state.
        game: The game.
        buttons: The console's buttons.

    Raises:
        KartRewardsError: The file can't be read, or it can't be played again.
    """
    if path.name.endswith(".csv.gz"):
        raise KartRewardsError(f"{path}: has no buttons: use the {SUFFIX} or .bk2 beside it")
    if path.suffix == SUFFIX:
        drive = load_drive(path)
        if not drive.start:
            raise KartRewardsError(f"{path}: can't be played again: the drive has no start state")
        rom = fingerprints_of(game.rom())["ROM"]
        if drive.info.fingerprints.get("ROM", rom) != rom:
            raise KartRewardsError(f"{path}: was recorded with another ROM than {game.name}'s: {drive.info.game}'s")
        held, start, names = drive.buttons[1:], drive.start, drive.info.buttons
        lead = [
            frozenset(name for bit, name in enumerate(names) if name and mask >> bit & 1)
            for mask in drive.lead.tolist()
        ]
    else:
        is_movie = path.suffix == ".bk2"
        held = [
            frozenset(name for name, down in zip(buttons, mask, strict=True) if name and down)
            for mask in button_masks(read_inputs(path, buttons), buttons)
        ]
        lead = held[:1] if is_movie else [frozenset()]  # a movie begins with the frame of the reset
        held = held[1:] if is_movie else held
        start = movie_start(path) if is_movie else game.load_state(game.default_state())
    return Inputs(str(path), start, _replay(iter(held)), len(held), lead)


def _replay(held: Iterator[frozenset[str]]) -> Callable[[], Driver]:
    """Returns a function for ``Inputs``: the buttons go on from episode to episode."""
    return lambda: lambda ram: next(held)


def command(
    game: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="GAME")],
    /,
    rewards: Path,
    scenario: ScenarioName = "scenario",
    drives: Paths = (),
    frames: int = 10_000,
    integrations_path: GamesFolder = None,
) -> None:
    """Compares rewards in Python with those of a game's scenario of stable-retro, frame by frame.

    It plays recorded and random input, and prints the number of frames that are equal, or the first difference. Exit
    code 0: all frames are equal; 1: one differs.

    Args:
        game: Name of the game's folder.
        rewards: The Python file with the reward terms and done rules.
        scenario: The scenario to compare with: a name in the game's folder, or a path that ends in .json.
        drives: Recorded drives, which are played first: .drive files, .bk2 movies, or text scripts of buttons.
        frames: Number of frames with random buttons, from all start states of the game in turn.
    """
    if frames < 0:
        raise KartRewardsError(f"--frames must be 0 or more, not {frames}")
    if frames == 0 and not drives:
        raise KartRewardsError("there is nothing to compare: --frames is 0, and there are no --drives")
    found = find_game(game, integrations_path)
    layout = RamLayout.from_file(found.json_path("data"))
    parity = Parity(found, load_scoring(None, [rewards], variables=layout.names), scenario)
    recorded = [(recorded_inputs(path, found, parity.buttons), None) for path in drives]
    lengths = [min(_RANDOM_FRAMES, frames - done) for done in range(0, frames, _RANDOM_FRAMES)]
    by_chance = zip(random_inputs(found, parity.buttons, len(lengths)), lengths, strict=True)
    total = len(recorded) + len(lengths)
    for inputs, most in tqdm(itertools.chain(recorded, by_chance), "inputs", total, leave=False, disable=None):
        difference = parity.compare(inputs, most)
        if difference:
            print(
                f"{counted(parity.frames - 1, 'frame')}, equal. Then a difference:",
                *difference.lines(),
                sep="\n",
                end="\n\n",
            )
            Terminal(markup=False, highlight=False, emoji=False).print(difference.table())
            sys.exit(1)
    print(f"{counted(parity.frames, 'frame')}, equal")
    if parity.silent():
        print(f"Never seen in these frames: {', '.join(parity.silent())}. Add drives that show them: --drives")
