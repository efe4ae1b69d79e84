"""Measures the time of scoring, relative to an emulated frame: decoding, terms, rules, the screen, a change of turns.

The rows of arrays and pointers decode the same variables, and others in addition.

    python benchmarks/scoring.py

All parts are measured in one run, in turns, with the RAM of a running race. It prints medians over the rounds.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import stable_retro

from kart_rewards.done import EpisodeDone
from kart_rewards.drives import SHIPPED, load_drive
from kart_rewards.env import KartEnv
from kart_rewards.env.recorder import DriveRecorder
from kart_rewards.ram import RamLayout, Variable
from kart_rewards.rewards import EpisodeRewards, as_term

ROUNDS = 15
CALLS = 400

TILES = Variable("tiles", 0x7F0000, "|u1", count=320)
POINTER = Variable("pointer", 0x7E0088, "<u2")  # any bytes: kart_x
POINTED = [Variable(f"pointed_{i}", 0x7E0000 + i, "<s2", pointer="pointer") for i in range(5)]
POINTED_TILES = Variable("pointed_tiles", 0x7F0000, "|u1", count=320, pointer="pointer")


def top_speed(ram: Any) -> float:
    """A typical term without memory."""
    return float(ram.speed > 900)


def speed(ram: Any) -> float:
    """A typical term without memory."""
    return ram.speed / 1000


def on_road(ram: Any) -> float:
    """A typical term without memory."""
    return float(ram.surface == 0x40)


def touching(ram: Any) -> float:
    """A typical term without memory."""
    return float(ram.collision != 0)


def gained_speed(ram: Any, previous: Any) -> float:
    """A typical term with the previous snapshot."""
    return ram.speed - previous.speed


class LeftTheRoad:
    """A typical term with a memory."""

    def __init__(self) -> None:
        self.on_road = True

    def __call__(self, ram: Any) -> float:
        left = self.on_road and ram.surface != 0x40
        self.on_road = ram.surface == 0x40
        return float(left)


def reader_of(env: KartEnv, *others: Variable) -> Callable[[], Any]:
    """Returns a reader of the game's variables and others. It has its own ``GameData``."""
    data = stable_retro.data.GameData()
    env.em.configure_data(data)
    return RamLayout([*env.layout.variables, *others]).reader(data)


def main() -> None:
    """Runs the measurements, and prints a table."""
    env = KartEnv("HomebrewKart-Snes", action_mode="driving")
    env.reset(seed=1)
    for _ in range(50):
        env.step(0)
    reference = EpisodeRewards(env.scoring.terms)
    users = EpisodeRewards(
        [as_term(term) for term in (top_speed, speed, on_road, touching, gained_speed, *[LeftTheRoad] * 5)]
    )
    done = EpisodeDone(env.scoring.done)
    read = env.layout.reader(env.data)
    ram = env.ram
    at_a_wall = ram._replace(collision=1, speed=0)

    recorder, mask = DriveRecorder("benchmark"), np.zeros(len(env.buttons), np.uint8)
    race = load_drive(SHIPPED / "race.drive")

    parts: dict[str, Callable[[], Any]] = {
        "the emulated frame": env.em.step,
        f"decoding {len(env.layout.names)} variables": read,
        "and an array of 320 bytes": reader_of(env, TILES),
        "and 5 behind a pointer": reader_of(env, POINTER, *POINTED),
        "and such an array": reader_of(env, POINTER, POINTED_TILES),
        "the five reference terms": lambda: reference(ram),
        "the same if one of them pays": lambda: reference(at_a_wall),
        "ten user terms": lambda: users(ram),
        "the two done rules": lambda: done(ram),
        "the screen as RGB": env.em.get_screen,
        "recording it in a drive": lambda: recorder.frame(mask, ram),
        "a change of turns": lambda: env.em.set_state(env.em.get_state()),
    }
    microseconds: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(ROUNDS):
        for name, part in parts.items():
            begin = time.perf_counter()
            for _ in range(CALLS):
                part()
            microseconds[name].append((time.perf_counter() - begin) / CALLS * 1e6)
    frame = statistics.median(microseconds["the emulated frame"])
    print(f"{'':<28} {'µs':>8} {'of a frame':>11}")
    for name, times in microseconds.items():
        print(f"{name:<28} {statistics.median(times):>8.2f} {statistics.median(times) / frame:>11.2%}")
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(ROUNDS):
            begin = time.perf_counter()
            race.save(Path(folder) / "race.drive")
            seconds.append(time.perf_counter() - begin)
    saving = statistics.median(seconds) / len(race) * 1e6
    print(f"{'saving a drive, per frame':<28} {saving:>8.2f} {saving / frame:>11.2%}")


if __name__ == "__main__":
    main()
