"""What ``kart-rewards lint`` examines.

* ``Finding`` - a mistake: what is wrong, where in the code, on which frame of which drive, and what to do
* ``Evidence`` - the drives, and what the terms and rules return on them
* ``gather`` - makes it
* ``OutOfTimeError`` - the terms and rules are so slow that the checks must stop
* ``Run``, ``run_over``, ``Stepper`` - calls the terms and rules on the frames of drives
* ``frames_of``, ``Given`` - what they get on these frames
* ``finish``, ``few`` - the frame on which a race is finished; a few of the drives
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from kart_rewards.declared import scripts_of
from kart_rewards.done import episode_calls
from kart_rewards.drives import Drive
from kart_rewards.env.actions import BRAKE, BRAKE_BELOW, COAST_BELOW, HOP, LEFT, RIGHT, THROTTLE
from kart_rewards.errors import KartRewardsError, counted
from kart_rewards.integrations import INTEGRATIONS, Game
from kart_rewards.lab.linting.clock import clock
from kart_rewards.lab.linting.probes import DRIVER, Probes, make_probes, recorded_again
from kart_rewards.lab.score import DriveScore, Loaded, RewardSet, blank_drive, outcome_rank, score_drive
from kart_rewards.race import finished, is_kart_race
from kart_rewards.ram import RamLayout, Variable
from kart_rewards.rewards import RewardTerm
from kart_rewards.scripting import Script


@dataclass(frozen=True)
class Finding:
    """A mistake.

    Args:
        check: The name of the check.
        script: The name of the term or rule.
        where: Its file and line.
        text: What is wrong, with numbers.
        remedy: What to do.
        drive: The label of a drive that shows it.
        frame: The index of the frame.
    """

    check: str
    script: str
    where: str
    text: str
    remedy: str
    drive: str
    frame: int


class OutOfTimeError(Exception):
    """The checks have taken too long, because a term or rule is slow."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the checks examine.

    Args:
        loaded: The terms and rules.
        layout: The game's variables.
        drives: All drives, the scripted ones included. The terms and rules can score each of them.
        scores: The score of each drive, in the order of the first time in this process.
        probes: The scripted drives.
        notes: What was not examined, for a person. Checks add to it.
        deadline: The time of ``clock`` at which the checks must stop.
        left_out: Drives that are not among ``drives``, because the terms and rules take long. They have values of the
            variables.
    """

    loaded: Loaded
    layout: RamLayout
    drives: list[Drive]
    scores: list[DriveScore]
    probes: Probes
    notes: list[str] = field(default_factory=list)
    deadline: float = math.inf
    left_out: list[Drive] = field(default_factory=list)

    def check_time(self) -> None:
        """Checks that time is left.

        Raises:
            OutOfTimeError: The deadline is over.
        """
        if clock() > self.deadline:
            raise OutOfTimeError

    @property
    def terms(self) -> list[RewardTerm]:
        """The terms with a weight."""
        return [term for term in self.loaded.scoring.terms if term.weight]

    @property
    def scripts(self) -> list[Script]:
        """The terms with a weight, and the rules."""
        return [*self.terms, *self.loaded.scoring.done]

    def paid(self, name: str) -> list[np.ndarray]:
        """Returns the weighted values of a term on the frames of each drive, without the first frame."""
        return [score.values[name][1:] for score in self.scores]

    def column(self, name: str) -> list[np.ndarray]:
        """Returns the values of a variable in each drive that has it, int64."""
        return [drive.columns[name].astype(np.int64) for drive in self.drives if name in drive.columns]

    @cached_property
    def ranks(self) -> list[tuple[float, ...] | None]:
        """The ``outcome_rank`` of each drive."""
        return [outcome_rank(drive) for drive in self.drives]

    @cached_property
    def races(self) -> dict[str, int]:
        """Course -> the index of its best drive that finishes the race."""
        finished = [(rank, i) for i, rank in enumerate(self.ranks) if rank and rank[0]]
        return {self.drives[i].info.state: i for _, i in sorted(finished)}

    @cached_property
    def second_runs(self) -> list[Run]:
        """All drives a second time, in the opposite order."""
        runs = []
        for drive in reversed(self.drives):
            self.check_time()
            runs.append(run_over(drive, self.loaded, memory_every=MEMORY_EVERY))
        return runs[::-1]

    @property
    def has_goal(self) -> bool:
        """Whether a rule ends an episode when the race is finished, so that a charge per frame rewards speed."""
        return any(self.scores[i].ended_by and self._is_at_goal(i) for i in self.races.values())

    def _is_at_goal(self, i: int) -> bool:
        goal = finish(self.drives[i])
        return goal is not None and self.scores[i].end >= goal

    def label(self, i: int) -> str:
        """Returns the label of a drive."""
        return self.drives[i].info.label

    def finding(self, check: str, script: Script, text: str, remedy: str, drive: int | str, frame: int) -> Finding:
        label = drive if isinstance(drive, str) else self.label(drive)
        if getattr(script, "weight", 0) < 0:
            paid = self.paid(script.name)
            if any(each.any() for each in paid) and all((each >= 0).all() for each in paid):
                text += ". Its weight is negative, and so are its values: their product is a payment, not a charge"
        return Finding(check, script.name, script.where, text, remedy, label, int(frame))

    @property
    def tried(self) -> str:
        """What the drives are, as text for a person."""
        frames = sum(map(len, self.drives))
        scripted = sum(drive.info.driver == DRIVER for drive in self.drives)
        recorded = len(self.drives) - scripted
        return f"{counted(frames, 'frame')} of {counted(recorded, 'recorded drive')} and {scripted} scripted ones"


@dataclass(frozen=True, eq=False)
class Run:
    """One run of all terms and rules over a drive.

    Args:
        values: Term -> its weighted value on each frame.
        ends: Rule -> the first frame, after frame 0, on which it is true; None: it never is.
        failure: The message about memory that can't be saved, and the frame; None: all memory can be saved.
        memories: Frame -> the memory of the terms and of the rules after it.
    """

    values: dict[str, np.ndarray]
    ends: dict[str, int | None] = field(default_factory=dict)
    failure: tuple[str, int] | None = None
    memories: dict[int, tuple[Any, Any]] = field(default_factory=dict)


Given = tuple[Any, frozenset[str], Any]
"""What terms and rules get on a frame: snapshot, held buttons, action."""


@functools.lru_cache(maxsize=128)
def frames_of(drive: Drive) -> list[Given]:
    """Returns what terms and rules get on each frame of a drive."""
    return list(zip(drive, drive.buttons, drive.frame_actions, strict=True))


MEMORY_EVERY = 20  # frames


def run_over(
    drive: Drive,
    loaded: Loaded,
    memory_every: int = 0,
    first: int = 0,
    last: int | None = None,
    memory: tuple[Any, Any] | None = None,
) -> Run:
    """Runs the terms and rules over the frames of a drive.

    Args:
        drive: The drive.
        loaded: The terms and rules.
        memory_every: Save the memory every so many frames; it is kept at three of them. 0: never.
        first, last: The range of the frames.
        memory: The memory of the terms and of the rules before the first frame. None: a new episode.
    """
    steps = Stepper(loaded)
    rewards, done = steps.episode
    if memory:
        rewards.calls.set_state(memory[0])
        done.calls.set_state(memory[1])
    failure, memories = None, {}
    last = min(len(drive), last or len(drive))
    kept = {len(drive) // 4, len(drive) // 2, 3 * len(drive) // 4}
    for frame, given in enumerate(frames_of(drive)[first:last], first):
        steps(given)
        if memory_every and failure is None and (frame % memory_every == 1 or frame in kept or frame == last - 1):
            try:
                saved = rewards.calls.get_state(), done.calls.get_state()
                if frame in kept:
                    memories[frame] = saved
            except KartRewardsError as error:
                failure = str(error), frame
    return replace(steps.result(first), failure=failure, memories=memories)


class Stepper:
    """Calls the terms and rules of one episode, frame by frame, and keeps what they return."""

    def __init__(self, loaded: Loaded) -> None:
        self.terms, self.rules = loaded.scoring.terms, loaded.scoring.done
        self.episode = episode_calls(self.terms, self.rules)
        self.rows: list[list[Any]] = []
        self.stops: list[list[Any]] = []

    def __call__(self, given: Given) -> None:
        rewards, done = self.episode
        self.rows.append(rewards.calls.values(*given))
        self.stops.append(done.calls.values(*given))

    def result(self, first: int = 0) -> Run:
        """Returns what they returned, if ``first`` is the first frame."""
        weights = np.array([term.weight for term in self.terms], np.float64)
        values = np.array(self.rows, np.float64).reshape(len(self.rows), len(weights)) * weights
        if not first:
            values[0] = 0.0
        ends = {}
        for i, rule in enumerate(self.rules):
            ends[rule.name] = next((first + j for j, row in enumerate(self.stops) if row[i] and first + j), None)
        return Run({term.name: values[:, i] for i, term in enumerate(self.terms)}, ends)


def finish(drive: Drive) -> int | None:
    """Returns the frame on which the race is finished; None if it is not, or if the game is no race."""
    if not (drive.info.race or {}).get("finished") or "laps" not in drive.columns:
        return None
    return next((frame for frame, ram in enumerate(drive) if finished(ram)), None)


FEW_FRAMES = 600
"""The number of the first frames of each of ``few`` drives that are examined."""


def few(evidence: Evidence) -> list[int]:
    """Returns the indices of a few drives that differ: one per driver, or scripted drives if no driver is known."""
    chosen: dict[str, int] = {}
    best = next(iter(evidence.races.values()), 0)
    course = evidence.drives[best].info.state
    for i in sorted(range(len(evidence.drives)), key=lambda i: (i != best, evidence.drives[i].info.state != course)):
        info = evidence.drives[i].info
        chosen.setdefault(info.driver if info.driver != DRIVER else info.label, i)
    return list(chosen.values())[:_MOST_FEW]


_MOST_FEW = 6

_AGAIN = {"race": 12_000, "walls": 500, "reverse": 450, "wander": 900, "standing": 200, "turning": 700}
"""Driver of a drive of the package -> the number of its frames to play again, if data.json has changed."""


def gather(
    game: Game,
    rewards: RewardSet,
    drives: Sequence[Drive] = (),
    action_mode: str = "auto",
    probes: Probes | None = None,
) -> Evidence:
    """Returns what the checks examine. It runs the emulator, so no environment may be open in this process.

    Args:
        game: The game.
        rewards: The reward set.
        drives: Recorded drives of the game.
        action_mode: The action mode of the agent, for terms that ask for ``action``.
        probes: The scripted drives, if they were made before.

    Raises:
        KartRewardsError: A file is missing or not valid, or a term or rule fails on a drive.
    """
    layout = RamLayout.from_file(game.json_path("data"))
    loaded = rewards.load(blank_drive(game, layout))  # before the scripted drives, which take seconds
    scripts: list[Script] = [*loaded.scoring.terms, *loaded.scoring.done]
    if scripts_of(scripts):
        raise KartRewardsError(f"{game.name}: its scenario uses Lua, whose values no drive has: lint can't examine it")
    probes = probes or make_probes(game, layout, drives, action_mode, integrations=rewards.integrations)
    notes: list[str] = []
    read = set().union(*(script.may_read(layout.names) for script in scripts))
    changed = _changed(game, layout, read)
    if changed:
        again = _to_play_again(game, drives)
        probes = replace(probes, all=[*probes.all, *recorded_again(game, layout, again)])
        drives = [drive for drive in drives if drive.info.driver not in _AGAIN]
        notes.append(
            f"The drives of the package lack variables of {layout.source}, or have them with other types "
            f"({', '.join(sorted(changed))}): {counted(len(again), 'drive')} of them were played again"
        )
    needs_inputs = any(script.inputs for script in scripts)
    fitting = [drive for drive in drives if read <= drive.columns.keys() and (drive.info.buttons or not needs_inputs)]
    if len(fitting) < len(drives):
        notes.append(
            f"{counted(len(drives) - len(fitting), 'drive')} without the variables or inputs that are read: left out"
        )
    if any("action" in script.inputs for script in scripts):
        fitting = [each for drive in fitting if (each := _with_actions(drive, action_mode))]
        translated = [(probe, _with_actions(probe.drive, action_mode)) for probe in probes.all]
        of_probes = [replace(probe, drive=drive) for probe, drive in translated if drive]
        probes = replace(probes, all=of_probes)
    every = [*fitting, *(probe.drive for probe in probes.all)]
    seconds = _seconds_of(loaded, every)
    too_slow = False
    if sum(seconds.values()) * _PASSES > _MOST_SECONDS:
        course = [drive for drive in fitting if drive.info.state == game.default_state()]
        every = [*course, *(probe.drive for probe in probes.all)]
        too_slow = sum(seconds[drive] for drive in every) * _PASSES > _MOST_SECONDS
        notes.append(
            "The terms and rules take so long that "
            + (
                "only their speed was examined"
                if too_slow
                else f"only the drives of {game.default_state()} were examined"
            )
        )
    deadline = clock() + _DEADLINE_SECONDS
    scores: list[DriveScore] = []
    for drive in () if too_slow else every:
        if clock() > deadline:
            notes.append(
                f"The terms and rules took more than {_DEADLINE_SECONDS} s on {counted(len(scores), 'drive')}, so only "
                "their speed was examined"
            )
            scores = []
            break
        scores.append(score_drive(drive, loaded))
    left_out = [drive for drive in fitting if drive not in every]
    return Evidence(loaded, layout, every, scores, probes, notes, deadline, left_out)


_PASSES = 4  # over all drives
_MOST_SECONDS = 4.0  # for all passes, as they are estimated
_DEADLINE_SECONDS = 10
_FRAMES_TO_TIME = 5  # of each drive; few, because terms with hidden memory change in them
_MOST_SECONDS_TO_TIME = 1.0


def _seconds_of(loaded: Loaded, drives: Sequence[Drive]) -> dict[Drive, float]:
    """Returns how long all terms and rules take for each drive, estimated on a few of its frames.

    Of two measurements of a frame, the faster counts. The start of an episode is measured, too.
    """
    starts: list[float] = []
    rates: dict[Drive, float] = {}
    began = clock()
    for drive in drives:
        if clock() - began > _MOST_SECONDS_TO_TIME:
            break
        given = frames_of(drive)
        runs: list[list[float]] = []
        for _ in range(2):
            times = [clock()]
            steps = Stepper(loaded)
            for frame in (0, *np.linspace(1, len(drive) - 1, _FRAMES_TO_TIME).astype(int)):
                steps(given[frame])
                times.append(clock())
            runs.append(np.diff(times).tolist())
        start, *frames = np.min(runs, axis=0).tolist()
        starts.append(start)
        rates[drive] = sum(frames) / len(frames)
    start, rate = sum(starts) / len(starts), sum(rates.values()) / len(rates)
    return {drive: start + rates.get(drive, rate) * len(drive) for drive in drives}


def _changed(game: Game, layout: RamLayout, read: set[str]) -> set[str]:
    """Returns the variables that are read and that the drives of the package do not have as the layout defines them."""
    stock = INTEGRATIONS / game.name / "data.json"
    if not stock.is_file() or Path(layout.source).resolve() == stock.resolve():
        return set()
    recorded: dict[str, Variable] = {each.name: each for each in RamLayout.from_file(stock).variables}
    return {each.name for each in layout.variables if each.name in read and recorded.get(each.name) != each}


def _to_play_again(game: Game, drives: Iterable[Drive]) -> list[tuple[Drive, int]]:
    """Returns those drives of the package that are played again, each with the number of its frames."""
    shipped = [drive for drive in drives if drive.info.driver in _AGAIN]
    course = game.default_state()
    again = [(each, min(len(each), _AGAIN[each.info.driver])) for each in shipped if each.info.state == course]
    other = next((each for each in shipped if each.info.state != course and each.info.driver == "standing"), None)
    return [*again, (other, 150)] if other else again


def _with_actions(drive: Drive, action_mode: str) -> Drive | None:
    """Returns a drive with the actions that an agent with an action mode would have chosen; None if that is not known.

    The drives of scripted drivers have the buttons as actions, those of agents the actions of their own mode.
    """
    race = is_kart_race(drive.columns)
    numbers = {"auto": 1, "continuous": 1, "full": 3}.get(action_mode) if race else None
    of_this_mode = drive.actions.dtype != bool and (numbers is None or drive.actions.shape[1:] == (numbers,))
    if of_this_mode or action_mode in ("all", "filtered"):
        return drive
    left, right, hop = (np.array([name in held for held in drive.buttons[1:]]) for name in (LEFT, RIGHT, HOP))
    actions: np.ndarray
    if race and action_mode in ("auto", "continuous"):
        actions = (right.astype(np.float32) - left)[:, None]
    elif race and action_mode == "full":
        throttle, brake = (np.array([name in held for held in drive.buttons[1:]]) for name in (THROTTLE, BRAKE))
        pedal = np.select([throttle, brake], [1.0, -1.0], (COAST_BELOW + BRAKE_BELOW) / 2)
        actions = np.stack([right.astype(np.float32) - left, pedal, hop], axis=1).astype(np.float32)
    elif race and action_mode == "driving":
        actions = np.select([hop, left, right], [3, 1, 2], 0)
    else:
        return None
    return replace(drive, actions=actions, step_frames=np.ones(len(actions), np.uint16), rewards=np.zeros(len(actions)))
