"""Checking a game from its files to an episode of play, and checking the machine.

* ``command`` - ``kart-rewards doctor [GAME]``: checks one game, or every game that has its ROM
* ``diagnose`` - the same as a function, which returns whether nothing failed
* ``check_machine`` - versions, memory, disk
* ``check_game`` - files, ROM, emulator, start states, variables, reward terms, snapshots, random play, speed
* ``Findings`` - the results: one line per check, with what to do if the check failed

Each function ``check_…`` makes one check and reports it. It returns what later checks need, or None if it failed. A
failed check hides no check that can still be made. The key ``checks`` of a game's ``scenario.json`` says which values
the variables should have; see ``kart_rewards.scenario``.
"""

from __future__ import annotations

import functools
import math
import os
import platform
import re
import shutil
import sys
import textwrap
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import psutil
import tyro

from kart_rewards.env import KartEnv, make_env
from kart_rewards.errors import KartRewardsError, counted
from kart_rewards.games.condition import Condition
from kart_rewards.games.console import Console
from kart_rewards.games.inputs import parse_inputs
from kart_rewards.integrations import (
    Game,
    MissingRomError,
    find_folder,
    find_game,
    integration_folders,
    list_games,
    rom_sha1,
)
from kart_rewards.integrations import command as command_line
from kart_rewards.ram import RamLayout, Variable, find_block, load_json
from kart_rewards.scenario import Check, Scoring, load_checks, load_scoring
from kart_rewards.scripting import Script
from kart_rewards.training.options import GamesFolder

LEAST_FREE_MEMORY_GIB = 2.0  # on 2 cores the trainer and its environments take 0.9, with evaluation 1.6 (*measured*)
LEAST_FREE_DISK_GIB = 1.0  # a run's log and checkpoints take 0.1 (*measured*), and videos take more

_PACKAGES = ("stable-retro", "gymnasium", "numpy", "opencv-python-headless", "torch", "tyro", "tensorboard")
_SECONDS_TO_PLAY = 2.0
_MAX_SECONDS_TO_PLAY = 10.0  # if no episode ends before
_FRAMES_TO_REPEAT = 300


class Findings:
    """The results of the checks, printed one by one.

    Each line begins with ``ok``, ``warn``, ``FAIL``, or ``--`` for what could not be checked.

    Attributes:
        folder: The game's folder. Messages contain the names of its files without the folder.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self.folder: Path | None = None

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not self._counts["FAIL"]

    def ok(self, what: str, details: str) -> None:
        """Prints that a check passed. ``what`` names the check, ``details`` is its result."""
        self._add("ok", what, details)

    def warn(self, what: str, details: str, remedy: str) -> None:
        """Prints a warning. ``remedy`` is what to do."""
        self._add("warn", what, details, remedy)

    def fail(self, what: str, details: str, remedy: str = "") -> None:
        """Prints that a check failed. ``remedy`` is what to do, unless ``details`` contain it."""
        self._add("FAIL", what, details, remedy)

    def skip(self, what: str, details: str, remedy: str = "") -> None:
        """Prints that a check could not be made."""
        self._add("--", what, details, remedy)

    @contextmanager
    def check(self, what: str, remedy: str = "") -> Iterator[None]:
        """Reports an error in the body of the ``with`` statement as a failed check, and continues after the body."""
        try:
            yield
        except (KartRewardsError, OSError) as error:
            self.fail(what, str(error), remedy)

    def _add(self, level: str, what: str, details: str, remedy: str = "") -> None:
        self._counts[level] += 1
        if self.folder:
            text, *command = re.split("(?=kart-rewards )", details, maxsplit=1)  # a command needs the complete path
            details = "".join((text.replace(f"{self.folder}/", ""), *command))
        details = " ".join(details.split()).removeprefix(f"{what}: ")
        self.print(f"{level:<4}  {what}: {details}{f' -> {remedy}' if remedy else ''}")

    def print(self, line: str) -> None:
        """Prints a line. In a terminal it is wrapped between words."""
        if sys.stdout.isatty():
            width = shutil.get_terminal_size().columns
            line = textwrap.fill(line, width, subsequent_indent=" " * 6, break_long_words=False, break_on_hyphens=False)
        print(line, flush=True)

    def summary(self) -> str:
        """Returns the overall result and how many checks had each result."""
        parts = (("ok", "ok"), ("FAIL", "failed"), ("warn", "with a warning"), ("--", "not checked"))
        counts = ", ".join(f"{self._counts[level]} {what}" for level, what in parts if self._counts[level])
        return f"{'pass' if self.passed else 'FAIL'}: {counts}"


def command(
    game: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[GAME]")] = None,
    /,
    integrations_path: GamesFolder = None,
) -> None:
    """Checks a game from its files to an episode of play, and checks this machine.

    It prints one line per check, with what to do if the check failed. Exit code 0: nothing failed; 1: a check failed.

    Args:
        game: Name of the game's folder. By default every game that has its ROM is checked.
    """
    if not diagnose(game, integrations_path):
        sys.exit(1)


def diagnose(name: str | None, integrations: Path | None = None) -> bool:
    """Checks this machine and a game, or every game that has its ROM, and prints the results.

    Args:
        name: The name of the game's folder. None: every game; of stable-retro's own, those that have a ROM.
        integrations: The only folder to look for games in. None: the standard lookup.

    Returns:
        Whether nothing failed.

    Raises:
        KartRewardsError: There is no such game.
    """
    findings = Findings()
    if name:
        games = [find_folder(name, integrations) or find_game(name, integrations)]
    else:
        games = [find_game(each, integrations) for each in list_games(integrations)]
        games = [game for game in games if not game.is_stock or _has_rom(game)]
    check_machine(findings)
    without_rom = [game for game in games if not name and not _has_rom(game)]
    for game in without_rom:
        findings.skip(game.name, "has no ROM", game.command("import PATH"))
    if len(without_rom) == len(games):
        folders = ", ".join(map(str, integration_folders(integrations)))
        findings.fail("games", f"no game in {folders} has its ROM", command_line("import PATH", integrations))
    for game in games:
        if game not in without_rom:
            findings.print("")
            findings.print(game.name)
            check_game(game, findings)
    findings.print("")
    findings.print(findings.summary())
    return findings.passed


def _has_rom(game: Game) -> bool:
    try:
        game.rom()
    except MissingRomError:
        return False
    except KartRewardsError:
        pass  # it is the wrong one
    return True


def check_machine(findings: Findings) -> None:
    """Checks the versions of the packages, free memory and free disk space."""
    check_versions(findings)
    check_memory(findings)
    check_disk(findings)


def check_versions(findings: Findings) -> None:
    """Checks that the packages are installed, and reports their versions."""
    with findings.check("versions", "install the project with its dependencies again"):
        versions = [f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"]
        for package in _PACKAGES:
            try:
                versions.append(f"{package} {metadata.version(package)}")
            except metadata.PackageNotFoundError:
                raise KartRewardsError(f"{package} is not installed") from None
        findings.ok("versions", ", ".join(versions))


def check_memory(findings: Findings) -> None:
    """Checks that training has enough memory."""
    memory = psutil.virtual_memory()
    remedy = "end other programs, or train with --eval-interval 0"
    _compare_free(findings, "memory", memory.available, memory.total, LEAST_FREE_MEMORY_GIB, remedy)


def check_disk(findings: Findings) -> None:
    """Checks that the current folder has enough disk space for a training run."""
    with findings.check("disk here"):
        disk = shutil.disk_usage(".")
        remedy = "train into another folder: --runs-path FOLDER"
        _compare_free(findings, "disk here", disk.free, disk.total, LEAST_FREE_DISK_GIB, remedy)


def _compare_free(findings: Findings, what: str, free: int, total: int, least_gib: float, remedy: str) -> None:
    details = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    if free >= least_gib * 2**30:
        findings.ok(what, details)
    else:
        findings.warn(what, f"{details}; training takes up to {least_gib:g} GiB", remedy)


def check_game(game: Game, findings: Findings) -> None:
    """Makes each check of a game that can be made. The game's folder may be in any condition."""
    findings.folder = game.folder
    if not check_folder(game, findings):
        findings.skip("all other checks", "not made: they need the folder")
        return
    rom = check_rom(game, findings)
    layout = check_data_file(game, findings)
    scenario = check_scenario_file(game, findings)
    expectations = check_declared_checks(scenario, findings) if scenario else []
    scoring = check_scoring(scenario, layout, findings) if scenario else None
    states = check_default_state(game, findings) if check_has_states(game, findings) else []
    if not rom:
        parts = "emulator, start states, checks, snapshots, random play, speed"
        findings.skip(parts, "not checked: they need the right ROM")
        return
    console = check_emulator(rom, findings)
    if not console:
        findings.skip("start states, checks, snapshots, random play, speed", "not checked: they need the emulator")
        return
    readable = check_addresses(layout, console, game, findings) if layout else None
    console.set_layout(readable)
    snapshots = check_states_load(states, console, game, findings)
    running = check_states_run_on(snapshots, console, game, findings)
    read_in = next(iter([*running, *snapshots]), None)
    if layout and readable and readable.names and read_in:
        check_values(snapshots[read_in], console, game, findings)
        check_coverage(read_in, readable, expectations, findings)
        unreadable = set(layout.names) - set(readable.names)
        for expectation in expectations:
            check_expectation(expectation, snapshots[read_in], unreadable, console, game, findings)
    del console  # there is one emulator per process, and the environments below need it
    playable = running and layout and readable is layout
    if playable:
        check_snapshots(running[0], game, findings)
    else:
        findings.skip("snapshots", "not checked: they need data.json and a start state, both without a fault")
    if playable and scoring:
        check_speed(check_random_play(running[0], game, findings), findings)
    else:
        needs = "data.json, scenario.json and a start state, all without a fault"
        findings.skip("random play, speed", f"not checked: they need {needs}")


def check_folder(game: Game, findings: Findings) -> bool:
    """Checks that the game's folder can be read. Returns whether it can."""
    with findings.check("folder", "make it readable, with chmod"):
        findings.ok("folder", f"{game.folder}, {counted(len(list(game.folder.iterdir())), 'file')}")
        return True
    return False


def check_rom(game: Game, findings: Findings) -> Path | None:
    """Checks that the right ROM is there. Returns its path."""
    with findings.check("ROM"):
        rom = game.rom()
        with rom.open("rb") as file:
            sha1, size = rom_sha1(file)
        findings.ok("ROM", f"{rom.name}, SHA-1 {sha1}, {size // 1024} KiB")
        return rom
    return None


def check_data_file(game: Game, findings: Findings) -> RamLayout | None:
    """Checks the form of ``data.json``. Returns the variables."""
    with findings.check("data.json"):
        layout = RamLayout.from_file(game.json_path("data"))
        if layout.names:
            findings.ok("data.json", counted(len(layout.names), "variable"))
        else:
            findings.warn("data.json", "no variables yet", game.command(f"search {game.name}"))
        return layout
    return None


def check_scenario_file(game: Game, findings: Findings) -> Path | None:
    """Checks that ``scenario.json`` is there and is a JSON object. Returns its path."""
    with findings.check("scenario.json"):
        path = game.json_path("scenario")
        load_json(path)
        return path
    return None


def check_declared_checks(scenario: Path, findings: Findings) -> list[Check]:
    """Checks the form of the ``checks`` in ``scenario.json``. Returns them; none if the form is wrong."""
    with findings.check("checks in scenario.json"):
        return load_checks(scenario)
    return []


def check_scoring(scenario: Path, layout: RamLayout | None, findings: Findings) -> Scoring | None:
    """Checks that the reward terms and done rules exist and read only variables of ``data.json``. Returns them."""
    with findings.check("scenario.json"):
        scoring = load_scoring(scenario, variables=layout.names if layout else None)
        if layout:
            scoring.check(layout)
        findings.ok("scenario.json", f"terms: {_names(scoring.terms)}, rules: {_names(scoring.done)}")
        return scoring
    return None


def check_has_states(game: Game, findings: Findings) -> bool:
    """Checks that the game has a start state. Returns whether it has one."""
    if not game.states():
        findings.fail("start states", "none yet", game.command(f"state {game.name} start --play --default"))
        return False
    return True


def check_default_state(game: Game, findings: Findings) -> list[str]:
    """Checks that ``metadata.json`` names an existing default state. Returns all states, the default state first."""
    states = game.states()
    with findings.check("default state", 'correct "default_state" in metadata.json'):
        default = game.default_state()
        game.state_path(default)
        findings.ok("default state", default)
        return [default, *(state for state in states if state != default)]
    return states


def check_emulator(rom: Path, findings: Findings) -> Console | None:
    """Checks that the emulator starts. Returns it."""
    with findings.check("emulator", "pip install --force-reinstall stable-retro"):
        console = Console(rom)
        findings.ok("emulator", f"{console.name}, {console.frames_per_second:.1f} frames/s")
        return console
    return None


def check_addresses(layout: RamLayout, console: Console, game: Game, findings: Findings) -> RamLayout:
    """Checks that the console has memory at each variable's address. Returns the variables for which it has."""
    inside: list[Variable] = []
    for variable in layout.variables:
        with findings.check(f"variable {variable.name}", _correct_data(game)):
            layout.check_address(variable, console.data.memory.blocks)
            if variable.pointer is not None and all(variable.pointer != other.name for other in inside):
                raise KartRewardsError(f"its pointer {variable.pointer} can't be read")
            inside.append(variable)
    return layout if len(inside) == len(layout.variables) else RamLayout(inside, layout.source)


def check_states_load(states: Sequence[str], console: Console, game: Game, findings: Findings) -> dict[str, bytes]:
    """Checks that the emulator loads each start state. Returns the snapshots of those that it loads, by name."""
    snapshots = {}
    for state in states:
        with findings.check(f"start state {state}", _make_again(game, state)):
            snapshot = game.load_state(state)
            console.load(snapshot, f"start state {state}")
            snapshots[state] = snapshot
    return snapshots


def check_states_run_on(snapshots: dict[str, bytes], console: Console, game: Game, findings: Findings) -> list[str]:
    """Checks that the game runs on from each start state. Returns the names of those from which it does."""
    running: list[str] = []
    still: list[str] = []  # they load, but the game stands still
    by_screen: dict[str, list[str]] = {}  # the states whose screen has this size
    for state, snapshot in snapshots.items():
        console.load(snapshot)
        if console.runs_on():
            running.append(state)
            _start_episode(console, snapshot)
            rows, columns, _ = console.screen.shape
            by_screen.setdefault(f"{rows} rows x {columns} columns", []).append(state)
        else:
            still.append(state)
    counts_frames = console.layout is not None and "current_frame" in console.layout.names
    if counts_frames and still and not running:
        details = f"current_frame does not count in any of {', '.join(still)}: its address is wrong, or all states are"
        findings.fail("start states", f"{details} from another ROM", _correct_data(game))
        return []
    why = "current_frame does not count" if counts_frames else "nothing moves"
    for state in still:
        details = f"the game does not run on from it ({why}): it is from another ROM"
        findings.fail(f"start state {state}", details, _make_again(game, state))
    if running:
        sizes = [f"{size} in {', '.join(states)}" for size, states in by_screen.items()]
        screen = ", ".join(sizes if len(sizes) > 1 else by_screen)
        findings.ok("start states", f"{', '.join(running)}: loaded, and the game runs on; screen: {screen}")
    return running


def check_values(snapshot: bytes, console: Console, game: Game, findings: Findings) -> None:
    """Checks, in a start state, that pointers point into memory and that binary-coded decimals hold digits only."""
    layout = console.layout
    assert layout
    _start_episode(console, snapshot)
    ram, blocks = console.ram(), console.data.memory.blocks
    for variable in layout.variables:
        with findings.check(f"variable {variable.name}", _correct_data(game)):
            address = variable.address + (getattr(ram, variable.pointer) if variable.pointer else 0)
            at = replace(variable, address=address, pointer=None)
            if find_block(at, blocks) is not None:
                _check_digits(at, console)
            else:
                details = f"it reads as 0, because its pointer {variable.pointer} points outside memory in this state"
                findings.warn(f"variable {variable.name}", details, f"unless that is right, {_correct_data(game)}")


def _check_digits(variable: Variable, console: Console) -> None:
    representation, digits = variable.type[-2], 2 * variable.width
    if representation not in "dn" or variable.mask is not None:
        return
    for address in range(variable.address, variable.address + variable.size, variable.width):
        raw = console.data.memory.extract(address, f"{variable.type[:-2]}u{variable.width}") % 2**64
        kind, used = "binary-coded decimal", (content := f"{raw:0{digits}X}")
        if representation == "n":
            kind, used = "one decimal digit per byte", content[1::2]
        if not used.isdecimal():
            raise KartRewardsError(f"0x{content} at 0x{address:X} is not {kind} ({variable.type})")


def check_coverage(state: str, layout: RamLayout, expectations: Sequence[Check], findings: Findings) -> None:
    """Checks that the declared checks read each variable."""
    read = f"{len(layout.names)} read in {state}"
    names_read = _words(" ".join(expectation.expect for expectation in expectations))
    not_read = [name for name in layout.names if name not in names_read]
    if not expectations:
        remedy = 'declare "checks" in scenario.json: see kart_rewards/scenario.py'
        findings.warn("variables", f"{read}, but nothing checks whether their values are plausible", remedy)
    else:
        note = f"; no check reads {', '.join(not_read)}" if not_read else ""
        findings.ok("variables", read + note)


def check_expectation(
    expectation: Check, snapshot: bytes, unreadable: set[str], console: Console, game: Game, findings: Findings
) -> None:
    """Makes a check that ``scenario.json`` declares.

    Args:
        expectation: The check.
        snapshot: The start state to begin from.
        unreadable: Variables that lie outside the console's memory.
        console: The emulator, which reads all other variables.
        game: The game.
        findings: The results.
    """
    unread = sorted(_words(expectation.expect) & unreadable)
    if unread:
        findings.skip(f"check {expectation}", f"not made: it reads {', '.join(unread)}, see above")
        return
    assert console.layout
    condition = None
    with findings.check("check", "correct it in scenario.json"):
        held = parse_inputs(f"1 {expectation.hold}", console.buttons, str(expectation))[0][1]
        condition = Condition(expectation.expect, console.layout.names, with_before=True)
    if condition is None:
        return
    with findings.check(f"check {expectation}", f"{_correct_data(game)}; or correct the check in scenario.json"):
        _start_episode(console, snapshot)
        before = ram = console.ram()
        if not expectation.within_frames:
            if not condition(ram, before):
                raise KartRewardsError(f"does not hold: {condition.values(ram, before)}")
            findings.ok(f"check {expectation}", condition.values(ram, before))
            return
        for frame in range(1, expectation.within_frames + 1):
            console.step(held)
            ram = console.ram()
            if condition(ram, before):
                findings.ok(f"check {expectation}", f"on frame {frame}")
                return
        frames = counted(expectation.within_frames, "frame")
        raise KartRewardsError(f"does not hold within {frames}; after the last: {condition.values(ram, before)}")


def check_snapshots(state: str, game: Game, findings: Findings) -> None:
    """Checks that the game runs on from a saved state as it did before: the same frames twice, with random buttons."""
    with findings.check("snapshots"):
        options: dict[str, Any] = {"integrations": game.folder.parent, "state": state, "scenario": None}
        with closing(KartEnv(game.name, action_mode="multi-discrete", draw_all=True, **options)) as env:
            env.action_space.seed(1)
            actions = [env.action_space.sample() for _ in range(_FRAMES_TO_REPEAT // env.frame_skip)]
            env.reset(seed=1)
            saved = env.get_state()
            first = list(_fingerprints(env, actions))
            env.set_state(saved)
            again = list(_fingerprints(env, actions))
        for step, pairs in enumerate(zip(first, again, strict=True), start=1):
            for what, before, after in zip(("RAM", "picture"), *pairs, strict=True):
                if before != after:
                    findings.warn(
                        "snapshots",
                        "from a saved state, the game does not continue as it did before: its "
                        f"{what} differs after {step * env.frame_skip} frames",
                        "training works, but a resumed run differs from one that was not stopped, and each environment "
                        "needs a process of its own",
                    )
                    return
        findings.ok(
            "snapshots", f"{_FRAMES_TO_REPEAT} frames from {state} are the same again after a saved state is loaded"
        )


def _fingerprints(env: KartEnv, actions: Sequence[Any]) -> Iterator[tuple[int, int]]:
    """Yields the checksums of RAM and picture after each step."""
    for action in actions:
        env.step(action)
        blocks = env.data.memory.blocks.values()
        yield (
            functools.reduce(lambda checksum, block: zlib.crc32(block, checksum), blocks, 0),
            zlib.crc32(env.em.get_screen().tobytes()),
        )


class RandomPlay(NamedTuple):
    """The result of random play.

    Args:
        steps: Number of steps played.
        seconds: Seconds that they took.
        end: How the first episode ended; empty if none ended.
        times_console_speed: Speed as a multiple of the console's own speed.
    """

    steps: int
    seconds: float
    end: str
    times_console_speed: float


def check_random_play(state: str, game: Game, findings: Findings) -> RandomPlay | None:
    """Plays at random in the environment that training uses, for one episode and some seconds. Returns the result.

    Args:
        state: The start state.
        game: The game.
        findings: The results.
    """
    with findings.check("random play"):
        with closing(make_env(game.name, integrations=game.folder.parent, state=state)) as env:
            played = _play_at_random(env)
            core: Any = env.unwrapped
            drawing, alone = core.describe_drawing(), core.slow_turns() or core.sharing_fault()
        episode = played.end or f"{played.steps} steps of an episode"
        findings.ok("random play", f"from {state}, {episode}, all rewards finite")
        findings.ok("drawing", drawing)
        if alone:
            remedy = "training and gymnasium.make_vec do so by themselves"
            findings.warn("several environments", f"each needs a process of its own, because {alone}", remedy)
        return played
    return None


def _play_at_random(env: Any) -> RandomPlay:
    """Raises KartRewardsError if a reward is not a finite number."""
    env.reset(seed=1)
    env.action_space.seed(1)
    steps, seconds, end = 0, 0.0, ""
    start = time.perf_counter()
    while seconds < (_SECONDS_TO_PLAY if end else _MAX_SECONDS_TO_PLAY):
        _, reward, terminated, truncated, info = env.step(env.action_space.sample())
        steps += 1
        seconds = time.perf_counter() - start
        if not math.isfinite(reward):
            raise KartRewardsError(f"the reward of a step is {reward}: it must be a finite number")
        if terminated or truncated:
            end = end or f"an episode of {steps} steps, ended by {info.get('done_rule', 'its time limit')}"
            env.reset()
    frames_per_second = steps * env.unwrapped.frame_skip / seconds
    return RandomPlay(steps, seconds, end, frames_per_second / env.unwrapped.frames_per_second)


def check_speed(played: RandomPlay | None, findings: Findings) -> None:
    """Reports the speed of random play."""
    if played is None:
        findings.skip("speed", "not measured: it needs random play")
        return
    speed = f"{played.steps / played.seconds:,.0f} steps/s, {played.times_console_speed:.0f} times the console's own"
    findings.ok("speed", f"{speed} speed, in one environment; this machine has {os.cpu_count()} cores")


def _start_episode(console: Console, snapshot: bytes) -> None:
    """Begins as an episode begins: loads a start state, and runs one frame."""
    console.load(snapshot)
    console.step()


def _make_again(game: Game, state: str) -> str:
    return f"make it again: {game.command(f'state {game.name} {state} --play --overwrite')}"


def _correct_data(game: Game) -> str:
    return f"correct data.json: {game.command(f'search {game.name}')}"


def _words(expect: str) -> set[str]:
    return set(re.findall(r"\w+", expect))


def _names(scripts: Sequence[Script]) -> str:
    return " ".join(script.name for script in scripts) or "none"
