"""Checks a game end to end, and the machine: the work of ``python -m kart_rewards doctor``.

* ``diagnose`` - all of it
* ``examine_machine`` - versions, memory, disk
* ``GameExamination`` - files, ROM, emulator, start states, variables, reward terms, an episode of random play, speed
* ``Report`` - the findings, a line each, with what to do about it

A check that fails hides none that can still be made. What a game's variables should read, its folder declares: the key
``checks`` of its ``scenario.json``, see ``kart_rewards.scenario``.
"""

from __future__ import annotations

import math
import os
import platform
import re
import shutil
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import stable_retro

from kart_rewards.env import make_env
from kart_rewards.env.actions import LEFT, RIGHT, THROTTLE
from kart_rewards.env.core import start_emulator
from kart_rewards.env.observations import ObservationConfig, ScreenObserver
from kart_rewards.errors import KartRewardsError
from kart_rewards.games.condition import Condition
from kart_rewards.games.inputs import Held, button_masks, parse_inputs
from kart_rewards.integrations import INTEGRATIONS, Game, MissingRomError, command, find_game, list_games, rom_sha1
from kart_rewards.ram import RamLayout, Variable, load_json
from kart_rewards.scenario import Check, Scoring, load_checks, load_scoring
from kart_rewards.scripting import Script

LEAST_FREE_MEMORY_GIB = 2.0  # on 2 cores the trainer and its environments take 0.9, with evaluation 1.6 (*measured*)
LEAST_FREE_DISK_GIB = 1.0  # a run's log and checkpoints take 0.1 (*measured*), and videos more

_PACKAGES = ("stable-retro", "gymnasium", "numpy", "opencv-python-headless", "torch", "tyro", "tensorboard")
_FRAMES_TO_COUNT = 10  # in which current_frame must count up, as KartEnv asks of a state
_FRAMES_TO_MOVE = 60  # in which something must change, in a game without current_frame
_FLAGS = {"observation": "--crop None", "action_mode": "--action-mode multi-discrete"}  # of Machine.fitting_options
_SECONDS_TO_PLAY = 2.0
_MOST_SECONDS_TO_PLAY = 10.0  # if no episode ends before


class Report:
    """The findings, printed as they come: ``ok``, ``warn``, ``FAIL``, and ``--`` for what could not be checked.

    Attributes:
        folder: What the findings are about; its files are called by their names alone.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self.folder: Path | None = None

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not self._counts["FAIL"]

    def add(self, level: str, what: str, says: str, remedy: str = "") -> None:
        """Prints a finding.

        Args:
            level: ``ok``, ``warn``, ``FAIL`` or ``--``.
            what: What was checked.
            says: How it was found.
            remedy: What to do about it.
        """
        self._counts[level] += 1
        says = " ".join(says.replace(f"{self.folder}/", "").split()).removeprefix(f"{what}: ")
        self.say(f"{level:<4}  {what}: {says}{f' -> {remedy}' if remedy else ''}")

    @contextmanager
    def check(self, what: str, remedy: str = "") -> Iterator[list[str]]:
        """A check, made by the body of a ``with``: an error that it raises is the finding.

        Args:
            what: What is checked.
            remedy: What to do if it fails, where the error does not say.

        Yields:
            A list, in which the body puts what to say if all is well; if nothing, nothing is said.
        """
        says: list[str] = []
        try:
            yield says
        except (KartRewardsError, OSError) as error:
            self.add("FAIL", what, str(error), remedy)
        else:
            if says:
                self.add("ok", what, ", ".join(says))

    def say(self, line: str) -> None:
        """Prints a line: as it is, or in a terminal wrapped between words."""
        if sys.stdout.isatty():
            width = shutil.get_terminal_size().columns
            line = textwrap.fill(line, width, subsequent_indent=" " * 6, break_long_words=False, break_on_hyphens=False)
        print(line, flush=True)

    def summary(self) -> str:
        """Returns the verdict and the counts."""
        parts = (("ok", "ok"), ("FAIL", "failed"), ("warn", "to note"), ("--", "not checked"))
        counts = ", ".join(f"{self._counts[level]} {what}" for level, what in parts if self._counts[level])
        return f"{'pass' if self.passed else 'FAIL'}: {counts}"


def diagnose(name: str | None, integrations: Path = INTEGRATIONS) -> bool:
    """Prints what there is to say about this machine and a game, or every game that has its ROM.

    Args:
        name: The game's folder; None: every game.
        integrations: The folder of games.

    Returns:
        Whether nothing failed.

    Raises:
        KartRewardsError: There is no such game.
    """
    report = Report()
    if name and (integrations / name).is_dir():
        games = [Game(name, integrations / name)]  # in whatever condition
    else:
        games = [find_game(game, integrations) for game in ([name] if name else list_games(integrations))]
    examine_machine(report)
    without_rom = [game for game in games if not name and not _has_rom(game)]
    for game in without_rom:
        report.add("--", game.name, "has no ROM", game.command("import PATH"))
    if len(without_rom) == len(games):
        report.add("FAIL", "games", f"none in {integrations} has its ROM", command("import PATH", integrations))
    for game in games:
        if game not in without_rom:
            report.say("")
            report.say(game.name)
            GameExamination(game, report).make()
    report.say("")
    report.say(report.summary())
    return report.passed


def _has_rom(game: Game) -> bool:
    try:
        game.rom()
    except MissingRomError:
        return False
    except KartRewardsError:
        pass  # a wrong one
    return True


def examine_machine(report: Report) -> None:
    """Reports versions, free memory and free disk."""
    with report.check("versions", "install the project: pip install -e .") as versions:
        versions.append(f"Python {platform.python_version()} on {platform.system()} {platform.machine()}")
        for package in _PACKAGES:
            try:
                versions.append(f"{package} {metadata.version(package)}")
            except metadata.PackageNotFoundError:
                raise KartRewardsError(f"{package} is not installed") from None
    memory = psutil.virtual_memory()
    _report_free(
        report, "memory", memory, memory.available, LEAST_FREE_MEMORY_GIB, "end other programs, or: --eval-interval 0"
    )
    with report.check("disk"):
        disk = shutil.disk_usage(".")
        _report_free(report, "disk here", disk, disk.free, LEAST_FREE_DISK_GIB, "train elsewhere: --runs-path FOLDER")


def _report_free(report: Report, what: str, whole: Any, free: int, least_gib: float, remedy: str) -> None:
    says = f"{free / 2**30:.1f} of {whole.total / 2**30:.1f} GiB free"
    if free >= least_gib * 2**30:
        report.add("ok", what, says)
    else:
        report.add("warn", what, f"{says}; training takes up to {least_gib:g}", remedy)


class Machine:
    """A game's emulator as it comes, with no data.json. There is one a process: drop it before the next.

    Args:
        rom: The game's ROM.

    Raises:
        KartRewardsError: The emulator does not start.
    """

    def __init__(self, rom: Path) -> None:
        self.system: str = stable_retro.get_romfile_system(str(rom))
        self.buttons: list[str | None] = stable_retro.get_system_info(self.system)["buttons"]
        self.em = start_emulator(rom)
        self.data = stable_retro.data.GameData()
        self.em.configure_data(self.data)
        self.step()

    def step(self, mask: np.ndarray | None = None) -> None:
        """Runs a frame with these buttons held, or with none."""
        self.em.set_button_mask(np.zeros(len(self.buttons), np.uint8) if mask is None else mask, 0)
        self.em.step()

    def start(self, snapshot: bytes) -> None:
        """Begins as an episode does: loads a start state, and runs a frame of it."""
        self.em.set_state(snapshot)
        self.step()

    def runs_on(self, layout: RamLayout | None) -> bool:
        """Whether time passes in the game: ``current_frame`` counts or, without it, RAM or picture change."""
        if layout is not None and "current_frame" in layout.names:
            read = layout.reader(self.data)
            before = read().current_frame
            for _ in range(_FRAMES_TO_COUNT):
                self.step()
            return 1 <= (read().current_frame - before) % 2**16 <= _FRAMES_TO_COUNT
        self.step()  # the picture before is not this state's
        memory, screen = dict(self.data.memory.blocks), self.em.get_screen()
        for _ in range(_FRAMES_TO_MOVE):
            self.step()
        return dict(self.data.memory.blocks) != memory or not np.array_equal(self.em.get_screen(), screen)

    def describe(self) -> str:
        """Returns the console, its picture and its pace, for a person."""
        rows, columns, _ = self.em.get_screen().shape
        return f"{self.system}, {rows} rows x {columns} columns, {self.em.get_screen_rate():.1f} frames/s"

    def fitting_options(self) -> dict[str, Any]:
        """Returns the options that an environment needs because the defaults do not fit this console."""
        options: dict[str, Any] = {}
        try:
            ScreenObserver(ObservationConfig(), self.em.get_screen().shape)
        except KartRewardsError:
            options["observation"] = ObservationConfig(crop=None)
        if not {THROTTLE, LEFT, RIGHT} <= set(self.buttons):
            options["action_mode"] = "multi-discrete"
        return options

    def check_digits(self, variable: Variable) -> None:
        """Raises KartRewardsError if a binary-coded decimal holds what is no decimal digit."""
        if variable.type[-2] != "d" or variable.mask is not None:
            return
        raw = self.data.memory.extract(variable.address, variable.type.replace("d", "u")) % 2**64
        if not f"{raw:x}".isdecimal():
            raise KartRewardsError(f"0x{raw:X} at 0x{variable.address:X} is not binary-coded decimal ({variable.type})")

    def hold(self, layout: RamLayout, snapshot: bytes, inputs: Iterable[Held]) -> Iterator[Any]:
        """Yields the variables' values in a start state, and then after each frame of inputs."""
        self.start(snapshot)
        read = layout.reader(self.data)
        yield read()
        for mask in button_masks(inputs, self.buttons):
            self.step(mask)
            yield read()


class GameExamination:
    """The examination of one game.

    Args:
        game: The game. Its folder may be in any condition.
        report: Where the findings go.
    """

    def __init__(self, game: Game, report: Report) -> None:
        self._game = game
        self._report = report
        self._rom: Path | None = None
        self._layout: RamLayout | None = None
        self._scoring: Scoring | None = None
        self._checks: list[Check] = []
        self._states: list[str] = []  # the default first
        self._machine: Machine | None = None
        self._playable: str | None = None  # the start state for random play

    def make(self) -> None:
        """Makes all the checks that can be made."""
        self._report.folder = self._game.folder
        with self._report.check("folder", "make it readable, with chmod") as says:
            says.append(f"{self._game.folder}, {len(list(self._game.folder.iterdir()))} files")
        if not says:
            self._report.add("--", "all else", "not checked: it lies in that folder")
            return
        self._examine_files()
        if self._rom is None:
            self._report.add(
                "--", "emulator, start states, checks, random play, speed", "not checked, for want of the right ROM"
            )
            return
        with self._report.check("emulator", "pip install --force-reinstall stable-retro") as says:
            self._machine = Machine(self._rom)
            says.append(self._machine.describe())
        if self._machine is None:
            self._report.add("--", "start states, checks, random play, speed", "not checked, for want of the emulator")
            return
        self._examine_states()
        options = self._machine.fitting_options()
        self._machine = None  # there is one a process, and random play needs it
        if self._playable and self._layout and self._scoring:
            self._examine_play(self._playable, options)
        else:
            why = "not checked: they need data.json, scenario.json and a start state, all sound"
            self._report.add("--", "random play, speed", why)

    def _examine_files(self) -> None:
        game, report = self._game, self._report
        with report.check("ROM") as says:
            self._rom = game.rom()
            with self._rom.open("rb") as file:
                sha1, size = rom_sha1(file)
            says.append(f"{self._rom.name}, SHA-1 {sha1}, {size // 1024} KiB")
        with report.check("data.json") as says:
            self._layout = RamLayout.from_file(game.json_path("data"))
            if self._layout.names:
                says.append(f"{len(self._layout.names)} variables")
            else:
                report.add("warn", "data.json", "no variables yet", game.command(f"search {game.name}"))
        with report.check("scenario.json") as says:
            path = game.json_path("scenario")
            load_json(path)
            with report.check("checks in scenario.json"):
                self._checks = load_checks(path)
            scoring = load_scoring(path)
            if self._layout:
                scoring.check(self._layout)
            self._scoring = scoring
            says += [f"terms: {_names(scoring.terms)}", f"rules: {_names(scoring.done)}"]
        self._states = game.states()
        if not self._states:
            report.add("FAIL", "start states", "none yet", game.command(f"state {game.name} start --play --default"))
            return
        with report.check("default state", 'correct "default_state" in metadata.json') as says:
            default = game.default_state()
            game.state_path(default)
            self._states = [default, *(state for state in self._states if state != default)]
            says.append(default)

    def _examine_states(self) -> None:
        """Loads each start state, and reads the variables in the first that is sound."""
        machine, report = self._machine, self._report
        assert machine is not None
        layout = self._layout and self._variables_in_memory(self._layout)
        counts_frames = layout is not None and "current_frame" in layout.names
        sound: dict[str, bytes] = {}
        still: dict[str, bytes] = {}  # loaded, but the game stands still
        for state in self._states:
            with report.check(f"start state {state}", self._how_to_make(state)):
                snapshot = self._game.load_state(state)
                if not machine.em.set_state(snapshot):
                    raise KartRewardsError("the emulator refuses it: it is damaged, or another console's or core's")
                (sound if machine.runs_on(layout) else still)[state] = snapshot
        why = "current_frame does not count" if counts_frames else "nothing moves"
        if counts_frames and still and not sound:
            says = f"current_frame counts in none of {', '.join(still)}"
            report.add(
                "FAIL", "start states", f"{says}: its address is wrong, or all are another ROM's", self._correct()
            )
        else:
            for state in still:
                says = f"the game does not run on from it ({why}): it is another ROM's"
                report.add("FAIL", f"start state {state}", says, self._how_to_make(state))
        if sound:
            report.add("ok", "start states", f"{', '.join(sound)}: loaded, and the game runs on")
        for state, snapshot in [*sound.items(), *still.items()][:1]:
            if layout is not None and layout.names:
                self._examine_variables(machine, layout, state, snapshot)
                for check in self._checks:
                    self._examine_check(machine, layout, check, snapshot)
        if layout is not None and layout is self._layout:
            self._playable = next(iter(sound), None)

    def _variables_in_memory(self, layout: RamLayout) -> RamLayout:
        """The layout, as far as the console has such memory."""
        assert self._machine is not None
        inside = []
        for variable in layout.variables:
            with self._report.check(f"variable {variable.name}", self._correct()):
                RamLayout([variable], layout.source).check_addresses(self._machine.data.memory.blocks)
                inside.append(variable)
        return layout if len(inside) == len(layout.variables) else RamLayout(inside, layout.source)

    def _examine_variables(self, machine: Machine, layout: RamLayout, state: str, snapshot: bytes) -> None:
        """Checks the variables' values against what they should be."""
        report = self._report
        machine.start(snapshot)
        for variable in layout.variables:
            with report.check(f"variable {variable.name}", self._correct()):
                machine.check_digits(variable)
        spoken_of = _words(" ".join(check.expect for check in self._checks))
        unspoken_of = [name for name in layout.names if name not in spoken_of]
        if self._checks:
            note = f"; no check speaks of {', '.join(unspoken_of)}" if unspoken_of else ""
            report.add("ok", "variables", f"{len(layout.names)} read in {state}{note}")
        else:
            says = f"{len(layout.names)} read in {state}, but whether they are plausible can't be told"
            report.add("warn", "variables", says, 'declare "checks" in scenario.json: see kart_rewards/scenario.py')

    def _examine_check(self, machine: Machine, layout: RamLayout, check: Check, snapshot: bytes) -> None:
        """Makes a check that scenario.json declares, from a start state on."""
        report = self._report
        lost = set(self._layout.names if self._layout else ()) - set(layout.names)
        if _words(check.expect) & lost:
            unread = ", ".join(sorted(_words(check.expect) & lost))
            report.add("--", f"check {check}", f"not made: it reads {unread}, see above")
            return
        condition = None
        with report.check("check", "correct it in scenario.json"):
            inputs = parse_inputs(f"{max(check.within_frames, 1)} {check.hold}", machine.buttons, str(check))
            condition = Condition(check.expect, layout.names, with_before=True)
        if condition is None:
            return
        with report.check(f"check {check}", f"{self._correct()}; or correct the check in scenario.json") as says:
            before = ram = None
            for frame, ram in enumerate(machine.hold(layout, snapshot, inputs if check.within_frames else [])):
                before = before or ram
                if (frame or not check.within_frames) and condition(ram, before):
                    says.append(f"on frame {frame}" if frame else condition.values(ram, before))
                    return
            frames = f"{check.within_frames} frame{'s' * (check.within_frames > 1)}"
            within = f" within {frames}; at last" if check.within_frames else ":"
            raise KartRewardsError(f"does not hold{within} {condition.values(ram, before)}")

    def _examine_play(self, state: str, options: dict[str, Any]) -> None:
        """Plays at random, for an episode and some seconds, in the environment that training uses."""
        report = self._report
        steps, seconds, ended = 0, 0.0, ""
        with report.check("random play") as says:
            env: Any = make_env(self._game.name, integrations=self._game.folder.parent, state=state, **options)
            try:
                env.reset(seed=1)
                env.action_space.seed(1)
                start = time.perf_counter()
                while seconds < (_SECONDS_TO_PLAY if ended else _MOST_SECONDS_TO_PLAY):
                    _, reward, terminated, truncated, info = env.step(env.action_space.sample())
                    steps += 1
                    seconds = time.perf_counter() - start
                    if not math.isfinite(reward):
                        raise KartRewardsError(f"a step's reward is {reward}")
                    if terminated or truncated:
                        ended = (
                            ended or f"an episode of {steps} steps, ended by {info.get('done_rule', 'its time limit')}"
                        )
                        env.reset()
                frames_per_second = steps * env.unwrapped.frame_skip / seconds
                console = env.unwrapped.frames_per_second
            finally:
                env.close()
            if options:
                flags = " ".join(flag for option, flag in _FLAGS.items() if option in options)
                says.append(f"with {flags}, as the defaults do not fit this console")
            says += [f"from {state}, {ended or f'{steps} steps of an episode'}", "all rewards finite"]
        if not says:
            report.add("--", "speed", "not measured, for want of random play")
        else:
            speed = f"{steps / seconds:,.0f} steps/s, {frames_per_second / console:.0f} times the console's own speed"
            report.add("ok", "speed", f"{speed}, in one environment of this machine's {os.cpu_count()} cores")

    def _how_to_make(self, state: str) -> str:
        return f"make it again: {self._game.command(f'state {self._game.name} {state} --play --overwrite')}"

    def _correct(self) -> str:
        return f"correct data.json: {self._game.command(f'search {self._game.name}')}"


def _words(expect: str) -> set[str]:
    return set(re.findall(r"\w+", expect))


def _names(scripts: Sequence[Script]) -> str:
    return " ".join(script.name for script in scripts) or "none"
