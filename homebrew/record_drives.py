"""Record the traces of the package: the RAM variables on each frame of some scripted drives.

Run ``python homebrew/record_traces.py`` after a change of the ROM or its states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from kart_rewards.drivers import CentrelineDriver, Driver, RandomDriver, WallHugger, centreline, drive, reverse
from kart_rewards.env import KartEnv
from kart_rewards.race import finished
from kart_rewards.testing import TRACES, save_trace

GAME = "HomebrewKart-Snes"

# name: (start state, driver, maximum number of frames)
DRIVES: dict[str, tuple[str, Callable[[], Driver], int]] = {
    "race": ("Level1", lambda: CentrelineDriver(centreline("Level1")), 10_000),
    "walls": ("Level3", lambda: WallHugger("LEFT"), 900),
    "reverse": ("Level1", lambda: reverse, 600),
    "wander": ("Level4", lambda: RandomDriver(seed=5, hold=12), 1500),
}


def record(state: str, driver: Driver, most_frames: int) -> Iterator[Any]:
    """Yield the snapshots of a drive until the race is finished, or for ``most_frames`` frames."""
    env = KartEnv(GAME, state=state, action_mode="all", frame_skip=1)
    for ram in islice(drive(env, driver), most_frames + 1):
        yield ram
        if finished(ram):
            break
    env.close()


def main() -> None:
    """Record all drives."""
    for name, (state, make_driver, most_frames) in DRIVES.items():
        trace = list(record(state, make_driver(), most_frames))
        path = TRACES / f"{name}.csv.gz"
        save_trace(path, trace)
        print(f"{path.name:16s} {len(trace):5d} frames, {path.stat().st_size:6d} bytes")


if __name__ == "__main__":
    main()
