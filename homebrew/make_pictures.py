"""Make the README's picture: the screens of four courses, with the scripted driver in the real emulator.

Run ``python homebrew/make_pictures.py``.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import imageio.v2 as imageio
import numpy as np

from kart_rewards.drivers import CentrelineDriver, centreline, drive
from kart_rewards.env import KartEnv

GAME = "HomebrewKart-Snes"
PICTURE = Path(__file__).parent.parent / "docs" / "images" / "homebrewkart.png"
FRAMES = {"Level1": 420, "Level2": 260, "Level3": 330, "Level4": 175}


def screen_after(state: str, frames: int) -> np.ndarray:
    """Return the screen after some frames of a race, uint8 (224, 256, 3)."""
    env = KartEnv(GAME, state=state, action_mode="all", frame_skip=1, render_mode="rgb_array")
    for _ in islice(drive(env, CentrelineDriver(centreline(state))), frames + 1):
        pass
    screen = env.render()
    env.close()
    return screen


def main() -> None:
    """Make the picture."""
    screens = [screen_after(state, frames) for state, frames in FRAMES.items()]
    gap = np.full((224, 8, 3), 255, np.uint8)
    rows = [np.hstack([screens[i], gap, screens[i + 1]]) for i in (0, 2)]
    picture = np.vstack([rows[0], np.full((8, rows[0].shape[1], 3), 255, np.uint8), rows[1]])
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    imageio.imwrite(PICTURE, picture.repeat(2, axis=0).repeat(2, axis=1))


if __name__ == "__main__":
    main()
