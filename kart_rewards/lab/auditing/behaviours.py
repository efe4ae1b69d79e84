"""Behaviours that ``kart-rewards audit`` tries, and the strategies that invent them.

* ``Phase``, ``Behaviour`` - buttons that are held for a time or until a condition is true; a list of phases, in a loop
* ``GameFacts`` - what is known of a game before the search: its buttons, variables and a drive
* ``known_strategies`` - behaviours that pay in rewards with common mistakes, the most probable ones first
* ``changed`` - a behaviour with a random change

A behaviour is a plain value: workers get it as it is, and equal behaviours play equal frames. Nothing here needs an
emulator.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kart_rewards.drives import Drive
from kart_rewards.errors import counted
from kart_rewards.lab.auditing.targets import CHANGES, OPERATORS, Target
from kart_rewards.race import DEEP_WATER, FACING_BACKWARD

AHEAD, BACK = "@ahead", "@back"
"""In place of buttons: steer along the path of the reference drive, forward or in the opposite direction."""

TO = "@"
"""In place of buttons: steer to a place; ``@X,Y`` in the unit of ``kart_x``."""

KART_VARIABLES = frozenset({"speed", "kart_x", "kart_y", "kart_direction"})
GRID = 10
"""Behaviours begin on frames of the reference drive that are multiples of this."""


class Phase(NamedTuple):
    """Buttons that are held for some frames.

    Args:
        held: The buttons, joined by ``+``; or ``AHEAD``, ``BACK``, or a place, see ``TO``.
        frames: The number of frames, at most.
        until: The phase ends on the frame on which this is true. None: after ``frames``.
    """

    held: str
    frames: int
    until: Target | None = None

    def __str__(self) -> str:
        names = {"": "no button", AHEAD: "along the course", BACK: "along the course in the opposite direction"}
        what = names.get(self.held, self.held)
        what = f"to the place {what.removeprefix(TO)}" if what.startswith(TO) else what
        return f"{what} until {self.until}" if self.until else f"{what} for {counted(self.frames, 'frame')}"


class Behaviour(NamedTuple):
    """What a driver does.

    Args:
        strategy: The name of the strategy that invented it, for a person.
        begin: The frame of the reference drive after which it begins. The buttons before are those of that drive.
        phases: The phases.
        loop: The index of the first phase of the loop: after the last phase, this one follows.
    """

    strategy: str
    begin: int
    phases: tuple[Phase, ...]
    loop: int = 0

    def __str__(self) -> str:
        once = ", ".join(map(str, self.phases[: self.loop]))
        again = ", ".join(map(str, self.phases[self.loop :]))
        return f"{self.strategy}: {once}{', then ' * bool(once)}again and again: {again}"


@dataclass(frozen=True, eq=False)
class GameFacts:
    """What is known of a game before the search.

    Args:
        buttons: The names of the console's buttons.
        names: The names of the variables.
        drive: The reference drive, or a drive without buttons.
        last: The last frame on which a behaviour may begin.
        read: The variables that terms and rules read, those of the user's own terms first.
        targets: Conditions in the source of terms.
        words: Buttons that the source of terms names.
    """

    buttons: tuple[str, ...]
    names: tuple[str, ...]
    drive: Drive
    last: int
    read: tuple[str, ...]
    targets: tuple[Target, ...]
    words: tuple[str, ...]

    @property
    def is_kart(self) -> bool:
        """Whether a driver can stop, turn and follow the course."""
        return KART_VARIABLES.issubset(self.names) and {"B", "Y", "LEFT", "RIGHT"} <= {*self.buttons}

    def discrete(self) -> list[str]:
        """The variables that are read and have few values, which rarely change."""
        chosen = []
        for name in self.read:
            column = self.drive.columns.get(name)
            if column is None or column.ndim > 1:
                continue
            changes = np.count_nonzero(np.diff(column.astype(np.int64)))
            if len(np.unique(column)) <= 64 and changes < len(column) / 8:
                chosen.append(name)
        return chosen

    def boundaries(self, name: str) -> list[int]:
        """The frames of the reference drive on which a variable has another value than before, a few of each kind."""
        column = self.drive.columns[name].astype(np.int64)
        frames = np.flatnonzero(np.diff(column)) + 1
        kinds: dict[tuple[int, int], list[int]] = {}
        for frame in frames[frames < self.last].tolist():
            kinds.setdefault((int(column[frame - 1]), int(column[frame])), []).append(frame)
        if len(kinds) > 8:  # such as checkpoints: those at the beginning, in the middle and at the end
            pairs = list(kinds.values())
            return [pairs[i][0] for i in (0, 1, len(pairs) // 3, 2 * len(pairs) // 3, len(pairs) - 1)]
        return sorted(frame for of_kind in kinds.values() for frame in of_kind[:2])

    def where(self, target: Target) -> list[int]:
        """The frames of the reference drive on which a condition becomes true or false."""
        column = self.drive.columns.get(target.name)
        if column is None or column.ndim > 1:
            return []
        true = OPERATORS[target.op](column.astype(np.int64), target.value)
        frames = np.flatnonzero(np.diff(np.asarray(true).astype(np.int8))) + 1
        return [int(frame) for frame in frames[frames < self.last]]


# The strategies


def known_strategies(facts: GameFacts, rng: random.Random) -> Iterator[Behaviour]:
    """Yields behaviours that pay in rewards with common mistakes, the most probable ones first.

    Args:
        facts: What is known of the game.
        rng: Decides the order of less probable ones.
    """
    yield from _standard(facts, 0)
    yield from _over_boundaries(facts)
    yield from _at_targets(facts)
    yield from _into_water(facts)
    begins = [int(part * facts.last) // GRID * GRID for part in (0.5, 0.25, 0.75, 0.12, 0.37, 0.62, 0.87, 1.0)]
    further = [each for begin in dict.fromkeys(begins) if begin for each in _standard(facts, begin)]
    first, rest = further[: len(further) // 4], further[len(further) // 4 :]
    rng.shuffle(rest)
    yield from first
    yield from rest


def _standard(facts: GameFacts, begin: int) -> Iterator[Behaviour]:
    """Behaviours that can begin at any frame."""
    if facts.is_kart:
        yield from _of_kart(facts, begin)
        return
    yield Behaviour("standing still", begin, (Phase("", 60),))
    single = _single(facts)
    directions = [name for name in single if name in _DIRECTIONS]
    for name in single:
        yield Behaviour("holding", begin, (Phase(name, 60),))
    for name in single:
        yield Behaviour("press and release", begin, (Phase(name, 4), Phase("", 8)))
    for direction in directions:
        for name in single:
            if name not in _DIRECTIONS:
                yield Behaviour("holding", begin, (Phase(f"{name}+{direction}", 60),))
    for one, other in (("LEFT", "RIGHT"), ("UP", "DOWN")):
        if {one, other} <= {*single}:
            for frames in (4, 24, 90):
                yield Behaviour("to and fro", begin, (Phase(one, frames), Phase(other, frames)))


_DIRECTIONS = ("LEFT", "RIGHT", "UP", "DOWN")


def _single(facts: GameFacts) -> list[str]:
    return [name for name in facts.buttons if name not in _OF_THE_CONSOLE]


_OF_THE_CONSOLE = ("SELECT", "START", "RESET", "MODE", "COIN")
"""Buttons that pause or restart a game, in games without a kart."""


_STOP = Phase("Y", 240, Target("speed", "<=", 0))
_AT_REST = Phase("", 120, Target("speed", "==", 0))
_TURN = Phase("Y+LEFT", 150)


def _of_kart(facts: GameFacts, begin: int) -> Iterator[Behaviour]:
    stop = (_STOP, _AT_REST)

    def looped(strategy: str, *loop: Phase, once: tuple[Phase, ...] = ()) -> Behaviour:
        return Behaviour(strategy, begin, (*once, *loop), len(once))

    yield looped("standing still", Phase("", 60), once=stop)
    for hop in sorted({"L", "R"} & {*facts.buttons}):
        yield looped("hopping on the spot", Phase(hop, 2), Phase("", 26), once=stop)
        yield looped("hopping on the spot", Phase(hop, 2), Phase("", 2), once=stop)
        yield looped("hopping on the spot", Phase(hop, 60), once=stop)
    for gas, brake in ((30, 30), (8, 8), (90, 60), (3, 3), (50, 20)):
        yield looped("gas and brake", Phase("B", gas), Phase("Y", brake), once=stop)
    yield looped("gas and brake", Phase("B", 240, Target("speed", ">", 700)), _STOP, once=stop)
    for side, other in (("LEFT", "RIGHT"), ("RIGHT", "LEFT")):
        yield looped("circling", Phase(f"B+{side}", 60))
        yield looped("circling", Phase(f"B+{side}", 4), Phase("B", 6))
        yield looped("circling", Phase(f"B+{side}", 3), Phase("B", 12))
        yield looped("into the wall", Phase(f"B+{side}", 30), Phase("B", 240))
        yield looped("reversing", Phase(f"Y+{side}", 60))
        yield looped("drifting in circles", Phase(f"B+{side}+{_hop(facts)}", 3), Phase(f"B+{side}", 40))
        yield looped("weaving", Phase(f"B+{side}", 20), Phase(f"B+{other}", 20))
    yield looped("into the wall", Phase("B", 240), Phase("Y", 40))
    yield looped("reversing", Phase("Y", 60))
    facing = Target("backward", "==", FACING_BACKWARD)
    turn = (_STOP, Phase("B+LEFT", 200, facing if "backward" in facts.names else None))
    yield looped("driving the wrong way", Phase(BACK, 600), once=turn)
    yield looped("along the course and back", Phase(AHEAD, 240), Phase(BACK, 240))
    yield looped("along the course and back", Phase(AHEAD, 600), Phase(BACK, 600))
    rare = [name for name in facts.buttons if name and name not in _DRIVING]
    for held in ("+".join(rare), *rare):
        if held:
            yield looped("holding", Phase(held, 60), once=stop)
    yield looped("turning on the spot", Phase("B+LEFT", 10), Phase("Y+LEFT", 10), once=stop)


_DRIVING = ("B", "Y", "LEFT", "RIGHT", "L", "R")


def _hop(facts: GameFacts) -> str:
    return "L" if "L" in facts.buttons else "R"


def _into_water(facts: GameFacts) -> Iterator[Behaviour]:
    """Turning off the course in many places, until the kart is in the water and rescued, again and again."""
    if not facts.is_kart or "surface" not in facts.names:
        return
    in_water = Target("surface", "==", DEEP_WATER)
    for frames in (30, 12):
        for begin in range(0, facts.last + 1, max(facts.last // 12 // GRID, 1) * GRID):
            for side in ("LEFT", "RIGHT"):
                loop = (Phase(f"B+{side}", frames, in_water), Phase("B", 150, in_water))
                rescued = Phase("", 200, in_water.inverse())
                yield Behaviour("into the water and back", begin, (*loop, rescued))


def _over_boundaries(facts: GameFacts) -> Iterator[Behaviour]:
    """To and fro over the places where a variable changes, and standing on both sides of them."""
    places = {name: facts.boundaries(name) for name in facts.discrete()}
    for nearest in (True, False):
        for name, frames in places.items():
            for frame in frames[:2] if nearest else frames[2:]:
                yield from _shuttles(facts, Target(name, CHANGES), frame)


def _shuttles(facts: GameFacts, there: Target, frame: int) -> Iterator[Behaviour]:
    begin = min(max(frame - 6, 0) // GRID * GRID, facts.last)
    until = there.inverse()
    if not facts.is_kart:
        for one, other in (("LEFT", "RIGHT"), ("UP", "DOWN")):
            if {one, other} <= {*facts.buttons}:
                yield Behaviour("shuttling", begin, (Phase(one, 120, there), Phase(other, 120, until)))
        return
    for beyond in (0, 12, 40):
        loop = [Phase("Y", 300, until), Phase("Y", beyond), Phase("B", 300, there), Phase("B", beyond)]
        yield Behaviour("shuttling", begin, (_STOP, *(phase for phase in loop if phase.frames)), 1)
    yield Behaviour("stopping at a boundary", begin, (_STOP, _AT_REST, Phase("", 60)), 2)
    yield Behaviour(
        "stopping at a boundary",
        begin,
        (_STOP, Phase("Y", 300, until), Phase("B", 60, Target("speed", ">=", 0)), _AT_REST, Phase("", 60)),
        4,
    )


def _at_targets(facts: GameFacts) -> Iterator[Behaviour]:
    """To and fro over the places where a comparison in a term becomes true, and doing nothing while it is true."""
    for target in facts.targets:
        frames = facts.where(target)
        for frame in [*frames[:1], *frames[len(frames) // 2 :][:1]]:
            yield from _shuttles(facts, target, frame)
        if not frames:
            buttons = ("B", "B+LEFT", "B+RIGHT", "Y", BACK) if facts.is_kart else _single(facts)
            for held in buttons:
                yield Behaviour("seeking", 0, (Phase(held, 400, target), Phase("", 60)), 1)
                yield Behaviour("seeking", 0, (Phase(held, 400, target), Phase("", 200, target.inverse())), 0)
    for word in facts.words:
        if word in facts.buttons:
            yield Behaviour("holding", 0, (Phase(word, 60),))
            yield Behaviour("press and release", 0, (Phase(word, 2), Phase("", 2)))
            if facts.is_kart:
                yield Behaviour("press and release", 0, (_STOP, Phase(word, 2), Phase("", 26)), 1)


def changed(
    facts: GameFacts, behaviour: Behaviour, others: Sequence[Behaviour], rng: random.Random, amount: int = 2
) -> Behaviour:
    """Returns a behaviour with random changes.

    Args:
        facts: What is known of the game.
        behaviour: The behaviour.
        others: Behaviours whose phases it can take.
        rng: Decides.
        amount: The largest number of changes.
    """
    phases, loop, begin = list(behaviour.phases), behaviour.loop, behaviour.begin
    for _ in range(rng.randint(1, amount)):
        k = rng.randrange(len(phases))
        match rng.randrange(8):
            case 0 | 1:
                factor = rng.choice((0.4, 0.7, 0.85, 1.2, 1.5, 2.5))
                phases[k] = phases[k]._replace(frames=max(1, min(600, round(phases[k].frames * factor))))
            case 2:
                phases[k] = phases[k]._replace(held=_some_buttons(facts, rng))
            case 3:
                phases.insert(k, _some_phase(facts, rng))
                loop += k < loop
            case 4:
                if len(phases) > 1:
                    del phases[k]
                    loop = min(loop - (k < loop), len(phases) - 1)
            case 5:
                begin += GRID * rng.choice((-20, -5, -2, -1, 1, 2, 5, 20))
                begin = min(max(begin, 0), facts.last) // GRID * GRID
            case 6:
                other = rng.choice(others)
                phases = [*phases[:loop], *other.phases[other.loop :]]
                if rng.random() < 0.5:
                    phases = [*phases[:loop], *behaviour.phases[behaviour.loop :], *other.phases[other.loop :]]
            case _:
                loop = rng.randrange(len(phases))
    if sum(phase.frames for phase in phases[loop:]) < 2:
        phases.append(Phase("", 10))
    return replace_long(
        Behaviour(behaviour.strategy.removesuffix(", changed") + ", changed", begin, (), 0), phases, loop
    )


_MOST_PHASES = 10


def replace_long(behaviour: Behaviour, phases: Sequence[Phase], loop: int) -> Behaviour:
    """Returns a behaviour with other phases, of which the last ones are left out if they are too many."""
    kept = tuple(phases[:_MOST_PHASES])
    return behaviour._replace(phases=kept, loop=min(loop, len(kept) - 1))


def at_random(facts: GameFacts, rng: random.Random) -> Behaviour:
    """Returns a random behaviour."""
    phases = tuple(_some_phase(facts, rng) for _ in range(rng.randint(1, 4)))
    begin = rng.choice((0, rng.randrange(facts.last + 1) // GRID * GRID))
    return Behaviour("at random", begin, phases, rng.randrange(len(phases)))


def _some_buttons(facts: GameFacts, rng: random.Random) -> str:
    if not facts.is_kart:
        single = _single(facts)
        return "+".join(dict.fromkeys(rng.choice(single) for _ in range(rng.randint(0, 2))))
    if rng.random() < 0.15:
        return rng.choice((AHEAD, BACK))
    pedal = rng.choice(("", "B", "B", "Y"))
    side = rng.choice(("", "LEFT", "RIGHT"))
    hop = _hop(facts) if rng.random() < 0.15 else ""
    other = rng.choice(facts.buttons) if rng.random() < 0.05 else ""
    return "+".join(dict.fromkeys(filter(None, (pedal, side, hop, other))))


def _some_phase(facts: GameFacts, rng: random.Random) -> Phase:
    held = _some_buttons(facts, rng)
    if rng.random() < 0.35:
        conditions = [Target(name, CHANGES) for name in facts.discrete()] + list(facts.targets)
        if facts.is_kart:
            conditions += [Target("speed", "<=", 0), Target("speed", ">", 500)]
        if conditions:
            return Phase(held, rng.choice((120, 240)), rng.choice(conditions))
    return Phase(held, rng.choice((2, 4, 8, 15, 30, 60, 120)))
