"""Declared rewards beside stable-retro's own: random walks over the variables of its stock games, in live memory.

``python tests/declared_walks.py`` compares all stock games, and prints a table of consoles. ``--frames`` and a list of
consoles make it shorter.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import stable_retro
from console_roms import PROGRAMS, SATURN_BIOS_FILES, fight_board, saturn, saturn_bios
from tqdm import tqdm

from kart_rewards.declared import Measure, Node, Pay, scripts_of
from kart_rewards.done import EpisodeDone
from kart_rewards.env.core import start_emulator
from kart_rewards.env.lua import LuaEngine, with_values
from kart_rewards.errors import KartRewardsError
from kart_rewards.lua import LuaScripts, reads_of
from kart_rewards.ram import RamLayout, Variable, attribute_name, int_64, load_json
from kart_rewards.rewards import EpisodeRewards
from kart_rewards.scenario import Scoring, load_scoring

STOCK = Path(stable_retro.data.path()) / "stable"
ROMS = {
    "Genesis": STOCK / "Airstriker-Genesis-v0" / "rom.md",
    "Snes": Path(__file__).parents[1] / "integrations" / "HomebrewKart-Snes" / "rom.sfc",
}
"""Console -> a ROM that may be copied. The other consoles have a program of ``console_roms``."""
HEADINGS = ("games", "frames", "rounded", "differences", "Lua", "refused")
LUA_EPISODE = 40  # frames from one reset to the next
SINGLE = 2.0**-24  # the largest rounding error of one operation in single precision, relative to its result


_BOUND: list[Any] = []
"""The data that the emulator has a raw pointer to."""


@dataclass
class Comparison:
    """What the comparison of one game found.

    Attributes:
        lua: Whether the reward or the end is a function of Lua.
        frames: The number of frames.
        rounded: The number of frames on which the rewards differ by rounding errors of single precision.
        differences: The frames on which they differ by more, or only one of the two ends the episode.
        unreached: The conditions that no frame made true, or none made false, although there are such values.
    """

    lua: bool = False
    frames: int = 0
    rounded: int = 0
    differences: list[str] = field(default_factory=list)
    unreached: list[str] = field(default_factory=list)


def console_of(folder: Path) -> str:
    """Returns the console in the name of a game's folder: ``Airstriker-Genesis-v0`` -> ``Genesis``."""
    return folder.name.removesuffix("-v0").rpartition("-")[2]


def stock_games() -> dict[str, list[Path]]:
    """Returns console -> the folders of stable-retro's games that have a scenario."""
    games: dict[str, list[Path]] = {}
    for scenario in sorted(STOCK.glob("*/scenario.json")):
        games.setdefault(console_of(scenario.parent), []).append(scenario.parent)
    return games


def started(console: str, folder: Path) -> Any:
    """Returns an emulator that runs a program on a console, after some frames.

    Args:
        console: The console. The Saturn needs ``saturn_environment``.
        folder: A folder to write into.
    """
    rom = ROMS.get(console)
    if rom is None:
        others = {"Arcade": lambda: fight_board(folder), "Saturn": saturn}
        program = (PROGRAMS | others)[console]()
        rom = folder / program.file
        rom.write_bytes(program.rom)
    em = start_emulator(rom)
    _BOUND[:] = [stable_retro.data.GameData()]
    em.configure_data(_BOUND[0])
    for _ in range(3):  # the core finds its memory on the first frames
        em.step()
    return em


def saturn_environment(folder: Path) -> dict[str, str]:
    """Returns environment variables for a process that emulates the Saturn, with a BIOS of our own.

    Args:
        folder: A folder to write the BIOS and links to the cores into.
    """
    for file in Path(stable_retro.core_path()).iterdir():
        (folder / file.name).symlink_to(file)
    for name in SATURN_BIOS_FILES:
        (folder / name).write_bytes(saturn_bios())
    return os.environ | {"RETRO_CORE_PATH": str(folder)}


def parts_of(declaration: Pay | Node | Measure) -> Iterator[Pay | Node | Measure]:
    """Yields a declaration and everything inside it."""
    yield declaration
    if isinstance(declaration, Pay):
        yield declaration.measure
    elif isinstance(declaration, Node):
        for part in declaration.parts:
            yield from parts_of(part)


class Walk:
    """A random walk over the variables that a scenario reads.

    Args:
        data: The ``GameData`` of stable-retro, with its own names of the variables.
        names: Attribute -> stable-retro's name.
        variables: Attribute -> variable.
        measures: The measures of the scenario.
        generator: The random numbers.
    """

    def __init__(
        self,
        data: Any,
        names: dict[str, str],
        variables: dict[str, Variable],
        measures: list[Measure],
        generator: random.Random,
    ) -> None:
        self.data, self.names, self.variables = data, names, variables
        self.measures = [measure for measure in measures if measure.variable]
        self.read = sorted({measure.variable for measure in self.measures if measure.variable})
        self.generator = generator

    def step(self, ram: Any) -> None:
        """Writes new values of some variables. One of five ways is used, each reaches other conditions."""
        ways = (self.nudge, self.jump, self.scramble, self.aim, lambda ram: None)
        self.generator.choices(ways, (30, 20, 15, 30, 5))[0](ram)

    def write(self, name: str, value: int) -> None:
        """Writes a value, as the type stores it."""
        variable = self.variables[name]
        size = variable.highest - variable.lowest + 1
        self.data.set_value(self.names[name], int_64((value - variable.lowest) % size + variable.lowest))

    def some(self, share: float) -> list[str]:
        return [name for name in self.read if self.generator.random() < share]

    def nudge(self, ram: Any) -> None:
        """Adds small numbers; from the ends of the type they wrap around."""
        for name in self.some(0.5):
            self.write(name, getattr(ram, name) + self.generator.choice((-3, -2, -1, 1, 1, 2, 10, 100)))

    def jump(self, ram: Any) -> None:
        """Writes ends of the types, references, and their neighbours."""
        for name in self.some(0.6):
            measures = [measure for measure in self.measures if measure.variable == name]
            self.write(name, self.generator.choice(candidates(self.generator.choice(measures), self.variables[name])))

    def scramble(self, ram: Any) -> None:
        """Writes random bytes, which are not always decimal digits."""
        for name in self.some(0.5):
            variable = self.variables[name]
            for i in range(variable.width):
                self.data.memory.assign(variable.address + i, "|u1", self.generator.randrange(256))

    def aim(self, ram: Any) -> None:
        """Makes nearly all conditions true, or all false."""
        wanted = self.generator.random() < 0.8
        for measure in self.measures:
            assert measure.variable
            if self.generator.random() < 0.92:
                before = getattr(ram, measure.variable) if measure.delta else 0
                fitting = [
                    value
                    for value in candidates(measure, self.variables[measure.variable])
                    if (passes(measure, value) > 0) == wanted
                ]
                if fitting:
                    self.write(measure.variable, before + self.generator.choice(fitting))


def candidates(measure: Measure, variable: Variable) -> list[int]:
    """Returns numbers near those at which the measure's condition changes."""
    reference = measure.reference
    near = [0, 1, -1, reference, reference - 1, reference + 1, -reference, reference, reference]
    return [*near, variable.lowest, variable.highest, (variable.lowest + variable.highest + 1) // 2]


def passes(measure: Measure, number: int) -> int:
    """Returns the measure of a number, which is the variable's value or its change."""
    absolute = Measure(measure.variable, False, measure.op, measure.reference)
    return absolute(type("Ram", (), {str(measure.variable): number}), None)


def can_be(measure: Measure, variable: Variable, wanted: bool) -> bool:
    """Whether there is a value, or a change, for which the condition of a measure is true, or false."""
    lowest, highest = variable.lowest, variable.highest
    if measure.delta:
        lowest, highest = lowest - highest, highest - lowest
    numbers = [n for n in candidates(measure, variable) if lowest <= n <= highest]
    if not measure.delta:
        numbers = [number & variable.core_mask for number in numbers]
    return any((passes(measure, number) > 0) == wanted for number in numbers)


def compare(em: Any, folder: Path, frames: int, seed: int = 0) -> Comparison:
    """Compares the terms and rules of a game with stable-retro's reward and end, frame by frame.

    Args:
        em: The emulator.
        folder: The game's folder, with ``data.json`` and ``scenario.json``.
        frames: The number of frames.
        seed: Of the random walk.

    Raises:
        KartRewardsError: This project refuses the game.
    """
    layout = RamLayout.from_file(folder / "data.json")
    scoring = load_scoring(folder / "scenario.json", variables=layout.names)
    scoring.check(layout)
    names = {attribute_name(name): name for name in load_json(folder / "data.json")["info"]}
    scripts = scripts_of((*scoring.terms, *scoring.done))
    if scripts:
        return compared_in_turn(em, folder, layout, names, scoring, scripts, frames, f"{folder.name} {seed}")
    theirs, ours = stable_retro.data.GameData(), stable_retro.data.GameData()
    for data in (theirs, ours):
        em.configure_data(data)
    _BOUND[:] = theirs, ours
    assert theirs.load(str(folder / "data.json"), str(folder / "scenario.json"))
    return walked(
        em, theirs, layout.reader(ours), layout, names, scoring, frames, random.Random(f"{folder.name} {seed}")
    )


def compared_in_turn(
    em: Any,
    folder: Path,
    layout: RamLayout,
    names: dict[str, str],
    scoring: Scoring,
    scripts: LuaScripts,
    frames: int,
    seed: str,
) -> Comparison:
    """Compares as ``compare`` does, but runs stable-retro alone first: a process has one engine for Lua.

    Both begin a new episode from time to time.
    """
    start = em.get_state()
    theirs, ours = stable_retro.data.GameData(), stable_retro.data.GameData()
    em.configure_data(ours)
    _BOUND[:] = theirs, ours
    declared = [part for part in parts_in(scoring) if isinstance(part, Measure)]
    read = {attribute_name(name) for file in scripts.files for name in reads_of(file.code)}
    measures = [*declared, *(Measure(name, False) for name in sorted(read))]
    variables = {variable.name: variable for variable in layout.variables}

    def walk(begin: Callable[[], None], frame_of: Callable[[Any], Any]) -> list[Any]:
        em.set_state(start)
        for data in (theirs, ours):  # some cores move their memory when they load a state
            em.configure_data(data)
        plain = layout.reader(ours)
        way = Walk(ours, {name: name for name in names}, variables, measures, random.Random(seed))
        found, ram = [], None
        for frame in range(frames):
            if frame % 25 == 24:
                em.step()
            if frame % LUA_EPISODE == 0:
                begin()
            else:
                way.step(ram)
            ram = plain()
            found.append((frame % LUA_EPISODE == 0, ram, *frame_of(ram)))
        return found

    def frame_of_theirs(ram: Any) -> tuple[float, bool]:
        theirs.update_ram()
        return theirs.current_reward(), theirs.is_done()

    assert theirs.load(str(folder / "data.json"), str(folder / "scenario.json"))
    wanted = walk(theirs.reset, frame_of_theirs)
    engine = LuaEngine(scripts, folder / "data.json", em.configure_data)
    episode: list[Any] = []

    def begin() -> None:
        engine.begin_episode()
        episode[:] = EpisodeRewards(scoring.terms), EpisodeDone(scoring.done)

    def frame_of_ours(ram: Any) -> tuple[float, bool, float]:
        rewards, done = episode
        ram = with_values(lambda: ram, layout.names, scripts, engine)()
        rewards.start_step()
        return rewards(ram), done(ram) is not None, sum(map(abs, rewards.step.values()))

    comparison = Comparison(lua=True)
    found = walk(begin, frame_of_ours)
    em.configure_data(ours)  # the emulator has a pointer to the engine's data
    for (first, ram, reward, over), (_, same, paid, ended, size) in zip(wanted, found, strict=True):
        assert ram == same, "both walks are the same"
        if not first:  # stable-retro has no frame before it, or one of another episode
            comparison.frames += 1
            comparison.rounded += paid != reward
            if abs(paid - reward) > (len(scoring.terms) + 4) * SINGLE * size or ended != over:
                comparison.differences.append(f"{paid} and {reward}, {ended} and {over}\n  {ram}")
    seen = {(reward != 0, over) for _, _, reward, over in wanted}
    for place, what in enumerate(("a reward", "an end")):
        if not any(each[place] for each in seen):
            comparison.unreached.append(f"{what} of Lua is never seen")
    return comparison


def parts_in(scoring: Scoring) -> list[Any]:
    """Returns all parts of the declarations of terms and rules."""
    return [part for script in (*scoring.terms, *scoring.done) for part in parts_of(script.declaration)]  # type: ignore[attr-defined]


def walked(
    em: Any,
    theirs: Any,
    read: Callable[[], Any],
    layout: RamLayout,
    names: dict[str, str],
    scoring: Scoring,
    frames: int,
    generator: random.Random,
) -> Comparison:
    """Walks and compares; see ``compare``."""
    rewards, done = EpisodeRewards(scoring.terms), EpisodeDone(scoring.done)
    variables = {variable.name: variable for variable in layout.variables}
    parts = parts_in(scoring)
    watched = [part for part in parts if isinstance(part, (Measure, Node))]
    seen: list[set[bool]] = [set() for _ in watched]
    walk = Walk(theirs, names, variables, [part for part in parts if isinstance(part, Measure)], generator)
    theirs.reset()
    theirs.update_ram()
    ram = read()
    found = Comparison()
    for frame in range(frames):
        if frame:
            if frame % 25 == 0:
                em.step()
            walk.step(ram)
            theirs.update_ram()
        previous, ram = ram, read()
        rewards.start_step()
        reward, over = rewards(ram), done(ram)
        for part, values in zip(watched, seen, strict=True):
            values.add(part(ram, previous) > 0)
        found.frames += 1
        size = sum(map(abs, rewards.step.values()))
        error = abs(reward - theirs.current_reward())
        found.rounded += error > 0
        if error > (len(rewards.step) + 4) * SINGLE * size or (over is not None) != theirs.is_done():
            both = f"{reward} and {theirs.current_reward()}, {over} and {theirs.is_done()}"
            found.differences.append(f"frame {frame}: {both}\n  {previous}\n  {ram}")
    for part, values in zip(watched, seen, strict=True):
        for wanted in {True, False} - values:
            if isinstance(part, Measure):
                reachable = part.variable is not None and can_be(part, variables[part.variable], wanted)
            else:
                leaves = [leaf for leaf in parts_of(part) if isinstance(leaf, Measure)]
                reachable = all(can_be(leaf, variables[str(leaf.variable)], wanted) for leaf in leaves) and bool(leaves)
            if reachable:
                found.unreached.append(f"{part} is never {wanted}")
    return found


def row_of(console: str, frames: int) -> tuple[str, list[str]]:
    """Returns a row of the table, and the problems: differences, games that are refused, and what was not reached."""
    found, problems, refused = [], [], 0
    with tempfile.TemporaryDirectory() as scratch:
        em = started(console, Path(scratch))
        for folder in tqdm(stock_games()[console], console, disable=None):
            try:
                one = compare(em, folder, frames)
            except KartRewardsError as error:
                refused += 1
                problems.append(f"{folder.name}: refused: {error}")
                continue
            found.append(one)
            problems += [f"{folder.name}: {text}" for text in (*one.differences[:2], *one.unreached)]
        del em
    numbers = [
        len(found),
        sum(one.frames for one in found),
        sum(one.rounded for one in found),
        sum(len(one.differences) for one in found),
        sum(one.lua for one in found),
        refused,
    ]
    return "".join([f"{console:<10}", *(f"{number:>13,}" for number in numbers)]), problems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("consoles", nargs="*", choices=[[], *sorted(stock_games())])
    parser.add_argument("--frames", type=int, default=3000)
    arguments = parser.parse_args()
    print("console   " + "".join(f"{title:>13}" for title in HEADINGS))
    for console in arguments.consoles or sorted(stock_games()):
        with tempfile.TemporaryDirectory() as cores:
            if console == "Saturn" and "RETRO_CORE_PATH" not in os.environ:
                command = [sys.executable, __file__, console, "--frames", str(arguments.frames)]
                environment = saturn_environment(Path(cores))
                output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
                print(*output.splitlines()[1:], sep="\n")
                continue
        row, problems = row_of(console, arguments.frames)
        print(row, *problems, sep="\n", flush=True)


if __name__ == "__main__":
    main()
