"""Make the pictures of the documents: screens of four hand-made courses, and the maps of the generated ones.

Run ``python homebrew/make_pictures.py``, after ``python homebrew/generate.py`` for the second picture. The first one
shows the scripted driver in the real emulator. The second one shows the course maps in the ROM of the second game.
"""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

import imageio.v2 as imageio
import numpy as np

from kart_rewards.drivers import CentrelineDriver, centreline, drive
from kart_rewards.env import KartEnv
from kart_rewards.integrations import find_folder
from kart_rewards.ram import load_json

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import artwork  # noqa: E402
import build  # noqa: E402
import generate  # noqa: E402
from track import MAP_SIZE  # noqa: E402

PICTURES = HERE.parent / "docs" / "images"
FRAMES = {"Level1": 420, "Level2": 260, "Level3": 330, "Level4": 175}


def screen_after(state: str, frames: int) -> np.ndarray:
    """Return the screen after some frames of a race, uint8 (224, 256, 3)."""
    env = KartEnv(build.GAME, state=state, action_mode="all", frame_skip=1, render_mode="rgb_array")
    for _ in islice(drive(env, CentrelineDriver(centreline(state))), frames + 1):
        pass
    screen = env.render()
    env.close()
    return screen


def screens() -> np.ndarray:
    """Return the screens of four courses, uint8 (912, 1040, 3)."""
    shown = [screen_after(state, frames) for state, frames in FRAMES.items()]
    gap = np.full((224, 8, 3), 255, np.uint8)
    rows = [np.hstack([shown[i], gap, shown[i + 1]]) for i in (0, 2)]
    picture = np.vstack([rows[0], np.full((8, rows[0].shape[1], 3), 255, np.uint8), rows[1]])
    return picture.repeat(2, axis=0).repeat(2, axis=1)


def course_map(rom: bytes, course: int) -> np.ndarray:
    """Return the map of a course as the game shows it, uint8 (112, 112, 3)."""
    bank = (build.FIRST_COURSE_BANK + build.BANKS_A_COURSE * course + 1) * build.BANK
    side = MAP_SIZE // 8
    data = np.frombuffer(rom, np.uint8, side * side * 32, bank + build.AUX["AUX_MAP"])
    # A tile has 8 rows of the bit planes 0 and 1, then 8 rows of 2 and 3.
    planes = np.unpackbits(data.reshape(side, side, 2, 8, 2), axis=-1).reshape(side, side, 2, 8, 2, 8)
    pixels = np.einsum("abhrpc,hp->arbc", planes, [[1, 2], [4, 8]]).reshape(MAP_SIZE, MAP_SIZE)
    words = np.frombuffer(rom, "<u2", 256, bank + build.AUX["AUX_PALETTE"]).astype(int)
    colours = np.stack([(words >> shift & 31) * 255 // 31 for shift in (0, 5, 10)], axis=1)
    return colours[artwork.FIRST_MAP_COLOUR + pixels].astype(np.uint8)


def contact_sheet(folder: Path, columns: int = 7) -> np.ndarray:
    """Return the maps of all generated courses of a game with their names, uint8 (height, width, 3)."""
    rom, font = (folder / "rom.sfc").read_bytes(), artwork.font()
    tiles = []
    for course in load_json(folder / "courses.json")["courses"]:
        if course["state"].startswith("Level"):
            continue
        name = f"{course['name']} {course['lap_length']:.0f} PX".ljust(MAP_SIZE // 8)
        glyphs = np.hstack([font[artwork.CHARACTERS.index(character)] for character in name])
        text = np.where(glyphs == 1, 0, 255).astype(np.uint8)[..., None].repeat(3, axis=2)
        tile = np.vstack([text, course_map(rom, course["index"])])
        tiles.append(np.pad(tile, ((4, 4), (4, 4), (0, 0)), constant_values=255))
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % columns)
    rows = [np.hstack(tiles[at : at + columns]) for at in range(0, len(tiles), columns)]
    return np.vstack(rows).repeat(2, axis=0).repeat(2, axis=1)


def main() -> None:
    """Make the pictures."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    imageio.imwrite(PICTURES / "homebrewkart.png", screens())
    game = find_folder(generate.GAME)
    if game is None:
        print(f"no picture of generated courses: {generate.GAME} is not built: python homebrew/generate.py")
    else:
        imageio.imwrite(PICTURES / "generated_courses.png", contact_sheet(game.folder))


if __name__ == "__main__":
    main()
