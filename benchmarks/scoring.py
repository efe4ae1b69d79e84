"""Measures the time of scoring, relative to an emulated frame: decoding, terms, rules, the screen, a change of turns.

    python benchmarks/scoring.py

All parts are measured in one run, in turns, with the RAM of a running race. It prints medians over the rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from kart_rewards.done import EpisodeDone
from kart_rewards.env import KartEnv
from kart_rewards.rewards import EpisodeRewards, as_term

ROUNDS = 15
CALLS = 400


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

    parts: dict[str, Callable[[], Any]] = {
        "the emulated frame": env.em.step,
        f"decoding {len(env.layout.names)} variables": read,
        "the five reference terms": lambda: reference(ram),
        "the same if one of them pays": lambda: reference(at_a_wall),
        "ten user terms": lambda: users(ram),
        "the two done rules": lambda: done(ram),
        "the screen as RGB": env.em.get_screen,
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


if __name__ == "__main__":
    main()
