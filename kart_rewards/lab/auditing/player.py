"""Behaviours in the emulator, with what they are paid.

* ``Player`` - the emulator of this process, at a game with a reference drive
* ``try_behaviour`` - plays a behaviour in it
* ``reference_of`` - what the reference drive is paid
* ``drive_of`` - plays a behaviour again, and returns its drive

An episode begins at the start state of the reference drive, with its inputs up to the frame after which the behaviour
begins. Frames are scored as ``KartEnv`` scores them. Nothing is drawn, where the console's core allows it.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from kart_rewards.defaults import DEFAULT_FRAME_SKIP
from kart_rewards.done import EpisodeDone, episode_calls
from kart_rewards.drivers import CentrelineDriver, turn_difference
from kart_rewards.drives import Drive, DriveInfo, load_drive, smallest
from kart_rewards.env.core import Drawing, fingerprints_of
from kart_rewards.errors import KartRewardsError
from kart_rewards.games.console import Console
from kart_rewards.integrations import find_game
from kart_rewards.lab.auditing.behaviours import AHEAD, BACK, GRID, KART_VARIABLES, TO, Behaviour, Phase
from kart_rewards.lab.auditing.rollouts import LIMIT, SHORT_FRAMES, Reference, Rollout, Setup
from kart_rewards.lab.auditing.targets import CHANGES, OPERATORS
from kart_rewards.lab.goals import Goal
from kart_rewards.lab.score import Loaded
from kart_rewards.race import RaceMetrics, is_kart_race
from kart_rewards.ram import RamLayout
from kart_rewards.rewards import EpisodeRewards
from kart_rewards.scripting import plain_action

DRIVER = "audit"
"""The driver of drives that the search made."""

_NOTHING_FRAMES = 600  # of the path of a game without drives
_KEEP_EVERY = 300  # frames between states of the emulator that are kept


class _DrawnError(Exception):
    """A frame that was not drawn may differ from the drawn one."""


class Player:
    """The emulator of this process, at a game with a reference drive.

    Args:
        setup: See ``Setup``.
    """

    def __init__(self, setup: Setup) -> None:
        game = find_game(setup.game, setup.rewards.integrations)
        self.layout = RamLayout.from_file(game.json_path("data"))
        rom = game.rom()
        self.console = Console(rom, self.layout)
        self.drawing = Drawing(self.console.em, self.console.name)
        self.draws_all = False
        self.buttons = self.console.buttons
        self._bits = {name: 1 << i for i, name in enumerate(self.buttons) if name}
        self._setup = setup
        self.goal = Goal(setup.goal, self.layout.names)
        self._fingerprints = fingerprints_of(rom)
        self._snapshots: dict[int, bytes] = {}
        self._masks: dict[int, np.ndarray] = {}
        self._wants_action = False
        known = load_drive(setup.reference) if setup.reference else None
        self.start = known.start if known else game.load_state(setup.state)
        self.lead = known.lead if known else np.zeros(1, np.uint32)
        self.reference = self._again(known.masks.tolist() if known else [0] * _NOTHING_FRAMES)
        self.loaded: Loaded = setup.rewards.load(self.reference)
        scripts = (*self.loaded.scoring.terms, *self.loaded.scoring.done)
        self._wants_action = any("action" in script.inputs for script in scripts)
        if self._wants_action:
            masks = self.reference.masks.tolist()
            self.reference = replace(self.reference, actions=self._actions_of(masks))
        self._has_places = {*KART_VARIABLES, "surface"}.issubset(self.layout.names)
        self._line = self._path() if KART_VARIABLES.issubset(self.layout.names) else []
        self._score_reference()

    def _again(self, masks: list[int]) -> Drive:
        """Plays the reference drive again, with the variables of this layout, and keeps some states of the emulator."""
        self.console.load(self.start, self._setup.state)
        self.drawing.settle()
        try:
            for mask in self.lead.tolist():
                self._step(mask)
            rams = [self.console.ram()]
            for frame, mask in enumerate(masks, 1):
                self._step(mask)
                rams.append(self.console.ram())
                if frame % _KEEP_EVERY == 0:
                    self._snapshots[frame] = self.console.em.get_state()
        except _DrawnError:
            self.draws_all = True
            self._snapshots.clear()
            return self._again(masks)
        return self._drive(rams, masks)

    def _drive(self, rams: list[Any], masks: list[int]) -> Drive:
        metrics = None
        if is_kart_race(self.layout.names):
            metrics = RaceMetrics(rams[0], self.console.frames_per_second)
            for ram in rams[1:]:
                metrics.update(ram)
        info = DriveInfo(
            game=self._setup.game,
            state=self._setup.state,
            driver=DRIVER,
            buttons=tuple(self.buttons),
            frames_per_second=self.console.frames_per_second,
            race=metrics.summary() if metrics else None,
            fingerprints=self._fingerprints,
        )
        columns = dict(zip(self.layout.names, map(smallest, zip(*rams, strict=True)), strict=True))
        frames = len(masks)
        return Drive(
            info, columns, np.array(masks, np.uint32), self.lead, np.ones(frames, np.uint16), self._actions_of(masks),
            np.zeros(frames), self.start,
        )  # fmt: skip

    def _actions_of(self, masks: list[int]) -> np.ndarray:
        if self._wants_action:
            return np.array([self._action(mask) for mask in masks], np.float32)
        return np.array([[mask >> i & 1 for i in range(len(self.buttons))] for mask in masks], bool)

    def _action(self, mask: int) -> Any:
        """The action that an agent would have chosen, for terms that ask for it: the steering in a kart race."""
        if is_kart_race(self.layout.names) and {"LEFT", "RIGHT"} <= self._bits.keys():
            return (float(bool(mask & self._bits["RIGHT"])) - float(bool(mask & self._bits["LEFT"])),)
        return plain_action(np.array([mask >> i & 1 for i in range(len(self.buttons))], bool))

    def _path(self) -> list[tuple[float, float]]:
        """Returns the points of a lap of the reference drive, in pixels; an empty list without a lap."""
        columns = self.reference.columns
        if "laps" not in columns:
            return []
        crossings = np.flatnonzero(np.diff(columns["laps"].astype(np.int64))) + 1
        if len(crossings) < 2:
            return []
        points: list[tuple[float, float]] = []
        for frame in range(int(crossings[0]), int(crossings[1])):
            point = float(columns["kart_x"][frame]) / 4, float(columns["kart_y"][frame]) / 4
            if not points or np.hypot(point[0] - points[-1][0], point[1] - points[-1][1]) >= 10:
                points.append(point)
        return points if len(points) > 8 else []

    def _score_reference(self) -> None:
        """Scores the reference drive, and keeps the memory of terms on each frame on which a behaviour may begin."""
        drive, (rewards, done) = self.reference, self._episode()
        self._memory: dict[int, tuple[Any, Any]] = {}
        self._can_save = True
        values, reached = self.goal.along(drive)
        paid, ended_by = [0.0], None
        buttons, actions = drive.buttons, drive.frame_actions
        rewards(drive[0], buttons[0], actions[0])
        done(drive[0], buttons[0], actions[0])
        end = min(len(drive) - 1, LIMIT)
        for frame in range(1, end + 1):
            if self._can_save and (frame - 1) % GRID == 0:
                self._keep_memory(frame - 1, rewards, done)
            ram = drive[frame]
            paid.append(rewards(ram, buttons[frame], actions[frame]))
            rule = done(ram, buttons[frame], actions[frame])
            if rule:
                ended_by, end = rule.name, frame
                break
        self.paid, self.values = np.array(paid), values[: end + 1]
        self.totals = np.cumsum(self.paid)
        size = float(np.abs(self.paid).sum())
        gain = float(np.max(self.values) - self.values[0])
        at_goal = reached is not None and reached <= end
        self.summary = Reference(float(self.totals[-1]), size, gain, at_goal, end, ended_by)

    def _keep_memory(self, frame: int, rewards: EpisodeRewards, done: EpisodeDone) -> None:
        try:
            self._memory[frame] = rewards.calls.get_state(), done.calls.get_state()
        except KartRewardsError:  # the frames before a behaviour are scored again for each one
            self._can_save = False
            self._memory.clear()

    def _episode(self) -> tuple[EpisodeRewards, EpisodeDone]:
        scoring = self.loaded.scoring
        return episode_calls(scoring.terms, scoring.done, self.loaded.transform)

    def _episode_at(self, frame: int) -> tuple[EpisodeRewards, EpisodeDone]:
        """Returns the terms and rules with the memory that they have after a frame of the reference drive."""
        rewards, done = self._episode()
        if frame in self._memory:
            of_terms, of_rules = self._memory[frame]
            rewards.calls.set_state(of_terms)
            done.calls.set_state(of_rules)
        else:
            drive, actions = self.reference, self.reference.frame_actions
            buttons = drive.buttons
            for i in range(frame + 1):
                rewards(drive[i], buttons[i], actions[i])
                done(drive[i], buttons[i], actions[i])
        rewards.discard()
        return rewards, done

    def _step(self, mask: int) -> None:
        held = self._masks.get(mask)
        if held is None:
            held = self._masks[mask] = np.array([mask >> i & 1 for i in range(len(self.buttons))], np.uint8)
        em = self.console.em
        em.set_button_mask(held, 0)
        if not self.drawing.frame(em.step, self.draws_all):
            raise _DrawnError

    def _load(self, frame: int) -> None:
        """Loads the state of the emulator after a frame of the reference drive."""
        if frame not in self._snapshots:
            known = max((each for each in self._snapshots if each < frame), default=None)
            masks = self.reference.masks.tolist()
            if known is None:
                self.console.load(self.start, self._setup.state)
                self.drawing.settle()
                for mask in self.lead.tolist():
                    self._step(mask)
                known = 0
            else:
                self.console.load(self._snapshots[known])
                self.drawing.settle()
            for mask in masks[known:frame]:
                self._step(mask)
            self._snapshots[frame] = self.console.em.get_state()
        self.console.load(self._snapshots[frame])
        self.drawing.settle()

    def run(self, behaviour: Behaviour, windows: tuple[int, ...], least: float) -> Rollout:
        """Plays a behaviour.

        Args:
            behaviour: The behaviour.
            windows: Numbers of frames. After each one, it goes on only if it promises enough.
            least: The return that it must promise.
        """
        while True:
            try:
                return self._run(behaviour, windows, least)
            except _DrawnError:
                self.draws_all = True
                self._snapshots.clear()

    def _run(self, behaviour: Behaviour, windows: tuple[int, ...], least: float) -> Rollout:
        begin = behaviour.begin
        rewards, done = self._episode_at(begin)
        race = None
        if is_kart_race(self.layout.names):
            race = RaceMetrics(self.reference[0], self.console.frames_per_second)
        goal, paid, values = self.goal, [], [float(self.values[begin])]
        reached, rule, ram = False, None, self.reference[begin]
        limit = LIMIT - begin
        following = iter(windows)
        window = min(next(following), limit)
        wants_action, names = self._wants_action, _NamesOfMask(self.buttons)
        most, place, before = 0.0, None, ram
        for ram, mask in self.frames(behaviour):
            action = self._action(mask) if wants_action else None
            paid.append(rewards(ram, names[mask], action))
            rule = done(ram, names[mask], action)
            if paid[-1] > most and self._has_places:
                most, place = paid[-1], (before.kart_x, before.kart_y, before.surface)
            before = ram
            if race and goal.uses_metrics:
                race.update(ram)
            values.append(goal.value(ram, race))
            reached = reached or goal.reached(ram, values[-1])
            if rule:
                break
            if len(paid) >= window:
                if window >= limit:
                    break
                further = next(following, None)
                promised = self._expected(begin, paid, values)
                if further is None or promised[0] < least or promised[1] > 0.5 * self.summary.gain > 0:
                    break
                window = min(further, limit)
        complete = rule is not None or len(paid) >= limit
        truncated = rule is not None and rule.truncates
        total = float(self.totals[min(begin, len(self.totals) - 1)] + sum(paid))
        expected, expected_gain = self._expected(begin, paid, values)
        gain = max(float(np.max(self.values[: begin + 1])), *values) - float(self.values[0])
        if rule is not None and not truncated:
            expected, expected_gain = total, gain
        elif truncated:
            expected = min(total, expected)  # the agent counts the value of the frames that were left out
        frames = len(paid)
        short, _ = _discounted(np.array(paid[:SHORT_FRAMES]), self.loaded.gamma)
        until = begin + 1 + min(frames if not complete else SHORT_FRAMES, SHORT_FRAMES)
        of_reference = self.paid[begin + 1 : until]
        short_reference, short_size = _discounted(of_reference, self.loaded.gamma)
        short_values = self.values[begin:until]
        short_gain_reference = float(short_values.max() - short_values[0]) if len(short_values) else 0.0
        short_gain = max(values[: SHORT_FRAMES + 1]) - values[0]
        signs = tuple(int(np.sign(value)) for value in rewards.sums.values())
        return Rollout(
            behaviour, frames, rule.name if rule else None, truncated, complete, total, expected, gain, expected_gain,
            reached, short, short_reference, short_size, short_gain, short_gain_reference, place,
            (*signs, getattr(ram, "surface", 0), rule is not None),
        )  # fmt: skip

    def _expected(self, begin: int, paid: list[float], values: list[float]) -> tuple[float, float]:
        """Returns the return and the gain at the end of the episode, if the rate of the last two thirds goes on."""
        late = len(paid) // 3
        left = LIMIT - begin - len(paid)
        rate = sum(paid[late:]) / max(len(paid) - late, 1)
        total = float(self.totals[min(begin, len(self.totals) - 1)]) + sum(paid) + rate * left
        gain = (values[-1] - values[late]) / max(len(paid) - late, 1)
        so_far = max(float(np.max(self.values[: begin + 1])), *values) - float(self.values[0])
        return total, so_far + max(gain, 0.0) * left

    def frames(self, behaviour: Behaviour) -> Iterator[tuple[Any, int]]:
        """Plays a behaviour without end.

        Yields:
            The snapshot and the mask of the buttons of each frame.
        """
        self._load(behaviour.begin)
        console, step = self.console, self._step
        ram, k, drivers = self.reference[behaviour.begin], 0, self._drivers(behaviour)
        phases = [self._prepared(phase) for phase in behaviour.phases]
        while True:
            mask, driver, frames, until = phases[k]
            before = ram
            for _ in range(frames):
                if driver is not None:
                    mask = self._mask(drivers[driver](ram))
                step(mask)
                ram = console.ram()
                yield ram, mask
                if until is not None and until(ram, before):
                    break
            k += 1
            if k == len(phases):
                k = behaviour.loop

    def _drivers(self, behaviour: Behaviour) -> dict[str, Callable[[Any], frozenset[str]]]:
        """Returns new drivers for those phases that name no buttons."""
        drivers: dict[str, Callable[[Any], frozenset[str]]] = {}
        for held in {phase.held for phase in behaviour.phases if phase.held.startswith(TO)}:
            if held not in (AHEAD, BACK):
                drivers[held] = partial(_drive_to, *map(int, held.removeprefix(TO).split(",")))
            elif self._line:
                drivers[held] = CentrelineDriver(self._line, backward=held == BACK)
            else:
                drivers[held] = partial(_always, frozenset({"B" if held == AHEAD else "Y"}))
        return drivers

    def _mask(self, held: frozenset[str]) -> int:
        return sum(self._bits.get(name, 0) for name in held)

    def _prepared(self, phase: Phase) -> tuple[int, str | None, int, Callable[[Any, Any], bool] | None]:
        driver = phase.held if phase.held.startswith(TO) else None
        mask = 0 if driver else self._mask(frozenset(phase.held.split("+")))
        until: Callable[[Any, Any], bool] | None = None
        if phase.until:
            name, op, value = phase.until
            if op == CHANGES:

                def until(ram: Any, before: Any) -> bool:
                    return bool(getattr(ram, name) != getattr(before, name))
            else:
                compare = OPERATORS[op]

                def until(ram: Any, before: Any) -> bool:
                    return bool(compare(getattr(ram, name), value))

        return mask, driver, phase.frames, until

    def drive(self, behaviour: Behaviour, frames: int, label: str) -> Drive:
        """Plays a behaviour from the start of the episode, and returns its drive."""
        begin = behaviour.begin
        rams, masks = [self.reference[i] for i in range(begin + 1)], self.reference.masks[:begin].tolist()
        for (ram, mask), _ in zip(self.frames(behaviour), range(frames), strict=False):
            rams.append(ram)
            masks.append(mask)
        drive = self._drive(rams, masks)
        return replace(drive, info=replace(drive.info, label=label))


def _always(held: frozenset[str], ram: Any) -> frozenset[str]:
    return held


def _drive_to(x: int, y: int, ram: Any) -> frozenset[str]:
    """Returns the buttons that steer to a place."""
    wanted = math.atan2(x - ram.kart_x, ram.kart_y - y) / (2 * math.pi) * 256
    error = turn_difference(wanted, ram.kart_direction)
    held = {"B"} if abs(error) < 40 or ram.speed < 300 else set()
    if abs(error) > 2:
        held.add("RIGHT" if error > 0 else "LEFT")
    return frozenset(held)


class _NamesOfMask(dict[int, frozenset[str]]):
    def __init__(self, buttons: list[str | None]) -> None:
        super().__init__()
        self._buttons = buttons

    def __missing__(self, mask: int) -> frozenset[str]:
        self[mask] = frozenset(name for i, name in enumerate(self._buttons) if name and mask >> i & 1)
        return self[mask]


def _discounted(paid: np.ndarray, gamma: float) -> tuple[float, float]:
    """Returns the discounted return, and the discounted sum of the absolute rewards."""
    factors = gamma ** (np.arange(len(paid)) // DEFAULT_FRAME_SKIP)
    return float((paid * factors).sum()), float((np.abs(paid) * factors).sum())


_players: dict[Setup, Player] = {}


def player_of(setup: Setup) -> Player:
    """Returns the player of this process. Another setup ends the emulator of the one before."""
    if setup not in _players:
        _players.clear()
        gc.collect()
        _players[setup] = Player(setup)
    return _players[setup]


def try_behaviour(setup: Setup, behaviour: Behaviour, windows: tuple[int, ...], least: float) -> Rollout:
    """Plays a behaviour in this process's emulator. See ``Player.run``."""
    return player_of(setup).run(behaviour, windows, least)


def reference_of(setup: Setup) -> tuple[Reference, Drive]:
    """Returns what the reference drive is paid, and the drive: without buttons, if there is none."""
    player = player_of(setup)
    return player.summary, player.reference


def drive_of(setup: Setup, behaviour: Behaviour, frames: int, label: str) -> Drive:
    """Plays a behaviour again, and returns the drive."""
    return player_of(setup).drive(behaviour, frames, label)
