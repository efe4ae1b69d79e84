"""The reference lap of each course: the best lap that a scripted driver and a search over its inputs have found.

A file such as ``reference_laps/Level1.json`` contains the time of the best lap, the time of the race, and the inputs
that drive them.

    python benchmarks/reference_laps.py                                      # replays the committed races
    python benchmarks/reference_laps.py search --course Level1 --minutes 5   # replaces a replay by a faster one
    python benchmarks/reference_laps.py record                               # writes the races as the game's drives

The search reads the RAM and saves and loads states of the emulator. It does not write RAM, and it uses only the buttons
of a player. Its result is the inputs of a complete race from the start state, so anyone can replay it. A replay is
deterministic. The result of a search depends on the speed of the machine.

1. ``find_racing_line``: a driver follows the centreline at an offset that varies along the lap. Random changes improve
   the offsets and the look-ahead. Each change is tried for more than a lap from a saved state.
2. ``improve_inputs``: that driver drives the race, a few frames at a time. Before each of these strides, random changes
   of the inputs of the next 1.5 seconds are tried from saved states. A change that leads further is kept.

Laps are counted as in ``RaceMetrics``. The reference lap is the best lap of the replayed race, with a flying start.
"""

from __future__ import annotations

import json
import math
import random
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro

from kart_rewards.drivers import Buttons, CentrelineDriver, centreline, drive, turn_difference
from kart_rewards.env import KartEnv
from kart_rewards.env.recorder import DriveRecorder
from kart_rewards.errors import KartRewardsError
from kart_rewards.evaluation.courses import reference_drive
from kart_rewards.race import LAPS_IN_A_RACE, RaceMetrics, progress
from kart_rewards.ram import load_json

GAME = "HomebrewKart-Snes"
COURSES = ("Level1", "Level2", "Level3", "Level4", "Level5")
REPLAYS = Path(__file__).parent / "reference_laps"
TIMES = ("lap_frames", "lap_time_seconds", "race_time_seconds")
DRIVING = {"B", "Y", "LEFT", "RIGHT", "L", "R"}  # the buttons that have an effect in a race
MOST_FRAMES = 10_000  # longer than any race that is a useful reference

SPACING = 8.0  # pixels between points of the line, as in courses.json
KNOTS = 24  # number of offsets around a lap
STRIDE = 10  # frames that are fixed at a time, and frames between saved states
HORIZON = 90  # frames that the search looks ahead

# A short cut replaces the part of the centreline between its ends. These are the dirt strips in homebrew/courses.py.
SHORT_CUTS: dict[str, list[list[tuple[float, float]]]] = {
    "Level4": [[(560, 152), (640, 250), (760, 340), (872, 470)], [(700, 872), (360, 872)]],
    "Level5": [[(864, 330), (760, 240), (640, 152)]],
}


# --- replays ----------------------------------------------------------------------------------------------------------


def replay_path(course: str) -> Path:
    """Returns the path of a course's replay."""
    return REPLAYS / f"{course}.json"


def load_replay(path: Path) -> dict[str, Any]:
    """Returns a replay. Its ``inputs`` are the buttons of each frame.

    Raises:
        KartRewardsError: The file can't be read, or it is not a replay.
    """
    replay = load_json(path)
    try:
        if replay["state"] not in COURSES:
            raise ValueError(f"there is no course {replay['state']!r}")
        counts = [count for count, _ in replay["inputs"]]
        if min(counts, default=0) < 1 or sum(counts) > MOST_FRAMES:
            raise ValueError(f"its inputs are not for 1 to {MOST_FRAMES} frames")
        if not set().union(*(held.split() for _, held in replay["inputs"])) <= DRIVING:
            raise ValueError(f"its inputs have buttons other than {' '.join(sorted(DRIVING))}")
        replay["inputs"] = [frozenset(held.split()) for count, held in replay["inputs"] for _ in range(count)]
        return {name: replay[name] for name in ("rom_sha1", "state", "found_with", *TIMES, "inputs")}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else error
        raise KartRewardsError(f"{path}: is not a replay of a race: {what}") from None


def times(race: RaceMetrics) -> dict[str, Any]:
    """Returns the times in a replay: the frames of each lap, and the best lap and the race in seconds."""
    return {
        "lap_frames": race.lap_frames,
        "lap_time_seconds": round(min(race.lap_frames, default=0) / race.frames_per_second, 3),
        "race_time_seconds": round(sum(race.lap_frames) / race.frames_per_second, 3),
    }


def save_replay(path: Path, facts: dict[str, Any], inputs: list[Buttons]) -> None:
    """Writes a replay: the facts, and the inputs as pairs [number of frames, buttons]."""
    runs = [f"[{len(list(run))}, {json.dumps(' '.join(held))}]" for held, run in groupby(map(sorted, inputs))]
    lines = [f" {json.dumps(name)}: {json.dumps(value)}," for name, value in facts.items()]
    rows = [f"  {', '.join(runs[start : start + 8])}" for start in range(0, len(runs), 8)]
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(["{", *lines, ' "inputs": [', ",\n".join(rows), " ]", "}"]) + "\n", encoding="utf-8")


def race_with(env: KartEnv, driver: Callable[[Any], Buttons], most_frames: int = MOST_FRAMES) -> RaceMetrics:
    """Drives a race from the start state with the steps of the environment. Returns the metrics of the race."""
    frames = drive(env, driver)
    race = RaceMetrics(next(frames), env.frames_per_second)
    while race.frames < most_frames and not race.summary()["finished"]:
        race.update(next(frames))
    return race


def play_back(env: KartEnv, inputs: list[Buttons]) -> RaceMetrics:
    """Drives a race with these inputs, until the inputs or the race end."""
    following = iter(inputs)
    return race_with(env, lambda ram: next(following), len(inputs))


def make_env(state: str) -> KartEnv:
    """Makes the environment for races and searches: all buttons, one frame per step."""
    return KartEnv(GAME, state=state, action_mode="all", frame_skip=1)


def verify(path: Path) -> RaceMetrics:
    """Replays a file in the emulator. Returns the metrics of the race.

    Raises:
        KartRewardsError: The file is not a replay, it is for another ROM, or its inputs don't drive its times.
    """
    replay = load_replay(path)
    env = make_env(replay["state"])
    try:
        if replay["rom_sha1"] not in env.game.rom_hashes():
            raise KartRewardsError(
                f"{path}: was driven with the ROM {replay['rom_sha1']}, but {GAME} has the ROM "
                f"{' or '.join(env.game.rom_hashes())}: search again (--minutes 0 tries the same inputs)"
            )
        race = play_back(env, replay["inputs"])
    finally:
        env.close()
    claimed = {name: replay[name] for name in TIMES}
    if times(race) != claimed or not race.summary()["finished"]:
        raise KartRewardsError(f"{path}: its inputs drive {times(race)}, but it contains {claimed}")
    return race


# --- the course and the kart on it ------------------------------------------------------------------------------------


class Course:
    """The line of a course. It is the scale of distances along the course, in pixels from the start line.

    Args:
        state: The course's start state.
        short_cuts: The indices of the short cuts on the line.
    """

    def __init__(self, state: str, short_cuts: tuple[int, ...] = ()) -> None:
        corners = [np.array(point, float) for point in centreline(state)]
        laps = list(np.arange(len(corners)) / len(corners))  # the part of the lap that is done at each corner, 0 to 1
        for strip in (np.array(SHORT_CUTS[state][number], float) for number in sorted(short_cuts, reverse=True)):
            enter, leave = (int(np.argmin([math.dist(corner, end) for corner in corners])) for end in strip[[0, -1]])
            share = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(strip, axis=0).T))])
            laps[enter : leave + 1] = laps[enter] + (laps[leave] - laps[enter]) * share / share[-1]
            corners[enter : leave + 1] = list(strip)
        closed = np.array([*corners, corners[0]])
        along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(closed, axis=0).T))])
        self.count = round(along[-1] / SPACING)
        at = np.arange(self.count) * along[-1] / self.count
        points = np.stack([np.interp(at, along, closed[:, axis]) for axis in (0, 1)], axis=1)
        self.laps = np.interp(at, along, [*laps, 1.0]).tolist()
        ahead = np.roll(points, -1, axis=0) - np.roll(points, 1, axis=0)
        tangents = ahead / np.hypot(ahead[:, 0], ahead[:, 1])[:, None]
        self.points, self.tangents = points.tolist(), tangents.tolist()
        # The mean curvature of the line around each knot, scaled to -1 (left) to 1 (right).
        before = np.roll(tangents, 1, axis=0)
        turns = before[:, 0] * tangents[:, 1] - before[:, 1] * tangents[:, 0]
        bends = np.array([part.mean() for part in np.array_split(turns, KNOTS)])
        self.bends = (bends / np.abs(bends).max()).tolist()
        self.length = self.count * SPACING

    def advance(self, distance: float, x: float, y: float) -> float:
        """Returns the distance of a kart at (x, y).

        Args:
            distance: The distance on the previous frame. The result increases over the line.
            x, y: The kart's position in pixels.
        """
        near = int(distance // SPACING)
        best, nearest = 1e9, near
        for k in range(near - 4, near + 9):
            px, py = self.points[k % self.count]
            off = (px - x) * (px - x) + (py - y) * (py - y)
            if off < best:
                best, nearest = off, k
        (px, py), (tx, ty) = self.points[nearest % self.count], self.tangents[nearest % self.count]
        return nearest * SPACING + max(-4.0, min(4.0, (x - px) * tx + (y - py) * ty))


class Kart(NamedTuple):
    """The state of the kart in RAM."""

    x: float  # pixels
    y: float
    direction: int  # 1/256 turn; 0 is north, clockwise
    speed: int  # 256 is one pixel per frame
    sectors: int  # number of sectors since the first crossing of the line


class Place(NamedTuple):
    """A moment of a drive, to which the search can return."""

    state: bytes  # of the emulator
    kart: Kart
    distance: float


class Drive(NamedTuple):
    """A part of a race: the buttons of each frame, and the place every STRIDE frames and at the end."""

    inputs: list[Buttons]
    places: list[Place]


class LineDriver(NamedTuple):
    """A ``CentrelineDriver`` whose offset varies along the lap."""

    course: Course
    offsets: list[float]  # pixels to the right of the course's line, KNOTS around the lap
    look_ahead: float  # pixels
    look_ahead_per_speed: float

    def offset(self, distance: float) -> float:
        """Returns the offset at a distance, interpolated between two knots."""
        knot, part = divmod(distance / self.course.length * KNOTS, 1.0)
        return self.offsets[int(knot) % KNOTS] * (1 - part) + self.offsets[int(knot + 1) % KNOTS] * part

    def __call__(self, kart: Kart, distance: float, swerve: float = 0.0) -> Buttons:
        """Returns the buttons for this frame. ``swerve`` is an additional offset, in pixels."""
        aim = distance + self.look_ahead + self.look_ahead_per_speed * max(0, kart.speed)
        k, right = round(aim / SPACING) % self.course.count, self.offset(aim) + swerve
        (px, py), (tx, ty) = self.course.points[k], self.course.tangents[k]
        wanted = math.atan2(px - ty * right - kart.x, kart.y - py - tx * right) / (2 * math.pi) * 256
        error = turn_difference(wanted, kart.direction)
        held = {"B"} if abs(error) < 40 or kart.speed < 300 else set()
        if abs(error) > 2:
            held.add("RIGHT" if error > 0 else "LEFT")
        return frozenset(held)


# --- the search -------------------------------------------------------------------------------------------------------


class Search:
    """Searches for a fast race on one course.

    Args:
        env: The environment. The search uses its emulator directly, without screen and scoring.
        course: The line of the course.
        seed: Seed of all random choices.
    """

    def __init__(self, env: KartEnv, course: Course, seed: int) -> None:
        self.env, self.course = env, course
        self.read = env.layout.reader(env.data)
        self.random = random.Random(seed)
        env.reset(seed=1)
        kart = self.kart()
        nearest = min(range(course.count), key=lambda k: math.dist(course.points[k], (kart.x, kart.y)))
        self.grid = Place(env.em.get_state(), kart, (nearest - course.count) * SPACING)

    def kart(self) -> Kart:
        """Reads the kart from the RAM."""
        ram = self.read()
        return Kart(ram.kart_x / 4, ram.kart_y / 4, ram.kart_direction, ram.speed, progress(ram))

    def play(self, place: Place, choose: Callable[[int, Kart, float], Buttons], frames: int) -> Drive:
        """Plays some frames from a place. ``choose(frame, kart, distance)`` returns the buttons to hold."""
        em, buttons = self.env.em, self.env.buttons
        em.set_state(place.state)
        _, kart, distance = place
        drive = Drive([], [place])
        for frame in range(frames):
            held = choose(frame, kart, distance)
            em.set_button_mask(np.array([button in held for button in buttons], np.uint8), 0)
            em.step()
            kart = self.kart()
            distance = self.course.advance(distance, kart.x, kart.y)
            drive.inputs.append(held)
            if (frame + 1) % STRIDE == 0 or frame + 1 == frames:
                drive.places.append(Place(em.get_state(), kart, distance))
        return drive

    def score(self, place: Place, driver: LineDriver) -> float:
        """Returns the distance of a place along the course in pixels, with a bonus for speed and some penalties."""
        (_, kart, distance), course = place, self.course
        laps, point = divmod(int(distance // SPACING), course.count)
        sectors_due = (laps + course.laps[point]) * self.env.ram.num_checkpoints
        missed = max(0.0, sectors_due - 1.5 - kart.sectors)  # without this sector the lap would not count
        # On the inside of a bend, the distance is greater than the real progress. Therefore places far from the
        # driver's line get a penalty.
        (px, py), (tx, ty) = course.points[point], course.tangents[point]
        astray = (kart.y - py) * tx - (kart.x - px) * ty - driver.offset(distance)
        return distance + 25 * kart.speed / 256 - 300 * missed - astray * astray / 30

    def find_racing_line(self, seconds: float, driver: LineDriver | None = None) -> tuple[float, LineDriver]:
        """Stage 1: improves a driver's line by random changes. Each change is tried for 1.25 laps.

        Args:
            seconds: The time of the search.
            driver: The driver to improve. The default follows the course's line.

        Returns:
            The pace in laps per frame, which is comparable between lines of different length, and the driver.
        """
        begin = time.monotonic()
        driver = driver or LineDriver(self.course, [0.0] * KNOTS, 50.0, 0.045)
        place = self.grid
        while place.distance < 0.75 * self.course.length:  # a flying start
            place = self.play(place, lambda _, *now: driver(*now), STRIDE).places[-1]
        frames, best, tried = round(1.25 * self.course.length / 3.5), -1e9, 0
        while time.monotonic() - begin < seconds:
            changed = self.change(driver) if tried else driver
            end = self.play(place, lambda _, *now: changed(*now), frames).places[-1]  # noqa: B023
            score = self.score(end, changed)
            tried += 1
            if score > best:
                best, driver = score, changed
        pace = (best - self.score(place, driver)) / self.course.length / frames
        print(f"  racing line: {tried} tried, a lap takes {1 / pace:.0f} frames", flush=True)
        return pace, driver

    def change(self, driver: LineDriver) -> LineDriver:
        """Returns the driver with a random change of its offsets at one place or in bends, or of its look-ahead."""
        kind, size = self.random.random(), self.random.gauss(0, 20)
        if kind < 0.15:
            return driver._replace(
                look_ahead=max(10.0, driver.look_ahead + self.random.gauss(0, 12)),
                look_ahead_per_speed=max(0.0, driver.look_ahead_per_speed + self.random.gauss(0, 0.01)),
            )
        if kind < 0.3:
            bumps = [size * bend for bend in self.course.bends]
        else:
            centre, width = self.random.uniform(0, KNOTS), self.random.choice((0.6, 1.0, 2.0))
            away = [(k - centre + KNOTS / 2) % KNOTS - KNOTS / 2 for k in range(KNOTS)]
            bumps = [size * math.exp(-((knots / width) ** 2)) for knots in away]
        return driver._replace(offsets=[old + bump for old, bump in zip(driver.offsets, bumps, strict=True)])

    def propose(self, ahead: list[Buttons], driver: LineDriver) -> Callable[[int, Kart, float], Buttons]:
        """Returns a random change of the inputs of the next frames. After the changed inputs, the driver continues.

        Args:
            ahead: The inputs to change, one for each frame.
            driver: The driver.
        """
        kind, frames, at = self.random.random(), self.random.randint(2, 20), self.random.randrange(len(ahead))
        if kind < 0.2:
            swerve = self.random.choice((0.0, self.random.gauss(0, 20)))
            return lambda t, *now: driver(*now, swerve) if t < 2 * frames else driver(*now)
        held = frozenset(self.random.choice(("B", "B LEFT", "B LEFT", "B RIGHT", "B RIGHT", "")).split())
        hop = frozenset({"L"}) if self.random.random() < 0.2 else frozenset()
        inputs = [held | hop] + [held] * (frames - 1)
        if kind >= 0.8:  # what follows is done some frames earlier or later
            some = frames // 4
            inputs = ahead[:at] + self.random.choice((ahead[at + some :], [ahead[at]] * some + ahead[at:]))
        elif kind >= 0.5:
            inputs = ahead[:at] + inputs + ahead[at + frames :]
        return lambda t, *now: inputs[t] if t < len(inputs) else driver(*now)

    def improve_inputs(self, driver: LineDriver, seconds: float) -> list[Buttons]:
        """Stage 2: drives the race. Before each stride, it tries random changes of the inputs ahead."""
        begin = time.monotonic()
        first = self.grid.distance
        inputs: list[Buttons] = []
        strides: list[float] = []  # the distance at the beginning of each stride
        plan = self.play(self.grid, lambda _, *now: driver(*now), HORIZON)
        last = LAPS_IN_A_RACE * self.course.length
        while plan.places[0].distance < last and len(inputs) < MOST_FRAMES:
            here = plan.places[0].distance
            # The time is divided by distance, so that each lap gets the same time.
            while time.monotonic() - begin < seconds * (here - first) / (last - first):
                plan = self.better(plan, driver)
            ago = here - self.course.length  # also try the inputs of the previous lap at this distance
            at = int(np.argmin(np.abs(np.array(strides) - ago))) * STRIDE if ago > first else len(inputs)
            ghost = inputs[at : at + HORIZON]
            if len(ghost) == HORIZON:
                again = self.play(plan.places[0], lambda t, *_: ghost[t], HORIZON)  # noqa: B023
                plan = max(plan, again, key=lambda drive: self.score(drive.places[-1], driver))
            strides.append(here)
            inputs += plan.inputs[:STRIDE]
            more = self.play(plan.places[-1], lambda _, *now: driver(*now), STRIDE)
            plan = Drive(plan.inputs[STRIDE:] + more.inputs, plan.places[1:] + more.places[1:])
        return inputs + plan.inputs[:STRIDE]

    def better(self, plan: Drive, driver: LineDriver) -> Drive:
        """Tries one random change of a plan. Returns the better of the two plans."""
        k = self.random.randrange(HORIZON // STRIDE // 2 + 1)  # the driver drives the last part of each plan
        new = self.play(plan.places[k], self.propose(plan.inputs[k * STRIDE :], driver), HORIZON - k * STRIDE)
        if self.score(new.places[-1], driver) <= self.score(plan.places[-1], driver):
            return plan
        return Drive(plan.inputs[: k * STRIDE] + new.inputs, plan.places[:k] + new.places)


# --- the command line -------------------------------------------------------------------------------------------------

app = tyro.extras.SubcommandApp()


def check_course(course: str) -> None:
    """Raises KartRewardsError if the course does not exist."""
    if course not in COURSES:
        raise KartRewardsError(f"unknown course {course!r}: it is one of {', '.join(COURSES)}")


@app.command
def search(course: str = "Level1", minutes: float = 5.0, seed: int = 1) -> None:
    """Searches for a faster race than the committed one, and writes the replay of the faster one.

    Args:
        course: The course's start state.
        minutes: Time of the search. 0: only try the committed inputs with a rebuilt ROM, and keep them if they finish.
        seed: Seed of the search. The result also depends on the speed of the machine.
    """
    check_course(course)
    if not 0 <= minutes < 10_000:
        raise KartRewardsError(f"--minutes {minutes} must be 0 or more")
    path = replay_path(course)
    known = [load_replay(path)] if path.exists() else []
    races = [(replay["inputs"], replay["found_with"]) for replay in known]
    env = make_env(course)
    rom_sha1 = env.game.rom_hashes()[0]
    try:
        if minutes > 0:
            found_with = f"search --course {course} --minutes {minutes:g} --seed {seed}"
            races += [(inputs, found_with) for inputs in search_races(env, course, minutes * 60, seed)]
        best: tuple[list[Buttons], dict[str, Any]] | None = None
        for inputs, found_with in races:
            race = play_back(env, inputs)
            print(f"  {found_with}: laps of {race.lap_frames} frames, a race of {sum(race.lap_frames)}", flush=True)
            if race.summary()["finished"] and (best is None or value(race.lap_frames) < value(best[1]["lap_frames"])):
                best = inputs[: race.frames], {"found_with": found_with, **times(race)}
        if best is None:
            raise KartRewardsError(f"{course}: found no finished race: search longer, or with another --seed")
        save_replay(path, {"game": GAME, "state": course, "rom_sha1": rom_sha1, **best[1]}, best[0])
        print(f"wrote {path}")
    finally:
        env.close()


def search_races(env: KartEnv, course: str, seconds: float, seed: int) -> list[list[Buttons]]:
    """Returns the inputs of two races: the driver's race on its racing line, and the improved race."""
    cuts = range(len(SHORT_CUTS.get(course, [])))
    ways = [tuple(k for k in cuts if number >> k & 1) for number in range(2 ** len(cuts))]
    lines = []
    for way in ways:
        print(f"{course}, with short cuts: {way or 'none'}", flush=True)
        one = Search(env, Course(course, way), seed)
        lines.append((*one.find_racing_line(seconds * 0.1 / len(ways)), one))
    _, driver, one = max(lines, key=lambda line: line[0])
    driver = one.find_racing_line(seconds * 0.3, driver)[1]
    return [one.improve_inputs(driver, 0.0), one.improve_inputs(driver, seconds * 0.6)]


def value(lap_frames: list[int]) -> int:
    """Returns the number that the search minimises, in frames: the race plus five times its best lap."""
    return sum(lap_frames) + LAPS_IN_A_RACE * min(lap_frames)


@app.command(name="verify")
def verify_all(courses: Annotated[tuple[str, ...], tyro.conf.Positional] = COURSES, /) -> None:
    """Replays the committed races in the emulator, and prints their times and those of the CentrelineDriver.

    Args:
        courses: The courses' start states.
    """
    print(f"{'':<8} {'driver':<18} {'best lap':>9} {'race':>9} {'off road':>9} {'wall hits':>9}   laps in frames")
    for course in courses:
        check_course(course)
        env = make_env(course)
        races = {"CentrelineDriver": race_with(env, CentrelineDriver(centreline(course)))}
        env.close()
        races["reference"] = verify(replay_path(course))
        for name, race in races.items():
            seen = race.summary()
            lap, total = seen["best_lap_time_seconds"], seen["race_time_seconds"]
            print(
                f"{course:<8} {name:<18} {lap:>7.2f} s {total:>7.2f} s {seen['off_road_seconds']:>7.2f} s "
                f"{seen['wall_hits']:>9}   {' '.join(map(str, race.lap_frames))}",
                flush=True,
            )


@app.command
def record(courses: Annotated[tuple[str, ...], tyro.conf.Positional] = COURSES, /) -> None:
    """Replays the committed races, and writes them as drives into the game's folder, for evaluations and ghosts.

    The drives have no start state, which would be two thirds of each file: only the replays can be played again.

    Args:
        courses: The courses' start states.
    """
    for course in courses:
        check_course(course)
        env = make_env(course)
        env.recorder = DriveRecorder("reference")
        play_back(env, load_replay(replay_path(course))["inputs"])
        path = reference_drive(env.game.folder, course)
        replace(env.recorder.drive(env), start=b"").save(path)
        env.close()
        print(f"wrote {path}, {path.stat().st_size} bytes")


def main() -> None:
    """Runs a command; the default is ``verify``. An error of the user ends it with one message and exit code 2."""
    try:
        app.cli(args=sys.argv[1:] or ["verify"], description=__doc__)
    except KartRewardsError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
