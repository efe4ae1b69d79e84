"""Short scripted drives in the emulator, for ``kart-rewards lint``.

* ``Probe``, ``Probes`` - a scripted drive with its cycles; all of them, with the time of an emulated frame
* ``make_probes`` - drives them
* ``recorded_again`` - recorded drives with other variables

A cycle returns to the state in which it began: gas and brake, over the line and back. A term that nets a profit in a
cycle can be farmed. The drives do not depend on the rewards, so those with cycles are kept on the disk, in the user's
cache folder. Most of the time of ``kart-rewards lint`` would be theirs.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import platformdirs
from gymnasium.spaces import Box

from kart_rewards.defaults import DEFAULT_FRAME_SKIP
from kart_rewards.drives import SUFFIX, Drive, DriveInfo, load_drive, smallest
from kart_rewards.env.actions import HOP, LEFT, RIGHT
from kart_rewards.env.core import fingerprints_of
from kart_rewards.env.kart_env import KartEnv
from kart_rewards.env.recorder import DriveRecorder
from kart_rewards.errors import KartRewardsError
from kart_rewards.files import UnwritableError
from kart_rewards.games.console import Console
from kart_rewards.integrations import Game
from kart_rewards.lab.linting.clock import clock
from kart_rewards.race import COURSE_SURFACES, RaceMetrics, is_kart_race
from kart_rewards.ram import RamLayout, Variable

DRIVER = "lint"
"""The driver of scripted drives."""

NOTHING = "no-buttons"
"""The label of the drive without buttons."""

AGENT = "agent"
"""The label of the drive of an agent, with actions that change every few steps."""

_CYCLES = 3  # the first one is not measured: a term may pay once for what is new in it
_MOST_PHASE_FRAMES = 300
_REST_FRAMES = 15


@dataclass(frozen=True, eq=False)
class Probe:
    """A scripted drive.

    Args:
        drive: The drive. It can be played again.
        cycles: The frames on which its cycles begin, and the frame on which the last one ends. Empty: it has none.
        rest: The first and the last frame of a rest in the state in which the cycles begin; (0, 0) without cycles.
        raw: Variable -> the bytes of memory from the one before it to the one behind it: uint8, shape
            (frames, width + 2). Only variables with a fixed address and a single value are there.
    """

    drive: Drive
    cycles: tuple[int, ...] = ()
    rest: tuple[int, int] = (0, 0)
    raw: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Probes:
    """The scripted drives of a game.

    Args:
        all: The drives.
        frame_seconds: The time of an emulated frame on this machine: the median.
        steps: Frame skip -> the steps of a ``KartEnv`` on the drive ``AGENT``: what it gives to terms on each frame
            (snapshot, held buttons, action). The environments hold the same actions for the same frames.
    """

    all: list[Probe]
    frame_seconds: float
    steps: Mapping[int, list[list[tuple[Any, frozenset[str], Any]]]] = field(default_factory=dict)


def make_probes(
    game: Game,
    layout: RamLayout,
    known: Sequence[Drive] = (),
    action_mode: str = "auto",
    integrations: Any = None,
) -> Probes:
    """Drives scripted drives in the emulator. No environment may be open in this process.

    A kart race gets the cycles of a kart. Any other game gets a drive per button and per pair of directions. If there
    is no recorded drive, there are also drives with random actions.

    Args:
        game: The game.
        layout: Its variables.
        known: The recorded drives of the game.
        action_mode: The action mode of the drives with random actions.
        integrations: The only folder to look for the game in. None: the standard lookup.

    Raises:
        KartRewardsError: The ROM or the start state is missing or not valid.
    """
    player = _Player(game, layout)
    probes = [player.play(NOTHING, _held((), 300))]
    frame_seconds = player.frame_seconds
    is_kart = _KART_VARIABLES.issubset(layout.names) and {"B", "Y", "LEFT", "RIGHT"} <= {*player.buttons}
    scripts = _KART_CYCLES if is_kart else dict(_button_cycles(player.buttons))
    kept = _kept_in(game, layout)
    for label, script in scripts.items():
        try:
            probes.append(_from_file(kept / f"{label}{SUFFIX}", layout))
        except KartRewardsError:  # it is not there, or damaged
            probes.append(player.play(label, script))
            _keep(probes[-1], kept)
    _clear_old(kept.parent)
    player.close()
    drive, steps = _by_agent(game, action_mode, integrations)
    probes.append(Probe(drive))
    if not known:
        probes += [Probe(drive) for drive in _at_random(game, action_mode, integrations)]
    return Probes(probes, frame_seconds, steps)


def recorded_again(game: Game, layout: RamLayout, drives: Iterable[tuple[Drive, int]]) -> list[Probe]:
    """Plays drives again, and records the variables of a layout. No environment may be open in this process.

    Args:
        game: The game.
        layout: The variables.
        drives: Drives that can be played again, each with the number of its frames to play.
    """
    player = _Player(game, layout)
    probes = []
    for drive, frames in drives:
        player.begin(drive.start, drive.info.state)
        held = [drive.buttons[0], *drive.buttons]  # the buttons of a frame are those that led to it
        for buttons in held[2 : frames + 1]:
            player.hold(buttons)
        again = player.drive(f"{drive.info.label}-again")
        info = replace(again.info, race=drive.info.race, driver=drive.info.driver)
        probes.append(Probe(replace(again, info=info), raw=player.raw()))
    player.close()
    return probes


def _kept_in(game: Game, layout: RamLayout) -> Path:
    """Returns the folder of the drives with cycles. Its name depends on everything that decides their content."""
    state = game.default_state()
    facts = fingerprints_of(game.rom()), game.name, state, game.load_state(state), layout.variables
    name = hashlib.sha256(repr(facts).encode() + Path(__file__).read_bytes()).hexdigest()[:32]
    return platformdirs.user_cache_path("kart_rewards") / "scripted_drives" / name


def _keep(probe: Probe, folder: Path) -> None:
    """Writes a drive with cycles, as a drive with more columns: the marks of the cycles, and the bytes of memory."""
    marks = np.zeros(len(probe.drive), np.uint8)
    marks[[*probe.cycles]] |= _CYCLE
    marks[[*probe.rest] if probe.cycles else []] |= _REST
    columns = probe.drive.columns | {_RAW + name: values for name, values in probe.raw.items()} | {_MARKS: marks}
    with suppress(UnwritableError):  # without a cache, it is driven again
        replace(probe.drive, columns=columns).save(folder / f"{probe.drive.info.label}{SUFFIX}")


def _clear_old(folder: Path) -> None:
    """Deletes all but the latest folders of drives."""
    with suppress(OSError):
        for old in sorted(folder.iterdir(), key=lambda each: each.stat().st_mtime)[:-_MOST_KEPT]:
            shutil.rmtree(old, ignore_errors=True)


def _from_file(path: Path, layout: RamLayout) -> Probe:
    """Reads what ``_keep`` wrote.

    Raises:
        KartRewardsError: The file is not there, or it is damaged.
    """
    drive = load_drive(path)
    if _MARKS not in drive.columns or not drive.columns.keys() >= {*layout.names}:
        raise KartRewardsError(f"{path}: is not a drive of lint")
    marks = drive.columns[_MARKS]
    rest = np.flatnonzero(marks & _REST).tolist() or [0, 0]
    return Probe(
        replace(drive, columns={name: drive.columns[name] for name in layout.names}),
        tuple(np.flatnonzero(marks & _CYCLE).tolist()),
        (rest[0], rest[-1]),
        {name.removeprefix(_RAW): values for name, values in drive.columns.items() if name.startswith(_RAW)},
    )


_CYCLE, _REST = 1, 2
_MARKS, _RAW = "marks_of_lint", "memory_of_"
_MOST_KEPT = 10  # folders; an edit of data.json makes a new one


Script = Callable[["_Player"], Iterator[Any]]
"""Plays frames, and yields ``rest`` after a rest and ``cycle`` on the first frame of each cycle."""


class _Player:
    """Plays and records drives. It draws nothing that anyone sees, so it does not read the screen."""

    def __init__(self, game: Game, layout: RamLayout) -> None:
        self._game, self._layout = game, layout
        single = [each for each in layout.variables if each.pointer is None and each.count is None]
        self._raw_names = {
            each.name: [f"byte_{i}_of_{each.name}" for i in range(each.width + 2)] for each in single if each.address
        }
        addresses = {each.name: each.address for each in single}
        more = [
            Variable(name, addresses[of] - 1 + i, "|u1")
            for of, names in self._raw_names.items()
            for i, name in enumerate(names)
        ]
        self._console = Console(game.rom())
        self._blocks = dict(self._console.data.memory.blocks)
        more = [each for each in more if self._is_inside(each)]
        inside = {each.name for each in more}
        self._raw_names = {of: names for of, names in self._raw_names.items() if inside.issuperset(names)}
        self._console.set_layout(RamLayout([*layout.variables, *more], layout.source))
        self.buttons = self._console.buttons
        self._times: list[float] = []
        self._fingerprints = fingerprints_of(game.rom())

    def _is_inside(self, variable: Variable) -> bool:
        try:
            self._layout.check_address(variable, self._blocks)
        except KartRewardsError:
            return False
        return True

    def close(self) -> None:
        """Ends the emulator."""
        del self._console

    @property
    def frame_seconds(self) -> float:
        return median(self._times)

    def play(self, label: str, script: Script) -> Probe:
        """Plays a script from the default start state. If it gets stuck, its drive ends there, without cycles."""
        state = self._game.default_state()
        self.begin(self._game.load_state(state), state)
        cycles: list[int] = []
        rest = (0, 0)
        try:
            for mark in script(self):
                if mark == "rest":
                    rest = (len(self._frames) - _REST_FRAMES, len(self._frames) - 1)
                else:
                    cycles.append(len(self._frames) - 1)
        except _StuckError:
            cycles = []
        return Probe(self.drive(label), tuple(cycles), rest, self.raw())

    def begin(self, snapshot: bytes, state: str) -> None:
        """Loads a state, and runs one frame without buttons, as ``KartEnv.reset`` does."""
        self._start, self._state = snapshot, state
        self._console.load(snapshot, state)
        self._frames: list[Any] = []
        self._held: list[frozenset[str]] = []
        self.hold(frozenset())

    def hold(self, held: frozenset[str]) -> Any:
        """Runs a frame. Returns its snapshot."""
        console = self._console
        console.em.set_button_mask(np.array([name in held for name in self.buttons], np.uint8), 0)
        began = clock()
        console.em.step()
        self._times.append(clock() - began)
        self._frames.append(console.ram())
        self._held.append(held)
        return self._frames[-1]

    def until(self, held: Iterable[str], condition: Callable[[Any], bool]) -> Any:
        """Holds buttons until a condition is true. Returns the snapshot.

        Raises:
            _StuckError: It does not become true.
        """
        buttons = frozenset(held)
        for _ in range(_MOST_PHASE_FRAMES):
            if condition(ram := self.hold(buttons)):
                return ram
        raise _StuckError

    @property
    def ram(self) -> Any:
        return self._frames[-1]

    def drive(self, label: str) -> Drive:
        """Returns the drive so far."""
        names = self._layout.names
        columns = dict(
            zip(names, map(smallest, zip(*(frame[: len(names)] for frame in self._frames), strict=True)), strict=True)
        )
        metrics = None
        if is_kart_race(names):
            metrics = RaceMetrics(self._frames[0], self._console.frames_per_second)
            for frame in self._frames[1:]:
                metrics.update(frame)
        pressed = np.array([[name in held for name in self.buttons] for held in self._held], bool)
        masks = (pressed * (1 << np.arange(len(self.buttons)))).sum(axis=1).astype(np.uint32)
        frames = len(masks) - 1
        return Drive(
            DriveInfo(
                game=self._game.name,
                state=self._state,
                driver=DRIVER,
                buttons=tuple(self.buttons),
                frames_per_second=self._console.frames_per_second,
                race=metrics.summary() if metrics else None,
                fingerprints=self._fingerprints,
                label=label,
            ),
            columns,
            masks[1:],
            masks[:1],
            np.ones(frames, np.uint16),
            pressed[1:],
            np.zeros(frames),
            self._start,
        )

    def raw(self) -> dict[str, np.ndarray]:
        """Returns the bytes of memory of the drive so far; see ``Probe``."""
        fields = {name: i for i, name in enumerate(self._frames[0]._fields)}
        table = np.array([frame[len(self._layout.names) :] for frame in self._frames], np.uint8)
        first = len(self._layout.names)
        return {of: table[:, [fields[name] - first for name in names]] for of, names in self._raw_names.items()}


class _StuckError(Exception):
    """A scripted drive does not reach the next phase."""


def _held(buttons: Iterable[str], frames: int) -> Script:
    def script(player: _Player) -> Iterator[Any]:
        for _ in range(frames):
            player.hold(frozenset(buttons))
        yield from ()

    return script


def _cycles(prepare: Callable[[_Player], Any], cycle: Callable[[_Player, Any], Any], times: int = _CYCLES) -> Script:
    """Returns the script of a kart that rests, and then drives a cycle several times."""

    def script(player: _Player) -> Iterator[Any]:
        prepare(player)
        for _ in range(_REST_FRAMES):
            player.hold(frozenset())
        yield "rest"
        at_rest = player.ram
        yield "cycle"
        for _ in range(times):
            cycle(player, at_rest)
            yield "cycle"

    return script


def _back_to(player: _Player, place: Any) -> None:
    """Drives backwards to a place, and stops a little behind it."""
    player.until("Y", lambda ram: ram.speed < 0 and _distance(ram, place) <= _NEAR)
    player.until("B", lambda ram: ram.speed >= 0)


_NEAR = 16  # quarter pixels; a kart that drives backwards passes four per frame


def _distance(ram: Any, place: Any) -> int:
    distance: int = abs(ram.kart_x - place.kart_x) + abs(ram.kart_y - place.kart_y)
    return distance


def _stop(player: _Player) -> None:
    player.until("Y", lambda ram: ram.speed <= 0)


def _gas_and_brake(player: _Player, start: Any) -> None:
    player.until("B", lambda ram: ram.speed >= 250)
    _back_to(player, start)


def _over_the_line(player: _Player, start: Any) -> None:
    player.until("B", lambda ram: ram.laps != start.laps)
    _back_to(player, start)


def _to_the_first_checkpoint(player: _Player) -> None:
    player.until("B", lambda ram: ram.checkpoint == 0)
    _stop(player)


def _over_a_checkpoint(player: _Player, start: Any) -> None:
    player.until("B", lambda ram: ram.checkpoint != start.checkpoint)
    _back_to(player, start)


def _towards_the_edge(player: _Player) -> None:
    first = player.ram.kart_direction
    player.until(("B", "LEFT"), lambda ram: (first - ram.kart_direction) % 256 >= 60)
    _stop(player)


def _over_the_edge(player: _Player, start: Any) -> None:
    player.until("B", lambda ram: ram.surface not in COURSE_SURFACES)
    _back_to(player, start)


def _left_and_right(player: _Player, start: Any) -> None:
    for _ in range(12):
        player.hold(frozenset({"B", "LEFT"}))
    turned = (start.kart_direction - player.ram.kart_direction) % 256
    player.until(("B", "RIGHT"), lambda ram: not 0 < (start.kart_direction - ram.kart_direction) % 256 <= turned + 64)


def _turned(player: _Player, since: Any) -> int:
    """Returns by how much the kart has turned, either way: 0 to 128, where 128 is half a circle."""
    turned = (player.ram.kart_direction - since.kart_direction) % 256
    return min(turned, 256 - turned)


def _hop(player: _Player, start: Any) -> None:
    for frame in range(_HOP_FRAMES):
        player.hold(frozenset({HOP} if frame < 4 else ()))


_HOP_FRAMES = 24  # the kart is in the air on 15 of them


def _drift(player: _Player, start: Any) -> None:
    player.until("B", lambda ram: ram.speed >= 400)
    for side in (LEFT, RIGHT):
        for frame in range(30):
            player.hold(frozenset({"B", HOP, side} if frame < 20 else {"B"}))
    _stop(player)


def _circle(side: str) -> Callable[[_Player, Any], None]:
    """Returns a cycle that drives a circle backwards, which is small. The kart turns round, and back."""

    def cycle(player: _Player, start: Any) -> None:
        player.until(("Y", side), lambda ram: _turned(player, start) > 100)
        player.until(("Y", side), lambda ram: _distance(ram, start) <= 2 * _NEAR and _turned(player, start) < 32)
        player.until("B", lambda ram: ram.speed >= 0)

    return cycle


def _to_a_straight(player: _Player) -> None:
    for _ in range(240):
        player.hold(frozenset("Y"))
    player.until("B", lambda ram: ram.speed >= 0)
    player.until((), lambda ram: ram.speed == 0)


def _fast_and_slow(player: _Player, start: Any) -> None:
    """Drives to a high speed, stops and turns round. Only the speed returns."""
    here = player.ram
    player.until("B", lambda ram: ram.speed > _HIGH_SPEED)
    _stop(player)
    player.until(("Y", LEFT), lambda ram: _turned(player, here) >= 124)
    player.until("B", lambda ram: ram.speed >= 0)


_HIGH_SPEED = 900


def _to_a_wall(player: _Player) -> None:
    player.until("B", lambda ram: ram.collision)
    player.until((), lambda ram: ram.speed == 0)


def _into_the_wall(player: _Player, start: Any) -> None:
    """Backs off, faces the wall again and drives into it. The place returns only roughly."""
    player.until("Y", lambda ram: ram.speed <= -150)
    player.until("B", lambda ram: ram.speed >= 0)
    player.until("B", lambda ram: ram.collision)
    player.until("B", lambda ram: not ram.collision)
    player.until((), lambda ram: ram.speed == 0)


def _start(player: _Player) -> None:
    """The cycles begin in the start state."""


_KART_VARIABLES = {"laps", "checkpoint", "speed", "surface", "collision", "kart_x", "kart_y", "kart_direction"}
_KART_CYCLES: dict[str, Script] = {
    "gas-and-brake": _cycles(_start, _gas_and_brake),
    "over-the-line": _cycles(_start, _over_the_line),
    "over-a-checkpoint": _cycles(_to_the_first_checkpoint, _over_a_checkpoint),
    "over-the-edge": _cycles(_towards_the_edge, _over_the_edge),
    "left-and-right": _cycles(_start, _left_and_right),
    "hop-on-the-spot": _cycles(_start, _hop),
    "drift-and-stop": _cycles(_start, _drift),
    "circle-to-the-left": _cycles(_start, _circle(LEFT)),
    "circle-to-the-right": _cycles(_start, _circle(RIGHT)),
    "fast-and-slow": _cycles(_to_a_straight, _fast_and_slow, 2),
    "into-the-wall": _cycles(_to_a_wall, _into_the_wall),
}
"""The drives of a kart that undo what they do. Some return only a part: the speed, the height, the contact to a wall.

A term is examined in those cycles that return all variables that it reads.
"""

_HALF_PERIOD = 24
_OPPOSITES = (("LEFT", "RIGHT"), ("UP", "DOWN"))


def _button_cycles(buttons: Sequence[str | None]) -> Iterator[tuple[str, Script]]:
    """Yields drives that press and release each button, or press two opposite directions in turns."""
    directions = {name for pair in _OPPOSITES for name in pair}
    for name in buttons:
        if name and name not in directions:
            yield f"{name.lower()}-and-release", _in_turns(frozenset({name}), frozenset())
    for one, other in _OPPOSITES:
        if {one, other} <= {*buttons}:
            yield f"{one.lower()}-and-{other.lower()}", _in_turns(frozenset({one}), frozenset({other}))


def _in_turns(one: frozenset[str], other: frozenset[str]) -> Script:
    def cycle(player: _Player, start: Any) -> None:
        for held in (one, other):
            for _ in range(_HALF_PERIOD):
                player.hold(held)

    return _cycles(_start, cycle)


_RANDOM_DRIVES = 2
_RANDOM_STEPS = 150


def _at_random(game: Game, action_mode: str, integrations: Any) -> Iterator[Drive]:
    """Drives with random actions, each of which is held for two steps."""
    env = KartEnv(game.name, integrations=integrations, scenario=None, action_mode=action_mode)
    try:
        env.recorder = DriveRecorder(DRIVER)
        for number in range(1, _RANDOM_DRIVES + 1):
            env.action_space.seed(number)
            env.reset(seed=number)
            for step in range(_RANDOM_STEPS):
                if step % 2 == 0:
                    action = env.action_space.sample()
                env.step(action)
            drive = env.recorder.drive(env)
            yield replace(drive, info=replace(drive.info, label=f"random-{number}"))
    finally:
        env.close()


_AGENT_STEPS = 64
_STEPS_OF_AN_ACTION = 4


class _Listener:
    """An ``EpisodeScore`` that notes what it is called with."""

    def __init__(self, score: Any, steps: list[list[tuple[Any, frozenset[str], Any]]]) -> None:
        self._score, self._steps = score, steps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._score, name)

    def start_step(self) -> None:
        self._score.start_step()
        self._steps.append([])

    def __call__(self, ram: Any, buttons: frozenset[str], action: Any) -> float:
        self._steps[-1].append((ram, buttons, action))
        reward: float = self._score(ram, buttons, action)
        return reward


def _by_agent(
    game: Game, action_mode: str, integrations: Any
) -> tuple[Drive, dict[int, list[list[tuple[Any, frozenset[str], Any]]]]]:
    """Drives with the default frame skip and with 1, and the same actions. See ``Probes.steps``."""
    steps: dict[int, list[list[tuple[Any, frozenset[str], Any]]]] = {}
    for frame_skip in (1, DEFAULT_FRAME_SKIP):
        env = KartEnv(
            game.name, integrations=integrations, scenario=None, action_mode=action_mode, frame_skip=frame_skip
        )
        try:
            env.recorder = DriveRecorder(DRIVER)
            env.action_space.seed(1)
            env.reset(seed=1)
            steps[frame_skip] = []
            env.score = _Listener(env.score, steps[frame_skip])  # type: ignore[assignment]
            for step in range(_AGENT_STEPS):
                if step % _STEPS_OF_AN_ACTION == 0:
                    action = env.action_space.sample()
                    if isinstance(env.action_space, Box):
                        action = np.sign(action)  # a smaller one holds a button for a part of a step
                for _ in range(DEFAULT_FRAME_SKIP // frame_skip):
                    env.step(action)
            drive = env.recorder.drive(env)
        finally:
            env.close()
    return replace(drive, info=replace(drive.info, label=AGENT)), steps
