"""Record the drives of the package: good, bad and odd drives of every course.

Run ``python homebrew/record_drives.py`` after a change of the ROM or its states.
"""

from __future__ import annotations

from collections.abc import Callable

from kart_rewards.drivers import (
    CentrelineDriver,
    Driver,
    RandomDriver,
    TurnAround,
    WallHugger,
    centreline,
    coast,
    reverse,
)
from kart_rewards.drives import SHIPPED, SUFFIX, Drive
from kart_rewards.env import KartEnv
from kart_rewards.env.recorder import DriveRecorder

GAME = "HomebrewKart-Snes"
COURSES = ("Level1", "Level2", "Level3", "Level4", "Level5")

# kind: (makes the driver of a course, maximum number of frames, the course without a suffix in the name)
KINDS: dict[str, tuple[Callable[[str], Driver], int, str]] = {
    "race": (lambda course: CentrelineDriver(centreline(course)), 12_000, "Level1"),
    "walls": (lambda course: WallHugger("LEFT"), 900, "Level3"),
    "reverse": (lambda course: reverse, 600, "Level1"),
    "wander": (lambda course: RandomDriver(seed=5, hold=12), 1500, "Level4"),
    "standing": (lambda course: coast, 600, "Level1"),
    "turning": (lambda course: TurnAround(), 1200, "Level1"),
}


def record(kind: str, course: str) -> Drive:
    """Record a drive until the race is finished, or for the kind's number of frames."""
    make_driver, most_frames, _ = KINDS[kind]
    env = KartEnv(GAME, state=course, action_mode="all", frame_skip=1, scenario=None, rewards="kart_rewards.rewards")
    env.recorder = DriveRecorder(kind)
    driver = make_driver(course)
    env.reset(seed=1)
    for _ in range(most_frames):
        held = driver(env.ram)
        *_, info = env.step([button in held for button in env.buttons])
        if info["race"]["finished"]:
            break
    recorded = env.recorder.drive(env)
    env.close()
    return recorded


def main() -> None:
    """Record all drives."""
    for kind, (_, _, first) in KINDS.items():
        for course in COURSES:
            recorded = record(kind, course)
            path = SHIPPED / f"{kind}{'' if course == first else f'-{course}'}{SUFFIX}"
            recorded.save(path)
            print(f"{path.name:24s} {len(recorded):5d} frames, {path.stat().st_size:6d} bytes, {recorded.outcome}")


if __name__ == "__main__":
    main()
